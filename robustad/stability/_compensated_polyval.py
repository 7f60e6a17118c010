"""Compensated evaluation of a polynomial and of its derivatives."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from robustad.stability._arguments import joint_shape, numbers, refuse_complex
from robustad.stability._backend import require_error_free
from robustad.stability._compensated_sum import compensated_sum
from robustad.stability._custom_jvp import custom_jvp
from robustad.stability._error_free import two_prod_kernel, two_sum_guarded
from robustad.stability._two_words import Words, from_float64, rounded


def compensated_polyval(p: ArrayLike, x: ArrayLike) -> Array:
    r"""The polynomial $\sum_k p_k x^{n-k}$, as if by Horner's scheme in twice the precision and rounded once.

    $|\hat r - p(x)| \le u |p(x)| + \gamma_{2n}^2 \sum |p_k| |x|^{n-k}$, barring underflow and overflow. Near a multiple root
    `jnp.polyval` loses all digits. float32 and narrower is evaluated in float64, float64 as two words. Derivatives with
    respect to `x`, of all orders, are polynomials evaluated in the same way.

    Args:
        p: coefficients, highest power first, along the first axis; real. Other axes broadcast against `x`.
        x: where; real. Integers and booleans become the default float.

    Returns:
        The values, of the shape to which `x` and a coefficient broadcast; 0 without coefficients.

    Raises:
        TypeError: for complex arguments.
        ValueError: for a scalar `p`.
        BackendError: if the backend's arithmetic does not round each operation once.

    Source: Graillat, Langlois and Louvet, Algorithms for accurate, validated and fast polynomial evaluation, Japan J.
    Indust. Appl. Math. 26 (2009), algorithm 8.

    >>> p = jnp.array([1.0, -3.0, 3.0, -1.0])  # (x - 1) ** 3
    >>> x = jnp.float32(1.01)
    >>> exact = (x - 1) ** 3
    >>> bool(abs(compensated_polyval(p, x) / exact - 1) < 1e-6), bool(abs(jnp.polyval(p, x) / exact - 1) < 1e-6)
    (True, False)
    """
    require_error_free()
    numbers("compensated_polyval", p=p, x=x)
    dtype = jnp.result_type(p, x)
    for argument, array in (("p", p), ("x", x)):
        instead = "For complex polynomials there is `jnp.polyval`."
        refuse_complex("compensated_polyval", argument, jnp.result_type(array), instead)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    p, x = jnp.asarray(p, dtype), jnp.asarray(x, dtype)
    if p.ndim == 0:
        raise ValueError("compensated_polyval: `p` must have an axis of coefficients, got a scalar. Try `p[None]`.")
    shape = joint_shape("compensated_polyval", **{"p[0]": p.shape[1:], "x": x.shape})
    p = p.reshape(p.shape[0], *[1] * (len(shape) - p.ndim + 1), *p.shape[1:])
    return _derivative(0, p, jnp.broadcast_to(x, shape))


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def _derivative(order: int, p: Array, x: Array) -> Array:
    """The derivative of that order at `x`; the axes of `p` but the first are those of `x`, or 1."""
    if p.shape[0] <= order:
        return jnp.zeros_like(x)
    return lax.platform_dependent(
        p, x, tpu=functools.partial(_two_words, order), default=functools.partial(_float64_or_two_words, order)
    )


@functools.partial(_derivative.defjvp, symbolic_zeros=True)
def _derivative_jvp(order: int, primals, tangents):
    (p, x), (dp, dx) = primals, tangents
    value = _derivative(order, p, x)
    tangent = jnp.zeros_like(value)
    if not isinstance(dx, jax.custom_derivatives.SymbolicZero):
        tangent = tangent + _derivative(order + 1, p, x) * dx
    if not isinstance(dp, jax.custom_derivatives.SymbolicZero):
        tangent = tangent + compensated_sum(dp * _powers(order, p.shape[0], x), 0)
    return value, tangent


@functools.partial(custom_jvp, nondiff_argnums=(0, 1))
def _powers(order: int, terms: int, x: Array) -> Array:
    """The derivatives of that order of x ** (terms - 1), ..., x, 1, along a new first axis."""
    weights = _weights(order, terms)[::-1]
    rows = lax.platform_dependent(
        x,
        tpu=functools.partial(_powers_in_two_words, weights),
        default=functools.partial(_powers_in_float64_or_two_words, weights),
    )
    return jnp.concatenate([rows[::-1], jnp.zeros((terms - len(weights), *x.shape), x.dtype)])


@_powers.defjvp
def _powers_jvp(order: int, terms: int, primals, tangents):
    return _powers(order, terms, *primals), _powers(order + 1, terms, *primals) * tangents[0][None]


def _weights(order: int, terms: int) -> list[float]:
    """By what differentiating multiplies the coefficients that remain, highest power first."""
    return [float(math.perm(k, order)) for k in range(terms - 1, order - 1, -1)]


def _float64_or_two_words(order: int, p: Array, x: Array) -> Array:
    if x.dtype == jnp.float64:
        return _two_words(order, p, x)
    dtype = x.dtype
    weights = np.array(_weights(order, p.shape[0]))
    with jax.enable_x64(True):
        p, x = lax.convert_element_type(p, jnp.float64), lax.convert_element_type(x, jnp.float64)

        def step(total: Array, coefficient: tuple[Array, Array]) -> tuple[Array, None]:
            c, weight = coefficient
            return total * x + lax.broadcast_in_dim(c, x.shape, range(x.ndim)) * weight, None

        total, _ = lax.scan(step, lax.full_like(x, 0), (lax.slice_in_dim(p, 0, len(weights)), jnp.asarray(weights)))
        return from_float64(total, dtype)


def _two_words(order: int, p: Array, x: Array) -> Array:
    dtype = x.dtype
    if dtype != jnp.float64:
        p, x = p.astype(jnp.float32), x.astype(jnp.float32)
    weights = np.array(_weights(order, p.shape[0]), x.dtype)

    def step(total: Words, coefficient: tuple[Array, Array]) -> tuple[Words, None]:
        c, weight = coefficient
        high, low = two_prod_kernel(c, weight)
        s, product_error = two_prod_kernel(total[0], x)
        s, sum_error = two_sum_guarded(s, jnp.broadcast_to(high, x.shape))
        return (s, total[1] * x + (product_error + sum_error + low)), None

    zero = jnp.zeros_like(x)
    total, _ = lax.scan(step, (zero, zero), (p[: len(weights)], jnp.asarray(weights)))
    return rounded(total).astype(dtype)


def _powers_in_float64_or_two_words(weights: Sequence[float], x: Array) -> Array:
    """weights[0], weights[1] x, weights[2] x ** 2, ..., each rounded once."""
    if x.dtype == jnp.float64:
        return _powers_in_two_words(weights, x)
    dtype = x.dtype
    with jax.enable_x64(True):
        x = lax.convert_element_type(x, jnp.float64)

        def step(power: Array, weight: Array) -> tuple[Array, Array]:
            return power * x, from_float64(power * weight, dtype)

        return lax.scan(step, lax.full_like(x, 1), jnp.asarray(np.array(weights)))[1]


def _powers_in_two_words(weights: Sequence[float], x: Array) -> Array:
    dtype = x.dtype
    if dtype != jnp.float64:
        x = x.astype(jnp.float32)

    def step(power: Words, weight: Array) -> tuple[Words, Array]:
        value, error = two_prod_kernel(power[0], weight)
        following, lost = two_prod_kernel(power[0], x)
        return (following, power[1] * x + lost), rounded((value, power[1] * weight + error))

    words = jnp.ones_like(x), jnp.zeros_like(x)
    return lax.scan(step, words, jnp.asarray(np.array(weights, x.dtype)))[1].astype(dtype)
