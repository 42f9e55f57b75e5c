"""The packed form: its layout, its inverse, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlprune import ops

from .cases import FLOATS, every_float, normal

# Each group of four: which two entries may be non-zero, and their values (zeros of both signs among them).
GROUPS = st.tuples(
    st.sampled_from([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
    st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0, 3.0]), min_size=2, max_size=2),
    st.sampled_from([0.0, -0.0]),
)


def bits(tensor):
    return tensor.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.itemsize])


@settings(max_examples=80, deadline=None)
@given(data=st.data(), dtype=st.sampled_from([*FLOATS.values(), torch.float64]))
def test_unpack_is_the_inverse(data, dtype):
    rows, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))
    weight = torch.zeros(rows, groups, 4, dtype=dtype)
    for row in range(rows):
        for group in range(groups):
            places, entries, zero = data.draw(GROUPS)
            weight[row, group] = zero
            weight[row, group, list(places)] = torch.tensor(entries, dtype=dtype)
    weight = weight.flatten(1)
    values, meta = ops.pack24(weight)
    assert values.shape == (rows, 2 * groups)
    assert meta.shape == (rows, -(-groups // 2))
    # Bit for bit, except that every zero comes back as +0.0.
    assert torch.equal(bits(ops.unpack24(values, meta)), bits(weight.masked_fill(weight == 0, 0.0)))


@pytest.mark.parametrize(
    ("group", "entries", "nibble"),
    [
        ([0, 0, 0, 0], [0, 0], 0b01_00),
        ([5, 0, 0, 0], [5, 0], 0b01_00),
        ([0, 5, 0, 0], [0, 5], 0b01_00),
        ([0, 0, 5, 0], [0, 5], 0b10_00),
        ([0, 0, 0, 5], [0, 5], 0b11_00),
        ([5, 6, 0, 0], [5, 6], 0b01_00),
        ([5, 0, 6, 0], [5, 6], 0b10_00),
        ([5, 0, 0, 6], [5, 6], 0b11_00),
        ([0, 5, 6, 0], [5, 6], 0b10_01),
        ([0, 5, 0, 6], [5, 6], 0b11_01),
        ([0, 0, 5, 6], [5, 6], 0b11_10),
    ],
    ids=str,
)
@every_float
def test_layout_of_a_group(group, entries, nibble, dtype):
    # Three groups: low nibble, high nibble, and a last byte that is half used.
    values, meta = ops.pack24(torch.tensor([group * 3], dtype=dtype))
    assert values.tolist() == [entries * 3]
    assert meta.tolist() == [[nibble | nibble << 4, nibble]]


@every_float
def test_wanda_pack24_packs_the_pruned_weight(dtype):
    weight, norm = normal(37, 52, dtype=dtype), normal(52, seed=1).abs()
    weight[:, ::5] = 0  # groups whose mask keeps zeros
    values, meta = ops.wanda_pack24(weight, norm)
    pruned = weight.masked_fill(~ops.select(ops.wanda_scores(weight, norm), "2:4"), 0)
    expected, expected_meta = ops.pack24(pruned)
    assert torch.equal(bits(values), bits(expected))
    assert torch.equal(meta, expected_meta)
    assert torch.equal(ops.unpack24(values, meta), pruned)


@pytest.mark.parametrize("dtype", [*FLOATS.values(), torch.float64], ids=str)
def test_the_first_bad_group_is_named(dtype):
    weight = torch.zeros(6, 20, dtype=dtype)
    weight[3, 12:15] = torch.tensor([1.0, -2.0, 3.0])
    weight[4, 0:4] = 1
    bad = r"\[1\.0, -2\.0, 3\.0, 0\.0\] in row 3, group 3 \(inputs 12 to 15\)"
    with pytest.raises(ValueError, match=f"pack24: expected at most 2 non-zeros in every 4 .*, got {bad}"):
        ops.pack24(weight)


@pytest.mark.parametrize("entry", [float("nan"), float("inf"), 1e-40], ids=str)
def test_every_bit_pattern_is_stored(entry):
    weight = torch.zeros(1, 8)
    weight[0, [1, 6]] = entry
    assert torch.equal(bits(ops.unpack24(*ops.pack24(weight))), bits(weight))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)], ids=["no-rows", "no-columns"])
def test_empty(shape):
    values, meta = ops.pack24(torch.empty(shape))
    assert values.shape == (shape[0], shape[1] // 2)
    assert ops.unpack24(values, meta).shape == shape
    assert ops.wanda_pack24(torch.empty(shape), torch.empty(shape[1]))[1].shape == meta.shape


def test_gradients_go_to_the_stored_places():
    weight = torch.tensor([[0, 2, 0, 3, 4, 0, 0, 0]], dtype=torch.float64, requires_grad=True)
    values, meta = ops.pack24(weight)
    (values * torch.tensor([[1.0, 10, 100, 1000]])).sum().backward()
    assert weight.grad.tolist() == [[0, 1, 0, 10, 100, 1000, 0, 0]]
    values = values.detach().requires_grad_()
    (ops.unpack24(values, meta) * torch.arange(8)).sum().backward()
    assert values.grad.tolist() == [[1, 3, 4, 5]]
