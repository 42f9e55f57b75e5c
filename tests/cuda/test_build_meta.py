"""The order of indices for Hopper: as CUTLASS's own layout has it, and as it was when that was asked."""

import zlib

import numpy as np
import pytest
from build_tools import compile_program, cuda_headers, cutlass, run

native = pytest.importorskip("vlprune._C", reason="needs the native extension")

SHAPES = [(64, 128), (8, 16), (72, 144), (200, 272), (768, 512), (1000, 1040), (136, 4096), (10, 12), (5, 4)]

# CUTLASS says where the indices of an element lie; unset places hold the pair (0, 1), as ours do.
PROGRAM = """
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "cutlass/bfloat16.h"
#include "cutlass/float8.h"
#include "cutlass/gemm/collective/builders/sm90_sparse_config.inl"
int main(int, char** arguments) {
    const int out = std::atoi(arguments[1]), in = std::atoi(arguments[2]), row = (in + 7) / 8;
    const int tile = 256 / sizeof(WEIGHT), padded = (in + tile - 1) / tile * tile;
    using Weight = cute::sparse_elem<2, WEIGHT>;
    using Indices = cute::sparse_elem<8, uint8_t>;
    using Config = cutlass::Sm90GemmSparseConfig<Weight, cute::GMMA::Major::K, Indices, cute::_128>;
    const auto layout = Config::fill_layoutE(cute::make_shape(out, 1, padded, 1));
    std::vector<uint8_t> meta(size_t(out) * row), to(cute::cosize(layout) / 8, 0x44);
    if (std::fread(meta.data(), 1, meta.size(), stdin) != meta.size()) return 1;
    for (int m = 0; m < out; ++m) {
        for (int k = 0; k < in; k += 4) {
            const int nibble = meta[size_t(m) * row + k / 8] >> (k / 4 % 2 * 4) & 15;
            const auto place = layout(m, k, 0) / 4;
            uint8_t& byte = to[place / 2];
            byte = place % 2 ? (byte & 15) | nibble << 4 : (byte & 240) | nibble;
        }
    }
    std::fwrite(to.data(), 1, to.size(), stdout);
}
"""


def random_meta(out, inputs):
    pairs = np.array([a | b << 2 for a in range(4) for b in range(a + 1, 4)], np.uint8)
    nibbles = pairs[np.random.default_rng(out * inputs).integers(0, 6, (out, inputs // 4))]
    if nibbles.shape[1] % 2:
        nibbles = np.pad(nibbles, ((0, 0), (0, 1)))
    return np.ascontiguousarray(nibbles[:, ::2] | nibbles[:, 1::2] << 4)


def reordered(meta, out, inputs, of="sm90"):
    size = getattr(native, f"{of}_meta_bytes")(out, inputs)
    guarded = np.full(size + 64, 0xAA, np.uint8)
    getattr(native, f"{of}_reorder_meta")(meta.ctypes.data, out, inputs, guarded.ctypes.data)
    assert (guarded[size:] == 0xAA).all()
    return guarded[:size]


WEIGHTS = {"cutlass::bfloat16_t": "sm90", "int8_t": "sm90_scaled", "cutlass::float_e4m3_t": "sm90_scaled"}


@pytest.fixture(scope="module", params=WEIGHTS)
def cutlass_order(tmp_path_factory, request):
    flags = ["-w", f"-DWEIGHT={request.param}", "-isystem", cutlass(), *cuda_headers()]
    program = compile_program(tmp_path_factory.mktemp("meta"), PROGRAM, *flags)

    def order(meta, out, inputs):
        return np.frombuffer(run([program, str(out), str(inputs)], input=meta.tobytes()).stdout, np.uint8)

    order.of = WEIGHTS[request.param]
    return order


@pytest.mark.parametrize(("out", "inputs"), SHAPES)
def test_order_is_that_of_cutlass(cutlass_order, out, inputs):
    meta = random_meta(out, inputs)
    mine = reordered(meta, out, inputs, cutlass_order.of)
    np.testing.assert_array_equal(mine, cutlass_order(meta, out, inputs))


@pytest.mark.parametrize(
    ("out", "inputs", "of", "crc"),
    [
        (64, 128, "sm90", 1282714575),
        (72, 144, "sm90", 3886762773),
        (1000, 1040, "sm90", 354452957),
        (136, 4096, "sm90", 3329679023),
        (10, 12, "sm90", 383209815),
        (64, 128, "sm90_scaled", 1784036140),
        (72, 160, "sm90_scaled", 1401366502),
        (1000, 1056, "sm90_scaled", 1020624715),
    ],
)
def test_order_is_what_it_was(out, inputs, of, crc):
    assert zlib.crc32(reordered(random_meta(out, inputs), out, inputs, of).tobytes()) == crc


@pytest.mark.parametrize("of", ["sm90", "sm90_scaled"])
def test_padding_holds_ascending_indices(of):
    meta = random_meta(8, 16)
    order = reordered(meta, 8, 16, of)
    nibbles = np.concatenate([order & 15, order >> 4])
    assert ((nibbles & 3) < (nibbles >> 2)).all()
    assert order.size == (1024 if of == "sm90" else 2048)
