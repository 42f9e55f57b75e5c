"""Two ranks against one on the demo model: `python -m benchmarks.ranks`.

Training: 50 steps of SparseLoRA and of distillation at 90 %, under DistributedDataParallel and under FSDP2;
the largest difference of a step's loss from that of one process, and of the weights at the end.
Scores: what calibration, ECoFLaP, module pruning errors and evaluation return, compared to the bit.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vlprune
from vlprune import demo, measure
from vlprune.distributed import rank, under_torchrun, world_size
from vlprune.files import write_json
from vlprune.recovery import (
    DistillConfig,
    RecoverConfig,
    SparseLoRAConfig,
    add_sparse_lora_,
    distill_,
    merge_sparse_lora_,
    recover_,
)
from vlprune.structured import module_pruning_errors

RESULT = Path(__file__).parent / "results" / "amd-epyc-zen3-2core" / "ranks.json"
STEPS, BATCH, SAMPLES = 50, 16, 64
# of a step's loss, which is of order 1: its logits are up to 25, known to 2e-6 in float32
TOLERANCE = 1e-5


def pruned(model: nn.Module) -> nn.Module:
    """A copy at 90 % by magnitude: at 70 % the first loss is 0.007, and there is little to learn."""
    small = copy.deepcopy(model)
    vlprune.prune_(small, vlprune.MagnitudeConfig(pattern="unstructured", sparsity=0.9), progress=False)
    return small


def trained(kind: str, shard: bool) -> dict[str, Any]:
    """Losses of every step, and the weights at the end."""
    model, preprocess, tokenizer = demo.load()
    data = vlprune.load_data(f"demo:train:{SAMPLES}", preprocess, tokenizer)
    student = pruned(model)
    common = {"steps": STEPS, "batch_size": BATCH, "learning_rate": 1e-4, "shard": shard}
    if kind == "recover":
        torch.manual_seed(0)
        add_sparse_lora_(model, SparseLoRAConfig(rank=4), vlprune.masks(student))
        losses = recover_(model, data, RecoverConfig(**common), progress=False).losses
        merge_sparse_lora_(model)
        zeros, student = vlprune.masks(student), model
    else:
        zeros = vlprune.masks(student)
        losses = distill_(student, model, data, DistillConfig(**common), progress=False).losses
    held = all(torch.equal(keep, student.get_parameter(name) != 0) for name, keep in zeros.items())
    return {"losses": losses, "weights": dict(student.state_dict()), "held": held}


def scored() -> dict[str, Any]:
    """What calibration, ECoFLaP, module pruning errors and evaluation find."""
    found: dict[str, Any] = {}
    configs = {
        "Wanda": vlprune.WandaConfig(pattern="2:4", samples=SAMPLES, batch_size=8),
        "SparseGPT": vlprune.SparseGPTConfig(pattern="2:4", samples=SAMPLES, batch_size=8),
        "ECoFLaP": vlprune.WandaConfig(
            pattern="unstructured",
            sparsity=0.6,
            samples=SAMPLES,
            batch_size=8,
            allocation=vlprune.ECoFLaP(samples=16),
        ),
    }
    for name, config in configs.items():
        model, preprocess, tokenizer = demo.load()
        data = vlprune.load_data(f"demo:train:{SAMPLES}", preprocess, tokenizer)
        report = vlprune.prune_(model, config, data, progress=False)
        found[f"{name}: pruned weights"] = dict(model.state_dict())
        if name == "ECoFLaP":
            found["ECoFLaP: scores"] = {
                layer.name: torch.tensor(layer.importance, dtype=torch.float64) for layer in report.layers
            }
    errors = module_pruning_errors(model, data.subset(24), groups=2, batch_size=8, progress=False)
    found["module pruning errors"] = {
        f"{e.tower} {e.kind} {e.layer} {e.index}": torch.tensor(e.error, dtype=torch.float64) for e in errors
    }
    metrics = vlprune.evaluate(model, data, batch_size=8).to_dict()
    found["evaluate"] = {
        name: torch.tensor(value, dtype=torch.float64)
        for name, value in metrics.items()
        if isinstance(value, float)
    }
    return found


def everything(folder: Path) -> None:
    """Do all of it as one process or as a rank, and keep what came out."""
    torch.set_num_threads(1)
    with under_torchrun("cpu"):
        found: dict[str, Any] = {"scores": scored()}
        for kind in ("recover", "distill"):
            for shard in (False, True) if world_size() > 1 else (False,):
                found[f"{kind} {'FSDP2' if shard else 'DDP'}"] = trained(kind, shard)
        torch.save(found, folder / f"{world_size()}-{rank()}.pt")


def in_processes(folder: Path, count: int) -> list[dict[str, Any]]:
    """What each of so many processes found."""
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    command = [sys.executable, *run, __file__, "--child", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(command, check=True, env=environment)
    return [torch.load(folder / f"{count}-{number}.pt", weights_only=True) for number in range(count)]


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of an entry, relative to the largest entry of its tensor."""
    pairs = [(value.double(), other[name].double()) for name, value in one.items()]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in pairs)


def identical(one: dict[str, Tensor], *others: dict[str, Tensor]) -> bool:
    """Whether all tensors are equal to the bit."""
    return all(torch.equal(value, other[name]) for other in others for name, value in one.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        everything(arguments.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        (one,), two = (in_processes(Path(folder), count) for count in (1, 2))
    scores = {
        name: identical(value, *(ranks["scores"][name] for ranks in two))
        for name, value in one["scores"].items()
    }
    rows = []
    for kind in ("recover", "distill"):
        alone = one[f"{kind} DDP"]
        for way in ("DDP", "FSDP2"):
            ranks = [found[f"{kind} {way}"] for found in two]
            pairs = zip(alone["losses"], ranks[0]["losses"], strict=True)
            row = {
                "kind": kind,
                "way": way,
                "steps": STEPS,
                "first loss": alone["losses"][0],
                "last loss": alone["losses"][-1],
                "loss, largest difference": max(abs(a - b) for a, b in pairs),
                "weights, largest relative difference": difference(alone["weights"], ranks[0]["weights"]),
                "ranks identical": ranks[0]["losses"] == ranks[1]["losses"]
                and identical(ranks[0]["weights"], ranks[1]["weights"]),
                "zeros held": all(found["held"] for found in [alone, *ranks]),
            }
            print(row)
            rows.append(row)
    print(scores)
    failed = [name for name, same in scores.items() if not same]
    failed += [
        f"{row['kind']} {row['way']}"
        for row in rows
        if not (row["ranks identical"] and row["zeros held"])
        or not math.isfinite(row["last loss"])
        or row["loss, largest difference"] > TOLERANCE
    ]
    if failed:
        raise SystemExit(f"not what one process finds: {', '.join(failed)}")
    write_json(
        arguments.out,
        {
            "machine": measure.machine_info(),
            "ranks": 2,
            "tolerance": TOLERANCE,
            "training": rows,
            "identical": scores,
        },
    )


if __name__ == "__main__":
    main()
