"""What is measured of a model's layers, by a clock that counts parameters; and what is remembered of it."""

import copy
import functools
import json

import pytest
import torch
from models.zoo import KINDS, assert_close, build, outputs

from vlprune import measure, models
from vlprune.models.parts import block_parts
from vlprune.nn import Linear24
from vlprune.structured import compact_
from vlprune.structured.speedup import timing
from vlprune.structured.speedup.calls import record_blocks, tower_calls
from vlprune.structured.speedup.shapes import Shape, cut_block, neuron_counts, pack_part_, shapes_of
from vlprune.structured.speedup.timing import KeptTimes, measure_costs

from .clock import Clock, cost_of


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(measure, "compare", found)
    return found


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_costs_are_those_of_the_real_modules(clock):
    model = build("clip")
    visual, text = measure_costs(model, ["visual", "text"], batch=2, progress=False)
    images, texts = tower_calls(model, ["visual", "text"], 2).values()
    assert visual.whole == cost_of(images)
    assert text.whole == cost_of(texts)
    block = model.visual.transformer.resblocks[1]
    cost = visual.layers[1]
    assert cost.whole == pytest.approx(parameters(block))
    # a head: 16 rows of q, k and v with biases, 16 columns of the projection, in a stream of 64
    head, neuron = 3 * 16 * 65 + 16 * 64, 65 + 64
    for heads, neurons in ((4, 256), (3, 256), (4, 48), (1, 128), (0, 0)):
        expected = parameters(block) - head * (4 - heads) - neuron * (256 - neurons)
        assert cost.seconds(heads, neurons) == pytest.approx(expected)
    assert (visual.agreement, text.agreement) == (1.0, 1.0)
    assert len(text.layers) == 2


def test_equal_blocks_are_measured_once(clock):
    measure_costs(build("clip"), ["visual"], batch=2, progress=False)
    names = [name for names in clock.timed for name in names]
    # four counts of heads, twelve of neurons
    assert sum("heads" in name for name in names) == 4
    assert sum("neurons" in name for name in names) == 12
    assert clock.timed[0] == ["visual", "visual rest", "visual 0"]


def test_blocks_of_other_sizes_are_other_kinds(clock):
    model = build("clip")
    compact_(model, {"visual": {"neurons": {1: range(100)}}})
    visual = measure_costs(model, ["visual"], batch=2, progress=False)[0]
    assert [layer.neurons.total for layer in visual.layers] == [256, 100, 256]
    for layer, block in zip(visual.layers, model.visual.transformer.resblocks, strict=True):
        assert layer.whole == pytest.approx(parameters(block))


def test_a_block_with_a_forward_of_its_own_keeps_it(clock):
    model = build("clip")
    block = model.visual.transformer.resblocks[1]
    own = block.forward = functools.partial(type(block).forward, block)
    measure_costs(model, ["visual"], batch=2, progress=False)
    assert vars(block)["forward"] is own


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "timm-map"])
def test_every_kind_of_model_is_left_as_it_was(kind, tmp_path, clock):
    model = build(kind, tmp_path)
    before, state = outputs(model), copy.deepcopy(model.state_dict())
    towers = list(models.view(model).towers)
    if not hasattr(model.visual, "image_size"):
        pytest.skip("no made-up images without an image size")
    costs = measure_costs(model, towers, batch=2, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(model), strict=True))
    assert model.state_dict().keys() == state.keys()
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())
    for cost in costs:
        assert 0 < cost.fixed < cost.whole
        for layer in cost.layers:
            assert layer is None or layer.whole > 0
    if kind == "coca":
        # the decoder does not run in the text tower
        assert [layer is None for layer in costs[1].layers] == [False, False, True, True, True, True]
    if kind == "timm":
        assert costs[0].layers[0].heads.least == 1
    if kind == "custom-blocks":
        # a norm over all heads, and one over all neurons
        assert costs[0].layers[0].heads is None
        assert costs[0].layers[0].neurons is None


@pytest.mark.parametrize(
    "shape", [Shape("heads", 1), Shape("heads", 0), Shape("neurons", 32), Shape("neurons", 0)]
)
def test_a_cut_block_is_the_block_of_the_smaller_model(shape):
    model = build("clip")
    block = models.view(model).towers["visual"].blocks[1]
    call = record_blocks(model, "visual", tower_calls(model, ["visual"], 2)["visual"])[1]
    before = outputs(model)
    found = call.run(cut_block(block, shape))
    assert_close(outputs(model), before)
    compact_(model, {"visual": {shape.part: {1: range(shape.kept)}}})
    torch.testing.assert_close(found, model.visual.transformer.resblocks[1](*call.args, **call.kwargs))


@pytest.mark.parametrize("part", ["heads", "neurons"])
def test_a_packed_part_runs_2_of_4_weights(part):
    block = models.view(build("clip")).towers["visual"].blocks[0]
    packed = cut_block(block, Shape(part, 2 if part == "heads" else 64, packed=True))
    parts = block_parts(packed)
    layers = {
        "heads": [*parts.attention.inputs.values(), parts.attention.out_proj],
        "neurons": [parts.mlp.fc1, parts.mlp.fc2],
    }
    assert all(isinstance(layer, Linear24) for layer in layers.pop(part))
    assert not any(isinstance(layer, Linear24) for other in layers.values() for layer in other)
    x = torch.randn(2, 5, 64)
    dense = cut_block(block, Shape(part, 2 if part == "heads" else 64))
    pack_part_(copied := copy.deepcopy(dense), part)
    torch.testing.assert_close(packed(x), copied(x))
    assert not torch.allclose(packed(x), dense(x), atol=1e-3)


