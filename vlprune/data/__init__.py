"""Image-caption pairs and labelled images, read lazily from a spec."""

from .dataset import Batch, LabelledData, PairData
from .images import FileImage, ImageSource, TarImage
from .load import load_data

__all__ = ["Batch", "FileImage", "ImageSource", "LabelledData", "PairData", "TarImage", "load_data"]
