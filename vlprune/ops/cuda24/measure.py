"""Times the forms of both operators against dense products on this GPU, once their results were compared.

Weights and inputs rotate over more memory than the level-2 cache holds, if they are not too small for that,
and the device is kept busy until the host has queued all calls, so that a time is the device's alone. Numbers
are random normal: zeros would cost a GPU less power, and so clock higher.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import gpu, reference
from .choice import Choice, pick
from .dense8 import linear8, unpack8
from .problem import Form, Problem, Scales

__all__ = ["Operands", "error_of", "measured", "random_packed", "seconds_a_call", "trusted"]

Call = Callable[[], object]

# Rounds over all that is compared, and untimed ones before them.
_ROUNDS, _WARMUP = 7, 2
# Copies of the operands: enough to leave the level-2 cache twice over, but no more than this. A device takes
# some thousand launches in advance, and a call is up to ten.
_MOST_COPIES = 96
# Cycles that a device waits for each queued call at most: 140 microseconds of host time at 1.8 GHz. After the
# first round it is twice what the host took the time before, in cycles of a clock that is hardly exceeded.
_CYCLES_A_CALL, _CYCLES_A_SECOND = 250_000, 2e9
# Tokens whose results are compared with float64, spread over all.
_COMPARED = 512
# The six pairs of places in a group of four, as meta has them.
_PAIRS = (0x4, 0x8, 0xC, 0x9, 0xD, 0xE)


class Operands:
    """Random operands of a problem on a device, several copies, and the same weight dense.

    Args:
        problem: its sizes, dtype and epilogue.
        device: where.
        copies: of everything that is read; None takes twice what the level-2 cache holds.

    """

    def __init__(self, problem: Problem, device: torch.device, copies: int | None = None) -> None:
        tokens, out, inputs, dtype = problem.tokens, problem.out, problem.inputs, problem.dtype
        drawn = dtype if problem.out_dtype is None else torch.float32
        values, self.meta = random_packed(out, inputs, drawn, device)
        weight_scale = None
        if problem.out_dtype is not None:
            values, weight_scale = reference.quantize_rows(values, dtype)
        read = values.nbytes + self.meta.nbytes + tokens * inputs * dtype.itemsize
        if copies is None:
            cache = 2 * torch.cuda.get_device_properties(device).L2_cache_size
            copies = min(_MOST_COPIES, -(-cache // read))
        self.problem, self.copies = problem, copies
        self.values = [values, *(values.clone() for _ in range(copies - 1))]
        dense = reference.unpack24(values, self.meta) if weight_scale is None else unpack8(values, self.meta)
        self.dense = [dense, *(dense.clone() for _ in range(copies - 1))]
        drawn_x = (torch.randn(tokens, inputs, device=device) for _ in range(copies))
        self.scales: list[Scales | None] = [None] * copies
        if weight_scale is None:
            self.x = [x.to(dtype) for x in drawn_x]
        else:
            quantized = [reference.quantize_rows(x, dtype) for x in drawn_x]
            self.x = [x for x, _ in quantized]
            self.scales = [Scales(scale, weight_scale, problem.y_dtype) for _, scale in quantized]
        of_bias = dtype if weight_scale is None else torch.float32
        self.bias = torch.randn(out, device=device).to(of_bias) if problem.bias else None
        # as the dense products take it, so that they are not timed with a conversion
        self.dense_bias = None if self.bias is None else self.bias.to(problem.y_dtype)
        self.residual = (
            torch.randn(tokens, out, device=device).to(problem.y_dtype) if problem.residual else None
        )

    def rivals(self) -> dict[str, list[Call]]:
        """The dense product by cuBLAS and what follows it, once a copy; that of 8 bits also in 16."""
        calls = {"dense": self.dense_calls()}
        if self.problem.out_dtype is not None:
            wide = [
                (self._widened(x, scales.x), self._widened(w, scales.weight))
                for x, w, scales in zip(self.x, self.dense, self.scales, strict=True)
                if scales is not None
            ]
            calls["dense in 16 bits"] = [lambda x=x, w=w: self._product(x, w) for x, w in wide]  # type: ignore[misc]
        return calls

    def dense_calls(self) -> list[Call]:
        """The dense product in the operands' own dtype, once a copy."""
        return [lambda i=i: self.product(i) for i in range(self.copies)]  # type: ignore[misc]

    def product(self, copy: int = 0) -> Tensor:
        """What the operator computes, by PyTorch from the dense weight."""
        x, weight, scales = self.x[copy], self.dense[copy], self.scales[copy]
        if scales is None:
            return self._product(x, weight)
        return linear8(
            x,
            scales.x,
            weight,
            scales.weight,
            scales.out_dtype,
            self.bias if x.dtype is torch.int8 else self.dense_bias,
            self.problem.activation,
            self.residual,
        )

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        y = reference.activate(F.linear(x, weight, self.dense_bias), self.problem.activation)
        return y if self.residual is None else y + self.residual

    def _widened(self, q: Tensor, scale: Tensor) -> Tensor:
        return (q.float() * scale[:, None]).to(self.problem.y_dtype)

    def calls(self, form: Form, config: str, weights: Sequence[Tensor]) -> list[Call]:
        """The product by a config of a form, as in a CUDA graph, once a copy."""
        return [
            lambda i=i: self.run(form, config, weights[i], i, fresh=True)  # type: ignore[misc]
            for i in range(self.copies)
        ]

    def run(
        self,
        form: Form,
        config: str,
        weight: Tensor,
        copy: int = 0,
        y: Tensor | None = None,
        fresh: bool = False,
    ) -> Tensor:
        """One call on one copy."""
        x, values, scales, activation = (
            self.x[copy], self.values[copy], self.scales[copy], self.problem.activation,
        )  # fmt: skip
        return form.run(config, x, values, weight, self.bias, self.residual, activation, y, scales, fresh)

    def weights(self, form: Form) -> list[Tensor]:
        """A form's own copies of the weight."""
        first = form.weight(self.values[0], self.meta)
        return [first, *(first.clone() for _ in range(self.copies - 1))]


