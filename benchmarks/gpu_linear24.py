"""linear24 on a CUDA device: first against float64, then against cuBLAS and cuSPARSELt.

    python -m benchmarks.gpu_linear24 [--part NAME] [--quick] [--out FILE]

The part "scaled" has the same of `linear24_scaled` in int8 and E4M3, against torch._int_mm and
torch._scaled_mm with a scale a row ("dense") and the product in bfloat16; quantising x is timed beside them.

Weights are those of ViT-B/16, ViT-L/14 and of a model 4096 wide. "vlprune" is what `linear24` chooses by
itself, "dense" is `F.linear`. Times are those of `gpu_common`. TFLOP/s count the dense product's operations.
Results must be within twice the dense product's error of float64. cuSPARSELt, which may leave a process that
can do nothing more, has two parts that are to run alone: "cusparselt", the best of its default and searched
algorithms, and "algorithms", the best of all whose result is right; never with its inputs split, which
PyTorch's search leaves out.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_common import Report, calls_of, cold_times, copies_for, host_seconds, needs_gpu, parser
from vlprune import ops
from vlprune.ops.cuda24 import forms, measure
from vlprune.ops.cuda24.problem import Form, Problem

# [out, in] of qkv, fc1 and fc2 of each; of the smallest the two of the MLP.
SHAPES = {
    "B/16 fc1": (3072, 768),
    "B/16 fc2": (768, 3072),
    "L/14 qkv": (3072, 1024),
    "L/14 out": (1024, 1024),
    "L/14 fc1": (4096, 1024),
    "L/14 fc2": (1024, 4096),
    "4096 wide": (4096, 4096),
}
TOKENS = (50, 197, 257, 577, 512, 1024, 2048, 4096, 16384)
FEWER = (50, 257, 4096)
DEVICE = torch.device("cuda")
BACKENDS = ("sm90", "sm80", "triton")
# Tokens, outputs, inputs: less than a tile, no multiple of one, several, with inputs to share out.
CHECKED = ((1, 8, 64), (9, 136, 192), (50, 200, 1024), (130, 264, 128), (77, 48, 80))
CHECKED_DTYPES = (
    (torch.bfloat16, None),
    (torch.float16, None),
    (torch.int8, torch.bfloat16),
    (torch.float8_e4m3fn, torch.float16),
)
# No cuSPARSELt in use numbers more.
ALGORITHMS = 48


def main() -> None:
    """Check, measure, write."""
    options = parser(__doc__)
    options.add_argument("--part", choices=list(PARTS), action="append", help="only this; may be given again")
    options.add_argument("--quick", action="store_true", help="the main parts, with fewer tokens")
    options.add_argument("--check", action="store_true", help="only compare small products with float64")
    args = options.parse_args()
    needs_gpu("gpu_linear24")
    if args.check:
        print(f"{check()} results are within twice the dense product's error")
        return
    report = Report("-".join(("linear24", *(args.part or ()))), args.out)
    for part in args.part or (QUICK if args.quick else SAFE):
        PARTS[part](report, args)
    report.finish()


def usable(problem: Problem, device: torch.device = DEVICE) -> Iterator[Form]:
    """The forms of this package that can run a problem here."""
    sizes = {"tokens": problem.tokens, "in_features": problem.inputs, "out_features": problem.out}
    for backend in BACKENDS:
        if ops.why_not(backend, problem.op, dtype=problem.dtype, device=device, **sizes) is None:
            yield forms.FORMS[problem.op][backend]


def check(device: torch.device = DEVICE) -> int:
    """Compare every config of every backend with float64, small and odd sizes; how many were compared."""
    count, wrong = 0, []
    for (tokens, out, inputs), dtypes in itertools.product(CHECKED, CHECKED_DTYPES):
        for activation, ends in ((None, False), ("gelu", True), ("quick_gelu", True)):
            dtype, out_dtype = dtypes
            problem = Problem(tokens, out, inputs, dtype, activation, ends, ends, out_dtype)
            operands = measure.Operands(problem, device, 1)
            for form in usable(problem, device):
                weight = operands.weights(form)[0]
                for config in form.able(problem):
                    run = functools.partial(operands.run, form, config, weight, 0)
                    if not measure.trusted(operands, run):
                        wrong.append(f"{form.name}, config {config}: wrong result for {problem}")
                    count += 1
    if wrong:
        sys.exit("\n".join(f"gpu_linear24: {each}" for each in wrong))
    return count


class Case:
    """Operands of one problem, several copies of all that is read, and every way to compute it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = p = problem
        size = p.dtype.itemsize
        read = p.out * p.inputs * (4 * size + 1) // 8 + p.tokens * p.inputs * size
        self.operands = measure.Operands(p, DEVICE, copies_for(read))
        o = self.operands
        self.packed = [
            (x, v, o.meta.clone(), o.bias, p.activation) for x, v in zip(o.x, o.values, strict=True)
        ]
        self.mine = [
            functools.partial(ops.linear24, *packed)
            if s is None
            else functools.partial(
                ops.linear24_scaled, packed[0], s.x, packed[1], packed[2], s.weight, *packed[3:],
                out_dtype=s.out_dtype,
            )
            for packed, s in zip(self.packed, o.scales, strict=True)
        ]  # fmt: skip
        self.dense = [(x, w, o.bias) for x, w in zip(o.x, o.dense, strict=True)]

    def trusted(self, what: str, run: Callable[[Tensor], Tensor]) -> None:
        """Refuse a result that is too far from float64."""
        if not measure.trusted(self.operands, run):
            raise ValueError(f"{what}: more than twice the dense product's error")

    def times(self, **more: Sequence[Callable[[], object]]) -> dict[str, Any]:
        """The operator beside the dense product and what else is given: a row."""
        p, choice = self.problem, ops.tune24(*_sizes(self.problem), bias=self.problem.bias)
        self.trusted(p.op, lambda _: self.mine[0]())
        candidates = {
            "vlprune": self.mine,
            **self.operands.rivals(),
            **more,
        }
        times = cold_times(candidates)
        mine = times["vlprune"].median
        return {
            "kernel": "none" if choice is None else f"{choice.backend} {choice.config}",
            "microseconds": round(mine * 1e6, 2),
            **{f"{name} times as long": round(times[name].median / mine, 3) for name in list(candidates)[1:]},
            "TFLOP/s": round(2 * p.tokens * p.out * p.inputs / mine / 1e12, 1),
            "copies": self.operands.copies,
            "times": {name: timing.to_dict() for name, timing in times.items()},
        }

    def algorithms(self, numbers: Sequence[str]) -> tuple[str | None, list[Callable[[], object]]]:
        """The fastest of cuSPARSELt's algorithms whose results are right, and its calls."""
        form = forms.FORMS["linear24"]["cusparselt"]
        weights = self.operands.weights(form)
        right: dict[str, list[Callable[[], object]]] = {}
        for number in numbers or form.candidates(
            self.problem, self.operands.x[0], self.operands.values[0], weights[0], self.operands.bias
        ):
            try:
                self.trusted(number, lambda y, n=number: self.operands.run(form, n, weights[0], y=y))
            except (RuntimeError, ValueError):
                continue
            right[number] = self.operands.calls(form, number, weights)
        if not right:
            return None, []
        times = measure.seconds_a_call(right)
        best = min(times, key=times.__getitem__)
        return best, right[best]


