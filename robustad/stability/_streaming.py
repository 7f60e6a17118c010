"""Logsumexp in pieces: a mergeable state, long axes by chunks."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from . import _normalizer as normalizer
from ._arguments import axes_of, axis_of, integer, joint_shape, names, numbers, refuse_complex, without, working
from ._custom_jvp import custom_jvp
from ._logsumexp import OF_COMPLEX


def _room(x: Array) -> float:
    """T, half of that of `logsumexp`: second derivatives divide by the square of the sum."""
    return 0.5 * normalizer.room(x.dtype)


@custom_jvp
def _terms(a: Array, c: Array) -> Array:
    return normalizer.terms(a, c, _room(a))


@_terms.defjvp
def _terms_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    value = _terms(*primals)
    return value, value * tangents[0]  # the sum is of any shift the same


def _shift(m: Array) -> Array:
    return normalizer.shift(lax.stop_gradient(m), _room(m))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["maximum", "sum"], meta_fields=[])
@dataclass(frozen=True)
class LogSumExp:
    r"""A sum :math:`\sum b\, e^a` that does not overflow, in pieces: a commutative monoid, and a pytree that a scan
    can carry.

    `maximum` is the largest a so far (the lowest finite number at first); `sum` is :math:`\sum b\, e^{a - c}`, with c
    a number that follows from `maximum` (`_normalizer.py`). States merge in any order with an error of 2 ulp
    for each merge that raises c; for a maximum between 0 and 32 (256 in float64) c stays 0 and merging is addition.

    The derivative of `finalize` in all that was added is right and finite as that of `logsumexp` (shares below
    :math:`e^{-32}` within 32 ulp in float32); entries of -inf get 0. Second derivatives cancel where one entry has
    nearly the whole sum; those of `logsumexp` do not.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> state = st.LogSumExp.init()
    >>> for x in (jnp.array([1000.0, 999.0]), jnp.array([1001.0])):
    ...     state = state.add(x)
    >>> print(state.finalize())
    1001.4076
    """

    maximum: Array
    sum: Array

    @classmethod
    def init(cls, shape: tuple[int, ...] = (), dtype: DTypeLike | None = None) -> LogSumExp:
        """The empty sum, of value -inf."""
        kind = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
        if kind not in (jnp.float32, jnp.float64):
            raise TypeError(f"LogSumExp.init: `dtype` is {kind}, expected float32 or float64: sums need the digits.")
        return cls(jnp.full(shape, jnp.finfo(kind).min, kind), jnp.zeros(shape, kind))

    def add(self, a: ArrayLike, axis: int | tuple[int, ...] = -1, b: ArrayLike | None = None) -> LogSumExp:
        """With the entries of `a` along `axis`, whose other dimensions are those of the state; `b` are weights."""
        numbers("LogSumExp.add", a=a, **({} if b is None else {"b": b}))
        for argument, y in (("a", a), ("b", b)):
            if y is not None:
                refuse_complex("LogSumExp.add", argument, jnp.result_type(y), OF_COMPLEX)
        x = jnp.asarray(a, self.sum.dtype)
        counted, weights = x, None
        if b is not None:
            shape = joint_shape("LogSumExp.add", a=jnp.shape(a), b=jnp.shape(b))
            x, weights = (jnp.broadcast_to(y, shape) for y in (x, jnp.asarray(b, x.dtype)))
            x, weights = normalizer.with_moderate_weights(x, weights)
            x = jnp.where((weights == 0) & jnp.isnan(x), -jnp.inf, x)
            counted = jnp.where(weights == 0, -jnp.inf, x)
        axes = axes_of("LogSumExp.add", axis, x.ndim)
        if without(x.shape, axes) != self.sum.shape:
            raise ValueError(
                f"LogSumExp.add: `a` of shape {x.shape} summed over axes {axes} has shape {without(x.shape, axes)}; "
                f"the state has {self.sum.shape}. Give the axes to sum over as `axis`, or make the state by "
                "`LogSumExp.init(shape)`."
            )
        m = normalizer.maximum(lax.stop_gradient(counted), axes)
        e = _terms(x, _shift(m))
        terms = e if weights is None else e * weights
        return self.merge(LogSumExp(jnp.squeeze(m, axes), jnp.sum(terms, axes)))

    def merge(self, other: LogSumExp) -> LogSumExp:
        """The sum of both."""
        m = jnp.maximum(self.maximum, other.maximum)
        return LogSumExp(m, self._at(m) + other._at(m))

    def psum(self, axis_name: str | tuple[str, ...]) -> LogSumExp:
        """The sum over mesh axes, inside `jax.shard_map`; differentiated as `jax.lax.psum` is."""
        names("LogSumExp.psum", axis_name)
        m = _largest(self.maximum, axis_name)
        return LogSumExp(m, lax.psum(self._at(m), axis_name))

    def _at(self, m: Array) -> Array:
        """The sum at the shift of a larger maximum."""
        return self.sum * jnp.exp(_shift(self.maximum) - _shift(m))

    def finalize(self) -> Array:
        """The logarithm of the sum's absolute value."""
        some = self.sum != 0
        value = _shift(self.maximum) + jnp.log(jnp.abs(jnp.where(some, self.sum, 1)))
        return jnp.where(some, jnp.where(self.maximum == jnp.inf, value + jnp.inf, value), -jnp.inf)

    def sign(self) -> Array:
        """The sign of the sum."""
        return jnp.sign(self.sum)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest(m: Array, axis_name: Any) -> Array:
    return lax.pmax(m, axis_name)


