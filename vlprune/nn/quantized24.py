"""A packed 2:4 layer in 8 bits: weights with a scale an output, inputs with a scale a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .linear24 import Linear24, wrong_meta

__all__ = ["QuantizedLinear24"]

_HALF = (torch.bfloat16, torch.float16)


class QuantizedLinear24(nn.Module):
    """``y = act(x W^T + b)`` with W packed 2:4 in int8 or E4M3; x is quantised token by token as it comes.

    Built from a packed layer with `from_linear24`; the constructor alone makes an empty one, for loading a
    state dict into. For running only: gives no gradients. Fast on Hopper (`vlprune.ops.linear24_scaled`),
    and there where in_features are divisible by 32 and out_features by 8.

    Args:
        in_features: inputs, a multiple of 4.
        out_features: outputs.
        bias: whether there is one.
        activation: applied in the epilogue: None, "gelu" (exact) or "quick_gelu" (x * sigmoid(1.702 x)).
        dtype: of weights and inputs: torch.int8 or torch.float8_e4m3fn.
        original_dtype: of the model around it, which open_clip asks its layers for.
        backend: "auto", "torch" or "sm90".
        device: of the buffers.

    State: ``values`` [out, in/2] of `dtype`, ``meta`` uint8 [out, ceil(in/8)], ``weight_scale`` and ``bias``
    float32 [out]. Their dtypes stay whatever the model is converted to; `original_dtype` follows it.

    """

    values: Tensor
    meta: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | None = None,
        *,
        dtype: torch.dtype = torch.int8,
        original_dtype: torch.dtype = torch.bfloat16,
        backend: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if in_features < 4 or in_features % 4:
            raise ValueError(f"QuantizedLinear24: expected in_features divisible by 4, got {in_features}")
        if dtype not in ops.SCALED_DTYPES:
            raise ValueError(
                f"QuantizedLinear24: expected dtype int8 or float8_e4m3fn, got {str(dtype).split('.')[-1]}"
            )
        ops.check_activation("QuantizedLinear24", activation)
        ops.check_backend(backend)
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        self.original_dtype = original_dtype
        self.backend = backend
        empty = Linear24(in_features, out_features, bias, device=device, dtype=torch.float32)
        self.register_buffer("values", empty.values.detach().to(dtype))
        self.register_buffer("meta", empty.meta)
        self.register_buffer("weight_scale", torch.ones(out_features, device=device))
        self.register_buffer("bias", None if empty.bias is None else empty.bias.detach())

    @classmethod
    def from_linear24(
        cls, layer: Linear24, dtype: torch.dtype = torch.int8, backend: str = "auto"
    ) -> QuantizedLinear24:
        """Quantise a packed layer: row by row, to nearest; what is not kept stays so.

        Raises:
            ValueError: `dtype` is neither torch.int8 nor torch.float8_e4m3fn, or there is no such `backend`.
            TypeError: `layer` is no `Linear24`.

        """
        if not isinstance(layer, Linear24):
            raise TypeError(f"QuantizedLinear24.from_linear24: expected Linear24, got {type(layer).__name__}")
        made = cls(
            layer.in_features, layer.out_features, layer.bias is not None, layer.activation,
            dtype=dtype, original_dtype=layer.values.dtype, backend=backend, device="meta",
        )  # fmt: skip
        made.values, made.weight_scale = ops.quantize_rows(layer.values, dtype)
        made.meta = layer.meta.clone()
        if layer.bias is not None:
            made.bias = layer.bias.detach().to(torch.float32, copy=True)
        made._prepare()
        return made.train(layer.training)

    @property
    def weight(self) -> Tensor:
        """The dense weight as it was rounded, float32 [out, in], unpacked anew at each access."""
        return ops.unpack24(self.values.float() * self.weight_scale[:, None], self.meta)

    @property
    def int8_original_dtype(self) -> torch.dtype:
        """The name under which open_clip asks a packed layer for its dtype without reading `weight`."""
        return self.original_dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear24:
        # What `.to()`, `.cuda()` and `.half()` come down to: of these a dtype is for what is not quantised.
        before = dict(self._buffers)
        around = torch.empty(0, dtype=self.original_dtype, device=self.values.device)
        self.original_dtype = fn(around).dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        self._prepare()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        stored = state_dict.get(f"{prefix}values")
        if stored is not None and stored.dtype != self.values.dtype:
            # Copied, they would be rounded once more without a word.
            wanted, got = (str(each.dtype)[6:] for each in (self.values, stored))
            lists[-1].append(f"{prefix}values: expected dtype {wanted}, got {got}")
            return
        if (reason := wrong_meta(self.meta, self.in_features, state_dict, prefix)) is not None:
            lists[-1].append(reason)
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)
        self._prepare()

    def _prepare(self) -> None:
        if self.values.is_cuda and type(self.values) is Tensor and type(self.meta) is Tensor:
            ops.prepare24(self.values, self.meta, self.backend, anew=False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map x [..., in_features] to [..., out_features] of x's dtype, and add `residual`, if any.

        A float32 input gives results rounded to bfloat16 and widened again; under autocast it is first taken
        to autocast's dtype, as for `nn.Linear`.
        """
        if x.dtype not in _HALF and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        q, scale = ops.quantize_rows(x, self.values.dtype)
        out_dtype = x.dtype if x.dtype in _HALF else torch.bfloat16
        # The operator adds what is of its dtype; what is not is added as PyTorch promotes.
        fits = residual is None or residual.dtype == out_dtype
        y = ops.linear24_scaled(
            q, scale, self.values, self.meta, self.weight_scale, self.bias, self.activation,
            out_dtype=out_dtype, backend=self.backend, residual=residual if fits else None,
        ).to(x.dtype)  # fmt: skip
        if fits or residual is None:
            return y
        if residual.shape != y.shape:
            raise ValueError(
                f"QuantizedLinear24: expected residual of shape {tuple(y.shape)}, got {tuple(residual.shape)}"
            )
        return residual + y

    def extra_repr(self) -> str:
        """The arguments that made it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activation={self.activation!r}, "
            f"dtype={str(self.values.dtype)[6:]}"
        )
