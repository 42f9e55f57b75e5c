"""Calibration: statistics against float64, what each order observes, and how much is held meanwhile."""

import weakref

import pytest
import torch
from conftest import tiny_clip
from models.zoo import build, inputs
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vlprune import models
from vlprune.calibration import (
    Calibration,
    Run,
    block_by_block,
    calibration_batches,
    collect,
    execution_order,
)
from vlprune.calibration.cache import OutputCache
from vlprune.token_weights import ATV


def observe(layer, batches, statistics, weights=None):
    calibration = Calibration(statistics)
    given = iter(weights or [])
    with calibration.watching({"layer": layer}, (lambda _, x: next(given)) if weights else None):
        for x in batches:
            layer(x)
    return calibration


def blocks_and_layers(model):
    models.split_attention_(model)
    blocks = {b.name: b for t in models.view(model).towers.values() for b in t.blocks}
    return blocks, {name: block.linears() for name, block in blocks.items()}


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_statistics_are_those_of_float64(dtype, weighted):
    layer = nn.Linear(13, 5).to(dtype)
    batches = [torch.randn(count, 7, 13).to(dtype) for count in (3, 1, 4)]
    weights = [torch.rand(x.shape[:2]) for x in batches] if weighted else None
    rows = torch.cat(batches).reshape(-1, 13).double()
    w = torch.cat(weights).reshape(-1, 1).double() if weighted else 1.0
    hessian = observe(layer, batches, "hessian", weights).hessian("layer")
    assert hessian.dtype == torch.float32
    # 2e-6: float32 sums of 56 products, each relative 6e-8
    torch.testing.assert_close(hessian.double(), 2 / 8 * (rows * w).T @ rows, rtol=2e-6, atol=2e-6)
    assert torch.equal(hessian, hessian.T)
    norm = observe(layer, batches, "norm", weights).column_norm("layer")
    torch.testing.assert_close(norm.double(), ((rows.square() * w).sum(0) / 8).sqrt(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("statistics", ["norm", "hessian"])
def test_bools_are_weights_of_zero_and_one(statistics):
    layer = nn.Linear(5, 2)
    x, keep = torch.randn(3, 4, 5), torch.rand(3, 4) < 0.5
    by_bool, by_number = (observe(layer, [x], statistics, [w]).stats["layer"] for w in (keep, keep.float()))
    torch.testing.assert_close(by_bool.second, by_number.second, rtol=1e-6, atol=1e-6)
    assert by_bool.tokens == by_number.tokens == keep.sum()
    assert by_bool.sequences == 3


def test_thousands_of_small_batches_do_not_get_lost_in_a_large_one():
    """In float32, adding 1e-4 to 4096 changes nothing; five thousand times nothing would be 0.5 missing."""
    layer = nn.Linear(3, 1)
    calibration = Calibration("hessian")
    with calibration.watching({"layer": layer}):
        layer(torch.full((1, 1, 3), 64.0))
        for _ in range(5000):
            layer(torch.full((1, 1, 3), 0.01))
    expected = 2 * (4096 + 5000 * 0.01**2) / 5001
    # 1e-7: one rounding to float32 at the end
    assert calibration.hessian("layer")[0, 1].item() == pytest.approx(expected, rel=1e-7)


def test_long_batches_are_summed_in_parts():
    layer = nn.Linear(4, 1)
    x = torch.randn(3, 3000, 4)
    hessian = observe(layer, [x], "hessian").hessian("layer")
    rows = x.reshape(-1, 4).double()
    torch.testing.assert_close(hessian.double(), 2 / 3 * rows.T @ rows, rtol=1e-5, atol=1e-2)


@pytest.fixture
def tf32():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def test_callers_matmul_precision_is_put_back(tf32):
    inside = []
    layer = nn.Linear(4, 1)
    calibration = Calibration("hessian")

    class Precision(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.mm.default:
                inside.append(torch.backends.cuda.matmul.fp32_precision)
            return func(*args, **(kwargs or {}))

    with calibration.watching({"layer": layer}), torch.no_grad(), Precision():
        layer(torch.randn(1, 2, 4))
    assert "ieee" in inside
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_asking_for_the_other_statistic_is_an_error():
    calibration = observe(nn.Linear(3, 2), [torch.ones(1, 2, 3)], "norm")
    with pytest.raises(ValueError, match="layer: calibration gathered a norm, not a hessian"):
        calibration.hessian("layer")


@pytest.mark.parametrize("statistics", ["norm", "hessian"])
def test_layers_without_usable_inputs_are_named(statistics):
    def ask(calibration):
        return getattr(calibration, {"norm": "column_norm"}.get(statistics, statistics))("layer")

    with pytest.raises(ValueError, match="layer: no calibration input reached this layer"):
        ask(Calibration(statistics))
    layer = nn.Linear(3, 2)
    x = torch.ones(1, 2, 3)
    with pytest.raises(ValueError, match="layer: token_weight gives every calibration token of it weight 0"):
        ask(observe(layer, [x], statistics, [torch.zeros(1, 2)]))
    x[0, 1, 2] = float("nan")
    with pytest.raises(ValueError, match="layer: calibration input 2 is not finite"):
        ask(observe(layer, [x], statistics))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (1.0, "got 1.0$"),
        (torch.ones(2, 3, dtype=torch.int64), "on cpu, got torch.int64 on cpu$"),
        (torch.ones(2, 3, device="meta"), "on cpu, got torch.float32 on meta$"),
        (torch.ones(4), r"got shape \(4,\)$"),
        (torch.ones(3, 3), r"got shape \(3, 3\)$"),
        (torch.ones(1, 2, 3), r"got shape \(1, 2, 3\)$"),
        (torch.tensor([1.0, -0.5, 1.0]), "got -0.5$"),
        (torch.tensor([[1.0], [float("nan")]]), "got nan$"),
        (torch.tensor(float("inf")), "got inf$"),
    ],
    ids=["no tensor", "integers", "device", "length", "batch", "rank", "negative", "nan", "infinite"],
)
@pytest.mark.parametrize("statistics", ["norm", "hessian"])
def test_unusable_token_weights_name_the_layer(statistics, returned, message):
    allowed = r"layer: token_weight: expected bools, or finite floats .* broadcast to \(2, 3\).*"
    with pytest.raises(ValueError, match=allowed + message):
        observe(nn.Linear(5, 2), [torch.ones(2, 3, 5)], statistics, [returned])


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (2, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("statistics", ["norm", "hessian"])
def test_token_weights_that_broadcast(statistics, shape):
    layer, x, weight = nn.Linear(5, 2), torch.randn(2, 3, 5), torch.rand(shape)
    given, full = (observe(layer, [x], statistics, [w]).stats["layer"] for w in (weight, weight.expand(2, 3)))
    torch.testing.assert_close(given.second, full.second, rtol=1e-6, atol=1e-6)  # float32 sums of 6 tokens


@pytest.mark.parametrize("kind", ["clip", "custom-text", "custom-blocks", "coca", "timm", "hf"])
def test_dense_order_observes_what_one_pass_over_the_dense_model_does(kind, tmp_path):
    """Every block's weights are wiped when its turn to be pruned comes: later ones must not notice."""
    model = build(kind, tmp_path)
    blocks, layers = blocks_and_layers(model)
    runs = [Run(model, *inputs(model, batch)) for batch in (2, 1)]
    whole = Calibration()
    collect(runs, blocks, layers, whole)
    seen = {}

    def wipe(block, calibration):
        for name, layer in layers[block].items():
            seen[name] = calibration.column_norm(name)
            layer.weight.data.zero_()

    block_by_block(runs, blocks, layers, wipe, activations="dense")
    assert list(seen) == [name for block in execution_order(runs[0], blocks) for name in layers[block]]
    for name, norm in seen.items():
        torch.testing.assert_close(norm, whole.column_norm(name), rtol=1e-6, atol=0)


def test_sequential_order_notices():
    model = build("clip")
    blocks, layers = blocks_and_layers(model)
    runs = [Run(model, *inputs(model))]
    whole = Calibration()
    collect(runs, blocks, layers, whole)
    changed = {}

    def wipe(block, calibration):
        for name, layer in layers[block].items():
            changed[name] = not torch.allclose(calibration.column_norm(name), whole.column_norm(name))
            layer.weight.data.zero_()

    block_by_block(runs, blocks, layers, wipe)
    assert changed == {name: ".resblocks.0." not in name for group in layers.values() for name in group}


@pytest.mark.parametrize("activations", ["sequential", "dense"])
@pytest.mark.parametrize("statistics", ["norm", "hessian"])
def test_only_one_block_is_held_at_a_time(clip, batches, activations, statistics, monkeypatch):
    caches, alive, held = [], [], []
    put = OutputCache.put

    def counting(self, key, output):
        put(self, key, output)
        caches.append(len(self.kept))

    monkeypatch.setattr(OutputCache, "put", counting)
    blocks, layers = blocks_and_layers(clip)
    runs = [Run(clip, images, texts) for images, texts in batches]

    def prune(block, calibration):
        assert list(calibration.stats) == list(layers[block])
        held.append(sum(reference() is not None for reference in alive))
        alive.append(weakref.ref(calibration))

    block_by_block(runs, blocks, layers, prune, activations=activations, statistics=statistics)
    assert len(held) == 5
    assert max(held) <= 1  # the one before may go only now
    assert max(caches) == 2 * len(batches)  # one output a tower and batch, not one a block


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of elements that any operator returns while it is active."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("activations", ["sequential", "dense"])
@pytest.mark.parametrize("statistics", ["norm", "hessian"])
def test_nothing_is_sized_by_the_longest_sequence_that_the_model_takes(activations, statistics):
    """A text tower for 20000 tokens, given 9 of them."""
    from models.zoo import TEXT, VISION
    from open_clip.model import CustomTextCLIP

    text = TEXT | {"context_length": 20_000, "no_causal_mask": True}
    model = CustomTextCLIP(32, VISION, text).eval()
    blocks, layers = blocks_and_layers(model)
    texts = torch.randint(1, 50, (2, 9))
    runs = [Run(model, torch.randn(2, 3, 32, 32), texts)]
    with LargestTensor() as largest:
        block_by_block(
            runs, blocks, layers, lambda *_: None, activations=activations, statistics=statistics,
            token_weight=ATV(),
        )  # fmt: skip
    # the widest things are MLP activations and their Hessian; positions alone would be 20000 x 32
    assert largest.numel <= max(2 * 17 * 256, 256 * 256)


def test_offloaded_statistics_and_outputs_are_the_same(clip, batches):
    blocks, layers = blocks_and_layers(clip)
    runs = [Run(clip, images, texts) for images, texts in batches]
    found = []
    for offload in (False, True):
        seen = {}
        block_by_block(
            runs, blocks, layers,
            lambda block, c, seen=seen: seen.update({n: c.column_norm(n) for n in layers[block]}),
            offload=offload,
        )  # fmt: skip
        found.append(seen)
    for name, norm in found[0].items():
        assert torch.equal(norm, found[1][name]), name


def test_cache_answers_with_copies():
    cache = OutputCache(offload=False)
    first = torch.ones(2)
    cache.put(("stack", 0), (first, None, {"a": torch.zeros(1)}))
    first += 1
    answer = cache.get(("stack", 0))
    assert torch.equal(answer[0], torch.ones(2))
    answer[0].add_(5)
    assert torch.equal(cache.get(("stack", 0))[0], torch.ones(2))
    assert answer[1] is None
    assert torch.equal(answer[2]["a"], torch.zeros(1))


def test_interrupted_calibration_leaves_no_trace(batches):
    clip = tiny_clip()
    blocks, layers = blocks_and_layers(clip)
    before = {name: dict(vars(m)) for name, m in clip.named_modules()}

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block_by_block([Run(clip, *batches[0])], blocks, layers, interrupt, token_weight=ATV())
    for name, module in clip.named_modules():
        assert "forward" not in vars(module), name
        assert not module._forward_hooks, name
        assert not module._forward_pre_hooks, name
        assert set(vars(module)) == set(before[name]), name


def test_a_batch_that_misses_a_block_is_an_error(clip, batches):
    """The second batch has no texts, and so never reaches the text tower."""
    blocks, layers = blocks_and_layers(clip)

    class ImagesOnly(Run):
        def __call__(self):
            return self.model.encode_image(self.images)

    runs = [Run(clip, *batches[0]), ImagesOnly(clip, *batches[1])]
    with pytest.raises(ValueError, match=r"transformer\.resblocks\.0: batch 1 does not reach it"):
        block_by_block(runs, blocks, layers, lambda *_: None)


def test_batches_are_read_no_further_than_needed(batches):
    """An endless iterator is data, too."""

    def endless():
        while True:
            yield batches[0]

    found = calibration_batches(endless(), 10, 32, "wanda")
    assert [len(images) for images, _ in found] == [4, 4, 2]
    assert [len(texts) for _, texts in found] == [4, 4, 2]


@pytest.mark.parametrize(
    ("images", "texts"), [(4, 3), (3, 4), (0, 0), (4, 0)], ids=["texts", "images", "empty", "no texts"]
)
def test_every_image_needs_its_text(batches, images, texts):
    other = (batches[1][0][:images], batches[1][1][:texts])
    message = f"at least one of them, but batch 1 has {images} images and {texts} texts$"
    with pytest.raises(ValueError, match=message):
        calibration_batches([batches[0], other], 128, 32, "wanda")


def test_scalars_are_no_batch():
    with pytest.raises(ValueError, match=r"calib: expected data of load_data, or at least one batch"):
        calibration_batches([(torch.tensor(1.0), torch.tensor(1))], 8, 4, "wanda")
