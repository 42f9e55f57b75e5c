"""Which weights of one matrix stay: a keep mask from the weight and what calibration saw."""

from .magnitude import magnitude_mask
from .ria import channel_permutation, ria_mask, ria_scores
from .sparsegpt import sparsegpt_prune
from .wanda import wanda_mask

__all__ = [
    "channel_permutation",
    "magnitude_mask",
    "ria_mask",
    "ria_scores",
    "sparsegpt_prune",
    "wanda_mask",
]
