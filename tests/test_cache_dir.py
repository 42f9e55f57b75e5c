"""The cache folder: where it is, and that no state of its files can break anything."""

from pathlib import Path

import pytest

from vlprune.cache_dir import cache_file, load_cache, save_cache


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("/own", "/xdg", "/own/a.json"),
        (None, "/xdg", "/xdg/vlprune/a.json"),
        ("", "/xdg", "/xdg/vlprune/a.json"),
        (None, None, "/home/someone/.cache/vlprune/a.json"),
        (None, "relative", "/home/someone/.cache/vlprune/a.json"),
    ],
)
def test_folder(monkeypatch, own, xdg, expected):
    monkeypatch.setenv("HOME", "/home/someone")
    for name, value in (("VLPRUNE_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache_file("a.json") == Path(expected)


def test_a_device_name_makes_one_file_name(monkeypatch, tmp_path):
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path))
    assert cache_file("linear24 NVIDIA H200/../x.json") == tmp_path / "linear24_NVIDIA_H200_.._x.json"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"a": '])
def test_a_broken_file_is_empty_and_can_be_written(monkeypatch, tmp_path, content):
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path))
    assert load_cache("a.json") == {}
    (tmp_path / "a.json").write_bytes(content)
    assert load_cache("a.json") == {}
    assert save_cache("a.json", {"b": [1.5, None]})
    assert load_cache("a.json") == {"b": [1.5, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path / "file" / "folder"))
    assert not save_cache("a.json", {})
    assert load_cache("a.json") == {}


def test_a_user_without_a_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("VLPRUNE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert load_cache("m.json") == {}
    assert not save_cache("m.json", {"a": 1})
