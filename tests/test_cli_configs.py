"""From options and files to pruning configs."""

import json

import pytest

from vlprune import ATV, MagnitudeConfig, PerTower, RIAConfig, WandaConfig
from vlprune.allocation import OWL, ECoFLaP, PerLayer, Uniform
from vlprune.cli.configs import variants_of
from vlprune.cli.main import build_parser


def variants(*args):
    return variants_of(build_parser().parse_args([*map(str, args), "--out", "x"]))


def parse(*args):
    """The configs of weights, where no modules are to go."""
    made = variants(*args)
    assert all(variant.structured is None for variant in made)
    return [variant.weights for variant in made]


@pytest.mark.parametrize(
    ("text", "allocation"),
    [
        ("uniform", Uniform()),
        ("owl", OWL()),
        ("owl:lam=0.05,m=3", OWL(lam=0.05, m=3)),
        ("per_tower:visual=0.4,text=0.6", PerTower(visual=0.4, text=0.6)),
        ("ecoflap:group=layer,draws=2,max_sparsity=null", ECoFLaP(group="layer", draws=2)),
    ],
)
def test_allocation_from_text(text, allocation):
    (config,) = parse("prune", "demo", "--sparsity", 0.5, "--allocation", text)
    assert config == WandaConfig(pattern="unstructured", sparsity=0.5, allocation=allocation)


def test_allocation_from_a_file(tmp_path):
    file = tmp_path / "shares.json"
    file.write_text(json.dumps(PerLayer({"a": 0.2}).to_dict()))
    (config,) = parse("prune", "demo", "--sparsity", 0.5, "--allocation", file)
    assert config.allocation == PerLayer({"a": 0.2})


def test_an_allocation_is_for_the_unstructured_variants():
    made = parse(
        "run", "m", "--method", "wanda", "magnitude", "--pattern", "2:4", "--sparsity", 0.5, 0.7,
        "--allocation", "uniform", "per_tower:visual=0.5",
    )  # fmt: skip
    assert [(c.method, c.pattern, c.sparsity, c.allocation.kind) for c in made] == [
        (method, *rest)
        for method in ("wanda", "magnitude")
        for rest in [
            ("2:4", None, "uniform"),
            ("unstructured", 0.5, "uniform"),
            ("unstructured", 0.5, "per_tower"),
            ("unstructured", 0.7, "uniform"),
            ("unstructured", 0.7, "per_tower"),
        ]
    ]


def test_every_option_reaches_the_config():
    (config,) = parse(
        "prune", "demo", "--method", "ria", "--sparsity", 0.4, "--scope", "layer", "--activations", "dense",
        "--targets", "visual", "*.c_fc", "--ignore", "text", "--samples", 7,
        "--token-weight", "atv:alpha=0.5",
    )  # fmt: skip
    assert config == RIAConfig(
        pattern="unstructured",
        sparsity=0.4,
        scope="layer",
        activations="dense",
        targets=("visual", "*.c_fc"),
        ignore=("text",),
        samples=7,
        token_weight=ATV(alpha=0.5),
    )


def test_the_scope_is_that_of_unstructured_variants():
    structured, free = parse("run", "demo", "--pattern", "2:4", "--sparsity", 0.5, "--scope", "layer")
    assert (structured.pattern, structured.scope) == ("2:4", "row")
    assert (free.pattern, free.scope) == ("unstructured", "layer")
    for command in ("run", "prune"):
        with pytest.raises(ValueError, match='scope: pattern "2:4" compares the weights of a group'):
            parse(command, "demo", "--pattern", "2:4", "--scope", "layer")


def test_config_files(tmp_path):
    wanted = [
        WandaConfig(pattern="unstructured", sparsity=0.6, allocation=OWL(), token_weight="attention_mask"),
        MagnitudeConfig(pattern="1:4", ignore=("*.out_proj",)),
    ]
    both, one = tmp_path / "both.json", tmp_path / "one.json"
    both.write_text(json.dumps([config.to_dict() for config in wanted]))
    one.write_text(json.dumps(wanted[1].to_dict()))
    assert parse("run", "demo", "--config", both, one) == [*wanted, wanted[1]]
    assert parse("prune", "demo", "--config", one) == [wanted[1]]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--allocation", "greedy", "--sparsity", 0.5], "kind to be one of"),
        (["--allocation", "owl:lam", "--sparsity", 0.5], "KIND:FIELD=VALUE"),
        (["--allocation", "owl:lamda=1", "--sparsity", 0.5], "unknown field 'lamda'"),
        (["--allocation", "owl", "--pattern", "2:4"], '"2:4" fixes'),
        (["--allocation", "/no/such.json", "--sparsity", 0.5], "/no/such.json: no such file"),
        (["--token-weight", "pixels"], "token_weight: expected"),
        (["--config", "{file}", "--method", "wanda"], "leave out --method"),
        (["--config", "{file}", "--samples", 128], "leave out --samples"),
        (["--config", "{file}", "--token-weight", "atv"], "leave out --token-weight"),
        (["--allocation", "{list}", "--sparsity", 0.5], "expected an object with a kind"),
        (["--config", "{file}"], "unknown field 'sparsty'"),
        (["--config", "{list}"], "prune takes one config, the file holds 0"),
    ],
)
def test_bad_options(args, message, tmp_path):
    (tmp_path / "file.json").write_text('{"method": "wanda", "sparsty": 0.5}')
    (tmp_path / "list.json").write_text("[]")
    names = {name: tmp_path / f"{name}.json" for name in ("file", "list")}
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        parse("prune", "demo", *(str(arg).format(**names) for arg in args))
    assert message in str(caught.value)
