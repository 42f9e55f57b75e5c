"""A named speed-up, by a clock that counts parameters: what goes, and what is said of it."""

import copy
import dataclasses
import itertools
import json

import pytest
import torch
from models.zoo import assert_close, build, outputs

from vlprune import measure, models
from vlprune.models.parts import block_parts
from vlprune.nn import Linear24
from vlprune.structured import (
    Keep,
    ModuleError,
    StructuredConfig,
    compact,
    compact_,
    mask_modules,
    module_pruning_errors,
)
from vlprune.structured.plan import plan_of
from vlprune.structured.speedup import verify
from vlprune.structured.speedup.choice import check_reachable, choose_for_speed, most_speedup
from vlprune.structured.speedup.costs import Curve, LayerCost, TowerCost
from vlprune.structured.speedup.shapes import neuron_counts
from vlprune.structured.speedup.timing import measure_costs
from vlprune.structured.speedup.verify import choose_and_verify, measure_speedup, pack_where_faster_

from .cases import labelled_data, pair_data
from .clock import Clock

SMALL = {"samples": 12, "batch_size": 6, "groups": 4, "timed_batch": 2}


@pytest.fixture(autouse=True)
def clock(monkeypatch, tmp_path):
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path))
    found = Clock()
    monkeypatch.setattr(measure, "compare", found)
    return found


def errors_of(seed, tower="visual", layers=3, heads=4, groups=4):
    """Errors of everything in a tower of the zoo's CLIP, some below zero."""
    draw = torch.Generator().manual_seed(seed)

    def some(kind, layer, count):
        values = torch.rand(count, generator=draw) - 0.1
        return [ModuleError(tower, layer, kind, i, float(v)) for i, v in enumerate(values)]

    found = [e for n in range(layers) for e in some("heads", n, heads) + some("neurons", n, groups)]
    values = 2 * torch.rand(layers, generator=draw)
    return [*found, *(ModuleError(tower, i, "layers", i, float(v)) for i, v in enumerate(values))]


# 20 a layer that is fixed, 10 a head and up to 40 for the MLP, which is not quite linear
COST = LayerCost(
    100.0,
    Curve(((0, -40.0), (4, 0.0))),
    Curve(((0, -40.0), (128, -30.0), (256, 0.0))),
)
COSTS = [TowerCost("visual", 30.0, (COST, COST, COST))]


def cheapest(errors, layer, heads, neurons):
    """Error of a layer by definition: the cheapest heads and, of neurons in groups of 64, the cheapest go."""
    own = [e for e in errors if e.layer == layer]
    of_heads = sorted(max(0.0, e.error) for e in own if e.kind == "heads")
    of_neurons = sorted(max(0.0, e.error) / 64 for e in own if e.kind == "neurons" for _ in range(64))
    return sum(of_heads[: 4 - heads]) + sum(of_neurons[: 256 - neurons])


def brute_force(errors, limit):
    """Least error of all choices for three layers within a time: by trying them."""
    ways = []
    for layer in range(3):
        gone = next(e.error for e in errors if (e.kind, e.index) == ("layers", layer))
        own = [(0.0, max(0.0, gone), False)]
        for heads, neurons in itertools.product(range(5), neuron_counts(256)):
            saved = 10.0 * (4 - heads) - COST.neurons.at(neurons)
            own.append((100.0 - saved, cheapest(errors, layer, heads, neurons), True))
        ways.append(torch.tensor(own, dtype=torch.float64).T)
    (s0, e0, k0), (s1, e1, k1), (s2, e2, k2) = ways
    seconds = s0[:, None, None] + s1[:, None] + s2
    stays = k0[:, None, None] + k1[:, None] + k2 > 0
    return float((e0[:, None, None] + e1[:, None] + e2)[(seconds <= limit) & stays].min())


