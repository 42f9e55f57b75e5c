"""`coco:FILE.json:IMAGES`: a captions file in COCO's form or a plain mapping, and a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .images import FileImage
from .listing import (
    Captioned,
    Problems,
    clean_caption,
    image_exists,
    parse_json,
    require_file,
    require_folder,
)

FORM = "coco:FILE.json:IMAGES (captions file, colon, folder of images)"
_SHAPES = (
    '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]} or {file name: [captions]}'
)


def read_coco(rest: str, problems: Problems) -> Captioned:
    """List the images of a captions file in its order; the last colon of `rest` parts file and folder."""
    file_name, _, folder_name = rest.rpartition(":")
    if not file_name or not folder_name:
        raise ValueError(f"coco:{rest} lacks the file or the folder; expected {FORM}")
    file, folder = Path(file_name), Path(folder_name)
    require_file(file, FORM)
    require_folder(folder, FORM)
    content = parse_json(file.read_bytes(), str(file))
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected {_SHAPES}")
    official = "images" in content and "annotations" in content
    entries = _official(file, content, problems) if official else _mapping(file, content, problems)
    images: list[FileImage] = []
    captions: list[list[str]] = []
    for name, own in entries:
        path = str(folder / name)
        if not image_exists(path, str(file), problems):
            continue
        if not own:
            problems.report(ValueError(f"{file}: image {name} has no caption"))
            continue
        images.append(FileImage(path))
        captions.append(own)
    return Captioned(images, captions)


def _official(file: Path, content: dict[str, Any], problems: Problems) -> list[tuple[str, list[str]]]:
    found: dict[object, tuple[str, list[str]]] = {}
    for number, image in enumerate(_items(file, content, "images")):
        where = f"{file} images[{number}]"
        match image:
            case {"id": int() | str() as key, "file_name": str() as name} if name:
                if key in found:
                    problems.report(ValueError(f"{where}: id {key!r} appears twice"))
                else:
                    found[key] = (name, [])
            case _:
                problems.report(ValueError(f'{where}: expected an object with "id" and "file_name"'))
    for number, annotation in enumerate(_items(file, content, "annotations")):
        where = f"{file} annotations[{number}]"
        match annotation:
            case {"image_id": int() | str() as key, "caption": caption}:
                if key not in found:
                    problems.report(ValueError(f"{where}: image_id {key!r} is not among the images"))
                elif (text := clean_caption(caption, where, problems)) is not None:
                    found[key][1].append(text)
            case _:
                problems.report(ValueError(f'{where}: expected an object with "image_id" and "caption"'))
    return list(found.values())


def _items(file: Path, content: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(content[key], list):
        raise ValueError(
            f'{file}: "{key}" must be a list, got {type(content[key]).__name__}; expected {_SHAPES}'
        )
    return list(content[key])


def _mapping(file: Path, content: dict[str, Any], problems: Problems) -> list[tuple[str, list[str]]]:
    entries = []
    for name, captions in content.items():
        if not isinstance(captions, list):
            problems.report(
                ValueError(f"{file}: {name!r} must map to a list of captions, got {type(captions).__name__}")
            )
            continue
        cleaned = (clean_caption(text, f"{file} {name}[{n}]", problems) for n, text in enumerate(captions))
        entries.append((name, [text for text in cleaned if text is not None]))
    return entries
