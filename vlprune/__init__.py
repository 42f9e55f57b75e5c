"""Prune CLIP-style vision-language models, run them faster, and prove what that cost."""

from . import allocation, nn, ops, recovery, scoring, structured
from ._version import __version__
from .allocation import OWL, ECoFLaP, PerLayer, PerTower, Uniform
from .checkpoint import from_pretrained, save_pretrained
from .config import MagnitudeConfig, RIAConfig, SparseGPTConfig, WandaConfig
from .data import load_data
from .evaluate import Metrics, evaluate
from .masks import apply_masks_, masks
from .models import load_model, merge_attention_, split_attention_
from .ops import backends, why_not
from .patterns import PatternError
from .prune import PruneReport, prune_
from .recovery import (
    DistillConfig,
    RecoverConfig,
    SparseLoRAConfig,
    TrainReport,
    add_sparse_lora_,
    dense_teacher,
    distill_,
    load_adapters_,
    merge_sparse_lora_,
    recover_,
    save_adapters,
)
from .sparsify import SparsifyReport, sparsify_
from .structured import Keep, StructuredConfig, compact_, module_pruning_errors, rewire_
from .targets import NoMatchError
from .token_weights import ATV, AttentionMask, Modality

__all__ = [
    "ATV",
    "OWL",
    "AttentionMask",
    "DistillConfig",
    "ECoFLaP",
    "Keep",
    "MagnitudeConfig",
    "Metrics",
    "Modality",
    "NoMatchError",
    "PatternError",
    "PerLayer",
    "PerTower",
    "PruneReport",
    "RIAConfig",
    "RecoverConfig",
    "SparseGPTConfig",
    "SparseLoRAConfig",
    "SparsifyReport",
    "StructuredConfig",
    "TrainReport",
    "Uniform",
    "WandaConfig",
    "__version__",
    "add_sparse_lora_",
    "allocation",
    "apply_masks_",
    "backends",
    "compact_",
    "dense_teacher",
    "distill_",
    "evaluate",
    "from_pretrained",
    "load_adapters_",
    "load_data",
    "load_model",
    "masks",
    "merge_attention_",
    "merge_sparse_lora_",
    "module_pruning_errors",
    "nn",
    "ops",
    "prune_",
    "recover_",
    "recovery",
    "rewire_",
    "save_adapters",
    "save_pretrained",
    "scoring",
    "sparsify_",
    "split_attention_",
    "structured",
    "why_not",
]
