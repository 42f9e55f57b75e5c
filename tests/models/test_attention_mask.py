"""Which masks the operator that knows only the causal one may take, and that the others are not lost."""

import pytest
import torch

import vlprune.ops
from vlprune.models import split_attention_
from vlprune.nn import PackedAttention, attention_mask
from vlprune.nn.blocks import fuse_

from .attention_cases import CLOSE, B, D, H, L, causal, mha, open_clip_attention, x
from .zoo import build, inputs


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


def test_new_masks_on_a_device_are_looked_at_a_few_times_only(monkeypatch):
    monkeypatch.setattr(attention_mask, "_stops_the_host", lambda mask: True)
    packed, known = PackedAttention.from_attention(mha()), causal()
    packed(x(), need_weights=False, attn_mask=known)
    calls = calls_of_head_attention(monkeypatch)
    for _ in range(12):
        got = packed(x(), need_weights=False, attn_mask=causal())[0]
        torch.testing.assert_close(got.double(), by_rows(packed, x(), causal()), **CLOSE)
    assert len(calls) == 7
    packed(x(), need_weights=False, attn_mask=known)
    assert len(calls) == 8


def test_new_masks_on_the_cpu_are_looked_at_every_time(monkeypatch):
    packed = PackedAttention.from_attention(mha())
    calls = calls_of_head_attention(monkeypatch)
    results = [packed(x(), need_weights=False, attn_mask=causal())[0] for _ in range(12)]
    assert len(calls) == 12
    assert all(torch.equal(got, results[0]) for got in results)


def test_fused_blocks_hand_the_mask_on_as_it_is(monkeypatch):
    """In a model of half precision open_clip's own make a new one, of another dtype, in every forward."""
    looked = []
    original = attention_mask._equals_causal
    monkeypatch.setattr(attention_mask, "_equals_causal", lambda *args: looked.append(1) or original(*args))
    model = build("half")
    text = inputs(model, 2)[1]
    split_attention_(model)
    with torch.no_grad():
        expected = model.encode_text(text)
        looked.clear()
        model.encode_text(text)
        assert len(looked) == len(model.transformer.resblocks)
        fuse_(model, dense=True)
        looked.clear()
        results = [model.encode_text(text) for _ in range(3)]
    assert len(looked) == 1
    assert all(torch.equal(got, expected) for got in results)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_fused_blocks_read_a_mask_as_open_clip_does(dtype):
    """There a boolean one is numbers to add."""
    model = build("clip")
    mask = torch.ones(7, 7).triu(1)
    mask = (mask if dtype in (torch.bool, torch.int64) else -2 * mask).to(dtype)
    q = torch.randn(2, 7, model.transformer.width)
    with torch.no_grad():
        expected = model.transformer.resblocks[0](q, attn_mask=mask)
        split_attention_(model)
        fuse_(model, dense=True)
        got = model.transformer.resblocks[0](q, attn_mask=mask)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, model.transformer.resblocks[0](q), atol=1e-3)


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
