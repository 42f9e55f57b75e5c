"""Answers from memory: equal to a full forward bit for bit, only where allowed, and without a trace."""

import gc
import weakref

import pytest
import torch
from models import zoo
from reuse_cases import Computed
from torch import nn

from vlprune import models
from vlprune.reuse import Memory, inside, outside


def blocks_of(model):
    return {b.name: b for t in models.view(model).towers.values() for b in t.blocks}


def leaves(output):
    return [x for x in (output.values() if isinstance(output, dict) else output) if x is not None]


@pytest.mark.parametrize("kind", [kind for kind in zoo.KINDS if kind != "timm-map"])  # ViT-B: a minute
def test_every_changed_layer_gives_what_a_full_forward_gives(kind, tmp_path):
    model = zoo.build(kind, tmp_path)
    models.split_attention_(model)
    blocks = blocks_of(model)
    images, texts = zoo.inputs(model, 2)

    def run():
        return leaves(model(images, texts))

    around = Memory(outside(model, [b.module for b in blocks.values()]))
    with torch.no_grad():
        unchanged = run()
    assert all(map(torch.equal, around.record(run), unchanged))
    for block in list(blocks.values())[:: len(blocks) // 3]:
        within = Memory(inside(block.module))
        with around.answering([block.module]):
            assert all(map(torch.equal, within.record(run), unchanged))
        for layer in block.linears().values():
            kept = layer.weight.data
            layer.weight.data = kept + 0.1
            with torch.no_grad():
                expected = run()
            with around.answering([layer]), within.answering([layer]):
                got = run()
            layer.weight.data = kept
            assert all(map(torch.equal, got, expected))
    with around.answering():
        assert all(map(torch.equal, run(), unchanged))


def test_only_what_the_change_reaches_computes(clip, batches):
    models.split_attention_(clip)
    blocks = blocks_of(clip)
    computed = Computed(clip)
    around = Memory(outside(clip, [b.module for b in blocks.values()]))
    around.record(lambda: clip(*batches[0]))
    block = blocks["visual.transformer.resblocks.1"].module
    within = Memory(inside(block))
    with around.answering([block]):
        names = computed.during(lambda: within.record(lambda: clip(*batches[0])))
    # the block at hand alone: what follows it sees equal inputs
    parts = ["ln_1", "attn.qkv", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    assert names == [f"visual.transformer.resblocks.1.{part}" for part in parts]
    with torch.no_grad():
        block.mlp.c_fc.weight.add_(0.01)
    with around.answering([block.mlp.c_fc]), within.answering([block.mlp.c_fc]):
        names = computed.during(lambda: clip(*batches[0]))
    changed = [f"1.{part}" for part in parts[4:]] + [f"2.{part}" for part in parts]
    assert names == [*(f"visual.transformer.resblocks.{name}" for name in changed), "visual.ln_post"]


class Repeats(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, *xs, **flags):
        return self.head(sum(self.layer(x) for x in xs))


def counted(module):
    """Count the calls that compute, by the class's own forward."""
    module.computed = 0
    compute = module.forward

    def forward(*args, **kwargs):
        module.computed += 1
        return compute(*args, **kwargs)

    module.forward = forward
    return module


def test_a_module_called_several_times_answers_each_call():
    model = Repeats()
    counted(model.layer)
    a, b, c = torch.randn(3, 2, 4)
    memory = Memory([model.layer])
    memory.record(lambda: model(a, b, a + 1))
    model.layer.computed = 0
    for xs in ((a, b, a + 1), (b, a + 1, a), (a.clone(), b.clone())):
        with memory.answering([model.head]):
            got = model(*xs)
        assert model.layer.computed == 0
        assert torch.equal(got, model(*xs))
        model.layer.computed = 0
    with memory.answering([model.head]):
        assert torch.equal(model(a, c), model.head(model.layer(a) + model.layer(c)))


class Flagged(nn.Module):
    def forward(self, x, scale=1.0, names=(), mask=None, extra=None):
        return {"out": x * scale + len(names) + (0 if mask is None else mask)}


@pytest.mark.parametrize(
    ("other", "answers"),
    [
        ({}, True),
        ({"scale": 2}, False),  # 2 is no float
        ({"scale": 3.0}, False),
        ({"names": ("a",)}, False),
        ({"names": ("a", "c")}, False),
        ({"mask": torch.ones(1, 4)}, True),
        ({"mask": torch.zeros(1, 4)}, False),
        ({"mask": torch.ones(4)}, False),
        ({"mask": torch.ones(1, 4, dtype=torch.float64)}, False),
        ({"mask": torch.full((1, 4), torch.nan)}, False),
        ({"mask": None}, False),
    ],
)
def test_all_arguments_are_compared(other, answers):
    module = counted(Flagged())
    given = {"scale": 2.0, "names": ("a", "b"), "mask": torch.ones(1, 4)}
    x = torch.randn(3, 4)
    memory = Memory([module])
    memory.record(lambda: module(x, **given))
    module.computed = 0
    with memory.answering():
        got = module(x, **given | other)["out"]
    assert module.computed == int(not answers)
    torch.testing.assert_close(got, module(x, **given | other)["out"], rtol=0, atol=0, equal_nan=True)


def test_an_output_container_is_not_shared_with_the_caller():
    module = Flagged()
    x = torch.randn(3, 4)
    memory = Memory([module])
    memory.record(lambda: module(x)).clear()
    with memory.answering():
        module(x).clear()
        assert torch.equal(module(x)["out"], x)


def test_what_cannot_be_compared_computes():
    module = counted(Flagged())
    x = torch.randn(3, 4)
    memory = Memory([module])
    extra = object()
    memory.record(lambda: module(x, extra=extra))
    with memory.answering():
        module(x, extra=extra)
    assert module.computed == 2


def test_another_layout_computes():
    module = counted(nn.Linear(4, 4))
    x = torch.randn(4, 4)
    memory = Memory([module])
    memory.record(lambda: module(x))
    with memory.answering():
        module(x.T.contiguous().T)
    assert module.computed == 2


class Tied(nn.Module):
    """A layer whose weight another one has too, and a third one gets as an argument."""

    def __init__(self):
        super().__init__()
        self.layer, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.layer.weight
        self.product = Product()

    def forward(self, x):
        return self.product(x, self.layer.weight), self.tied(x), self.layer(x)


class Product(nn.Module):
    def forward(self, x, weight):
        return x @ weight


def test_a_shared_weight_is_a_change_wherever_it_is_used():
    model = Tied()
    x = torch.randn(3, 4)
    memory = Memory(model.children())
    memory.record(lambda: model(x))
    kept = model.layer.weight.data
    model.layer.weight.data = torch.zeros(4, 4)
    with memory.answering([model.layer]):
        product, tied, own = model(x)
    assert torch.equal(product, torch.zeros(3, 4))
    assert torch.equal(tied, model.tied.bias.expand(3, 4))
    assert torch.equal(own, model.layer.bias.expand(3, 4))
    model.layer.weight.data = kept


def attributes(model):
    return [
        (name, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    ]


def fails():
    raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["recording", "answering", "neither"])
def test_no_trace_is_left(clip, batches, when):
    own = clip.visual.conv1.forward
    clip.visual.conv1.forward = own  # hangs on the instance, and has to stay there
    before = attributes(clip)
    memory = Memory(outside(clip, []))

    def run(fail=False):
        clip(*batches[0])
        if fail:
            fails()

    if when == "recording":
        with pytest.raises(KeyboardInterrupt):
            memory.record(lambda: run(fail=True))
    else:
        memory.record(run)
        with memory.answering():
            if when == "answering":
                with pytest.raises(KeyboardInterrupt):
                    run(fail=True)
            else:
                run()
    assert attributes(clip) == before
    assert clip.visual.conv1.forward is own
    assert torch.is_grad_enabled()


def test_one_run_is_remembered_not_two(clip, batches):
    memory = Memory(outside(clip, []))
    output = clip.visual.conv1.register_forward_hook(lambda _m, _a, out: seen.append(weakref.ref(out)))
    seen = []
    memory.record(lambda: clip(*batches[0]))
    assert seen[0]() is not None
    memory.record(lambda: clip(*batches[1]))
    gc.collect()
    assert seen[0]() is None
    assert seen[1]() is not None
    output.remove()
