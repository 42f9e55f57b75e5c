"""Tar shards: from a pattern to files, and from a file to the places of its members."""

from __future__ import annotations

import glob
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Part(NamedTuple):
    """One member of a tar: its name and where its bytes are."""

    member: str
    offset: int
    size: int


def find_shards(pattern: str) -> list[str]:
    """Expand braces, then wildcards; FileNotFoundError for a name that matches no file."""
    found: dict[str, None] = {}
    for name in expand_braces(pattern):
        matches = [name] if Path(name).is_file() else sorted(glob.glob(name))
        if not matches:
            raise FileNotFoundError(f"wds: no file matches {name}")
        found.update(dict.fromkeys(matches))
    return list(found)


def expand_braces(pattern: str) -> list[str]:
    """Expand {000..012} (numbers are as wide as the first) and {a,b}."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    bounds = _RANGE.fullmatch(match[1])
    if bounds:
        low, high = int(bounds[1]), int(bounds[2])
        if low > high:
            raise ValueError(f"wds: the range {match[0]} in {pattern} runs backwards")
        choices = [f"{number:0{len(bounds[1])}d}" for number in range(low, high + 1)]
    else:
        choices = match[1].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in choices for name in expand_braces(head + choice + tail)]


def read_tar(shard: str) -> dict[str, dict[str, Part]]:
    """Return key -> extension (lower case) -> place, in the order of the tar.

    The key is the path up to the first dot of the file name, as webdataset has it. Only uncompressed tars
    let a member be read by its place; ValueError for any other, and for one that is cut short or damaged.
    """
    members: dict[str, dict[str, Part]] = {}
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                match = _KEY.fullmatch(info.name)
                if match and info.isreg():
                    part = Part(info.name, info.offset_data, info.size)
                    members.setdefault(match[1], {}).setdefault(match[2].lower(), part)
            # tarfile takes a damaged header in the middle for the end; a true end is zeros or nothing.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise ValueError(f"{shard} is damaged at byte {tar.offset}")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard} is not a whole, uncompressed tar: {error}") from None
    return members
