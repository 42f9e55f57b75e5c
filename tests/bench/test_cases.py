"""The cases: each checked and run at a small size, what they count, and which of them a selection takes."""

import itertools
import json
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from vlprune import ops
from vlprune.bench import OURS, Selection, cases, onednn, published, run_bench, runner, towers
from vlprune.bench.case import DTYPES, Case
from vlprune.bench.onednn import has_onednn
from vlprune.bench.ops_cases import attention_case, linear24_case
from vlprune.bench.runner import Effort, measure_case
from vlprune.bench.scoring_cases import mask_case, pack_case, sumsq_case, unpack_case, wanda_pack_case
from vlprune.bench.towers import tower_case

CPU = torch.device("cpu")

SMALL = [
    linear24_case(5, 64, 48),
    linear24_case(5, 64, 48, "bf16"),
    linear24_case(5, 64, 48, "fp32", "gelu"),
    attention_case(2, 7, 3, width=16),
    attention_case(2, 7, 3, "bf16", causal=True, width=16),
    sumsq_case(9, 40),
    mask_case((24, 48), "2:4"),
    mask_case((24, 48), "4:8", "bf16"),
    mask_case((24, 48), "unstructured"),
    wanda_pack_case((24, 48)),
    pack_case((24, 48), "bf16"),
    unpack_case((24, 48)),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name.replace(" ", "_"))
def test_every_operator_is_checked_and_timed(case):
    row = measure_case(case, CPU, Effort(6, 0.0, 1.0))
    also = ["dense fp32"] if case.op == "linear24" and case.dtype == "bf16" else []
    if case.op == "linear24" and has_onednn(DTYPES[case.dtype], CPU):
        also.append("oneDNN")
    assert list(row["times"]) == [OURS, *case.peers, *also]
    assert list(row["ratios"]) == [*case.peers, *also]
    assert all(timing["samples"] == 6 for timing in row["times"].values())
    assert all(found["low"] <= found["median"] <= found["high"] for found in row["ratios"].values())
    assert row["speedup"] == row["ratios"][row["peer"]]["median"]
    assert json.loads(json.dumps(row)) == row


def test_speed_is_over_the_fastest_dense_form(monkeypatch):
    """A product of bfloat16 on a CPU without one is no peer to be proud of."""
    slept = {OURS: 2e-3, "F.linear": 8e-3, "dense fp32": 4e-3, "cuSPARSELt": 1e-3}
    calls = {name: partial(time.sleep, seconds) for name, seconds in slept.items()}
    monkeypatch.setattr(runner, "timed_calls", lambda *_: calls)
    row = measure_case(SMALL[1], CPU, Effort(6, 0.0, 1.0))
    assert row["peer"] == "dense fp32"
    # sleeping takes as long as it should, and a little longer
    assert row["speedup"] == pytest.approx(2, rel=0.2)
    assert row["ratios"]["F.linear"]["median"] > 3


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_onednn_gives_the_dense_product(dtype, activation):
    if not has_onednn(DTYPES[dtype], CPU):
        pytest.skip(f"oneDNN has no product in {dtype} here")
    calls = linear24_case(5, 64, 48, dtype, activation).make(CPU).calls
    # bfloat16: one rounds before the activation too, by 2^-9 of up to 8 there
    close = {"rtol": 1.6e-2, "atol": 2**-6} if dtype == "bf16" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(calls["oneDNN"](), calls["F.linear"](), **close)


@pytest.mark.parametrize("missing", ["operator", "device", "build"])
def test_where_there_is_no_onednn_it_is_no_peer(monkeypatch, missing):
    monkeypatch.setattr(onednn, "_computes", onednn._computes.__wrapped__)  # not what was found before
    if missing == "operator":
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    if missing == "build":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    device = torch.device("cuda" if missing == "device" else "cpu")
    assert not has_onednn(torch.float32, device)
    assert not has_onednn(torch.float16, CPU)


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_the_converted_product_is_the_dense_one(activation):
    calls = linear24_case(5, 64, 48, "bf16", activation).make(CPU).calls
    # one rounds before the activation too, by 2^-9 of up to 8 there
    torch.testing.assert_close(calls["dense fp32"](), calls["F.linear"](), rtol=1.6e-2, atol=2**-6)


