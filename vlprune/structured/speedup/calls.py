"""A tower taken apart as it runs: its blocks, called the way the model calls them, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ... import models
from ...example import example_inputs
from ...models import Block
from ...models.parts import block_parts
from ...reuse import replaced_forward

__all__ = ["BlockCall", "parts_of_towers", "record_blocks", "tower_calls"]


@dataclass(frozen=True)
class BlockCall:
    """What a block was given in one run of the model, and what it returned."""

    block: Block
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    def run(self, module: nn.Module | None = None) -> Any:
        """Call the block, or another module, the same way."""
        return (module or self.block.module)(*self.args, **self.kwargs)

    @property
    def kind(self) -> str:
        """The same for blocks that take equally long: classes, sizes, dtypes, and shapes of what comes in."""
        parts = block_parts(self.block)
        tensors = [(n, tuple(t.shape), str(t.dtype)) for n, t in self.block.module.state_dict().items()]
        inputs = [tuple(a.shape) if isinstance(a, torch.Tensor) else None for a in self.args]
        heads = parts.attention.num_heads if parts.attention else None
        return repr((repr(self.block.module), tensors, inputs, sorted(self.kwargs), heads))


def tower_calls(model: Any, towers: Sequence[str], batch: int) -> dict[str, Callable[[], object]]:
    """A function for each tower that embeds the same made-up images, or texts."""
    images, texts = example_inputs(model, batch)
    calls = {"visual": partial(model.encode_image, images), "text": partial(model.encode_text, texts)}
    return {tower: calls[tower] for tower in towers}


def record_blocks(model: nn.Module, tower: str, run: Callable[[], object]) -> list[BlockCall]:
    """Return the calls of a tower's blocks in one run, in order."""
    calls: list[BlockCall] = []
    with ExitStack() as stack:
        for block in models.view(model).towers[tower].blocks:
            hook = block.module.register_forward_hook(
                lambda _, args, kwargs, out, block=block: calls.append(BlockCall(block, args, kwargs, out)),
                with_kwargs=True,
            )
            stack.callback(hook.remove)
        run()
    return calls


def parts_of_towers(
    runs: Mapping[str, Callable[[], object]], calls: Mapping[str, list[BlockCall]], numbers: Mapping[str, int]
) -> dict[str, Callable[[], object]]:
    """Functions that run every tower whole, without its blocks, and its blocks of each kind in sequence."""

    def rest(run: Callable[[], object], own: list[BlockCall]) -> None:
        with _handing_on(own):
            run()

    def blocks(own: list[BlockCall]) -> None:
        for call in own:
            call.run()

    found: dict[str, Callable[[], object]] = {}
    for tower, run in runs.items():
        found[tower] = run
        found[f"{tower} rest"] = partial(rest, run, calls[tower])
        for kind in dict.fromkeys(call.kind for call in calls[tower]):
            own = [call for call in calls[tower] if call.kind == kind]
            found[f"{tower} {numbers[kind]}"] = partial(blocks, own)
    return found


@contextmanager
def _handing_on(calls: Sequence[BlockCall]) -> Iterator[None]:
    """Blocks return at once what they returned before."""
    with ExitStack() as stack:
        for call in calls:
            stack.enter_context(replaced_forward(call.block.module, lambda *_, out=call.output, **__: out))
        yield
