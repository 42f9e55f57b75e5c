"""Layers that stand in for those of a pruned model."""

from .attention import PackedAttention, SplitAttention
from .linear24 import Linear24

__all__ = ["Linear24", "PackedAttention", "SplitAttention"]
