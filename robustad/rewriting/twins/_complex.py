"""Twins of the length, the direction and the quotient of complex numbers."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from robustad._jaxpr import Equation, aval
from robustad.stability import _plane
from robustad.stability._custom_jvp import custom_jvp

from ._twin import Arrays, Entry, Maker, in_float64


@custom_jvp
def _length(z: Array) -> Array:
    return lax.abs(z)


@_length.defjvp
def _length_jvp(primals: Sequence[Array], tangents: Sequence[Array]):
    (z,), (t,) = primals, tangents
    with in_float64(z):
        x, y = lax.real(z), lax.imag(z)
        along = _plane._hypot_x(x, y) * lax.real(t) + _plane._hypot_y(x, y) * lax.imag(t)
        return _length(z), along


@custom_jvp
def _direction(z: Array) -> Array:
    return lax.sign(z)


@_direction.defjvp
def _direction_jvp(primals: Sequence[Array], tangents: Sequence[Array]):
    (z,), (t,) = primals, tangents
    with in_float64(z):
        x, y = lax.real(z), lax.imag(z)
        u, v = _plane._hypot_x(x, y), _plane._hypot_y(x, y)
        turn = (u * lax.imag(t) - v * lax.real(t)) / _length(z)
        return _direction(z), lax.complex(-v * turn, u * turn)


@custom_jvp
def _quotient(x: Array, y: Array) -> Array:
    return lax.div(x, y)


def _quotient_jvp(primals: Sequence[Array], tangents: Sequence[Any]):
    (x, y), (tx, ty) = primals, tangents
    with in_float64(x):
        q = _quotient(x, y)
        terms = [] if isinstance(tx, SymbolicZero) else [_quotient(tx, y)]
        if not isinstance(ty, SymbolicZero):
            terms.append(-q * _quotient(ty, y))
        return q, functools.reduce(operator.add, terms)


_quotient.defjvp(_quotient_jvp, symbolic_zeros=True)


def quotient(eqn: Equation) -> Arrays | None:
    """x/y with the derivatives t/y and -(x/y) t/y: JAX squares y."""
    if not all(jnp.issubdtype(aval(a).dtype, jnp.complexfloating) for a in eqn.invars):
        return None
    return lambda *operands: [_quotient(*operands)]


def _of_complex(function: Callable[[Array], Array]) -> Maker:
    def make(eqn: Equation) -> Arrays | None:
        if not jnp.issubdtype(aval(eqn.invars[0]).dtype, jnp.complexfloating):
            return None
        return lambda z: [function(z)]

    return make


TABLE: dict[str, Entry] = {
    "abs": Entry("z/|z| is NaN at infinity, and of tiny z it is flushed", _of_complex(_length)),
    "sign": Entry("the derivative of z/|z| is 0 on some versions", _of_complex(_direction)),
}
