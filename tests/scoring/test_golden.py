"""Every method on two rows of eight weights, against values worked out by hand in float64."""

import pytest
import torch
from ops.test_golden import PRUNED, W, X, column_norm, dtypes

from vlprune import scoring
from vlprune.patterns import Pattern

# Pattern, sparsity, blocksize -> which weights stay, with what became of them (zero: gone).
REPAIRED_BLOCK_8 = [
    [0, -1.11907553, 1.95828529, 0, -0.44280146, 1.80034923, 0, 3.06376],
    [-2, 0, 0, 1.33613061, 0, 0, 0.60335595, 0],
]
REPAIRED_24 = [
    [0, -1.11907553, 1.95828529, 0, 0, 2.10221876, 0, 2.7334983],
    [-2, 0, 0, 1.33613061, 0, 0, 0.60335595, -1.37059331],
]
SPARSEGPT = {
    "50%-one-block": ("unstructured", 0.5, 128, REPAIRED_BLOCK_8),
    "50%-block-8": ("unstructured", 0.5, 8, REPAIRED_BLOCK_8),
    "50%-block-4": ("unstructured", 0.5, 4, REPAIRED_24),
    "2:4-one-block": ("2:4", None, 128, REPAIRED_24),
    "2:4-block-4": ("2:4", None, 4, REPAIRED_24),
}
RIA_SCORES = [
    [0.3355265615, 1.1569881433, 1.3016116612, 0.2630651921,
     1.5619090851, 0.9242443054, 0.1606927977, 1.542741937],
    [1.4740028945, 0.3668809402, 0.4300524928, 1.3418509109,
     0.1079642046, 0.6073201294, 1.3383010407, 0.231212174],
]  # fmt: skip
RIA_PRUNED = {
    "row-50%": ("unstructured", 0.5, "row", [[1, 0, 0, 1, 0, 1, 1, 0], [0, 1, 1, 0, 1, 0, 0, 1]]),
    "2:4": ("2:4", 0.5, "row", [[1, 0, 0, 1, 0, 1, 1, 0], [0, 1, 1, 0, 1, 0, 0, 1]]),
    "1:4": ("1:4", 0.75, "row", [[1, 1, 0, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0, 1]]),
    "layer-25%": ("unstructured", 0.25, "layer", [[0, 0, 0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0, 0, 1]]),
}


def hessian():
    rows = X.flatten(0, 1)
    return (rows.T @ rows + torch.eye(8, dtype=torch.float64)) * 2 / 3


@dtypes
@pytest.mark.parametrize(("pattern", "sparsity", "scope", "pruned"), PRUNED.values(), ids=PRUNED)
def test_wanda(dtype, pattern, sparsity, scope, pruned):
    kind = Pattern.parse(pattern)
    keep = scoring.wanda_mask(W.to(dtype), column_norm(dtype), kind, kind.resolve_sparsity(sparsity), scope)
    assert torch.equal(keep, ~torch.tensor(pruned, dtype=torch.bool))


def test_magnitude_of_the_whole_layer():
    pruned = torch.tensor([[1, 0, 0, 1, 1, 0, 1, 0], [0, 1, 1, 0, 1, 0, 0, 1]], dtype=torch.bool)
    assert torch.equal(scoring.magnitude_mask(W, Pattern(), 0.5, "layer"), ~pruned)


@pytest.mark.parametrize(("pattern", "sparsity", "blocksize", "expected"), SPARSEGPT.values(), ids=SPARSEGPT)
def test_sparsegpt(pattern, sparsity, blocksize, expected):
    weight, keep = scoring.sparsegpt_prune(W, hessian(), pattern, sparsity, blocksize)
    expected = torch.tensor(expected, dtype=torch.float64)
    assert weight.dtype is torch.float64
    torch.testing.assert_close(weight, expected, rtol=0, atol=6e-9)  # eight decimals
    assert torch.equal(keep, expected != 0)
    single, keep = scoring.sparsegpt_prune(W.float(), hessian().float(), pattern, sparsity, blocksize)
    torch.testing.assert_close(single, expected.float(), rtol=1e-5, atol=0)  # condition number about 20
    assert torch.equal(keep, expected != 0)


def test_sparsegpt_loss():
    """Half the squared error under the damped Hessian is the sum over columns of e^2 / 2."""
    weight, _ = scoring.sparsegpt_prune(W, hessian(), "2:4")
    damped = hessian() + 0.01 * hessian().diagonal().mean() * torch.eye(8, dtype=torch.float64)
    loss = ((weight - W) @ damped * (weight - W)).sum() / 2
    assert float(loss) == pytest.approx(4.1702598877, abs=6e-11)  # ten decimals


@dtypes
def test_ria_scores(dtype):
    scores = scoring.ria_scores(W.to(dtype), column_norm(dtype))
    assert scores.dtype is torch.float32
    # A few roundings to float32.
    torch.testing.assert_close(
        scores.double(), torch.tensor(RIA_SCORES, dtype=torch.float64), rtol=5e-7, atol=0
    )


@dtypes
@pytest.mark.parametrize(("pattern", "sparsity", "scope", "pruned"), RIA_PRUNED.values(), ids=RIA_PRUNED)
def test_ria_masks(dtype, pattern, sparsity, scope, pruned):
    keep = scoring.ria_mask(W.to(dtype), column_norm(dtype), Pattern.parse(pattern), sparsity, scope)
    assert torch.equal(keep, ~torch.tensor(pruned, dtype=torch.bool))
