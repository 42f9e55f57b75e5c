"""The kernels of `linear24` for few tokens under Triton's interpreter: run as a script, in its own process.

Prints one JSON object: case -> null or what was wrong. Inputs lie in memory that is otherwise NaN, outputs
and workspaces are made of NaN and followed by a guard.
"""

import itertools
import json
import math
import os
import sys
import traceback
from unittest import mock

if __name__ == "__main__":
    # Read by triton when a kernel is decorated.
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
from attention_interpreted import mend_interpreter
from interpreted import DTYPES, guards_stand, poison

from vlprune.ops import reference

# Tile, steps and shares of `Config`: those that are chosen are far larger than what is tried here.
FORMS = {
    "one": (64, 64, 1, 4, 3),
    "deep": (64, 128, 2, 4, 3),
    "split": (128, 64, 3, 4, 3),
    "shares left empty": (64, 64, 8, 4, 3),
}
# name -> tokens, out, in, dtype, form, activation, bias, residual
SHAPES = {
    f"{tokens} tokens, {out} x {cols}, {form}, {dtype}": (tokens, out, cols, dtype, form, *after)
    for dtype, (tokens, out, cols, form), after in [
        *zip(
            itertools.cycle(("bfloat16", "float16")),
            (
                (1, 64, 64, "one"), (7, 130, 256, "one"), (50, 64, 192, "split"), (77, 129, 128, "deep"),
                (197, 40, 640, "shares left empty"), (257, 70, 256, "split"), (300, 65, 64, "one"),
                (1, 1, 4, "one"), (7, 3, 12, "deep"), (50, 67, 132, "split"), (77, 31, 76, "one"),
                (33, 5, 1000, "shares left empty"), (16, 64, 200, "deep"),
            ),
            itertools.cycle(
                (
                    (None, True, False), ("gelu", True, True), ("quick_gelu", False, False),
                    (None, False, True), ("gelu", False, False),
                )
            ),
        ),
        ("float32", (1, 33, 64, "exact"), (None, True, False)),
        ("float32", (7, 64, 76, "exact"), ("gelu", False, False)),
        ("float32", (50, 31, 128, "exact split"), ("quick_gelu", True, True)),
        ("float32", (77, 5, 12, "exact split"), (None, False, False)),
    ]
}  # fmt: skip
FORMS |= {"exact": (32, 32, 1, 4, 2), "exact split": (32, 32, 3, 4, 2)}


def permutation(asm, constraints, args, dtype, is_pure, pack, **_):
    """The one instruction that kernels name: PTX's prmt without a mode, signs left out."""
    assert asm == "prmt.b32 $0, $1, $2, $3;"
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    low, high, selector = np.broadcast_arrays(*(np.asarray(_data(each), np.int64) for each in args))
    both = (low & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32
    word = 0
    for byte in range(4):
        nibble = selector >> 4 * byte & 15
        assert (nibble < 8).all(), "a selector asks for a sign"
        word |= (both >> 8 * nibble & 255) << 8 * byte
    word = word.astype(np.uint32).view(np.int32)
    return tl.tensor(TensorHandle(word, tl.int32), tl.block_type(tl.int32, list(word.shape)))


def rounded(self, source, dtype):
    """To bfloat16 as a GPU does, to the nearest even; the interpreter cuts off."""
    from triton.runtime.interpreter import TensorHandle

    if str(dtype.scalar) != "bf16":
        return self.cast_impl(source, dtype)
    values = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.bfloat16)
    return TensorHandle(values.view(torch.int16).numpy().view(np.uint16), dtype.scalar)


def _data(argument):
    return argument.handle.data if hasattr(argument, "handle") else getattr(argument, "value", argument)


def surrounded(rows, cols, dtype, seed, around=8):
    """Random normal numbers whose every neighbour in memory is NaN."""
    memory = torch.full((rows + 2, cols + 2 * around), math.nan, dtype=dtype)
    inside = memory[1 : rows + 1, around : cols + around]
    return inside.copy_(torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)))


