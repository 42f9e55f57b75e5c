"""The built-in drawn set: two coloured shapes on a plain ground, and the sentence that says so.

A scene's *content* (two things and the background) is what its caption tells; its *seed* moves, turns, tints
and lights the picture a little, so one caption has many pictures. Training and test scenes are told apart
by a hash of the content alone: no seed, no wording and no order of the two things can carry a scene across.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (244, 140, 30),
    "yellow": (240, 220, 50),
    "green": (40, 150, 60),
    "cyan": (60, 200, 210),
    "blue": (40, 80, 205),
    "purple": (130, 50, 165),
    "pink": (245, 130, 180),
}
BACKGROUNDS = {
    "white": (246, 246, 246),
    "grey": (135, 135, 135),
    "black": (20, 20, 20),
    "sand": (212, 188, 142),
}
SIZES = {"small": 0.095, "large": 0.165}  # radius, as a fraction of the picture's side
PLACES = {
    "top left": (0.26, 0.26),
    "top right": (0.74, 0.26),
    "bottom left": (0.26, 0.74),
    "bottom right": (0.74, 0.74),
}
WORDINGS = (
    "a {0.size} {0.colour} {0.shape} at {0.place} and a {1.size} {1.colour} {1.shape} at {1.place} on {2}",
    "at {0.place} a {0.size} {0.colour} {0.shape} and at {1.place} a {1.size} {1.colour} {1.shape} on {2}",
    "on {2} a {0.size} {0.colour} {0.shape} at {0.place} and a {1.size} {1.colour} {1.shape} at {1.place}",
)

_SUPERSAMPLING = 4
_TEST_SHARE = 10  # every tenth scene content, by its hash, is a test scene


@dataclass(frozen=True)
class Thing:
    """One drawn shape: words of SIZES, COLOURS, SHAPES and PLACES."""

    size: str
    colour: str
    shape: str
    place: str


@dataclass(frozen=True)
class Scene:
    """Two things in different places on a background, in the order the caption names them.

    `wording` picks the sentence from WORDINGS; `seed` decides everything the caption does not say.
    """

    things: tuple[Thing, Thing]
    background: str
    wording: int
    seed: int

    def content(self) -> str:
        """Return what the scene shows, the same for every wording, order of things and seed."""
        parts = sorted(f"{t.place}: {t.size} {t.colour} {t.shape}" for t in self.things)
        return "; ".join([*parts, self.background])


def caption(scene: Scene) -> str:
    """Return the sentence that describes `scene`: it names all of the content and nothing of the jitter."""
    first, second = scene.things
    return WORDINGS[scene.wording].format(first, second, scene.background)


def split_of(scene: Scene) -> str:
    """Return the split ("train" or "test") that the scene's content belongs to, on every machine alike."""
    digest = hashlib.blake2b(scene.content().encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % _TEST_SHARE == 0 else "train"


def split_scenes(split: str, count: int, seed: int = 0) -> list[Scene]:
    """Return `count` random scenes of one split, no two with the same content.

    The same arguments give the same list; a shorter list is the beginning of a longer one.
    ValueError for another split, or for more scenes than the split can give without long searching.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split_scenes: split must be 'train' or 'test', got {split!r}")
    limit = 200_000 if split == "train" else 20_000
    if not 0 <= count <= limit:
        raise ValueError(f"split_scenes: count must be 0 to {limit} for {split!r}, got {count}")
    rng = random.Random(f"{split} {seed}")
    scenes: list[Scene] = []
    seen: set[str] = set()
    while len(scenes) < count:
        scene = _random_scene(rng)
        content = scene.content()
        if content not in seen and split_of(scene) == split:
            seen.add(content)
            scenes.append(scene)
    return scenes


def draw(scene: Scene, size: int = 64) -> Image.Image:
    """Return the picture of `scene`: RGB, `size` x `size` pixels, always the same for the same arguments."""
    if size < 16:
        raise ValueError(f"draw: size must be at least 16 pixels, got {size}")
    rng = np.random.default_rng(scene.seed)
    side = size * _SUPERSAMPLING
    ground = _tint(BACKGROUNDS[scene.background], rng)
    canvas = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(canvas)
    # By place, not by caption order: the order of the words must leave no trace in the picture.
    for thing in sorted(scene.things, key=lambda t: t.place):
        _draw_thing(pen, thing, side, ground, rng)
    pixels = np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float32)
    pixels = pixels * _light(size, rng) + rng.normal(0.0, 5.0, pixels.shape).astype(np.float32)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _random_scene(rng: random.Random) -> Scene:
    places = rng.sample(list(PLACES), 2)
    first, second = (
        Thing(rng.choice(list(SIZES)), rng.choice(list(COLOURS)), rng.choice(SHAPES), place)
        for place in places
    )
    return Scene(
        things=(first, second),
        background=rng.choice(list(BACKGROUNDS)),
        wording=rng.randrange(len(WORDINGS)),
        seed=rng.getrandbits(48),
    )


def _tint(colour: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(c) for c in np.clip(np.asarray(colour) + rng.integers(-12, 13, 3), 0, 255))
    return red, green, blue


def _light(size: int, rng: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return a brightness ramp [size, size, 1] around 1: light that falls in from a random side."""
    slope_x, slope_y = rng.uniform(-0.12, 0.12, 2)
    along = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    ramp = 1.0 + np.float32(slope_x) * along[None, :] + np.float32(slope_y) * along[:, None]
    return np.asarray(ramp[:, :, None], dtype=np.float32)


def _draw_thing(
    pen: ImageDraw.ImageDraw, thing: Thing, side: int, ground: tuple[int, int, int], rng: np.random.Generator
) -> None:
    shift_x, shift_y = rng.uniform(-0.06, 0.06, 2)
    x = (PLACES[thing.place][0] + shift_x) * side
    y = (PLACES[thing.place][1] + shift_y) * side
    radius = SIZES[thing.size] * side * rng.uniform(0.88, 1.12)
    turn = math.radians(rng.uniform(-12.0, 12.0))
    colour = _tint(COLOURS[thing.colour], rng)
    if thing.shape in ("circle", "ring"):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        if thing.shape == "ring":
            hole = 0.55 * radius
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=ground)
        return
    corners = [
        (x + radius * r * math.cos(a + turn), y + radius * r * math.sin(a + turn))
        for r, a in _OUTLINES[thing.shape]
    ]
    pen.polygon(corners, fill=colour)


