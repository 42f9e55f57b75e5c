"""Fixtures of this folder."""

import pytest

from . import fake_cuda
from .again_calls import Call


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """The pretended CUDA kernels, installed."""
    return fake_cuda.install(monkeypatch, tmp_path)


@pytest.fixture
def times(monkeypatch):
    """What was timed, by a clock that prefers one config."""
    return fake_cuda.pretend_times(monkeypatch, sm90_64x32=1.0)


@pytest.fixture
def call(kernels, times):
    """A call that was made often enough to be remembered."""
    made = Call()
    assert made.again() is None
    made.first()
    return made