def _sizes(problem: Problem) -> tuple[Any, ...]:
    return problem.tokens, problem.out, problem.inputs, problem.dtype, problem.activation


def _row(problem: Problem) -> dict[str, Any]:
    case = Case(problem)
    more: dict[str, Sequence[Callable[[], object]]] = {}
    if problem.out_dtype is not None:
        given = [(torch.randn(x.shape, device=DEVICE).bfloat16(), x.dtype) for x in case.operands.x]
        more["quantize_rows"] = calls_of(ops.quantize_rows, given)
        more["quantize_rows compiled"] = calls_of(torch.compile(ops.quantize_rows), given)
    elif problem.activation == "gelu":
        # The epilogue of cuBLASLt has the form with tanh, which is another function, and cheaper.
        more["cuBLASLt GELU epilogue"] = calls_of(
            lambda x, w, b: torch._addmm_activation(b, x, w.t(), use_gelu=True), case.dense
        )
    return case.times(**more)


def _has_cusparselt() -> bool:
    reason = ops.why_not("cusparselt", "linear24", dtype=torch.bfloat16, device=DEVICE)
    if reason is not None:
        print(f"cuSPARSELt: not measured: {reason}")
    return reason is None


def _beside_cusparselt(problem: Problem, algorithms: Sequence[str]) -> dict[str, Any]:
    case = Case(problem)
    best, calls = case.algorithms(algorithms)
    if best is None:
        raise ValueError("no algorithm of cuSPARSELt gives the right result")
    return {**case.times(cuSPARSELt=calls), "cuSPARSELt's best": best}


