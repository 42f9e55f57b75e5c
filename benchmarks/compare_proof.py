"""Does `vlprune bench --against` see a slow-down of a tenth, and nothing where nothing changed?

    python -m benchmarks.compare_proof [--trials 10] [--out FILE]

Trials compare this tree with itself, and in turn with a copy of itself whose `linear24` and `wanda_mask` take
a tenth longer. The first kind is right when no case is flagged, the second when those two operators are
flagged as slower and no other case is. The file is whole after every trial, and a run that was stopped goes
on where it was: each trial says of which commit, repeats and threads it is.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vlprune import measure
from vlprune.bench import Selection, Tree, against, this_tree
from vlprune.bench.against import REPEATS
from vlprune.bench.noise import ALPHA, LEAST
from vlprune.files import read_json, write_json

SLOWED = ("linear24", "wanda_mask")
CASES = (
    "linear24 fp32 50 x 768 -> 3072",
    "wanda_mask fp32 2:4 3072 x 768",
    "unpack24 fp32 3072 x 768",
)

# Appended to the copy's vlprune/ops/__init__.py.
PLANT = """

import functools
import time


def _slowed(function):
    @functools.wraps(function)
    def call(*args, **options):
        start = time.perf_counter()
        result = function(*args, **options)
        end = time.perf_counter()
        while time.perf_counter() < end + 0.1 * (end - start):
            pass
        return result

    return call


linear24, wanda_mask = _slowed(linear24), _slowed(wanda_mask)
"""


def planted(folder: Path) -> Tree:
    """A copy of this tree that is a tenth slower."""
    shutil.copytree(
        this_tree().path / "vlprune", folder / "vlprune", ignore=shutil.ignore_patterns("__pycache__")
    )
    init = folder / "vlprune" / "ops" / "__init__.py"
    init.write_text(init.read_text() + PLANT)
    return Tree(folder, "a tenth slower")


def trial(new: Tree, slowed: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Compare this tree with `new`; right if exactly the cases of `slowed` are flagged, as slower."""
    found = against(this_tree(), new, Selection(only=CASES), repeats=repeats, progress=False)
    expected = {change.name: "slower" for change in found if change.name.startswith(slowed)} if slowed else {}
    flagged = {change.name: change.verdict for change in found if change.verdict in ("slower", "faster")}
    return {
        "right": len(found) == len(CASES) and flagged == expected,
        "cases": [{**asdict(change), "verdict": change.verdict} for change in found],
    }


def main() -> None:
    """Run the trials that the file does not have yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10, help="of each kind (default: 10)")
    parser.add_argument("--most", type=int, help="no more than so many now")
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help=f"pairs of processes a trial (default: {REPEATS})"
    )
    parser.add_argument("--out", type=Path, default=Path("out/compare-proof.json"))
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    machine = measure.machine_info()
    conditions = {"commit": machine["commit"], "repeats": args.repeats, "threads": args.threads}
    record: dict[str, Any] = {
        "format": "vlprune-compare-proof",
        "machine": machine,
        "alpha": ALPHA,
        "least": LEAST,
        "trials": [],
    }
    if args.out.exists():
        record = read_json(args.out)
    with tempfile.TemporaryDirectory() as folder:
        slower = planted(Path(folder))
        for done in range(len(record["trials"]), 2 * args.trials)[: args.most]:
            same = done % 2 == 0
            row = trial(this_tree() if same else slower, () if same else SLOWED, args.repeats)
            record["trials"].append({"kind": "same" if same else "a tenth slower", **conditions, **row})
            for kind in ("same", "a tenth slower"):
                own = [one["right"] for one in record["trials"] if one["kind"] == kind]
                record[f"right of {kind}"] = [sum(own), len(own)]
            write_json(args.out, record)
            changes = ", ".join(f"{c['ratio']:.3f} ({c['low']:.3f}-{c['high']:.3f})" for c in row["cases"])
            print(
                f"{record['trials'][-1]['kind']:15} {'right' if row['right'] else 'WRONG'}: {changes}",
                flush=True,
            )


if __name__ == "__main__":
    main()
