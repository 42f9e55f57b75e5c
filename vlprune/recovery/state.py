"""Where a training stands: what a checkpoint holds, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..distributed import is_first
from .sharding import gathered, local, part_of

__all__ = ["Progress", "changing", "frozen", "read_state", "save_state"]

FILE = "checkpoint.pt"


@dataclass
class Progress:
    """Everything that changes from step to step, sharded or not; a checkpoint is always whole.

    Args:
        model: what is trained.
        optimizer: of its trainable parameters.
        scaler: of the loss under fp16.
        identity: what a checkpoint must agree on to be continued.
        ema: running mean of the trainable parameters by name, empty without.
        history: the line of the log of every step so far.

    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    identity: dict[str, Any]
    ema: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.history)

    def whole(self) -> dict[str, Any]:
        """What a checkpoint holds. Of a sharded training every rank must ask; only the first gets it."""
        state = {
            "identity": self.identity,
            "model": changing(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema,
            "history": self.history,
        }
        found: dict[str, Any] = tree_map_only(Tensor, _whole, state)
        return found

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `read_state` found a checkpoint to stand."""
        for own, values in ((changing(self.model), state["model"]), (self.ema, state["ema"])):
            for name, tensor in own.items():
                local(tensor).copy_(local(part_of(values[name], tensor)))
        optimizer = dict(state["optimizer"])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        optimizer["state"] = {
            number: {
                name: part_of(value, parameters[number]) if name != "step" else value
                for name, value in values.items()
            }
            for number, values in optimizer["state"].items()
        }
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(state["scaler"])
        self.history = list(state["history"])


def _whole(tensor: Tensor) -> Tensor | None:
    if local(tensor) is tensor:
        return tensor
    whole = gathered(tensor)
    return whole.cpu() if is_first() else None


def changing(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters, and buffers that a forward may change; masks (bool) are no such thing."""
    found = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return found | {name: b for name, b in model.named_buffers() if b.dtype != torch.bool}


def frozen(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that are not trained, and masks."""
    found = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return found | {name: b for name, b in model.named_buffers() if b.dtype == torch.bool}


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `Progress.whole`; a kill at any moment leaves the old checkpoint or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    # of one name, so that what a kill leaves is overwritten
    partial = folder / f".{FILE}.partial"
    try:
        with partial.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            # the rename must not reach the disk before the contents do
            os.fsync(file.fileno())
        os.replace(partial, folder / FILE)
    finally:
        partial.unlink(missing_ok=True)


def read_state(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The checkpoint in `folder`, on the CPU, or None if there is none.

    Raises:
        ValueError: it is of another run (what differs is named), or no checkpoint at all.

    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        parts = ("identity", "model", "optimizer", "scaler", "ema", "history")
        state = {name: found[name] for name in parts}
        differing = _first_difference(state["identity"], identity)
    except Exception as error:
        raise ValueError(f"{path}: no checkpoint can be read from it ({type(error).__name__})") from error
    if differing:
        raise ValueError(f"{path}: it is the checkpoint of another run: {differing}; give another folder")
    return state


def _first_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    for name in {**now, **then}:
        before, after = then.get(name), now.get(name)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            return f"{name}.{_first_difference(before, after)}"
        return f"{name} was {before!r}, now {after!r}"
    return None
