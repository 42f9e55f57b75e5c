"""linear24_sm80's order of metadata and number formats, against definitions of their own."""

import ctypes

import numpy as np
import pytest
from sm80_host import address, from_16, library, random_weight, reordered, to_16

SIZES = [(16, 32), (32, 64), (8, 64), (40, 128), (72, 192), (130, 96), (3, 20), (1, 4)]


def index_bits(meta: np.ndarray, row: int, group: int) -> int:
    return int(meta[row, group // 2]) >> group % 2 * 4 & 15


@pytest.mark.parametrize(("out", "inputs"), SIZES, ids=lambda n: str(n))
def test_each_lane_finds_the_indices_that_the_ptx_isa_asks_of_it(out: int, inputs: int) -> None:
    _, _, meta = random_weight(np.random.default_rng(1), out, inputs)
    words = reordered(meta, out, inputs).view(np.uint32).reshape(-(-out // 32), -(-inputs // 32), 32)
    for block_row, block_in, lane in np.ndindex(*words.shape):
        selector, half, group_id = lane % 4 // 2, lane % 2, lane // 4
        word = int(words[block_row, block_in, lane])
        for high in range(2):
            row = 32 * block_row + 16 * selector + 8 * high + group_id
            for group in range(4):
                found = word >> 16 * high + 4 * group & 15
                column = 32 * block_in + 16 * half + 4 * group
                exists = row < out and column < inputs
                # What does not exist has indices 0 and 1: values there are zero or never stored.
                assert found == (index_bits(meta, row, column // 4) if exists else 0b0100)


@pytest.mark.parametrize(("out", "inputs"), [(32, 32), (64, 128)], ids=lambda n: str(n))
def test_agrees_with_the_order_that_cutlass_takes_on_sm80(out: int, inputs: int) -> None:
    # Its unit is the 16 bits of 16 inputs. Rows of 32 interleave by 8s; in blocks of 2 x 2 units the second
    # and third change places; and pairs of columns are stored together, row after row.
    _, _, meta = random_weight(np.random.default_rng(2), out, inputs)
    units, ours = meta.view(np.uint16), reordered(meta, out, inputs).view(np.uint16)
    columns = inputs // 16
    for row in range(out):
        for column in range(columns):
            to_row = row // 32 * 32 + row % 8 * 4 + row % 32 // 8
            to_column = column
            if to_row % 2 == 0 and column % 2 == 1:
                to_row, to_column = to_row + 1, column - 1
            elif to_row % 2 == 1 and column % 2 == 0:
                to_row, to_column = to_row - 1, column + 1
            block = to_row // 32 * (columns // 2) + to_column // 2
            assert ours[block * 64 + to_row % 32 * 2 + to_column % 2] == units[row, column]


def test_every_byte_is_written_and_none_beyond() -> None:
    out, inputs = 40, 100
    _, _, meta = random_weight(np.random.default_rng(3), out, inputs)
    size = int(library().meta_bytes(ctypes.c_int64(out), ctypes.c_int64(inputs)))
    assert size == 2 * 4 * 128
    guarded = [np.full(size + 64, fill, np.uint8) for fill in (0, 255)]
    for target in guarded:
        library().reorder_meta(ctypes.c_void_p(address(meta)), ctypes.c_int64(out), ctypes.c_int64(inputs),
                               ctypes.c_void_p(address(target)))  # fmt: skip
    np.testing.assert_array_equal(guarded[0][:size], guarded[1][:size])
    assert (guarded[0][size:] == 0).all()
    assert (guarded[1][size:] == 255).all()


def test_float16_is_read_as_numpy_reads_it() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    found = np.empty(bits.size, np.float32)
    library().from_float16(ctypes.c_void_p(address(bits)), ctypes.c_void_p(address(found)),
                           ctypes.c_int64(bits.size))  # fmt: skip
    np.testing.assert_array_equal(found, bits.view(np.float16).astype(np.float32))


def test_the_emulation_rounds_as_numpy_and_torch_round() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    values = (rng.standard_normal(20000) * 10.0 ** rng.integers(-9, 6, 20000)).astype(np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(from_16(to_16(values, False), False), values.astype(np.float16))
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(from_16(to_16(values, True), True), expected)
