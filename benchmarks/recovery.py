"""What training wins back after pruning, by way of training; resumable, committed under results/.

python -m benchmarks.recovery pairs --out FILE     the demo: adapters, fine-tuning, distillation
python -m benchmarks.recovery images --model DIR --data folder:VAL --calib folder:TRAIN --out FILE
                                                   an image tower, from photographs without labels

All ways take the same steps over the same images. A seed picks the calibration images, the modules that are
removed, the adapters' first values and the order of the training data; evaluation is on other images. Plain
LoRA is the baseline whose merge fills the zeros. Rows are written as soon as they are there.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vlprune import (
    Keep,
    SparseGPTConfig,
    StructuredConfig,
    WandaConfig,
    compact_,
    evaluate,
    load_data,
    load_model,
    masks,
    measure,
    prune_,
)
from vlprune.files import write_json
from vlprune.recovery import (
    DistillConfig,
    RecoverConfig,
    SparseLoRAConfig,
    TrainReport,
    add_sparse_lora_,
    distill_,
    merge_sparse_lora_,
    recover_,
)

from .continued import continue_from

WEIGHTS = {"wanda": WandaConfig, "sparsegpt": SparseGPTConfig}
ALONE: dict[str, Any] = {"itc": 0, "sim": 0, "towers": ("visual",)}
SAME = ("format", "table", "model", "data", "calib", "images", "samples", "training")

Remove = Callable[[Any, Any, int], None]
Way = Callable[[Any, Any, Any, argparse.Namespace, int], TrainReport]


def by_lora(small: Any, dense: Any, data: Any, args: argparse.Namespace, seed: int) -> TrainReport:
    """Plain LoRA; `small` becomes the model with its zeros filled."""
    return _adapted(small, dense, data, args, seed, sparse=False)


def by_sparse_lora(small: Any, dense: Any, data: Any, args: argparse.Namespace, seed: int) -> TrainReport:
    """Adapters under the masks."""
    return _adapted(small, dense, data, args, seed, sparse=True)


def _adapted(
    small: Any, dense: Any, data: Any, args: argparse.Namespace, seed: int, *, sparse: bool
) -> TrainReport:
    config = SparseLoRAConfig(rank=args.rank, sparse=sparse)
    common = _common(args, seed, args.adapter_rate)
    if args.table == "images":
        # on the pruned weights, which SparseGPT has changed
        add_sparse_lora_(small, SparseLoRAConfig(rank=args.rank, targets=("visual",), sparse=sparse))
        report = distill_(small, dense, data, DistillConfig(**common, **ALONE), progress=False)
    elif sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in dense.parameters()):
        keeps = masks(small)
        small.load_state_dict(dense.state_dict())
        add_sparse_lora_(small, config, keeps)
        report = recover_(small, data, RecoverConfig(**common), progress=False)
    else:
        add_sparse_lora_(small, config)
        report = distill_(small, dense, data, DistillConfig(**common), progress=False)
    merge_sparse_lora_(small)
    return report


def by_fine_tuning(small: Any, dense: Any, data: Any, args: argparse.Namespace, seed: int) -> TrainReport:
    """All weights that are left, by the contrastive loss alone."""
    config = DistillConfig(**_common(args, seed, args.rate), sim=0, feat=0, hidden=0)
    return distill_(small, dense, data, config, progress=False)


def by_distillation(small: Any, dense: Any, data: Any, args: argparse.Namespace, seed: int) -> TrainReport:
    """All weights that are left, towards the dense model."""
    terms = ALONE if args.table == "images" else {}
    return distill_(
        small, dense, data, DistillConfig(**_common(args, seed, args.rate), **terms), progress=False
    )


def _common(args: argparse.Namespace, seed: int, rate: float) -> dict[str, Any]:
    return {"steps": args.steps, "batch_size": args.batch_size, "learning_rate": rate, "seed": seed}


PAIRS: dict[str, Way] = {
    "LoRA": by_lora,
    "SparseLoRA": by_sparse_lora,
    "fine-tuned": by_fine_tuning,
    "distilled": by_distillation,
}
# The ways of the papers, which hold every zero.
OURS: dict[str, Way] = {"SparseLoRA": by_sparse_lora, "distilled": by_distillation}
# without masks SparseLoRA is LoRA
COMPACTED = {name: way for name, way in PAIRS.items() if name != "SparseLoRA"}


def plans(args: argparse.Namespace) -> dict[str, tuple[Remove, dict[str, Way]]]:
    """Name of what is removed -> how, and the ways to train afterwards."""
    chosen: dict[str, tuple[Remove, dict[str, Way]]] = {}
    images = args.table == "images"
    targets = ("visual",) if images else ("*",)
    for method in args.methods:
        for share in (None, args.sparsity):
            pattern = {"pattern": "2:4"} if share is None else {"pattern": "unstructured", "sparsity": share}
            config = WEIGHTS[method](**pattern, targets=targets, samples=args.samples)
            name = f"{method} 2:4" if share is None else f"{method} {100 * share:g}%"
            chosen[name] = (_pruner(config), OURS if images else PAIRS)
    for share in args.remove:
        keep = Keep(heads=1.0 - share, neurons=1.0 - share)
        remove, name = _remover(keep, args), f"mope -{100 * share:g}%"
        chosen[name] = (remove, {"distilled": by_distillation} if images else COMPACTED)
        if args.both:
            then = _pruner(WEIGHTS[args.methods[0]](pattern="2:4", samples=args.samples))
            chosen[f"{name} 2:4"] = (_both(remove, then), {"distilled": by_distillation} if images else OURS)
    return chosen


def _both(first: Remove, then: Remove) -> Remove:
    def remove(model: Any, calib: Any, seed: int) -> None:
        first(model, calib, seed)
        then(model, calib, seed)

    return remove


def _pruner(config: Any) -> Remove:
    def prune(model: Any, calib: Any, seed: int) -> None:
        prune_(model, config, calib, progress=False)

    return prune


def _remover(keep: Keep, args: argparse.Namespace) -> Remove:
    def remove(model: Any, calib: Any, seed: int) -> None:
        text = None if args.table == "images" else keep
        config = StructuredConfig(visual=keep, text=text, samples=args.samples, seed=seed)
        scores = args.out.with_name(f"{args.out.stem}-seed{seed}-{keep.heads:g}.part.json")
        compact_(model, config, calib, progress=False, resume=scores)

    return remove


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fill in the rows that the file does not have yet."""
    loaded = load_model(args.model)
    dense = loaded.model
    data = load_data(args.data, loaded.preprocess, loaded.tokenizer).subset(args.limit).in_memory()
    train = load_data(args.calib, loaded.preprocess, loaded.tokenizer).in_memory()
    record: dict[str, Any] = {
        "format": "vlprune-recovery",
        "table": args.table,
        "model": args.name or args.model,
        "data": args.data_name or args.data,
        "calib": args.calib_name or args.calib,
        "images": len(data),
        "samples": args.samples,
        "training": {
            key: getattr(args, key) for key in ("steps", "batch_size", "rate", "adapter_rate", "rank")
        },
        "machine": measure.machine_info(),
        "rows": {},
    }
    continue_from(args.out, record, SAME)
    rows = record["rows"]
    if "dense" not in rows:
        rows["dense"] = {"0": _row(dense, data, None, masks(dense), 0.0)}
    for seed in range(args.seeds):
        picked = random.Random(seed).sample(range(len(train)), min(args.samples, len(train)))
        for plan, (remove, ways) in plans(args).items():
            wanted = [way for way in ("", *ways) if str(seed) not in rows.get(f"{plan} {way}".strip(), {})]
            if not wanted:
                continue
            torch.manual_seed(seed)
            pruned = copy.deepcopy(dense)
            start = time.perf_counter()
            remove(pruned, train.subset(picked), seed)
            zeros = masks(pruned)
            for way in wanted:
                torch.manual_seed(seed)
                small, report = copy.deepcopy(pruned), None
                if way:
                    start = time.perf_counter()
                    report = ways[way](small, dense, train, args, seed)
                row = _row(small, data, report, zeros, time.perf_counter() - start)
                rows.setdefault(f"{plan} {way}".strip(), {})[str(seed)] = row
                write_json(args.out, record)
                print(f"{plan} {way} seed {seed}: {row['primary']:.2f}", flush=True)
    write_json(args.out, record)
    return record


