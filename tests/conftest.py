"""What all tests share: a fixed seed, small open_clip models, and where the real photographs are."""

import os
from pathlib import Path

import pytest
import torch

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 50, "width": 48, "heads": 3, "layers": 2},
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny_clip(**vision):
    """A random CLIP of three image and two text blocks."""
    from open_clip.model import CLIP

    config = {**TINY_CLIP, "vision_cfg": {**TINY_CLIP["vision_cfg"], **vision}}
    return CLIP(**config).eval()


@pytest.fixture
def clip():
    torch.manual_seed(1)
    return tiny_clip()


@pytest.fixture
def batches():
    """Three calibration batches of images and texts for `clip`, the last one smaller."""
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(count, 3, 32, 32, generator=generator),
            torch.randint(1, 50, (count, 12), generator=generator),
        )
        for count in (4, 4, 3)
    ]


@pytest.fixture(scope="session")
def photographs():
    """Folder with real photographs (VLPRUNE_DATA); tests that need it are marked `data`."""
    folder = Path(os.environ.get("VLPRUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no photographs at {folder}; set VLPRUNE_DATA")
    return folder


@pytest.fixture
def one_thread():
    """PyTorch on one thread, as in the processes that results are compared with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
