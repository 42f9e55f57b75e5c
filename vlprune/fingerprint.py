"""What results depend on, as one digest, by which kept ones are told from those of something else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn, uint8

__all__ = ["digests", "fingerprint"]


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def fingerprint(model: nn.Module, data: Iterable[Any], settings: Any) -> str:
    """Digest of a model, of data and of settings.

    Args:
        model: by its parameters and buffers, and by the classes and plain attributes of its modules, which
            tell one activation or number of heads from another. Merged and split attention differ.
        data: of `load_data`, each by the names of its images, all of their texts, and how both are prepared.
            What an image shows is not looked at.
        settings: what JSON can hold.

    """
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, module in model.named_modules():
        digest.update(f"{name} {_about(module)}\n".encode())
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            _add_tensor(digest, name, tensor)
    for part in data:
        _add_data(digest, part)
    return digest.hexdigest()


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A short digest of each tensor, by its name."""
    found = {}
    for name, tensor in tensors.items():
        _add_tensor(digest := hashlib.sha256(), name, tensor)
        found[name] = digest.hexdigest()[:16]
    return found


def _add_tensor(digest: _Digest, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(uint8).numpy().tobytes())


def _add_data(digest: _Digest, data: Any) -> None:
    for image in data.images:
        digest.update(f"{image.name}\n".encode())
    texts = [getattr(data, name, None) for name in ("captions", "labels", "classes", "templates")]
    # torchvision's transforms say all of themselves; where a function lies in memory says nothing
    shown = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(data.preprocess))
    digest.update(json.dumps([texts, shown, _about(data.tokenizer)]).encode())


def _about(thing: Any) -> str:
    """Class, or function, and attributes that are plain values."""
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    held = sorted(getattr(thing, "__dict__", {}).items())
    plain = [(k, v) for k, v in held if _is_plain(v) and not k.startswith("_") and k != "training"]
    return f"{kind.__module__}.{kind.__qualname__} {plain}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
