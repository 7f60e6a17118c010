r"""The sum of exponentials under logsumexp, softmax and the cross-entropies.

The usual shift by the maximum m rounds every a - m, and the exponential multiplies that error by |a - m|: 20 ulp in
a softmax of logits between -10 and 10 in float32. Here the shift is a number c for which a - c is exact:

    m < 0           c = ⌈m⌉, of smaller magnitude than every entry: |a - c| ≤ |a|
    0 ≤ m ≤ T       c = 0
    m > T           c = ⌊m⌋ - T

with T = 64 in float32 and 512 in float64 (`LogSumExp`: half of it), so that sums of e^(a - c) ≤ e^(T + 1) do not
overflow. For m > T the entries below c/2 are rounded, and their share is below e^(-T).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad._jaxpr import is_symbolic

from . import _words as words
from ._arguments import Axes
from ._significand import shifted, significand

# One entry at most has more than half of the total. A little more, so that two rounded halves do not count.
MOST = 0.51


class Total(NamedTuple):
    """The sum of exponentials along some axes, which are kept with length 1."""

    maximum: Array  # -(largest float) if every entry is -inf or there is none
    shift: Array  # c
    sum: Array  # of exp(a - c); 0 if every entry is -inf


def masked(a: Array, mask: Array | None) -> Array:
    """`a` with -inf where it does not count, in the shape of both: before its axes are counted."""
    return a if mask is None else jnp.where(mask, a, jnp.asarray(-jnp.inf, a.dtype))


def with_moderate_weights(a: Array, b: Array) -> tuple[Array, Array]:
    """The same b exp(a), with |b| above 2³⁰ moved into the exponent by a power of two: terms have little room above."""
    _, k = significand(b)
    k = jnp.where(jnp.abs(b) > 2.0**30, k, 0)
    return a + k.astype(a.dtype) * float(Fraction(words.LN2)), shifted(b, -k)


def maximum(a: Array, axes: Axes) -> Array:
    """The largest entry, but not below the lowest finite number."""
    lowest = np.array(jnp.finfo(a.dtype).min, a.dtype)
    if all(a.shape[i] == 1 for i in axes):  # here XLA drops the initial value of a reduction
        return lax.max(a, lowest)
    return lax.expand_dims(lax.reduce(a, lowest, lax.max, axes), axes)


def room(dtype: jnp.dtype) -> float:
    """T: how far above 0 exponents are left as they are."""
    return 64.0 if dtype == jnp.float32 else 512.0


def shift(m: Array, t: float | None = None) -> Array:
    t = room(m.dtype) if t is None else t
    largest = jnp.asarray(jnp.finfo(m.dtype).max, m.dtype)
    above = jnp.where(m > 16 * t, jnp.minimum(m, largest), jnp.maximum(lax.floor(m) - t, 0))
    return jnp.where(m < 0, lax.ceil(m), above)


def terms(a: Array, c: Array, t: float | None = None) -> Array:
    """exp(a - c), where an infinite entry outweighs every finite one without being infinite."""
    return lax.exp(jnp.minimum(a - c, (room(a.dtype) if t is None else t) + 2))


def total(a: Array, axes: Axes, bounded: bool = True) -> Total:
    """Not `bounded`, the sum of a row with an entry of +inf is infinite."""
    m = maximum(a, axes)
    c = shift(m)
    return Total(m, c, jnp.sum(terms(a, c) if bounded else lax.exp(a - c), axes, keepdims=True))


def inverse(t: Total) -> Array:
    """What the terms are multiplied by to give shares; they are 0 in a row that has none."""
    return 1 / jnp.where(t.sum == 0, 1, t.sum)


def share_of_maximum(t: Total) -> Array:
    """The largest share; 1 in a row without any."""
    return jnp.where(t.sum == 0, 1, terms(t.maximum, t.shift) * inverse(t))


def rest(a: Array, t: Total, axes: Axes, needed: Array | bool = True) -> Array:
    """1 - the largest share, as the sum of the others where that would cancel and is needed."""
    r = inverse(t)

    def others(a: Array, c: Array, r: Array) -> Array:
        p = terms(a, c) * r
        return jnp.where(p > MOST, 0, p)

    largest = share_of_maximum(t)
    wrong = (largest > MOST) & needed
    return repaired(wrong, 1 - largest, lambda: blocked_sum(others, [a], [t.shift, r], axes))


def repaired(wrong: Array, value: Array, careful: Callable[[], Array]) -> Array:
    """`value`, or `careful()` where it is wrong: computed only if it is wrong somewhere, under vmap too."""

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        pending, value = state
        return jnp.zeros_like(pending), jnp.where(wrong, careful(), value)

    return lax.while_loop(lambda state: state[0], step, (jnp.any(wrong), value))[1]


def log_of_sum(largest: Array, others: Array) -> Array:
    r""":math:`\log \sum e^{a - m} = -\log` of the largest share, from that share and the rest."""
    return jnp.where(largest > MOST, words.log1p(others / largest), -lax.log(largest))


def log_total(a: Array, t: Total, axes: Axes) -> Array:
    r""":math:`\log \sum e^a`. Near 0, where c and the logarithm cancel or the rest of the sum is small: in more digits."""
    value = t.shift + lax.log(t.sum)
    value = jnp.where(t.maximum == jnp.inf, jnp.inf, value)
    small = jnp.abs(value) < jnp.maximum(1, jnp.abs(t.shift) * 0.25)
    return repaired(small, value, lambda: _log_total_near_zero(a, t.maximum, axes))


def _log_total_near_zero(a: Array, m: Array, axes: Axes) -> Array:
    """m + log1p(the other terms); in float32, computed in float64."""
    if a.dtype == jnp.float64:
        return m + lax.log1p(blocked_sum(_below, [a], [m], axes) + (blocked_sum(_equal, [a], [m], axes) - 1))
    with jax.enable_x64(True):
        high = lax.convert_element_type(m, jnp.float64)
        ties = blocked_sum(_equal, [a], [m], axes, np.float64)
        others = lax.add(blocked_sum(_below, [a], [m], axes, np.float64), lax.sub(ties, lax.full_like(ties, 1)))
        return lax.convert_element_type(lax.add(high, lax.log1p(others)), jnp.float32)


def _below(a: Array, m: Array) -> Array:
    """The terms that are less than the largest; in float64, by lax functions that work under `enable_x64`."""
    wide = lax.convert_element_type(a, np.float64)
    e = lax.exp(lax.sub(wide, lax.convert_element_type(m, np.float64)))
    return lax.select(lax.lt(a, m), e, lax.full_like(e, 0))


def _equal(a: Array, m: Array) -> Array:
    return lax.convert_element_type(lax.eq(a, m), np.float64)


_BLOCK = 1 << 18


def blocked_sum(
    term: Callable[..., Array], arrays: Sequence[Array], rows: Sequence[Array], axes: Axes, dtype: Any = None
) -> Array:
    """The sum of `term(*arrays, *rows)` along the axes, which `rows` have with length 1, without an array of all terms."""
    shape = arrays[0].shape
    dtype = np.dtype(dtype or arrays[0].dtype)
    zero = np.zeros((), dtype)
    size, last = math.prod(shape), len(shape) - 1

    def total(length: int, blocks: Sequence[Array], keep: Array | None) -> Array:
        local = (*shape[:last], length)
        terms = term(*blocks, *(lax.broadcast_in_dim(x, local, tuple(range(last + 1))) for x in rows))
        if keep is not None:
            terms = lax.select(lax.broadcast_in_dim(keep, local, (last,)), terms, lax.full_like(terms, 0))
        return lax.expand_dims(lax.reduce(terms, zero, lax.add, axes), axes)

    if axes != (last,) or is_symbolic(shape) or size <= 2 * _BLOCK:
        return total(shape[-1] if shape else 1, arrays, None) if shape else term(*arrays, *rows)
    length = max(1, _BLOCK * shape[last] // size)
    origin = jnp.zeros((), np.int32)

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        i, sum_so_far = state
        begin = lax.mul(i, np.int32(length))
        start = lax.min(begin, np.int32(shape[last] - length))  # the last block may overlap the one before
        blocks = [lax.dynamic_slice(x, [origin] * last + [start], (*shape[:last], length)) for x in arrays]
        keep = lax.ge(lax.add(lax.iota(np.int32, length), start), begin)
        return lax.add(i, np.int32(1)), lax.add(sum_so_far, total(length, blocks, keep))

    count = -(-shape[last] // length)
    # Adding a term's zero makes the carry vary over the mesh axes as the terms do.
    empty = lax.mul(total(1, [lax.slice_in_dim(x, 0, 1, axis=last) for x in arrays], None), zero)
    empty = lax.select(lax.eq(empty, empty), empty, lax.full_like(empty, 0))
    return lax.while_loop(lambda state: lax.lt(state[0], np.int32(count)), step, (origin, empty))[1]
