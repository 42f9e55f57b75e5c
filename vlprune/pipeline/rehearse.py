"""What cannot work, found before any work: counts, patterns, what training needs."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence

from torch import nn

from ..models import merge_attention_, split_attention_
from ..structured import compact_
from ..targets import block_linears, match_layers, select_layers
from .recovery import Recovery
from .train import check_trainable
from .variant import Variant

__all__ = ["rehearse"]


def rehearse(model: nn.Module, variants: Sequence[Variant]) -> None:
    """Raise ValueError for counts that do not fit, patterns without layers, weights too coarse to train."""
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
                        _rehearse_training(small, recovery)
        finally:
            merge_attention_(small, split)


def _rehearse_training(model: nn.Module, recovery: Recovery) -> None:
    check_trainable(model, recovery)
    if (adapters := recovery.adapters) is not None:
        match_layers(block_linears(model), adapters.targets, adapters.ignore)
