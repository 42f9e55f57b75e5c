"""The stand-ins for one attention module: call forms, masks, layouts and options."""

import copy
import inspect

import pytest
import torch
from open_clip.transformer import Attention
from torch import nn

import vlprune.ops
from vlprune.nn import PackedAttention, SplitAttention, attention_mask

B, L, D, H = 2, 5, 24, 3
# Same arithmetic in another order: a few units in the last place of values around one.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def mha(**options):
    torch.manual_seed(2)
    module = nn.MultiheadAttention(D, H, **{"batch_first": True, **options}).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def open_clip_attention(**options):
    torch.manual_seed(2)
    module = Attention(D, H, **options).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def x(seed=0, length=L, dim=D, batch=B):
    return torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(seed))


def causal(length=L):
    return torch.full((length, length), float("-inf")).triu(1)


def blocked():
    # some of each in every row: whichever of the two True means, no row is without a key
    rows = torch.arange(L)
    mask = torch.zeros(L, L, dtype=torch.bool)
    mask[rows, (rows + 1) % L] = mask[rows, (rows + 3) % L] = True
    return mask


def per_head():
    masks = torch.stack([causal() * 1.0 if i % 2 else torch.zeros(L, L) for i in range(B * H)])
    masks[:, :, 0] = 0.5
    return masks


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
    assert torch.equal(packed(q, q, q, need_weights=False)[0], expected)
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


def calls_of_head_attention(monkeypatch):
    """The arguments of each call besides qkv."""
    calls = []
    original = vlprune.ops.head_attention

    def counting(qkv, heads, causal=False, scale=None):
        calls.append((heads, causal, scale))
        return original(qkv, heads, causal, scale)

    monkeypatch.setattr(vlprune.ops, "head_attention", counting)
    return calls


def by_rows(packed, q, mask):
    """The same module's attention token by token, each with the keys that its row of the mask leaves."""
    q, k, v = packed.qkv(q).double().unflatten(-1, (3, H, D // H)).permute(2, 0, 3, 1, 4)
    logits = (q @ k.mT) / (D // H) ** 0.5
    rows = [
        logits[:, :, i, mask[i] == 0].softmax(-1)[:, :, None] @ v[:, :, mask[i] == 0]
        for i in range(len(mask))
    ]
    out = torch.cat(rows, 2).transpose(1, 2).flatten(2)
    return out @ packed.out_proj.weight.double().T + packed.out_proj.bias


NONE = torch.zeros(L, L)
ALMOST = causal()
ALMOST[1, 3] = 0.0


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch-first", "tokens-first"])
@pytest.mark.parametrize(
    ("mask", "used"),
    [
        (None, (H, False, None)),
        (causal(), (H, True, None)),
        (causal(9)[:L, :L], (H, True, None)),
        (causal(9)[2 : 2 + L, 2 : 2 + L], (H, True, None)),
        (causal() < 0, (H, True, None)),
        (causal().half(), (H, True, None)),
        (causal().clamp(min=-30.0), None),
        (causal() > -1, None),
        (causal().T, None),
        (ALMOST, None),
        (NONE, None),
        (torch.where(causal() < 0, 0, 1), None),
        (causal().expand(B * H, L, L), None),
    ],
    ids=[
        "no mask", "causal", "slice", "slice inside", "bool", "half", "finite", "bool inverse", "transposed",
        "almost", "nothing blocked", "whole numbers", "per head",
    ],
)  # fmt: skip
def test_only_the_causal_mask_is_taken_for_causal(mask, used, batch_first, monkeypatch):
    packed = PackedAttention.from_attention(mha(batch_first=batch_first))
    calls = calls_of_head_attention(monkeypatch)
    q = x() if batch_first else x().transpose(0, 1)
    for _ in range(2):
        got = packed(q, q, q, need_weights=False, attn_mask=mask)[0]
    assert calls == ([] if used is None else [used, used])
    if mask is None or mask.dim() == 2:
        blocks = NONE if mask is None else mask
        if blocks.dtype is torch.bool:
            blocks = blocks.float()
        elif blocks.dtype is torch.long or bool((blocks == -30).any()):
            return  # added, not blocked
        got = got if batch_first else got.transpose(0, 1)
        torch.testing.assert_close(got.double(), by_rows(packed, x(), blocks), **CLOSE)


def test_a_mask_is_looked_at_once_for_all_layers_and_slices(monkeypatch):
    looked = []
    original = attention_mask._equals_causal
    monkeypatch.setattr(attention_mask, "_equals_causal", lambda *args: looked.append(1) or original(*args))
    mask, layers = causal(9), [PackedAttention.from_attention(mha()) for _ in range(3)]
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            for layer in layers:
                layer(x(), need_weights=False, attn_mask=mask[:L, :L])
    assert len(looked) == 1
    layers[0](x(length=9), need_weights=False, attn_mask=mask)
    assert len(looked) == 2


def test_a_mask_that_was_written_to_is_another():
    mask, packed = causal(), PackedAttention.from_attention(mha())
    before = packed(x(), need_weights=False, attn_mask=mask)[0]
    torch.testing.assert_close(before.double(), by_rows(packed, x(), causal()), **CLOSE)
    mask[0, 1] = 0.0
    after = packed(x(), need_weights=False, attn_mask=mask)[0]
    torch.testing.assert_close(after.double(), by_rows(packed, x(), mask), **CLOSE)
    assert not torch.allclose(after[:, 0], before[:, 0], atol=1e-3)
    mask[0, 1] = float("-inf")
    torch.testing.assert_close(packed(x(), need_weights=False, attn_mask=mask)[0], before, **CLOSE)


def test_new_masks_are_looked_at_a_few_times_only(monkeypatch):
    packed, known = PackedAttention.from_attention(mha()), causal()
    packed(x(), need_weights=False, attn_mask=known)
    calls = calls_of_head_attention(monkeypatch)
    for _ in range(12):
        got = packed(x(), need_weights=False, attn_mask=causal())[0]
        torch.testing.assert_close(got.double(), by_rows(packed, x(), causal()), **CLOSE)
    assert len(calls) == 7
    packed(x(), need_weights=False, attn_mask=known)
    assert len(calls) == 8


def test_a_learned_mask_gets_its_gradient():
    packed, mask = PackedAttention.from_attention(mha()), causal().requires_grad_()
    packed(x(), need_weights=False, attn_mask=mask)[0].sum().backward()
    assert mask.grad.tril().abs().sum() > 0


def test_what_the_operator_does_not_know_keeps_away_from_it(monkeypatch):
    calls = calls_of_head_attention(monkeypatch)
    for options in ({"qk_norm": True}, {"scale_heads": True}, {"scaled_cosine": True}):
        PackedAttention.from_attention(open_clip_attention(**options))(x())
    dropping = PackedAttention.from_attention(mha(dropout=0.1)).train()
    dropping(x(), need_weights=False)
    padding = torch.zeros(B, L, dtype=torch.bool)
    packed = PackedAttention.from_attention(mha())
    packed(x(), need_weights=False, key_padding_mask=padding)
    packed(x(), x(1), x(1), need_weights=False)
    assert not calls
    packed(x(), need_weights=False)
    dropping.eval()(x(), need_weights=False)
    assert len(calls) == 2
