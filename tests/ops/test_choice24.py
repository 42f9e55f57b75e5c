"""What is chosen for a `linear24` on a GPU: from times, before there are any by counting; and its memory."""

import json
import math

import pytest
import torch

from vlprune.ops.cuda24.choice import Choice, Memory, bucket, key, pick
from vlprune.ops.cuda24.default import default, steps
from vlprune.ops.cuda24.problem import Problem

A, B, C = ("sm90", "a"), ("sm90", "b"), ("triton", "c")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({A: 3.0, B: 2.0, C: 2.5}, B),
        ({A: 2.0, B: 2.0, C: 2.0}, A),
        ({C: 2.0, A: 2.0}, C),
        ({A: math.nan, B: math.inf, C: 5.0}, C),
        ({A: 0.0, B: -1.0, C: 5.0}, C),
    ],
)
def test_the_fastest_and_of_equals_the_first(times, expected):
    choice = pick(times, 7.0)
    assert (choice.backend, choice.config) == expected
    assert (choice.seconds, choice.dense) == (times[expected], 7.0)


@pytest.mark.parametrize("times", [{}, {A: math.nan}])
def test_nothing_to_pick_from(times):
    assert pick(times, 1.0) is None


@pytest.mark.parametrize(
    ("seconds", "dense", "faster"),
    [(1.0, 1.5, True), (1.0, 1.02, False), (1.0, 1.0, False), (2.0, 1.0, False)],
)
def test_dense_wins_ties(seconds, dense, faster):
    assert Choice("sm90", "a", seconds, dense).faster is faster


def test_buckets():
    tokens = (1, 8, 9, 50, 64, 65, 77, 197, 257, 288, 289, 577, 1024, 1025, 4096, 16384, 64 * 257)
    assert [bucket(t) for t in tokens] == [
        8, 8, 16, 56, 64, 72, 80, 208, 288, 288, 320, 640, 1024, 1152, 4096, 16384, 18432,
    ]  # fmt: skip
    for t in range(1, 5000):
        assert t <= bucket(t) < t + max(8, t / 8)
        assert bucket(bucket(t)) == bucket(t)
        assert bucket(t) <= bucket(t + 1)


def test_keys_tell_all_that_matters_apart():
    problem = Problem(50, 4096, 1024, torch.bfloat16, "gelu", bias=True)
    assert key(problem, "auto") == "auto bfloat16 56x1024x4096 gelu +bias"
    others = [
        Problem(60, 4096, 1024, torch.bfloat16, "gelu", bias=True),
        Problem(50, 1024, 4096, torch.bfloat16, "gelu", bias=True),
        Problem(50, 4096, 1024, torch.float16, "gelu", bias=True),
        Problem(50, 4096, 1024, torch.bfloat16, None, bias=True),
        Problem(50, 4096, 1024, torch.bfloat16, "gelu"),
        Problem(50, 4096, 1024, torch.bfloat16, "gelu", bias=True, residual=True),
    ]
    assert len({key(each, "auto") for each in [problem, *others]} | {key(problem, "sm90")}) == 8
    assert key(Problem(51, 4096, 1024, torch.bfloat16, "gelu", bias=True), "auto") == key(problem, "auto")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path))
    return tmp_path


CHOICE = Choice("sm90", "a", 1e-5, 2e-5)
MADE = {"gpu": "G", "torch": "2.11"}


def test_a_memory_lasts(folder):
    first, second = Memory("m.json", MADE), Memory("m.json", MADE)
    assert first.find("k") is None
    first.remember("k", CHOICE)
    assert first.find("k") == CHOICE
    # What another process stored meanwhile stays, though this one read the file before.
    second.remember("l", Choice("triton", "c", 3e-5, 2e-5))
    third = Memory("m.json", MADE)
    assert third.find("k") == CHOICE
    assert third.find("l").backend == "triton"


def test_other_versions_start_anew(folder):
    Memory("m.json", MADE).remember("k", CHOICE)
    newer = Memory("m.json", {**MADE, "torch": "2.12"})
    assert newer.find("k") is None
    newer.remember("l", CHOICE)
    assert json.loads((folder / "m.json").read_text())["choices"].keys() == {"l"}


BAD = {
    "missing": {"backend": "sm90", "config": "a", "seconds": 1.0},
    "too much": {**vars(CHOICE), "more": 1},
    "text": {**vars(CHOICE), "seconds": "soon"},
    "zero": {**vars(CHOICE), "seconds": 0.0},
    "negative": {**vars(CHOICE), "dense": -1.0},
    "nan": {**vars(CHOICE), "dense": math.nan},
    "backend": {**vars(CHOICE), "backend": 9},
    "config": {**vars(CHOICE), "config": None},
    "list": [1, 2],
    "null": None,
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_one_bad_entry_spoils_no_other(folder, bad):
    content = {"made with": MADE, "choices": {"bad": bad, "good": vars(CHOICE)}}
    (folder / "m.json").write_text(json.dumps(content))
    memory = Memory("m.json", MADE)
    assert memory.find("bad") is None
    assert memory.find("good") == CHOICE


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"made with": 1}', '{"choices": [1]}'])
def test_a_broken_file_counts_as_empty(folder, content):
    (folder / "m.json").write_text(content)
    memory = Memory("m.json", MADE)
    assert memory.find("k") is None
    memory.remember("k", CHOICE)
    assert Memory("m.json", MADE).find("k") == CHOICE


def test_a_folder_that_cannot_be_written_to(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path / "file"))
    memory = Memory("m.json", MADE)
    memory.remember("k", CHOICE)
    assert memory.find("k") == CHOICE


def tile(out, tokens, split=1):
    return {"out": out, "tokens": tokens, "in": 64, "split": split}


TILES = {"large": tile(128, 256), "small": tile(64, 64), "split": tile(128, 64, 0)}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(64 * 257, "large"), (4096, "large"), (50, "split"), (257, "split")],
)
def test_before_anything_is_measured(tokens, expected):
    problem = Problem(tokens, 1024, 4096, torch.bfloat16)
    assert default(problem, {"sm90": TILES, "sm80": TILES}, 132) == ("sm90", expected)


def test_what_needs_no_compilation_comes_first():
    able = {"sm90": TILES, "triton": {"preferred": None, "other": None}}
    assert default(Problem(7, 1024, 4096, torch.bfloat16), able, 132)[0] == "sm90"
    del able["sm90"]
    assert default(Problem(7, 1024, 4096, torch.bfloat16), able, 132) == ("triton", "preferred")


def test_counting():
    problem = Problem(100, 256, 1024, torch.bfloat16)
    # 2 x 2 tiles on 3 multiprocessors: two rounds of 64 x 128 results, 1024 inputs and the ends of a tile.
    assert steps(problem, tile(128, 64), 3) == 2 * 128 * 64 * (1024 + 4 * 64)
    # Split in 2 by itself, 8 parts on 8 multiprocessors.
    assert steps(problem, tile(128, 64, 0), 8) == 128 * 64 * (512 + 4 * 64)
