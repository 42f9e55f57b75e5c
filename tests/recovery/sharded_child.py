"""Ranks that train with a part of the weights each: `python sharded_child.py RANK RANKS STORE OUT`."""

import copy
import dataclasses
import gc
import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from small_clip import SmallClip
from torch.distributed.tensor import DTensor

import vlprune
from vlprune.recovery import (
    DistillConfig,
    RecoverConfig,
    SparseLoRAConfig,
    add_sparse_lora_,
    distill_,
    loop,
    merge_sparse_lora_,
    recover_,
    sharding,
)
from vlprune.recovery.batches import Source
from vlprune.recovery.objective import Distillation

WIDTH = 20  # rows of which three ranks have 7, 7 and 6


def mask_bytes():
    """Return how much memory of this process is in bool tensors."""
    gc.collect()  # of what other trainings left
    found = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and not isinstance(t, DTensor)]
    stores = [t.untyped_storage() for t in found if t.dtype == torch.bool]
    return sum({store.data_ptr(): store.nbytes() for store in stores}.values())


class Watching(Distillation):
    """Notes how many numbers and masks of the student's blocks a rank holds while none runs."""

    def forward(self, batch):
        towers = (self.student.visual, self.student.text)
        parameters = [p for tower in towers for p in tower.blocks.parameters() if p.dtype != torch.bool]
        self.held = sum(p.to_local().numel() for p in parameters)
        self.masks = mask_bytes()
        return super().forward(batch)


def models():
    """Return a dense model, a copy pruned to 2:4, and batches."""
    torch.manual_seed(0)
    dense = SmallClip(WIDTH).eval()
    student = copy.deepcopy(dense)
    vlprune.prune_(student, vlprune.MagnitudeConfig(pattern="2:4"))
    return dense, student, [(torch.randn(6, 3, 4, 4), torch.randint(1, 30, (6, 8))) for _ in range(3)]


def run(out, seed=0, suffix=""):
    """Train in two ways, or go on from half way; losses, weights and where it took over."""
    found = {}
    common = {"learning_rate": 1e-3, "warmup": 0, "ema": 0.5, "shard": True, "save_every": 3, "steps": 6}
    for kind in ("recover", "distill"):
        dense, student, batches = models()
        folder = out / f"{kind}{suffix}"
        if kind == "recover":
            types = [type(module) for module in dense.modules()]
            # the first rank's adapters count
            torch.manual_seed(seed)
            add_sparse_lora_(dense, SparseLoRAConfig(rank=3), vlprune.masks(student))
            config = RecoverConfig(**common, lam=0.3, checkpointing=True)
            model, report = dense, recover_(dense, batches, config, out=folder, progress=False)
            merge_sparse_lora_(model)
            assert [type(module) for module in model.modules()] == types
        else:
            before = {name: id(p) for name, p in student.named_parameters()}
            config = DistillConfig(**common, feat=10.0, weight_decay=0.1)
            model, report = student, distill_(student, dense, batches, config, out=folder, progress=False)
            # the very parameters that the model had, not others
            assert {name: id(p) for name, p in model.named_parameters()} == before
        zeros = vlprune.masks(models()[1])
        assert all(torch.equal(model.get_parameter(name) != 0, mask) for name, mask in zeros.items())
        found[kind] = (report.losses, dict(model.state_dict()), report.resumed)
    return found


def keep_half_way(folder, state):
    """Save as ever, and the checkpoint of half way in a folder of its own."""
    whole_save(folder, state)
    if len(state["history"]) == 3:
        whole_save(folder.with_name(f"{folder.name}-half"), state)


def refused(out, rank):
    """Return what is said of losses, weights and checkpoints that cannot be trained on."""
    dense, student, batches = models()
    own = {name: p.detach().clone() for name, p in student.named_parameters()}
    bad = [(torch.full_like(images, float("nan")), texts) for images, texts in batches]
    config = DistillConfig(steps=2, shard=True)
    said = []

    def attempt(data, folder=None, **changes):
        try:
            distill_(student, dense, data, dataclasses.replace(config, **changes), out=folder, progress=False)
        except (NotImplementedError, OSError, RuntimeError, ValueError) as error:
            said.append(f"{type(error).__name__}: {error}")

    def unchanged():
        return all(torch.equal(p, own[name]) for name, p in student.named_parameters())

    attempt(bad)
    said.append(unchanged())
    # the first rank alone finds the checkpoint of another run
    attempt(batches, out / "together" / ("nothing" if rank else "distill"))
    weight = student.visual.embed.weight
    weight.data = weight.data.T.contiguous().T
    attempt(batches)
    weight.data = weight.data.contiguous()
    said.append(unchanged())
    student.visual.blocks[1].attn.proj = student.visual.blocks[0].attn.proj  # one layer in two blocks
    attempt(batches)
    return said


def held(adapted):
    """Return how many numbers of the blocks a rank has, their masks, and whether the zeros are the masks'."""
    dense, student, batches = models()
    config = DistillConfig(steps=2, shard=True, hidden=0, learning_rate=1e-2)
    own = copy.deepcopy(dense)
    if adapted:
        add_sparse_lora_(own, SparseLoRAConfig(rank=3), vlprune.masks(student))
    objective = Watching(own, dense, config)
    keeps = None if adapted else lambda: vlprune.masks(student)
    loop.fit("distill", objective, Source(batches, config, True), config, held=keeps)
    if adapted:
        merge_sparse_lora_(own)
    zeros = all(torch.equal(own.get_parameter(n) != 0, keep) for n, keep in vlprune.masks(student).items())
    return objective.held, objective.masks, zeros


whole_save, loop.save_state = loop.save_state, keep_half_way

if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, ranks, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[4])
    wait = timedelta(minutes=7)
    dist.init_process_group("gloo", f"file://{sys.argv[3]}", rank=rank, world_size=ranks, timeout=wait)
    fresh, continued = run(out / "together", rank), run(out / "alone", rank, "-half")
    torch.save([fresh, continued], out / f"{rank}.pt")
    (out / f"{rank}.json").write_text(json.dumps([refused(out, rank), held(False), held(True)]))
    # one group for all trainings, which waits as long as the others
    (group,) = sharding._groups.values()
    assert group._get_backend(torch.device("cpu")).options._timeout == wait
    dist.destroy_process_group()
