"""Image-caption pairs and labelled images, read lazily from a spec."""

from vlprune.data.dataset import Batch, LabelledData, PairData
from vlprune.data.images import FileImage, ImageSource, TarImage
from vlprune.data.load import load_data

__all__ = ["Batch", "FileImage", "ImageSource", "LabelledData", "PairData", "TarImage", "load_data"]
