"""Whether somebody sees which operators run, so that none may be passed by."""

from __future__ import annotations

import torch
from torch.utils._device import DeviceContext

__all__ = ["is_watched"]


def is_watched() -> bool:
    """Whether a mode, a tracer or a transform sees the operators: they know PyTorch's own."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or (torch._C._len_torch_function_stack() and _has_function_mode())
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        # A mode before dispatch: the key is there while its stack is not empty.
        or torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch)
    )


def _has_function_mode() -> bool:
    # That of `torch.set_default_device` looks at what makes tensors, and at nothing else.
    modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return any(type(mode) is not DeviceContext for mode in modes)