def _each(
    report: Report,
    shapes: Sequence[str],
    tokens: Sequence[int],
    row: Callable[[Problem], dict[str, Any]] = _row,
    **options: Any,
) -> None:
    for name in shapes:
        for count in tokens:
            problem = Problem(count, *SHAPES[name], **{"dtype": torch.bfloat16, "bias": True, **options})
            text = " ".join(
                filter(None, (name, f"{count} tokens", str(problem.dtype)[6:], problem.activation))
            )
            report.attempt(text, lambda p=problem: row(p))


def measure_products(report: Report, args: argparse.Namespace) -> None:
    """The product with its bias."""
    _each(report, list(SHAPES), FEWER if args.quick else TOKENS)


def measure_gelu(report: Report, args: argparse.Namespace) -> None:
    """The first layer of an MLP with its activation; "dense" is then the product and GELU after it."""
    tokens = FEWER if args.quick else (50, 257, 1024, 4096, 16384)
    _each(report, ("B/16 fc1", "L/14 fc1"), tokens, activation="gelu")


def measure_fp16(report: Report, args: argparse.Namespace) -> None:
    """A sample in float16."""
    _each(report, ("L/14 fc1", "L/14 fc2"), FEWER, dtype=torch.float16)


def measure_scaled(report: Report, args: argparse.Namespace) -> None:
    """int8 and E4M3 with a scale a token and a scale an output, results in bfloat16; then every config."""
    tokens = FEWER if args.quick else (50, 197, 257, 577, 2048, 16384)
    for dtype in (torch.int8, torch.float8_e4m3fn):
        _each(report, ("L/14 fc1", "L/14 fc2", "4096 wide"), tokens, dtype=dtype, out_dtype=torch.bfloat16)
        for name, count in itertools.product(("L/14 fc1", "L/14 fc2"), FEWER):
            problem = Problem(count, *SHAPES[name], dtype, None, True, out_dtype=torch.bfloat16)
            text = f"configs {name} {count} tokens {str(dtype)[6:]}"
            report.attempt(text, lambda p=problem: _configs(p))


def measure_cusparselt(report: Report, args: argparse.Namespace) -> None:
    """Beside cuSPARSELt as its own search sets it; in a process of its own, since it has broken one."""
    if not _has_cusparselt():
        return
    row = functools.partial(_beside_cusparselt, algorithms=())
    shapes = ("L/14 fc1", "L/14 fc2", "4096 wide") if args.quick else tuple(SHAPES)
    report.attempt("host, 8 tokens of B/16 fc2", lambda: _host(("cusparselt",)))
    for dtype in (torch.bfloat16, torch.float16):
        _each(report, shapes, FEWER, row, dtype=dtype)


