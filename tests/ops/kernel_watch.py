"""What the kernels' cases need: poisoned and guarded outputs, names of what was launched, bits compared."""

import contextlib
import importlib
from unittest import mock

import torch

from vlprune.ops import reference

MODULES = ("column_sumsq", "masked_update", "quantize_rows", "unpack24")
MODULES += ("wanda_layer", "wanda_mask", "wanda_pack24", "wanda_rows")
GUARD = 64
_made = []
_new_empty = torch.Tensor.new_empty


def empty(*shape, dtype=torch.float32, device="cpu"):
    """What `torch.empty` gives, poisoned and guarded."""
    shape = torch.Size(shape[0] if isinstance(shape[0], (tuple, list, torch.Size)) else shape)
    size = shape.numel() * dtype.itemsize
    memory = torch.full((size + GUARD,), 0xFF, dtype=torch.uint8, device=device)
    _made.append(memory)
    return memory[:size].view(dtype).view(shape)


def new_empty(self, *shape, dtype=None, device=None):
    """What `torch.Tensor.new_empty` gives, likewise."""
    # The interpreter's own ones name a device.
    if device is not None:
        return _new_empty(self, *shape, dtype=dtype, device=device)
    return empty(*shape, dtype=dtype or self.dtype, device=self.device)


def guards_stand():
    """Whether nothing was written past the end of what was made since the last time."""
    whole = all(bool((memory[-GUARD:] == 0xFF).all()) for memory in _made)
    _made.clear()
    return whole


@contextlib.contextmanager
def watched():
    """Poison what the launchers allocate, and give the set that the names of launched kernels come into."""
    from vlprune.kernels.launch import launch

    launched = set()

    def noted(kernel, *arguments, **constants):
        launched.add(kernel.fn.__name__)
        launch(kernel, *arguments, **constants)

    with contextlib.ExitStack() as stack:
        for name in MODULES:
            module = importlib.import_module(f"vlprune.kernels.{name}")
            stack.enter_context(mock.patch.object(module, "launch", noted))
        stack.enter_context(mock.patch.object(torch, "empty", empty))
        stack.enter_context(mock.patch.object(torch.Tensor, "new_empty", new_empty))
        yield launched


def same(actual, expected):
    """Bit for bit."""
    assert actual.dtype is expected.dtype
    assert actual.shape == expected.shape
    one, other = (tensor.cpu().contiguous().view(torch.uint8) for tensor in (actual, expected))
    assert torch.equal(one, other)


def on_cpu(op, *arguments):
    """Call the definition, which refuses scores that are not finite there."""
    here = (each.cpu() if isinstance(each, torch.Tensor) else each for each in arguments)
    return getattr(reference, op)(*here)