@pytest.mark.parametrize("target", [1.2, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_least_error_of_all_choices(seed, target):
    errors = errors_of(seed)
    chosen = choose_for_speed(build("clip"), COSTS, errors, target)
    assert chosen.predicted >= target * (1 - 1e-9)
    limit = 330.0 / target - 30.0
    best = brute_force(errors, limit)
    # three layers round up by a step of limit / 8192 each; without it, the same limit a little lower
    assert best - 1e-9 <= chosen.error <= brute_force(errors, limit * (1 - 3 / 8192)) + 1e-9
    assert sum(layer.seconds[1] for layer in chosen.layers) + 30.0 == pytest.approx(330.0 / chosen.predicted)


def test_what_stays_is_what_has_the_larger_errors():
    errors = errors_of(1)
    chosen = choose_for_speed(build("clip"), COSTS, errors, 1.6)
    lists = chosen.keep_lists["visual"]
    assert lists["heads"] or lists["neurons"]
    for layer in chosen.layers:
        own = {e.index: e.error for e in errors if (e.kind, e.layer) == ("heads", layer.layer)}
        if layer.heads is not None:
            assert set(lists["heads"][layer.layer]) == set(sorted(own, key=own.get)[4 - layer.heads :])
        if layer.stays:
            heads = 4 if layer.heads is None else layer.heads
            neurons = 256 if layer.neurons is None else layer.neurons
            assert layer.error == pytest.approx(cheapest(errors, layer.layer, heads, neurons))


def test_a_faster_target_never_has_less_error():
    errors = errors_of(2)
    found = [
        choose_for_speed(build("clip"), COSTS, errors, target) for target in (0.9, 1.3, 2.0, 3.0, 5.0, 6.5)
    ]
    sums = [chosen.error for chosen in found]
    assert sums == sorted(sums)
    assert sums[0] == 0.0
    speeds = [chosen.predicted for chosen in found]
    assert speeds == sorted(speeds)


def test_what_is_free_goes_only_where_it_is_asked_for():
    errors = [e for e in errors_of(0) if e.kind == "heads"]
    free = [ModuleError(e.tower, e.layer, e.kind, e.index, -1.0) for e in errors]
    chosen = choose_for_speed(build("clip"), COSTS, free, 1.0995)
    assert chosen.error == 0.0
    # three of twelve heads, of 10 each, are the tenth of 330 that has to go
    assert sum(4 - len(kept) for kept in chosen.keep_lists["visual"]["heads"].values()) == 3
    assert chosen.predicted == pytest.approx(1.1)


def test_a_target_that_is_reached_leaves_everything():
    # rounding would take a little at 1.0 itself
    chosen = choose_for_speed(build("clip"), COSTS, errors_of(0), 0.999)
    assert chosen.keep_lists == {"visual": {"heads": {}, "neurons": {}, "layers": [0, 1, 2]}}
    assert chosen.predicted == 1.0


def test_the_most_that_can_be_reached():
    # one layer without heads and neurons is left, of 20, beside 30
    model, errors = build("clip"), errors_of(0)
    assert most_speedup(model, COSTS, errors) == pytest.approx(330 / 50)
    assert choose_for_speed(model, COSTS, errors, 6.6).predicted == pytest.approx(6.6)
    with pytest.raises(ValueError, match=r"^target_speedup: 6.7 cannot be reached, .* expected at most 6.6$"):
        check_reachable(model, COSTS, errors, 6.7)
    # of what has no errors nothing can go
    layers = [e for e in errors if e.kind == "layers"]
    with pytest.raises(ValueError, match=r"expected at most 2.53$"):
        choose_for_speed(model, COSTS, layers, 3.0)


def test_the_fastest_choice_there_is_leaves_what_must_stay():
    # attention here needs a head; three layers of 70 fill the time left to the last bit, which rounding hides
    costs = [TowerCost("visual", 30.0, (LayerCost(100.0, Curve(((1, -30.0), (4, 0.0)))),) * 3)]
    heads = [error for error in errors_of(1) if error.kind == "heads"]
    most = most_speedup(build("clip"), costs, heads)
    assert most == pytest.approx(330 / 240)
    chosen = choose_for_speed(build("clip"), costs, heads, most)
    assert [layer.heads for layer in chosen.layers] == [1, 1, 1]
    assert chosen.predicted == pytest.approx(most)


def test_two_towers_share_the_time():
    model = build("clip")
    text = TowerCost("text", 10.0, (LayerCost(50.0, Curve(((0, -25.0), (2, 0.0)))), None))
    heads = [ModuleError("text", 0, "heads", i, 0.01 + i) for i in range(2)]
    chosen = choose_for_speed(model, [*COSTS, text], [*errors_of(1), *heads], 390 / 360)
    # the cheap head of the text tower goes first; its second layer does not run
    assert chosen.keep_lists["text"] == {"heads": {0: [1]}, "neurons": {}, "layers": [0, 1]}
    assert [layer.tower for layer in chosen.layers] == ["visual"] * 3 + ["text"]


@pytest.mark.parametrize("tower", ["visual", "text", "both"])
@pytest.mark.parametrize("target", [1.3, 2.0])
def test_a_model_made_as_fast_as_named(target, tower, clock):
    model = build("clip")
    whole = copy.deepcopy(model)
    config = StructuredConfig(target_speedup=target, tower=tower, **SMALL)
    report = compact_(model, config, pair_data(model), progress=False)
    towers = ("visual", "text") if tower == "both" else (tower,)
    now = measure_speedup(whole, model, towers, 2, repeats=1)[0]
    # parameters add up exactly; what is left are steps of sixteen neurons
    assert report.speedup.predicted == pytest.approx(now)
    assert report.speedup.measured == pytest.approx(now)
    assert target <= now <= 1.05 * target
    assert report.speedup.tries == 1
    with mask_modules(whole, report.keep_lists):
        masked = outputs(whole)
    assert_close(outputs(model), masked)
    assert {layer.tower for layer in report.speedup.layers} == set(towers)
    for said, size in zip(
        report.speedup.layers, [s for s in report.layers if s.tower in towers], strict=True
    ):
        assert said.stays == size.stays
        if said.stays:
            assert (said.heads, said.neurons) == tuple(
                None if before == after else after for before, after in (size.heads, size.neurons)
            )


@pytest.mark.parametrize("labelled", [False, True])
def test_chosen_by_module_pruning_errors_of_sorted_neurons(labelled):
    model = build("clip")
    data = (labelled_data if labelled else pair_data)(model)
    config = StructuredConfig(target_speedup=1.5, tower="visual", **SMALL)
    report = compact_(copy.deepcopy(model), config, data, progress=False)
    metric = "accuracy" if labelled else "retrieval"
    others = module_pruning_errors(model, data, ["heads", "layers"], metric, ["visual"], limit=12)
    assert [e for e in report.errors if e.kind != "neurons"] == others
    assert sum(e.kind == "neurons" for e in report.errors) == 12
    costs = measure_costs(model, ["visual"], batch=2, progress=False)
    assert report.speedup.error == choose_for_speed(model, costs, report.errors, 1.5).error


def test_measured_where_2_of_4_remain(monkeypatch):
    model, packed = build("clip"), []
    original = verify.measure_speedup

    def watched(whole, smaller, towers, batch):
        packed.append(sum(isinstance(m, Linear24) for m in smaller.modules()))
        return original(whole, smaller, towers, batch)

    monkeypatch.setattr(verify, "measure_speedup", watched)
    config = StructuredConfig(target_speedup=2.5, tower="visual", sparse=True, **SMALL)
    report = compact_(model, config, pair_data(model), progress=False)
    assert packed[0] > 0
    assert report.speedup.measured == pytest.approx(report.speedup.predicted)
    assert 2.5 <= report.speedup.measured <= 2.7
    # the model itself is left dense, and larger than without
    assert not any(isinstance(m, Linear24) for m in model.modules())
    dense = compact_(
        build("clip"), StructuredConfig(target_speedup=2.5, tower="visual", **SMALL), pair_data(model)
    )
    assert report.parameters[1] > dense.parameters[1]
    assert "what remains as 2:4" in str(report)


def test_only_what_was_faster_is_packed():
    model = build("clip")
    lists = {"visual": {"heads": {0: [1]}, "neurons": {2: range(16)}, "layers": [0, 2]}}
    plans = plan_of(model, lists)
    compact_(smaller := copy.deepcopy(model), lists)
    cost = LayerCost(
        1.0, Curve(((0, -0.5), (4, -0.1)), (4,)), Curve(((0, -0.5), (128, -0.4), (256, -0.2)), (128, 256))
    )
    pack_where_faster_(smaller, plans, [TowerCost("visual", 0.1, (cost, cost, cost))])
    packed = {
        name
        for block in models.view(smaller).towers["visual"].blocks
        for name, layer in block.linears().items()
        if isinstance(layer, Linear24)
    }
    stack = "visual.transformer.resblocks"
    # of the first block the one head is nearest to none, of the second the sixteen neurons
    assert packed == {
        f"{stack}.0.mlp.c_fc",
        f"{stack}.0.mlp.c_proj",
        f"{stack}.1.attn.qkv",
        f"{stack}.1.attn.out_proj",
    }


def test_a_choice_that_misses_is_corrected(monkeypatch):
    model = build("clip")
    seen = []

    def slower(whole, smaller, towers, batch):
        exact = measure_speedup(whole, smaller, towers, batch, repeats=1)[0]
        seen.append(exact)
        return [0.8 * exact, 0.85 * exact, 0.9 * exact]

    monkeypatch.setattr(verify, "measure_speedup", slower)
    costs = measure_costs(model, ["visual"], batch=2, progress=False)
    config = StructuredConfig(target_speedup=2.0, tower="visual", timed_batch=2)
    _, speedup = choose_and_verify(model, config, costs, errors_of(4))
    assert len(seen) == speedup.tries == 2
    assert seen[1] == pytest.approx(2.0 / 0.85, rel=0.03)
    assert speedup.measured == pytest.approx(0.85 * seen[1])
    assert speedup.spread == pytest.approx((0.8 * seen[1], 0.9 * seen[1]))
    assert speedup.predicted == pytest.approx(seen[1])
    assert speedup.target == 2.0


def test_a_clock_that_never_agrees_ends_and_is_not_bent(monkeypatch):
    model = build("clip")
    monkeypatch.setattr(verify, "measure_speedup", lambda *_: [1.2])
    costs = measure_costs(model, ["visual"], batch=2, progress=False)
    config = StructuredConfig(target_speedup=2.0, tower="visual", timed_batch=2)
    _, speedup = choose_and_verify(model, config, costs, errors_of(4))
    assert speedup.measured == 1.2
    assert speedup.tries <= 5


@pytest.mark.parametrize(
    ("found", "aim"),
    [
        # As far off as the last one was.
        ([(2.0, 1.6)], 2.5),
        ([(2.0, 1.6), (2.5, 1.8)], 2.5 / 0.9),
        # Between the two, half-way where both are off by the same factor.
        ([(2.0, 2.5), (1.6, 1.6)], (2.0 * 1.6) ** 0.5),
        ([(1.6, 1.6), (2.0, 2.5)], (2.0 * 1.6) ** 0.5),
        # The nearest on either side, whatever was tried besides.
        ([(1.0, 1.1), (3.0, 3.9), (2.0, 2.5), (1.6, 1.6)], (2.0 * 1.6) ** 0.5),
    ],
    ids=("slower", "slower twice", "faster then slower", "slower then faster", "nearest two"),
)
def test_what_is_aimed_at_after_a_miss(found, aim):
    assert verify._next_aim(2.0, found) == pytest.approx(aim)


def test_the_report_says_what_was_named_predicted_and_measured():
    model = build("clip")
    config = StructuredConfig(target_speedup=2, tower="visual", **SMALL)
    report = compact_(model, config, pair_data(model), notes=["of the demo"], progress=False)
    text = str(report)
    speedup = report.speedup
    assert f"image tower, batch 2: 2x named, {speedup.predicted:.2f}x predicted" in text
    heads = [
        "-" if not s.stays else "all" if s.heads[0] == s.heads[1] else str(s.heads[1])
        for s in report.layers
        if s.tower == "visual"
    ]
    assert f"visual, heads left by layer: {' '.join(heads)}" in text
    assert text.endswith("of the demo")
    written = json.loads(json.dumps(report.to_dict()))["speedup"]
    assert (written["target"], written["measured"]) == (2, speedup.measured)
    assert len(written["layers"]) == 3
    assert compact_(build("clip"), {"visual": {"layers": [0]}}).speedup is None


@pytest.mark.parametrize(("agreement", "said"), [(0.85, True), (0.95, False), (1.2, True)])
def test_a_sum_of_parts_that_is_off_is_said(agreement, said, monkeypatch):
    model = build("clip")
    costs = [dataclasses.replace(c, agreement=agreement) for c in measure_costs(model, ["visual"], batch=2)]
    monkeypatch.setattr(compact, "measure_costs", lambda *_, **__: costs)
    config = StructuredConfig(target_speedup=1.5, tower="visual", **SMALL)
    report = compact_(model, config, pair_data(model), progress=False)
    expected = f"visual: layers measured alone take {agreement:.0%} of what they take in the tower; "
    assert any(note.startswith(expected) for note in report.notes) == said


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({"target_speedup": 99.0}, {}, "target_speedup: 99 cannot be reached, .* expected at most "),
        (
            {"target_speedup": 2.0},
            {"data": None},
            r"data: criterion mope needs data \(`load_data`, or --data\), got None",
        ),
        ({"target_speedup": 2.0}, {"recover": print}, "recover: expected None with target_speedup"),
    ],
)
def test_refused_and_unchanged(fields, arguments, message):
    model = build("clip")
    state = copy.deepcopy(model.state_dict())
    arguments = {"data": pair_data(model), "progress": False} | arguments
    with pytest.raises(ValueError, match=message):
        compact_(model, StructuredConfig(**fields, **SMALL), **arguments)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_tower_that_is_not_there():
    model = build("clip")
    del model.visual.transformer
    with pytest.raises(ValueError, match="tower: expected some of text, got 'visual'"):
        compact_(model, StructuredConfig(target_speedup=2.0), pair_data)


def test_keep_is_still_what_it_was():
    model = build("clip")
    compact_(model, StructuredConfig(visual=Keep(heads=2), criterion="magnitude"))
    assert [block_parts(b).attention.num_heads for b in models.view(model).towers["visual"].blocks] == [2] * 3
