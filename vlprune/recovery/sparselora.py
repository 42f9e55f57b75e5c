"""A linear layer with an adapter under its keep mask: student and dense teacher in one module."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .masked_linear import effective_weight, masked_linear

__all__ = ["SparseLoRALinear", "dense_teacher"]


class SparseLoRALinear(nn.Linear):
    """``y = x ((W + alpha / rank * B A) * M)^T + b``: He et al. 2024, arXiv 2404.02424, section 3.

    Weight and bias are the very parameters of the layer that it stands in for. Only ``lora_A`` [rank, in]
    (Kaiming-uniform with a = sqrt 5) and ``lora_B`` [out, rank] (zeros) are trained; they are float32 where
    the weight is of half precision. Inside `dense_teacher` the layer computes ``x W^T + b``.

    Args:
        linear: the layer, whose weight may be dense or zero already where the mask is False.
        keep: bool [out, in], True = stays.
        rank: of the product.
        alpha: numerator of the scale.
        sparse: False is plain LoRA, ``W * M + alpha / rank * B A``.

    """

    keep: Tensor

    def __init__(
        self, linear: nn.Linear, keep: Tensor, rank: int, alpha: float, *, sparse: bool = True
    ) -> None:
        has_bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, has_bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        half = linear.weight.dtype in (torch.float16, torch.bfloat16)
        dtype = torch.float32 if half else linear.weight.dtype
        device = linear.weight.device
        self.rank, self.alpha, self.sparse, self.dense = rank, alpha, sparse, False
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.register_buffer("keep", keep.to(device))
        self.train(linear.training)
        # the layer itself comes back when the adapter is merged, with whatever hangs on it
        self._origin = (linear,)

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in_features] to [..., out_features]."""
        if self.dense:
            return F.linear(x, self.weight, self.bias)
        if self.sparse:
            return masked_linear(x, self.weight, self.lora_A, self.lora_B, self.scale, self.keep, self.bias)
        low = (x.to(self.lora_A.dtype) @ self.lora_A.T) @ self.lora_B.T * self.scale
        out = F.linear(x, self.weight * self.keep, self.bias)
        return out + low.to(out.dtype)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """Return the weight with the adapter in it: [out, in], in the weight's dtype.

        It is zero where the mask is False, and is what `forward` multiplies with elsewhere: an entry that
        the adapter brought to exactly zero becomes the smallest normal number of its dtype, so that the
        zeros stay those of the mask. Plain LoRA fills the zeros instead.
        """
        a, b = self.lora_A, self.lora_B
        if not self.sparse:
            return effective_weight(self.weight * self.keep, a, b, self.scale, None)
        merged = effective_weight(self.weight, a, b, self.scale, None)
        vanished = self.keep & (self.weight != 0) & (merged == 0)
        return merged.masked_fill_(vanished, torch.finfo(merged.dtype).tiny).masked_fill_(~self.keep, 0.0)

    @torch.no_grad()
    def merge_(self) -> nn.Linear:
        """Put the adapter into the weight, in place, and return the layer that was adapted."""
        self.weight.copy_(self.merged())
        (linear,) = self._origin
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """The arguments that made it."""
        kind = "" if self.sparse else ", sparse=False"
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha:g}{kind}"


@contextmanager
def dense_teacher(model: nn.Module) -> Iterator[None]:
    """Let every adapted layer compute with its dense weight alone, W, and no mask.

    That is the model as it was before pruning where `add_sparse_lora_` was given dense weights and masks.
    """
    layers = [m for m in model.modules() if isinstance(m, SparseLoRALinear)]
    before = [layer.dense for layer in layers]
    for layer in layers:
        layer.dense = True
    try:
        yield
    finally:
        for layer, dense in zip(layers, before, strict=True):
            layer.dense = dense
