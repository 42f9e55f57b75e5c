"""One of several processes that train together: `python ranks_child.py RANK RANKS STORE OUT`."""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from small_clip import SmallClip

import vlprune
from vlprune.data import LabelledData, PairData
from vlprune.recovery import (
    DistillConfig,
    RecoverConfig,
    SparseLoRAConfig,
    add_sparse_lora_,
    distill_,
    recover_,
)


@dataclass(frozen=True)
class Plain:
    """A picture of one colour."""

    number: int
    name = "plain"

    def open(self):
        return Image.new("RGB", (4, 4), (20 * self.number, 255 - 20 * self.number, 7 * self.number))


def pixels(picture):
    return torch.tensor(np.asarray(picture)).flatten(0, 1).float().T.reshape(3, 4, 4) / 127.5 - 1


def tokens(texts):
    return torch.tensor([[1 + sum(map(ord, text)) % 29, len(text)] for text in texts])


def run(out):
    """Train in three ways; what was reported, and the weights."""
    found = {}
    for kind in ("recover", "pairs", "labelled"):
        torch.manual_seed(0)
        dense = SmallClip().eval()
        student = copy.deepcopy(dense)
        vlprune.prune_(student, vlprune.MagnitudeConfig(pattern="2:4"))
        common = {"steps": 4, "learning_rate": 1e-2, "warmup": 0, "ema": 0.5}
        batches = [(torch.randn(4, 3, 4, 4), torch.randint(1, 30, (4, 8))) for _ in range(3)]
        if kind == "recover":
            # the ranks begin with other adapters, and get those of the first
            torch.manual_seed(dist.get_rank() if dist.is_initialized() else 0)
            add_sparse_lora_(dense, SparseLoRAConfig(rank=2), vlprune.masks(student))
            report = recover_(
                dense, batches, RecoverConfig(**common, lam=0.3), out=out / kind, progress=False
            )
            trained = dense
        else:
            images = [Plain(i) for i in range(8)]
            if kind == "pairs":
                data = PairData(images, [[f"text {i * i}"] for i in range(8)], pixels, tokens)
            else:
                names = ["a", "bb", "cccc"]
                data = LabelledData(images, [0, 1, 2, 0, 1, 0, 0, 1], names, pixels, tokens)
            config = DistillConfig(**common, batch_size=4, feat=10.0)
            report, trained = distill_(student, dense, data, config, out=out / kind, progress=False), student
        found[kind] = (report.terms, {name: p.detach() for name, p in trained.named_parameters()})
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, ranks = int(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", f"file://{sys.argv[3]}", rank=rank, world_size=ranks)
    torch.save(run(Path(sys.argv[4]) / "runs"), f"{sys.argv[4]}/{rank}.pt")
    dist.destroy_process_group()
