"""Accuracy against speed: what other benchmarks found of accuracy, joined with measured speeds.

python -m benchmarks.frontier --out FILE --model demo --scores methods.json mope.json recovery.json
                              [--page FILE.html] [--svg FILE.svg]

Scores come from the files of accuracy.py, mope.py and recovery.py. For every shape of model among them (2:4,
shares of heads, neurons and layers, both together) the image tower's speed is measured here, all shapes and
dense in turn: which weights go changes no cost, so that they are chosen by magnitude. Zeros that lie anywhere
run as dense. What `sparsify_` leaves out around packed layers a dense tower can leave out, too: that is a
shape of its own. Nothing is measured while the file has all shapes, unless asked for with --again.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlprune import MagnitudeConfig, load_model, measure, prune_, sparsify_
from vlprune.files import read_json, write_json, write_text
from vlprune.report.frontier import (
    AS_DENSE,
    FRONTIER_FORMAT,
    FUSED,
    frontier_plot,
    frontier_table,
    write_frontier,
)
from vlprune.structured import Keep, StructuredConfig, compact_

STRUCTURES = ("heads", "neurons", "layers")
# What recovery.py removes besides weights: the same share of both.
BOTH = "heads neurons"


def points_in(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Every row of a result file: its name, shape of model, training, scores, and dense's on those images."""
    found = {"vlprune-accuracy": pruned, "vlprune-mope": removed, "vlprune-recovery": recovered}
    return found[record["format"]](record)


def pruned(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Of accuracy.py: "wanda ecoflap 60%", "ria 2:4", and "30:70" for image and text tower of Wanda."""
    rows = {name: [row["primary"] for row in draws.values()] for name, draws in record["rows"].items()}
    dense = rows.pop("dense")[0]
    label = "wanda towers " if record["table"] == "split" else ""
    return [
        point(label + name, "2:4" if name.endswith("2:4") else "unstructured", None, scores, dense)
        for name, scores in rows.items()
    ]


def removed(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Of mope.py: "heads mope -50%"."""
    found = []
    for name, draws in record["rows"].items():
        if name != "full":
            kind, criterion, share = name.split()
            scores = list(draws.values())
            found.append(
                point(f"{criterion} {kind} {share}", f"{kind} {share}", None, scores, record["rows"]["full"])
            )
    return found


def recovered(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Of recovery.py: "wanda 2:4 distilled", "mope -50% LoRA", "mope -50% 2:4 distilled"."""
    rows = dict(record["rows"])
    dense = next(iter(rows.pop("dense").values()))["primary"]
    found = []
    for name, draws in rows.items():
        plan, way = split_way(name)
        share = next((word for word in plan.split() if word.startswith("-")), None)
        shape = "2:4" if plan.endswith("2:4") else "unstructured"
        if share:
            shape = f"{BOTH} {share}" + (" 2:4" if shape == "2:4" else "")
        if not all(row["zeros_as_pruned"] for row in draws.values()):
            # a merge that filled the zeros
            shape = f"{BOTH} {share}" if share else "dense"
        plan = plan.replace(" -", f" {BOTH} -") if share else plan
        found.append(point(plan, shape, way, [row["primary"] for row in draws.values()], dense))
    return found


def split_way(name: str) -> tuple[str, str | None]:
    """What was removed, which ends with a share or 2:4, and how the rest was trained."""
    words = name.split()
    end = max(i for i, word in enumerate(words) if word.endswith("%") or word == "2:4") + 1
    return " ".join(words[:end]), " ".join(words[end:]) or None


def point(name: str, shape: str, way: str | None, scores: list[float], dense: float) -> dict[str, Any]:
    """One row of the picture."""
    return {"name": name, "shape": shape, "recovered": way, "scores": scores, "dense": dense}


def shaped(model: nn.Module, shape: str, images: Tensor) -> nn.Module:
    """A copy of that shape, ready to run."""
    small = copy.deepcopy(model)
    if shape == FUSED:
        from vlprune.nn.blocks import fuse_  # which imports open_clip

        fuse_(small, dense=True)
        return small
    words = shape.split()
    if kinds := [word for word in words if word in STRUCTURES]:
        share = 1 - float(next(word for word in words if word.startswith("-")).strip("-%")) / 100
        keep = Keep(**dict.fromkeys(kinds, share))
        compact_(small, StructuredConfig(visual=keep, criterion="magnitude"), progress=False)
    if words[-1] == "2:4":
        prune_(small, MagnitudeConfig(pattern="2:4", targets=("visual",)), progress=False)
        sparsify_(small, example=images)
    return small


@torch.inference_mode()
def embed(model: Any, images: Tensor) -> Tensor:
    """The image tower."""
    embeddings: Tensor = model.encode_image(images)
    return embeddings


def speeds(model: Any, shapes: list[str], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Speed-up of the image tower for every shape, all of them and dense in turn."""
    size = model.visual.image_size
    images = torch.randn(args.batch, 3, *((size, size) if isinstance(size, int) else size))
    forms = {"dense": model, **{shape: shaped(model, shape, images) for shape in shapes}}
    times = measure.compare(
        {name: partial(embed, form, images) for name, form in forms.items()},
        warmup=1,
        rounds=args.rounds,
        min_seconds=args.seconds,
        max_seconds=args.seconds,
    )
    return {
        shape: {
            "speedup": times["dense"].median / times[shape].median,
            "time": times[shape].to_dict(),
            "dense": times["dense"].to_dict(),
        }
        for shape in shapes
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Join the scores, and measure the shapes whose speed the file does not have yet."""
    files = [read_json(path) for path in args.scores]
    if others := {file["model"] for file in files} - {args.name}:
        raise SystemExit(f"--scores: files of {args.name} are wanted, got {', '.join(sorted(others))}")
    old = read_json(args.out) if args.out.exists() else {}
    if old and (old["model"], old["batch"]) != (args.name, args.batch):
        raise SystemExit(f"{args.out}: is of {old['model']}, batch {old['batch']}; give a new --out")
    points = [found for file in files for found in points_in(file)]
    # files that have the same row
    points = list({json.dumps(found): found for found in points}.values())
    dense = statistics.mode(found["dense"] for found in points)
    points.append(point(f"dense, {FUSED}", FUSED, None, [dense], dense))
    record = {
        "format": FRONTIER_FORMAT,
        "model": args.name,
        "data": files[0]["data"],
        "kind": "pairs" if args.name == "demo" else "labelled",
        "batch": args.batch,
        "dense": dense,
        "points": points,
        "speeds": old.get("speeds", {}),
        "machine": old.get("machine") or measure.machine_info(),
    }
    shapes = [s for s in dict.fromkeys(found["shape"] for found in points) if s not in AS_DENSE]
    if args.rounds and (args.again or not record["speeds"].keys() >= set(shapes)):
        torch.set_num_threads(args.threads)
        record["speeds"] = speeds(load_model(args.model).model, shapes, args)
        record["machine"] = measure.machine_info()
    return record


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--name", help="of the model in the files, where it is a folder")
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="result files")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="0 joins the scores alone")
    parser.add_argument("--seconds", type=float, default=20.0, help="for all rounds")
    parser.add_argument("--again", action="store_true", help="measure all shapes anew")
    parser.add_argument("--page", type=Path, help="also write the page here")
    parser.add_argument("--svg", type=Path, help="also write the picture here")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.name = args.name or args.model
    record = run(args)
    write_json(args.out, record)
    if args.page:
        write_frontier(record, args.page)
    if args.svg:
        write_text(args.svg, frontier_plot(record))
    print(json.dumps(record) if args.json else frontier_table(record))


if __name__ == "__main__":
    main()
