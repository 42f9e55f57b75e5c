"""How much the loss depends on each weight matrix, from forward passes alone (ECoFLaP's score)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .distributed import hides_progress, on_all_ranks, own_share
from .reuse import Memory, inside, outside

__all__ = ["projected_gradient", "zeroth_order_scores"]

B = TypeVar("B")


@torch.inference_mode(False)
def zeroth_order_scores(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    blocks: Mapping[str, nn.Module],
    batches: Sequence[B],
    loss: Callable[[nn.Module, B], Tensor],
    *,
    epsilon: float = 1e-3,
    draws: int = 1,
    seed: int = 0,
    progress: bool | None = None,
    reuse: bool = True,
) -> dict[str, float]:
    """Sum over batches and draws of ``|L(W + eps z) - L(W - eps z)| / (2 eps)`` for every matrix W alone.

    z is N(0, 1) noise of W's shape, so that a term is ``|<grad L, z>|`` to first order and 0.798 times the
    gradient's Frobenius norm in expectation. Sung et al. 2023, arXiv 2310.02998, section 3.2.

    The published procedure runs the whole model twice a matrix. Here only what a matrix can change runs
    again (see `vlprune.reuse`), with the same scores.

    Ranks share the matrices, and each returns all scores: those of one process, to the bit.

    Weights of half precision are scored as a float32 model of the same values, which takes its memory while
    it lasts. bf16 resolves no noise of 1e-3 in a weight of 0.3, and the difference of two losses drowns in
    the rounding of activations: a small random CLIP got 0.8 to 1.7 times the float32 scores in bf16, with
    the noisy product alone in float32 just as with none.

    Args:
        model: in eval mode, its attention split; unchanged afterwards, bit for bit, also on errors.
        layers: name -> layer whose weight is scored. The noise depends on the name, not on what else is
            scored.
        blocks: name -> block, of all towers.
        batches: what the loss is called with, one after the other.
        loss: ``(model, batch) -> scalar tensor``; see `vlprune.losses.loss_and_batches`.
        epsilon: standard deviation of the noise.
        draws: noise draws a matrix and batch.
        seed: of the noise.
        progress: None shows a bar on a terminal, False never, True always.
        reuse: False runs the whole model every time, as published: for comparison.

    Returns:
        Layer name -> score, in the order of `layers`.

    Raises:
        ValueError: no batches, or a loss that is no finite scalar (the matrix is named).

    """
    if not batches:
        raise ValueError("batches: expected at least one to measure the loss on, got none")
    own = _own_share(layers, blocks)

    def work() -> dict[str, float]:
        return _scores(model, own, blocks, batches, loss, epsilon, draws, seed, progress, reuse)

    found = {name: score for part in on_all_ranks(work) for name, score in part.items()}
    return {name: found[name] for name in layers}


def _scores(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    blocks: Mapping[str, nn.Module],
    batches: Sequence[B],
    loss: Callable[[nn.Module, B], Tensor],
    epsilon: float,
    draws: int,
    seed: int,
    progress: bool | None,
    reuse: bool,
) -> dict[str, float]:
    scores = dict.fromkeys(layers, 0.0)
    groups = _by_block(layers, blocks)
    around = Memory(outside(model, blocks.values()) if reuse else ())
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_in_float32(model))
        bar = stack.enter_context(
            tqdm(
                total=len(batches) * len(layers),
                desc="zeroth order",
                unit="matrix",
                disable=hides_progress(progress),
            )
        )
        for number, batch in enumerate(batches):
            run = partial(_measure, loss, model, batch, number)
            if reuse:
                around.record(partial(run, "the unchanged model"))
            for block, names in groups:
                within = Memory(inside(block) if reuse and block is not None else ())
                if reuse and block is not None:
                    with around.answering([block]):
                        within.record(partial(run, "the unchanged model"))
                for name in names:
                    weight = layers[name].weight
                    with around.answering([layers[name]]), within.answering([layers[name]]):
                        for draw in range(draws):
                            noise = _noise(weight, f"{seed} {name} {number} {draw}")
                            disturbed = partial(run, f"{name} with noise")
                            scores[name] += abs(projected_gradient(weight, noise, epsilon, disturbed))
                    bar.update()
    return scores


def projected_gradient(weight: Tensor, noise: Tensor, epsilon: float, run: Callable[[], float]) -> float:
    """``(L(W + eps z) - L(W - eps z)) / (2 eps)``, about ``<grad L, z>``.

    Args:
        weight: a parameter that `run` depends on. Its data are exchanged while this runs, never written
            into, so they are the same afterwards whatever happens.
        noise: z, of the weight's shape and dtype.
        epsilon: how far to go along z.
        run: returns L.

    """
    data = weight.data
    try:
        weight.data = torch.add(data, noise, alpha=epsilon)
        above = run()
        weight.data = torch.add(data, noise, alpha=-epsilon)
        below = run()
    finally:
        weight.data = data
    return (above - below) / (2 * epsilon)


def _measure(
    loss: Callable[[nn.Module, B], Tensor], model: nn.Module, batch: B, number: int, what: str
) -> float:
    value = loss(model, batch)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss: expected a scalar tensor, got {got}")
    if not math.isfinite(value):
        raise ValueError(f"loss of {what}, batch {number}: expected a finite number, got {float(value)}")
    return float(value)


def _noise(weight: Tensor, key: str) -> Tensor:
    """N(0, 1) noise that depends on the key alone, drawn as float32 on the weight's device."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    generator = torch.Generator(weight.device).manual_seed(int.from_bytes(digest, "big", signed=True))
    noise = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=torch.float32)
    return noise.to(weight.dtype)


def _by_block(
    layers: Mapping[str, nn.Linear], blocks: Mapping[str, nn.Module]
) -> list[tuple[nn.Module | None, list[str]]]:
    """Layer names by the block that they are part of, None for those outside."""
    owner = {part: block for block in blocks.values() for part in block.modules()}
    groups: dict[nn.Module | None, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(owner.get(layer), []).append(name)
    return list(groups.items())


def _own_share(layers: Mapping[str, nn.Linear], blocks: Mapping[str, nn.Module]) -> dict[str, nn.Linear]:
    """The layers of this rank: of every tower neighbours, behind which as many blocks run again."""
    stacks: dict[str, list[nn.Module]] = {}
    for name, module in blocks.items():
        stacks.setdefault(name.rpartition(".")[0], []).append(module)
    behind: dict[nn.Module | None, tuple[str, int]] = {
        module: (stack, len(found) - place)
        for stack, found in stacks.items()
        for place, module in enumerate(found)
    }
    costs: dict[str, dict[str, float]] = {}
    for block, names in _by_block(layers, blocks):
        stack, cost = behind.get(block, ("", 1))
        costs.setdefault(stack, {}).update(dict.fromkeys(names, cost))
    own = [name for found in costs.values() for name in own_share(list(found), list(found.values()))]
    return {name: layers[name] for name in own}


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Give parameters and buffers of half precision float32 data; afterwards they have their own again."""
    half = [
        (tensor, tensor.data)
        for tensor in chain(model.parameters(), model.buffers())
        if tensor.dtype in (torch.float16, torch.bfloat16)
    ]
    try:
        for tensor, data in half:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in half:
            tensor.data = data
