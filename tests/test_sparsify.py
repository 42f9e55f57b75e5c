"""sparsify_: same outputs through packed layers, dense kept where it is not slower."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_clip
from torch import nn

import vlprune
from vlprune import MagnitudeConfig, measure, sparsify
from vlprune.measure import Timing
from vlprune.nn import Linear24
from vlprune.ops.cuda24.choice import Choice


def outputs(model, batches):
    with torch.no_grad():
        return [model(images, texts)[:2] for images, texts in batches]


def assert_same(after, before):
    for pair, reference in zip(after, before, strict=True):
        for a, b in zip(pair, reference, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # float32 sums in another order


def pretend(monkeypatch, dense, sparse):
    """Replace the clock by fixed times; the candidates still run."""

    def compare(candidates, **_):
        for run in candidates.values():
            run()
        return {name: Timing(t, t, t, 1) for name, t in zip(candidates, (dense, sparse), strict=True)}

    monkeypatch.setattr(measure, "compare", compare)


def test_outputs_equal_the_masked_dense_model(clip, batches):
    vlprune.prune_(clip, MagnitudeConfig())
    before = outputs(clip, batches)
    report = vlprune.sparsify_(clip, only_if_faster=False)
    assert report.packed == len(report.layers) == 5 * 4
    assert sum(isinstance(m, Linear24) for m in clip.modules()) == 20
    assert_same(outputs(clip, batches), before)


def test_activation_moves_into_the_epilogue(clip):
    vlprune.prune_(clip, MagnitudeConfig())
    vlprune.sparsify_(clip, only_if_faster=False)
    mlp = clip.visual.transformer.resblocks[0].mlp
    assert (mlp.c_fc.activation, mlp.c_proj.activation) == ("gelu", None)
    assert isinstance(mlp.gelu, nn.Identity)


def test_quick_gelu_is_recognized():
    from open_clip.transformer import QuickGELU

    mlp = nn.Sequential()
    mlp.add_module("c_fc", nn.Linear(8, 8))
    mlp.add_module("gelu", QuickGELU())
    assert vlprune.fusion.find_activation(nn.ModuleDict({"mlp": mlp}), "mlp.c_fc").kind == "quick_gelu"


@pytest.mark.parametrize("activation", [nn.GELU(approximate="tanh"), nn.ReLU()], ids=["tanh gelu", "relu"])
def test_other_activations_stay_outside(activation):
    holder = nn.Sequential(nn.Linear(8, 8), activation)
    assert vlprune.fusion.find_activation(nn.ModuleDict({"mlp": holder}), "mlp.0") is None


@pytest.mark.parametrize(
    ("dense", "sparse", "packed"),
    [(2.0, 1.0, 20), (1.0, 2.0, 0), (1.0, 0.99, 0)],
    ids=["faster", "slower", "tie"],
)
def test_dense_wins_ties(clip, batches, monkeypatch, dense, sparse, packed):
    vlprune.prune_(clip, MagnitudeConfig())
    modules = [(n, type(m)) for n, m in clip.named_modules()]
    before = outputs(clip, batches)
    pretend(monkeypatch, dense, sparse)
    report = vlprune.sparsify_(clip, example=3)
    assert report.packed == packed
    assert_same(outputs(clip, batches), before)
    if not packed:
        assert [(n, type(m)) for n, m in clip.named_modules()] == modules
        assert {layer.reason for layer in report.layers} == {"not faster than dense here"}


def test_measured_at_the_examples_shapes(clip, monkeypatch):
    vlprune.prune_(clip, MagnitudeConfig())
    pretend(monkeypatch, 2.0, 1.0)
    report = vlprune.sparsify_(clip, example=(torch.randn(5, 3, 32, 32), torch.randint(1, 50, (5, 12))))
    last = "visual.transformer.resblocks.2"
    alone = {f"{last}.{own}" for own in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj")}
    assert {layer.tokens for layer in report.layers if layer.name in alone} == {5}
    others = [layer for layer in report.layers if layer.name not in alone]
    assert len(others) == len(report.layers) - 3
    assert {(layer.name.split(".")[0], layer.tokens) for layer in others} == {
        ("visual", 5 * 17), ("transformer", 5 * 12)
    }  # fmt: skip


def test_images_alone_leave_the_text_tower_dense(clip, monkeypatch):
    vlprune.prune_(clip, MagnitudeConfig())
    pretend(monkeypatch, 2.0, 1.0)
    report = vlprune.sparsify_(clip, example=torch.randn(2, 3, 32, 32))
    assert report.packed == 3 * 4
    assert {layer.reason for layer in report.layers if not layer.packed} == {"the example does not reach it"}


def test_a_really_measured_run_reports_what_it_did(clip, batches):
    vlprune.prune_(clip, MagnitudeConfig())
    before = outputs(clip, batches)
    report = vlprune.sparsify_(clip)
    modules = dict(clip.named_modules())  # attention that stayed dense is folded back, and has no qkv
    for layer in report.layers:
        assert layer.dense > 0
        assert layer.sparse > 0
        assert layer.packed == isinstance(modules.get(layer.name), Linear24)
        assert layer.speedup > 1.03 or not layer.packed
    assert_same(outputs(clip, batches), before)


def test_only_24_layers_are_touched(clip):
    vlprune.prune_(clip, MagnitudeConfig(pattern="unstructured", sparsity=0.5))
    modules = [(n, type(m)) for n, m in clip.named_modules()]
    report = vlprune.sparsify_(clip, only_if_faster=False)
    assert report.layers == ()
    assert [(n, type(m)) for n, m in clip.named_modules()] == modules


def test_filter_fn(clip):
    vlprune.prune_(clip, MagnitudeConfig())
    vlprune.sparsify_(clip, only_if_faster=False, filter_fn=lambda module, name: name.endswith("c_proj"))
    packed = [n for n, m in clip.named_modules() if isinstance(m, Linear24)]
    assert len(packed) == 5
    assert all(name.endswith("mlp.c_proj") for name in packed)
    assert isinstance(clip.visual.transformer.resblocks[0].attn, nn.MultiheadAttention)


def test_wrong_result_is_never_swapped_in(clip, monkeypatch):
    vlprune.prune_(clip, MagnitudeConfig())
    monkeypatch.setattr(Linear24, "forward", lambda self, x: F.linear(x, self.weight, self.bias) + 0.5)
    modules = dict(clip.named_modules())
    with pytest.raises(ValueError, match=r"attn\.qkv: largest error"):
        vlprune.sparsify_(clip)
    assert dict(clip.named_modules()).keys() == modules.keys()


def test_failure_half_way_puts_everything_back(clip, batches, monkeypatch):
    vlprune.prune_(clip, MagnitudeConfig())
    types = [(name, type(m)) for name, m in clip.named_modules()]
    before, real, calls = outputs(clip, batches), Linear24.from_linear, []

    def failing(linear, *args):
        calls.append(linear)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(linear, *args)

    monkeypatch.setattr(Linear24, "from_linear", failing)
    with pytest.raises(KeyboardInterrupt):
        vlprune.sparsify_(clip, only_if_faster=False)
    assert [(name, type(m)) for name, m in clip.named_modules()] == types
    assert_same(outputs(clip, batches), before)


def test_failure_at_the_end_puts_everything_back(clip, batches, monkeypatch):
    vlprune.prune_(clip, MagnitudeConfig())
    types = [(name, type(m)) for name, m in clip.named_modules()]
    before = outputs(clip, batches)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlprune.nn.blocks.product_is_faster", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vlprune.sparsify_(clip, only_if_faster=False)
    assert [(name, type(m)) for name, m in clip.named_modules()] == types
    assert_same(outputs(clip, batches), before)


def test_example_of_the_wrong_size_leaves_the_model(clip):
    vlprune.prune_(clip, MagnitudeConfig())
    types = [(name, type(m)) for name, m in clip.named_modules()]
    with pytest.raises(RuntimeError):
        vlprune.sparsify_(clip, example=torch.randn(1, 3, 48, 48))
    assert [(name, type(m)) for name, m in clip.named_modules()] == types


def test_subclass_of_linear_is_not_swapped(clip):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    vlprune.prune_(clip, MagnitudeConfig())
    layer = clip.visual.transformer.resblocks[0].mlp.c_proj
    layer.__class__ = Doubled
    vlprune.sparsify_(clip, only_if_faster=False)
    assert clip.visual.transformer.resblocks[0].mlp.c_proj is layer


@pytest.mark.parametrize("bias", [True, False])
def test_linear24_with_and_without_bias(bias):
    linear = nn.Linear(16, 8, bias)
    with torch.no_grad():
        linear.weight.masked_fill_(~vlprune.ops.select(linear.weight.abs(), "2:4"), 0.0)
    packed, x = Linear24.from_linear(linear), torch.randn(3, 16)
    torch.testing.assert_close(packed(x), linear(x))
    assert packed.state_dict().keys() == {"values", "meta", "bias"} - (set() if bias else {"bias"})


def test_masks_survive_packing(clip):
    vlprune.prune_(clip, MagnitudeConfig())
    dense = vlprune.masks(clip)
    vlprune.sparsify_(clip, only_if_faster=False)
    packed = vlprune.masks(clip)
    for name, keep in dense.items():
        renamed = name.replace("in_proj_weight", "qkv.weight")
        assert torch.equal(packed[renamed], keep)
    other = tiny_clip()
    vlprune.apply_masks_(other, packed)
    assert {name: keep.sum() for name, keep in vlprune.masks(other).items()} == {
        name: keep.sum() for name, keep in dense.items()
    }


@pytest.mark.parametrize("backend", ["cuda", "fast"])
def test_unknown_backend(clip, backend):
    with pytest.raises(ValueError, match=f"backend: expected one of auto, .*got '{backend}'"):
        vlprune.sparsify_(clip, backend=backend)


def test_linear24_round_trip_is_bit_exact():
    linear = nn.Linear(20, 7)
    with torch.no_grad():
        linear.weight.masked_fill_(~vlprune.ops.select(linear.weight.abs(), "2:4"), 0.0)
    packed = Linear24.from_linear(linear)
    assert torch.equal(packed.to_linear().weight, linear.weight)
    assert packed.to_linear().bias is linear.bias
    x = torch.randn(3, 5, 20)
    torch.testing.assert_close(packed(x), linear(x))


def test_empty_linear24_is_a_valid_packed_layer():
    layer = Linear24(12, 3)
    assert torch.equal(layer.weight, torch.zeros(3, 12))
    assert torch.equal(layer(torch.randn(2, 12)), torch.zeros(2, 3))


def test_linear24_trains_and_uses_the_new_weights():
    linear = nn.Linear(16, 8)
    with torch.no_grad():
        linear.weight.masked_fill_(~vlprune.ops.select(linear.weight.abs(), "2:4"), 0.0)
    layer, x = Linear24.from_linear(linear, "gelu"), torch.randn(5, 16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    first = layer(x)
    first.square().sum().backward()
    reference = F.gelu(linear(x))
    reference.square().sum().backward()
    torch.testing.assert_close(layer.bias.grad, linear.bias.grad)
    assert torch.equal(layer.weight != 0, linear.weight != 0)
    optimizer.step()
    torch.testing.assert_close(layer(x), F.gelu(F.linear(x, layer.weight, layer.bias)))
    assert not torch.allclose(layer(x), first)


def test_linear24_under_autocast(clip, batches):
    """open_clip users evaluate under autocast, which hands bf16 to layers kept in float32."""
    vlprune.prune_(clip, MagnitudeConfig())
    before = outputs(clip, batches)
    vlprune.sparsify_(clip, only_if_faster=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = outputs(clip, batches)
    for pair, reference in zip(after, before, strict=True):
        for a, b in zip(pair, reference, strict=True):
            torch.testing.assert_close(a.float(), b, rtol=0.0, atol=0.05)  # unit vectors, bf16 between layers


def test_preparing_happens_once(monkeypatch):
    linear = nn.Linear(16, 8)
    with torch.no_grad():
        linear.weight.masked_fill_(~vlprune.ops.select(linear.weight.abs(), "2:4"), 0.0)
    layer = Linear24.from_linear(linear)
    monkeypatch.setattr(vlprune.ops.prepared, "_prepare", lambda *_: pytest.fail("prepared a second time"))
    layer(torch.randn(2, 16))
    with torch.inference_mode():
        layer(torch.randn(3, 16))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Linear24(10, 4), ValueError, "in_features divisible by 4, got 10"),
        (lambda: Linear24(8, 4, activation="relu"), ValueError, "expected activation .*got 'relu'"),
        (lambda: Linear24.from_linear(nn.Linear(8, 4)), ValueError, "row 0"),
        (lambda: Linear24.from_linear(nn.Identity()), TypeError, "expected nn.Linear, got Identity"),
    ],
    ids=["width", "activation", "not 2:4", "not linear"],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_deepcopy_and_state_dict(clip, batches):
    vlprune.prune_(clip, MagnitudeConfig())
    vlprune.sparsify_(clip, only_if_faster=False)
    twin = copy.deepcopy(clip)
    before = outputs(clip, batches)
    assert_same(outputs(twin, batches), before)
    for layer in (m for m in clip.modules() if isinstance(m, Linear24)):
        layer.values.data.zero_()
    clip.load_state_dict(twin.state_dict())
    assert_same(outputs(clip, batches), before)


@pytest.mark.parametrize(
    ("seconds", "dense", "faster"), [(1.0, 2.0, True), (1.0, 1.01, False), (2.0, 1.0, False)]
)
def test_on_a_gpu_the_layers_are_tuned(monkeypatch, seconds, dense, faster):
    asked = []

    def tune24(*args, **kwargs):
        asked.append((args, kwargs))
        return Choice("sm90", "128x256", seconds, dense)

    monkeypatch.setattr(vlprune.ops, "tune24", tune24)
    linear = nn.Linear(8, 12)
    linear.weight.data *= torch.tensor([1, 0, 0, 1]).repeat(12, 2)
    packed, x, checked = Linear24.from_linear(linear, "gelu"), torch.randn(2, 5, 8), []
    verdict = sparsify._on_device(packed, x, lambda: checked.append(1))
    assert checked == [1]
    assert verdict == sparsify._Verdict(dense, seconds, faster, verdict.reason, "sm90 128x256")
    assert verdict.reason == ("faster" if faster else "not faster than dense here")
    sizes = (10, 12, 8, torch.float32, "gelu")
    assert asked == [(sizes, {"bias": True, "device": x.device, "backend": "auto"})]
    monkeypatch.setattr(vlprune.ops, "tune24", lambda *_, **__: None)
    verdict = sparsify._on_device(packed, x, lambda: checked.append(1))
    assert (verdict.faster, verdict.reason) == (False, "no kernel here takes it")


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_outlying_outputs_are_no_error(activation):
    # One of 4096 outputs is 64 times the mean, of which a rounding to bfloat16 is an eighth.
    linear, x = nn.Linear(8, 4096).bfloat16(), torch.randn(3, 7, 8).bfloat16()
    linear.bias.data[5] = 5000.0
    fused = activation and sparsify.FusedActivation("act", nn.GELU(), activation)
    exact = F.linear(x.double(), linear.weight.double(), linear.bias.double())
    exact = F.gelu(exact) if activation else exact
    right = exact.bfloat16()
    other = right.clone()
    other[..., 5] += 32  # an ulp
    with torch.no_grad():
        sparsify._check("layer", right, other, linear, fused, x)
        sparsify._check("layer", other, other, linear, fused, x)
        wrong = other.clone()
        wrong[0, 0, 5] += 96
        with pytest.raises(ValueError, match="layer: largest error"):
            sparsify._check("layer", wrong, other, linear, fused, x)


def test_moving_and_loading_a_layer_prepares_it_on_a_gpu(monkeypatch):
    prepared = []
    monkeypatch.setattr(vlprune.ops, "prepare24", lambda *args, **how: prepared.append((*args, how)))
    monkeypatch.setattr(nn.Parameter, "is_cuda", property(lambda self: True), raising=False)
    layer = Linear24(8, 12, backend="sm90")
    for change in (lambda: layer.bfloat16(), lambda: layer.load_state_dict(layer.state_dict())):
        prepared.clear()
        change()
        # Where nothing changed nothing is made: moving a model to where it is costs nothing.
        assert prepared == [(layer.values, layer.meta, "sm90", {"anew": False})]


def test_a_fake_layer_is_not_prepared():
    with torch._subclasses.FakeTensorMode():
        layer = Linear24(8, 12, device="cuda", dtype=torch.bfloat16)
        layer.load_state_dict(layer.state_dict())
        assert layer(torch.empty(3, 8, device="cuda", dtype=torch.bfloat16)).shape == (3, 12)
