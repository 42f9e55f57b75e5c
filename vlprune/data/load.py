"""`load_data`: from a spec to data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import coco, drawn, folder, pairs, wds
from .dataset import LabelledData, PairData, Preprocess, Tokenizer
from .listing import Captioned, Classified, Problems

_READERS: dict[str, Callable[[str, Problems], Captioned | Classified]] = {
    "demo": drawn.read_drawn,
    "folder": lambda rest, problems: folder.read_folder(Path(rest), problems),
    "coco": coco.read_coco,
    "pairs": lambda rest, problems: pairs.read_pairs(Path(rest), problems),
    "wds": wds.read_shards,
}
_FORMS = ("demo", "folder:DIR", "coco:FILE.json:IMAGES", "pairs:FILE.tsv", "wds:GLOB.tar")


def load_data(
    spec: str,
    preprocess: Preprocess,
    tokenizer: Tokenizer,
    *,
    on_error: str = "raise",
    limit: int | None = None,
) -> PairData | LabelledData:
    """Read a data set's list; images are decoded when a batch is asked for.

    Args:
        spec: `demo` (500 drawn test scenes; `demo:train:N` gives training scenes), `folder:DIR` (a folder a
            class), `coco:FILE.json:IMAGES` (split at the last colon), `pairs:FILE.tsv`, `wds:GLOB.tar`
            (braces and wildcards).
        preprocess: maps a PIL image to a tensor [C, H, W]; it may be called from several threads.
        tokenizer: maps a list of texts to ids [N, L].
        on_error: "skip" leaves out and counts (`.skipped`, `.skip_reasons`) what "raise" would stop at:
            missing or broken images, empty captions, malformed lines.
        limit: keep the first images, of labelled data an even spread over the classes.

    Raises:
        FileNotFoundError: a file or folder of the spec is not there.
        ValueError: an unknown spec, no images, or something malformed: the file and the line are named.

    """
    kind, _, rest = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if kind not in _READERS or (spec != "demo" and not rest):
        raise ValueError(f"load_data: spec {spec!r} is unknown; allowed: {', '.join(_FORMS)}")
    problems = Problems(on_error)
    listing = _READERS[kind](rest, problems)
    if not listing.images:
        why = f"; {problems.count} skipped, first: {problems.reasons[0]}" if problems.count else ""
        raise ValueError(f"load_data: {spec} holds no images{why}")
    data: PairData | LabelledData
    if isinstance(listing, Classified):
        data = LabelledData(*listing, preprocess, tokenizer, problems)
    else:
        data = PairData(*listing, preprocess, tokenizer, problems)
    return data.subset(limit)
