"""A dual encoder that is quick to import and to train."""

import torch
from torch import nn


class PlainAttention(nn.Module):
    """Attention of one head."""

    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v))


class Block(nn.Module):
    """Attention and dropout, so that a step depends on the random numbers that it draws."""

    def __init__(self, width, dropout):
        super().__init__()
        self.attn, self.drop = PlainAttention(width), nn.Dropout(dropout)

    def forward(self, x):
        return x + self.drop(self.attn(x))


class Tower(nn.Module):
    """Two blocks over embedded pixels or words."""

    def __init__(self, embed, width, dropout):
        super().__init__()
        self.embed, self.blocks = embed, nn.Sequential(Block(width, dropout), Block(width, dropout))

    def forward(self, x):
        return self.blocks(self.embed(x)).mean(1)


class SmallClip(nn.Module):
    """What vlprune needs of a dual encoder, without open_clip, which takes seconds to import."""

    def __init__(self, width=16, dropout=0.0):
        super().__init__()
        self.visual = Tower(nn.Linear(12, width), width, dropout)
        self.text = Tower(nn.Embedding(30, width), width, dropout)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))

    def encode_image(self, images, normalize=False):
        return nn.functional.normalize(self.visual(images.flatten(1).unflatten(1, (-1, 12))), dim=-1)

    def encode_text(self, texts, normalize=False):
        return nn.functional.normalize(self.text(texts), dim=-1)
