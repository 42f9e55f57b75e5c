"""`wds:GLOB.tar`: webdataset shards, of whose images only the places are held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .images import TarImage
from .listing import Captioned, Classified, Problems, clean_caption, parse_json
from .shards import Part, find_shards, read_tar

FORM = "tar shards with key.jpg (png, jpeg, webp) and key.txt, key.json or key.cls"
IMAGE_KINDS = ("jpg", "png", "jpeg", "webp")
CLASS_NAMES = "classnames.txt"


class Sample(NamedTuple):
    """One key of a shard."""

    image: TarImage
    captions: list[str]
    label: str | None


def read_shards(pattern: str, problems: Problems) -> Captioned | Classified:
    """List the samples of all shards in the order of the shards' names and their places inside.

    Captions come from key.txt (a caption a line) or key.json ("caption": text or list of texts). Where no
    sample has one, key.cls gives the class: a name, or a number that counts from 0 the lines of
    classnames.txt, which lies beside the first shard or one folder up.
    """
    shards = find_shards(pattern)
    samples = [sample for shard in shards for sample in _samples(shard, problems)]
    captioned = any(sample.captions for sample in samples)
    if not captioned and any(sample.label is not None for sample in samples):
        return _classify(samples, Path(shards[0]).parent, problems)
    kept = []
    for sample in samples:
        if sample.captions:
            kept.append(sample)
        else:
            problems.report(ValueError(f"image {sample.image.name} has no caption; expected {FORM}"))
    return Captioned([sample.image for sample in kept], [sample.captions for sample in kept])


def _samples(shard: str, problems: Problems) -> Iterator[Sample]:
    try:
        members = read_tar(shard)
        if not any(kind in parts for parts in members.values() for kind in IMAGE_KINDS):
            raise ValueError(f"{shard} holds no images; expected {FORM}")
    except ValueError as error:
        problems.report(error)
        return
    with open(shard, "rb") as file:

        def read(part: Part) -> bytes:
            file.seek(part.offset)
            return file.read(part.size)

        for parts in members.values():
            kind = next((kind for kind in IMAGE_KINDS if kind in parts), None)
            if kind is None:
                continue
            try:
                captions = _captions(shard, parts, read, problems)
                label = _text(shard, parts["cls"], read).strip() if "cls" in parts else None
            except ValueError as error:
                problems.report(error)
                continue
            yield Sample(TarImage(shard, *parts[kind]), captions, label)


def _captions(
    shard: str, parts: dict[str, Part], read: Callable[[Part], bytes], problems: Problems
) -> list[str]:
    if "txt" in parts:
        where = f"{shard}:{parts['txt'].member}"
        lines = _text(shard, parts["txt"], read).splitlines()
        found: list[object] = [line for line in lines if line.strip()] or [""]
    elif "json" in parts:
        where = f"{shard}:{parts['json'].member}"
        content = parse_json(read(parts["json"]), where)
        value = content.get("caption", []) if isinstance(content, dict) else []
        found = value if isinstance(value, list) else [value]
    else:
        return []
    cleaned = (clean_caption(text, where, problems) for text in found)
    return [text for text in cleaned if text is not None]


def _text(shard: str, part: Part, read: Callable[[Part], bytes]) -> str:
    return _decode(read(part), f"{shard}:{part.member}")


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text (byte {error.start})") from None


def _classify(samples: list[Sample], folder: Path, problems: Problems) -> Classified:
    names = _class_names(folder)
    if names is None:
        given = {sample.label for sample in samples if sample.label}
        if all(label.isdigit() for label in given):
            raise ValueError(
                f"{folder}: the shards number their classes but there is no {CLASS_NAMES}; "
                "put one beside them, a class name a line"
            )
        names = sorted(given)
        allowed = "a class name"
        numbers = {name: number for number, name in enumerate(names)}
    else:
        allowed = f"a number from 0 to {len(names) - 1} ({CLASS_NAMES})"
        numbers = {str(number): number for number in range(len(names))}
    images, labels = [], []
    for sample in samples:
        if sample.label in numbers:
            images.append(sample.image)
            labels.append(numbers[sample.label])
        else:
            got = "nothing" if sample.label is None else repr(sample.label)
            problems.report(ValueError(f"image {sample.image.name}: the class must be {allowed}, got {got}"))
    return Classified(images, labels, names)


def _class_names(folder: Path) -> list[str] | None:
    for place in (folder, folder.parent):
        file = place / CLASS_NAMES
        if file.is_file():
            lines = _decode(file.read_bytes(), str(file)).splitlines()
            return [line.strip() for line in lines if line.strip()]
    return None
