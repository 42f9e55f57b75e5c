"""What each pruning method costs in accuracy: one table a command, resumable, committed under results/.

python -m benchmarks.accuracy methods --out FILE    every method at 50, 60, 70 % and 2:4
python -m benchmarks.accuracy split --out FILE      sparsity shared out between the towers, 10:90 ... 90:10

Both take --model, --data, --calib and --targets of the command line; a seed picks the calibration images.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from vlprune import (
    MagnitudeConfig,
    PerTower,
    RIAConfig,
    SparseGPTConfig,
    WandaConfig,
    evaluate,
    load_data,
    load_model,
    measure,
    prune_,
)
from vlprune.allocation import OWL, ECoFLaP
from vlprune.config import PruneConfig
from vlprune.files import write_json

from .continued import continue_from

METHODS = {
    "magnitude": (MagnitudeConfig, None),
    "wanda": (WandaConfig, None),
    "sparsegpt": (SparseGPTConfig, None),
    "ria": (RIAConfig, None),
    "wanda ecoflap": (WandaConfig, ECoFLaP),
    "wanda owl": (WandaConfig, OWL),
    "sparsegpt ecoflap": (SparseGPTConfig, ECoFLaP),
}


def method_variants(args: argparse.Namespace, seed: int) -> dict[str, PruneConfig]:
    """Every method at every sparsity, and at 2:4 those that 2:4 leaves anything to decide."""
    common = {"targets": tuple(args.targets), "samples": args.samples}
    chosen = {}
    for method, (config, allocation) in METHODS.items():
        for sparsity in args.sparsity:
            share = {} if allocation is None else {"allocation": allocation()}
            if allocation is ECoFLaP:
                share = {"allocation": ECoFLaP(seed=seed)}
            made = config(pattern="unstructured", sparsity=sparsity, **share, **common)
            chosen[f"{method} {100 * sparsity:g}%"] = made
        if allocation is None:
            chosen[f"{method} 2:4"] = config(pattern="2:4", **common)
    return chosen


def split_variants(args: argparse.Namespace, seed: int) -> dict[str, PruneConfig]:
    """Wanda with the image tower at 10 ... 90 % and the text tower at the rest of the total."""
    chosen = {}
    for visual in range(10, 100, 10):
        text = round(100 * args.total) - visual
        if 0 <= text < 100:
            share = PerTower(visual=visual / 100, text=text / 100)
            chosen[f"{visual}:{text}"] = WandaConfig(
                pattern="unstructured", allocation=share, targets=tuple(args.targets), samples=args.samples
            )
    return chosen


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fill in the rows that the file does not have yet; each is written as soon as it is there."""
    loaded = load_model(args.model)
    data = load_data(args.data, loaded.preprocess, loaded.tokenizer).subset(args.limit).in_memory()
    calib = load_data(args.calib, loaded.preprocess, loaded.tokenizer)
    record: dict[str, Any] = {
        "format": "vlprune-accuracy",
        "table": args.table,
        "model": args.name or args.model,
        "data": args.data_name or args.data,
        "calib": args.calib_name or args.calib,
        "images": len(data),
        "samples": args.samples,
        "targets": args.targets,
        "machine": measure.machine_info(),
        "rows": {},
    }
    continue_from(args.out, record, [key for key in record if key not in ("machine", "rows")])
    rows = record["rows"]
    if "dense" not in rows:
        rows["dense"] = {"0": _row(loaded.model, data, None, 0.0)}
    for seed in range(args.seeds):
        for name, config in {"methods": method_variants, "split": split_variants}[args.table](
            args, seed
        ).items():
            own = rows.setdefault(name, {})
            if str(seed) in own or (seed and not config.needs_calibration):
                continue
            torch.manual_seed(seed)
            picked = random.Random(seed).sample(range(len(calib)), min(args.samples, len(calib)))
            model = copy.deepcopy(loaded.model)
            start = time.perf_counter()
            report = prune_(model, config, calib.subset(picked), progress=False)
            own[str(seed)] = _row(model, data, report, time.perf_counter() - start)
            write_json(args.out, record)
            print(f"{name} seed {seed}: {own[str(seed)]['primary']:.2f}", flush=True)
    write_json(args.out, record)
    return record


def _row(model: Any, data: Any, report: Any, seconds: float) -> dict[str, Any]:
    metrics = evaluate(model, data, progress=False)
    row = {"primary": metrics.primary, "metrics": metrics.to_dict(), "seconds": seconds}
    if report is not None:
        row["zeros"] = report.sparsity
        towers: dict[str, list[int]] = {}
        for layer in report.layers:
            tower = towers.setdefault(layer.tower, [0, 0])
            tower[0] += layer.zeros
            tower[1] += layer.shape[0] * layer.shape[1]
        row["tower_zeros"] = {name: zeros / total for name, (zeros, total) in towers.items()}
    return row


def table(record: dict[str, Any]) -> str:
    """Mean and spread (standard deviation over seeds) of the one figure models are compared by."""
    lines = [f"{record['model']} on {record['data']}, {record['images']} images"]
    for name, seeds in record["rows"].items():
        values = [row["primary"] for row in seeds.values()]
        spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        zeros = next(iter(seeds.values())).get("zeros", 0.0)
        lines.append(f"{name:24}{100 * zeros:6.2f} % zeros{statistics.mean(values):8.2f}{spread}")
    return "\n".join(lines)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("methods", "split"))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--calib", default="demo:train")
    parser.add_argument("--name", help="of the model in the table, where it is a folder")
    parser.add_argument("--data-name", help="of the data in the table")
    parser.add_argument("--calib-name", help="of the calibration data in the table")
    parser.add_argument("--limit", type=int, help="at most this many evaluation images")
    parser.add_argument("--samples", type=int, default=128, help="calibration images")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.6, 0.7])
    parser.add_argument("--total", type=float, default=1.0, help="of the two towers' sparsities (split)")
    parser.add_argument("--targets", nargs="+", default=["*"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    record = run(args)
    print(json.dumps(record) if args.json else table(record))


if __name__ == "__main__":
    main()
