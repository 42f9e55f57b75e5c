"""Work that the processes of one job share, as torchrun starts them; in a lone process all of it is its own.

A process is a rank once `torch.distributed` is initialised, with gloo or NCCL (then after
`torch.cuda.set_device`). Every rank has the same model and data and makes the same calls; each does its
share, and all return the same. Work for which that does not hold, such as an evaluation on the first rank
alone, belongs inside `alone`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch.distributed as dist

__all__ = ["alone", "gather", "hides_progress", "is_first", "of_first_rank", "on_all_ranks", "own_share",
           "rank", "world_size"]  # fmt: skip

T = TypeVar("T")

_alone: ContextVar[bool] = ContextVar("vlprune_alone", default=False)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """How many processes share the work: 1 in a lone process, and inside `alone`."""
    return dist.get_world_size() if _joined() and not _alone.get() else 1


def rank() -> int:
    """The number of this process of `world_size`, from 0."""
    return dist.get_rank() if _joined() and not _alone.get() else 0


def is_first() -> bool:
    """Whether this is the one process to show progress and to write files, inside `alone` too."""
    return not _joined() or dist.get_rank() == 0


def hides_progress(progress: bool | None) -> bool | None:
    """What to give tqdm as `disable`: None shows a bar on a terminal alone; only the first rank shows one."""
    if not is_first():
        return True
    return None if progress is None else not progress


@contextmanager
def alone() -> Iterator[None]:
    """Inside of it this process waits for no other one, and does all of what it is asked for."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def own_share(items: Sequence[T], costs: Sequence[float] | None = None) -> list[T]:
    """The items of this rank: neighbours, about as costly as those of every other rank.

    Args:
        items: the same on every rank. Together the ranks have each of them once, in this order.
        costs: one for each item, above 0; None means that all cost the same.

    """
    costs = [1.0] * len(items) if costs is None else costs
    total, own, count, before = sum(costs), rank(), world_size(), 0.0
    mine: list[T] = []
    for item, cost in zip(items, costs, strict=True):
        if int((before + cost / 2) / total * count) == own:
            mine.append(item)
        before += cost
    return mine


def gather(value: T) -> list[T]:
    """The values of all ranks, in their order; whatever pickle takes, tensors on the CPU best."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_all_ranks(work: Callable[[], T]) -> list[T]:
    """Do this rank's work, inside `alone`, and return the results of all ranks.

    Raises:
        RuntimeError: on the ranks whose own work is done when that of another failed; it names the first
            such rank and its error. A rank that fails raises its own error. None is left waiting, unless the
            process itself dies: that is for torchrun to see.

    """
    if world_size() == 1:
        return [work()]
    failure: Exception | None = None
    result: Any = None
    try:
        with alone():
            result = work()
    except Exception as error:
        failure = error
    said = None if failure is None else f"{type(failure).__name__}: {failure}"
    gathered = gather((result, said))
    if failure is not None:
        raise failure
    for number, (_, problem) in enumerate(gathered):
        if problem is not None:
            raise RuntimeError(f"rank {number} of {len(gathered)} failed: {problem}")
    return [found for found, _ in gathered]


def of_first_rank(work: Callable[[], T]) -> T:
    """What the first rank's work returns, on every rank: for what each would find slightly different.

    Raises:
        RuntimeError: on the other ranks when it failed, as of `on_all_ranks`.

    """
    if world_size() == 1:
        return work()
    found: Any = on_all_ranks(lambda: work() if is_first() else None)[0]
    result: T = found
    return result
