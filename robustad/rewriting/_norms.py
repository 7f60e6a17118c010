"""Norms, by hand or of the library, and the functions of them that are smooth where they are 0 (`expressions/_radial`)."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from robustad import stability as st
from robustad.rewriting._graph import Step, Term, scalar, unwrapped
from robustad.rewriting._layout import reduced_axes, spread
from robustad.rewriting._log_space import squared
from robustad.rewriting._rewriter import Rewriter, fitted, replaced, rule
from robustad.rewriting._softmax import placed
from robustad.rewriting.twins._composites import composite
from robustad.rewriting.twins._composites_reductions import first_axes, order
from robustad.stability._custom_jvp import custom_jvp
from robustad.stability._norms import norm_and_units


class Norm(NamedTuple):
    """A term as factor · ‖x‖ over axes; `shaped` gives a reduced array the shape of the term."""

    x: Term
    axes: tuple[int, ...]
    factor: float
    shaped: Callable[[Array], Array]


def norm_of(term: Term) -> Norm | None:
    """What a term is the 2-norm of: √(c Σ x²), or a call of `jnp.linalg.norm`."""
    if not jnp.issubdtype(term.dtype, jnp.floating):
        return None
    if term.name == "sqrt" and (found := scaled_sum_of_squares(term.operands[0])) is not None:
        x, axes, dims, c = found
        return Norm(x, axes, math.sqrt(c), lambda a: placed(a, dims, term.shape))
    eqn = term.step.equation
    if term.name != "jit" or term.params.get("name") != "norm" or eqn is None:
        return None
    (x, *more), whole = term.operands, composite(eqn)
    if more or whole is None or whole.name != "norm" or order(eqn) is not None or x.dtype != term.dtype:
        return None
    return Norm(x, first_axes(eqn), 1.0, lambda a: jnp.reshape(a, term.shape))


def sum_of_squares(term: Term) -> tuple[Term, tuple[int, ...], tuple[int, ...]] | None:
    """(x, axes, dims) where a term is Σ x² over axes, spread with the axes of the sum at dims."""
    seen = spread(term)
    inner = seen.source
    if inner.name == "convert_element_type" and inner.operands[0].name == "reduce_sum":
        (inner,) = inner.operands  # of 16 bits, added up in float32
    if (axes := reduced_axes(inner, "reduce_sum")) is not None:
        x = squared(unwrapped(inner.operands[0]))
        return None if x is None or not x.floating else (x, axes, seen.dims)
    if inner.name == "dot_general" and inner.operands[0] is inner.operands[1]:
        (x, _), (left, right), (batch, _) = inner.operands, *inner.params["dimension_numbers"]
        if left == right and not batch and len(left) == len(x.shape) and x.floating:
            return x, tuple(range(len(x.shape))), seen.dims
    return None


def scaled_sum_of_squares(term: Term) -> tuple[Term, tuple[int, ...], tuple[int, ...], float] | None:
    """(x, axes, dims, c) where a term is c Σ x², c a positive constant."""
    if (plain := sum_of_squares(term)) is not None:
        return (*plain, 1.0)
    inner = unwrapped(term)
    if inner.name == "convert_element_type":
        inner = unwrapped(inner.operands[0])  # a mean of 16 bits
    if inner.name not in ("mul", "div"):
        return None
    for total, factor in (inner.operands, inner.operands[::-1])[: 1 if inner.name == "div" else 2]:
        c = scalar(factor)
        if c is not None and 0 < c < math.inf and (of := sum_of_squares(total)) is not None:
            return (*of, float(1 / c if inner.name == "div" else c))
    return None


def _size(a: Array, axes: tuple[int, ...]) -> Array:
    return st.norm(a, axis=axes) if len(axes) <= 1 else st.norm(_flat(a, axes), axis=-1)


def _scaled(size: Array, factor: float) -> Array:
    return size if factor == 1.0 else size * jnp.asarray(factor, size.dtype)


@rule("sqrt")
def root_of_square(term: Term, rw: Rewriter) -> Term | None:
    """√(x²): x² leaves the range, and the derivative at 0 is 0 · inf."""
    x = squared(unwrapped(term.operands[0]))
    if x is None or not x.floating or x.dtype != term.dtype:
        return None
    return replaced(
        term, "abs", lambda a: jnp.abs(a), [rw(x)], before="sqrt(x²)", after="abs(x)",
        reason="x² leaves the range, and the derivative at 0 is 0 · inf", elementwise=True,
    )  # fmt: skip


@rule("sqrt", "jit")
def norm(term: Term, rw: Rewriter) -> Term | None:
    """√(c Σ x²): the squares leave the range from 1e19 and below 1e-19 (float32), and the derivative at 0 is 0 · inf.

    Where nothing reads it, it is the norm of a vector that has derivatives of every order.
    """
    if (found := norm_of(term)) is None:
        return None
    x, axes, factor, shaped = found

    def run(a: Array) -> Array:
        return shaped(_scaled(_size(a, axes), factor))

    def made(operand: Term, masked: Callable[[Sequence[Term], Term], Term] | None) -> Term:
        by_hand = term.name == "sqrt"
        return replaced(
            term, "norm" if by_hand else "function", run, [operand], masked=masked,
            before="sqrt(sum(x²))" if by_hand else "norm", after="norm(x)" if by_hand else "norm, accurate",
            reason="the squares overflow from 1.8e19 and vanish below 1.1e-19 (float32); the derivative at 0 is 0 · inf",
        )  # fmt: skip

    def masked(operands: Sequence[Term], mask: Term) -> Term:
        (inner,) = operands

        def elsewhere_ones(a: Array, where: Array) -> list[Array]:
            kept = [1 if i in axes else n for i, n in enumerate(a.shape)]
            return [lax.select(jnp.broadcast_to(where.reshape(kept), a.shape), a, lax.full_like(a, 1))]

        return made(Step.of("select", elsewhere_ones, [inner, mask], inner.aval, origin=term.step.origin), None)

    return made(rw(x), masked)


# ---------------------------------------------------------------------------------------- functions of a distance


def radius_and_turn(term: Term, rw: Rewriter) -> tuple[Term, Term]:
    """A norm, and a 0 that has the tangent d · ḋ / max(1, ‖d‖)."""
    found = norm_of(term)
    assert found is not None
    x, axes, factor, shaped = found
    dtype = jnp.promote_types(term.dtype, jnp.float32)

    def run(a: Array) -> list[Array]:
        d = _scaled(lax.convert_element_type(a, dtype), factor)
        return [fitted(shaped, term.aval)(part)[0] for part in _radius(tuple(i - d.ndim for i in axes), d)]

    radius, turn = Step.several("radius", run, [rw(x)], [term.aval, term.aval], origin=term.step.origin)
    return radius, turn


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def _radius(axes: tuple[int, ...], d: Array) -> tuple[Array, Array]:
    size = norm_and_units((axes,), [d])[0]
    return size, jnp.zeros_like(size)


@_radius.defjvp
def _radius_jvp(axes: tuple[int, ...], primals: Sequence[Array], tangents: Sequence[Array]):
    (d,), (t,) = primals, tangents
    size, (units,) = norm_and_units((axes,), [d])
    far = jnp.broadcast_to(jnp.expand_dims(size, axes) > 1, d.shape)
    _, (ahead,) = norm_and_units((axes,), [jnp.where(far, d, jnp.ones_like(d))])
    towards = jnp.where(far, ahead, d)
    return _radius(axes, d), (jnp.sum(units * t, axes), jnp.sum(towards * t, axes))


# ------------------------------------------------------------------------------------------------ other exponents


def _power_of(term: Term) -> tuple[Term, float] | None:
    """(x, n) where a term is |x|ⁿ for a positive constant n."""
    if term.name in ("integer_pow", "square"):
        x, n = term.operands[0], float(term.params.get("y", 2))
    elif term.name == "pow" and (exponent := scalar(term.operands[1])) is not None:
        x, n = term.operands[0], float(exponent)
    else:
        return None
    inner = unwrapped(x)
    positive = inner.name == "abs"
    return (inner.operands[0] if positive else x, n) if n > 0 and (positive or n % 2 == 0) else None


@rule("pow")
def power_norm(term: Term, rw: Rewriter) -> Term | None:
    """(c Σ xⁿ)^(1/n) for an even n, (c Σ |x|ⁿ)^(1/n): the powers leave the range long before the norm does."""
    base, exponent = term.operands
    q = scalar(exponent)
    inner = unwrapped(base)
    c = 1.0
    if inner.name in ("mul", "div") and (factor := scalar(inner.operands[1])) is not None and 0 < factor < math.inf:
        c = float(1 / factor if inner.name == "div" else factor)
        inner = unwrapped(inner.operands[0])
    seen = spread(inner)
    axes = reduced_axes(seen.source, "reduce_sum")
    if axes is None or q is None:
        return None
    if (found := _power_of(unwrapped(seen.source.operands[0]))) is None or abs(q * found[1] - 1) > 1e-6:
        return None
    x, n = found

    def run(a: Any) -> Any:
        size = st.norm(_flat(a, axes), n, axis=-1)
        return placed(size * jnp.asarray(c ** (1 / n), size.dtype), seen.dims, term.shape)

    return replaced(
        term, "norm", run, [rw(x)], before=f"sum(x^{n:g})^(1/{n:g})", after=f"norm(x, {n:g})",
        reason=f"x^{n:g} leaves the range of the dtype from {n:g} times smaller exponents on",
    )  # fmt: skip


def _flat(a: Any, axes: tuple[int, ...]) -> Any:
    """The axes as one, the last."""
    moved = jnp.moveaxis(a, axes, range(a.ndim - len(axes), a.ndim))
    return moved.reshape(*moved.shape[: a.ndim - len(axes)], -1)
