"""What cannot work, found before any work: counts, patterns, what training needs."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..models import merge_attention_, split_attention_
from ..recovery.adapters import layers_to_adapt
from ..structured import compact_
from ..targets import select_layers
from .recovery import Recovery
from .train import check_trainable
from .variant import Variant

__all__ = ["rehearse"]


def rehearse(model: nn.Module, variants: Sequence[Variant], train: Any) -> None:
    """Raise ValueError for counts that do not fit, patterns without layers, and what cannot be trained."""
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        config = variant.structured
        groups.setdefault("" if config is None else json.dumps(config.to_dict()), []).append(variant)
    for group in groups.values():
        small = model
        config = group[0].structured
        if config is not None and config.target_speedup is None:
            small = copy.deepcopy(model)
            # chance needs no data, and leaves as much as any other criterion
            compact_(small, dataclasses.replace(config, criterion="random"))
        split = split_attention_(small)
        try:
            for variant in group:
                if variant.weights is not None:
                    select_layers(small, variant.weights)
                for recovery in (variant.recovery, variant.between):
                    if recovery is not None:
                        _rehearse_training(small, train, recovery)
        finally:
            merge_attention_(small, split)


def _rehearse_training(model: nn.Module, data: Any, recovery: Recovery) -> None:
    check_trainable(model, data, recovery)
    if recovery.adapters is not None:
        layers_to_adapt(model, recovery.adapters)
