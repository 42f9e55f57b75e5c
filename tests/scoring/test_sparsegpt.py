"""SparseGPT against optimal brain surgery done one column at a time in float64; its edges and refusals."""

import warnings

import numpy as np
import pytest
import torch

from vlprune import ops
from vlprune.patterns import Pattern
from vlprune.scoring import sparsegpt_prune

CASES = {
    "40%-13-columns-block-4": (5, 13, "unstructured", 0.4, 4),
    "40%-13-columns-one-block": (5, 13, "unstructured", 0.4, 128),
    "70%-block-1": (6, 9, "unstructured", 0.7, 1),
    "one-row": (1, 20, "unstructured", 0.5, 8),
    "2:4-block-8": (6, 24, "2:4", None, 8),
    "2:4-short-last-block": (6, 20, "2:4", None, 16),
    "1:4": (6, 24, "1:4", None, 8),
    "3:4": (6, 24, "3:4", None, 128),
    "5:6-block-12": (3, 30, "5:6", None, 12),
}
cases = pytest.mark.parametrize(
    ("rows", "inputs", "pattern", "sparsity", "blocksize"), CASES.values(), ids=CASES
)


def problem(rows, inputs, tokens=200, noise=0.1):
    """A float64 weight and the Hessian of inputs that mostly share a quarter as many causes."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    causes = -(-inputs // 4)
    x = normal(tokens, causes) @ normal(causes, inputs) / causes**0.5 + noise * normal(tokens, inputs)
    return normal(rows, inputs), 2 * x.T @ x / 4


def surgery(weight, hessian, pattern, sparsity, blocksize, damping=0.01):
    """One column after the other; each time the Hessian of the columns left is inverted from scratch."""
    weight, hessian = weight.numpy().copy(), hessian.numpy().copy()
    hessian += damping * hessian.diagonal().mean() * np.eye(len(hessian))
    keep = np.ones(weight.shape, bool)
    inverses = [np.linalg.inv(hessian[j:, j:]) for j in range(len(hessian))]
    kind = Pattern.parse(pattern)
    for j, inverse in enumerate(inverses):
        if j % (kind.m or blocksize) == 0:
            group = slice(j, j + (kind.m or blocksize))
            score = weight[:, group] ** 2 / [left[0, 0] for left in inverses[group]]
            units = score if kind.m else score.reshape(1, -1)
            prune = kind.m - kind.n if kind.m else int(score.size * sparsity)
            gone = np.zeros(units.shape, bool)
            np.put_along_axis(gone, units.argsort(1, kind="stable")[:, :prune], True, 1)
            keep[:, group] = ~gone.reshape(score.shape)
        for row in np.flatnonzero(~keep[:, j]):
            weight[row, j:] -= weight[row, j] / inverse[0, 0] * inverse[0]
    return torch.from_numpy(np.where(keep, weight, 0)), torch.from_numpy(keep)


def error(pruned, weight, hessian):
    """Squared error of the layer's outputs over the calibration tokens."""
    return float(((pruned - weight) @ hessian * (pruned - weight)).sum())


@cases
def test_equals_surgery_column_by_column(rows, inputs, pattern, sparsity, blocksize):
    weight, hessian = problem(rows, inputs)
    expected, expected_keep = surgery(weight, hessian, pattern, sparsity, blocksize)
    pruned, keep = sparsegpt_prune(weight, hessian, pattern, sparsity, blocksize)
    assert torch.equal(keep, expected_keep)
    torch.testing.assert_close(pruned, expected, rtol=1e-12, atol=1e-12)  # float64, condition below 1e3


