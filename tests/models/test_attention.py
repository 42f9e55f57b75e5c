"""The stand-ins for one attention module: call forms, masks, layouts and options."""

import copy
import inspect

import pytest
import torch
from open_clip.transformer import Attention
from torch import nn

from vlprune.nn import Linear24, PackedAttention, SplitAttention

from .attention_cases import CLOSE, B, D, H, L, blocked, causal, mha, open_clip_attention, per_head, x


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad], ids=["fast-path", "slow-path"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch-first", "tokens-first"])
@pytest.mark.parametrize(
    "mask", [None, causal(), blocked(), per_head()], ids=["none", "causal", "bool", "per-head"]
)
def test_self_attention_equals_torch(mode, bias, batch_first, mask):
    module = mha(bias=bias, batch_first=batch_first)
    q = x() if batch_first else x().transpose(0, 1)
    with mode():
        expected = module(q, q, q, need_weights=False, attn_mask=mask)[0]
        ours, weights = PackedAttention.from_attention(module)(q, q, q, need_weights=False, attn_mask=mask)
    assert weights is None
    torch.testing.assert_close(ours, expected, **CLOSE)


@pytest.mark.parametrize("padding", ["bool", "float"])
@pytest.mark.parametrize("mask", [None, causal()], ids=["no-mask", "causal"])
def test_key_padding_equals_torch(padding, mask):
    module, q = mha(), x()
    pad = torch.zeros(B, L, dtype=torch.bool)
    pad[0, 3:] = True
    pad = pad if padding == "bool" else torch.zeros(B, L).masked_fill(pad, float("-inf"))
    expected = module(q, q, q, key_padding_mask=pad, need_weights=False, attn_mask=mask)[0]
    ours = PackedAttention.from_attention(module)(
        q, q, q, key_padding_mask=pad, need_weights=False, attn_mask=mask
    )
    torch.testing.assert_close(ours[0], expected, **CLOSE)


def test_causal_hint_equals_torch():
    module, q = mha(), x()
    expected = module(q, q, q, need_weights=False, attn_mask=causal(), is_causal=True)[0]
    packed = PackedAttention.from_attention(module)
    torch.testing.assert_close(
        packed(q, q, q, need_weights=False, attn_mask=causal(), is_causal=True)[0], expected, **CLOSE
    )
    padding = torch.zeros(B, L, dtype=torch.bool)
    hinted = packed(q, q, q, padding, False, causal(), is_causal=True)[0]
    torch.testing.assert_close(hinted, expected, **CLOSE)
    with pytest.raises(ValueError, match="is_causal"):
        packed(q, q, q, padding, False, is_causal=True)


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch-first", "tokens-first"])
def test_a_lone_sequence(batch_first):
    module, q = mha(batch_first=batch_first), x()[0]
    expected = module(q, q, q, need_weights=False)[0]
    ours = PackedAttention.from_attention(module)(q, q, q, need_weights=False)[0]
    assert ours.shape == (L, D)
    torch.testing.assert_close(ours, expected, **CLOSE)


@pytest.mark.parametrize("form", [PackedAttention, SplitAttention])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch-first", "tokens-first"])
@pytest.mark.parametrize("other", ["both", "values"])
def test_keys_and_values_from_elsewhere(form, batch_first, other):
    module, q, k, v = mha(batch_first=batch_first), x(0, L), x(1, 7), x(2, 7)
    if other == "values":
        k, v = q, x(2, L)
    if not batch_first:
        moved = [t.transpose(0, 1) for t in (q, k, v)]
        q, k, v = (moved[0], moved[0] if k is q else moved[1], moved[2])
    expected = module(q, k, v, need_weights=False)[0]
    torch.testing.assert_close(form.from_attention(module)(q, k, v, need_weights=False)[0], expected, **CLOSE)


def test_equal_but_distinct_keys_give_the_same_result():
    module, q = mha(), x()
    packed = PackedAttention.from_attention(module)
    same = packed(q, q, q, need_weights=False)[0]
    torch.testing.assert_close(packed(q, q.clone(), q.clone(), need_weights=False)[0], same, **CLOSE)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_other_key_width_splits_and_merges(bias):
    module = mha(kdim=10, vdim=14, bias=bias)
    state = copy.deepcopy(module.state_dict())
    q, k, v = x(), x(1, 7, 10), x(2, 7, 14)
    expected = module(q, k, v, need_weights=False)[0]
    split = SplitAttention.from_attention(module)
    assert split.k_proj.weight.shape == (D, 10)
    torch.testing.assert_close(split(q, k, v, need_weights=False)[0], expected, **CLOSE)
    merged = split.to_attention()
    assert type(merged) is nn.MultiheadAttention
    assert all(torch.equal(merged.state_dict()[name], state[name]) for name in state)
    assert list(merged.state_dict()) == list(state)
    assert torch.equal(merged(q, k, v, need_weights=False)[0], expected)


def test_attention_dropout_in_train_mode_draws_the_same():
    module, q = mha(dropout=0.4).train(), x()
    torch.manual_seed(5)
    expected = module(q, q, q, need_weights=False)[0]
    packed = PackedAttention.from_attention(module)
    torch.manual_seed(5)
    # Another draw would be far off; the products of two threads may differ in the last bits.
    torch.testing.assert_close(packed(q, q, q, need_weights=False)[0], expected, **CLOSE)
    packed.eval()
    assert torch.equal(packed(q, q, q, need_weights=False)[0], packed(q, q, q, need_weights=False)[0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_bias": False},
        {"qk_norm": True},
        {"scale_heads": True},
        {"inner_norm": True},
        {"qk_norm": True, "scale_heads": True, "inner_norm": True, "qkv_bias": False},
        {"scaled_cosine": True},
        {"scaled_cosine": True, "logit_scale_max": 0.1, "scale_heads": True},
    ],
    ids=lambda o: "+".join(o) or "plain",
)
@pytest.mark.parametrize(
    "mask", [None, causal(), blocked(), per_head()], ids=["none", "causal", "bool", "per-head"]
)
def test_open_clip_attention_with_every_option(options, mask):
    module = open_clip_attention(**options)
    packed = PackedAttention.from_attention(copy.deepcopy(module))
    if options.get("scaled_cosine"):
        expected = cosine_attention(module, x(), mask)
    else:
        expected = module(x(), attn_mask=mask)
    torch.testing.assert_close(packed(x(), attn_mask=mask), expected, rtol=1e-4, atol=1e-5)
    state = module.state_dict()
    merged = packed.to_attention()
    assert type(merged) is Attention
    assert list(merged.state_dict()) == list(state)
    assert all(torch.equal(merged.state_dict()[name], state[name]) for name in state)


def cosine_attention(module, q, mask):
    """Swin V2's attention, written out: release 3.3.0 of open_clip fails on it with a shape error."""
    parts = nn.functional.linear(q, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (p.reshape(B, L, H, D // H).transpose(1, 2) for p in parts)
    q, k = (t / t.norm(dim=-1, keepdim=True) for t in (q, k))
    logits = q @ k.transpose(-1, -2) * module.logit_scale.clamp(max=module.logit_scale_max).exp()
    if mask is not None:
        mask = mask.reshape(B, H, L, L) if mask.dim() == 3 else mask
        if mask.dtype == torch.bool:
            mask = ~mask if hasattr(module, "use_sdpa") else mask
            mask = torch.zeros(mask.shape).masked_fill(mask, float("-inf"))
        logits = logits + mask
    out = logits.softmax(-1) @ v
    out = out if module.head_scale is None else out * module.head_scale
    return module.out_proj(module.ln_inner(out.transpose(1, 2).reshape(B, L, D)))


def test_open_clip_dropouts_in_train_mode():
    module = open_clip_attention(attn_drop=0.3, proj_drop=0.3).train()
    packed = PackedAttention.from_attention(copy.deepcopy(module))
    torch.manual_seed(5)
    expected = module(x())
    torch.manual_seed(5)
    torch.testing.assert_close(packed(x()), expected, **CLOSE)


@pytest.mark.skipif("k_x" not in inspect.signature(Attention.forward).parameters, reason="open_clip 3")
@pytest.mark.parametrize("dims", [{}, {"kdim": 10, "vdim": 10}], ids=["same", "other"])
@pytest.mark.parametrize("form", [PackedAttention, SplitAttention])
def test_open_clip_cross_attention(dims, form):
    if dims and form is PackedAttention:
        with pytest.raises(TypeError, match="Attention"):
            form.from_attention(open_clip_attention(**dims))
        return
    module = open_clip_attention(**dims)
    k, v = x(1, 7, dims.get("kdim", D)), x(2, 7, dims.get("vdim", D))
    expected, state = module(x(), k_x=k, v_x=v), module.state_dict()
    split = form.from_attention(copy.deepcopy(module))
    torch.testing.assert_close(split(x(), k_x=k, v_x=v), expected, **CLOSE)
    merged = split.to_attention()
    assert list(merged.state_dict()) == list(state)
    assert torch.equal(merged(x(), k_x=k, v_x=v), expected)


def test_masks_of_removed_heads_are_left_out():
    module = mha()
    out = module.out_proj
    packed = PackedAttention.from_attention(copy.deepcopy(module))
    kept, hd = (0, 2), D // H
    rows = torch.cat([torch.arange(h * hd, (h + 1) * hd) for h in kept])
    qkv = torch.cat([rows + part * D for part in range(3)])
    smaller = PackedAttention(D, len(kept), hd)
    with torch.no_grad():
        smaller.qkv.weight.copy_(packed.qkv.weight[qkv])
        smaller.qkv.bias.copy_(packed.qkv.bias[qkv])
        smaller.out_proj.weight.copy_(out.weight[:, rows])
        smaller.out_proj.bias.copy_(out.bias)
        module.out_proj.weight[:, hd : 2 * hd] = 0.0
    smaller.kept_heads = kept
    expected = module(x(), x(), x(), need_weights=False, attn_mask=per_head())[0]
    torch.testing.assert_close(smaller(x(), attn_mask=per_head()), expected, **CLOSE)
    assert not smaller.can_merge()
    with pytest.raises(ValueError, match="cannot be merged"):
        smaller.to_attention()


def test_attention_weights_are_refused():
    packed = PackedAttention.from_attention(mha())
    for options in ({}, {"need_weights": True}):
        with pytest.raises(ValueError, match="need_weights"):
            packed(x(), x(), x(), **options)
    with pytest.raises(ValueError, match="need_weights"):
        PackedAttention(D, H)(x(), need_weights=True)


class Subclass(nn.MultiheadAttention):
    pass


@pytest.mark.parametrize(
    "module",
    [
        nn.MultiheadAttention(D, H, add_bias_kv=True),
        nn.MultiheadAttention(D, H, add_zero_attn=True),
        Subclass(D, H),
        nn.Linear(D, D),
    ],
    ids=["bias-kv", "zero-attn", "subclass", "linear"],
)
def test_what_it_cannot_stand_in_for_is_refused(module):
    for form in (PackedAttention, SplitAttention):
        with pytest.raises(TypeError, match=type(module).__name__):
            form.from_attention(module)


def test_half_precision_takes_a_float32_mask():
    module = mha().bfloat16()
    q = x().bfloat16()
    expected = module(q, q, q, need_weights=False, attn_mask=causal().bfloat16())[0]
    ours = PackedAttention.from_attention(module)(q, q, q, need_weights=False, attn_mask=causal())[0]
    assert ours.dtype == torch.bfloat16
    # one rounding to bfloat16 at each of three products
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads"):
        PackedAttention(10, 3)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize(
    "how",
    [{}, {"attn_mask": causal()}, {"attn_mask": blocked()}, {"is_causal": True, "attn_mask": causal()},
     {"key_padding_mask": torch.arange(L).expand(B, L) > 2}],
    ids=["none", "causal", "bool", "hint", "padding"],
)  # fmt: skip
def test_a_norm_comes_before_the_projection(packed, how):
    attention = PackedAttention.from_attention(mha())
    if packed:
        attention.qkv.weight.data *= torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(D // 4)
        attention.qkv = Linear24.from_linear(attention.qkv)
    norm = (torch.rand(D) + 0.5, torch.rand(D), 1e-5)
    q = 3 * x() + 1
    with torch.no_grad():
        h = nn.functional.layer_norm(q, (D,), *norm)
        expected = attention(h, h, h, need_weights=False, **how)[0]
        ours = attention(q, q, q, need_weights=False, norm=norm, **how)[0]
        torch.testing.assert_close(ours, expected, **CLOSE)
        alone = attention(q[0], need_weights=False, norm=norm)[0]
        torch.testing.assert_close(alone, attention(h[0], need_weights=False)[0], **CLOSE)
        with pytest.raises(ValueError, match="norm: expected None where keys or values are not the queries"):
            attention(q, q.clone(), q, need_weights=False, norm=norm)
