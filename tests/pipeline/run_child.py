"""A run for `test_trained_run`: `python -m pipeline.run_child IMAGES OUT SECONDS_PER_STEP`."""

import sys
import time
from pathlib import Path

import torch
from conftest import tiny_clip
from structured.clock import Clock

from vlprune import Keep, MagnitudeConfig, StructuredConfig, measure, pipeline
from vlprune.data import load_data
from vlprune.pipeline import Recovery, Variant
from vlprune.recovery.step import Step

from .conftest import Words, pixels

SMALLER = StructuredConfig(visual=Keep(heads=0.5, layers=2), samples=6, batch_size=3, groups=4)
STEPS = 5
DISTILL = Recovery.from_dict(
    {"method": "distill", "steps": STEPS, "batch_size": 3, "learning_rate": 1e-3, "save_every": 2}
)
VARIANTS = [
    Variant(None, SMALLER),
    Variant(None, SMALLER, recovery=DISTILL),
    Variant(MagnitudeConfig(), SMALLER, between=DISTILL),
    Variant(MagnitudeConfig(), SMALLER, between=DISTILL, recovery=DISTILL),
]
OPTIONS = pipeline.RunOptions("tiny", "pairs", "others", batch=2, rounds=5, train="more")


def go(images, out, variants=VARIANTS, say=lambda line: None):
    """The whole run on one thread, by a clock that no neighbour disturbs; the record."""
    torch.manual_seed(1)
    clip = tiny_clip()
    pairs = load_data(f"pairs:{images / 'pairs.tsv'}", pixels, Words())
    return pipeline.run(clip, pairs, pairs, variants, OPTIONS, out, say, pairs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure.compare = Clock()
    step = Step.__call__

    def slow(self, number, batch):
        """Leave time for a kill between two steps."""
        time.sleep(float(sys.argv[3]))
        return step(self, number, batch)

    Step.__call__ = slow
    go(Path(sys.argv[1]), Path(sys.argv[2]))
