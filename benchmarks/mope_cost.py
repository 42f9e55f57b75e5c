"""What module pruning errors cost next to the published procedure, at equal numbers.

python benchmarks/mope_cost.py --out FILE [--model ViT-B-32]

The published procedure runs both towers for every head of the image tower. FLOPs are counted for all heads
on one pair; both procedures' grow with the number of pairs alike. Times are of subsets of the heads, as many
of every layer, with both procedures in turn. Scores must be equal. Weights are random: what they are changes
no cost. The same command continues where it was.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from vlprune import evaluate, load_data, measure
from vlprune.files import read_json, write_json
from vlprune.models import split_attention_
from vlprune.models.build import build_preprocess
from vlprune.structured.ablated import EmbeddedData
from vlprune.structured.modules import Removable, removable_modules
from vlprune.structured.mope import scores_of_whole_models


def by_reuse(model: Any, data: Any, removed: list[Removable], batch_size: int) -> dict[str, float]:
    """Scores without each module, and of the full model, by what `module_pruning_errors` does."""
    embedded = EmbeddedData(model, data, batch_size, None)
    scores = {"full": embedded.score()}
    for found in embedded.scores_without(removed, lambda _: None):
        scores |= found
    return scores


def by_whole_models(model: Any, data: Any, removed: list[Removable], batch_size: int) -> dict[str, float]:
    """The same by running both towers for every module."""

    def score(model: Any, data: Any) -> float:
        return evaluate(model, data, batch_size=batch_size, progress=False).primary

    scores = {"full": score(model, data)}
    for found in scores_of_whole_models(model, data, score, removed, lambda _: None):
        scores |= found
    return scores


def counted(run: Any) -> tuple[dict[str, float], int]:
    """What a call returns, and its FLOPs."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


def measured(args: argparse.Namespace, row: dict[str, Any]) -> dict[str, Any]:
    """Fill in what the row does not have yet."""
    import open_clip

    model = open_clip.create_model(args.model).eval()
    split_attention_(model)
    preprocess = build_preprocess({"size": model.visual.image_size})
    tokenizer = open_clip.get_tokenizer(args.model)
    heads = removable_modules(model, ["heads"], ["visual"], groups=1, across_layers=False)
    row |= {"format": "vlprune-mope-cost", "model": args.model, "heads": len(heads)}
    if "flops" not in row:
        data = load_data("demo:train:1", preprocess, tokenizer)
        ours, our_flops = counted(partial(by_reuse, model, data, heads, 1))
        theirs, two_flops = counted(partial(by_whole_models, model, data, heads[:1], 1))
        if any(ours[key] != score for key, score in theirs.items()):
            raise ValueError(f"scores differ: {theirs}, {ours}")
        # the full model and one without a head cost the same
        their_flops = two_flops // 2 * (1 + len(heads))
        ratio = their_flops / our_flops
        row["flops"] = {"pairs": 1, "whole_models": their_flops, "reuse": our_flops, "ratio": ratio}
        write_json(args.out, row)
    if "time" not in row and args.rounds:
        data = load_data(f"demo:train:{args.pairs}", preprocess, tokenizer).in_memory()
        row["time"] = timed(model, data, heads, args)
    return row | {"machine": measure.machine_info()}


def timed(model: Any, data: Any, heads: list[Removable], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of subsets that take as many heads of every layer, and what follows for all heads.

    Each further head costs the same; what comes before the first one is seen from two subsets.
    """
    few = [head for head in heads if head.index < args.heads]
    more = [head for head in heads if head.index < 3 * args.heads]
    results: dict[str, dict[str, float]] = {}

    def kept(name: str, procedure: Any, removed: list[Removable]) -> None:
        results[name] = procedure(model, data, removed, args.pairs)

    calls = {
        "whole_models": partial(kept, "whole_models", by_whole_models, few),
        "reuse": partial(kept, "reuse", by_reuse, few),
        "reuse_more": partial(kept, "reuse_more", by_reuse, more),
    }
    times = measure.compare(calls, warmup=0, rounds=args.rounds, max_seconds=100)
    for name in ("reuse", "reuse_more"):
        if any(results[name][key] != score for key, score in results["whole_models"].items()):
            raise ValueError(f"scores differ: {results}")
    each = (times["reuse_more"].median - times["reuse"].median) / (len(more) - len(few))
    ours = times["reuse_more"].median + each * (len(heads) - len(more))
    theirs = times["whole_models"].median * (1 + len(heads)) / (1 + len(few))
    return {
        "pairs": args.pairs,
        "heads": {"whole_models": len(few), "reuse": len(few), "reuse_more": len(more)},
        **{name: timing.to_dict() for name, timing in times.items()},
        "all_heads": {"whole_models": theirs, "reuse": ours, "ratio": theirs / ours},
    }


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B-32", help="any open_clip model")
    parser.add_argument("--pairs", type=int, default=1, help="of the timed runs")
    parser.add_argument(
        "--heads", type=int, default=1, help="of every layer in the timed runs, then thrice as many"
    )
    parser.add_argument("--rounds", type=int, default=2, help="0 counts FLOPs alone")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    row = measured(args, read_json(args.out) if args.out.exists() else {})
    write_json(args.out, row)
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
