r"""Matrix products of exponentials.

:math:`e^{a_{ik}} e^{b_{kj}}`, scaled by the maximum of each row of a and each column of b, is a matrix product of
numbers up to 1. Terms that are lost to underflow are each below the smallest normal number; they matter only in an
entry whose sum is itself that small: where the maximum of a row meets the low end of a column. Those entries, if
there are any, are summed term by term.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import _normalizer as normalizer
from ._arguments import numbers, refuse_complex, working
from ._custom_jvp import custom_jvp
from ._logsumexp import OF_COMPLEX


def _peaks(x: Array, axis: int) -> Array:
    """The shift of each row or column; its derivative cancels."""
    m = normalizer.maximum(lax.stop_gradient(x), (x.ndim + axis,))
    return jnp.clip(m, jnp.finfo(x.dtype).min, jnp.finfo(x.dtype).max)


def _scaled(x: Array, peak: Array) -> Array:
    return jnp.exp(jnp.minimum(x - peak, 0))


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _product(a: Array, b: Array) -> Array:
    """Σ exp(a - peak) exp(b - peak)."""
    return _matmul(_scaled(a, _peaks(a, -1)), _scaled(b, _peaks(b, -2)))


def _weak(a: Array, b: Array, product: Array, least: float) -> Array:
    """Entries below k times `least`, but not for want of a term: lost terms, or the range of derivatives, may matter."""
    small = product < max(a.shape[-1], 1) * least

    def with_terms() -> Array:
        terms = _matmul((a > -jnp.inf).astype(a.dtype), (b > -jnp.inf).astype(b.dtype))
        return terms > 0

    has_terms = normalizer.repaired(small, jnp.zeros_like(small), with_terms)
    return small & has_terms


def _steps(a: Array, b: Array) -> tuple[Array, Array]:
    """The columns of a and the rows of b, for a scan over k, broadcast against each other."""
    batch = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a = jnp.broadcast_to(a, batch + a.shape[-2:])
    b = jnp.broadcast_to(b, batch + b.shape[-2:])
    return jnp.moveaxis(a, -1, 0)[..., :, None], jnp.moveaxis(b, -2, 0)[..., None, :]


def _term_by_term(a: Array, b: Array, like: Array) -> Array:
    """log Σ exp(a + b), a term at a time for all entries at once: the maxima first, then the sum."""
    xs = _steps(a, b)
    lowest = jnp.full_like(like, jnp.finfo(like.dtype).min)
    m = lax.scan(lambda m, x: (jnp.maximum(m, x[0] + x[1]), None), lowest, xs)[0]
    c = normalizer.shift(m)
    s = lax.scan(lambda s, x: (s + normalizer.terms(x[0] + x[1], c), None), jnp.zeros_like(like), xs)[0]
    return jnp.where(m == jnp.inf, jnp.inf, c + lax.log(s))


@functools.partial(custom_jvp, over_leading_axes=True)
def _log_matmul(a: Array, b: Array) -> Array:
    """Of arrays of as many dimensions."""
    product = _product(a, b)
    value = _peaks(a, -1) + _peaks(b, -2) + lax.log(product)
    infinite = (jnp.max(a, -1, keepdims=True, initial=-jnp.inf) == jnp.inf) | (
        jnp.max(b, -2, keepdims=True, initial=-jnp.inf) == jnp.inf
    )
    info = jnp.finfo(a.dtype)
    wrong = _weak(a, b, product, float(info.smallest_normal) / float(info.eps) ** 2) | infinite
    return normalizer.repaired(wrong, value, lambda: _term_by_term(a, b, value))


@_log_matmul.defjvp
def _log_matmul_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    (a, b), (da, db) = primals, tangents
    value = _log_matmul(a, b)
    product = lax.stop_gradient(_product(a, b))
    info = jnp.finfo(a.dtype)
    least = math.sqrt(float(info.smallest_normal) / float(info.eps))  # the square of its inverse is in range
    weak = _weak(lax.stop_gradient(a), lax.stop_gradient(b), product, least) | (value == jnp.inf)

    def scaled(da: Array, db: Array) -> Array:
        left, right = _scaled_for_derivative(a, -1), _scaled_for_derivative(b, -2)
        total = _matmul(left, right)
        inverse = 1 / jnp.where(total == 0, 1, total)
        return (_matmul(left * da, right) + _matmul(left, right * db)) * inverse

    def exact(da: Array, db: Array) -> Array:
        return _expectation(a, b, value, da, db)

    return value, lax.cond(jnp.any(weak), exact, scaled, da, db)


def _scaled_for_derivative(x: Array, axis: int) -> Array:
    return jnp.exp(x - _peaks(x, axis))


def _expectation(a: Array, b: Array, value: Array, da: Array, db: Array) -> Array:
    """Σ exp(a + b - value) (da + db), a term at a time."""
    safe = jnp.where(value == -jnp.inf, 0, value)
    ties = _ties(a, b, value)

    @jax.checkpoint
    def step(total: Array, x: tuple[tuple[Array, Array], tuple[Array, Array]]) -> tuple[Array, None]:
        (a, b), (da, db) = x
        finite = jnp.where(value == jnp.inf, 0, jnp.exp(jnp.where(value == jnp.inf, 0, a + b - safe)))
        weight = jnp.where((value == jnp.inf) & (a + b == jnp.inf), 1 / ties, finite)
        return total + weight * (da + db), None

    return lax.scan(step, jnp.zeros_like(value), (_steps(a, b), _steps(da, db)))[0]


def _ties(a: Array, b: Array, value: Array) -> Array:
    """How many terms are infinite."""
    count = lax.scan(
        lambda n, x: (n + (x[0] + x[1] == jnp.inf).astype(n.dtype), None),
        jnp.zeros_like(value),
        lax.stop_gradient(_steps(a, b)),
    )[0]
    return jnp.maximum(count, 1)


_compiled = jax.jit(_log_matmul)


def log_matmul(a: ArrayLike, b: ArrayLike) -> Array:
    r""":math:`\log \sum_k e^{a_{ik}} e^{b_{kj}}`: the product of two matrices that are given by their logarithms.

    `jnp.log(jnp.exp(a) @ jnp.exp(b))` overflows at 88.7 and is -inf below -104 (float32). With each row of a and
    each column of b scaled by its maximum, still every entry is lost whose terms lie more than 87 below the product
    of the maxima. Here the scaled product is used (as fast as a matrix product and the exponentials), and only if an
    entry of it is so small that lost terms matter, all entries are summed term by term too: then about 10 times
    slower, with no array larger than the result.

    The error is about k/2 units of rounding in the exponential of the result, as of a matrix product. An entry of
    -inf is a zero, with zero derivative; a sum without terms is -inf. Derivatives go the same two ways, term by term where
    an entry is below 3e-16 (1e-146 in float64) of the product of the maxima.

    Args:
      a: real array (..., n, k), or (k,).
      b: real array (..., k, m), or (k,).

    Returns:
      An array (..., n, m), as `jnp.matmul` shapes it.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> x = jnp.full((4, 4), -200.0)
    >>> print(st.log_matmul(x, x)[0, 0], jnp.log(jnp.exp(x) @ jnp.exp(x))[0, 0])
    -398.6137 -inf
    """
    numbers("log_matmul", a=a, b=b)
    for argument, z in (("a", a), ("b", b)):
        refuse_complex("log_matmul", argument, jnp.result_type(z), OF_COMPLEX)
    dtype = jnp.result_type(a, b)
    x, kind = working("log_matmul", jnp.asarray(a, dtype), "a", OF_COMPLEX)
    y, _ = working("log_matmul", jnp.asarray(b, dtype), "b", OF_COMPLEX)
    if not x.ndim or not y.ndim or x.shape[-1] != y.shape[max(y.ndim - 2, 0)]:
        raise ValueError(
            f"log_matmul: `a` has shape {x.shape} and `b` {y.shape}; expected (..., n, k) and (..., k, m), or vectors (k,)."
        )
    row, column = x.ndim == 1, y.ndim == 1
    x, y = x[None] if row else x, y[:, None] if column else y
    ndim = max(x.ndim, y.ndim)
    value = _compiled(lax.expand_dims(x, range(ndim - x.ndim)), lax.expand_dims(y, range(ndim - y.ndim)))
    if row:
        value = value[..., 0, :]
    return (value[..., 0] if column else value).astype(kind)
