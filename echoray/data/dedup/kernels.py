"""The compiled loops of deduplication (numba), and why none of their filters misses a pair.

With m and n tokens and L = LCS, D = m + n - 2L counts what a longest common subsequence leaves out of both.
ROUGE-L's F1 is 2L / (m + n) = 1 - D / (m + n): it exceeds p / q if and only if D q < (q - p) (m + n).

A parity signature has bits, inverted once for each element of a text that falls on them. The elements are the
tokens with their occurrence (the second "cyst" is another element than the first). Those that two texts share
cancel in the exclusive or of their signatures, and each element of only one text changes one bit at most: no
more bits differ than there are elements in only one of them. That is at most D, because a common subsequence
is a common multiset of tokens. Pairs of which so many bits differ that they reach (q - p) (m + n) / q are
therefore no duplicates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.typing import signature
from numba.extending import intrinsic
from numpy.typing import NDArray

U64 = np.uint64
_GOLDEN, _MIX_1, _MIX_2 = U64(0x9E3779B97F4A7C15), U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB)
_SHINGLE = 3  # tokens of a SimHash feature; single tokens make all reports of an organ alike
_CHUNK = 2048  # rows whose signatures are compared at once
_CHECK_EVERY = 16  # tokens between two looks at whether an LCS can still be long enough


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # no folder that the machine code could be kept in
        return numba.njit(function)


@intrinsic
def _popcount(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return signature(types.uint64, types.uint64), generate


@_compiled
def _mixed(value: Any) -> Any:
    """SplitMix64's finalizer (Steele et al., 2014)."""
    value = (value ^ (value >> U64(30))) * _MIX_1
    value = (value ^ (value >> U64(27))) * _MIX_2
    return value ^ (value >> U64(31))


@_compiled
def sign(
    hashes_T: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    coarse_B4: NDArray[np.uint64],
    fine_B8: NDArray[np.uint64],
    simhash_B: NDArray[np.uint64],
) -> None:
    """Fill in the signatures and the SimHash (Charikar, 2002; features: shingles of three tokens)."""
    one = U64(1)
    for row in range(len(offsets) - 1):
        tokens = hashes_T[offsets[row] : offsets[row + 1]]
        ordered = np.sort(tokens)
        occurrence = U64(0)
        for place in range(len(ordered)):
            repeated = place > 0 and ordered[place] == ordered[place - 1]
            occurrence = occurrence + one if repeated else U64(0)
            element = _mixed(ordered[place] + occurrence * _GOLDEN)
            coarse_B4[row, (element >> U64(6)) & U64(3)] ^= one << (element & U64(63))
            fine_B8[row, (element >> U64(26)) & U64(7)] ^= one << ((element >> U64(20)) & U64(63))
        if len(tokens):
            simhash_B[row] = _simhash(tokens)


@_compiled
def _simhash(tokens: NDArray[np.uint64]) -> Any:
    width = min(_SHINGLE, len(tokens))
    votes = np.zeros(64, np.int32)
    for start in range(len(tokens) - width + 1):
        feature = U64(0)
        for place in range(start, start + width):
            feature = _mixed(feature * _MIX_1 + tokens[place] + _GOLDEN)
        for bit in range(64):
            votes[bit] += 2 * np.int32((feature >> U64(bit)) & U64(1)) - 1
    found = U64(0)
    for bit in range(64):
        if votes[bit] > 0:
            found |= U64(1) << U64(bit)
    return found


@_compiled
def masks_of(slots_m: NDArray[np.int32], masks_SW: NDArray[np.uint64]) -> None:
    """Set bit i of the mask of the i-th token's slot: where in the query each of its tokens stands."""
    for place in range(len(slots_m)):
        masks_SW[slots_m[place], place >> 6] |= U64(1) << U64(place & 63)


@_compiled
def lcs_reaches(
    slots_n: NDArray[np.int32], masks_SW: NDArray[np.uint64], state_W: NDArray[np.uint64], needed: int
) -> Any:
    """Whether the longest common subsequence has ``needed`` tokens; bit-parallel (Hyyrö, 2004).

    ``slots_n`` are the slots of the other text's tokens in the query, -1 for those that are not in it.
    """
    num_tokens, num_words = len(slots_n), len(state_W)
    state_W[:] = ~U64(0)
    for place in range(num_tokens):
        slot = slots_n[place]
        if slot >= 0:
            carry = U64(0)
            for word in range(num_words):
                before = state_W[word]
                both = before & masks_SW[slot, word]
                added = before + both
                over = added < before
                added_carry = added + carry
                carry = U64(1) if over or added_carry < added else U64(0)
                state_W[word] = added_carry | (before & ~both)
        if place % _CHECK_EVERY == _CHECK_EVERY - 1 or place == num_tokens - 1:
            found = np.int64(0)
            for word in range(num_words):
                found += np.int64(_popcount(~state_W[word]))
            if found >= needed:
                return True
            if found + num_tokens - 1 - place < needed:
                return False
    return False


