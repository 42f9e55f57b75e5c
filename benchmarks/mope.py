"""What heads, neurons and layers are worth, and what is left after removing a quarter to three quarters.

python -m benchmarks.mope --out FILE            the demo: a table of errors, and mean recall afterwards
python -m benchmarks.mope --out FILE --quick    the same in a minute or two

Modules are chosen by module pruning errors (mope), weights (magnitude), gradients (gradient) and chance
(random) on training images, the same share of every layer, and the model is evaluated on others, without any
training in between. A seed picks the training images. For another model:

python -m benchmarks.mope --model DIR --metric accuracy --data folder:VAL --calib folder:TRAIN --out FILE

Each result is written as soon as it is there; the same command continues.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlprune import evaluate, load_data, load_model, measure
from vlprune.evaluate import embed_images, embed_texts, score_embeddings, texts_to_embed
from vlprune.files import write_json, write_text
from vlprune.report.modules import error_plots
from vlprune.report.study import curves
from vlprune.structured import (
    Keep,
    ModuleError,
    StructuredConfig,
    choose,
    mask_modules,
    module_pruning_errors,
    rewire_,
)
from vlprune.structured.criteria import loss_for, module_importance

from .continued import continue_from

KINDS = ("heads", "neurons", "layers")
SAME = ("format", "model", "data", "calib", "images", "samples", "groups", "metric", "towers", "batch_size")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fill in what the file does not have yet."""
    loaded = load_model(args.model)
    data = load_data(args.data, loaded.preprocess, loaded.tokenizer).subset(args.limit).in_memory()
    calib = load_data(args.calib, loaded.preprocess, loaded.tokenizer)
    record: dict[str, Any] = {
        "format": "vlprune-mope",
        "model": args.name or args.model,
        "data": args.data_name or args.data,
        "calib": args.calib_name or args.calib,
        "images": len(data),
        "samples": args.samples,
        "groups": args.groups,
        "metric": args.metric,
        "towers": args.towers,
        "batch_size": args.batch_size,
        "machine": measure.machine_info(),
        "errors": {},
        "rows": {},
    }
    continue_from(args.out, record, SAME, ("errors", "rows"))
    scored = scorer(loaded.model, data, args)
    if "full" not in record["rows"]:
        record["rows"]["full"] = scored(loaded.model, {})
    for seed in range(args.seeds):
        picked = random.Random(seed).sample(range(len(calib)), min(args.samples, len(calib)))
        run_seed(loaded.model, calib.subset(picked).in_memory(), scored, seed, record, args)
    return record


def run_seed(
    model: Any, own: Any, scored: Callable[..., float], seed: int, record: dict[str, Any], args: Any
) -> None:
    """Errors of one seed's images, and the scores after removal by every criterion."""
    sorted_model, key = copy.deepcopy(model), str(seed)
    rewire_(sorted_model, own, loss=loss_for(own), samples=args.samples, batch_size=args.batch_size)
    if key not in record["errors"]:
        start = time.perf_counter()
        found = module_pruning_errors(
            sorted_model,
            own,
            args.kinds,
            args.metric,
            args.towers,
            groups=args.groups,
            batch_size=args.batch_size,
            progress=False,
            resume=args.out.with_name(f"{args.out.stem}-seed{seed}.part.json"),
        )
        record["errors"][key] = {
            "seconds": time.perf_counter() - start,
            "modules": [asdict(error) for error in found],
        }
        write_json(args.out, record)
        print(f"seed {seed}: errors of {len(found)} modules", flush=True)
        args.out.with_name(f"{args.out.stem}-seed{seed}.part.json").unlink(missing_ok=True)
    by_mope = [ModuleError(**error) for error in record["errors"][key]["modules"]]
    for criterion in args.criteria:
        errors = by_mope
        config = StructuredConfig(criterion=criterion, samples=args.samples, seed=seed)
        if criterion != "mope":
            if criterion == "magnitude" and seed:
                continue  # which has nothing to do with the images
            errors = [e for t in args.towers for e in module_importance(model, own, config, t, args.kinds)]
        for kind in args.kinds:
            for share in args.remove:
                row = record["rows"].setdefault(f"{kind} {criterion} -{100 * share:g}%", {})
                if key in row:
                    continue
                keep = Keep(**{kind: 1.0 - share})
                left = StructuredConfig(**dict.fromkeys(args.towers, keep))
                changed = sorted_model if criterion == "mope" else model
                row[key] = scored(changed, choose(changed, left, errors, [kind]))
                write_json(args.out, record)
                print(f"seed {seed}: {kind} {criterion} -{100 * share:g}%: {row[key]:.2f}", flush=True)


