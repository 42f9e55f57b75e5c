"""`linear24` for few tokens, where the weight's bytes are the time: which tiles, and the launches.

The packed weight is read as it is stored, once, 9/16 of the dense bytes (of float32 17/32), and made dense in
registers; see `linear24_expand` and `linear24_product`.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .launch import aligned, launch
from .linear24_product import finish, product

__all__ = ["Config", "choose", "configs", "few_workspace", "linear24_few", "tile_of_tokens"]

# Sums that a thread has at most, and tokens that a program multiplies at most: those of 64 rows take as many.
SUMS, MOST_TOKENS = 136, 272
# Tokens and columns that one program of `finish` adds up.
FINISH = (4, 256)


class Config(NamedTuple):
    """How a call is made."""

    rows: int  # of the weight, in a program's tile
    depth: int  # columns of the weight in a step
    split: int  # programs that share out the columns of a tile
    warps: int
    stages: int  # steps that are loaded ahead, and the one that is computed


def tile_of_tokens(tokens: int) -> tuple[int, ...]:
    """Powers of two, from 16 on, that the tokens of a tile come in: they cover the next multiple of 16.

    More than `MOST_TOKENS` come in tiles of 128.
    """
    if tokens > MOST_TOKENS:
        return (128,)
    left, widths = -(-tokens // 16) * 16, []
    while left:
        widths.append(1 << left.bit_length() - 1)
        left -= widths[-1]
    return tuple(widths)


def configs(tokens: int, out: int, cols: int, size: int = 2) -> list[Config]:
    """All that are worth a measurement, for numbers of `size` bytes; the first is not preferred."""
    if size == 4:
        return [Config(32, 32, split, 4, 2) for split in _splits(cols, 32)]
    sums = sum(tile_of_tokens(tokens))
    tried = []
    for rows, depth, warps, stages in (
        (64, 64, 4, 4), (64, 128, 4, 3), (128, 64, 4, 3), (128, 64, 4, 4), (128, 128, 4, 3), (128, 64, 8, 4),
        (128, 128, 8, 3), (256, 64, 8, 4),
    ):  # fmt: skip
        # Sums leave registers for the rest, and a tile is not mostly beyond the last row.
        if rows * sums <= SUMS * 32 * warps and (rows == 64 or rows < 2 * out):
            tried += [Config(rows, depth, split, warps, stages) for split in _splits(cols, depth)]
    return tried


def _splits(cols: int, depth: int) -> list[int]:
    return [split for split in (1, 2, 3, 4, 6, 8, 12, 16) if split == 1 or split * depth * 2 <= cols]


@functools.cache
def _processors(index: int | None) -> int:
    # Under the interpreter there is no device.
    return 132 if index is None else torch.cuda.get_device_properties(index).multi_processor_count


@functools.cache
def choose(tokens: int, out: int, cols: int, size: int = 2, processors: int = 132) -> Config:
    """Pick one of `configs` by counting.

    Tiles of 128 rows, since every tile reads all tokens, unless their sums take too many registers; then
    columns are shared out among the fewest programs that give every multiprocessor one.
    """
    tried = configs(tokens, out, cols, size)
    tile = sum(tile_of_tokens(tokens))
    rows = 128 if size == 2 and tile <= 64 and out > 64 else tried[0].rows
    tried = [config for config in tried if config.rows == rows]
    tried = [config for config in tried if config[1:2] + config[3:] == tried[-1][1:2] + tried[-1][3:]]
    tiles = -(-out // rows) * -(-tokens // tile)
    return next((config for config in tried if tiles * config.split >= processors), tried[-1])


def few_workspace(config: Config, tokens: int, out: int) -> int:
    """Bytes that a call needs to write to and read back."""
    return 0 if config.split == 1 else 4 * config.split * tokens * out


def linear24_few(
    x: Tensor,
    values: Tensor,
    meta: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    y: Tensor,
    config: Config | None = None,
    workspace: Tensor | None = None,
) -> None:
    """Write ``act(x W^T + bias) + residual`` to `y`; sums and what follows them are float32, rounded once.

    Args:
        x: [tokens, in], float32, bfloat16 or float16, entries of a token next to each other.
        values: [out, in/2], of the dtype of x, contiguous.
        meta: uint8 [out, ceil(in/8)], contiguous.
        bias: [out], of any of these dtypes, or None.
        residual: [tokens, out], entries of a token next to each other, or None.
        activation: None, "gelu" (exact, with erf) or "quick_gelu" (z * sigmoid(1.702 z)).
        y: [tokens, out], entries of a token next to each other; may be `residual`.
        config: how; chosen by the sizes if None.
        workspace: `few_workspace` bytes of memory, at a multiple of 16; allocated if None.

    """
    (tokens, cols), out = x.shape, values.shape[0]
    if not tokens or not out:
        return
    config = config or choose(tokens, out, cols, x.itemsize, _processors(x.device.index))
    widths = tile_of_tokens(tokens)
    share = triton.cdiv(triton.cdiv(cols, config.depth), config.split)
    programs = triton.cdiv(tokens, sum(widths)) * triton.cdiv(out, config.rows) * config.split
    after = (bias, residual) if config.split == 1 else (None, None)
    to = y
    if config.split > 1:
        if workspace is None:
            workspace = x.new_empty(few_workspace(config, tokens, out), dtype=torch.uint8)
        to = workspace[: few_workspace(config, tokens, out)].view(torch.float32).view(-1, out)
    pitch = 0 if residual is None else residual.stride(0)
    launch(
        product, (programs,), config.warps, x, aligned(values), aligned(meta), *after, to,
        tokens, out, cols, share, x.stride(0), pitch, to.stride(0),
        ROWS=config.rows, TILE=sum(widths), STARTS=(0, *itertools.accumulate(widths[:-1])), WIDTHS=widths,
        DEPTH=config.depth, SPLIT=config.split, ACTIVATION=activation if config.split == 1 else None,
        EVEN=cols % config.depth == 0, STAGES=config.stages,
    )  # fmt: skip
    if config.split > 1:
        grid = triton.cdiv(out, FINISH[1]), triton.cdiv(tokens, FINISH[0])
        launch(
            finish, grid, 4, to, bias, residual, y, tokens, out, pitch, y.stride(0),
            SPLIT=config.split, ACTIVATION=activation, TOKENS=FINISH[0], COLUMNS=FINISH[1],
        )  # fmt: skip
