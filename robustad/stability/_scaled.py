"""Products as a mantissa and an exponent of two, which neither overflow nor underflow."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from . import _words as words
from ._arguments import Axes, Axis, axes_of, inexact, keep, mask_of, refuse_complex, working
from ._custom_jvp import custom_jvp
from ._primitive import batch_first, linear_primitive


def _mantissa_and_exponent(x: Array) -> tuple[Array, Array]:
    """x = m 2ᵏ with 1/2 ≤ |m| < 1, by its bits: subnormal numbers too. (x, 0) for 0, infinities and NaN."""
    info = np.finfo(np.dtype(x.dtype))
    integer = jnp.int32 if x.dtype == jnp.float32 else jnp.int64
    mask = np.array((1 << info.nmant) - 1, integer)
    bias = -info.minexp + 1  # of the exponent field

    def field(bits: Array) -> Array:
        return (bits >> info.nmant) & np.array((1 << info.nexp) - 1, integer)

    bits = lax.bitcast_convert_type(x, integer)
    subnormal = field(bits) == 0
    counted = (bits & mask).astype(x.dtype)  # a whole number: exact
    y = jnp.where(subnormal, lax.bitcast_convert_type(counted, integer), bits)
    negative = bits < 0
    m = lax.bitcast_convert_type((y & mask) | np.array((bias - 1) << info.nmant, integer), x.dtype)
    k = field(y) - (bias - 1) + jnp.where(subnormal, info.minexp - info.nmant, 0)
    special = (counted == 0) & subnormal | ~jnp.isfinite(x)
    return jnp.where(special, x, jnp.where(negative, -m, m)), jnp.where(special, 0, k).astype(jnp.int32)


# A primitive, as `_words.scaled_down` is.
_mantissa = linear_primitive(
    "mantissa",
    kernels={None: lambda x, k: _mantissa_and_exponent(x)[0]},
    shape=lambda x, k: x * k.astype(x.dtype),
    transposes={},
    batch=lambda size, operands, batch_axes: _mantissa(*batch_first(size, operands, batch_axes)),
    tangents={0: lambda t, k: words.scale(t, -k)},
)


def _split(x: Array) -> tuple[Array, Array]:
    """As `_mantissa_and_exponent`, of which the exponent has no derivative."""
    k = _mantissa_and_exponent(lax.stop_gradient(x))[1]
    return _mantissa(x, k), k


Scaled = tuple[Array, Array]


def _times(a: Scaled, b: Scaled) -> Scaled:
    m, k = _split(a[0] * b[0])
    return m, a[1] + b[1] + k


def _front(x: Array, axes: Axes) -> Array:
    """The axes flattened into the first."""
    moved = jnp.moveaxis(x, axes, range(len(axes)))
    return moved.reshape(math.prod(moved.shape[: len(axes)]), *moved.shape[len(axes) :]) if axes else x[None]


# The product of 16 mantissas is at least 2⁻¹⁶. Where one of them is 0, its derivative is such a product on each level,
# and is not scaled again: 2⁻¹¹² after seven levels, of 2²⁸ factors.
_GROUP = 16


@functools.partial(jax.jit, static_argnums=1)
def _product(x: Array, axes: Axes) -> Scaled:
    """Groups of 16 by halving, then their products, and so on."""
    m, k = _split(_front(x, axes))
    if 0 in m.shape[1:]:
        return m[:0].sum(0), k[:0].sum(0, dtype=jnp.int32)
    while m.shape[0] != 1:
        group = min(_GROUP, 1 << (max(m.shape[0], 1) - 1).bit_length())
        padding = [(0, -m.shape[0] % group if m.shape[0] else 1)] + [(0, 0)] * (m.ndim - 1)
        m, k = jnp.pad(m, padding, constant_values=1), jnp.pad(k, padding)
        k = jnp.sum(k.reshape(group, -1, *k.shape[1:]), 0, dtype=jnp.int32)
        while m.shape[0] > k.shape[0]:
            half = m.shape[0] // 2
            m = m[:half] * m[half:]
        m, more = _split(m)
        k = k + more
    return m[0], k[0]


def _plain(scaled: Scaled) -> Array:
    m, k = scaled
    limit = 2 * (int(jnp.finfo(m.dtype).maxexp) - 2)
    return words.scale(m, jnp.clip(k, -limit, limit))


@functools.partial(custom_jvp, nondiff_argnums=(1,))
def _prod(x: Array, axes: Axes) -> Array:
    return _plain(_product(x, axes))


@_prod.defjvp
def _prod_jvp(axes: Axes, primals: tuple[Array], tangents: tuple[Array]):
    others = _leave_one_out(_front(primals[0], axes))
    return _prod(primals[0], axes), jnp.sum(others * _front(tangents[0], axes), 0)


def _leave_one_out(x: Array) -> Array:
    """The product of all the others, for each entry along the first axis."""
    if x.shape[0] == 0:
        return x
    factors = _split(x)
    one = _split(jnp.ones_like(x[:1]))
    before = lax.associative_scan(_times, factors)
    after = lax.associative_scan(_times, factors, reverse=True)
    m, k = (jnp.concatenate([o, y[:-1]]) for o, y in zip(one, before))
    n, l = (jnp.concatenate([y[1:], o]) for o, y in zip(one, after))
    return _plain(_times((m, k), (n, l)))


def scaled_prod(
    x: ArrayLike, axis: Axis = None, *, keepdims: bool = False, where: ArrayLike | None = None
) -> tuple[Array, Array]:
    r"""The product as (mantissa, exponent): :math:`\prod x = m\, 2^k` with :math:`1/2 \le |m| < 1`.

    `jnp.prod` overflows and underflows in the middle: :math:`2^{5000} \cdot 2^{-5000}` of factors 2 and 1/2 is NaN
    or 0. Here every partial product is scaled by a power of two, which is exact. The relative error is at most (n -
    1) units of rounding, :math:`\log_2 n` of them on any path.

    The derivative of the mantissa is that of the product times :math:`2^{-k}`, also at factors that are zero: there
    it is the product of the others. k has no derivative.

    Args:
      x: real array; subnormal numbers count.
      axis: the dimension or dimensions to multiply along; None for all.
      keepdims: whether these dimensions stay, with length 1.
      where: bool array that broadcasts to the shape of `x`; elements that are False do not count.

    Returns:
      The mantissa, of the dtype of `x` (float32 for narrower floats), and the exponent, int32. Where a factor is 0
      the mantissa is 0, and the exponent that of the other factors. Infinities and NaN are in the mantissa.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> m, k = st.scaled_prod(jnp.concatenate([jnp.full(5000, 2.0), jnp.full(5000, 0.5)]))
    >>> print(m, k)
    0.5 1
    """
    y, _ = working("scaled_prod", x, "x", _OF_COMPLEX)
    axes = axes_of("scaled_prod", axis, y.ndim)
    m, k = _product(_masked(y, mask_of("scaled_prod", where, y.shape)), axes)
    return keep(m, axes, keepdims), keep(k, axes, keepdims)


def prod(
    x: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    *,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    """The product, right wherever it can be represented, whatever its partial products are.

    `jnp.prod` of 200 factors 2 and 200 factors 1/2 is inf or 0 in float32, depending on their order. The derivative
    in a factor is the product of the others, formed from both sides and not by division: right at zeros, and where
    the product itself underflows but the derivative does not.

    Args:
      x: real array.
      axis: the dimension or dimensions to multiply along; None for all.
      dtype: of the result, by default that of `x`; the factors are not rounded to it.
      keepdims: whether these dimensions stay, with length 1.
      where: bool array that broadcasts to the shape of `x`; elements that are False do not count.

    Returns:
      An array of that dtype; 1 for no factors.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> print(st.prod(jnp.array([1e30, 1e30, 1e-30, 1e-30])), jax.grad(st.prod)(jnp.array([0.0, 3.0, 4.0])))
    1.0 [12.  0.  0.]
    """
    y, result = working("prod", x, "x", _OF_COMPLEX)
    if dtype is not None:
        y, result = inexact("prod", y, dtype)
        refuse_complex("prod", "dtype", result, "The product is real.")
    axes = axes_of("prod", axis, y.ndim)
    value = _compiled_prod(_masked(y, mask_of("prod", where, y.shape)), axes)
    return keep(value, axes, keepdims).astype(result)


_OF_COMPLEX = "Multiply the magnitudes, `jnp.abs(x)`, and add the angles, `jnp.angle(x)`; or use `jnp.prod`."


def _masked(x: Array, mask: Array | None) -> Array:
    return x if mask is None else jnp.where(mask, x, jnp.ones((), x.dtype))


_compiled_prod = jax.jit(_prod, static_argnums=1)
