"""Six images with captions, on the disk."""

import pytest
import torch

from vlprune.data import load_data


class Words:
    """A tokenizer of letters, padded; the end has the highest number as open_clip's pooling needs."""

    def __call__(self, texts, context_length=12):
        rows = [[ord(c) % 47 + 1 for c in text[: context_length - 1]] + [49] for text in texts]
        return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])


def pixels(picture):
    """A tensor of the picture as it is."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    return pil_to_tensor(picture) / 255


def write_images(folder):
    """The images and their list."""
    from PIL import Image

    lines = []
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 255 - 40 * i, 20)).save(folder / f"{i}.png")
        lines.append(f"{i}.png\tscene number {i}\n")
    (folder / "pairs.tsv").write_text("".join(lines))


@pytest.fixture
def pairs(tmp_path):
    write_images(tmp_path)
    return load_data(f"pairs:{tmp_path / 'pairs.tsv'}", pixels, Words())