def measure_algorithms(report: Report, args: argparse.Namespace) -> None:
    """Beside the best of all numbers that cuSPARSELt may have; in a process of its own too."""
    if not _has_cusparselt():
        return
    row = functools.partial(_beside_cusparselt, algorithms=[f"alg {n}" for n in range(ALGORITHMS)])
    _each(report, ("L/14 fc1", "L/14 fc2", "4096 wide"), FEWER, row)


def measure_configs(report: Report, args: argparse.Namespace) -> None:
    """Every config of every backend on its own, with its error: what the choice is made of."""
    for name in ("L/14 fc1", "L/14 fc2"):
        for count in FEWER if args.quick else (50, 197, 257, 577, 2048, 16384):
            problem = Problem(count, *SHAPES[name], torch.bfloat16, None, True)
            report.attempt(f"configs {name} {count} tokens", lambda p=problem: _configs(p))


def _configs(problem: Problem) -> dict[str, Any]:
    operands = measure.Operands(problem, DEVICE)
    calls: dict[str, Sequence[Callable[[], object]]] = {**operands.rivals()}
    wrong: dict[str, str] = {}
    for form in usable(problem):
        weights = operands.weights(form)
        for config in form.able(problem):
            name = f"{form.name} {config}"
            try:
                if measure.trusted(operands, functools.partial(operands.run, form, config, weights[0], 0)):
                    calls[name] = operands.calls(form, config, weights)
                else:
                    wrong[name] = "wrong"
            except Exception as error:
                wrong[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
    times = measure.seconds_a_call(calls)
    dense = times["dense"]
    ranked = sorted(times.items(), key=lambda item: item[1])
    return {
        "best": ranked[0][0],
        "dense microseconds": round(dense * 1e6, 2),
        "dropped": wrong,
        "microseconds": {name: round(t * 1e6, 2) for name, t in ranked},
        **({"error": f"{len(wrong)} configs are not to be used"} if wrong else {}),
    }


def measure_host(report: Report, args: argparse.Namespace) -> None:
    """What a call costs the host, at a size that keeps no device busy."""
    report.attempt("host, 8 tokens of B/16 fc2", lambda: _host(("auto", *BACKENDS)))


@torch.no_grad()
def _host(backends: Sequence[str]) -> dict[str, Any]:
    problem = Problem(8, *SHAPES["B/16 fc2"], torch.bfloat16, None, True)
    case = Case(problem)
    (packed, dense), o = (case.packed[0], case.dense[0]), case.operands
    calls: dict[str, Callable[[], object]] = {"F.linear": lambda: F.linear(*dense)}
    for backend in backends:
        asked = (
            None
            if backend == "auto"
            else ops.why_not(backend, "linear24", dtype=problem.dtype, device=DEVICE)
        )
        if asked is None:
            calls[f"linear24 {backend}"] = lambda b=backend: ops.linear24(*packed, backend=b)  # type: ignore[misc]
            calls[f"linear24 {backend}"]()
    if "linear24 cusparselt" in calls:
        weight = forms.FORMS["linear24"]["cusparselt"].weight(o.values[0], o.meta)
        x = o.x[0]
        calls["_cslt_sparse_mm"] = lambda: torch._cslt_sparse_mm(
            weight, x.t(), bias=o.bias, transpose_result=True
        )
    seconds = {name: host_seconds(call) for name, call in calls.items()}
    if not all(math.isfinite(s) for s in seconds.values()):
        raise ValueError("host: a time is not finite")
    return {f"{name} microseconds": round(s * 1e6, 2) for name, s in seconds.items()}


PARTS = {
    "products": measure_products,
    "gelu": measure_gelu,
    "configs": measure_configs,
    "host": measure_host,
    "scaled": measure_scaled,
    "fp16": measure_fp16,
    "cusparselt": measure_cusparselt,
    "algorithms": measure_algorithms,
}
# What runs unasked: cuSPARSELt may leave a process that can do nothing more.
SAFE = ("products", "gelu", "configs", "host", "scaled", "fp16")
QUICK = ("products", "gelu", "host")

if __name__ == "__main__":
    main()
