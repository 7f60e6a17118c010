r"""Sums by segment, exact in integers: the sums of `_exact` with a scatter for the reduction.

Rows go in chunks that fit the cache, for XLA:CPU writes what it scatters to memory first. One pass over float32
splits each x/q into halves of 26 bits and scatters both; it also counts, by segment, the terms that are not
multiples of q. Where the interval that these leave holds two floats, pieces of all bits are scattered.
"""

from collections.abc import Callable

import numpy as np
from jax import Array, lax

from robustad.stability import _digits, _exact

CHUNK = 1 << 14  # elements scattered at a time: what they become fits the second-level cache
PIECE = 2 * _digits.WIDTH

State = tuple[Array, ...]
Step = Callable[[State, Array, Array], State]  # of some rows' bit patterns and segments


def rounded_segments(x: Array, ids: Array, segments: int, dtype, float64: bool) -> Array:
    """The exact sums of the rows of `(n, k)` by segment, rounded once: `(segments, k)`. An id out of range drops its row."""
    if 0 in (*x.shape, segments):
        return lax.full((segments, x.shape[1]), 0, dtype)
    if x.dtype == np.float64 or not float64:
        return _exact.float_of(_digits_by_segment(x, ids, segments), dtype)
    result, certain = _one_pass(x, ids, segments, dtype)
    return lax.cond(
        lax.reduce_and(certain, (0, 1)),
        lambda x: result,
        lambda x: _exact.float_of(_digits_by_segment(x, ids, segments), dtype),
        x,
    )


def _over_chunks(x: Array, ids: Array, segments: int, step: Step, state: State) -> State:
    n, k = x.shape
    rows = min(n, max(1, CHUNK // k))

    def chunk(i: Array, state: State) -> State:
        first = i * np.int32(rows)
        start = lax.min(first, np.int32(n - rows))  # the last chunk laps over the one before it
        new = lax.iota(np.int32, rows) >= first - start
        into = lax.dynamic_slice(ids, (start,), (rows,))
        into = lax.select(new, into, lax.full_like(into, segments))
        # the patterns of a chunk only: those of all would be written to memory
        return step(state, _digits.bits_of(lax.dynamic_slice(x, (start, np.int32(0)), (rows, k))), into)

    return lax.fori_loop(np.int32(0), np.int32(-(-n // rows)), chunk, state)


ROWS = lax.ScatterDimensionNumbers(
    update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)
)


def _added(into: Array, ids: Array, rows: Array) -> Array:
    return lax.scatter_add(into, ids[:, None], rows, ROWS, mode=lax.GatherScatterMode.FILL_OR_DROP)


def _one_pass(x: Array, ids: Array, segments: int, dtype) -> tuple[Array, Array]:
    n, k = x.shape
    largest = _exact.over_axis((_digits.bits_of(x).reshape(1, n * k, 1),), _digits.magnitude, np.int32(0), lax.max)
    exponent = _exact.window(largest)
    shifter = _exact.shifter(exponent).reshape(())

    def inexact(bits: Array) -> Array:
        return _exact.inexact((bits,), shifter)

    def step(state: State, bits: Array, ids: Array) -> State:
        low, high, losing = state
        count = _exact.count((bits,), shifter)
        low = _added(low, ids, count & np.int64((1 << 26) - 1))
        high = _added(high, ids, count >> np.int64(26))
        # rarely any: then look again which; written out here, they cost more than the scatters
        any_inexact = _exact.over_axis((bits.reshape(1, -1, 1),), inexact, np.int32(0), lax.max)
        losing = lax.cond(
            any_inexact[0, 0] > np.int32(0),
            lambda losing: _added(losing, ids, inexact(bits)),
            lambda losing: losing,
            losing,
        )
        return low, high, losing

    zeros = lax.full((segments, k), np.int64(0))
    state = (zeros, zeros, lax.full((segments, k), np.int32(0)))
    low, high, losing = _over_chunks(x, ids, segments, step, state)
    return _exact.settled(low, high, losing, lax.broadcast_in_dim(largest, low.shape, (0, 1)), dtype)


def _digits_by_segment(x: Array, ids: Array, segments: int) -> Array:
    """As `_exact.digits_of_sum`: int32 `(limbs + 2, segments, k)`."""
    n, k = x.shape
    count, shape = _digits.limbs(_digits.storage(x.dtype)), (segments, k)
    top, lowest = (of.reshape(()) for of in _exact.reach(_digits.bits_of(x).reshape(1, n * k, 1)))

    def window(state: State) -> State:
        top, digits = state
        low = lax.max(top - np.int32(PIECE), np.int32(0))

        def step(sums: State, bits: Array, ids: Array) -> State:
            piece = _exact.piece(bits, low, top - low)
            high = piece >> np.int64(_digits.WIDTH)
            return _added(sums[0], ids, piece & _digits.MASK), _added(sums[1], ids, high)

        zeros = lax.full(shape, np.int64(0))
        sums = _over_chunks(x, ids, segments, step, (zeros, zeros))
        for sum, position in zip(sums, (low, low + np.int32(_digits.WIDTH))):
            digits = digits + _digits.deposit(sum, lax.broadcast(position, shape), count)
        return low, _digits.balanced(digits)

    digits = lax.full((count, *shape), np.int32(0))
    _, digits = lax.while_loop(lambda state: state[0] > lowest, window, (top, digits))

    def infinite(state: State, bits: Array, ids: Array) -> State:
        flags = _exact.flags(bits)
        return tuple(
            lax.scatter_max(
                met, ids[:, None], flags >> bit & np.int32(1), ROWS, mode=lax.GatherScatterMode.FILL_OR_DROP
            )
            for met, bit in zip(state, (np.int32(0), np.int32(1)))
        )

    none = lax.full(shape, np.int32(0))
    met = _over_chunks(x, ids, segments, infinite, (none, none))
    return lax.concatenate([digits, *(flag[None] for flag in met)], 0)
