"""The one timing harness: warm up, interleave the candidates, give medians with their spread.

Interleaving (A B A B ...) makes drift in clocks and temperature hit every candidate alike, so the
*ratio* of two medians of one call is meaningful where two separate timings are not.
"""

from __future__ import annotations

import itertools
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Timing", "check_close", "compare", "flops_of", "machine_info", "rounds_of"]

T = TypeVar("T")


# More than any last-level cache in use on desktops and servers that this runs on.
_FLUSH_BYTES = 128 << 20
# Rounds, however long they take: a sign test gives the median of fewer no 95 % interval.
_LEAST = 6


@dataclass(frozen=True)
class Timing:
    """Seconds a call took: `median`, 20th and 80th percentile `p20` and `p80`, over `samples` rounds."""

    median: float
    p20: float
    p80: float
    samples: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summarize raw samples (at least one)."""
        ordered = sorted(seconds)
        last = len(ordered) - 1
        return cls(
            statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)], len(ordered)
        )

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, seconds, for JSON."""
        return asdict(self)


def compare(
    candidates: Mapping[str, Callable[[], object]],
    *,
    device: torch.device | str = "cpu",
    warmup: int = 3,
    rounds: int = 20,
    min_seconds: float = 0.0,
    max_seconds: float = 30.0,
    cold: bool = False,
) -> dict[str, Timing]:
    """Time every candidate, interleaved, one call of each a round.

    Args:
        candidates: name -> function without arguments; they should compute the same thing.
        device: on a CUDA device the clock is a pair of events around the call, on the CPU the wall.
        warmup: untimed rounds.
        rounds: timed rounds; fewer if `max_seconds` runs out, but never less than six.
        min_seconds: more rounds until they have taken this long together (short calls are noisy).
        max_seconds: budget for the timed rounds.
        cold: overwrite a buffer larger than the last-level cache before every timed call.

    Returns:
        name -> `Timing`, in the order given.

    """
    samples = rounds_of(
        candidates,
        device=device,
        warmup=warmup,
        rounds=rounds,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        cold=cold,
    )
    return {name: Timing.of(seconds) for name, seconds in samples.items()}


def rounds_of(
    candidates: Mapping[str, Callable[[], object]],
    *,
    device: torch.device | str = "cpu",
    warmup: int = 3,
    rounds: int = 20,
    min_seconds: float = 0.0,
    max_seconds: float = 30.0,
    cold: bool = False,
) -> dict[str, list[float]]:
    """Time as `compare` does, and return name -> seconds of every round: entries of one place are a pair.

    Arguments and what is refused are those of `compare`.
    """
    if not candidates:
        raise ValueError("compare: expected at least one candidate, got none")
    if rounds < 1:
        raise ValueError(f"compare: expected rounds >= 1, got {rounds}")
    device = torch.device(device)
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device) if cold else None
    clock = _cuda_seconds if device.type == "cuda" else _wall_seconds
    for _ in range(warmup):
        for run in candidates.values():
            run()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    for done in itertools.count():
        spent = time.perf_counter() - start
        if (done >= rounds and spent >= min_seconds) or (done >= min(rounds, _LEAST) and spent > max_seconds):
            break
        for name, run in candidates.items():
            if flush is not None:
                flush.add_(1)
                if flush.is_cuda:
                    # What was written last, up to 60 MB, would be written back while the call runs.
                    flush.view(torch.int64).sum()
            samples[name].append(clock(run))
    return samples


def _wall_seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cuda_seconds(run: Callable[[], object]) -> float:
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


# Largest error allowed relative to the root mean square of the reference. The sums run over up to
# 4096 products in float32 whatever the dtype, so float32 keeps ~1e-6 and bf16 its own output rounding
# (2^-8 of the largest entries, which reach five times the mean).
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


def check_close(name: str, actual: Tensor, reference: Tensor, peer: Tensor | None = None) -> float:
    """Gate before any timing: the largest error of `actual`, relative to the reference's RMS.

    Args:
        name: what is checked, for the message.
        actual: the result to trust or not.
        reference: the right result, best in a higher precision.
        peer: the same computed in `actual`'s dtype by other means. Rounding adds up over the layers of
            a tower, so `actual` may then be off by twice what the peer is (FlashAttention's rule).

    Raises:
        ValueError: the shapes differ, a value is not finite, or the error exceeds what the dtype of
            `actual` explains.

    """
    if actual.shape != reference.shape:
        raise ValueError(f"{name}: expected shape {tuple(reference.shape)}, got {tuple(actual.shape)}")
    if not actual.isfinite().all():
        raise ValueError(f"{name}: the result holds values that are not finite")
    error = _relative_error(actual, reference)
    allowed = _TOLERANCE[actual.dtype]
    if peer is not None:
        allowed = max(allowed, 2 * _relative_error(peer, reference))
    if error > allowed:
        raise ValueError(f"{name}: largest error {error:.2e} of the reference's RMS, allowed {allowed:.1e}")
    return error


def flops_of(call: Callable[[], T]) -> tuple[int, T]:
    """Floating-point operations of a call's products and attentions, as PyTorch counts them, and its result.

    In PyTorch's own attention modules, which may run as one operator, none are counted: split them first.
    """
    # brings Triton's compiler with it
    from torch.utils.flop_counter import (
        FlopCounterMode,
        flop_registry,
        sdpa_backward_flop_count,
        sdpa_flop_count,
    )

    def forward(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
        k, v = (torch.Size((*q[:2], *t[2:])) for t in (k, v))  # fewer heads are used several times
        return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]

    def backward(grad: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
        k, v = (torch.Size((*q[:2], *t[2:])) for t in (k, v))
        return int(sdpa_backward_flop_count(grad, q, k, v))  # type: ignore[no-untyped-call]

    # PyTorch 2.11 does not know the operators for CPUs
    aten = torch.ops.aten
    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    missing = {op: formula for op, formula in formulas.items() if op not in flop_registry}
    with FlopCounterMode(display=False, custom_mapping=missing) as counter:
        result = call()
    return counter.get_total_flops(), result


def _relative_error(actual: Tensor, reference: Tensor) -> float:
    if not actual.numel():
        return 0.0
    scale = reference.double().square().mean().sqrt().clamp_min(1e-30)
    return float((actual.double() - reference.double()).abs().max() / scale)


@cache
def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def _commit() -> str:
    """What `git describe` calls the source tree that this runs from; the version of an installed copy."""
    from . import __version__

    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return __version__
    git = ["git", "-C", str(root), "describe", "--always", "--tags", "--dirty=+changes"]
    try:
        described = subprocess.run(git, capture_output=True, text=True)
    except OSError:
        return __version__
    return described.stdout.strip() or __version__


def machine_info() -> dict[str, Any]:
    """What a measurement must be printed with: machine, versions, threads, commit."""
    from . import __version__
    from .ops import cpu_isa

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "isa": cpu_isa(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vlprune": __version__,
        "commit": _commit(),
    }
