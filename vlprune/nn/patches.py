"""The convolution that cuts an image into patches, as one product where that measures faster on this CPU.

PyTorch may give the two to different libraries, of which one may not know the processor well: with float32 on
Zen 3 MKL's product is the faster one, on Zen 5 oneDNN's convolution, because MKL computes there with half as
wide registers as the processor has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import measure

__all__ = ["Conv2d", "cuts_patches", "product_is_faster"]

# As the models are timed where nobody says otherwise.
_BATCH = 8
# What is as fast stays as it is.
_MARGIN = 1.05


class Conv2d(nn.Conv2d):
    """The convolution over patches side by side, as one product."""

    def forward(self, input: Tensor) -> Tensor:
        """Map images [batch, 3, height, width] to [batch, width, rows, columns], a view of tokens."""
        if torch.is_grad_enabled() or input.device.type != "cpu" or input.dim() != 4:
            return super().forward(input)
        (height, width), (_, channels, *size) = self.kernel_size, input.shape
        whole = size[0] % height == 0 and size[1] % width == 0
        if not whole or channels != self.in_channels or input.numel() == 0:
            return super().forward(input)
        return _product(self, input)


def _product(conv: nn.Conv2d, images: Tensor) -> Tensor:
    (height, width), (batch, channels, *size) = conv.kernel_size, images.shape
    rows, columns = size[0] // height, size[1] // width
    cut = images.reshape(batch, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
    patches = F.linear(cut.flatten(3).flatten(1, 2), conv.weight.flatten(1), conv.bias)
    return patches.transpose(1, 2).reshape(batch, conv.out_channels, rows, columns)


def cuts_patches(conv: nn.Module) -> bool:
    """Whether it is a convolution over patches side by side, of 8 pixels and more."""
    if not isinstance(conv, nn.Conv2d) or type(conv) not in (nn.Conv2d, Conv2d) or min(conv.kernel_size) < 8:
        return False
    return (conv.stride, conv.padding, conv.dilation, conv.groups) == (conv.kernel_size, (0, 0), (1, 1), 1)


@torch.inference_mode(False)
@torch.no_grad()
def product_is_faster(conv: nn.Conv2d, size: tuple[int, int]) -> bool:
    """Whether the product of eight images [in_channels, *size] takes clearly less time than the convolution.

    Measured once in a process for the same shapes, dtype and threads, so that a model and what is loaded of
    it agree there to the last bit; in another process, or on another machine, the other form may win, whose
    sums round otherwise. False where weights are not on a CPU, or of a dtype that is not computed with, or
    fake, or patches leave a rest at the edges.
    """
    weight = conv.weight
    computed = weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
    rest = any(pixels % kernel for pixels, kernel in zip(size, conv.kernel_size, strict=True))
    plain = type(weight.data) is Tensor and not torch._C._len_torch_dispatch_stack()
    if weight.device.type != "cpu" or not computed or not plain or rest:
        return False
    key = (*size, *weight.shape, weight.dtype, conv.bias is None, torch.get_num_threads())
    if key not in _faster:
        images = torch.zeros(_BATCH, conv.in_channels, *size, dtype=weight.dtype, device="cpu")
        with torch.autocast("cpu", enabled=False):
            times = measure.compare(
                {
                    "convolution": lambda: nn.Conv2d.forward(conv, images),
                    "product": lambda: _product(conv, images),
                },
                rounds=9,
                min_seconds=0.03,
                max_seconds=1.0,
            )
        # of two threads that come here at once, both use the verdict that stays
        _faster.setdefault(key, times["product"].median * _MARGIN < times["convolution"].median)
    return _faster[key]


_faster: dict[tuple[object, ...], bool] = {}
