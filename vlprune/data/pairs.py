"""`pairs:FILE.tsv`: an image path, a tab and a caption on each line."""

from __future__ import annotations

import re
from pathlib import Path

from .images import FileImage
from .listing import Captioned, Problems, clean_caption, image_exists, require_file

FORM = "pairs:FILE.tsv with lines of image path, tab, caption"
HEADER = "filepath\ttitle"
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def read_pairs(file: Path, problems: Problems) -> Captioned:
    """List the images in the order of their first line; later lines of the same image add captions.

    Paths are relative to the file's folder. The first line may be the header of open_clip's CSV data sets,
    `filepath<TAB>title`; such files are written by pandas, so captions in double quotes are then unquoted.
    """
    require_file(file, FORM)
    captions: dict[str, list[str]] = {}
    missing: set[str] = set()
    has_header = False
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            where = f"{file} line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                problems.report(ValueError(f"{where}: not UTF-8 text"))
                continue
            if number == 1 and line == HEADER:
                has_header = True
                continue
            if not line.strip():
                continue
            columns = line.split("\t")
            if len(columns) != 2 or not columns[0].strip():
                problems.report(
                    ValueError(f"{where}: expected image path, tab, caption; got {len(columns)} column(s)")
                )
                continue
            caption = clean_caption(_unquote(columns[1]) if has_header else columns[1], where, problems)
            path = str(file.parent / columns[0].strip())
            if caption is None or path in missing:
                continue
            if path not in captions:
                if not image_exists(path, where, problems):
                    missing.add(path)
                    continue
                captions[path] = []
            captions[path].append(caption)
    return Captioned([FileImage(path) for path in captions], list(captions.values()))


def _unquote(caption: str) -> str:
    match = _QUOTED.fullmatch(caption)
    return match[1].replace('""', '"') if match else caption
