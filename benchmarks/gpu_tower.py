"""An image tower of open_clip's shape with random weights, for machines that have torch and no more."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

__all__ = ["Clip"]


class Block(nn.Module):
    """A block as open_clip's: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = {
            "c_fc": nn.Linear(width, 4 * width),
            "gelu": nn.GELU(),
            "c_proj": nn.Linear(4 * width, width),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] to the same."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Blocks one after the other."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Run them all."""
        for block in self.resblocks:
            x = block(x)
        return x


class Visual(nn.Module):
    """ViT: patches, a class token, positions, blocks, a projection of the class token."""

    def __init__(self, width: int, heads: int, layers: int, patch: int, size: int, embedding: int) -> None:
        super().__init__()
        self.image_size = size
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width) * width**-0.5)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, heads, layers)
        self.proj = nn.Parameter(torch.randn(width, embedding) * width**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, size, size] to [B, embedding]."""
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_embedding.expand(len(x), 1, -1), x), 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Clip(nn.Module):
    """The image tower where open_clip has it; ViT-L/14 unless told otherwise."""

    def __init__(
        self, width: int = 1024, heads: int = 16, layers: int = 24, patch: int = 14, size: int = 224
    ) -> None:
        super().__init__()
        self.visual = Visual(width, heads, layers, patch, size, 3 * width // 4)

    def encode_image(self, images: Tensor) -> Tensor:
        """[B, embedding]."""
        features: Tensor = self.visual(images)
        return features
