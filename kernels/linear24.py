"""`linear24` for few tokens, where the weight's bytes are the time: which tiles, and the launches.

The packed weight is read as it is stored, once, 9/16 of the dense bytes (of float32 17/32), and made dense in
registers; see `linear24_expand` and `linear24_product`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .head_attention_parts import widths
from .launch import aligned, launch
from .linear24_product import finish, product

__all__ = [
    "Config",
    "configs",
    "estimate",
    "few_workspace",
    "linear24_few",
    "product_constants",
    "tile_of_tokens",
]

# Tokens that one program multiplies at most: sums of 128 rows are then 72 registers of each of 256 threads.
MOST_TOKENS, SUMS = 144, 72
# Tokens and columns that one program of `finish` adds up.
FINISH = (4, 256)
# Rows, depth, warps and stages that are tried, of 16 bits and of 32. One program of 128 rows and 5 stages has
# 37 KB of the weight in flight, what 4.8 TB/s at a latency of 1 us ask of a multiprocessor.
TILES = (
    (128, 64, 4, 5), (128, 64, 4, 3), (256, 64, 8, 4), (128, 64, 8, 4), (128, 64, 8, 3), (128, 128, 4, 3),
    (64, 64, 4, 4), (64, 128, 4, 3),
)  # fmt: skip
EXACT_TILES = ((32, 32, 4, 2), (64, 32, 8, 2))
# Bytes that stages take at most: what consumers' GPUs leave to a program.
HELD = 96 * 1024
# What `estimate` divides by, a multiprocessor and nanosecond: bytes out of the level-2 cache, 5.3 TB/s for
# all, and operations of tensor cores and of float32, at 60 % of an H200's peak. Then what a launch takes.
BYTES, OPERATIONS, EXACT_OPERATIONS, LAUNCH = 40, 4400, 270, 1500


class Config(NamedTuple):
    """How a call is made."""

    rows: int  # of the weight, in a program's tile
    depth: int  # columns of the weight in a step
    split: int  # programs that share out the columns of a tile
    warps: int
    stages: int  # steps that are loaded ahead, and the one that is computed


def tile_of_tokens(tokens: int) -> tuple[int, ...]:
    """One or two powers of two, from 16 on, that the tokens of a tile are; tiles are of about one size."""
    tiles = triton.cdiv(tokens, MOST_TOKENS)
    return widths(triton.cdiv(tokens, tiles))


@functools.lru_cache(1024)
def configs(tokens: int, out: int, cols: int, size: int = 2, processors: int = 132) -> tuple[Config, ...]:
    """All that are worth a measurement, for numbers of `size` bytes; the best `estimate` first."""
    tile = sum(tile_of_tokens(tokens))
    tried = [
        Config(rows, depth, split, warps, stages)
        for rows, depth, warps, stages in (EXACT_TILES if size == 4 else TILES)
        if rows * tile <= SUMS * 32 * warps and (rows <= 64 or rows < 2 * out)
        if depth * (stages - 1) * rows * (4 * size + 1) // 8 + depth * stages * tile * size <= HELD
        for split in (1, 2, 3, 4, 6, 8, 12, 16)
        if split == 1 or 2 * split * depth <= cols
    ]
    return tuple(sorted(tried, key=lambda config: estimate(config, tokens, out, cols, size, processors)))


def estimate(config: Config, tokens: int, out: int, cols: int, size: int, processors: int) -> float:
    """Nanoseconds that a call should take by what its busiest multiprocessor reads and multiplies.

    Every program reads its share of the weight and of its tokens; sums of a split are written and read back.
    """
    tile = sum(tile_of_tokens(tokens))
    programs = triton.cdiv(tokens, tile) * triton.cdiv(out, config.rows) * config.split
    depth = triton.cdiv(triton.cdiv(cols, config.depth), config.split) * config.depth
    each = max(
        depth * (config.rows * (4 * size + 1) / 8 + tile * size) / BYTES,
        2 * depth * config.rows * tile / (EXACT_OPERATIONS if size == 4 else OPERATIONS),
    )
    again = 2 * few_workspace(config, tokens, out) / (BYTES * processors) + LAUNCH
    return triton.cdiv(programs, processors) * each + (again if config.split > 1 else 0)


@functools.cache
def _device(index: int | None) -> tuple[int, int]:
    # Under the interpreter there is no device.
    if index is None:
        return 132, 90
    about = torch.cuda.get_device_properties(index)
    return about.multi_processor_count, 10 * about.major + about.minor


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
        workspace: uint8 of `few_workspace` bytes or more, at a multiple of 16; allocated if None.

    """
    (tokens, cols), out = x.shape, values.shape[0]
    if not tokens or not out:
        return
    processors, capability = _device(x.device.index)
    config = config or configs(tokens, out, cols, x.itemsize, processors)[0]
    constants = _constants(config, tokens, cols, x.itemsize, x.stride(0), activation, capability)
    split = constants["SPLIT"]
    programs = triton.cdiv(tokens, constants["TILE"]) * triton.cdiv(out, config.rows) * split
    share = triton.cdiv(triton.cdiv(cols, config.depth), split)
    pitch = 0 if residual is None else residual.stride(0)
    to, after = y, (bias, residual)
    if split > 1:
        if workspace is None:
            workspace = x.new_empty(few_workspace(config, tokens, out), dtype=torch.uint8)
        to, after = workspace[: 4 * split * tokens * out].view(torch.float32).view(-1, out), (None, None)
    launch(
        product, (programs,), config.warps, x, aligned(values), aligned(meta), *after, to,
        tokens, out, cols, share, x.stride(0) // constants["UNIT"], pitch, to.stride(0), **constants,
    )  # fmt: skip
    if split > 1:
        grid = triton.cdiv(out, FINISH[1]), triton.cdiv(tokens, FINISH[0])
        launch(
            finish, grid, 4, to, bias, residual, y, tokens, out, pitch, y.stride(0),
            SPLIT=split, ACTIVATION=activation, TOKENS=FINISH[0], COLUMNS=FINISH[1],
        )  # fmt: skip


def product_constants(
    config: Config, tokens: int, cols: int, size: int, pitch: int, activation: str | None, capability: int
) -> dict[str, Any]:
    """What `product` is compiled for; tokens are `pitch` numbers of `size` bytes apart."""
    tile = tile_of_tokens(tokens)
    steps = triton.cdiv(cols, config.depth)
    # As few programs as the same shares leave: none of them is without a step.
    split = triton.cdiv(steps, triton.cdiv(steps, config.split))
    order = "fragments" if 90 <= capability < 120 else "quads"
    return {
        "ROWS": config.rows, "TILE": sum(tile), "STARTS": (0, *tile[:-1]),
        "WIDTHS": tile, "DEPTH": config.depth, "SPLIT": split,
        "ACTIVATION": activation if split == 1 else None, "UNIT": math.gcd(pitch, 4),
        "EVEN": cols % config.depth == 0, "ORDER": "columns" if size == 4 else order, "STAGES": config.stages,
    }  # fmt: skip


# Not to be changed by who gets them: numbers of tokens come again, and each call would take microseconds.
_constants = functools.lru_cache(1024)(product_constants)
