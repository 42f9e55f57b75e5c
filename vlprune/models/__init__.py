"""Models: towers, blocks and linear layers; attention that comes apart; loading by name."""

from .load import LoadedModel, load_model
from .split import merge_attention_, split_attention_
from .view import Block, ModelView, Tower, view

__all__ = [
    "Block",
    "LoadedModel",
    "ModelView",
    "Tower",
    "load_model",
    "merge_attention_",
    "split_attention_",
    "view",
]