@pytest.mark.parametrize(
    ("op", "spoiled", "case"),
    [
        ("linear24", lambda y: y + 0.1, SMALL[0]),
        ("head_attention", lambda y: y.roll(1, -1), SMALL[3]),
        ("column_sumsq", lambda y: 1.01 * y, SMALL[5]),
        ("wanda_mask", lambda y: ~y, SMALL[6]),
        ("wanda_pack24", lambda y: (y[0], y[1] + 1), SMALL[9]),
        ("pack24", lambda y: (2 * y[0], y[1]), SMALL[10]),
        ("unpack24", lambda y: y + 1, SMALL[11]),
    ],
)
def test_a_wrong_result_is_never_timed(op, spoiled, case, monkeypatch):
    original = getattr(ops, op)
    monkeypatch.setattr(ops, op, lambda *a, **k: spoiled(original(*a, **k)))
    with pytest.raises(ValueError, match=r"largest error|differs from plain PyTorch"):
        measure_case(case, CPU, Effort(5, 0.0, 1.0))


def test_operations_and_bytes_of_a_product():
    """10 tokens, 8 -> 16 in float32: x, y and bias, and the weight, or half of it and meta."""
    work = linear24_case(10, 8, 16).make(CPU)
    around = 4 * (10 * 8 + 10 * 16 + 16)
    assert work.operations == 2560
    moved = {OURS: around + 4 * 64 + 16, "F.linear": around + 4 * 128, "oneDNN": around + 4 * 128}
    assert work.moved == {name: moved[name] for name in work.calls}


def test_operations_of_attention():
    """2 x 7 tokens, 3 heads of 16: two products of 7 x 7 x 16 a head, of which causal ones need half."""
    assert attention_case(2, 7, 3, width=16).make(CPU).operations == 4 * 2 * 3 * 49 * 16
    assert attention_case(2, 7, 3, width=16, causal=True).make(CPU).operations == 2 * 2 * 3 * 49 * 16


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_published_groups_are_the_operators(pattern):
    kept, group = map(int, pattern.split(":"))
    norm = torch.rand(64) + 0.5
    weight = published.untied_weight((32, 64), torch.bfloat16, norm, torch.Generator().manual_seed(1))
    mask = published.group_mask(weight, norm, kept, group)
    assert torch.equal(mask, ops.wanda_mask(weight, norm, pattern))
    assert torch.equal(mask, published.topk_mask(weight, norm, kept, group))
    assert torch.equal(mask, published.ranked_mask(weight, norm, kept, group))
    assert mask.view(32, -1, group).sum(-1).eq(kept).all()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("full", [False, True], ids=["quick", "full"])
def test_the_sets(device, full):
    chosen = cases(Selection(full), device)
    names = [case.name for case in chosen]
    assert len(set(names)) == len(names)
    every = {"linear24", "wanda_mask", "wanda_pack24", "column_sumsq", "head_attention", "pack24", "unpack24"}
    assert {case.op for case in chosen} == {*every, "tower"}
    models = {case.sizes["model"] for case in chosen if case.op == "tower"}
    assert models == ({"ViT-B-32", "ViT-B-16", "ViT-L-14"} if full else {"ViT-B-32"})
    assert {case.sizes["tower"] for case in chosen if case.op == "tower"} == {"image", "text"}


def test_full_holds_quick():
    assert {c.name for c in cases(Selection())} < {c.name for c in cases(Selection(True))}


def test_only():
    assert {case.op for case in cases(Selection(only=("pack24",)))} == {"pack24"}
    assert {case.op for case in cases(Selection(only=("*pack24*",)))} >= {"pack24", "wanda_pack24"}
    assert [case.name for case in cases(Selection(only=("50 x 768 -> 3072",), dtypes=("bf16",)))] == [
        "linear24 bf16 50 x 768 -> 3072"
    ]
    with pytest.raises(ValueError, match=r"--only: no case fits 'linear42'; did you mean linear24"):
        cases(Selection(only=("linear42",)))


@pytest.mark.parametrize("only", [(), ("linear24",)])
def test_a_dtype_that_the_set_lacks_is_no_empty_success(only):
    with pytest.raises(ValueError, match=r"--dtype: no case of fp16 .* on cpu; there are fp32, bf16"):
        cases(Selection(dtypes=("fp32", "fp16"), only=only))


def test_tokens_are_linear24_alone():
    chosen = cases(Selection(tokens=(3,), dtypes=("fp32",)))
    assert [case.label for case in chosen] == [
        "3 x 768 -> 3072",
        "3 x 3072 -> 768",
        "3 x 768 -> 2304",
        "3 x 1024 -> 4096",
    ]


def test_selection_goes_through_json():
    selection = Selection(True, ("linear24",), ("bf16",), (8, 9))
    assert Selection.from_dict(json.loads(json.dumps(selection.to_dict()))) == selection


