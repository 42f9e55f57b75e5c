"""Speed-ups named in advance: what the measured costs of layers predict, and what then comes out.

python -m benchmarks.speedup --out FILE     the demo by its module pruning errors, ViT-B-32 by drawn ones
python -m benchmarks.speedup --out FILE --models demo --targets 2

A model of random weights is as fast as a trained one, and its errors would say nothing: those of ViT-B-32 are
drawn from a seed. `measured` is the median of comparisons made after the choice, the model being done. With
--sparse what remains is then pruned to 2:4 by magnitude and sparsified. Each row is written as soon as it is
there; the same command continues. Times of layers are kept in the cache folder (VLPRUNE_CACHE).
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlprune import MagnitudeConfig, load_data, load_model, measure, prune_, sparsify_
from vlprune.files import write_json
from vlprune.structured import ModuleError, StructuredConfig, compact_, module_pruning_errors, rewire_
from vlprune.structured.criteria import loss_for
from vlprune.structured.modules import KINDS, removable_modules
from vlprune.structured.speedup.timing import measure_costs
from vlprune.structured.speedup.verify import choose_and_verify, measure_speedup

from .continued import continue_from

SAME = ("format", "towers", "batch", "seed", "samples", "groups")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fill in what the file does not have yet."""
    record: dict[str, Any] = {
        "format": "vlprune-speedup",
        "towers": args.tower,
        "batch": args.batch,
        "seed": args.seed,
        "samples": args.samples,
        "groups": args.groups,
        "dtype": "float32",
        "machine": measure.machine_info(),
        "rows": {},
    }
    continue_from(args.out, record, SAME)
    wanted = [(target, sparse) for target in args.targets for sparse in ((False, True)[: 1 + args.sparse])]
    for name in args.models:
        keys = {f"{name} {target:g}x{' 2:4' * sparse}": (target, sparse) for target, sparse in wanted}
        if left := {key: pair for key, pair in keys.items() if key not in record["rows"]}:
            model, errors = (judged_demo if name == "demo" else drawn)(name, args)
            for key, (target, sparse) in left.items():
                record["rows"][key] = row(model, errors, target, sparse, args)
                write_json(args.out, record)
                print(line(key, record["rows"][key]), flush=True)
    return record


def row(
    model: nn.Module, errors: list[ModuleError], target: float, sparse: bool, args: argparse.Namespace
) -> dict[str, Any]:
    """Choose what goes, take it out of a copy, and measure that anew."""
    config = StructuredConfig(target_speedup=target, tower=args.tower, sparse=sparse, timed_batch=args.batch)
    costs = measure_costs(model, config.towers, batch=args.batch, sparse=sparse)
    lists, speedup = choose_and_verify(model, config, costs, errors)
    smaller = copy.deepcopy(model)
    compact_(smaller, lists)
    if sparse:
        prune_(smaller, MagnitudeConfig(pattern="2:4", targets=config.towers))
        sparsify_(smaller, example=args.batch)
    ratios = measure_speedup(model, smaller, config.towers, args.batch, args.repeats)
    return {
        "named": target,
        "predicted": speedup.predicted,
        "measured": statistics.median(ratios),
        "ratios": ratios,
        "when_chosen": speedup.measured,
        "tries": speedup.tries,
        "error": speedup.error,
        "layers": [asdict(layer) for layer in speedup.layers],
    }


def judged_demo(name: str, args: argparse.Namespace) -> tuple[nn.Module, list[ModuleError]]:
    """Judge the demo, its neurons sorted, on training images, as `compact_` does."""
    loaded = load_model(name)
    calib = load_data("demo:train", loaded.preprocess, loaded.tokenizer).subset(args.samples).in_memory()
    towers = StructuredConfig(target_speedup=2.0, tower=args.tower).towers
    rewire_(loaded.model, calib, towers=towers, loss=loss_for(calib), samples=args.samples)
    return loaded.model, module_pruning_errors(loaded.model, calib, towers=towers, groups=args.groups)


def drawn(name: str, args: argparse.Namespace) -> tuple[nn.Module, list[ModuleError]]:
    """Draw weights and errors from the seed: a head or group costs about 1, a layer what is in it."""
    import open_clip

    torch.manual_seed(args.seed)
    model = open_clip.create_model(name).eval()
    draw = random.Random(args.seed)
    towers = StructuredConfig(target_speedup=2.0, tower=args.tower).towers
    errors: list[ModuleError] = []
    for module in removable_modules(model, KINDS, towers, args.groups, False):
        own = [error.error for error in errors if (error.tower, error.layer) == (module.tower, module.layer)]
        errors.append(module.costing((sum(own) if module.kind == "layers" else 1.0) * draw.expovariate(1.0)))
    return model, errors


def line(key: str, found: dict[str, Any]) -> str:
    """One row as text."""
    low, high = min(found["ratios"]), max(found["ratios"])
    layers = " ".join(
        f"{'all' if n['heads'] is None else n['heads']}/{'all' if n['neurons'] is None else n['neurons']}"
        if n["stays"]
        else "-"
        for n in found["layers"]
    )
    return (
        f"{key:18} named {found['named']:.2f}  predicted {found['predicted']:.2f}  "
        f"measured {found['measured']:.2f} ({low:.2f} to {high:.2f})  error {found['error']:.3f}  "
        f"heads/neurons {layers}"
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=["demo", "ViT-B-32"], help="demo, or names of open_clip"
    )
    parser.add_argument("--targets", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    parser.add_argument("--tower", default="visual", choices=("visual", "text", "both"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sparse", action="store_true", help="also with 2:4 of what remains")
    parser.add_argument("--samples", type=int, default=512, help="training images that the demo is judged by")
    parser.add_argument("--groups", type=int, default=8, help="of neurons in a layer")
    parser.add_argument("--repeats", type=int, default=9, help="comparisons of which the median is taken")
    parser.add_argument("--seed", type=int, default=0, help="of made-up weights and errors")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    record = run(args)
    write_json(args.out, record)
    print(json.dumps(record) if args.json else "\n".join(line(k, r) for k, r in record["rows"].items()))


if __name__ == "__main__":
    main()