@_compiled
def first_similar(
    coarse_4N: NDArray[np.uint64],
    fine_N8: NDArray[np.uint64],
    lengths_N: NDArray[np.int32],
    starts_N: NDArray[np.int64],
    orders_N: NDArray[np.int64],
    pool: NDArray[np.int32],
    count: int,
    slot_of_id: NDArray[np.int32],
    masks_SW: NDArray[np.uint64],
    state_W: NDArray[np.uint64],
    slots: NDArray[np.int32],
    coarse_4: NDArray[np.uint64],
    fine_8: NDArray[np.uint64],
    length: int,
    p: int,
    q: int,
    limit: int,
    counts: NDArray[np.int64],
) -> Any:
    """The order of the first of ``count`` kept texts with an F1 over p / q, or ``limit``.

    ``counts`` grows by the pairs whose coarse and whose fine signature was compared, and whose LCS was made.
    ``slots`` and ``state_W`` are room to work in.
    """
    margin = q - p
    excess = np.empty(_CHUNK, np.int64)
    for start in range(0, count, _CHUNK):
        if orders_N[start] >= limit:
            break
        stop = min(start + _CHUNK, count)
        for row in range(start, stop):
            bits = _popcount(coarse_4N[0, row] ^ coarse_4[0]) + _popcount(coarse_4N[1, row] ^ coarse_4[1])
            bits += _popcount(coarse_4N[2, row] ^ coarse_4[2]) + _popcount(coarse_4N[3, row] ^ coarse_4[3])
            excess[row - start] = np.int64(bits) * q - margin * np.int64(lengths_N[row])
        counts[0] += stop - start
        for row in range(start, stop):
            if excess[row - start] >= margin * length:
                continue
            counts[1] += 1
            fine_bits = np.int64(0)
            for word in range(8):
                fine_bits += np.int64(_popcount(fine_N8[row, word] ^ fine_8[word]))
            both = np.int64(length + lengths_N[row])
            if fine_bits * q >= margin * both:
                continue
            counts[2] += 1
            for place in range(lengths_N[row]):
                slots[place] = slot_of_id[pool[starts_N[row] + place]]
            if lcs_reaches(slots[: lengths_N[row]], masks_SW, state_W, p * both // (2 * q) + 1):
                return min(limit, orders_N[row])
    return limit


@_compiled
def first_near(
    simhash_N: NDArray[np.uint64],
    orders_N: NDArray[np.int64],
    heads: NDArray[np.int32],
    after: NDArray[np.int32],
    simhash: Any,
    distance: int,
    limit: int,
) -> Any:
    """The order of the first kept text within ``distance`` bits, or ``limit`` if none is before it.

    The 64 bits are cut into distance + 1 blocks. Of two hashes that differ in ``distance`` bits one block at
    least is equal (pigeonhole), so only texts in the same list of some block are looked at.
    """
    num_blocks = distance + 1
    for block in range(num_blocks):
        row = heads[block, _key(simhash, block, num_blocks)]
        while row >= 0:
            if orders_N[row] < limit and _popcount(simhash_N[row] ^ simhash) <= U64(distance):
                limit = orders_N[row]
            row = after[block, row]
    return limit


@_compiled
def list_near(
    heads: NDArray[np.int32], after: NDArray[np.int32], simhash: Any, distance: int, row: int
) -> None:
    """Put ``row`` at the head of its list in each block."""
    num_blocks = distance + 1
    for block in range(num_blocks):
        key = _key(simhash, block, num_blocks)
        after[block, row] = heads[block, key]
        heads[block, key] = row


@_compiled
def _key(simhash: Any, block: int, num_blocks: int) -> Any:
    """Up to 16 bits of a block."""
    first = 64 * block // num_blocks
    width = min(16, 64 * (block + 1) // num_blocks - first)
    return np.int64((simhash >> U64(first)) & ((U64(1) << U64(width)) - U64(1)))