@_largest.defjvp
def _largest_jvp(axis_name: Any, primals: tuple[Array], tangents: tuple[Array]):
    largest = _largest(primals[0], axis_name)
    return largest, jnp.zeros_like(largest)  # a maximum is only a shift


def chunked_logsumexp(a: ArrayLike, chunk_size: int, axis: int = -1) -> Array:
    """`logsumexp` along one axis, a chunk at a time: no temporary array is as long as the axis, forward or backward.

    The chunks are summed by `LogSumExp` in a scan whose body is computed again in the backward pass. Along another
    axis than the first the scan needs a transposed copy of `a`. For logits that are themselves made in chunks use
    `LogSumExp`. The error is a few ulp of the largest entry or of the result: where the two cancel to a result near 0,
    `logsumexp` is more accurate.

    Args:
      a: real array.
      chunk_size: how many entries are exponentiated at once.
      axis: the dimension to sum over.

    Returns:
      An array of the dtype of `a`, without that dimension.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> print(st.chunked_logsumexp(jnp.arange(1000.0), 64))
    999.4587
    """
    x, dtype = working("chunked_logsumexp", a, "a", OF_COMPLEX)
    i = axis_of("chunked_logsumexp", axis, x.ndim)
    chunk_size = integer("chunked_logsumexp", "chunk_size", chunk_size)
    if chunk_size < 1:
        raise ValueError(f"chunked_logsumexp: `chunk_size` is {chunk_size}, expected at least 1.")
    return _in_chunks(x, chunk_size, i).astype(dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _in_chunks(x: Array, chunk_size: int, axis: int) -> Array:
    x = jnp.moveaxis(x, axis, 0)
    whole = x.shape[0] - x.shape[0] % chunk_size

    @jax.checkpoint
    def step(state: LogSumExp, chunk: Array) -> tuple[LogSumExp, None]:
        return state.add(chunk, 0), None

    empty = LogSumExp(*(jnp.zeros_like(x[0] if x.shape[0] else x.sum(0)) + y for y in _empty(x)))
    state, _ = lax.scan(step, empty, x[:whole].reshape(-1, chunk_size, *x.shape[1:]))
    return state.add(x[whole:], 0).finalize()


def _empty(x: Array) -> tuple[Array, Array]:
    state = LogSumExp.init(x.shape[1:], x.dtype)
    return state.maximum, state.sum
