"""A training for `test_resume`: `python resume_child.py OUT KIND SECONDS_PER_STEP`."""

import copy
import sys
import time

import torch
from small_clip import SmallClip

import vlprune
from vlprune.recovery import (
    DistillConfig,
    RecoverConfig,
    SparseLoRAConfig,
    add_sparse_lora_,
    distill_,
    recover_,
)

STEPS = 12


def run(out, kind, pause=0.0):
    """Train a small pruned model, `pause` seconds a step; return the report and the model."""
    torch.manual_seed(0)
    dense = SmallClip(dropout=0.1).eval()
    student = copy.deepcopy(dense)
    vlprune.prune_(student, vlprune.MagnitudeConfig(pattern="2:4"))
    batches = [(torch.randn(4, 3, 4, 4), torch.randint(1, 30, (4, 8))) for _ in range(3)]
    dense.visual.register_forward_hook(lambda *_: time.sleep(pause))
    common = {"steps": STEPS, "learning_rate": 3e-3, "save_every": 3, "ema": 0.5}
    if kind == "distill":
        report = distill_(student, dense, batches, DistillConfig(**common), out=out, progress=False)
        return report, student
    add_sparse_lora_(dense, SparseLoRAConfig(rank=2), vlprune.masks(student))
    return recover_(dense, batches, RecoverConfig(**common), out=out, progress=False), dense


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], sys.argv[2], float(sys.argv[3]))
