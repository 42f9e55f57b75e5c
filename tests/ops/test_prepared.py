"""The cache of prepared weights: used while valid, never stale."""

import copy
import gc
import threading

import pytest
import torch
from torch import nn

from vlprune import ops
from vlprune.ops import prepared

from .cases import needs_native, normal, packed

pytestmark = needs_native


class Layer(nn.Module):
    def __init__(self, out=24, inputs=32, seed=0):
        super().__init__()
        values, meta = packed(out, inputs, seed=seed)
        self.values = nn.Parameter(values)
        self.register_buffer("meta", meta)

    def forward(self, x):
        return ops.linear24(x, self.values, self.meta)


def fresh(layer, x):
    """The layer's output by the reference, which keeps nothing."""
    return ops.linear24(x, layer.values, layer.meta, backend="torch").detach()


def check(layer):
    x = normal(5, layer.values.shape[1] * 2, dtype=layer.values.dtype, seed=9)
    bound = 1e-5 if x.dtype is torch.float32 else 2e-2  # as in test_linear24
    torch.testing.assert_close(layer(x).detach(), fresh(layer, x), rtol=bound, atol=bound)


def step(layer, optimizer):
    layer(normal(3, 32)).square().sum().backward()
    optimizer.step()


def swap(layer, other):
    layer.values, layer.meta = other.values, other.meta


def without_grad(change):
    def run(layer):
        with torch.no_grad():
            change(layer)

    return run


