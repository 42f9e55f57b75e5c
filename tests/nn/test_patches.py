"""The patch embedding: convolution or product, by what was measured."""

import copy

import pytest
import torch
from conftest import tiny_clip
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vlprune import measure
from vlprune.nn import patches
from vlprune.nn.blocks import fuse_, unfuse_


@pytest.fixture
def timed(monkeypatch):
    """Say which form is the faster one; yields what was timed."""
    monkeypatch.setattr(patches, "_faster", {})
    asked = []

    def say(winner, slower=1.0):
        def compare(candidates, **_):
            asked.append({name: run() for name, run in candidates.items()})
            return {name: measure.Timing.of([1.0 + slower * (name != winner)]) for name in candidates}

        monkeypatch.setattr(patches.measure, "compare", compare)
        return asked

    return say


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("kernel", "size"),
    [(4, (8, 12)), ((3, 5), (6, 15)), (1, (3, 2)), (4, (4, 4)), (4, (11, 9))],
    ids=["even", "oblong", "pixels", "one patch", "rest at the edges"],
)
def test_the_convolution(kernel, size, layout):
    conv = nn.Conv2d(3, 6, kernel, kernel).double()
    x = torch.randn(5, 3, *size, dtype=torch.float64).to(memory_format=layout)
    product = copy.deepcopy(conv)
    product.__class__ = patches.Conv2d
    with torch.no_grad():
        for images in (x, x[:0], x[1]):
            torch.testing.assert_close(product(images), conv(images))
        for wrong in (x[:, :, :0], torch.cat([x, x], 1)):
            with pytest.raises(RuntimeError, match=r"kernel size|Kernel size|channels"):
                product(wrong)
    gradients = [torch.autograd.grad(c(x).square().sum(), c.weight)[0] for c in (product, conv)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("winner", ["convolution", "product"])
def test_the_faster_form_runs(timed, winner):
    asked = timed(winner)
    model = tiny_clip()
    images = torch.randn(2, 3, *model.visual.image_size)
    before = model.visual.conv1(images).detach()
    said = [what for what in fuse_(model, dense=True) if "conv1" in what]
    assert said == (["visual.conv1 is a product"] if winner == "product" else [])
    assert type(model.visual.conv1) is (patches.Conv2d if winner == "product" else nn.Conv2d)
    (forms,) = asked
    assert forms["product"].shape == forms["convolution"].shape
    assert len(forms["product"]) == 8
    torch.testing.assert_close(forms["product"], forms["convolution"])
    with torch.no_grad():
        torch.testing.assert_close(model.visual.conv1(images), before)
    unfuse_(model)
    assert type(model.visual.conv1) is nn.Conv2d


def test_it_is_timed_once_for_what_is_alike(timed):
    asked = timed("product")
    conv = nn.Conv2d(3, 8, 8, 8)
    for kind in (conv, copy.deepcopy(conv), as_product(conv)):
        assert patches.product_is_faster(kind, (16, 16))
    assert len(asked) == 1
    others = [(conv, (16, 24)), (nn.Conv2d(3, 8, 8, 8, bias=False), (16, 16)), (conv.bfloat16(), (16, 16))]
    for number, other in enumerate(others, start=2):
        patches.product_is_faster(*other)
        assert len(asked) == number


def as_product(conv):
    product = copy.deepcopy(conv)
    product.__class__ = patches.Conv2d
    return product


def test_what_is_as_fast_stays_as_it_is(timed):
    timed("product", slower=0.04)
    assert not patches.product_is_faster(nn.Conv2d(3, 8, 8, 8), (16, 16))


def test_another_default_device_changes_nothing(timed):
    asked = timed("product")
    for bias in (True, False):
        conv = nn.Conv2d(3, 8, 8, 8, bias=bias)
        with torch.device("meta"):
            assert patches.product_is_faster(conv, (16, 16))
    assert all(form.device.type == "cpu" for forms in asked for form in forms.values())


def test_fake_tensors_are_not_timed(timed):
    asked = timed("product")
    real = nn.Conv2d(3, 8, 8, 8)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert not patches.product_is_faster(nn.Conv2d(3, 8, 8, 8), (16, 16))
        assert not patches.product_is_faster(real, (16, 16))
    assert asked == []
    assert patches._faster == {}
    assert patches.product_is_faster(nn.Conv2d(3, 8, 8, 8), (16, 16))


def test_what_cannot_be_a_product_is_not_timed(timed):
    asked = timed("product")
    assert not patches.product_is_faster(nn.Conv2d(3, 8, 8, 8), (16, 20))
    assert not patches.product_is_faster(nn.Conv2d(3, 8, 8, 8, device="meta"), (16, 16))
    assert not patches.product_is_faster(nn.Conv2d(3, 8, 8, 8, dtype=torch.complex64), (16, 16))
    assert asked == []


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_timing_leaves_the_random_numbers_alone(monkeypatch, device):
    monkeypatch.setattr(patches, "_faster", {})
    conv = nn.Conv2d(3, 4, 8, 8)
    before = torch.get_rng_state()
    with torch.device(device):
        assert patches.product_is_faster(conv, (8, 8)) in (True, False)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(patches._faster) == 1


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 64, 8, 4), nn.Conv2d(3, 64, 8, 8, padding=1), nn.Conv2d(3, 63, 8, 8, groups=3),
        nn.Conv2d(3, 64, 8, 8, dilation=2), nn.Conv2d(3, 64, 8, 8, padding="valid"), nn.Linear(2, 2),
        torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 64, 8, 8)),
    ],
    ids=["overlap", "padding", "groups", "dilation", "words", "linear", "parametrized"],
)  # fmt: skip
def test_other_convolutions_stay(conv):
    model = tiny_clip()
    model.visual.conv1, kind = conv, type(conv)
    assert [what for what in fuse_(model, dense=True) if "conv1" in what] == []
    assert type(model.visual.conv1) is kind
