"""What the README's example prints, kept as a result: python -m benchmarks.example --out FILE."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from vlprune import measure
from vlprune.files import write_json

from .documented import ROOT

__all__ = ["code", "printed_by"]


def code(document: Path = ROOT / "README.md") -> str:
    """The first Python block of a document."""
    found = re.search(r"^```python\n(.+?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{document}: expected a block of Python")
    return found[1]


def printed_by(source: str) -> str:
    """Run source text in an empty folder and return what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, "-c", source],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return done.stdout.rstrip("\n")


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    source = code()
    printed = printed_by(source)
    record = {"format": "vlprune-example", "code": source, "printed": printed}
    write_json(args.out, {**record, "machine": measure.machine_info()})
    print(printed)


if __name__ == "__main__":
    main()
