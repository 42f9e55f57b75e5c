"""The order of the rooms and the size of the files, as CONTRIBUTING.md has them."""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vlprune"

SUFFIXES = (".cpp", ".h", ".inl", ".cu", ".cuh")

# From high to low: a room imports only rooms that stand after it.
ROOMS = (
    "__main__", "cli", "pipeline", "report", "bench", "demo.train",
    "prune", "importance", "checkpoint", "sparsify", "recovery", "structured",
    "evaluate", "losses", "zeroth_order", "calibration", "reuse",
    "masks", "targets", "fusion", "example",
    "models", "demo", "models.build", "models.checks", "demo.tokenizer", "data", "nn",
    "config", "token_weights", "allocation", "scoring", "measure", "ops", "kernels",
    "cache_dir", "files", "fingerprint", "distributed", "patterns", "values", "_version",
)  # fmt: skip


def room_of(module):
    """The room that a dotted name below the package belongs to: the longest that `ROOMS` has of it."""
    return ".".join(module[:2]) if ".".join(module[:2]) in ROOMS else module[0]


def imported(path):
    """Dotted names below the package that a file imports, anywhere in it."""
    own = path.relative_to(PACKAGE).with_suffix("").parts
    folder = own[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            module = tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield (*base, *module, alias.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vlprune":
            for alias in node.names:
                yield (*node.module.split(".")[1:], alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("vlprune."):
                    yield tuple(alias.name.split(".")[1:])


def sources():
    """Every module of the package but its front door; kernels/ is a link, whose files are looked at too."""
    own = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    return sorted({*own, *(PACKAGE / "kernels").glob("*.py")})


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    own = room_of(path.relative_to(PACKAGE).with_suffix("").parts)
    assert own in ROOMS, f"{own}: give it a place in ROOMS"
    for module in imported(path):
        other = room_of(module)
        if other.startswith("__version"):
            continue  # of the front door, which has it from _version
        if other != own:
            assert other in ROOMS, f"{own} imports {'.'.join(module)}, which has no place in ROOMS"
            assert ROOMS.index(other) > ROOMS.index(own), f"{own} imports {'.'.join(module)}, which is higher"


def test_every_room_is_there():
    there = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in sources()}
    assert {room.split(".")[0] for room in ROOMS} == there


def test_files_are_small():
    own = [
        *sources(),
        *(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h", ".inl", ".cu", ".cuh")),
    ]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in own}
    assert not {name: count for name, count in lines.items() if count > 400}
    assert statistics.median(lines.values()) < 180