@cases
def test_float32_stays_close(rows, inputs, pattern, sparsity, blocksize):
    weight, hessian = (tensor.float() for tensor in problem(rows, inputs))
    expected, expected_keep = surgery(weight.double(), hessian.double(), pattern, sparsity, blocksize)
    pruned, keep = sparsegpt_prune(weight, hessian, pattern, sparsity, blocksize)
    assert pruned.dtype is torch.float32
    assert torch.equal(keep, expected_keep)
    # Weights of order one; 6e-8 times a condition number of up to 620.
    torch.testing.assert_close(pruned, expected.float(), rtol=4e-5, atol=4e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", None), ("unstructured", 0.6)])
def test_half_weights_are_rounded_only_at_the_end(dtype, pattern, sparsity):
    weight, hessian = problem(16, 40)
    weight, hessian = weight.to(dtype), hessian.float()
    pruned, keep = sparsegpt_prune(weight, hessian, pattern, sparsity, 16)
    exact, exact_keep = sparsegpt_prune(weight.float(), hessian, pattern, sparsity, 16)
    assert pruned.dtype is dtype
    assert torch.equal(keep, exact_keep)
    assert torch.equal(pruned, exact.to(dtype))
    rounded = hessian.to(dtype)
    pruned, keep = sparsegpt_prune(weight, rounded, pattern, sparsity, 16, 0.1)
    exact, exact_keep = sparsegpt_prune(weight.float(), rounded.float(), pattern, sparsity, 16, 0.1)
    assert torch.equal(keep, exact_keep)
    assert torch.equal(pruned, exact.to(dtype))


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", None), ("1:4", None), ("unstructured", 0.5)])
def test_output_error_is_well_below_wandas(pattern, sparsity):
    weight, hessian = problem(32, 64, tokens=1000, noise=0.3)
    pruned, _ = sparsegpt_prune(weight, hessian, pattern, sparsity)
    mask = ops.wanda_mask(weight, hessian.diagonal().sqrt(), pattern, sparsity)
    # 0.32 to 0.53 of Wanda's for four seeds.
    assert error(pruned, weight, hessian) < 0.7 * error(weight * mask, weight, hessian)


def test_lazy_updates_change_nothing():
    """n:m decides from weights already updated, so the block size is only a matter of speed."""
    weight, hessian = problem(7, 48)
    expected, expected_keep = sparsegpt_prune(weight, hessian, "2:4", blocksize=4)
    for blocksize in (8, 20, 48, 128):
        pruned, keep = sparsegpt_prune(weight, hessian, "2:4", blocksize=blocksize)
        assert torch.equal(keep, expected_keep)
        torch.testing.assert_close(pruned, expected, rtol=1e-10, atol=1e-10)  # order of float64 sums


def test_scale_of_the_hessian_does_not_matter():
    weight, hessian = problem(7, 24)
    expected, expected_keep = sparsegpt_prune(weight, hessian, "unstructured", 0.5, 8)
    # A power of four has an exact root, so that not even rounding differs.
    pruned, keep = sparsegpt_prune(weight, 1024 * hessian, "unstructured", 0.5, 8)
    assert torch.equal(keep, expected_keep)
    assert torch.equal(pruned, expected)


def test_inputs_and_their_layout():
    weight, hessian = problem(12, 24)
    expected, expected_keep = sparsegpt_prune(weight, hessian, "2:4")
    parameter = torch.nn.Parameter(weight.t().contiguous().t())
    copy = hessian.clone()
    pruned, keep = sparsegpt_prune(parameter, hessian, Pattern(2, 4))
    assert torch.equal(pruned, expected)
    assert torch.equal(keep, expected_keep)
    assert torch.equal(parameter.detach(), weight)
    assert torch.equal(hessian, copy)
    assert not pruned.requires_grad
    assert pruned.is_contiguous()
    assert keep.is_contiguous()


def test_nothing_and_everything():
    weight, hessian = problem(5, 11)
    pruned, keep = sparsegpt_prune(weight, hessian, "unstructured", 0.0, 4)
    assert torch.equal(pruned, weight)
    assert keep.all()
    pruned, keep = sparsegpt_prune(weight, hessian, "unstructured", 1.0, 4)
    assert not pruned.any()
    assert not keep.any()


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)], ids=["no-rows", "no-columns"])
def test_empty_weights(shape):
    pruned, keep = sparsegpt_prune(torch.empty(shape), torch.eye(shape[1]), "unstructured", 0.5)
    assert pruned.shape == keep.shape == shape


