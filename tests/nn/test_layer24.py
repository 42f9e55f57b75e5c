"""Linear24 as a module: where it looks for its tensors, and what it refuses to load."""

import pytest
import torch
from torch import nn

import vlprune
from vlprune.nn import Linear24, QuantizedLinear24


def packed_layer(kind):
    values, meta = vlprune.ops.wanda_pack24(torch.randn(24, 64), torch.ones(64))
    linear = nn.Linear(64, 24)
    linear.weight = nn.Parameter(vlprune.ops.unpack24(values, meta))
    layer = Linear24.from_linear(linear)
    return layer if kind is Linear24 else QuantizedLinear24.from_linear24(layer)


class Doubled(nn.Module):
    def forward(self, bias):
        return 2 * bias


def parametrized(layer):
    torch.nn.utils.parametrize.register_parametrization(layer, "bias", Doubled())
    return layer


def as_a_plain_attribute(layer):
    bias = layer.bias.detach()
    del layer.bias
    layer.bias = 2 * bias
    return layer


def called_with_another(layer):
    return lambda x: torch.func.functional_call(layer, {"bias": 2 * layer.bias}, (x,))


@pytest.mark.parametrize("change", [parametrized, as_a_plain_attribute, called_with_another])
def test_linear24_takes_what_its_attributes_are(change):
    layer, x = packed_layer(Linear24), torch.randn(5, 64)
    with torch.no_grad():
        expected = layer(x) + layer.bias
        torch.testing.assert_close(change(layer)(x), expected)


@pytest.mark.parametrize("kind", [Linear24, QuantizedLinear24])
def test_broken_indices_are_not_loaded(kind):
    layer = packed_layer(kind)
    state, meta, bias = layer.state_dict(), layer.meta.clone(), layer.bias.detach().clone()
    broken = state | {"meta": torch.zeros_like(meta), "bias": bias + 1}
    with pytest.raises(
        RuntimeError, match="meta: row 0, inputs 0 to 3: expected two ascending indices, got 0"
    ):
        layer.load_state_dict(broken)
    assert torch.equal(layer.meta, meta)
    assert torch.equal(layer.bias, bias)
    layer.load_state_dict(state)


def as_parameter(meta):
    return nn.Parameter(torch.zeros_like(meta), requires_grad=False)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (as_parameter, "meta: row 0, inputs 0 to 3: expected two ascending indices, got 0 and 0"),
        (lambda meta: meta.to(torch.int64), "meta: expected dtype uint8, got int64"),
        (lambda meta: meta[:, 1:], "size mismatch for meta"),
    ],
    ids=["parameter", "dtype", "shape"],
)
@pytest.mark.parametrize("kind", [Linear24, QuantizedLinear24])
def test_nor_other_kinds_of_tensors(kind, broken, message):
    layer = packed_layer(kind)
    before = layer.meta.clone()
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(layer.state_dict() | {"meta": broken(layer.meta)})
    assert torch.equal(layer.meta, before)


def test_a_state_without_contents_is_no_error():
    layer = packed_layer(Linear24)
    state = {name: tensor.to("meta") for name, tensor in layer.state_dict().items()}
    with torch.device("meta"):
        Linear24(64, 24).load_state_dict(state, assign=True)
