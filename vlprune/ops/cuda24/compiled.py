"""`linear24` by the compiled CUDA kernels of one architecture: `sm90` (wgmma.sp) or `sm80` (mma.sp).

And `linear24_scaled` by those of `sm90`.

Values are read as they are stored; of meta the kernels want another order, which is made on the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import extensions, gpu
from ..checks import SCALED_DTYPES
from ..codes import ACTIVATION_CODE, DTYPE_CODE
from ..seen import Kept
from .problem import ALIGNMENT, Again, Launch, Problem, Scales, aligned, aligned_rows, refuse_capture

__all__ = ["Compiled"]


class Compiled:
    """The kernels of one architecture in `vlprune._C_cuda`.

    Args:
        name: the prefix of its functions there.
        wanted: compute capability that they need.
        exactly: whether they run on no other (instructions of one architecture), or on any that is newer.
        scaled: whether to take the kernels of `linear24_scaled`, which have a prefix of their own.

    """

    def __init__(self, name: str, wanted: tuple[int, int], *, exactly: bool, scaled: bool = False) -> None:
        self.name = name
        self._prefix = f"{name}_scaled" if scaled else name
        self.dtypes = frozenset(SCALED_DTYPES if scaled else (torch.bfloat16, torch.float16))
        self._wanted, self._exactly = wanted, exactly
        self._weights: Kept[Tensor] = Kept()
        self._workspaces: dict[tuple[torch.device, int], Tensor] = {}

    def why_not_here(self, index: int) -> str | None:
        """Say why device `index` cannot run it, or None."""
        reason = gpu.too_old(index, self._wanted)
        if reason is None and self._exactly and gpu.capability(index) != self._wanted:
            wanted, has = (".".join(map(str, each)) for each in (self._wanted, gpu.capability(index)))
            reason = (
                f"its instructions are those of compute capability {wanted} alone, cuda:{index} has {has}"
            )
        if reason is not None:
            return reason
        module, reason = extensions.cuda_extension()
        if module is not None and not hasattr(module, f"{self._prefix}_launcher"):
            return f"the CUDA extension was built without {self._prefix}"
        reason = reason or extensions.MISSING
        if reason is None and not hasattr(extensions.extension(), f"{self._prefix}_reorder_meta"):
            return "the native extension is older than the CUDA extension"
        return reason

    def why_not(self, problem: Problem) -> str | None:
        """Say why no config takes a problem, or None."""
        reasons = [self._why_not(number, problem) for number in self._numbers.values()]
        return None if None in reasons else next(iter(reasons), f"{self.name} has no configs")

    def able(self, problem: Problem) -> list[str]:
        """Names of the configs that take a problem."""
        return [name for name in self._numbers if self.runs(name, problem)]

    def runs(self, config: str, problem: Problem) -> bool:
        """Whether there is such a config and it takes a problem."""
        return config in self._numbers and self._why_not(self._numbers[config], problem) is None

    def candidates(
        self, problem: Problem, x: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Sequence[str]:
        """All that can."""
        return self.able(problem)

    def infos(self) -> dict[str, dict[str, Any]]:
        """Tile and stages of each config, by its name: see ConfigInfo in csrc/cuda/linear24.h."""
        return {info["name"]: info for info in self._function("configs")()}

    def weight(self, values: Tensor, meta: Tensor, anew: bool = False) -> Tensor:
        """The metadata in the kernels' order, a flat uint8 tensor; values may change under it."""
        found = None if anew else self._weights.find(meta)
        if found is None:
            refuse_capture(self.name)
            found = self._reordered(meta, values.shape[1] * 2)
            self._weights.keep(found, meta)
        return found

    def run(
        self,
        config: str,
        x: Tensor,
        values: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str | None,
        y: Tensor | None = None,
        scales: Scales | None = None,
        fresh: bool = False,
    ) -> Tensor:
        """Launch a config; x, residual, bias and values are copied only where a kernel cannot read them."""
        (tokens, inputs), out = x.shape, values.shape[0]
        x, ldx = aligned_rows(x)
        values = aligned(values)
        bias = None if bias is None else aligned(bias)
        residual, ldr = (None, 0) if residual is None else aligned_rows(residual)
        if scales is not None:
            scales = Scales(scales.x.contiguous(), scales.weight.contiguous(), scales.out_dtype)
        y_dtype = x.dtype if scales is None else scales.out_dtype
        y, ldy = (x.new_empty(tokens, out, dtype=y_dtype), out) if y is None else (y, y.stride(0))
        launch = self.launch(config, tokens, inputs, values, weight, bias, activation, scales)
        launch(x.data_ptr(), _address(residual), y.data_ptr(), ldx, ldr, ldy, fresh)
        return y

    def launch(
        self,
        config: str,
        tokens: int,
        inputs: int,
        values: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str | None,
        scales: Scales | None = None,
    ) -> Launch:
        """What launches a config, with all but what differs from call to call.

        The tensors are as kernels read them. `weight` is held; the others are to stay where they are.
        """
        number, device, out = self._numbers[config], values.device, values.shape[0]
        dtype, index = DTYPE_CODE[values.dtype], gpu.index_of(device)
        # Of two steps across the module's border one is spared where nothing is shared out.
        size = self._bytes_for(number, tokens, out, inputs, dtype) if config in self._splitting else 0
        ends: tuple[int, ...] = ()
        if scales is not None:
            ends = scales.x.data_ptr(), scales.weight.data_ptr(), DTYPE_CODE[scales.out_dtype]
        run = self._launcher(
            number, values.data_ptr(), weight.data_ptr(), _address(bias), tokens, out, inputs, dtype,
            ACTIVATION_CODE[activation], gpu.multiprocessors(index), *ends,
        ).launch  # fmt: skip

        def launch(
            x: int,
            residual: int,
            y: int,
            ldx: int = inputs,
            ldr: int = out,
            ldy: int = out,
            fresh: bool = False,
            _held: Tensor = weight,
        ) -> None:
            stream = gpu.stream_of(index)
            if size:
                memory, made = self._workspace(size, device, stream)
                code = run(
                    x, residual, y, stream, ldx, ldr, ldy, memory.data_ptr(), len(memory), made or fresh
                )
            else:
                code = run(x, residual, y, stream, ldx, ldr, ldy)
            if code:
                op = "linear24_scaled" if ends else "linear24"
                raise RuntimeError(
                    f"{op}: config {config} of the {self.name} backend failed for {tokens} tokens, "
                    f"{inputs} inputs and {out} outputs: {_module().error_name(code)}"
                )

        return launch

    def again(
        self,
        config: str,
        x: Tensor,
        values: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str | None,
    ) -> Again:
        """How a call of a config, of tensors as kernels read them, is made again."""
        *leading, inputs = x.shape
        launch = self.launch(config, x.numel() // inputs, inputs, values, weight, bias, activation)
        values_at, bias_at = values.data_ptr(), _address(bias)
        y = torch.empty(*leading, values.shape[0], device="meta")
        shape, strides, dtype = tuple(y.shape), y.stride(), x.dtype
        # Compiled models' own way, if it is still there: PyTorch's other ones take the host twice as long.
        guards = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
        empty = getattr(guards, f"_empty_strided_{x.device.type}", None) or _empty_strided_on(x.device)

        def again(
            x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, residual: Tensor | None
        ) -> Tensor | None:
            x_at, residual_at = x.data_ptr(), _address(residual)
            if x_at % ALIGNMENT or residual_at % ALIGNMENT:
                return None
            if values.data_ptr() != values_at or _address(bias) != bias_at:
                return None
            y: Tensor = empty(shape, strides, dtype)
            launch(x_at, residual_at, y.data_ptr())
            return y

        return again

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.infos())}

    @functools.cached_property
    def _splitting(self) -> frozenset[str]:
        return frozenset(name for name, info in self.infos().items() if info["split"] != 1)

    @functools.cached_property
    def _bytes_for(self) -> Any:
        return self._function("workspace")

    @functools.cached_property
    def _launcher(self) -> Any:
        return self._function("launcher")

    def _function(self, what: str) -> Any:
        return getattr(_module(), f"{self._prefix}_{what}")

    def _why_not(self, number: int, problem: Problem) -> str | None:
        reason: str | None = self._function("why_not")(
            number, problem.tokens, problem.out, problem.inputs, DTYPE_CODE[problem.dtype],
            ACTIVATION_CODE[problem.activation], problem.residual,
        )  # fmt: skip
        return reason

    def _reordered(self, meta: Tensor, inputs: int) -> Tensor:
        host, out = meta.cpu().contiguous(), meta.shape[0]
        native = extensions.extension()
        size = getattr(native, f"{self._prefix}_meta_bytes")(out, inputs)
        # Said, since PyTorch may have been told another device for tensors that name none.
        order = torch.empty(size, dtype=torch.uint8, device="cpu")
        getattr(native, f"{self._prefix}_reorder_meta")(host.data_ptr(), out, inputs, order.data_ptr())
        there = gpu.lasting(lambda: order.to(meta.device), meta.device)
        gpu.wait(meta.device)
        return there

    def _workspace(self, size: int, device: torch.device, stream: int) -> tuple[Tensor, bool]:
        """At least `size` bytes, and whether they are fresh; else nothing is locked in them.

        A kernel leaves them so for its stream's next.
        """
        if gpu.capturing():
            # Of its own: two graphs may run at once, and the memory of a graph dies with it.
            return torch.empty(size, dtype=torch.uint8, device=device), True
        found = self._workspaces.get((device, stream))
        if found is None or len(found) < size:
            found = gpu.lasting(lambda: torch.zeros(size, dtype=torch.uint8, device=device), device)
            # One that is too small goes: what was launched with it comes before any other use of its memory.
            self._workspaces[device, stream] = found
        return found, False


def _empty_strided_on(device: torch.device) -> Callable[..., Tensor]:
    return lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device=device)


def _module() -> ModuleType:
    module, reason = extensions.cuda_extension()
    if module is None:
        raise RuntimeError(reason)
    return module


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
