"""Models: towers, blocks and linear layers; attention that comes apart; loading by name."""

from .split import merge_attention_, split_attention_
from .view import Block, ModelView, Tower, view

__all__ = ["Block", "ModelView", "Tower", "merge_attention_", "split_attention_", "view"]
