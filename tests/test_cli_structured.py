"""From options and files to what modules are taken out, and what weights are pruned after that."""

import json

import pytest

from vlprune import Keep, MagnitudeConfig, StructuredConfig, WandaConfig, from_pretrained
from vlprune.cli.configs import variants_of
from vlprune.cli.main import build_parser, main
from vlprune.nn import Linear24
from vlprune.pipeline import Variant

HALF = Keep(heads=0.5)


def variants(*args):
    return variants_of(build_parser().parse_args([*map(str, args), "--out", "x"]))


@pytest.mark.parametrize(
    ("args", "keep"),
    [
        (["--heads", "0.5"], Keep(heads=0.5)),
        (["--heads", "6", "--neurons", ".25"], Keep(heads=6, neurons=0.25)),
        (["--heads", "0", "--layers", "1"], Keep(heads=0, layers=1)),
        (["--neurons", "1.0", "--layers", "1."], Keep(neurons=1.0, layers=1.0)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_dot_makes_a_share(args, keep):
    ((variant),) = variants("run", "demo", *args)
    assert variant == Variant(None, StructuredConfig(visual=keep, text=keep))
    # equal numbers, but one is a share and the other a count
    assert repr(variant.structured.visual) == repr(keep)


def test_every_option_reaches_the_config():
    (variant,) = variants(
        "prune", "demo", "--heads", 2, "--tower", "text", "--criterion", "random", "--samples", 9
    )
    assert variant == Variant(None, StructuredConfig(text=Keep(heads=2), criterion="random", samples=9))


def test_groups_of_all_layers_at_once():
    (variant,) = variants("run", "demo", "--neurons", "0.5", "--tower", "visual", "--neuron-groups", "rank")
    assert variant.structured == StructuredConfig(visual=Keep(neurons=0.5), neuron_groups="rank")


HALVES = StructuredConfig(visual=HALF, text=HALF)


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ("run", [], [Variant(None, HALVES)]),
        ("run", ["--method", "none"], [Variant(None, HALVES)]),
        ("run", ["--method", "wanda"], [Variant(None, HALVES), Variant(WandaConfig(), HALVES)]),
        ("run", ["--pattern", "2:4"], [Variant(None, HALVES), Variant(WandaConfig(), HALVES)]),
        (
            "run",
            ["--method", "magnitude", "wanda", "--pattern", "1:4"],
            [
                Variant(None, HALVES),
                Variant(MagnitudeConfig(pattern="1:4"), HALVES),
                Variant(WandaConfig(pattern="1:4"), HALVES),
            ],
        ),
        ("run", ["--scope", "row"], [Variant(None, HALVES), Variant(WandaConfig(), HALVES)]),
        ("prune", [], [Variant(None, HALVES)]),
        ("prune", ["--pattern", "2:4"], [Variant(WandaConfig(), HALVES)]),
    ],
    ids=lambda value: (
        " ".join(value) or "alone" if isinstance(value, list) and str in map(type, value) else None
    ),
)
def test_weights_follow_where_they_are_asked_for(command, args, expected):
    assert variants(command, "demo", "--heads", "0.5", *args) == expected


@pytest.mark.parametrize(
    ("args", "fields"),
    [
        ([], {"tower": "both", "sparse": False}),
        (["--tower", "visual", "--pattern", "2:4"], {"tower": "visual", "sparse": True}),
        (["--pattern", "2:4", "1:4"], {"tower": "both", "sparse": False}),
    ],
    ids=["alone", "then 2:4", "then more than 2:4"],
)
def test_target_speedup(args, fields):
    made = variants("run", "demo", "--target-speedup", "2", "--batch", 4, *args)
    assert made[0] == Variant(None, StructuredConfig(target_speedup=2.0, timed_batch=4, **fields))


def test_config_files_have_a_structured_section(tmp_path):
    wanted = [
        Variant(WandaConfig(ignore=("text",)), StructuredConfig(visual=Keep(heads=0.5, layers=2))),
        Variant(None, StructuredConfig(text=Keep(neurons=1), criterion="gradient")),
        Variant(MagnitudeConfig()),
    ]
    file = tmp_path / "variants.json"
    file.write_text(json.dumps([variant.to_dict() for variant in wanted]))
    assert variants("run", "demo", "--config", file) == wanted


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--heads", "half"], "--heads: expected the share that stays, with a dot, above 0 and up to 1.0"),
        (["--heads", "0.0"], "or a count of at least 0, got '0.0'"),
        (["--neurons", "1.5"], "--neurons: expected the share"),
        (["--layers", "0"], "or a count of at least 1, got '0'"),
        (["--layers", "-2.5"], "--layers"),
        (["--heads", "nan"], "got 'nan'"),
        (["--heads", "0.5", "--tower", "image"], "--tower: expected one of visual, text, both, got 'image'"),
        (["--heads", "0.5", "--criterion", "mop"], "--criterion: expected one of mope, magnitude, gradient"),
        (["--tower", "text"], "--tower: needs one of --heads, --neurons, --layers or --target-speedup"),
        (["--criterion", "random"], "--criterion: needs one of --heads"),
        (["--target-speedup", "1"], "--target-speedup: expected a number above 1, such as 2.0, got '1'"),
        (["--target-speedup", "twice"], "--target-speedup: expected a number above 1"),
        (["--target-speedup", "2", "--heads", "0.5"], "chooses how much stays; leave out --heads"),
        (["--target-speedup", "2", "--criterion", "random"], "criterion: target_speedup"),
        (["--method", "none"], "--method: none leaves nothing to do"),
        (["--heads", "0.5", "--method", "none", "--pattern", "2:4"], "leave out --pattern"),
        (["--config", "{file}", "--heads", "0.5"], "leave out --heads"),
        (["--config", "{file}"], "structured config: unknown field 'visuel'"),
        (["--heads", "9", "--criterion", "magnitude"], "heads: 9 cannot be kept of 4"),
        (["--heads", "0.5"], "criterion mope needs data"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_values_are_one_line_and_exit_code_2(args, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.json"
    file.write_text('{"structured": {"visuel": {"heads": 0.5}}}')
    args = [arg.format(file=file).replace("-2.5", "=-2.5") for arg in args]
    joined = [f"{a}{b}" for a, b in zip(args, [*args[1:], ""], strict=True) if b.startswith("=")] or args
    assert main(["prune", "demo", "--out", str(tmp_path / "new"), *joined]) == 2
    out, err = capfd.readouterr()
    assert len(err.strip().splitlines()) == 1, err
    assert message in err
    assert (out, [p.name for p in tmp_path.iterdir()]) == ("", ["file.json"])


def test_prune_takes_modules_out_then_weights(tmp_path, capsys):
    args = ["prune", "demo", "--heads", "2", "--tower", "visual", "--layers", "3", "--criterion", "magnitude"]
    assert main([*args, "--method", "magnitude", "--json", "--out", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    model = from_pretrained(tmp_path)
    blocks = model.visual.transformer.resblocks
    assert len(blocks) == 3
    assert result["compact"]["parameters"][1] == sum(p.numel() for p in model.parameters())
    assert {block.attn.num_heads for block in blocks} == {2}
    weight = blocks[0].mlp.c_fc.weight
    assert int((weight == 0).sum()) * 2 == weight.numel()
    assert result["prune"]["sparsity"] == 0.5
    assert not any(isinstance(module, Linear24) for module in model.modules())
