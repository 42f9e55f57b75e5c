"""Which modules go, given their errors."""

import random

import pytest
from models.zoo import build

from vlprune.structured import Keep, ModuleError, StructuredConfig, choose, compact_


def errors(kind, rows, tower="visual"):
    """Errors of one kind, a list for each layer; of layers one list."""
    if kind == "layers":
        return [ModuleError(tower, i, kind, i, error) for i, error in enumerate(rows)]
    return [
        ModuleError(tower, layer, kind, index, error)
        for layer, row in enumerate(rows)
        for index, error in enumerate(row)
    ]


HEADS = [[0.5, -0.25, 0.5, 3.0], [7.0, 6.0, 5.0, 4.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        # of the first layer's equal ones head 0 goes before head 2
        (2, {0: [2, 3], 1: [0, 1], 2: [2, 3]}),
        (0.25, {0: [3], 1: [0], 2: [3]}),
        (3, {0: [0, 2, 3], 1: [0, 1, 2], 2: [1, 2, 3]}),
        (0, {0: [], 1: [], 2: []}),
        (1.0, {0: [0, 1, 2, 3], 1: [0, 1, 2, 3], 2: [0, 1, 2, 3]}),
    ],
)
def test_as_many_heads_of_every_layer(heads, expected):
    config = StructuredConfig(visual=Keep(heads=heads))
    assert choose(build("clip"), config, errors("heads", HEADS)) == {"visual": {"heads": expected}}


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        # six of twelve: -0.25, four zeros of which one stays, then 0.5 of head 0 and of head 2
        (2, {0: [3], 1: [0, 1, 2, 3], 2: [3]}),
        # three of twelve: equal ones by their number
        (3, {0: [0, 2, 3], 1: [0, 1, 2, 3], 2: [2, 3]}),
        (0, {0: [3], 1: [0], 2: [3]}),
    ],
)
def test_as_many_heads_of_a_tower(heads, expected):
    config = StructuredConfig(visual=Keep(heads=heads), scope="tower")
    assert choose(build("clip"), config, errors("heads", HEADS)) == {"visual": {"heads": expected}}


def test_equal_heads_go_from_all_layers_in_turn():
    config = StructuredConfig(visual=Keep(heads=3), scope="tower")
    found = choose(build("clip"), config, errors("heads", [[1.0] * 4] * 3))
    assert found["visual"]["heads"] == {0: [1, 2, 3], 1: [1, 2, 3], 2: [1, 2, 3]}


def drawn_neurons():
    draw = random.Random(5)
    # the first layer's neurons are worth less than the others'
    return [[draw.random() * (1 + layer) for _ in range(256)] for layer in range(3)]


def test_a_share_of_a_towers_neurons_leaves_every_layer_a_multiple():
    rows = drawn_neurons()
    config = StructuredConfig(visual=Keep(neurons=0.4), scope="tower")
    kept = choose(build("clip"), config, errors("neurons", rows))["visual"]["neurons"]
    counts = [len(own) for own in kept.values()]
    # 102 of each are rounded to 96
    assert sum(counts) == 3 * 96
    assert counts[0] < counts[1] < counts[2]
    assert all(count % 16 == 0 for count in counts)
    for layer, own in kept.items():
        best = sorted(range(256), key=lambda n, layer=layer: rows[layer][n])[256 - len(own) :]
        assert own == sorted(best)


def test_a_count_of_a_towers_neurons_is_exact():
    rows = drawn_neurons()
    config = StructuredConfig(visual=Keep(neurons=101), scope="tower")
    kept = choose(build("clip"), config, errors("neurons", rows))["visual"]["neurons"]
    every = sorted((error, layer, n) for layer, row in enumerate(rows) for n, error in enumerate(row))
    best = {(layer, n) for _, layer, n in every[-3 * 101 :]}
    assert {(layer, n) for layer, own in kept.items() for n in own} == best


