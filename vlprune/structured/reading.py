"""The last block of a tower computed for those tokens alone that the embedding is read from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models.parts import block_parts
from ..reuse import Memory, replaced_forward

__all__ = ["ReadTokens", "read_tokens"]


def read_tokens(
    blocks: Sequence[nn.Module], run: Callable[[], Tensor], full: Tensor, memory: Memory
) -> ReadTokens | None:
    """Find the token of each sequence from which the embedding is read, by trying.

    NaN in place of a token reaches the embedding exactly if that is read. Half of the tokens are tried at
    once, so that of T tokens log2 T runs find one. It counts where with nothing but NaN in place of all
    other tokens the embeddings are the same, bit for bit: not where the mean of all is read, nor where a
    product of fewer rows is rounded otherwise.

    Args:
        blocks: of one tower.
        run: embeds a batch.
        full: what `run` returns, [B, D].
        memory: of all blocks and what is around them, in that run.

    Returns:
        The tokens; None where more than one of a sequence is read, or the last block's parts are not known.

    """
    last, outputs, ending = _ending(blocks, run, memory)
    if last is None or outputs.ndim != 3 or len(outputs) != len(full):
        return None
    parts, length = block_parts(last), outputs.shape[1]
    if parts.attention is None or parts.mlp is None:
        return None
    numbers = torch.arange(length, device=outputs.device)
    found = torch.zeros(len(outputs), dtype=torch.long, device=outputs.device)
    with memory.answering([last]), ending.answering():
        for bit in range((length - 1).bit_length()):
            handle = last.register_forward_hook(_poisoning((numbers >> bit) & 1 == 1))
            try:
                found += run().isnan().any(dim=-1).long() << bit
            finally:
                handle.remove()
    if bool((found >= length).any()):
        return None
    tokens = ReadTokens(last, found, length)
    with memory.answering([last]), tokens.alone():
        same = torch.equal(run(), full)
    return tokens if same else None


class ReadTokens:
    """One token of each sequence of a batch, of one block.

    Args:
        block: whose output they are of.
        tokens: int64 [B].
        length: tokens of each sequence.

    """

    def __init__(self, block: nn.Module, tokens: Tensor, length: int) -> None:
        self._block, self._tokens, self._length = block, tokens, length
        self._sequences = torch.arange(len(tokens), device=tokens.device)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Compute output projection and MLP of the block for them; of the others NaN comes out."""
        parts = block_parts(self._block)
        assert parts.attention is not None
        assert parts.mlp is not None
        with ExitStack() as stack:
            for layer, after in (
                (parts.attention.out_proj, self._spread),
                (parts.mlp.fc1, lambda few: few),
                (parts.mlp.fc2, self._spread),
            ):
                stack.enter_context(replaced_forward(layer, self._narrowed(layer.forward, after)))
            yield

    def _narrowed(
        self, compute: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]
    ) -> Callable[[Tensor], Tensor]:
        def forward(inputs: Tensor) -> Tensor:
            whole = inputs.shape[1] == self._length
            return after(compute(inputs[self._sequences, self._tokens][:, None] if whole else inputs))

        return forward

    def _spread(self, few: Tensor) -> Tensor:
        spread = few.new_full((len(few), self._length, few.shape[-1]), torch.nan)
        spread[self._sequences, self._tokens] = few[:, 0]
        return spread


def _ending(
    blocks: Sequence[nn.Module], run: Callable[[], Tensor], memory: Memory
) -> tuple[nn.Module | None, Tensor, Memory]:
    """Of the blocks that run the last one, its output, and a memory of it; a decoder's may not run."""
    outputs: list[Tensor] = []
    for block in reversed(blocks):
        handle = block.register_forward_hook(lambda _, __, out: outputs.append(_hidden(out)))
        ending = Memory([block])
        try:
            with memory.answering([block]):
                ending.record(run)
        finally:
            handle.remove()
        if outputs:
            return block, outputs[-1], ending
    return None, torch.empty(0), Memory([])


def _hidden(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


def _poisoning(asked: Tensor) -> Callable[..., Any]:
    def hook(_: nn.Module, __: Any, out: Any) -> Any:
        hidden = _hidden(out).masked_fill(asked[:, None], torch.nan)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    return hook
