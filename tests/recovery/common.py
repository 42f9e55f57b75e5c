"""What several tests of training use."""

import copy

import torch

import vlprune
from vlprune.recovery.objective import Distillation


def pruned(model, **config):
    """Return a copy pruned by magnitude."""
    small = copy.deepcopy(model)
    vlprune.prune_(small, vlprune.MagnitudeConfig(**config))
    return small


class Watched(Distillation):
    """Keeps the weights that each step began with."""

    def __init__(self, *given):
        super().__init__(*given)
        self.seen = []

    def forward(self, batch):
        self.seen.append({name: p.detach().clone() for name, p in self.student.named_parameters()})
        return super().forward(batch)


def same_weights(model, other):
    """Whether all tensors of two models are equal to the bit."""
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