def test_sparse_costs_know_what_is_packed(clock):
    visual = measure_costs(build("clip"), ["visual"], batch=2, sparse=True, progress=False)[0]
    layer = visual.layers[0]
    # by parameters a packed layer is half as dear, in every count but none
    assert set(layer.heads.packed) == {1, 2, 3, 4}
    assert layer.seconds() < 0.6 * layer.whole
    assert visual.whole == visual.fixed + 3 * layer.whole


@pytest.mark.parametrize(
    ("total", "counts"),
    [
        (3072, list(range(0, 3073, 64))),
        (256, list(range(0, 257, 16))),
        (100, [0, 16, 32, 48, 64, 80, 96, 100]),
        (7, [0, 7]),
    ],
)
def test_counts_of_neurons(total, counts):
    assert neuron_counts(total) == counts


def test_shapes_of_a_wide_block_are_thinned():
    block = torch.nn.Module()
    block.mlp = torch.nn.Sequential()
    for name, layer in (
        ("c_fc", torch.nn.Linear(8, 4096)),
        ("gelu", torch.nn.GELU()),
        ("c_proj", torch.nn.Linear(4096, 8)),
    ):
        block.mlp.add_module(name, layer)
    found = shapes_of(models.Block("b", block, "visual", 0), sparse=False)
    counts = [shape.kept for shape in found]
    assert len(counts) == 12
    assert (counts[0], counts[-1]) == (0, 4032)
    assert all(count % 64 == 0 for count in counts)


def test_a_second_call_measures_nothing(clock, folder):
    model = build("clip")
    first = measure_costs(model, ["visual"], batch=2, progress=False)
    calls = len(clock.timed)
    assert measure_costs(model, ["visual"], batch=2, progress=False) == first
    assert len(clock.timed) == calls
    # another batch, tower, or width is something else
    measure_costs(model, ["visual"], batch=3, progress=False)
    assert len(clock.timed) == 2 * calls
    measure_costs(model, ["text"], batch=2, progress=False)
    assert len(list(folder.iterdir())) == 3
    # what is sparse adds to what is there
    before = len(clock.timed)
    measure_costs(model, ["visual"], batch=2, sparse=True, progress=False)
    assert all(" 2:4" in name for names in clock.timed[before:] for name in names if name)


def test_a_killed_call_continues(monkeypatch, clock):
    model = build("clip")
    whole = measure_costs(model, ["text"], batch=2, progress=False)
    reference = len(clock.timed)
    dying = Clock(fail_after=3)
    monkeypatch.setattr(measure, "compare", dying)
    with pytest.raises(KeyboardInterrupt):
        measure_costs(model, ["text"], batch=4, progress=False)
    assert not any("forward" in vars(module) for module in model.modules())
    dying.fail_after = None
    assert measure_costs(model, ["text"], batch=4, progress=False) == whole
    assert len(dying.timed) == reference
    assert len({name for names in dying.timed for name in names if name}) == sum(
        len([name for name in names if name]) for names in dying.timed
    )


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"key": "other", "times": {}}', '{"times": 3}', "\x00\xff"],
    ids=["empty", "cut", "list", "other", "number", "bytes"],
)
def test_a_broken_file_is_measured_anew(text, clock, folder):
    model = build("clip")
    first = measure_costs(model, ["text"], batch=2, progress=False)
    (file,) = folder.iterdir()
    file.write_text(text, encoding="latin-1")
    calls = len(clock.timed)
    assert measure_costs(model, ["text"], batch=2, progress=False) == first
    assert len(clock.timed) == 2 * calls
    assert json.loads(file.read_text())["times"]


def test_times_that_cannot_be_are_dropped(folder):
    kept = KeptTimes(["some"])
    kept.add({"a": 1.5, "b": 2.5, "c": 3.5})
    (file,) = folder.iterdir()
    content = json.loads(file.read_text())
    content["times"] |= {"b": -1.0, "c": "3"}
    file.write_text(json.dumps(content).replace("-1.0", "NaN"))
    assert KeptTimes(["some"]).times == {"a": 1.5}
    assert KeptTimes(["other"]).times == {}
    # names are short: another call may have the same one
    file.write_text(json.dumps(content | {"key": "another"}))
    assert KeptTimes(["some"]).times == {}


@pytest.mark.parametrize("changed", ["threads", "torch", "cpu"])
def test_another_machine_has_other_times(monkeypatch, changed):
    KeptTimes("x").add({"a": 1.0})
    info = measure.machine_info()
    monkeypatch.setattr(timing.measure, "machine_info", lambda: info | {"commit": "another"})
    assert KeptTimes("x").times == {"a": 1.0}
    monkeypatch.setattr(timing.measure, "machine_info", lambda: info | {changed: "another"})
    assert KeptTimes("x").times == {}


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(monkeypatch, tmp_path, clock):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path / "file" / "folder"))
    assert measure_costs(build("clip"), ["text"], batch=2, progress=False)
