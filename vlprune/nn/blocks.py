"""open_clip's blocks and image tower, without the work that no result needs.

A packed layer adds the residual where it writes its result, and on a CPU in float32 makes the layer norm
before it where it reads its input; where the embedding is read from the class token, the last block computes
queries, output projection and MLP for that token alone; and the convolution that cuts an image into patches
is one product where that is faster. Modules are given these classes in the place of their own, which go by
the same names: parameters, children, hooks and what is saved stay as they are. Where anybody could tell the
difference (hooks, replaced forwards, gradients), everything is computed as before.

Imported by functions only, since it imports open_clip.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip import transformer
from torch import Tensor, nn
from torch.nn.modules import module as every

from .. import ops
from .attention import PackedAttention
from .linear24 import Linear24
from .patches import Conv2d, cuts_patches, product_is_faster
from .quantized24 import QuantizedLinear24

__all__ = ["ResidualAttentionBlock", "VisionTransformer", "fuse_", "one_token_layers", "unfuse_"]


class ResidualAttentionBlock(transformer.ResidualAttentionBlock):  # type: ignore[misc]
    """The block, whose packed layers add the residuals."""

    def forward(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
        first: int | None = None,
    ) -> Tensor:
        """Map q_x [batch, tokens, width] to the same, or to the `first` tokens of it, which attend to all.

        Self-attention has no use for k_x and v_x, here as in open_clip.
        """
        if "attention" in vars(self):
            return super().forward(q_x, k_x, v_x, attn_mask)  # type: ignore[no-any-return]
        attn: Any = self.attn
        mask = attn_mask
        # PackedAttention converts what it adds, and knows a mask again by the tensor; numbers that are no
        # floats are added here, and mean something else there
        if mask is not None and not (type(attn) is PackedAttention and mask.is_floating_point()):
            mask = mask.to(q_x.dtype)
        adds = type(attn) is PackedAttention and _adds(self.ls_1, attn, attn.out_proj)
        norm = _read_by(attn.qkv, self.ln_1, q_x) if adds and first is None else None
        h = self.ln_1(q_x) if norm is None else q_x
        x, q = (q_x, h) if first is None else (q_x[:, :first], h[:, :first])
        if adds:
            x = attn(q, h, h, need_weights=False, attn_mask=mask, residual=x, norm=norm)[0]
        else:
            x = x + self.ls_1(attn(q, h, h, need_weights=False, attn_mask=mask)[0])
        mlp: Any = self.mlp
        if type(mlp) is not nn.Sequential or not _adds(self.ls_2, mlp, mlp[-1]):
            return x + self.ls_2(mlp(self.ln_2(x)))  # type: ignore[no-any-return]
        *layers, last = mlp
        norm = _read_by(layers[0], self.ln_2, x) if layers else None
        h = self.ln_2(x) if norm is None else layers[0](x, norm=norm)
        for layer in layers if norm is None else layers[1:]:
            h = layer(h)
        return last(h, x)  # type: ignore[no-any-return]


class VisionTransformer(transformer.VisionTransformer):  # type: ignore[misc]
    """The tower, which asks its last block for the class token alone."""

    def forward(self, x: Tensor) -> Any:
        """Map images [batch, 3, height, width] to embeddings, and tokens where `output_tokens` says so."""
        if self.training or torch.is_grad_enabled() or not reads_one_token(self):
            return super().forward(x)
        *blocks, last = self.transformer.resblocks
        if any(map(_is_watched, (self.transformer, self.ln_post, *last.modules()))):
            return super().forward(x)
        x = self._embeds(x)
        for block in blocks:
            x = block(x, attn_mask=None)
        pooled, _ = self._pool(last(x, first=1))
        return pooled if self.proj is None else pooled @ self.proj


def fuse_(model: nn.Module, *, dense: bool = False) -> list[str]:
    """Give open_clip's blocks, and the image tower around them, the classes of this file, in place.

    To all blocks of a stack or none, and only where one holds a packed layer. The blocks are not measured:
    they compute less.

    Args:
        model: any module; a second call changes nothing.
        dense: whether also where no layer is packed.

    Returns:
        What was done to the tower, in words.

    """
    stacks = [stack for stack in model.modules() if _is_fusible(stack, dense)]
    towers = [
        (f"{name}." if name else name, tower)
        for name, tower in model.named_modules()
        if type(tower) in (transformer.VisionTransformer, VisionTransformer)
        and any(stack is tower.transformer.resblocks for stack in stacks)
    ]
    # measured before anything is changed: that may fail, or be interrupted
    products = [
        cuts_patches(tower.conv1) and product_is_faster(tower.conv1, tower.image_size) for _, tower in towers
    ]
    for stack in stacks:
        for block in stack.children():
            block.__class__ = ResidualAttentionBlock
    done: list[str] = []
    for (name, tower), product in zip(towers, products, strict=True):
        blocks = tower.transformer.resblocks
        if product:
            tower.conv1.__class__ = Conv2d
            done.append(f"{name}conv1 is a product")
        if reads_one_token(tower):
            tower.__class__ = VisionTransformer
            done.append(f"{name}transformer.resblocks.{len(blocks) - 1} runs for the class token alone")
    return done


def unfuse_(model: nn.Module) -> None:
    """Give all of them their own classes back, in place."""
    for module in model.modules():
        if type(module) in _OWN:
            module.__class__ = _OWN[type(module)]


def one_token_layers(model: nn.Module) -> set[str]:
    """Names of the layers that see one token of every image once `fuse_` gives their tower its class."""
    found: set[str] = set()
    for name, tower in model.named_modules():
        if type(tower) in (transformer.VisionTransformer, VisionTransformer) and _pools_one_token(tower):
            blocks = tower.transformer.resblocks
            path = f"{name}.transformer.resblocks.{len(blocks) - 1}".lstrip(".")
            after = ("attn.out_proj", "mlp.") if all(map(_is_known, blocks)) else ()
            found |= {f"{path}.{own}" for own, _ in blocks[-1].named_modules() if own.startswith(after)}
    return found


def reads_one_token(tower: Any) -> bool:
    """Whether nothing but the class token of the last block's output becomes the tower's result."""
    return _pools_one_token(tower) and type(tower.transformer.resblocks[-1]) is ResidualAttentionBlock


def _pools_one_token(tower: Any) -> bool:
    stack = tower.transformer
    return (
        type(stack) is transformer.Transformer
        and stack.batch_first
        and len(stack.resblocks) > 0
        and tower.pool_type == "tok"
        and tower.attn_pool is None
        and not tower.output_tokens
    )


def _is_fusible(stack: nn.Module, dense: bool) -> bool:
    known = isinstance(stack, nn.ModuleList) and len(stack) > 0 and all(map(_is_known, stack))
    return known and (dense or any(isinstance(m, Linear24 | QuantizedLinear24) for m in stack.modules()))


def _is_known(block: nn.Module) -> bool:
    """Whether it is a block of self-attention as `ResidualAttentionBlock.forward` calls it."""
    if type(block) not in (transformer.ResidualAttentionBlock, ResidualAttentionBlock):
        return False
    attention = getattr(block, "attn", None)
    packed = isinstance(attention, PackedAttention) and attention.returns_tuple
    return not hasattr(block, "ln_1_kv") and (packed or type(attention) is nn.MultiheadAttention)


def _adds(scale: nn.Module, outer: nn.Module, layer: nn.Module) -> bool:
    """Whether `layer`, the last in `outer`, may add the residual, and nobody looks at what comes between."""
    if type(layer) is not Linear24 or type(scale) is not nn.Identity:
        return False
    return not (_is_watched(scale) or _is_watched(outer) or _is_watched(layer))


def _read_by(layer: nn.Module, norm: Any, x: Tensor) -> ops.LayerNorm | None:
    """Give what `layer` needs to make the layer norm of x while it reads x, where nobody looks at it."""
    if type(layer) is not Linear24 or type(norm) not in (nn.LayerNorm, transformer.LayerNorm):
        return None
    known = (
        norm.normalized_shape == (layer.in_features,) and norm.weight is not None and norm.bias is not None
    )
    fits = x.device.type == "cpu" and x.dtype == layer.values.dtype == torch.float32
    if not (known and fits) or _is_watched(norm) or _is_watched(layer):
        return None
    return norm.weight, norm.bias, norm.eps


def _is_watched(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks
    hooks = hooks or module._backward_hooks or module._backward_pre_hooks
    hooks = hooks or every._global_forward_hooks or every._global_forward_pre_hooks
    return bool(hooks) or "forward" in vars(module) or "attention" in vars(module)


_OWN: dict[type[nn.Module], type[nn.Module]] = {
    ResidualAttentionBlock: transformer.ResidualAttentionBlock,
    VisionTransformer: transformer.VisionTransformer,
    Conv2d: nn.Conv2d,
}