def weight24(out, cols, dtype, seed):
    """A weight whose groups keep every pair of places, and some fewer than two."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, cols // 4, 4, generator=generator)
    order = torch.rand(weight.shape, generator=generator).argsort(-1)
    weight[order >= 2] = 0
    weight[::3, ::5] *= order[::3, ::5] == 0
    return weight.reshape(out, cols).to(dtype)


def close(actual, dense, exact, terms):
    """Off by at most twice what the dense product of the same dtype is, or roundings of float32 sums."""
    assert bool(actual.isfinite().all()), "not written, or read where nothing is"
    least = torch.finfo(torch.float32).eps * float(terms.max()) + torch.finfo(actual.dtype).tiny
    error, allowed = ((each.double() - exact).abs().max().item() for each in (actual, dense))
    assert error <= 2 * allowed + least, f"off by {error:.3}, the dense product by {allowed:.3}"


def _shape(name):
    from vlprune.kernels import linear24

    tokens, out, cols, dtype, form, activation, has_bias, has_residual = SHAPES[name]
    dtype, config = DTYPES[dtype], linear24.Config(*FORMS[form])
    weight = weight24(out, cols, dtype, 1)
    values, meta = reference.pack24(weight)
    x = surrounded(tokens, cols, dtype, 2)
    bias = surrounded(1, out, dtype, 3)[0] if has_bias else None
    residual = surrounded(tokens, out, dtype, 4, around=7) if has_residual else None
    double = None if bias is None else bias.double()
    exact = reference.activate(F.linear(x.double(), weight.double(), double), activation)
    dense = reference.activate(F.linear(x, weight, bias), activation)
    if residual is not None:
        exact, dense = exact + residual.double(), dense + residual
    terms = x.double().abs() @ weight.double().abs().T + 1
    for chosen in (config, None):
        y = torch.empty(tokens, out + 3, dtype=dtype)[:, :out]
        beside = torch.as_strided(y, (tokens, 3), y.stride(), out)
        linear24.linear24_few(x, values, meta, bias, residual, activation, y, chosen)
        close(y, dense, exact, terms)
        assert bool(beside[:-1].isnan().all()), "wrote beside the output"


def _call(x, weight, residual=None, activation=None, y=None, config=None):
    from vlprune.kernels import linear24

    y = x.new_empty(len(x), len(weight)) if y is None else y
    linear24.linear24_few(x, *reference.pack24(weight), None, residual, activation, y, config)
    return y


def _against_float64(x, weight, **how):
    exact, dense = F.linear(x.double(), weight.double()), F.linear(x, weight)
    y = _call(x, weight, **how)
    close(y, dense, exact, x.double().abs() @ weight.double().abs().T + 1)
    return y


def _warps():
    """The order of columns where single warps multiply: before sm_90, and on sm_120."""
    from vlprune.kernels import linear24

    for capability in (80, 120):
        with mock.patch.object(linear24, "_device", lambda index, capability=capability: (132, capability)):
            for cols, form in ((128, "one"), (384, "split"), (76, "deep")):
                x, weight = surrounded(19, cols, torch.bfloat16, 5), weight24(35, cols, torch.bfloat16, 6)
                _against_float64(x, weight, config=linear24.Config(*FORMS[form]))


def _pairs():
    """Every pair of places, bit for bit: a token of a single one sees a column of the weight."""
    for dtype in DTYPES.values():
        weight = torch.zeros(6, 64, dtype=dtype)
        pairs = list(itertools.combinations(range(4), 2))
        for group, row in itertools.product(range(16), range(6)):
            pair = pairs[(group + row) % 6]
            weight[row, [4 * group + place for place in pair]] = torch.tensor([1.5 + group, -2.0 - row]).to(
                dtype
            )
        assert torch.equal(_call(torch.eye(64, dtype=dtype), weight), weight.T)


def _every_config():
    from vlprune.kernels import linear24

    x, weight = surrounded(20, 256, torch.float16, 5), weight24(150, 256, torch.float16, 6)
    tried = linear24.configs(20, 150, 256)
    assert len(set(tried)) == len(tried) > 10
    for config in tried:
        y = _against_float64(x, weight, config=config)
        assert torch.equal(_call(x, weight, config=config), y), "not the same bits again"


def _estimates():
    """There is always something to choose, and tensors of a few MB occupy most of a GPU."""
    from vlprune.kernels import linear24

    for tokens in (*range(1, 300, 7), 577, 5000):
        tile = linear24.tile_of_tokens(tokens)
        assert len(tile) <= 2
        assert sum(tile) <= linear24.MOST_TOKENS
        assert sum(tile) * -(-tokens // sum(tile)) < tokens + 16 + tokens // 2
        for size, out, cols in itertools.product((2, 4), (1, 77, 768, 4096), (4, 64, 768, 4096)):
            assert linear24.configs(tokens, out, cols, size)
    for out, cols in ((4096, 1024), (1024, 4096), (4096, 4096)):
        config = linear24.configs(50, out, cols)[0]
        assert 100 <= -(-out // config.rows) * config.split <= 264


def _memory():
    """Odd steps between tokens, odd addresses, a result in the residual's place, a given workspace."""
    from vlprune.kernels import linear24

    weight = weight24(33, 192, torch.bfloat16, 1)
    wide = torch.full((9, 203), math.nan, dtype=torch.bfloat16)
    for x in (wide[:, 3:195], wide[:, 1:193], wide[::2, 8:200]):
        x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(4)))
        for form in ("one", "split"):
            config = linear24.Config(*FORMS[form])
            alone = _against_float64(x, weight, config=config)
            y = alone.clone()
            _call(x, weight, residual=y, y=y, config=config)
            # Twice the sum, of which one was rounded before.
            torch.testing.assert_close(y.float(), 2 * alone.float(), rtol=2.0**-7, atol=2.0**-6)
            workspace = x.new_empty(linear24.few_workspace(config, len(x), 33) + 64, dtype=torch.uint8)
            given = x.new_empty(len(x), 33)
            packed = reference.pack24(weight)
            linear24.linear24_few(x, *packed, None, None, None, given, config, workspace)
            assert torch.equal(given, alone)
            assert bool((workspace[-64:] == 0xFF).all())
    for tokens, out in ((0, 33), (5, 0)):
        assert _call(x[:tokens], weight[:out]).shape == (tokens, out)


def _not_finite():
    """A NaN reaches the outputs of its token or of its row of the weight, and no others."""
    x, weight = surrounded(20, 64, torch.bfloat16, 5), weight24(20, 64, torch.bfloat16, 6)
    clean = _call(x, weight)
    weight[3, weight[3].nonzero()[0]] = math.nan
    x[7, 9] = math.nan
    y = _call(x, weight)
    assert bool(y[:, 3].isnan().all() and y[7].isnan().all())
    y[:, 3], y[7] = clean[:, 3], clean[7]
    assert torch.equal(y, clean)


CHECKS = {
    "pairs": _pairs,
    "single warps": _warps,
    "every config": _every_config,
    "estimates": _estimates,
    "memory": _memory,
    "not finite": _not_finite,
}
CASES = (*CHECKS, *SHAPES)


def main():
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    mend_interpreter()
    InterpreterBuilder.create_fp_trunc = rounded
    tl.inline_asm_elementwise = permutation
    poison()
    results = {}
    for name in CASES:
        try:
            CHECKS[name]() if name in CHECKS else _shape(name)
            assert guards_stand(), "wrote past the end of an output"
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