OTHER = 7  # a seed: another weight with other places
CHANGES = {
    "in place": without_grad(lambda m: m.values.mul_(2)),
    "one entry": without_grad(lambda m: m.values[3, 5].fill_(100)),
    "through a view": without_grad(lambda m: m.values.view(-1)[7:9].zero_()),
    "through detach": lambda m: m.values.detach().neg_(),
    "meta in place": lambda m: m.meta.copy_(Layer(seed=OTHER).meta),
    "meta replaced": lambda m: setattr(m, "meta", Layer(seed=OTHER).meta),
    "both replaced": lambda m: swap(m, Layer(seed=OTHER)),
    "through data, all": lambda m: m.values.data.mul_(2),
    "meta through data": lambda m: m.meta.data.fill_(0x44),
    "meta's data replaced": lambda m: setattr(m.meta, "data", Layer(seed=OTHER).meta.data),
    "through data, copied": lambda m: m.values.data.copy_(Layer(seed=OTHER).values.data),
    "data replaced": lambda m: setattr(m.values, "data", Layer(seed=OTHER).values.data),
    "load_state_dict": lambda m: m.load_state_dict(Layer(seed=OTHER).state_dict()),
    "load_state_dict, assigned": lambda m: m.load_state_dict(Layer(seed=OTHER).state_dict(), assign=True),
    "to and back": lambda m: m.bfloat16().float(),
    "to bfloat16": lambda m: m.bfloat16(),
    "sgd": lambda m: step(m, torch.optim.SGD(m.parameters(), lr=0.1)),
    "sgd, foreach": lambda m: step(m, torch.optim.SGD(m.parameters(), lr=0.1, foreach=True)),
    "adamw, fused": lambda m: step(m, torch.optim.AdamW(m.parameters(), lr=0.1, fused=True)),
    "numpy": lambda m: m.values.detach().numpy().fill(1.5),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_never_stale(change):
    layer = Layer()
    check(layer)
    for _ in range(2):
        change(layer)
        check(layer)


SHAPES = {
    "square": (512, 512, torch.float32),
    "tall": (3072, 768, torch.bfloat16),
    "wide": (96, 2048, torch.float32),
    "odd": (517, 268, torch.bfloat16),  # rows of 67 words of 4 bytes
    "many narrow": (1030, 8, torch.float32),
    "few": (3, 4096, torch.float32),
}


@pytest.mark.parametrize(("out", "inputs", "dtype"), SHAPES.values(), ids=SHAPES)
def test_a_write_through_data_to_any_row_or_column_is_seen(out, inputs, dtype):
    values, meta = packed(out, inputs, dtype)
    word = 8 // dtype.itemsize if (inputs // 2) % (8 // dtype.itemsize) == 0 else 4 // dtype.itemsize
    entry = prepared.Prepared(values, meta)
    assert entry.is_for(values, meta)
    parts = [values.data[row] for row in range(out)]
    parts += [values.data[:, first : first + word] for first in range(0, inputs // 2, word)]
    for part in parts:
        part.neg_()
        assert not entry.is_for(values, meta)
        part.neg_()
    assert entry.is_for(values, meta)


def test_a_large_meta_is_sampled():
    layer = Layer(512, 512)
    check(layer)
    layer.meta.data.copy_(Layer(512, 512, seed=OTHER).meta)
    check(layer)
    layer.meta.data = Layer(512, 512).meta
    check(layer)


def test_weights_that_are_not_contiguous_are_compared_whole():
    values, meta = packed(64, 256)
    values = values.t().contiguous().t()
    entry = prepared.Prepared(values, meta)
    for row, column in ((0, 0), (17, 90), (63, 127)):
        values.data[row, column].neg_()
        assert not entry.is_for(values, meta)
        values.data[row, column].neg_()
    assert entry.is_for(values, meta)


def test_sampled_words_lie_in_every_part_of_the_weight():
    # A write that moves no version counter is seen if it touches a fair share, wherever that lies.
    layer = Layer(256, 512)
    x = normal(2, 512)
    for part in range(8):
        for rows, columns in (
            (slice(32 * part, 32 * part + 32), slice(None)),
            (slice(None), slice(32 * part, 32 * part + 32)),
        ):
            layer(x)
            layer.values.data[rows, columns] += 1
            torch.testing.assert_close(layer(x).detach(), fresh(layer, x), rtol=1e-4, atol=1e-4)


def test_a_default_device_is_not_where_weights_are_prepared():
    layer = Layer()
    with torch.device("meta"):
        ops.prepare24(layer.values, layer.meta)
    check(layer)


@pytest.mark.parametrize(
    ("tokens", "forms"), [(50, [False]), (2, [False, True]), (0, [False])], ids=["many", "few", "none"]
)
def test_each_form_is_made_once(monkeypatch, tokens, forms):
    layer, x, made = Layer(), normal(tokens, 32), []
    real = prepared._reordered

    def counted(values, meta, few):
        made.append(few)
        return real(values, meta, few)

    monkeypatch.setattr(prepared, "_reordered", counted)
    ops.prepare24(layer.values, layer.meta)
    ops.prepare24(layer.values, layer.meta, anew=False)
    layer(x).sum().backward()
    with torch.no_grad():
        layer(x)
    with torch.inference_mode():
        layer(x)
    compiled = torch.compile(layer, fullgraph=True)
    compiled(x).sum().backward()
    with torch.no_grad():
        compiled(x)
    assert made == forms


def test_inference_tensors_are_prepared_at_each_call():
    with torch.inference_mode():
        layer = Layer()
        check(layer)
        layer.values.mul_(3)
        check(layer)
    assert id(layer.values) not in prepared._cache


def test_entries_go_with_their_weights():
    layer = Layer()
    check(layer)
    key = id(layer.values)
    assert key in prepared._cache
    twin = copy.deepcopy(layer)
    check(twin)
    del layer
    gc.collect()
    assert key not in prepared._cache
    check(twin)


def test_prepared_memory_is_aligned():
    for seed in range(5):
        layer = Layer(3, 4 + 4 * seed)
        ops.prepare24(layer.values, layer.meta)
        entry = prepared._cache[id(layer.values)]
        for few in (False, True):
            assert entry.pointer(layer.values, layer.meta, few) % 64 == 0


def test_threads_share_one_weight():
    layer, wrong = Layer(64, 128), []
    cases = [(x, fresh(layer, x)) for x in (normal(4, 128), normal(50, 128))]

    def work():
        for _ in range(50):
            with torch.no_grad():
                for x, expected in cases:
                    if not torch.allclose(layer(x), expected, rtol=1e-5, atol=1e-5):
                        wrong.append(1)
            prepared._cache.pop(id(layer.values), None)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
