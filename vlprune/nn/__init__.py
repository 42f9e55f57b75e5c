"""Layers that stand in for those of a pruned model."""

from .attention import PackedAttention, SplitAttention
from .linear24 import Linear24
from .quantized24 import QuantizedLinear24

__all__ = ["Linear24", "PackedAttention", "QuantizedLinear24", "SplitAttention"]
