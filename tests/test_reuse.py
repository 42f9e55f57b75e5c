"""Answers from memory: equal to a full forward bit for bit, only where allowed, and without a trace."""

import gc
import weakref

import pytest
import torch
from models import zoo
from torch import nn

from vlprune import models
from vlprune.reuse import Memory, inside, outside


def blocks_of(model):
    return {b.name: b for t in models.view(model).towers.values() for b in t.blocks}


class Computed:
    """Names of the linear layers and norms that compute, which their hooks cannot tell: these fire always."""

    def __init__(self, model):
        self.names = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.forward = self._noting(name, module.forward)

    def _noting(self, name, forward):
        def noting(*args, **kwargs):
            self.names.append(name)
            return forward(*args, **kwargs)

        return noting

    def during(self, run):
        self.names.clear()
        run()
        return list(self.names)


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


class Toy(nn.Module):
    """Two layers with whatever lies between them, and a third branch on the same input."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.branch = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.between = between

    def forward(self, x):
        x = x + 0  # what the caller holds is not written into
        return self.second(self.between(self.first(x))), self.branch(x)


class AddsInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        x += self.inner(x)
        return x


class Passes(nn.Module):
    def forward(self, x):
        return x


class WritesBehind(nn.Module):
    """Writes into the output of a submodule that has returned."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def forward(self, x):
        y = self.first(x)
        y.mul_(2)
        return y


class WritesIntoBoth(WritesBehind):
    """The same, and what the submodule got is needed afterwards."""

    def forward(self, x):
        return super().forward(x) + x


class Doubles(nn.Module):
    """Writes into its input, and returns something else."""

    def forward(self, x):
        x.mul_(2)
        return x + 1


class NeedsTheInput(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.first = first

    def forward(self, x):
        return self.first(x) * x


BETWEEN = {
    "an output that is an input, both needed": lambda: WritesIntoBoth(Passes()),
    "its input, which is needed": lambda: NeedsTheInput(Doubles()),
    "writes into its input": AddsInPlace,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "writes into an output": lambda: WritesBehind(nn.Linear(4, 4)),
    "writes into an output that is an input": lambda: WritesBehind(Passes()),
    "inference mode": lambda: Inference(nn.Linear(4, 4)),
}


class Inference(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.inference_mode():
            y = self.inner(x)
            y.add_(1)
            return y


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("inference", [False, True], ids=["no grad", "all in inference mode"])
def test_writing_in_place_is_survived(between, inference):
    model = Toy(BETWEEN[between]())
    x = torch.randn(3, 4)
    memory = Memory(m for m in model.modules() if m is not model)

    def run():
        with torch.inference_mode() if inference else torch.no_grad():
            return model(x)

    memory.record(run)
    for changed in ("first", "second", "branch"):
        layer = getattr(model, changed)
        for _ in range(2):  # what the first run wrote into must not reach the second
            with torch.no_grad():
                layer.bias.add_(1)
                expected = run()
            with memory.answering([layer]):
                assert all(map(torch.equal, run(), expected))
        with torch.no_grad():
            layer.bias.sub_(2)
        memory.record(run)


def test_what_writes_into_its_input_always_computes():
    model = NeedsTheInput(Doubles())
    x = torch.randn(3, 4)
    memory = Memory([model.first])
    memory.record(lambda: model(x.clone()))
    with memory.answering():
        assert torch.equal(model(x.clone()), (2 * x + 1) * 2 * x)


def test_what_others_write_into_still_answers():
    model = Toy(WritesBehind(nn.Linear(4, 4)))
    x = torch.randn(3, 4)
    with torch.no_grad():
        expected = model(x)
    memory = Memory([model.between.first])
    memory.record(lambda: model(x))
    computed = Computed(model)
    for _ in range(2):
        with memory.answering():
            assert computed.during(lambda: model(x)) == ["first", "second", "branch"]
            assert all(map(torch.equal, model(x), expected))


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
