"""Where a training stands: what a checkpoint holds, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Progress", "changing", "load_state", "save_state"]

FILE = "checkpoint.pt"


@dataclass
class Progress:
    """Everything that changes from step to step.

    Args:
        model: what is trained.
        optimizer: of its trainable parameters.
        scaler: of the loss under fp16.
        identity: what a checkpoint must agree on to be continued.
        ema: running mean of the trainable parameters by name, empty without.
        history: the loss terms of every step so far.

    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    identity: dict[str, Any]
    ema: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.history)


def changing(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters, and buffers that a forward may change; masks (bool) are no such thing."""
    found = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return found | {name: b for name, b in model.named_buffers() if b.dtype != torch.bool}


def save_state(folder: Path, progress: Progress) -> None:
    """Write the checkpoint; a kill at any moment leaves the old one or the new one."""
    state = {
        "identity": progress.identity,
        "model": changing(progress.model),
        "optimizer": progress.optimizer.state_dict(),
        "scaler": progress.scaler.state_dict(),
        "ema": progress.ema,
        "history": progress.history,
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{FILE}.{os.getpid()}"
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            # the rename must not reach the disk before the contents do
            os.fsync(file.fileno())
        os.replace(partial, folder / FILE)
    finally:
        partial.unlink(missing_ok=True)


@torch.no_grad()
def load_state(folder: Path, progress: Progress) -> None:
    """Go on where the checkpoint in `folder` stands, if there is one.

    Raises:
        ValueError: it is of another run (what differs is named), or no checkpoint at all.

    """
    path = folder / FILE
    if not path.exists():
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        parts = ("identity", "model", "optimizer", "scaler", "ema", "history")
        identity, values, optimizer, scaler, means, history = (state[name] for name in parts)
    except Exception as error:
        raise ValueError(f"{path}: no checkpoint can be read from it ({type(error).__name__})") from error
    if differing := _first_difference(identity, progress.identity):
        raise ValueError(f"{path}: it is the checkpoint of another run: {differing}; give another folder")
    own = changing(progress.model)
    for name, tensor in own.items():
        tensor.copy_(values[name])
    progress.optimizer.load_state_dict(optimizer)
    progress.scaler.load_state_dict(scaler)
    for name, mean in progress.ema.items():
        mean.copy_(means[name])
    progress.history = list(history)


def _first_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    for name in {**now, **then}:
        before, after = then.get(name), now.get(name)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            return f"{name}.{_first_difference(before, after)}"
        return f"{name} was {before!r}, now {after!r}"
    return None
