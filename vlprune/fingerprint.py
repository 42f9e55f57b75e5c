"""Weights as part of a fingerprint, by which results that were kept are told from those of something else."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn, uint8

__all__ = ["add_weights"]


class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None:
        """Take these bytes in."""


def add_weights(digest: Digest, model: nn.Module) -> None:
    """Put names, dtypes, shapes and bytes of all parameters and buffers into a digest."""
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(uint8).numpy().tobytes())
