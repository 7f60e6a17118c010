"""A twin: the same primitive with another derivative.

The value is the primitive's own, bit for bit (or a better one, given as `value`). The derivative is written as `jax.lax`
writes its own, one term per operand, `term(t, y, *x)` with the tangent t, the value y and the operands x; linear in t.
What a term is made of has accurate derivatives in its turn: twins, `smooth` functions, or products and selections.

Only a selection may make a tangent zero: a product with 0 would be NaN where the cotangent is infinite.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from robustad._jaxpr import Equation, aval
from robustad.stability._custom_jvp import custom_jvp
from robustad.stability._width import in_float64 as in_float64

Term = Callable[..., Array]
Arrays = Callable[..., list[Array]]


@dataclasses.dataclass(frozen=True)
class Twin:
    """What stands in for an equation.

    name: of the primitive or function that it stands for.
    function: from the operands to the outputs, of the equation's shapes and dtypes.
    reason: where the plain one fails.
    """

    name: str
    function: Arrays
    reason: str


Maker = Callable[[Equation], Arrays | None]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of a table: why, and how a twin is made of an equation (None where the plain one is right)."""

    reason: str
    make: Maker


def is_real(eqn: Equation) -> bool:
    """Whether all operands and outputs are real floats of at least 16 bits."""
    return all(
        jnp.issubdtype(aval(atom).dtype, jnp.floating) and jnp.finfo(aval(atom).dtype).bits >= 16
        for atom in (*eqn.invars, *eqn.outvars)
    )


def constant(x: Array, value: float) -> Array:
    return lax.full_like(x, value)


# -------------------------------------------------------------------------------------------- functions of each element


@dataclasses.dataclass(frozen=True)
class _Kernel:
    value: Callable[..., Array]
    terms: tuple[Term, ...]
    transposed: Callable[..., Any] | None = None


@functools.partial(custom_jvp, nondiff_argnums=(0,), over_leading_axes=True)
def _elementwise(kernel: _Kernel, *operands: Array) -> Array:
    return kernel.value(*aligned(operands))


def _elementwise_rule(kernel: _Kernel, primals: Sequence[Array], tangents: Sequence[Any]) -> tuple[Array, Any]:
    with in_float64(*primals):
        y = _elementwise(kernel, *primals)
        x = aligned(primals)
        terms = [
            _spread(term(_spread(jnp.asarray(t), y), y, *x), y)
            for term, t in zip(kernel.terms, tangents)
            if not isinstance(t, SymbolicZero)
        ]
        return y, functools.reduce(operator.add, terms)


_elementwise.defjvp(_elementwise_rule, symbolic_zeros=True)


@_elementwise.deftranspose
def _elementwise_transpose(kernel: _Kernel, linear: tuple[int, ...], cotangent: Array, *operands: Any) -> Any:
    return kernel.transposed(linear, cotangent, *operands) if kernel.transposed else None


def aligned(operands: Sequence[Array]) -> Sequence[Array]:
    """The operands in one shape. Those of equations are, and `vmap` adds leading axes of size 1."""
    if len({x.shape for x in operands}) == 1:
        return operands
    return jnp.broadcast_arrays(*operands)


def _spread(x: Array, like: Array) -> Array:
    return x if x.shape == like.shape else jnp.broadcast_to(x, like.shape)


def elementwise(
    value: Callable[..., Array], *terms: Term, transposed: Callable[..., Any] | None = None
) -> Callable[..., Array]:
    """A function of arrays of one shape and dtype (scalars are spread) with these derivative terms."""
    kernel = _Kernel(value, terms, transposed)

    def function(*operands: Array) -> Array:
        return _elementwise(kernel, *aligned(operands))

    return function


def smooth(*partials: Callable[..., Array]) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Makes a formula a function with these partial derivatives, for use inside of terms.

    A narrow dtype is computed in float32 and rounded once. Without partials the formula itself is differentiated.
    """

    def decorate(formula: Callable[..., Array]) -> Callable[..., Array]:
        value = _widened(formula)
        if not partials:
            return value
        return elementwise(value, *(functools.partial(_times, partial) for partial in partials))

    return decorate


def _widened(formula: Callable[..., Array]) -> Callable[..., Array]:
    def value(*x: Array) -> Array:
        dtype = x[0].dtype
        if jnp.finfo(dtype).bits >= 32:
            return formula(*x)
        return lax.convert_element_type(formula(*(lax.convert_element_type(a, jnp.float32) for a in x)), dtype)

    return value


def _times(partial: Callable[..., Array], t: Array, y: Array, *x: Array) -> Array:
    return t * partial(*x)


def with_value(second: Callable[..., Array]) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Makes a formula of an argument x and of the value y at x, which saves computing that again, a term.

    `second` is its derivative in x; the formula is never differentiated in y.
    """

    def decorate(formula: Callable[..., Array]) -> Term:
        slope = elementwise(_widened(formula), lambda t, s, x, y: t * second(x), _no_term)
        return lambda t, y, x: t * slope(x, lax.stop_gradient(y))

    return decorate


def _no_term(*_: Array) -> Array:
    raise TypeError("the value that a slope is computed from carries no derivative")


@dataclasses.dataclass(frozen=True)
class Bound:
    """A primitive with its parameters, as a function."""

    primitive: Any
    params: tuple[tuple[str, Any], ...]

    def __call__(self, *operands: Array) -> Any:
        return self.primitive.bind(*operands, **dict(self.params))


def bound(eqn: Equation) -> Bound:
    return Bound(eqn.primitive, tuple(sorted(eqn.params.items())))


def by_terms(
    reason: str,
    *terms: Term,
    value: Callable[..., Array] | None = None,
    transposed: Callable[..., Any] | None = None,
) -> Entry:
    """The twin of an elementwise primitive of real floats."""

    def make(eqn: Equation) -> Arrays | None:
        if not is_real(eqn):
            return None
        function = elementwise(value or bound(eqn), *terms, transposed=transposed)
        return lambda *operands: [function(*operands)]

    return Entry(reason, make)


def by_slope(reason: str, *slopes: Callable[..., Array], value: Callable[..., Array] | None = None) -> Entry:
    """The twin whose derivative in each operand is t times a `smooth` function of the operands."""
    return by_terms(reason, *(functools.partial(_times, slope) for slope in slopes), value=value)
