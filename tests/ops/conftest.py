"""Fixtures of this folder."""

import pytest

from . import fake_cuda


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """The pretended CUDA kernels, installed."""
    return fake_cuda.install(monkeypatch, tmp_path)
