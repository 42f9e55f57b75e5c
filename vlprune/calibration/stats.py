"""What calibration gathers of each linear layer's inputs: column norms or a Hessian, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..distributed import gather, sum_over_ranks, world_size

__all__ = ["Calibration", "LayerStats", "Weigh"]

# (layer name, its input) -> token weights that broadcast to its leading shape, None for 1 everywhere
Weigh = Callable[[str, Tensor], Tensor | None]

# Tokens multiplied at once: bounds the float32 copy of half-precision inputs, and the length of a
# float32 sum.
_ROWS = 4096


@dataclass
class LayerStats:
    """Sums over the tokens of a layer's inputs.

    `second` is ``sum_t w_t x_tj^2`` [in] or ``sum_t w_t x_t x_t^T`` [in, in], float64 between batches:
    thousands of small sums must not be lost in a large one. `sequences` counts them, `tokens` adds up
    their weights.
    """

    second: Tensor
    tokens: Tensor
    sequences: int = 0


@dataclass
class Calibration:
    """Collects the statistics of layers through forward hooks.

    Args:
        statistics: "norm" or "hessian".
        offload: keep the sums in CPU memory, wherever the layers are.

    """

    statistics: str = "norm"
    offload: bool = False
    stats: dict[str, LayerStats] = field(default_factory=dict)

    @contextmanager
    def watching(self, layers: Mapping[str, nn.Module], weigh: Weigh | None = None) -> Iterator[None]:
        """Observe the inputs of these layers while they run."""
        with ExitStack() as stack:
            for name, layer in layers.items():
                stack.callback(layer.register_forward_pre_hook(self._hook(name, weigh)).remove)
            yield

    def column_norm(self, name: str) -> Tensor:
        """``sqrt(sum_t w_t x_tj^2 / n)``, float32 [in]; n counts sequences (Wanda's convention).

        Raises:
            ValueError: no input with a weight reached the layer, or one that is not finite.

        """
        stats = self._stats(name, "norm")
        norm = (stats.second / stats.sequences).sqrt().float()
        _check(name, norm, "norm")
        return norm

    def hessian(self, name: str) -> Tensor:
        """``(2 / n) sum_t w_t x_t x_t^T``, float32 [in, in]; n counts sequences. Raises as `column_norm`."""
        stats = self._stats(name, "hessian")
        hessian = (stats.second * (2 / stats.sequences)).float()
        hessian = (hessian + hessian.T) / 2  # the halves of a matrix product differ in their last bits
        _check(name, hessian.diagonal(), "sum of squares")
        return hessian

    def reorder(self, name: str, order: Tensor) -> None:
        """Follow a layer whose inputs were put in this order (int64 [in])."""
        stats = self._stats(name, "norm")
        stats.second = stats.second[order.to(stats.second.device)]

    def share(self) -> None:
        """Add up what the ranks gathered, so that each has the statistics of all batches.

        They are those of one process but for the rounding of float64 sums in another order, which the
        float32 statistics made of them seldom show: of n float32 numbers the sum is exact in float64, in any
        order, if none is 2^29 / n times another.
        """
        if world_size() == 1:
            return
        own = {name: (s.second.shape, s.sequences, float(s.tokens)) for name, s in self.stats.items()}
        every = gather(own)
        for name in sorted({name for rank in every for name in rank}):
            shapes, sequences, tokens = zip(*(rank[name] for rank in every if name in rank), strict=True)
            stats = self.stats.get(name)
            second = torch.zeros(shapes[0], dtype=torch.float64) if stats is None else stats.second
            weights = torch.tensor(sum(tokens), dtype=torch.float64)
            self.stats[name] = LayerStats(sum_over_ranks(second), weights, sum(sequences))

    def _stats(self, name: str, statistics: str) -> LayerStats:
        if self.statistics != statistics:
            raise ValueError(f"{name}: calibration gathered a {self.statistics}, not a {statistics}")
        stats = self.stats.get(name)
        if stats is None or not stats.sequences:
            raise ValueError(f"{name}: no calibration input reached this layer; ignore it or give other data")
        if float(stats.tokens) == 0:
            raise ValueError(f"{name}: token_weight gives every calibration token of it weight 0")
        return stats

    def _hook(self, name: str, weigh: Weigh | None) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def observe(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()
            weight = None if weigh is None else _checked(name, weigh(name, x), x)
            second = ops.column_sumsq(x, weight) if self.statistics == "norm" else _outer(x, weight)
            tokens = torch.ones((), device=x.device) if weight is None else weight.detach().double().sum()
            if self.offload:
                second, tokens = second.cpu(), tokens.cpu()
            if name not in self.stats:
                zeros = torch.zeros_like(second, dtype=torch.float64)
                self.stats[name] = LayerStats(zeros, torch.zeros_like(tokens, dtype=torch.float64))
            stats = self.stats[name]
            stats.second += second
            stats.tokens += tokens
            stats.sequences += x.shape[0] if x.dim() > 2 else 1

        return observe


def _checked(name: str, weight: Any, x: Tensor) -> Tensor | None:
    """What a token weight function returned, once it can be used."""
    if weight is None:
        return None
    leading = tuple(x.shape[:-1])
    allowed = f"token_weight: expected bools, or finite floats of at least 0, that broadcast to {leading}"
    if not isinstance(weight, Tensor):
        raise ValueError(f"{name}: {allowed}, got {weight!r:.80}")
    if weight.device != x.device or not (weight.dtype is torch.bool or weight.is_floating_point()):
        raise ValueError(f"{name}: {allowed} on {x.device}, got {weight.dtype} on {weight.device}")
    sizes = zip(reversed(weight.shape), reversed(leading), strict=False)
    if weight.dim() >= x.dim() or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(f"{name}: {allowed}, got shape {tuple(weight.shape)}")
    if weight.dtype is not torch.bool:
        bad = ~(weight.isfinite() & (weight >= 0))
        if bool(bad.any()):
            raise ValueError(f"{name}: {allowed}, got {float(weight[bad][0])}")
    return weight


def _outer(x: Tensor, weight: Tensor | None) -> Tensor:
    """``sum_t w_t x_t x_t^T`` of one batch, float64 [in, in]."""
    rows = x.reshape(-1, x.shape[-1])
    if weight is not None:
        weight = weight.expand(x.shape[:-1]).reshape(-1)
        if weight.dtype == torch.bool:  # most of a padded text need not be multiplied
            rows, weight = rows[weight], None
        else:
            weight = weight.float()[:, None]
    total = x.new_zeros(x.shape[-1], x.shape[-1], dtype=torch.float64)
    with _full_precision():
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS].float()
            weighted = part if weight is None else part * weight[start : start + _ROWS]
            total += weighted.T @ part
    return total


@contextmanager
def _full_precision() -> Iterator[None]:
    """TF32 and bf16 shortcuts that the caller may have allowed would cost the Hessian its positivity."""
    # torch.set_float32_matmul_precision refuses to work once a caller has used these
    backends: Any = torch.backends
    settings = (backends.cuda.matmul, backends.mkldnn.matmul)
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def _check(name: str, values: Tensor, what: str) -> None:
    if not bool(values.isfinite().all()):
        column = int((~values.isfinite()).nonzero()[0])
        raise ValueError(f"{name}: calibration input {column} is not finite ({what} {float(values[column])})")
