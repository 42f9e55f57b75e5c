"""Zeroth-order scores of ViT-B/32 against the published procedure: `python -m benchmarks.ecoflap_cost`.

Published (arXiv 2310.02998, official code): two forwards of both towers for every matrix. Operations are
counted over all 96 matrices: on a real run with reuse, and on one forward times 192 for the published
procedure. Because that takes long, it really runs on a subset only: all matrices of two blocks of each tower
that lie evenly around its middle. There both procedures are counted, must give equal scores, and are timed
interleaved. A subset is the harder case for reuse, whose one full forward serves fewer matrices.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlprune import measure, models
from vlprune.data import Batch
from vlprune.files import write_json
from vlprune.losses import contrastive
from vlprune.zeroth_order import zeroth_order_scores

MODEL = "ViT-B-32"
GOAL = 3.0
# 2 and 9 of 0..11: what has to run again behind a block is on average what it is over all twelve
BLOCKS = (2, 9)
RESULT = Path(__file__).parent / "results" / "amd-epyc-zen3-2core" / "ecoflap-cost.json"


def _random_batch(count: int) -> list[Batch]:
    images, texts = torch.randn(count, 3, 224, 224), torch.randint(1, 49406, (count, 77))
    return [Batch(images, texts, list(range(count)), None)]


def _parts(model: nn.Module) -> tuple[dict[str, models.Block], dict[str, nn.Module]]:
    """Linear layer -> its block, and the blocks by name."""
    blocks = [block for tower in models.view(model).towers.values() for block in tower.blocks]
    owner = {layer: block for block in blocks for layer in block.linears()}
    return owner, {block.name: block.module for block in blocks}


def _ratio(published: int, reuse: int) -> dict[str, Any]:
    return {"flops": {"published": published, "reuse": reuse}, "ratio": published / reuse}


def _compare(score: partial[dict[str, float]], rounds: int) -> dict[str, Any]:
    """Operations and seconds of both procedures; equal scores are a condition."""
    candidates = {"published": partial(score, reuse=False), "reuse": partial(score, reuse=True)}
    flops, scores = zip(*(measure.flops_of(run) for run in candidates.values()), strict=True)
    if scores[0] != scores[1]:
        raise ValueError(f"scores differ: published {scores[0]}, with reuse {scores[1]}")
    timings = measure.compare(candidates, warmup=0, rounds=rounds, max_seconds=600)
    return {
        "matrices": list(scores[0]),
        "scores_equal": True,
        "counted": _ratio(*flops),
        "seconds": {name: timing.to_dict() for name, timing in timings.items()},
        "time_ratio": timings["published"].median / timings["reuse"].median,
    }


def main() -> None:
    """Count, time, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default 3)")
    parser.add_argument("--batch", type=int, default=2, help="pairs in the batch (default 2)")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()

    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(MODEL).eval()
    models.split_attention_(model)
    owner, blocks = _parts(model)
    layers = {name: model.get_submodule(name) for name in owner}
    some = {name: layer for name, layer in layers.items() if owner[name].index in BLOCKS}
    batches = _random_batch(args.batch)
    score = partial(zeroth_order_scores, model, blocks=blocks, batches=batches, loss=contrastive)
    score = partial(score, progress=False)
    with torch.no_grad():
        forward, _ = measure.flops_of(lambda: contrastive(model, batches[0]))
    counted = _ratio(2 * len(layers) * forward, measure.flops_of(partial(score, layers))[0])
    subset = _compare(partial(score, some), args.rounds)
    result = {
        "what": "zeroth-order scores of both towers, against two full forwards a matrix",
        "machine": measure.machine_info(),
        "model": f"{MODEL}, random weights, float32",
        "batch": args.batch,
        "goal": GOAL,
        "all": {"matrices": len(layers), "counted": counted},
        "subset": subset,
    }
    write_json(args.out, result)
    print(f"{len(layers)} matrices: {counted['ratio']:.2f}x fewer operations")
    print(
        f"{len(some)} matrices: {subset['counted']['ratio']:.2f}x fewer operations, "
        f"{subset['time_ratio']:.2f}x less time, equal scores"
    )
    print(f"goal {GOAL:g}x; written to {args.out}")


if __name__ == "__main__":
    main()
