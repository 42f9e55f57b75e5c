"""What module pruning errors cost next to the published procedure, at equal numbers.

python -m benchmarks.mope_cost --out FILE [--model ViT-B-32]

The published procedure runs both towers for every head of the image tower. FLOPs are counted for all heads
on a batch of four pairs; both procedures' grow with the number of pairs alike. Times are of subsets of the
heads, as many of every layer, with both procedures in turn, a round at a time; seconds of the processor, all
threads together, are kept beside those of the clock, which other work on the machine adds to. Scores must be
equal. Weights are random: what they are changes no cost. The same command continues where it was; with more
rounds it adds them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from vlprune import evaluate, load_data, measure
from vlprune.files import read_json, write_json
from vlprune.models import split_attention_
from vlprune.models.build import build_preprocess
from vlprune.structured.ablated import EmbeddedData
from vlprune.structured.modules import Removable, removable_modules
from vlprune.structured.mope import scores_of_whole_models

# Pairs on which FLOPs are counted, in one batch.
COUNTED = 4


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
        # products of a single row, as of a batch of one, are rounded in another way than those of several
        data = load_data(f"demo:train:{COUNTED}", preprocess, tokenizer)
        our_flops, ours = measure.flops_of(partial(by_reuse, model, data, heads, COUNTED))
        two_flops, theirs = measure.flops_of(partial(by_whole_models, model, data, heads[:1], COUNTED))
        if any(ours[key] != score for key, score in theirs.items()):
            raise ValueError(f"scores differ: {theirs}, {ours}")
        # the full model and one without a head cost the same
        their_flops = two_flops // 2 * (1 + len(heads))
        ratio = their_flops / our_flops
        row["flops"] = {"pairs": COUNTED, "whole_models": their_flops, "reuse": our_flops, "ratio": ratio}
        write_json(args.out, row)
    if args.rounds:
        data = load_data(f"demo:train:{args.pairs}", preprocess, tokenizer).in_memory()
        time_rounds(model, data, heads, row, args)
    return row | {"machine": measure.machine_info()}


def time_rounds(
    model: Any, data: Any, heads: list[Removable], row: dict[str, Any], args: argparse.Namespace
) -> None:
    """Add rounds of seconds for subsets of as many heads of every layer, and what follows for all heads."""
    few = [head for head in heads if head.index < args.heads]
    more = [head for head in heads if head.index < 3 * args.heads]
    # without whichever head, whole models cost the same
    removed = {"whole_models": few[:: -(-len(few) // 3)], "reuse": few, "reuse_more": more}
    results: dict[str, dict[str, float]] = {}
    cpu: dict[str, float] = {}

    def kept(name: str) -> None:
        start = time.process_time()
        procedure = by_whole_models if name == "whole_models" else by_reuse
        results[name] = procedure(model, data, removed[name], args.pairs)
        cpu[name] = time.process_time() - start

    settings = {"pairs": args.pairs, "heads": {name: len(own) for name, own in removed.items()}}
    if any(row.get("time", settings)[key] != settings[key] for key in settings):
        raise SystemExit(f"{args.out}: has rounds of other pairs or heads; give a new --out")
    found = row.setdefault("time", {**settings, "clock": [], "cpu": []})
    while len(found["clock"]) < args.rounds:
        times = measure.compare({name: partial(kept, name) for name in removed}, warmup=0, rounds=1)
        for name in ("reuse", "reuse_more"):
            if any(results[name][key] != score for key, score in results["whole_models"].items()):
                raise ValueError(f"scores differ: {results}")
        found["clock"].append({name: timing.median for name, timing in times.items()})
        found["cpu"].append(dict(cpu))
        found["all_heads"] = for_all_heads(found["clock"], settings["heads"], len(heads))
        found["all_heads_cpu"] = for_all_heads(found["cpu"], settings["heads"], len(heads))
        write_json(args.out, row)


def for_all_heads(rounds: list[dict[str, float]], counts: dict[str, int], total: int) -> dict[str, float]:
    """Seconds of both procedures for all heads, from the medians of those for some.

    Each further head costs the same; what comes before the first one is seen from two subsets.
    """
    times = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    each = (times["reuse_more"] - times["reuse"]) / (counts["reuse_more"] - counts["reuse"])
    ours = times["reuse_more"] + each * (total - counts["reuse_more"])
    theirs = times["whole_models"] * (1 + total) / (1 + counts["whole_models"])
    return {"whole_models": theirs, "reuse": ours, "ratio": theirs / ours}


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
