"""Which layers of a model compute, and which answer from memory."""

from torch import nn


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