def _regular(corners: int, first_degrees: float, radius: float = 1.0) -> list[tuple[float, float]]:
    return [(radius, math.radians(first_degrees + 360.0 * k / corners)) for k in range(corners)]


def _cross(arm: float) -> list[tuple[float, float]]:
    """Return the twelve corners of a plus sign whose arms reach 1 and are 2 * `arm` wide."""
    tip, inner = math.hypot(1.0, arm), math.hypot(arm, arm)
    half = math.degrees(math.atan2(arm, 1.0))
    corners = []
    for quarter in (0.0, 90.0, 180.0, 270.0):
        corners += [(tip, quarter - half), (tip, quarter + half), (inner, quarter + 45.0)]
    return [(r, math.radians(a)) for r, a in corners]


# Outlines around the centre as (radius, angle); the picture's y axis points down, so -90 degrees is up.
_OUTLINES = {
    "square": _regular(4, 45.0, 1.2),
    "triangle": _regular(3, -90.0, 1.15),
    "diamond": [
        (1.2, math.radians(-90.0)),
        (0.8, 0.0),
        (1.2, math.radians(90.0)),
        (0.8, math.radians(180.0)),
    ],
    "star": [(1.15 if k % 2 == 0 else 0.5, math.radians(-90.0 + 36.0 * k)) for k in range(10)],
    "cross": _cross(0.32),
}
