"""One call of linear24 and its tensors, for the tests of calls that are made again."""

import torch

from vlprune.ops.cuda24 import entry

from .cases import TOLERANCE, exact, normal, packed

DTYPE = torch.bfloat16


class Call:
    """One call and its tensors, each of which can be another."""

    def __init__(self, *leading, activation="gelu", residual=True):
        values, self.meta = packed(24, 48, DTYPE)
        self.values = torch.nn.Parameter(values, requires_grad=False)
        self.bias = normal(24, dtype=DTYPE)
        self.x = normal(*(leading or (2, 5)), 48, dtype=DTYPE)
        self.residual = normal(*self.x.shape[:-1], 24, dtype=DTYPE) if residual else None
        self.activation, self.backend = activation, "auto"

    def arguments(self):
        return self.x, self.values, self.meta, self.bias, self.activation, self.backend, self.residual

    def first(self):
        """As often as it takes to be remembered."""
        for _ in range(3):
            y = entry.linear24(*self.arguments())
        return y

    def again(self):
        return entry._INSIDE.again(*self.arguments())

    def check(self, y):
        right = exact(self.x, self.values.detach(), self.meta, self.bias, self.activation)
        right = right if self.residual is None else right + self.residual.double()
        assert y.shape == right.shape
        assert y.is_contiguous()
        torch.testing.assert_close(y.double(), right, rtol=TOLERANCE[DTYPE], atol=TOLERANCE[DTYPE])
