"""`demo`: the built-in drawn scenes with their captions."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from .listing import Captioned, Problems
from .scenes import Scene, caption, draw, split_scenes

FORM = "demo, demo:test:N, demo:train or demo:train:N"
_DEFAULT_COUNT = {"test": 500, "train": 2000}


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """A scene that is drawn when asked for."""

    scene: Scene
    number: int

    @property
    def name(self) -> str:
        """The scene's number and its caption."""
        return f"drawn scene {self.number} ({caption(self.scene)})"

    def open(self) -> Image.Image:
        """Draw it."""
        return draw(self.scene)


def read_drawn(rest: str, problems: Problems) -> Captioned:
    """List the scenes of one split; N scenes are the first N of a longer list. Drawings have no faults."""
    split, _, count_text = (rest or "test").partition(":")
    count = int(count_text) if count_text.isascii() and count_text.isdigit() else 0
    if not count_text and not rest.endswith(":"):
        count = _DEFAULT_COUNT.get(split, 0)
    if split not in _DEFAULT_COUNT or count < 1:
        raise ValueError(f"load_data: spec 'demo:{rest}' is unknown; allowed: {FORM}")
    scenes = split_scenes(split, count)
    images = [DrawnImage(scene, number) for number, scene in enumerate(scenes)]
    return Captioned(images, [[caption(scene)] for scene in scenes])
