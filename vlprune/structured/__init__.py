"""Heads, neurons and whole layers: which to keep, what the model is without the rest, and taking them out."""

from .choose import choose
from .compact import compact_
from .cut import CompactReport, LayerSizes
from .keep import Keep, StructuredConfig
from .mask import mask_modules
from .modules import ModuleError
from .mope import module_pruning_errors
from .rewire import rewire_
from .speedup.choice import Speedup

__all__ = [
    "CompactReport",
    "Keep",
    "LayerSizes",
    "ModuleError",
    "Speedup",
    "StructuredConfig",
    "choose",
    "compact_",
    "mask_modules",
    "module_pruning_errors",
    "rewire_",
]
