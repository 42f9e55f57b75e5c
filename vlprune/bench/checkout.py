"""The source tree of a commit, built and ready to import, beside the one that is running."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache_dir import cache_file
from ..files import put_in_place

__all__ = ["Tree", "this_tree", "tree_of"]

# What the native extension is made of.
_NATIVE = ("csrc", "CMakeLists.txt", "setup.py")


@dataclass(frozen=True)
class Tree:
    """A folder with the package in it, and what it is called."""

    path: Path
    label: str


def this_tree() -> Tree:
    """The tree that this runs from."""
    root = Path(__file__).resolve().parents[2]
    return Tree(root, _described(root) or str(root))


def tree_of(spec: str, say: Callable[[str], None] = lambda _: None) -> Tree:
    """A folder as it is, or a commit: written out and built once, kept in the cache folder.

    Args:
        spec: a folder that has ``vlprune/`` in it, or what `git rev-parse` takes for a commit of this tree.
        say: told about a build, which takes a minute or two; trees with the same native sources need none.

    Raises:
        ValueError: neither of the two, or the commit cannot be built.

    """
    folder = Path(spec)
    if folder.is_dir():
        if not (folder / "vlprune" / "__init__.py").is_file():
            raise ValueError(f"--against: expected a folder with vlprune/ in it, {spec} has none")
        path = folder.resolve()
        return Tree(path, _described(path) or str(path))
    root = this_tree().path
    commit = _git(root, "rev-parse", "--verify", "--quiet", f"{spec}^{{commit}}")
    if commit is None:
        raise ValueError(f"--against: expected a folder or a commit of {root}, got {spec!r}")
    target = cache_file(f"tree-{commit}-{sys.implementation.cache_tag}")
    if not target.is_dir():
        _write_out(root, commit, target, say)
    label = _git(root, "describe", "--always", "--tags", commit) or commit
    return Tree(target, f"{label} ({spec})" if spec not in label else label)


def _write_out(root: Path, commit: str, target: Path, say: Callable[[str], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        archive = work / "tree.tar"
        if _git(root, "archive", "--output", str(archive), commit) is None:
            raise ValueError(f"--against: git cannot write {commit} out")
        # It is git's own, and Python before 3.11.4 knows no filter.
        checked: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        with tarfile.open(archive) as tar:
            tar.extractall(work, **checked)
        archive.unlink()
        built = _built(root)
        same = _git(root, "diff", "--quiet", commit, "--", *_NATIVE) is not None
        if built and same:
            for library in built:
                shutil.copy2(library, work / "vlprune")
        else:
            say(f"{commit[:9]}: other native sources than those built here, building")
            _build(work, commit)
        put_in_place(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _built(root: Path) -> list[Path]:
    """The native libraries of a tree; none if a source is newer, for they may be those of other sources."""
    libraries = sorted((root / "vlprune").glob("_C*.so"))
    parts = [part for name in _NATIVE for part in (root / name, *(root / name).rglob("*")) if part.is_file()]
    newest = max((part.stat().st_mtime for part in parts), default=0.0)
    return libraries if all(library.stat().st_mtime >= newest for library in libraries) else []


def _build(tree: Path, commit: str) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        # a compiler's first complaint says more than what setuptools says last
        why = next(
            (line for line in said if "error" in line.lower()), said[-1] if said else "no reason given"
        )
        raise ValueError(f"--against: {commit[:9]} cannot be built: {why}")


def _described(root: Path) -> str | None:
    if not (root / ".git").exists():
        return None
    return _git(root, "describe", "--always", "--tags", "--dirty=+changes")


def _git(root: Path, *arguments: str) -> str | None:
    """What git says, None if it fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
