"""Answers from memory where modules write into what was remembered."""

import pytest
import torch
from reuse_cases import Computed
from torch import nn

from vlprune.reuse import Memory


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
