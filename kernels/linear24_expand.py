"""Packed 2:4 weights made dense in registers, as the left operand of a product.

16-bit weights come in *units* of four groups: 16 bytes of values and 16 bits of meta become 32 bytes, that is
eight words of two dense columns. A word is one byte permutation of a group's two values and zero. The
selectors of four groups come out of one permutation a column, which looks the pairs of indices up in a table
of eight bytes; one more picks the two bytes of a word. That is 5 permutations a group, where comparing
indices with columns and choosing took some 16 instructions.

Columns do not stay in their order. A sum over columns can go in any, and in that of `columns_of` the words
that a thread makes of 16 bytes are the words that a tensor core wants of this very thread: nothing is
exchanged between threads, at the price that activations are read by two columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["columns_of", "permuted", "unpacked", "unpacked_exactly"]

# What a byte of a selector takes: the lower of two 16-bit values, the upper one, or a half of the zero.
_LOWER, _UPPER, _ZERO = 0x10, 0x32, 0x54


def _table(column: int) -> tuple[int, int]:
    """Selector bytes of a column, for the eight numbers that a pair of indices is looked up by.

    A pair (i, j) is the nibble i + 4 * j. Xor-ed with itself shifted right, its lower three bits tell the six
    pairs apart; a fourth bit would ask a permutation for signs.
    """
    entries = [_ZERO] * 8
    for i in range(4):
        for j in range(i + 1, 4):
            nibble = i | j << 2
            if column in (i, j):
                entries[(nibble ^ nibble >> 1) & 7] = _LOWER if column == i else _UPPER
    return int.from_bytes(bytes(entries[:4]), "little"), int.from_bytes(bytes(entries[4:]), "little")


_TABLES = tl.constexpr(tuple(_table(column) for column in range(4)))


@triton.jit
def permuted(low, high, selector):
    """Each nibble of the lower half of `selector` picks a byte of int32 `low` (0 to 3) or `high` (4 to 7)."""
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, selector], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def columns_of(DEPTH: tl.constexpr, ORDER: tl.constexpr):
    """The group, and the column of it, that stand at each place of a row of dense weights: two int32 [DEPTH].

    Columns are [64s][unit 4][group 4][half 2][2], and ORDER says what places are.
    "fragments": [64s][group 4][half 2][unit 4][2], since 16 of a tensor core's operand are [half][thread][2].
    "quads": [64s][group 4][unit 4][half 2][2], which is how Triton spreads an operand over threads where
    single warps multiply, before sm_90 and on sm_120.
    "columns": as columns are, for `unpacked_exactly`.
    """
    place = tl.arange(0, DEPTH)
    group = place // 64 * 16 + place // 16 % 4
    if ORDER == "fragments":
        return group + place // 2 % 4 * 4, place // 8 % 2 * 2 + place % 2
    elif ORDER == "quads":
        return group + place // 4 % 4 * 4, place % 4
    else:
        return place // 4, place % 4


@triton.jit
def _words(pair, lower, upper, GROUP: tl.constexpr):
    # Bytes GROUP of the selectors of columns 0 and 1, and of 2 and 3.
    SELECTOR: tl.constexpr = GROUP | (GROUP + 4) << 4
    first = permuted(pair, 0, permuted(lower[0], lower[1], SELECTOR))
    return tl.join(first, permuted(pair, 0, permuted(upper[0], upper[1], SELECTOR)))


@triton.jit
def unpacked(pairs, meta, dtype: tl.constexpr, ORDER: tl.constexpr):
    """Dense [R, DEPTH] of 16-bit weights, columns as in `columns_of`.

    Args:
        pairs: int32 [R, DEPTH / 4], the two values of every group.
        meta: int32 [R, DEPTH / 16], in its lower half the indices of four groups.
        dtype: of the weight.
        ORDER: "fragments" or "quads".

    """
    ROWS: tl.constexpr = pairs.shape[0]
    UNITS: tl.constexpr = meta.shape[1]
    even, odd = pairs.reshape(ROWS, UNITS, 2, 2).split()
    p0, p2 = even.split()
    p1, p3 = odd.split()
    pair = (meta ^ (meta >> 1)) & 0x7777
    lower = permuted(_TABLES[0][0], _TABLES[0][1], pair), permuted(_TABLES[1][0], _TABLES[1][1], pair)
    upper = permuted(_TABLES[2][0], _TABLES[2][1], pair), permuted(_TABLES[3][0], _TABLES[3][1], pair)
    w01 = tl.join(_words(p0, lower, upper, 0), _words(p1, lower, upper, 1))
    w23 = tl.join(_words(p2, lower, upper, 2), _words(p3, lower, upper, 3))
    # [R, unit, half, lower bit of the group, upper bit], and then the column of the word.
    words = tl.join(w01, w23)
    halves = tl.join(words.to(tl.int16), (words >> 16).to(tl.int16))
    spans = halves.reshape(ROWS, UNITS // 4, 4, 2, 2, 2, 2)
    if ORDER == "fragments":
        ordered = spans.permute(0, 1, 5, 4, 3, 2, 6)
    else:
        ordered = spans.permute(0, 1, 5, 4, 2, 3, 6)
    bits = ordered.reshape(ROWS, UNITS * 16)
    # Last, since what is merely of another shape is laid out for sm_100 in a way that its compiler refuses.
    return bits.to(dtype, bitcast=True)


@triton.jit
def unpacked_exactly(first, second, nibble):
    """Dense [R, DEPTH] of weights of any width in their order, by comparing.

    Of every group both values and the nibble of indices, [R, DEPTH / 4] each.
    """
    i, j = nibble & 3, nibble >> 2
    c0 = tl.where(i == 0, first, 0.0)
    c1 = tl.where(i == 1, first, tl.where(j == 1, second, 0.0))
    c2 = tl.where(i == 2, first, tl.where(j == 2, second, 0.0))
    c3 = tl.where(j == 3, second, 0.0)
    return tl.join(tl.join(c0, c2), tl.join(c1, c3)).reshape(first.shape[0], first.shape[1] * 4)
