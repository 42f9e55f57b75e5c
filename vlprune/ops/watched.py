"""Whether somebody sees which operators run, so that none may be passed by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils._device import DeviceContext

__all__ = ["is_watched"]

# Found once: the questions are asked at every call.
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack
_transforms: Callable[[], bool] = torch._C._are_functorch_transforms_active
_traces: Callable[[], bool] = torch._C._is_tracing
_includes: Callable[[torch._C.DispatchKey], bool] = torch._C._dispatch_tls_is_dispatch_key_included
_BEFORE_DISPATCH = torch._C.DispatchKey.PreDispatch


def is_watched() -> bool:
    """Whether a mode, a tracer or a transform sees the operators: they know PyTorch's own."""
    return bool(
        _dispatch_modes()
        or (_function_modes() and _has_function_mode())
        or _transforms()
        or _traces()
        # A mode before dispatch: the key is there while its stack is not empty.
        or _includes(_BEFORE_DISPATCH)
    )


def _has_function_mode() -> bool:
    # That of `torch.set_default_device` looks at what makes tensors, and at nothing else.
    modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return any(type(mode) is not DeviceContext for mode in modes)