def scorer(model: Any, data: Any, args: argparse.Namespace) -> Callable[..., float]:
    """A function (model, keep lists) -> score; texts are embedded once if their tower stays whole."""
    texts: list[Any] = []
    if "text" not in args.towers:
        for own in texts_to_embed(data, range(len(data))):
            texts.append(embed_texts(model, own, data.tokenizer, batch_size=args.batch_size, progress=False))

    def score(changed: Any, lists: dict[str, Any]) -> float:
        with mask_modules(changed, lists):
            if not texts:
                return evaluate(changed, data, batch_size=args.batch_size, progress=False).primary
            images, index = embed_images(changed, data, batch_size=args.batch_size, progress=False)
            return score_embeddings(data, images, index, texts).primary

    return score


def table(record: dict[str, Any]) -> str:
    """Errors of the first seed by layer, then scores: mean and standard deviation over seeds."""
    lines = [
        f"{record['model']} on {record['data']}, {record['images']} images: {record['rows']['full']:.2f}"
    ]
    first = record["errors"]["0"]["modules"]
    for tower, kind in dict.fromkeys((error["tower"], error["kind"]) for error in first):
        lines.append(f"\nerrors of {kind}, {tower}, on {record['samples']} training images")
        own = [error for error in first if (error["tower"], error["kind"]) == (tower, kind)]
        for layer in dict.fromkeys(error["layer"] for error in own):
            values = [f"{error['error']:8.3f}" for error in own if error["layer"] == layer]
            lines.append(f"  layer {layer}: {''.join(values)}")
    lines.append("")
    for name, seeds in record["rows"].items():
        if name != "full":
            values = list(seeds.values())
            spread = f" +- {statistics.stdev(values):.2f} ({len(values)})" if len(values) > 1 else ""
            lines.append(f"{name:28}{statistics.mean(values):7.2f}{spread}")
    return "\n".join(lines)


def write_plots(record: dict[str, Any], out: Path) -> None:
    """Write the curves, and every error of the first draw, a file a tower, beside a result."""
    write_text(out.with_name(f"{out.stem}-curves.svg"), curves(record))
    for tower, plot in zip(record["towers"], error_plots(record["errors"]["0"]["modules"]), strict=True):
        write_text(out.with_name(f"{out.stem}-errors-{tower}.svg"), plot)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo", help="for evaluation")
    parser.add_argument("--calib", default="demo:train", help="to choose by")
    parser.add_argument("--name", help="of the model in the table, where it is a folder")
    parser.add_argument("--data-name", help="of the data in the table")
    parser.add_argument("--calib-name", help="of the training data in the table")
    parser.add_argument("--metric", default="retrieval", choices=("retrieval", "accuracy"))
    parser.add_argument("--towers", nargs="+", default=["visual"], choices=("visual", "text"))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--criteria", nargs="+", default=["mope", "magnitude", "gradient", "random"])
    parser.add_argument("--remove", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="shares")
    parser.add_argument("--limit", type=int, help="at most this many evaluation images")
    parser.add_argument("--samples", type=int, default=1000, help="training images of a seed")
    parser.add_argument("--groups", type=int, default=8, help="of neurons in a layer")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="64 training and 100 other images, two seeds")
    parser.add_argument("--svg", action="store_true", help="also write curves and errors, beside the file")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.quick:
        args.samples, args.limit, args.seeds = 64, 100, 2
    record = run(args)
    write_json(args.out, record)
    if args.svg:
        write_plots(record, args.out)
    print(json.dumps(record) if args.json else table(record))


if __name__ == "__main__":
    main()
