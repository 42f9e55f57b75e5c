"""What every attention made of linear layers shares: masks, the softmax, the tail, the way back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .attention_mask import additive
from .linear24 import Linear24

__all__ = ["AttentionCore", "Projected", "linear_of"]

Projected = tuple[Tensor, Tensor, Tensor]


class AttentionCore(nn.Module, ABC):
    """Attention over projections that a subclass makes, callable like the module it stands in for.

    `num_heads`, `head_dim` and `kept_heads` are plain attributes, to be set when heads are removed.
    """

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int | None = None) -> None:
        super().__init__()
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of embed_dim={embed_dim}, got {num_heads}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.batch_first = True
        self.returns_tuple = False
        # True in a boolean mask means "blocked" to nn.MultiheadAttention and open_clip 3, "seen" to main
        self.true_blocks = True
        self.dropout = 0.0
        self.logit_scale_max: float | None = None
        # Numbers, before removal, of the heads that are left: picks their masks where masks come per head.
        self.kept_heads: tuple[int, ...] | None = None
        self.logit_scale: nn.Parameter | None = None
        self.head_scale: nn.Parameter | None = None
        self.ln_q: nn.Module | None = None
        self.ln_k: nn.Module | None = None
        self.ln_inner: nn.Module | None = None
        self.out_drop: nn.Module | None = None
        self.out_proj: nn.Module
        self._origin: tuple[nn.Module, ...] = ()

    def adopt(self, origin: nn.Module) -> None:
        """Take over everything of `origin` but its input projections, and keep its empty shell."""
        if isinstance(origin, nn.MultiheadAttention):
            self.batch_first, self.returns_tuple = origin.batch_first, True
            self.dropout = float(origin.dropout)
            # its out_proj is a subclass that only quantization tells apart; nn.Linear is what others look for
            out: Any = origin.out_proj
            self.out_proj = linear_of(out.weight, out.bias)
            out.weight = out.bias = None
        else:
            self.true_blocks = not hasattr(origin, "use_sdpa")
            self.dropout = float(origin.attn_drop.p)  # type: ignore[arg-type,union-attr]
            self.logit_scale_max = float(origin.logit_scale_max)  # type: ignore[arg-type]
            for name in ("logit_scale", "head_scale"):
                setattr(self, name, getattr(origin, name))
                setattr(origin, name, None)
            for name in ("ln_q", "ln_k", "ln_inner", "out_drop"):
                setattr(self, name, getattr(origin, name))
                origin._modules[name] = None
            self.out_proj = origin.get_submodule("out_proj")
            origin._modules["out_proj"] = None
        self.train(origin.training)
        self._origin = (origin,)

    def release(self) -> nn.Module:
        """Give everything that `adopt` took back to the shell and return it."""
        (origin,) = self._origin
        if isinstance(origin, nn.MultiheadAttention):
            # into the module that was there before, with whatever hooks hang on it
            out: Any = origin.out_proj
            out.weight, out.bias = self.out_proj.weight, self.out_proj.bias
        else:
            for name in ("logit_scale", "head_scale", "ln_q", "ln_k", "ln_inner", "out_drop", "out_proj"):
                setattr(origin, name, getattr(self, name))
        origin.train(self.training)
        self._origin = ()
        return origin

    @abstractmethod
    def inputs(self) -> dict[str, nn.Module]:
        """Return the input projections by name."""

    def can_merge(self) -> bool:
        """Whether `to_attention` works: plain linear layers, and every head still there."""
        full = self.num_heads * self.head_dim == self.embed_dim and bool(self._origin)
        linears = [*self.inputs().values(), self.out_proj]
        return full and self.kept_heads is None and all(type(m) is nn.Linear for m in linears)

    @abstractmethod
    def project(self, x: Tensor, k_x: Tensor, v_x: Tensor) -> Projected:
        """Return q, k and v as [batch, tokens, heads, head_dim], from inputs in the module's own layout."""

    def forward(
        self,
        x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool | None = None,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        residual: Tensor | None = None,
        norm: ops.LayerNorm | None = None,
    ) -> Tensor | tuple[Tensor, None]:
        """Attend from x [batch, tokens, embed_dim] to k_x and v_x, which are x itself when left out.

        The layout is [tokens, batch, embed_dim] where `batch_first` is False, and a lone sequence
        [tokens, embed_dim] is accepted. In place of `nn.MultiheadAttention` it returns
        ``(output, None)``, in place of open_clip's `Attention` the output. A `residual` of x's shape is
        added to the output: by the output projection itself, where that is packed. If `norm` is given, of
        self-attention alone, x goes through that layer norm before: in a packed projection, where it can.

        Raises:
            ValueError: attention weights are asked for (or, for the tuple form, not declined), or a norm is
                given to cross-attention.

        """
        if need_weights or (self.returns_tuple and need_weights is None):
            raise ValueError(
                f"need_weights: {type(self).__name__} has no attention weights to return; "
                "pass need_weights=False"
            )
        k_x = x if k_x is None else k_x
        v_x = x if v_x is None else v_x
        if norm is not None and not (k_x is x and v_x is x):
            raise ValueError("norm: expected None where keys or values are not the queries")
        single = x.dim() == 2
        if single:
            same_k, same_v = k_x is x, v_x is x
            batch = 0 if self.batch_first else 1
            x, key, value = x.unsqueeze(batch), k_x.unsqueeze(batch), v_x.unsqueeze(batch)
            k_x, v_x = x if same_k else key, x if same_v else value
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if is_causal and key_padding_mask is not None:
            if attn_mask is None:
                raise ValueError("is_causal: with key_padding_mask it needs the causal attn_mask as well")
            is_causal = False
        if self.num_heads:
            out = self.attend(x, k_x, v_x, attn_mask, key_padding_mask, is_causal, norm)
            out = out if self.batch_first else out.transpose(0, 1)
        else:
            # every head was removed: of the output projection only the bias is left
            out = x[..., :0]
        if single:
            out = out.squeeze(0 if self.batch_first else 1)
        out = self._tail(out, residual)
        return (out, None) if self.returns_tuple else out

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
        """Return what the output projection reads, [batch, tokens, heads * head_dim]."""
        if norm is not None:
            x = k_x = v_x = F.layer_norm(x, x.shape[-1:], *norm)
        q, k, v = (t.transpose(1, 2) for t in self.project(x, k_x, v_x))
        mask = None if is_causal else self._mask(attn_mask, padding, q)
        return self._core(q, k, v, mask, is_causal).transpose(1, 2).flatten(2)

    def is_plain(self) -> bool:
        """Whether nothing but the softmax of scaled products happens between the projections."""
        if self.training and self.dropout > 0.0:
            return False
        extras = (self.logit_scale, self.head_scale, self.ln_q, self.ln_k)
        return all(extra is None or isinstance(extra, nn.Identity) for extra in extras)

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        mask = attn_mask
        if mask is not None:
            if mask.dim() == 3:
                mask = mask.view(q.shape[0], -1, *mask.shape[1:])
                if self.kept_heads is not None and mask.shape[1] != self.num_heads:
                    mask = mask[:, list(self.kept_heads)]
            mask = additive(mask, self.true_blocks, q.dtype)
        if padding is not None:
            padding = additive(padding, True, q.dtype)[:, None, None, :]
            mask = padding if mask is None else mask + padding
        return mask

    def _core(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        scale = None
        if self.logit_scale is not None:
            # cosine similarities times a bounded learned temperature, which is free to ride on q
            temperature = torch.clamp(self.logit_scale, max=self.logit_scale_max).exp()
            q, k, scale = F.normalize(q, dim=-1) * temperature, F.normalize(k, dim=-1), 1.0
        elif self.ln_q is not None and self.ln_k is not None:
            q, k = self.ln_q(q), self.ln_k(k)
        out = F.scaled_dot_product_attention(
            q, k, v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
            scale=scale,
        )  # fmt: skip
        return out if self.head_scale is None else out * self.head_scale

    def by_batch(self, x: Tensor, *sizes: int) -> Tensor:
        """View a projection with the batch first and its last dimension as `sizes`, without a copy."""
        x = x if self.batch_first else x.transpose(0, 1)
        return x.view(*x.shape[:2], *sizes)

    def _tail(self, x: Tensor, residual: Tensor | None) -> Tensor:
        x = x if self.ln_inner is None else self.ln_inner(x)
        if residual is not None and self.out_drop is None and type(self.out_proj) is Linear24:
            return self.out_proj(x, residual)  # type: ignore[no-any-return]
        x = self.out_proj(x)
        x = x if self.out_drop is None else self.out_drop(x)
        return x if residual is None else residual + x

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}"


def linear_of(weight: Any, bias: Any) -> nn.Linear:
    """Return a linear layer that owns these very parameters."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight, linear.bias = weight, bias
    return linear
