"""linear24_sm80's kernel, every line of it, run thread by thread on the host: y = act(x W^T + b) + residual.

The emulated instructions are written from the PTX ISA. Copies land at once, as late as they may, or between;
warps take turns in three orders: a missing wait or barrier gives wrong numbers or NaNs in one of them.
"""

import ctypes
import math

import numpy as np
import pytest
from sm80_host import (
    FAULTS,
    POISON,
    Config,
    Launch,
    address,
    aligned,
    configs,
    from_16,
    library,
    random_weight,
    reordered,
    to_16,
)

ACTIVATIONS = ["none", "gelu", "quick_gelu"]
ORDERS = ["ascending", "descending", "random"]
LANDINGS = ["early", "late", "random"]


def reference_activation(x: np.ndarray, name: str) -> np.ndarray:
    if name == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return x / (1 + np.exp(-1.702 * x)) if name == "quick_gelu" else x


def check(
    config: Config,
    tokens: int,
    out: int,
    inputs: int,
    *,
    bfloat16: bool = True,
    activation: str = "none",
    bias: bool = True,
    residual: bool = False,
    parts: int = 1,
    order: str = "ascending",
    landing: str = "late",
    backwards: bool = False,
    padding: int = 0,
    seed: int = 0,
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    dense, kept, meta = random_weight(rng, out, inputs)
    values = to_16(kept, bfloat16)
    weight = from_16(to_16(dense, bfloat16), bfloat16)

    def rows(columns: int) -> np.ndarray:
        """Numbers with NaNs between the rows where a stride says so."""
        whole = aligned((tokens, columns + padding), np.uint16, POISON)
        whole[:, :columns] = to_16(rng.standard_normal((tokens, columns)), bfloat16)
        return whole

    x, r = rows(inputs), rows(out)
    b = to_16(rng.standard_normal(out), bfloat16)
    y = aligned((tokens, out + padding), np.uint16, POISON)
    bytes_ = int(library().workspace_needed(config.index, ctypes.c_int64(tokens), ctypes.c_int64(out),
                                            ctypes.c_int64(inputs)))  # fmt: skip
    workspace = aligned((max(bytes_, 16),), np.uint8, 0)
    reordered_meta = reordered(meta, out, inputs)
    launch = Launch(
        config=config.index, parts=parts, bfloat16=bfloat16, order=ORDERS.index(order), seed=seed,
        landing=LANDINGS.index(landing), blocks_backwards=backwards, tokens=tokens, out=out, in_=inputs,
        ldx=inputs + padding, ldr=out + padding, ldy=out + padding, activation=ACTIVATIONS.index(activation),
        x=address(x), values=address(values), meta=address(reordered_meta), bias=address(b) if bias else None,
        residual=address(r) if residual else None, y=address(y), workspace=address(workspace),
    )  # fmt: skip
    faults = (ctypes.c_int64 * len(FAULTS))()
    library().run(ctypes.byref(launch), faults)
    assert dict(zip(FAULTS, faults, strict=True)) == dict.fromkeys(FAULTS, 0)
    assert not workspace[:4096].any(), "counters are left at 0 for the next call"

    expected = from_16(x[:, :inputs], bfloat16).astype(np.float64) @ weight.astype(np.float64).T
    if bias:
        expected += from_16(b, bfloat16)
    expected = reference_activation(expected, activation)
    if residual:
        expected += from_16(r[:, :out], bfloat16)
    found = from_16(y[:, :out], bfloat16)
    # One rounding to 16 bits, half a unit in the last place; float32 sums of up to 1024 terms of size 1 are
    # within 1e-4 of the sum, for which the same again is left.
    unit = 2.0**-8 if bfloat16 else 2.0**-11
    np.testing.assert_allclose(found, expected, rtol=unit * 1.01, atol=2e-4)
    assert (y[:, out:] == POISON).all(), "nothing is stored between the rows"
    return y


TILES = [pytest.param(config.index, id=config.name) for config in configs() if not config.parts]
SHARED = [pytest.param(config.index, id=config.name.split()[0]) for config in configs() if config.parts]


@pytest.mark.parametrize("index", TILES)
@pytest.mark.parametrize("bfloat16", [True, False], ids=["bf16", "fp16"])
def test_one_full_tile(index: int, bfloat16: bool) -> None:
    config = configs()[index]
    # One stage more than fit in flight: each slot is written again.
    check(config, config.tokens, config.out, 64 * (config.stages + 1), bfloat16=bfloat16)


@pytest.mark.parametrize("index", TILES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("landing", LANDINGS)
def test_any_order_of_warps_and_copies(index: int, order: str, landing: str) -> None:
    config = configs()[index]
    check(config, config.tokens - 3, config.out - 8, 64 * (2 * config.stages + 1), residual=True, order=order,
          landing=landing, activation="gelu")  # fmt: skip


@pytest.mark.parametrize("index", TILES)
@pytest.mark.parametrize("stages", [1, 2, 3], ids=lambda n: f"stages{n}")
def test_fewer_inputs_than_stages_in_flight(index: int, stages: int) -> None:
    config = configs()[index]
    check(config, 5, 40, 64 * stages, order="random", landing="random")


@pytest.mark.parametrize("index", TILES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("bias", "residual"), [(False, False), (True, True)], ids=["plain", "bias-residual"])
def test_several_tiles_and_strided_rows(index: int, activation: str, bias: bool, residual: bool) -> None:
    config = configs()[index]
    check(config, config.tokens + 1, config.out + 24, 128, bias=bias, residual=residual, padding=16,
          activation=activation, bfloat16=not bias)  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 7, 50, 197], ids=lambda n: f"tokens{n}")
@pytest.mark.parametrize("index", TILES)
def test_tokens_of_real_models(index: int, tokens: int) -> None:
    check(configs()[index], tokens, 72, 64, residual=True)


@pytest.mark.parametrize("index", SHARED)
@pytest.mark.parametrize("parts", [2, 5], ids=lambda n: f"parts{n}")
def test_parts_give_the_same_bits_whoever_comes_last(index: int, parts: int) -> None:
    config = configs()[index]
    sizes = (9, config.out + 8, 64 * 11)  # two tiles; 11 stages do not divide evenly
    results = [
        check(
            config,
            *sizes,
            parts=parts,
            residual=True,
            activation="quick_gelu",
            backwards=backwards,
            order=order,
        )
        for backwards, order in ((False, "ascending"), (True, "random"))
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("index", TILES)
def test_copies_and_stored_rows_have_no_bank_conflicts(index: int) -> None:
    # ldmatrix, words of metadata and stored results are judged wherever the kernel runs here.
    assert library().copy_conflicts(index) == 0


def test_parts_fill_the_multiprocessors_and_fit_the_counters() -> None:
    def chosen(config: Config, tokens: int, out: int, inputs: int) -> int:
        return int(library().parts_chosen(config.index, ctypes.c_int64(tokens), ctypes.c_int64(out),
                                          ctypes.c_int64(inputs), 108))  # fmt: skip

    named = {config.name: config for config in configs()}
    few = named["128x64 parts"]
    assert chosen(few, 50, 768, 3072) == 8  # 6 tiles
    assert chosen(few, 50, 3072, 768) == 6  # 24 tiles and 2 resident blocks: 9, but 12 stages are 6 times 2
    assert chosen(few, 50, 8192, 4096) == 3  # 64 tiles
    assert chosen(few, 50000, 768, 3072) == 1
    assert chosen(few, 50, 768, 64) == 1
    assert chosen(named["128x64"], 50, 768, 3072) == 1
