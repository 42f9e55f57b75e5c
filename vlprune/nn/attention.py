"""Attention whose projections are ordinary linear layers, so that they can be calibrated, pruned and packed.

`nn.MultiheadAttention` and open_clip's `Attention` hold q, k and v in one bare parameter that no linear
layer owns. The modules here own the same parameters through `nn.Linear` children, are called the same
way by the block around them, and turn back into the module they came from, with its own parameters.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .attention_core import AttentionCore, Projected, linear_of
from .attention_mask import KnownMasks
from .linear24 import Linear24

__all__ = ["PackedAttention", "SplitAttention", "is_splittable"]


def is_splittable(module: nn.Module) -> bool:
    """Whether `module` is an attention these classes can stand in for.

    That is exactly `nn.MultiheadAttention` without ``add_bias_kv`` and ``add_zero_attn``, or
    `open_clip.transformer.Attention`; subclasses, whose forward is unknown, are not.
    """
    if type(module) is nn.MultiheadAttention:
        return module.bias_k is None and module.bias_v is None and not module.add_zero_attn
    return _is_open_clip(module)


def _is_open_clip(module: nn.Module) -> bool:
    # If open_clip has not been imported there is no instance of it to find, so nothing is imported here.
    return type(module) is getattr(sys.modules.get("open_clip.transformer"), "Attention", None)


class PackedAttention(AttentionCore):
    """Self-attention over one `qkv` linear layer, read in place as [batch, tokens, 3, heads, head_dim].

    Args:
        embed_dim: width of the input and of the output.
        num_heads: heads.
        head_dim: width of a head, embed_dim / num_heads by default; ``qkv`` has 3 * num_heads *
            head_dim outputs (all of q, then k, then v), ``out_proj`` num_heads * head_dim inputs.
        bias: of both layers.
        device: of the parameters.
        dtype: of the parameters.

    Without dropout, and without a mask or with the causal one, it runs as `vlprune.ops.head_attention`, else
    as PyTorch's attention. Given keys or values that are another object than the queries, it computes
    cross-attention with the matching rows of ``qkv``.

    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int | None = None,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, head_dim)
        inner = self.num_heads * self.head_dim
        self.qkv: nn.Module = nn.Linear(embed_dim, 3 * inner, bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(inner, embed_dim, bias, device=device, dtype=dtype)
        self._masks = KnownMasks()

    @classmethod
    def from_attention(cls, module: nn.Module) -> PackedAttention:
        """Move the parameters of an attention with packed ``in_proj_weight`` over; `module` is emptied.

        Raises:
            TypeError: `module` is no attention that this can stand in for.

        """
        weight, bias = getattr(module, "in_proj_weight", None), getattr(module, "in_proj_bias", None)
        if not is_splittable(module) or weight is None:
            raise TypeError(f"PackedAttention: cannot stand in for {type(module).__name__}")
        packed = cls(weight.shape[1], int(module.num_heads), device="meta")  # type: ignore[arg-type]
        packed.qkv = linear_of(weight, bias)
        _give(module, in_proj_weight=None, in_proj_bias=None)
        packed.adopt(module)
        return packed

    def to_attention(self) -> nn.Module:
        """Move the parameters back into the module they came from and return it; this one is spent."""
        _check_merge(self)
        origin = self.release()
        _give(origin, in_proj_weight=self.qkv.weight, in_proj_bias=self.qkv.bias)
        return origin

    def inputs(self) -> dict[str, nn.Module]:
        """Return ``{"qkv": layer}``."""
        return {"qkv": self.qkv}

    def attend(
        self,
        x: Tensor,
        k_x: Tensor,
        v_x: Tensor,
        attn_mask: Tensor | None,
        padding: Tensor | None,
        is_causal: bool,
        norm: ops.LayerNorm | None,
    ) -> Tensor:
        """Return what the output projection reads, from the packed projection in one step where it can be."""
        if not (k_x is x and v_x is x and padding is None and self.is_plain()):
            return super().attend(x, k_x, v_x, attn_mask, padding, is_causal, norm)
        if attn_mask is not None and not is_causal:
            length = x.shape[1 if self.batch_first else 0]
            is_causal = self._masks.is_causal(attn_mask, self.true_blocks, length)
            if not is_causal:
                return super().attend(x, k_x, v_x, attn_mask, padding, is_causal, norm)
        if norm is not None and type(self.qkv) is not Linear24:
            x, norm = F.layer_norm(x, x.shape[-1:], *norm), None
        qkv = self.qkv(x) if norm is None else self.qkv(x, norm=norm)
        return ops.head_attention(self.by_batch(qkv, -1), self.num_heads, is_causal)

    def project(self, x: Tensor, k_x: Tensor, v_x: Tensor) -> Projected:
        """Multiply once each of the different inputs by the rows of ``qkv`` that are meant for it."""
        if k_x is x and v_x is x:
            parts = self._rows(x, 0, 3)
        elif k_x is v_x:
            parts = self._rows(x, 0, 1) + self._rows(k_x, 1, 3)
        else:
            parts = self._rows(x, 0, 1) + self._rows(k_x, 1, 2) + self._rows(v_x, 2, 3)
        q, k, v = parts
        return q, k, v

    def _rows(self, x: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
        """Of q, k and v those from `start` to `stop`, [batch, tokens, heads, head_dim]."""
        inner = self.num_heads * self.head_dim
        rows = slice(start * inner, stop * inner)
        if type(self.qkv) is nn.Linear and stop - start < 3:
            bias = None if self.qkv.bias is None else self.qkv.bias[rows]
            out = F.linear(x, self.qkv.weight[rows], bias)
        else:
            out = self.qkv(x)[..., rows]
        return self.by_batch(out, stop - start, self.num_heads, self.head_dim).unbind(2)


class SplitAttention(AttentionCore):
    """Attention over separate `q_proj`, `k_proj` and `v_proj`: for cross-attention, and widths that differ.

    Args:
        embed_dim: width of the queries and of the output.
        num_heads: heads.
        head_dim: width of a head, embed_dim / num_heads by default.
        bias: of all four layers.
        kdim: width of the keys' input, embed_dim by default.
        vdim: width of the values' input, embed_dim by default.
        device: of the parameters.
        dtype: of the parameters.

    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int | None = None,
        bias: bool = True,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, head_dim)
        inner = self.num_heads * self.head_dim
        widths = {"q_proj": embed_dim, "k_proj": kdim or embed_dim, "v_proj": vdim or embed_dim}
        for name, width in widths.items():
            self.add_module(name, nn.Linear(width, inner, bias, device=device, dtype=dtype))
        self.out_proj = nn.Linear(inner, embed_dim, bias, device=device, dtype=dtype)

    @classmethod
    def from_attention(cls, module: nn.Module) -> SplitAttention:
        """Move the parameters of an attention over, each projection on its own; `module` is emptied.

        Raises:
            TypeError: `module` is no attention that this can stand in for.

        """
        if not is_splittable(module):
            raise TypeError(f"SplitAttention: cannot stand in for {type(module).__name__}")
        packed, bias = getattr(module, "in_proj_weight", None), getattr(module, "in_proj_bias", None)
        split = cls(module.out_proj.out_features, int(module.num_heads), device="meta")  # type: ignore
        separate = [f"{name}_weight" for name in split.inputs()]
        weights = _thirds(packed) if packed is not None else tuple(getattr(module, name) for name in separate)
        biases = (None, None, None) if bias is None else _thirds(bias)
        for name, w, b in zip(split.inputs(), weights, biases, strict=True):
            setattr(split, name, linear_of(w, b))
        # on a projection, so that they are freed where it is replaced and there is no way back
        vars(split.q_proj)["_whole"] = (packed, bias)
        _give(module, **dict.fromkeys(("in_proj_weight", "in_proj_bias", *separate)))
        split.adopt(module)
        return split

    def to_attention(self) -> nn.Module:
        """Move the values back into the module and the parameters they came from; this one is spent."""
        _check_merge(self)
        origin = self.release()
        linears = list(self.inputs().values())
        weight, bias = getattr(self.q_proj, "_whole", (None, None))
        if getattr(origin, "_qkv_same_embed_dim", True):
            _give(origin, in_proj_weight=_joined([m.weight for m in linears], weight))
        else:
            _give(origin, **{f"{name}_weight": m.weight for name, m in self.inputs().items()})
        _give(origin, in_proj_bias=_joined([m.bias for m in linears], bias))
        return origin

    def inputs(self) -> dict[str, nn.Module]:
        """Return the three layers by name."""
        return {name: self.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj")}

    def project(self, x: Tensor, k_x: Tensor, v_x: Tensor) -> Projected:
        """Multiply each input by its own weight."""
        parts = []
        for linear, source in zip(self.inputs().values(), (x, k_x, v_x), strict=True):
            parts.append(self.by_batch(linear(source), self.num_heads, self.head_dim))
        return parts[0], parts[1], parts[2]


def _check_merge(attention: AttentionCore) -> None:
    if not attention.can_merge():
        raise ValueError(
            f"{type(attention).__name__}: cannot be merged: it was not made from an attention module, "
            "heads were removed, or a projection is no plain nn.Linear any more"
        )


def _give(module: nn.Module, **parameters: Any) -> None:
    # not register_parameter: what open_clip leaves out is an attribute that is None, not a parameter
    for name, parameter in parameters.items():
        setattr(module, name, parameter)


def _thirds(parameter: nn.Parameter) -> tuple[nn.Parameter, ...]:
    thirds = tuple(nn.Parameter(t, parameter.requires_grad) for t in parameter.detach().chunk(3))
    if parameter.grad is not None:
        for third, grad in zip(thirds, parameter.grad.chunk(3), strict=True):
            third.grad = grad
    return thirds


def _joined(parts: list[Any], whole: nn.Parameter | None) -> nn.Parameter | None:
    """Join three parameters in `whole`, which an optimizer may hold; in a new one where that cannot be."""
    if parts[0] is None:
        return None
    values = torch.cat([p.detach() for p in parts])
    if whole is None or whole.is_meta != values.is_meta:
        whole = nn.Parameter(values)
    whole.grad = None
    if (whole.dtype, whole.device, whole.shape) == (values.dtype, values.device, values.shape):
        with torch.no_grad():
            whole.copy_(values)
    else:
        # the model went to another device or precision meanwhile
        whole.data = values
    if all(p.grad is not None for p in parts):
        whole.grad = torch.cat([p.grad for p in parts])
    whole.requires_grad_(parts[0].requires_grad)
    return whole
