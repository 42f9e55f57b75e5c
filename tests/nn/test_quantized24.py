"""QuantizedLinear24: what it is made of, what it keeps, and how far it is from the layer it came from."""

import copy

import pytest
import torch
from torch import nn

from vlprune import ops
from vlprune.nn import Linear24, QuantizedLinear24

DTYPES = {"int8": torch.int8, "e4m3": torch.float8_e4m3fn}
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def layer_of(inputs=96, out=40, bias=True, activation="gelu", dtype=torch.float32):
    torch.manual_seed(0)
    linear = nn.Linear(inputs, out, bias, dtype=dtype)
    keep = torch.tensor([True, False, False, True]).repeat(inputs // 4)
    linear.weight.data *= keep
    return Linear24.from_linear(linear, activation)


def parts(layer):
    return {name: each.clone() for name, each in layer.state_dict().items()}


@every_dtype
@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_from_a_packed_layer(dtype, of, bias):
    layer = layer_of(bias=bias, dtype=of)
    made = QuantizedLinear24.from_linear24(layer, dtype)
    assert (made.in_features, made.out_features, made.activation) == (96, 40, "gelu")
    assert made.int8_original_dtype is of
    assert not made.weight[layer.weight == 0].any()
    # Half a step: 1/254 of the row's largest; in E4M3 1/16 of the number itself, or 2^-10 of 448ths of it.
    largest = layer.weight.float().abs().amax(1, keepdim=True)
    steps = largest / 254 if dtype is torch.int8 else layer.weight.float().abs() / 16 + largest / 448 / 1024
    assert ((made.weight - layer.weight.float()).abs() <= steps * 1.0001).all()
    x = torch.randn(3, 7, 96).to(of)
    right, y = layer.to_linear().float()(x.float()), made(x)
    right = nn.functional.gelu(right)
    assert y.dtype is of
    error = (y.float() - right).norm() / right.norm()
    assert error < (0.02 if dtype is torch.int8 else 0.06)  # as the operator's own test has it
    assert not list(made.parameters())
    assert not made(x.clone().requires_grad_()).requires_grad


@every_dtype
def test_a_state_dict_goes_round(dtype, tmp_path):
    made = QuantizedLinear24.from_linear24(layer_of(dtype=torch.bfloat16), dtype)
    torch.save(made.state_dict(), tmp_path / "state.pt")
    empty = QuantizedLinear24(96, 40, activation="gelu", dtype=dtype)
    empty.load_state_dict(torch.load(tmp_path / "state.pt"))
    x = torch.randn(5, 96, dtype=torch.bfloat16)
    assert torch.equal(empty(x), made(x))
    assert set(made.state_dict()) == {"values", "meta", "weight_scale", "bias"}
    other = DTYPES["e4m3" if dtype is torch.int8 else "int8"]
    wrong = QuantizedLinear24(96, 40, activation="gelu", dtype=other)
    before = parts(wrong)
    with pytest.raises(RuntimeError, match=f"values: expected dtype {str(other)[6:]}, got {str(dtype)[6:]}"):
        wrong.load_state_dict(made.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(parts(wrong).values(), before.values(), strict=True))


@every_dtype
def test_converting_a_model_leaves_it_be(dtype):
    made = QuantizedLinear24.from_linear24(layer_of(), dtype)
    model = nn.Sequential(made, nn.LayerNorm(40))
    before = parts(made)
    for convert, around in (("half", torch.float16), ("bfloat16", torch.bfloat16), ("double", torch.float64)):
        getattr(model, convert)()
        assert made.int8_original_dtype is around
        for name, each in parts(made).items():
            assert each.dtype is before[name].dtype
            assert torch.equal(each.float(), before[name].float()), name
    assert model[1].weight.dtype is torch.float64
    there = copy.deepcopy(made).to("meta")
    assert {each.device.type for each in there.state_dict().values()} == {"meta"}
    assert there.values.dtype is dtype


@every_dtype
@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16], ids=str)
def test_residual(dtype, of):
    made = QuantizedLinear24.from_linear24(layer_of(), dtype)
    x, residual = torch.randn(7, 96).bfloat16(), torch.randn(7, 40).to(of)
    y = made(x, residual)
    assert y.dtype is of
    torch.testing.assert_close(y.float(), made(x).float() + residual.float(), rtol=2**-8, atol=2**-8)
    with pytest.raises(ValueError, match="expected residual of shape"):
        made(x, residual[:5])


def test_under_autocast():
    made = QuantizedLinear24.from_linear24(layer_of())
    x = torch.randn(7, 96)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = made(x)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, made(x.bfloat16()))


@every_dtype
def test_compiles_whole(dtype):
    made = QuantizedLinear24.from_linear24(layer_of(), dtype)
    x = torch.randn(7, 96).bfloat16()
    torch._dynamo.reset()
    assert torch.equal(torch.compile(made, fullgraph=True, backend="aot_eager")(x), made(x))


def test_the_layer_it_came_from_is_left_alone():
    layer = layer_of(dtype=torch.float32)
    made = QuantizedLinear24.from_linear24(layer)
    before = parts(made)
    with torch.no_grad():
        layer.bias.zero_()
        layer.meta.zero_()
    assert all(torch.equal(a, b) for a, b in zip(parts(made).values(), before.values(), strict=True))


def test_representation():
    made = QuantizedLinear24(96, 40, False, dtype=torch.float8_e4m3fn)
    assert repr(made) == (
        "QuantizedLinear24(in_features=96, out_features=40, bias=False, activation=None, dtype=float8_e4m3fn)"
    )
    assert ops.unpack24(made.values.float(), made.meta).count_nonzero() == 0
    x = torch.randn(3, 96).half()
    assert torch.equal(made(x), torch.zeros(3, 40).half())


def test_refusals():
    with pytest.raises(ValueError, match="QuantizedLinear24: expected in_features divisible by 4, got 6"):
        QuantizedLinear24(6, 4)
    with pytest.raises(ValueError, match="expected dtype int8 or float8_e4m3fn, got uint8"):
        QuantizedLinear24(8, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match='expected activation None, "gelu" or "quick_gelu", got'):
        QuantizedLinear24(8, 4, activation="relu")
    with pytest.raises(TypeError, match=r"from_linear24: expected Linear24, got Linear$"):
        QuantizedLinear24.from_linear24(nn.Linear(8, 4))
