"""The benchmark that joins scores and speeds: what it reads in others' files, and what it builds."""

from argparse import Namespace

import pytest
import torch
from models.zoo import build

from benchmarks import frontier
from vlprune.files import write_json
from vlprune.models import view
from vlprune.models.parts import block_parts
from vlprune.nn import Linear24
from vlprune.report.frontier import FUSED


def draws(*scores, same=True):
    return {str(i): {"primary": score, "zeros_as_pruned": same} for i, score in enumerate(scores)}


def found(record):
    return {
        (p["name"], p["recovered"]): (p["shape"], p["scores"], p["dense"]) for p in frontier.points_in(record)
    }


def test_rows_of_weights():
    rows = {"dense": draws(90.0), "wanda ecoflap 60%": draws(80.0, 82.0), "ria 2:4": draws(70.0)}
    assert found({"format": "vlprune-accuracy", "table": "methods", "rows": rows}) == {
        ("wanda ecoflap 60%", None): ("unstructured", [80.0, 82.0], 90.0),
        ("ria 2:4", None): ("2:4", [70.0], 90.0),
    }
    split = {
        "format": "vlprune-accuracy",
        "table": "split",
        "rows": {"dense": draws(9.0), "30:70": draws(1.0)},
    }
    assert found(split) == {("wanda towers 30:70", None): ("unstructured", [1.0], 9.0)}


def test_rows_of_modules():
    rows = {"full": 90.0, "heads mope -50%": {"0": 60.0, "1": 61.0}}
    assert found({"format": "vlprune-mope", "rows": rows}) == {
        ("mope heads -50%", None): ("heads -50%", [60.0, 61.0], 90.0)
    }


def test_rows_of_training():
    rows = {
        "dense": draws(90.0),
        "wanda 2:4": draws(80.0),
        "wanda 2:4 SparseLoRA": draws(88.0),
        "wanda 2:4 LoRA": draws(89.0, same=False),
        "wanda 70% fine-tuned": draws(87.0),
        "mope -50% distilled": draws(70.0),
        "mope -75% 2:4 distilled": draws(60.0),
        "mope -75% 2:4 LoRA": draws(61.0, same=False),
    }
    shapes = {
        key: shape for key, (shape, _, _) in found({"format": "vlprune-recovery", "rows": rows}).items()
    }
    assert shapes == {
        ("wanda 2:4", None): "2:4",
        ("wanda 2:4", "SparseLoRA"): "2:4",
        ("wanda 2:4", "LoRA"): "dense",
        ("wanda 70%", "fine-tuned"): "unstructured",
        ("mope heads neurons -50%", "distilled"): "heads neurons -50%",
        ("mope heads neurons -75% 2:4", "distilled"): "heads neurons -75% 2:4",
        ("mope heads neurons -75% 2:4", "LoRA"): "heads neurons -75%",
    }


@pytest.mark.parametrize(
    ("shape", "heads", "neurons", "layers"),
    [
        ("2:4", 4, 256, 3),
        ("heads -50%", 2, 256, 3),
        ("neurons -75% 2:4", 4, 64, 3),
        ("heads neurons -50%", 2, 128, 3),
        ("layers -25%", 4, 256, 2),
    ],
)
def test_models_of_a_shape(shape, heads, neurons, layers, monkeypatch):
    model = build("clip")
    # what is faster is another test's matter
    monkeypatch.setattr(frontier, "sparsify_", lambda *args, example: packed_all(*args))
    small = frontier.shaped(model, shape, torch.randn(2, 3, 32, 32))
    blocks = view(small).towers["visual"].blocks
    parts = [block_parts(block) for block in blocks]
    assert [(p.attention.num_heads, p.mlp.neurons) for p in parts] == [(heads, neurons)] * layers
    packed = any(isinstance(module, Linear24) for module in small.modules())
    assert packed == shape.endswith("2:4")
    assert len(view(model).towers["visual"].blocks) == 3


def test_the_dense_tower_is_also_measured_without_the_work_that_no_result_needs():
    model = build("clip")
    fused = frontier.shaped(model, FUSED, torch.randn(2, 3, 32, 32))
    assert type(fused.visual).__module__ == "vlprune.nn.blocks"
    assert type(model.visual).__module__ == "open_clip.transformer"


def packed_all(model):
    from vlprune import sparsify_

    return sparsify_(model, only_if_faster=False)


def test_all_shapes_are_measured_in_one_run_when_one_is_new(tmp_path, monkeypatch):
    measured = []

    def speeds(_, shapes, args):
        measured.append(shapes)
        return {shape: {"speedup": 2.0} for shape in shapes}

    monkeypatch.setattr(frontier, "speeds", speeds)
    monkeypatch.setattr(frontier, "load_model", lambda _: Namespace(model=None))
    head = {"format": "vlprune-mope", "model": "demo", "data": "demo"}
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    write_json(files[0], {**head, "rows": {"full": 90.0, "heads mope -50%": {"0": 60.0}}})
    write_json(files[1], {**head, "rows": {"full": 90.0, "layers mope -50%": {"0": 50.0}}})
    args = Namespace(
        scores=files[:1], name="demo", model="demo", out=tmp_path / "out.json", batch=8, threads=1, rounds=1,
        again=False,
    )  # fmt: skip
    for args.scores in (files[:1], files, files):
        write_json(args.out, frontier.run(args))
    assert measured == [["heads -50%", FUSED], ["heads -50%", "layers -50%", FUSED]]
    args.batch = 1
    with pytest.raises(SystemExit, match="is of demo, batch 8"):
        frontier.run(args)
