"""A rank that is killed: `lost_child.py OUT` under torchrun, `lost_child.py OUT RANK STORE` by itself."""

import copy
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from small_clip import SmallClip

import vlprune
from vlprune import distributed
from vlprune.recovery import (
    DistillConfig,
    RecoverConfig,
    SparseLoRAConfig,
    add_sparse_lora_,
    distill_,
    recover_,
)

STEPS, SAVED, KILLED = 7, 2, 5


def train(out, *, shard, kill):
    """Train a few steps of which the second rank begins KILLED at most; the report and the model."""
    torch.manual_seed(0)
    dense = SmallClip().eval()
    data = [(torch.randn(4, 3, 4, 4), torch.randint(1, 30, (4, 8))) for _ in range(3)]
    student = copy.deepcopy(dense)
    vlprune.prune_(student, vlprune.MagnitudeConfig(pattern="2:4"), progress=False)
    begun = []

    def die(*_):
        begun.append(1)
        if kill and distributed.rank() == 1 and len(begun) > KILLED:
            os.kill(os.getpid(), signal.SIGKILL)

    common = {"steps": STEPS, "learning_rate": 1e-3, "save_every": SAVED, "shard": shard}
    if not shard:
        student.visual.register_forward_pre_hook(die)
        return distill_(student, dense, data, DistillConfig(**common), out=out, progress=False), student
    torch.manual_seed(0)
    add_sparse_lora_(dense, SparseLoRAConfig(rank=2), vlprune.masks(student))
    dense.visual.register_forward_pre_hook(die)
    config = RecoverConfig(**common, lam=0.0)
    return recover_(dense, data, config, out=out, progress=False), dense


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    if len(sys.argv) > 2:
        dist.init_process_group("gloo", f"file://{sys.argv[3]}", rank=int(sys.argv[2]), world_size=2)
        train(out / "ddp", shard=False, kill=True)
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    with distributed.under_torchrun("cpu"):
        report, model = train(out / "killed", shard=True, kill=first)
        _, other = train(out / "whole", shard=True, kill=False)
        found = report.resumed, dict(model.state_dict()), dict(other.state_dict())
        torch.save(found, out / f"{distributed.rank()}.pt")