def test_equal_scores_go_lowest_index_first_by_rows():
    weight = torch.ones(3, 4)
    _, keep = sparsegpt_prune(weight, torch.eye(4), "unstructured", 0.5)
    assert keep.tolist() == [[False] * 4, [False, False, True, True], [True] * 4]
    _, keep = sparsegpt_prune(weight, torch.eye(4), "unstructured", 0.5, blocksize=2)
    assert keep.tolist() == [[False] * 4, [False, True] * 2, [True] * 4]
    _, keep = sparsegpt_prune(weight, torch.eye(4), "1:4")
    assert keep.tolist() == [[False, False, False, True]] * 3


def test_both_zeros_are_one_score():
    weight = torch.tensor([[0.0, -0.0, 0.0, -0.0]])
    for signed in (weight, -weight):
        pruned, keep = sparsegpt_prune(signed, torch.eye(4), "2:4")
        assert keep.tolist() == [[False, False, True, True]]
        assert not pruned[~keep].signbit().any()


def test_columns_that_were_never_fed_become_zero():
    weight, hessian = problem(6, 12)
    dead = [1, 2, 3, 8]
    hessian[dead] = hessian[:, dead] = 0
    pruned, keep = sparsegpt_prune(weight, hessian, "2:4")
    assert not pruned[:, dead].any()
    assert (keep.view(6, 3, 4).sum(2) == 2).all()
    # Three of the first four are dead: the lowest two go, the third is kept as a zero, the living stays.
    assert keep[:, :4].tolist() == [[True, False, False, True]] * 6
    # The published rule: a dead diagonal entry counts as one, in the mean as well.
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    expected, expected_keep = surgery(weight, hessian, "2:4", None, 128)
    assert torch.equal(keep, expected_keep)
    torch.testing.assert_close(pruned, expected, rtol=1e-12, atol=1e-12)  # as above


