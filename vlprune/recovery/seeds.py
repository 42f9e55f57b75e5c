"""Random numbers of a training, of which nobody else sees anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["own_seeds"]


@contextmanager
def own_seeds(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Give a function that seeds the generators of the CPU and of `device`; they are as before afterwards.

    `torch.manual_seed` would seed those of all GPUs.
    """
    cuda = [device] if device.type == "cuda" else []

    def seed(number: int) -> None:
        torch.default_generator.manual_seed(number)
        for own in cuda:
            with torch.cuda.device(own):
                torch.cuda.manual_seed(number)

    with torch.random.fork_rng(cuda):
        yield seed
