"""Outputs of blocks, kept so that the blocks need not run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["OutputCache"]

Forward = Callable[..., Any]


class OutputCache:
    """Outputs of the newest final block of each stack of blocks and batch.

    One a stack (a tower, or a list of cross-attentions), because shapes may differ between them: what an
    older block returns only has to fit, since its successor ignores it too. Copies, because a block may
    write into its input.
    """

    def __init__(self, offload: bool) -> None:
        self.offload = offload
        self.kept: dict[tuple[str, int], tuple[Any, list[torch.device]]] = {}

    def put(self, key: tuple[str, int], output: Any) -> None:
        """Keep a copy, in CPU memory if offloading."""
        devices = [leaf.device for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        copied = tree_map_only(Tensor, self._copy, output)
        self.kept[key] = copied, devices

    def get(self, key: tuple[str, int]) -> Any:
        """A copy of what was put, where it was."""
        output, devices = self.kept[key]
        places = iter(devices)
        return tree_map_only(Tensor, lambda tensor: tensor.to(next(places), copy=True), output)

    def answering(self, key: tuple[str, int]) -> Forward:
        """A forward that returns what was kept."""
        return lambda *_, **__: self.get(key)

    def keeping(self, compute: Forward, key: tuple[str, int]) -> Forward:
        """A forward that computes, and keeps what comes out."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = compute(*args, **kwargs)
            self.put(key, output)
            return output

        return forward

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.to("cpu" if self.offload else tensor.device, copy=True)
