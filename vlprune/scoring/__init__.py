"""Which weights of one matrix stay: a keep mask from the weight and what calibration saw."""

from .magnitude import magnitude_mask
from .wanda import wanda_mask

__all__ = ["magnitude_mask", "wanda_mask"]
