"""Where an image lies, and how it becomes an RGB picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageSource(Protocol):
    """One image that is opened only when asked for."""

    @property
    def name(self) -> str:
        """What error messages call it."""

    def open(self) -> Image.Image:
        """Open it anew; called from several threads at once."""


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image file."""

    path: str

    @property
    def name(self) -> str:
        """The path."""
        return self.path

    def open(self) -> Image.Image:
        """Open the file."""
        return Image.open(self.path)


@dataclass(frozen=True, slots=True)
class TarImage:
    """An image inside an uncompressed tar: only its place is held in memory.

    Args:
        tar: path of the file.
        member: name inside.
        offset: first byte of the image.
        size: its bytes.

    """

    tar: str
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """The tar and the member."""
        return f"{self.tar}:{self.member}"

    def open(self) -> Image.Image:
        """Read the member's bytes and open them."""
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            return Image.open(io.BytesIO(file.read(self.size)))


def decode(source: ImageSource) -> Image.Image:
    """Decode the whole image to RGB; orientation tags are ignored, as open_clip does.

    Raises FileNotFoundError when the file has gone, ValueError when the bytes are no whole image.
    """
    try:
        with source.open() as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"image {source.name} does not exist") from None
    except MemoryError:
        raise
    except Exception as error:  # PIL's plugins raise nearly anything on bad bytes
        raise ValueError(f"image {source.name} cannot be decoded: {error or type(error).__name__}") from error
