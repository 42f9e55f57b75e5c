"""`folder:DIR`: a folder a class."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from .images import IMAGE_SUFFIXES, FileImage
from .listing import Classified, Problems, require_folder

FORM = "folder:DIR with one folder of images for each class"
_WORDNET_ID = re.compile(r"^n\d{8}[ _]+(?=\S)")


def class_name(folder: str) -> str:
    """Return the class a folder stands for: "n01440764 great_white" is "great white"."""
    return _WORDNET_ID.sub("", folder).replace("_", " ").strip()


def read_folder(folder: Path, problems: Problems) -> Classified:
    """List every image below the class folders, classes and images in the order of their names.

    Images are told by their suffix, in any case; other files and names that start with a dot are ignored.
    """
    require_folder(folder, FORM)
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _hidden(entry.name))
    if not names:
        flat = any(_is_image(name) for name in os.listdir(folder))
        found = "images but no class folders" if flat else "no class folders"
        raise ValueError(f"{folder} holds {found}; expected {FORM}")
    images: list[FileImage] = []
    labels: list[int] = []
    classes: list[str] = []
    for name in names:
        paths = list(_images_below(folder / name))
        if not paths:
            allowed = " ".join(IMAGE_SUFFIXES)
            problems.report(ValueError(f"class folder {folder / name} holds no images; allowed: {allowed}"))
            continue
        images += [FileImage(path) for path in paths]
        labels += [len(classes)] * len(paths)
        classes.append(class_name(name))
    return Classified(images, labels, classes)


def _images_below(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        yield from (os.path.join(parent, name) for name in sorted(files) if _is_image(name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not _hidden(name)


def _hidden(name: str) -> bool:
    return name.startswith(".")
