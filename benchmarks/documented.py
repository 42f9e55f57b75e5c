"""Numbers in the documents: what was measured is read from a result file, and renewed by this.

python -m benchmarks.documented            say which numbers differ from their result file, or name none
python -m benchmarks.documented --write    put what the result files say into the documents

In Markdown, where comments are not shown:

    <!-- = EXPR -->1.80x        the number is the value of EXPR, at the decimals that it is printed with
    <!-- table: EXPR -->        the table or fenced block below is the text of EXPR
    <!-- given: WHY -->         the block below has numbers that nobody measured here: settings, arithmetic

An EXPR is Python over the functions of `benchmarks/tables.py`. Every other number with a decimal point or a
unit fails, outside of code, links, versions and places in papers.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import tables

__all__ = ["ROOT", "documents", "problems", "renewed"]

ROOT = Path(__file__).parents[1]

_NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?"
_INLINE = re.compile(rf"<!-- = (?P<expr>.+?) -->(?P<number>{_NUMBER})")
_BLOCK = re.compile(r"^ *<!-- table: (?P<expr>.+?) -->$")
_GIVEN = re.compile(r"^ *<!-- given: .+ -->$")
_FENCE = re.compile(r"^ *```(?P<language>\w*)")
# What is measured has decimals or a unit.
_UNIT = (
    r"(?:x\b(?! ?\d)| ?%| ?(?:[mun]?s|[KMG]B(?:/s)?|[GT]FLOP(?:/s|S)?|percent|seconds?|minutes?|hours?)\b)"
)
_MEASURED = re.compile(rf"(?<![\w.:])(?:\d[\d,]*\.\d+|\d[\d,]*(?={_UNIT}))")
# Code, links, and numbers that name a version or a place in a paper.
_NO_MEASUREMENT = re.compile(
    r"`[^`]*`|\]\([^)]*\)|<!--.*?-->|arXiv \d+\.\d+"
    r"|(?:[Ss]ections?|eq\.|[Aa]lgorithm|Apache-|[Pp]ython|[Tt]orch|Triton|CUTLASS|nvcc|open_clip|vlprune|CUDA"
    r"|cuSPARSELt|pdoc)[ -]?v?(?:>=)?\d[\d.]*(?:(?: and| to|,) \d[\d.]*)*"
)


def documents(root: Path = ROOT) -> list[Path]:
    """The Markdown files whose numbers are held to the result files."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def evaluated(expression: str) -> Any:
    """The value of an expression over `benchmarks/tables.py`."""
    names = {name: getattr(tables, name) for name in tables.__all__}
    return eval(expression, {"__builtins__": {"max": max, "min": min, "sum": sum}}, names)


def printed(value: float, like: str) -> str:
    """A number with as many decimals as another one has."""
    decimals = len(like.partition(".")[2])
    return f"{value:{'+' if like.startswith('+') else ''},.{decimals}f}"


def renewed(text: str, value_of: Callable[[str], Any] = evaluated) -> str:
    """A document with every number and block as the result files have it now."""
    lines: list[str] = []
    for head, block in _blocks(text.splitlines()):
        match = _BLOCK.match(head)
        lines += [head] if head else []
        lines += _filled(block, str(value_of(match["expr"]))) if match else block
    whole = "\n".join(lines) + "\n"
    return _INLINE.sub(
        lambda match: f"<!-- = {match['expr']} -->{printed(value_of(match['expr']), match['number'])}", whole
    )


def _blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Lines in groups: a directive and the block that it is of, or ("", lines without one)."""
    at = 0
    while at < len(lines):
        head = lines[at] if _BLOCK.match(lines[at]) or _GIVEN.match(lines[at]) else ""
        start = end = at + bool(head)
        if start < len(lines) and _FENCE.match(lines[start]):
            end += 1
            while end < len(lines) and lines[end].strip() != "```":
                end += 1
            end += 1
        elif head:
            while end < len(lines) and lines[end].strip():
                end += 1
        else:
            end += 1
        yield head, lines[start:end]
        at = end


def _filled(block: list[str], text: str) -> list[str]:
    """What stands in a fence is exchanged, and the fence stays; a table is exchanged whole."""
    fenced = bool(block) and _FENCE.match(block[0]) is not None
    return [block[0], *text.splitlines(), block[-1]] if fenced else text.splitlines()


def unnamed(text: str) -> list[str]:
    """Numbers that look measured and name no result file, each with its line."""
    found = []
    for head, block in _blocks(text.splitlines()):
        fence = _FENCE.match(block[0]) if block else None
        if head or (fence and fence["language"]):
            continue
        for line in block:
            left = _NO_MEASUREMENT.sub(" ", _INLINE.sub(" ", line))
            found += [f"{match[0]} in: {line.strip()[:90]}" for match in _MEASURED.finditer(left)]
    return found


def problems(path: Path) -> list[str]:
    """What is wrong with the numbers of a document, a line each."""
    text = path.read_text()
    new = renewed(text)
    changed = [
        f"{path.name}: {old.strip()[:120]!r} should be {now.strip()[:120]!r}"
        for old, now in zip(text.splitlines(), new.splitlines(), strict=False)
        if old != now
    ]
    if text != new and not changed:
        changed = [f"{path.name}: lines are missing or too many"]
    return changed + [f"{path.name}: no result file is named for {line}" for line in unnamed(text)]


def main() -> None:
    """Check or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="renew the documents")
    args = parser.parse_args()
    if args.write:
        for path in documents():
            path.write_text(renewed(path.read_text()))
    found = [line for path in documents() for line in problems(path)]
    print("\n".join(found) if found else "every number agrees with its result file")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
