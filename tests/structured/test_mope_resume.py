"""Module pruning errors of a job that was stopped: what was kept is taken, of the same job alone."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from models.zoo import build
from open_clip.transformer import QuickGELU
from torchvision.transforms import Compose, Normalize

import vlprune
from vlprune import demo
from vlprune.structured import ablated, module_pruning_errors, mope

from .cases import pair_data, token_ids


class Stop(Exception):
    pass


def test_a_job_that_stopped_continues_with_what_it_had(tmp_path, monkeypatch):
    model = build("clip")
    data = pair_data(model)
    file = tmp_path / "errors.json"
    expected = module_pruning_errors(model, data, groups=3)
    monkeypatch.setattr(mope, "_CHUNK_MODULES", 4)
    computed = []

    def counting(*args):
        if len(computed) == 3:
            raise Stop
        computed.append([module.key for module in args[3]])
        return original(*args)

    original = ablated.embeddings_without
    monkeypatch.setattr(ablated, "embeddings_without", counting)
    with pytest.raises(Stop):
        module_pruning_errors(model, data, groups=3, resume=file)
    done = {key for chunk in computed for key in chunk}
    (kept,) = json.loads(file.read_text())["jobs"].values()
    assert kept.keys() == done
    assert len(done) == 12
    computed.clear()
    computed.append([])  # so that it stops one chunk sooner
    with pytest.raises(Stop):
        module_pruning_errors(model, data, groups=3, resume=file)
    assert not done & {key for chunk in computed for key in chunk}
    monkeypatch.setattr(ablated, "embeddings_without", original)
    assert module_pruning_errors(model, data, groups=3, resume=file) == expected

    def never(*args):
        raise AssertionError("everything was there")

    monkeypatch.setattr(ablated, "embeddings_without", never)
    assert module_pruning_errors(model, data, groups=3, resume=file) == expected


KILLED = """
import os, signal, sys
import vlprune
from vlprune import demo
from vlprune.structured import module_pruning_errors
model, preprocess, tokenizer = demo.load()
data = vlprune.load_data("demo:train:8", preprocess, tokenizer)
calls = []
def metric(model, data):
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(1)
    return vlprune.evaluate(model, data).primary
metric.__module__ = "mine"
found = module_pruning_errors(model, data, ["layers"], metric, resume=sys.argv[1])
print(len(calls), [e.error for e in found])
"""


def test_a_killed_process_continues(tmp_path):
    def run(stop):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "kept.json"), str(stop)]
        return subprocess.run(command, capture_output=True, text=True)

    assert run(6).returncode == -9
    again = run(-1)
    assert again.returncode == 0, again.stderr
    model, preprocess, tokenizer = demo.load()
    data = vlprune.load_data("demo:train:8", preprocess, tokenizer)
    expected = module_pruning_errors(model, data, ["layers"])
    # six calls are the full model and five layers; of eight layers three are left, and the full model again
    assert again.stdout.split(" ", 1) == ["4", f"{[e.error for e in expected]}\n"]


@pytest.mark.parametrize(
    "change", ["weight", "activation", "data", "preprocess", "tokenizer", "metric", "groups", "batch_size"]
)
def test_what_was_kept_of_something_else_is_not_taken(change, tmp_path):
    model = build("clip")
    data = pair_data(model)
    file = tmp_path / "kept.json"
    arguments = {"modules": ["heads"], "towers": ["text"]}
    module_pruning_errors(model, data, resume=file, **arguments)
    kept = json.loads(file.read_text())
    ((job, scores),) = kept["jobs"].items()
    kept["jobs"][job] = dict.fromkeys(scores, 1000.0)
    file.write_text(json.dumps(kept))
    if change == "weight":
        with torch.no_grad():
            model.token_embedding.weight[3, 1] += 1.0
    elif change == "activation":
        for block in model.transformer.resblocks:
            block.mlp.gelu = QuickGELU()
    elif change == "data":
        data.captions[3][1] = "another"
    elif change == "preprocess":
        data.preprocess = Compose([data.preprocess, Normalize([0.5] * 3, [0.5] * 3)])
    elif change == "tokenizer":
        data.tokenizer = lambda texts: token_ids(texts).flip(0)
    elif change == "metric":
        arguments["metric"] = lambda model, data: vlprune.evaluate(model, data).primary
    elif change in ("groups", "batch_size"):
        arguments[change] = 2
    expected = module_pruning_errors(model, data, **arguments)
    assert module_pruning_errors(model, data, resume=file, **arguments) == expected
    assert max(abs(e.error) for e in expected) < 100


def test_a_file_that_cannot_be_written_is_told_before_any_work(tmp_path, monkeypatch):
    model = build("clip")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(ablated, "embed_images", None)
    with pytest.raises(OSError, match="file"):
        module_pruning_errors(model, pair_data(model, 4), resume=tmp_path / "file" / "kept.json")
