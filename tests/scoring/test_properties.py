"""What holds for every weight: exact counts per unit, exact zeros, orders that are permutations."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlprune.patterns import Pattern
from vlprune.scoring import channel_permutation, ria_mask, ria_scores, sparsegpt_prune

GROUPS = st.sampled_from([(2, 4), (1, 4), (3, 4), (4, 8), (1, 2), (2, 5)])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])


def drawn(rows, inputs, tokens, seed, coarse):
    """A weight and a Hessian, singular with few tokens; coarse ones have few values, so that many tie."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=generator)
    x = torch.randn(tokens, inputs, generator=generator)
    return (weight.round(), 2 * torch.eye(inputs)) if coarse else (weight, 2 * x.T @ x + 1e-6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    inputs=st.integers(1, 40),
    tokens=st.integers(1, 50),
    blocksize=st.integers(1, 48),
    sparsity=st.floats(0, 1),
    dtype=DTYPES,
    seed=st.integers(0, 999),
    coarse=st.booleans(),
)
def test_sparsegpt_prunes_exactly_so_many_of_each_block(
    rows, inputs, tokens, blocksize, sparsity, dtype, seed, coarse
):
    weight, hessian = drawn(rows, inputs, tokens, seed, coarse)
    weight = weight.to(dtype)
    pruned, keep = sparsegpt_prune(weight, hessian, "unstructured", sparsity, blocksize)
    for block in keep.split(blocksize, dim=1):
        assert int((~block).sum()) == int(block.numel() * sparsity)
    assert pruned.dtype is dtype
    assert pruned.isfinite().all()
    assert not pruned[~keep].any()
    if coarse:  # a diagonal Hessian repairs nothing: what stays, stays as it was
        assert torch.equal(pruned, weight * keep)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    group=GROUPS,
    groups=st.integers(1, 9),
    blocks=st.integers(1, 4),
    tokens=st.integers(1, 50),
    seed=st.integers(0, 999),
    coarse=st.booleans(),
)
def test_sparsegpt_keeps_exactly_n_of_each_group(rows, group, groups, blocks, tokens, seed, coarse):
    n, m = group
    weight, hessian = drawn(rows, groups * m, tokens, seed, coarse)
    pruned, keep = sparsegpt_prune(weight, hessian, f"{n}:{m}", blocksize=blocks * m)
    assert (keep.view(rows, -1, m).sum(2) == n).all()
    assert not pruned[~keep].any()
    if coarse:  # then it is magnitude pruning: nothing that went was larger than what stayed
        gone = weight.abs().masked_fill(keep, 0).view(rows, -1, m).amax(2)
        kept = weight.abs().masked_fill(~keep, torch.inf).view(rows, -1, m).amin(2)
        assert (gone <= kept).all()


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 6), inputs=st.integers(1, 30), sparsity=st.floats(0, 1), seed=st.integers(0, 999))
def test_ria_prunes_exactly_so_many(rows, inputs, sparsity, seed):
    weight, hessian = drawn(rows, inputs, 9, seed, coarse=True)
    norm = hessian.diagonal()
    keep = ria_mask(weight, norm, Pattern(), sparsity)
    assert ((~keep).sum(1) == int(inputs * sparsity)).all()
    keep = ria_mask(weight, norm, Pattern(), sparsity, "layer")
    assert int((~keep).sum()) == int(rows * inputs * sparsity)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 6), group=GROUPS, groups=st.integers(1, 8), seed=st.integers(0, 999))
def test_permutation_is_one_and_never_loses(rows, group, groups, seed):
    n, m = group
    weight, _ = drawn(rows, groups * m, 9, seed, coarse=seed % 2 == 0)
    scores = ria_scores(weight, torch.rand(groups * m))
    order = channel_permutation(scores, Pattern(n, m))
    assert order.dtype is torch.int64
    assert order.sort().values.tolist() == list(range(groups * m))
    before, after = (
        s.double().view(rows, -1, m).sort(dim=2).values[..., m - n :].sum()
        for s in (scores, scores[:, order])
    )
    assert after >= before * (1 - 1e-12)  # float64 sums in another order