def random_packed(
    out: int, inputs: int, dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """``(values, meta)`` of a random weight, scaled as a trained layer's; all pairs of places are alike."""
    values = (torch.randn(out, inputs // 2, device=device) * (2 / inputs) ** 0.5).to(dtype)
    pairs = torch.tensor(_PAIRS, dtype=torch.uint8, device=device)
    groups = pairs[torch.randint(len(_PAIRS), (out, inputs // 4), device=device)]
    if groups.shape[1] % 2:
        groups = F.pad(groups, (0, 1))
    return values, (groups[:, 0::2] | groups[:, 1::2] << 4).contiguous()


def error_of(y: Tensor, right: Tensor) -> float:
    """Largest error over the root mean square of the right result; infinite if a number is not finite."""
    if not bool(y.isfinite().all()):
        return float("inf")
    y, right = y.detach().double(), right.detach().double()
    return float((y - right).abs().max() / right.square().mean().sqrt().clamp_min(1e-30))


def trusted(operands: Operands, run: Callable[[Tensor], Tensor]) -> bool:
    """Whether a result is within twice the dense product's error of float64 (FlashAttention's rule).

    Args:
        operands: what goes in; their first copy is used.
        run: gives the result; it may write to the tensor of NaN that it is given.

    """
    x, dense, dtype = operands.x[0], operands.dense[0], operands.problem.y_dtype
    rows, count = x.shape[0], min(_COMPARED, x.shape[0])
    y = run(torch.full((rows, dense.shape[0]), float("nan"), dtype=dtype, device=x.device))
    if y.shape != (rows, dense.shape[0]) or not bool(y.isfinite().all()):
        return False
    some = torch.linspace(0, rows - 1, count, device=x.device).round().long()
    bias, residual, scales = operands.bias, operands.residual, operands.scales[0]
    right = F.linear(x.double()[some], dense.double())
    if scales is not None:
        right = right * scales.x[some, None].double() * scales.weight.double()
    right = reference.activate(right if bias is None else right + bias.double(), operands.problem.activation)
    right = right if residual is None else right + residual[some].double()
    peer = operands.product()[some]
    return error_of(y[some], right) <= 2 * error_of(peer, right) + _slack(operands.problem)


def _slack(problem: Problem) -> float:
    """What a right result may be off by where the dense product happens to be exact, or nearly so."""
    # A rounding of the dtype more is none; nor is another order of the sums, which float32 shows, and E4M3,
    # since tensor cores keep 13 bits below the largest of the 32 products that they add at a time.
    last = {torch.float32: 2.0**-23, torch.float8_e4m3fn: 2.0**-13}.get(problem.dtype, 0.0)
    slack: float = torch.finfo(problem.y_dtype).eps + last * problem.inputs**0.5
    return slack


def seconds_a_call(candidates: Mapping[str, Sequence[Call]], rounds: int = _ROUNDS) -> dict[str, float]:
    """Median seconds that a call of each candidate takes the device; rounds go over all candidates."""
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    waits = {name: _CYCLES_A_CALL * len(calls) for name, calls in candidates.items()}
    for done in range(-_WARMUP, rounds):
        for name, calls in candidates.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda._sleep(waits[name])  # type: ignore[no-untyped-call]
            start.record()
            began = time.perf_counter()
            for call in calls:
                call()
            took = time.perf_counter() - began
            end.record()
            waits[name] = min(_CYCLES_A_CALL * len(calls), int(2 * took * _CYCLES_A_SECOND))
            end.synchronize()
            if done >= 0:
                samples[name].append(start.elapsed_time(end) / 1e3 / len(calls))
    return {name: statistics.median(each) for name, each in samples.items()}


@torch.no_grad()
def measured(problem: Problem, forms: Sequence[Form], device: torch.device) -> Choice | None:
    """Compare, then time, every config of these forms and the dense product; None if none can be trusted.

    A config that fails or gives wrong results is left out with a warning.

    Raises:
        torch.OutOfMemoryError: what is left of the device's memory is too little, which says nothing of a
            config.

    """
    with reference.as_typed(device):
        return _measured(problem, forms, device)


def _measured(problem: Problem, forms: Sequence[Form], device: torch.device) -> Choice | None:
    operands = Operands(problem, device)
    calls: dict[str, Sequence[Call]] = {**operands.rivals()}
    rivals = tuple(calls)
    names: dict[str, tuple[str, str]] = {}
    for form in forms:
        x, values = operands.x[0], operands.values[0]
        try:
            weights = operands.weights(form)
            configs = form.candidates(problem, x, values, weights[0], operands.bias)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            _refuse_lost(form.name, problem, x.device, error)
            _warn(form.name, problem, str(error))
            continue
        for config in configs:
            name = f"{form.name}, config {config}"
            if _works(name, operands, form, config, weights[0]):
                calls[name] = operands.calls(form, config, weights)
                names[name] = (form.name, config)
    if not names:
        return None
    times = seconds_a_call(calls)
    return pick({names[name]: times[name] for name in names}, min(times[name] for name in rivals))


def _works(name: str, operands: Operands, form: Form, config: str, weight: Tensor) -> bool:
    try:
        if trusted(operands, lambda y: operands.run(form, config, weight, y=y)):
            return True
        reason = "its result is wrong"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # Triton's own errors (too much shared memory, code that does not compile) have no base but this.
        _refuse_lost(name, operands.problem, operands.x[0].device, error)
        reason = str(error) or type(error).__name__
    _warn(name, operands.problem, reason)
    return False


def _refuse_lost(name: str, problem: Problem, device: torch.device, error: Exception) -> None:
    """Go on only if the device still works: after an illegal access nothing does, in this process."""
    try:
        gpu.wait(device)
    except RuntimeError as lost:
        raise RuntimeError(
            f"{problem.op}: {name} left {device} unusable for this process ({error})"
        ) from lost


def _warn(name: str, p: Problem, reason: str) -> None:
    warnings.warn(
        f"{p.op}: {name} is not used for {p.tokens} tokens, {p.inputs} inputs and {p.out} outputs in "
        f"{str(p.dtype)[6:]}: {reason}".partition("\n")[0],
        stacklevel=2,
    )
