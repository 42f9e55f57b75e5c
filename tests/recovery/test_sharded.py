"""Ranks with a part of the weights each end where one process does, and continue what any number began."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sharded_child import WIDTH, models, run
from torch import nn

import vlprune
from vlprune.recovery.sharding import clip_norm_

HERE = Path(__file__).parent
RANKS = 3


@pytest.mark.slow
def test_sharded_ranks_train_as_one_process_does(tmp_path):
    expected = run(tmp_path / "alone")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / "sharded_child.py")]
    arguments = [str(RANKS), str(tmp_path / "store"), str(tmp_path)]
    ranks = [
        subprocess.Popen([*command, str(rank), *arguments], env=environment, stderr=subprocess.PIPE)
        for rank in range(RANKS)
    ]
    said = [process.communicate(timeout=300)[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [0] * RANKS, said
    # what ranks began goes on in one process, and the other way round
    runs = {"from the ranks' checkpoint": run(tmp_path / "together", suffix="-half")}
    every = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    for number, (fresh, continued) in enumerate(every):
        runs |= {f"rank {number}": fresh, f"rank {number}, continued": continued}
    for name, found in runs.items():
        for kind, (losses, weights, _) in expected.items():
            assert found[kind][2] == (0 if name in ("rank 0", "rank 1", "rank 2") else 3), name
            # float32 sums in another order
            assert found[kind][0] == pytest.approx(losses, rel=1e-5), (name, kind)
            for key, weight in weights.items():
                # the gradient of the keys' bias is zero but for rounding, of which Adam makes steps
                if not key.endswith("qkv.bias"):
                    torch.testing.assert_close(found[kind][1][key], weight, rtol=1e-3, atol=1e-5)
    for fresh, _ in every[1:]:
        for kind, (losses, weights, _) in fresh.items():
            assert losses == every[0][0][kind][0]
            assert all(torch.equal(value, every[0][0][kind][1][key]) for key, value in weights.items())

    notes = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    told = [other.startswith("RuntimeError: rank 0 of 3 failed") for (_, _, other, *_), *_ in notes]
    assert told == [False, True, True]
    blocks = [*models()[0].visual.blocks, *models()[0].text.blocks]
    whole = sum(p.numel() for block in blocks for p in block.parameters())
    assert sum(held for _, (held, *_), _ in notes) == whole
    assert max(held for _, (held, *_), _ in notes) <= whole * 7 / WIDTH + 1
    masked = sum(keep.numel() for keep in vlprune.masks(models()[1]).values())
    for _, *ways in notes:
        for adapted, (_, held, zeros) in enumerate(ways):
            # a byte each; those of adapters are whole where FSDP2 takes no bool parameters
            whole = adapted and torch.__version__ < "2.12"
            assert held == masked if whole else 0 < held <= masked * 7 / WIDTH + 1
            assert zeros
    for (loss, same, other, strided, still, shared), *_ in notes:
        assert "distill: the loss is nan at step 0" in loss
        assert "ValueError: " in other
        assert "it is the checkpoint of another run" in other
        assert "contiguous" in strided
        assert same
        assert still
        assert "shard: visual.blocks.1.attn.proj.weight is shared with visual.blocks.0" in shared


@pytest.mark.parametrize("limit", [0.5, 100.0, float("inf")])
def test_norm_and_clipping(limit):
    layer = nn.Linear(7, 5).double()
    for p in layer.parameters():
        p.grad = torch.randn_like(p)
    grads = torch.cat([p.grad.flatten() for p in layer.parameters()])
    norm = grads.square().sum().sqrt().item()
    assert clip_norm_(layer.parameters(), limit) == pytest.approx(norm, rel=1e-12)
    after = torch.cat([p.grad.flatten() for p in layer.parameters()])
    # 1e-6 is added to the norm, as torch.nn.utils.clip_grad_norm_ does
    torch.testing.assert_close(after, grads * min(1.0, limit / (norm + 1e-6)), rtol=1e-12, atol=0)