def test_a_tower_small_enough_to_test(monkeypatch, clip):
    """What the towers' cases do with a model of open_clip's, on one that takes no time."""
    import open_clip

    monkeypatch.setattr(open_clip, "create_model", lambda _: clip)
    towers._pair.cache_clear()
    for tower, packed in (("image", 12), ("text", 8)):
        work = tower_case("small", tower, 2).make(CPU)
        assert work.check() < 1e-4
        layers = work.more["sparsify"]["layers"]
        assert len(layers) == packed
        # every 2:4 layer's product at least: 2 * tokens * inputs * outputs
        least = sum(2 * one["tokens"] * one["in_features"] * one["out_features"] for one in layers)
        assert least < work.operations < 1.5 * least
        # what is left out of the packed tower is left out of a dense one beside it, and nothing else
        fused = ["dense, fused"] if tower == "image" else []
        by_onednn = ["dense, oneDNN"] if has_onednn(torch.float32, CPU) else []
        assert list(work.calls) == [OURS, "dense", *fused, *by_onednn]
        for name in by_onednn:
            torch.testing.assert_close(work.calls[name](), work.calls["dense"](), rtol=1e-4, atol=1e-5)
        if tower == "image":
            torch.testing.assert_close(work.calls["dense, fused"](), work.calls["dense"]())
            fused = towers._fused(towers._pair("small", "fp32", CPU, 2)[0])
            assert type(fused.visual).__module__ == "vlprune.nn.blocks"
    towers._pair.cache_clear()


def broken_case():
    def make(device):
        raise KeyError("no such thing here")

    return Case("linear24", {"tokens": 1, "in": 4, "out": 4, "activation": None}, "broken", "fp32", (), make)


def test_a_failure_loses_no_other_row(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "cases", lambda *_: [SMALL[0], broken_case(), SMALL[5]])
    said = []
    record = run_bench(
        Selection(only=("x",)),
        rounds=5,
        out=tmp_path / "deep" / "bench.json",
        progress=False,
        say=said.append,
    )
    assert ["error" in row for row in record["rows"]] == [False, True, False]
    assert record["rows"][1]["error"] == "KeyError: 'no such thing here'"
    assert said == ["linear24 fp32 broken: KeyError: 'no such thing here'"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bench.json"]
    assert json.loads((tmp_path / "deep" / "bench.json").read_text()) == record
    assert {"cpu", "isa", "threads", "torch", "vlprune", "commit"} <= record["machine"].keys()


def test_an_interrupted_run_leaves_the_result_before(monkeypatch, tmp_path):
    def make(device):
        raise KeyboardInterrupt

    interrupted = Case("linear24", {}, "interrupted", "fp32", (), make)
    monkeypatch.setattr(runner, "cases", lambda *_: [SMALL[5], interrupted])
    out = tmp_path / "bench.json"
    out.write_text("the result before")
    with pytest.raises(KeyboardInterrupt):
        run_bench(Selection(only=("x",)), rounds=5, out=out, progress=False)
    assert out.read_text() == "the result before"
    assert len(json.loads((tmp_path / "bench.partial.json").read_text())["rows"]) == 1


def test_ceilings_that_fail_lose_no_case(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(runner, "cases", lambda *_: [SMALL[5]])
    monkeypatch.setattr(runner, "ceilings", fails)
    record = run_bench(Selection(), rounds=5, progress=False)
    assert record["ceilings"] is None
    assert record["ceilings_error"] == "RuntimeError: out of memory"
    assert "error" not in record["rows"][0]


def test_ceilings_are_ratios_of_sizes_and_times(monkeypatch):
    from vlprune.bench import ceilings

    monkeypatch.setattr(ceilings, "_COPIES", {"cpu": (2**10, 2**14)})
    monkeypatch.setattr(ceilings, "_MEMORY", 2**14)
    monkeypatch.setattr(ceilings, "_SQUARES", {"cpu": (16, 32)})
    found = ceilings.ceilings(CPU, ("fp32",), seconds=0.001)
    small, large, *products = found["rows"]
    forms = ["F.linear", *(["oneDNN"] if has_onednn(torch.float32, CPU) else [])]
    assert [(row["product"], row["form"]) for row in products] == list(itertools.product((16, 32), forms))
    assert small["bytes_per_second"] == 2 * 2**10 / small["times"]["p20"]
    assert found["bandwidth"] == {"cache": small["bytes_per_second"], "memory": large["bytes_per_second"]}
    assert products[-1]["operations_per_second"] == 2 * 32**3 / products[-1]["times"]["p20"]
    assert found["rate"]["fp32"] == max(row["operations_per_second"] for row in products)
