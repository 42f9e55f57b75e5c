"""Bad input to loading, told in one error: a device that is not there, a file whose contents are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["UNUSABLE", "bad_weights", "check_device", "contents_of", "expect", "first_line"]

# What values that make no sense lead to, inside of libraries that do not check them.
UNUSABLE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
)  # fmt: skip

_IN_WORDS = {dict: "an object", list: "a list", bool: "true or false"}


def check_device(device: str | torch.device) -> None:
    """Raise ValueError, with what there is, unless tensors can be put on `device` here."""
    try:
        torch.empty(1, device=device)
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:
        available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        available += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(
            f"device: {str(device)!r} cannot be used here; available: {', '.join(available)}"
        ) from error


def expect(value: Any, kind: type, where: str = "") -> Any:
    """Return a JSON value if it is of this kind, else raise ValueError; `where` is its place in the file."""
    if not isinstance(value, kind):
        place = f"{where}: " if where else ""
        raise ValueError(f"{place}expected {_IN_WORDS[kind]}, got {value!r:.60}")
    return value


@contextmanager
def contents_of(file: Path) -> Iterator[None]:
    """Let whatever goes wrong over a file's contents be one ValueError that names the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except UNUSABLE as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{file}: a value that cannot be used ({reason})") from error


def bad_weights(file: Path, what: str, error: Exception) -> ValueError:
    """Return the error to raise from `error`, which reading `file` into a model led to."""
    if isinstance(error, RuntimeError | KeyError):
        reason = " ".join(str(error).split())[:300]
    else:
        # unpickling gives advice on how to run foreign code instead of a reason
        reason = f"no weights can be read from it ({type(error).__name__})"
    return ValueError(f"{file}: does not fit {what}: {reason}")


def first_line(error: BaseException) -> str:
    """Shorten an error to what fits in another's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
