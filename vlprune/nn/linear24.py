"""A drop-in for `nn.Linear` whose weight is stored packed in the 2:4 pattern."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.checks import wrong_indices

__all__ = ["Linear24", "wrong_meta"]


def wrong_meta(own: Tensor, inputs: int, state_dict: dict[str, Any], prefix: str) -> str | None:
    """Say what is wrong with the contents of what a layer is to load as its `own` meta, or None."""
    name = f"{prefix}meta"
    stored: Any = state_dict.get(name)
    if type(stored) not in (Tensor, nn.Parameter) or stored.is_meta or stored.shape != own.shape:
        return None  # nothing to look at, or what PyTorch refuses
    if stored.dtype != own.dtype:
        return f"{name}: expected dtype uint8, got {str(stored.dtype)[6:]}"
    reason = wrong_indices(stored, inputs)
    return reason and f"{name}: {reason}"


class Linear24(nn.Module):
    """``y = act(x W^T + b)`` with W packed 2:4: half the products, 9/16 of the bytes in bf16.

    Built from a pruned layer with `from_linear`; the constructor alone makes an empty one, for
    loading a state dict into.

    Args:
        in_features: inputs, a multiple of 4.
        out_features: outputs.
        bias: whether there is one.
        activation: applied in the epilogue: None, "gelu" (exact) or "quick_gelu" (x * sigmoid(1.702 x)).
        backend: "auto", or one of `vlprune.backends()`.
        device: of the parameters.
        dtype: of the parameters.

    State: ``values`` [out, in/2], ``meta`` uint8 [out, ceil(in/8)], ``bias`` [out]. Copies in the order
    that the kernels read (on the CPU of the weight, one for many tokens and one for few, each once it is
    needed; on a GPU of `meta`) are kept beside them and renewed when they change; on a GPU one is made when
    the layer is packed, loaded or moved there, so that a CUDA graph can be captured at once. A write
    through ``values.data`` or ``meta.data`` moves no version counter: on the CPU one to whole rows or
    columns of `values`, or to most of `meta`, is noticed; after one that changes less, or one to
    ``meta.data`` on a GPU, call ``vlprune.ops.prepare24(layer.values, layer.meta)``.

    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | None = None,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if in_features < 4 or in_features % 4:
            raise ValueError(f"Linear24: expected in_features divisible by 4, got {in_features}")
        ops.check_activation("Linear24", activation)
        ops.check_backend(backend)
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        self.backend = backend
        dtype = dtype or torch.get_default_dtype()
        values = torch.zeros(out_features, in_features // 2, device=device, dtype=dtype)
        # 0x44: both groups of a byte keep inputs 0 and 1, so an empty layer is a valid packed one.
        meta = torch.full((out_features, (in_features + 7) // 8), 0x44, device=device, dtype=torch.uint8)
        if in_features % 8:
            meta[:, -1] = 0x04
        self.values = nn.Parameter(values)
        self.register_buffer("meta", meta)
        self.meta: Tensor
        self.bias: nn.Parameter | None
        zeros = torch.zeros(out_features, device=device, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(zeros) if bias else None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, activation: str | None = None, backend: str = "auto") -> Linear24:
        """Pack a linear layer whose weight already has at most 2 non-zeros in every 4 inputs.

        Raises:
            ValueError: the weight is not 2:4 (the first bad row and group are named).
            TypeError: `linear` is no `nn.Linear`, or its dtype is not a float.

        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"Linear24.from_linear: expected nn.Linear, got {type(linear).__name__}")
        weight = linear.weight.detach()
        if weight.dtype not in ops.FLOAT_DTYPES:
            raise TypeError(f"Linear24.from_linear: expected a floating dtype, got {weight.dtype}")
        packed = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            activation,
            backend=backend,
            device="meta",
            dtype=weight.dtype,
        )
        values, meta = ops.pack24(weight)
        packed.values = nn.Parameter(values, requires_grad=linear.weight.requires_grad)
        packed.meta = meta
        packed.register_parameter("bias", linear.bias)
        packed.train(linear.training)
        ops.prepare24(packed.values, packed.meta, backend)
        return packed

    def to_linear(self) -> nn.Linear:
        """The same layer as a dense `nn.Linear` with zeros; the activation is not part of it."""
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta", dtype=self.values.dtype
        )
        linear.weight = nn.Parameter(self.weight.detach(), requires_grad=self.values.requires_grad)
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    @property
    def weight(self) -> Tensor:
        """The dense weight [out, in], unpacked anew at each access."""
        return ops.unpack24(self.values, self.meta)

    @property
    def int8_original_dtype(self) -> torch.dtype:
        """The name under which open_clip asks a packed layer for its dtype without reading `weight`."""
        return self.values.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear24:
        # What `.to()`, `.cuda()` and `.bfloat16()` come down to.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._prepare()
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if (reason := wrong_meta(self.meta, self.in_features, state_dict, prefix)) is not None:
            error_msgs.append(reason)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._prepare()

    def _prepare(self) -> None:
        # On the CPU the first call does it; fake tensors and the like have no memory to read.
        if self.values.is_cuda and type(self.values) is nn.Parameter and type(self.meta) is Tensor:
            ops.prepare24(self.values, self.meta, self.backend, anew=False)

    def forward(self, x: Tensor, residual: Tensor | None = None, norm: ops.LayerNorm | None = None) -> Tensor:
        """Map x [..., in_features] to [..., out_features], and add `residual` of that shape, if any.

        If `norm` is given, weight, bias and epsilon of a layer norm, x goes through that before.
        Under autocast the input is taken to the layer's own dtype, in which its weight was prepared;
        without, another dtype is an error as it is for `nn.Linear`.
        """
        # A module that is asked for an attribute looks here last, which takes 0.4 us for each.
        parameters: dict[str, Any] = self._parameters
        buffers: dict[str, Any] = self._buffers
        try:
            values, bias, meta = parameters["values"], parameters["bias"], buffers["meta"]
        except KeyError:  # parametrized, say
            values, bias, meta = self.values, self.bias, self.meta
        if x.dtype != values.dtype and torch.is_autocast_enabled(x.device.type):
            if norm is not None:
                x, norm = F.layer_norm(x, x.shape[-1:], *norm), None
            x = x.to(values.dtype)
        # The operator adds what is of its dtype; autocast may bring another one, to which PyTorch promotes.
        fits = residual is None or residual.dtype == x.dtype
        y = ops.linear24(
            x, values, meta, bias, self.activation,
            backend=self.backend, residual=residual if fits else None, norm=norm,
        )  # fmt: skip
        if fits or residual is None:
            return y
        if residual.shape != y.shape:
            raise ValueError(
                f"linear24: expected residual of shape {tuple(y.shape)}, got {tuple(residual.shape)}"
            )
        return residual + y

    def extra_repr(self) -> str:
        """The arguments that made it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activation={self.activation!r}"
        )
