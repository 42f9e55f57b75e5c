"""Small real files for the data tests: pictures of one colour and noise, tars, tables."""

import io
import json
import tarfile

import numpy as np
import torch
from PIL import Image


def picture(seed, mode="RGB", size=(9, 7)):
    """A noise picture; lossless formats give back exactly these pixels."""
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels, mode)


def save(path, seed=0, mode="RGB", size=(9, 7), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, mode, size).save(path, **options)
    return path


def encoded(seed, form="PNG", mode="RGB"):
    buffer = io.BytesIO()
    picture(seed, mode).save(buffer, form)
    return buffer.getvalue()


def write_tar(path, members, mode="w"):
    """members: name -> bytes, text or something for JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            if isinstance(content, str):
                content = content.encode()
            elif not isinstance(content, bytes):
                content = json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def preprocess(image):
    """The pixels themselves, so that a batch can be compared with PIL's own decoding."""
    assert image.mode == "RGB"
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def tokenizer(texts):
    """One number a character, eight of them."""
    return torch.tensor([[ord(c) for c in text[:8].ljust(8)] for text in texts])


def direct(path):
    """What PIL alone reads from the file."""
    with Image.open(path) as image:
        return preprocess(image.convert("RGB"))
