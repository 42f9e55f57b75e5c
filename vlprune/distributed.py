"""Work that the processes of one job share, as torchrun starts them; in a lone process all of it is its own.

A process is a rank once `torch.distributed` is initialised, with gloo or NCCL (then after
`torch.cuda.set_device`). Every rank has the same model and data and makes the same calls; each does its
share, and all return the same. Work for which that does not hold, such as an evaluation on the first rank
alone, belongs inside `alone`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available() and not dist.is_initialized():
    # its functions' defaults keep the group that exists when it is first imported, and with it gloo's threads
    # past `destroy_process_group`, to abort a process that ends; torch.compile and FSDP import it late
    import torch.distributed.nn.functional

__all__ = ["alone", "gather", "hides_progress", "is_first", "losing_none", "of_first_rank", "on_all_ranks",
           "own_share", "rank", "same_on_ranks", "send_from_first", "sum_over_ranks", "under_torchrun",
           "world_size"]  # fmt: skip

T = TypeVar("T")

_alone: ContextVar[bool] = ContextVar("vlprune_alone", default=False)

# what gloo and NCCL say when the other end of a connection is gone
_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "remote process exited")


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
def under_torchrun(device: str, minutes: float = 60) -> Iterator[None]:
    """Inside of it a process that torchrun started is a rank; for any other nothing changes.

    Args:
        device: "cuda" has the ranks talk through NCCL, each with the GPU of its local rank, which is then
            the current one; anything else through gloo.
        minutes: how long a rank waits for the others at most, such as for the first one's measurements.

    """
    if dist.is_available() and dist.is_torchelastic_launched() and not dist.is_initialized():
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        wait = timedelta(minutes=minutes)
        c10d: Any = dist  # which says nothing of these names' types
        store, number, count = next(c10d.rendezvous("env://", timeout=wait))
        if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
            # torchrun's store outlives a restart, and has the addresses of processes that are gone; agents on
            # several machines count restarts each for itself
            store = c10d.PrefixStore(f"vlprune {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=store, rank=number, world_size=count, timeout=wait
        )
        try:
            yield
        finally:
            dist.destroy_process_group()
    else:
        yield


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


def same_on_ranks(what: str, value: object) -> None:
    """Check what every rank has to have alike; values are compared with ``==``.

    Raises:
        ValueError: on all ranks, naming the first that differs from rank 0.

    """
    values = gather(value)
    for number, other in enumerate(values):
        if other != values[0]:
            raise ValueError(
                f"{what}: expected the same on every rank, but rank {number} differs from rank 0"
            )


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over the ranks, in place where the backend takes its device."""
    if world_size() == 1:
        return values
    moved = _sendable(values)
    dist.all_reduce(moved)
    return moved.to(values.device)


def send_from_first(tensors: Iterable[Tensor]) -> None:
    """Give tensors of one shape and order on all ranks the values of the first, in place."""
    if world_size() == 1:
        return
    for tensor in tensors:
        own = tensor.detach()
        moved = _sendable(own)
        dist.broadcast(moved, 0)
        if moved is not own:
            own.copy_(moved)


def _sendable(tensor: Tensor) -> Tensor:
    """A tensor that the backend takes: contiguous, and on the GPU for NCCL alone."""
    on_gpu = dist.get_backend() == "nccl" and tensor.device.type == "cpu"
    return tensor.to("cuda" if on_gpu else tensor.device).contiguous()


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


@contextmanager
def losing_none(what: str) -> Iterator[None]:
    """Say in one line that another process is gone, where that ends this one's work.

    It may have been killed, or have ended with an error of its own.

    Under torchrun it is torchrun that sees a process die: it ends the others, names the one that was lost,
    and with ``--max-restarts`` starts all of them again.

    Raises:
        RuntimeError: a collective failed because the connection to another process was lost.

    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not any(part in str(error) for part in _LOST):
            raise
        raise RuntimeError(
            f"{what}: another of the {world_size()} processes of this job failed or was lost, so rank "
            f"{rank()} stops. See what that one said; if nothing, start all of them again (torchrun "
            "--max-restarts does it): a training with `out` goes on from its last checkpoint"
        ) from None
