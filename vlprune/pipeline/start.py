"""What weights are pruned in where modules go first: the smaller models of a run, each made once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..structured import Keep, StructuredConfig
from .recovery import Recovery
from .variant import Variant, start_name, unique

__all__ = ["Start", "start_key", "starts_of", "trains_between"]


@dataclass(frozen=True)
class Start:
    """What variants start from that take the same modules out and train the rest alike.

    Args:
        config: what goes.
        recovery: how the rest is trained, None for not at all.
        name: shown in the report.
        folder: the model is saved in it.
        origin: what is trained, None where modules are to be chosen first (and trained in between).

    """

    config: StructuredConfig
    recovery: Recovery | None
    name: str
    folder: Path
    origin: Start | None = None


def start_key(variant: Variant) -> str:
    """Tell starts apart; as text, because a share of 1.0 and a count of 1 are equal numbers."""
    assert variant.structured is not None
    return _key(variant.structured, variant.start_recovery)


def starts_of(variants: Sequence[Variant], out: Path) -> dict[str, Start]:
    """The starts of some variants by `start_key`, each after what it is made of."""
    wanted: dict[str, tuple[StructuredConfig, Recovery | None]] = {}
    for variant in variants:
        if (config := variant.structured) is None:
            continue
        if variant.start_recovery is not None and not trains_between(config):
            wanted.setdefault(_key(config, None), (config, None))
        wanted.setdefault(start_key(variant), (config, variant.start_recovery))
    names = unique([start_name(*pair) for pair in wanted.values()])
    starts: dict[str, Start] = {}
    for number, ((key, (config, recovery)), name) in enumerate(zip(wanted.items(), names, strict=True), 1):
        origin = None if recovery is None or trains_between(config) else starts[_key(config, None)]
        folder = out / ("structured" if number == 1 else f"structured-{number}")
        starts[key] = Start(config, recovery, name, folder, origin)
    return starts


def trains_between(config: StructuredConfig) -> bool:
    """Whether width and depth go in two steps, with a training after each: MoPE-CLIP, section 3.3."""
    if config.target_speedup is not None or config.stage != "finetune":
        return False
    keeps: list[Keep] = [keep for keep in (config.visual, config.text) if keep is not None]
    width = any(keep.heads is not None or keep.neurons is not None for keep in keeps)
    return width and any(keep.layers is not None for keep in keeps)


def _key(config: StructuredConfig, recovery: Recovery | None) -> str:
    return json.dumps([config.to_dict(), None if recovery is None else recovery.to_dict()])
