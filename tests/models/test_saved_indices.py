"""Packed weights with broken indices are refused when a folder is loaded, and the place is named."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlprune
from vlprune import MagnitudeConfig
from vlprune.ops.checks import wrong_indices

from .zoo import build

# One byte of two groups: low and then high nibble, each its first index and four times its second.
GOOD = [4 * second + first for first in range(4) for second in range(first + 1, 4)]


def test_all_pairs_that_ascend_and_no_others():
    for byte in range(256):
        fine = byte & 15 in GOOD and byte >> 4 in GOOD
        assert (wrong_indices(torch.tensor([[byte]], dtype=torch.uint8), 8) is None) == fine


def test_the_first_group_is_named():
    meta = torch.full((3, 2), 0x44, dtype=torch.uint8)
    meta[2, 0], meta[1, 1] = 0x05, 0x14
    assert wrong_indices(meta, 16) == "row 1, inputs 12 to 15: expected two ascending indices, got 1 and 0"
    # of 12 inputs, the last half byte is of none
    meta[2, 0], meta[1, 1] = 0x44, 0x04
    assert wrong_indices(meta, 12) is None


def pruned(packed):
    model = build("clip")
    vlprune.prune_(model, MagnitudeConfig(pattern="2:4"))
    if packed:
        vlprune.sparsify_(model, only_if_faster=False)
    return model


@pytest.mark.parametrize("packed", [True, False], ids=["layer", "weight"])
def test_a_saved_folder(packed, tmp_path):
    vlprune.save_pretrained(pruned(packed), tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    name = next(key for key in stored if key.endswith(".meta"))
    stored[name][1, 0] = 0x00
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"model\.safetensors: {name}: row 1, inputs 0 to 3: expected two asc"
    ):
        vlprune.from_pretrained(tmp_path)
