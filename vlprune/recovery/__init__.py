"""Winning accuracy back after pruning: adapters that keep the zeros, and distillation."""

from .adapters import add_sparse_lora_, merge_sparse_lora_
from .config import DistillConfig, RecoverConfig, SparseLoRAConfig
from .distill import distill_
from .peft import load_adapters_, save_adapters
from .recover import recover_
from .report import TrainReport
from .sparselora import SparseLoRALinear, dense_teacher

__all__ = [
    "DistillConfig",
    "RecoverConfig",
    "SparseLoRAConfig",
    "SparseLoRALinear",
    "TrainReport",
    "add_sparse_lora_",
    "dense_teacher",
    "distill_",
    "load_adapters_",
    "merge_sparse_lora_",
    "recover_",
    "save_adapters",
]