def test_groups_of_neurons_go_whole_and_the_last_one_from_its_end():
    # 256 neurons in four groups; 80 stay: group 2 and, of the group that is second best, 16
    rows = [[0.1, 0.2, 0.9, 0.3], [0.5, 0.5, 0.5, 0.5], [4.0, 3.0, 2.0, 1.0]]
    config = StructuredConfig(visual=Keep(neurons=80))
    found = choose(build("clip"), config, errors("neurons", rows))["visual"]["neurons"]
    assert found == {
        0: [*range(128, 192), *range(192, 208)],
        1: list(range(80)),  # of equal groups the last ones go
        2: list(range(80)),
    }


def test_groups_that_do_not_divide_the_neurons():
    # 256 in three groups: 0 to 84, 85 to 169, 170 to 255
    config = StructuredConfig(visual=Keep(neurons=86))
    found = choose(build("clip"), config, errors("neurons", [[2.0, 0.0, 1.0]] * 3))
    assert found["visual"]["neurons"][1] == [*range(85), 170]


def test_a_group_of_all_layers_stands_for_every_layer():
    found = [ModuleError("visual", None, "neurons", i, e) for i, e in enumerate((0.3, 0.1))]
    lists = choose(build("clip"), StructuredConfig(visual=Keep(neurons=0.5)), found)
    assert lists["visual"]["neurons"] == {layer: list(range(128)) for layer in range(3)}


@pytest.mark.parametrize(
    ("layers", "rows", "expected"),
    [
        (2, [0.3, -0.1, 0.2], [0, 2]),
        (1, [0.3, 0.3, 0.3], [2]),
        (0.5, [5.0, 4.0, 6.0], [0, 2]),
        (3, [0.0, 0.0, 0.0], [0, 1, 2]),
    ],
)
def test_layers(layers, rows, expected):
    config = StructuredConfig(visual=Keep(layers=layers))
    assert choose(build("clip"), config, errors("layers", rows)) == {"visual": {"layers": expected}}


def test_both_towers_and_only_the_kinds_asked_for():
    model = build("clip")
    config = StructuredConfig(visual=Keep(heads=2, layers=2), text=Keep(layers=1))
    found = errors("heads", HEADS) + errors("layers", [3.0, 2.0, 1.0]) + errors("layers", [0.1, 0.2], "text")
    assert choose(model, config, found, ["layers"]) == {"visual": {"layers": [0, 1]}, "text": {"layers": [1]}}
    assert choose(model, config, found).keys() == {"visual", "text"}


def test_the_only_layer_stays():
    model = build("clip")
    compact_(model, {"visual": {"layers": [1]}})
    assert choose(model, StructuredConfig(visual=Keep(layers=0.5)), []) == {"visual": {"layers": [0]}}


def test_what_has_no_errors_stays():
    config = StructuredConfig(visual=Keep(heads=1, layers=1))
    found = errors("heads", HEADS)[:4] + errors("layers", [2.0, 1.0])
    lists = choose(build("clip"), config, found)
    assert lists == {"visual": {"heads": {0: [3]}, "layers": [0, 2]}}


@pytest.mark.parametrize(
    ("config", "found", "message"),
    [
        ({"visual": Keep(heads=2)}, [], "errors: there are none for heads of the visual tower"),
        (
            {"visual": Keep(heads=2)},
            errors("heads", [[1.0, 2.0]]),
            "errors: expected those of all 4 of the heads of layer 0",
        ),
        ({"visual": Keep(heads=5)}, errors("heads", HEADS), "heads: 5 cannot be kept of 4"),
        (
            {"visual": Keep(neurons=16)},
            [ModuleError("visual", 0, "neurons", 3, 1.0)],
            "errors: expected those of all 4 of the neurons of layer 0, got 1",
        ),
    ],
)
def test_errors_that_do_not_fit(config, found, message):
    with pytest.raises(ValueError, match=message):
        choose(build("clip"), StructuredConfig(**config), found)