@pytest.mark.parametrize("tokens", [1, 5], ids=["1-token", "5-tokens"])
def test_fewer_tokens_than_columns(tokens):
    weight, hessian = (tensor.float() for tensor in problem(6, 32, tokens))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned, keep = sparsegpt_prune(weight, hessian, "unstructured", 0.5, 16)
    expected, expected_keep = surgery(weight.double(), hessian.double(), "unstructured", 0.5, 16)
    assert torch.equal(keep, expected_keep)
    # The damping bounds the condition number by 100 times the columns (plus one): 2e-4 in float32.
    torch.testing.assert_close(pruned, expected.float(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", None), ("unstructured", 0.3)])
def test_hessian_of_zeros_falls_back_to_wanda(pattern, sparsity):
    weight, _ = problem(6, 12)
    with pytest.warns(RuntimeWarning, match=r"blocks\.3\.fc1: no input reached it; pruned by Wanda"):
        pruned, keep = sparsegpt_prune(weight, torch.zeros(12, 12), pattern, sparsity, name="blocks.3.fc1")
    assert torch.equal(keep, ops.wanda_mask(weight, torch.zeros(12), pattern, sparsity))
    assert torch.equal(pruned, weight * keep)


def indefinite(lowest, inputs=12):
    """A Hessian with diagonal mean one and one negative eigenvalue."""
    basis = torch.linalg.qr(torch.randn(inputs, inputs, dtype=torch.float64)).Q
    values = torch.full((inputs,), (inputs - lowest) / (inputs - 1), dtype=torch.float64)
    values[3] = lowest
    hessian = basis @ values.diag() @ basis.T
    return (hessian + hessian.T) / 2


@pytest.mark.parametrize(("lowest", "needed"), [(-0.05, 0.1), (-0.5, 1.0)])
def test_damping_grows_where_the_factorization_fails(lowest, needed):
    weight, hessian = problem(6, 12)[0], indefinite(lowest)
    with pytest.warns(RuntimeWarning, match=rf"mlp\.fc2: its Hessian needed damping {needed:g}, not 0\.01"):
        pruned, keep = sparsegpt_prune(weight, hessian, "2:4", name="mlp.fc2")
    expected, expected_keep = sparsegpt_prune(weight, hessian, "2:4", damping=needed)
    assert torch.equal(keep, expected_keep)
    torch.testing.assert_close(pruned, expected, rtol=1e-12, atol=1e-12)  # 0.01 * 10 is not quite 0.1


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", None), ("unstructured", 0.3)])
@pytest.mark.parametrize("lowest", [-1.5, -40.0], ids=["positive-diagonal", "negative-diagonal"])
def test_hopeless_hessian_falls_back_to_wanda(lowest, pattern, sparsity):
    weight, hessian = problem(6, 12)[0], indefinite(lowest)
    with pytest.warns(RuntimeWarning, match=r"mlp\.fc2: .* not positive definite; pruned by Wanda"):
        pruned, keep = sparsegpt_prune(weight, hessian, pattern, sparsity, name="mlp.fc2")
    norm = hessian.diagonal().clamp(min=0).sqrt()
    assert torch.equal(keep, ops.wanda_mask(weight, norm, pattern, sparsity))
    assert torch.equal(pruned, weight * keep)


def infinite(shape):
    tensor = torch.ones(shape)
    tensor[0, 1] = float("inf")
    return tensor


LOPSIDED = torch.eye(8).index_put((torch.tensor([0]), torch.tensor([5])), torch.tensor(0.5))
REFUSALS = {
    "weight-1-d": ({"weight": torch.ones(8)}, r"expected fc1 of shape \[out, in\].*got \(8,\)"),
    "weight-integer": ({"weight": torch.ones(3, 8, dtype=torch.int64)}, "floating dtype.*int64"),
    "weight-infinite": ({"weight": infinite((3, 8))}, "expected fc1 to be finite"),
    "hessian-shape": ({"hessian": torch.eye(7)}, r"expected hessian of shape \(8, 8\).*got \(7, 7\)"),
    "hessian-nan": ({"hessian": torch.eye(8) * float("nan")}, "expected hessian of fc1 to be finite"),
    "hessian-asymmetric": ({"hessian": LOPSIDED}, r"hessian of fc1 to be symmetric.*up to 0\.5"),
    "block-not-of-groups": ({"pattern": "2:4", "sparsity": None, "blocksize": 6}, "divisible by 4"),
    "block-zero": ({"blocksize": 0}, "blocksize an integer of at least 1, got 0"),
    "block-float": ({"blocksize": 8.0}, r"blocksize an integer of at least 1, got 8\.0"),
    "damping-zero": ({"damping": 0}, "damping a finite number above 0, got 0"),
    "damping-nan": ({"damping": float("nan")}, "damping a finite number above 0, got nan"),
    "sparsity-missing": ({"sparsity": None}, "sparsity: required"),
    "sparsity-above-1": ({"sparsity": 1.1}, r"sparsity: expected.*got 1\.1"),
    "sparsity-not-of-pattern": ({"pattern": "1:4"}, r'pattern "1:4" means 0\.75, got 0\.5'),
    "inputs-not-of-groups": ({"pattern": "1:3", "sparsity": None}, 'fc1: pattern "1:3" needs'),
    "pattern-unknown": ({"pattern": "4:2"}, "pattern: expected"),
}


@pytest.mark.parametrize(("changed", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(changed, message):
    arguments = {
        "weight": torch.ones(3, 8), "hessian": torch.eye(8), "pattern": "unstructured", "sparsity": 0.5,
        "name": "fc1", **changed,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        sparsegpt_prune(**arguments)


def test_rounding_of_float32_sums_is_no_asymmetry():
    x = torch.randn(5000, 16)
    hessian = x.T @ x
    hessian += 1e-5 * hessian.abs().max() * torch.randn(16, 16)
    pruned, _ = sparsegpt_prune(torch.ones(2, 16), hessian, "2:4")
    assert pruned.isfinite().all()