def _row(model: Any, data: Any, report: Any, before: dict[str, Any], seconds: float) -> dict[str, Any]:
    after = masks(model)
    metrics = evaluate(model, data, progress=False)
    row: dict[str, Any] = {"primary": metrics.primary, "metrics": metrics.to_dict(), "seconds": seconds}
    row["parameters"] = sum(p.numel() for p in model.parameters())
    row["zeros"] = sum(int((~keep).sum()) for keep in after.values())
    row["zeros_as_pruned"] = before.keys() == after.keys() and all(
        bool((after[name] == keep).all()) for name, keep in before.items()
    )
    if report is not None:
        row |= {"trained": report.trained, "loss": [report.losses[0], report.losses[-1]]}
    return row


def table(record: dict[str, Any]) -> str:
    """Mean and spread (standard deviation over seeds) of the one figure models are compared by."""
    lines = [f"{record['model']} on {record['data']}, {record['images']} images, {record['training']}"]
    for name, seeds in record["rows"].items():
        values = [row["primary"] for row in seeds.values()]
        spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        same = all(row["zeros_as_pruned"] for row in seeds.values())
        zeros = next(iter(seeds.values()))["zeros"]
        lines.append(
            f"{name:28}{zeros:12,} zeros{'' if same else ' (others)'}{statistics.mean(values):8.2f}{spread}"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("pairs", "images"))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo", help="for evaluation")
    parser.add_argument("--calib", default="demo:train", help="to prune and to train by")
    parser.add_argument("--name", help="of the model in the table, where it is a folder")
    parser.add_argument("--data-name", help="of the evaluation data in the table")
    parser.add_argument("--calib-name", help="of the training data in the table")
    parser.add_argument("--limit", type=int, help="at most this many evaluation images")
    parser.add_argument("--samples", type=int, default=128, help="calibration images")
    parser.add_argument("--methods", nargs="+", default=["wanda"], choices=tuple(WEIGHTS))
    parser.add_argument("--sparsity", type=float, help="beside 2:4; by default 0.7, of images 0.5")
    parser.add_argument(
        "--remove", type=float, nargs="*", help="of heads and neurons, by default 0.5 0.75; of images none"
    )
    parser.add_argument("--both", action="store_true", help="2:4 by the first method in what is left, too")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate of all weights")
    parser.add_argument("--adapter-rate", type=float, default=3e-3, help="learning rate of adapters")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.sparsity is None:
        args.sparsity = 0.5 if args.table == "images" else 0.7
    if args.remove is None:
        args.remove = [] if args.table == "images" else [0.5, 0.75]
    record = run(args)
    print(json.dumps(record) if args.json else table(record))


if __name__ == "__main__":
    main()
