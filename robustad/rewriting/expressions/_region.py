"""A region: an elementwise function given by an expression, as one primitive of robustad's own.

The tangent is the sum of partial derivative times tangent, where each partial is again a region, made when it is first asked
for: the expression of the derivative, stabilised by itself. So values and derivatives of every order are evaluated in forms
of their own and rounded once.

Working precision: operands of float32 or narrower are taken in float64 on platforms that have it (cpu, cuda, rocm), where
XLA has it even when JAX's x64 mode is off, and in float32 elsewhere. float64 stays float64.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from robustad import _jaxpr
from robustad.rewriting.expressions._branches import merged
from robustad.rewriting.expressions._derivative import derivative
from robustad.rewriting.expressions._evaluation import evaluate
from robustad.rewriting.expressions._exponents import meant
from robustad.rewriting.expressions._expression import ZERO, Expr
from robustad.rewriting.expressions._radial import is_smooth, turned
from robustad.rewriting.expressions._text import text

Slopes = tuple[tuple[int, Expr], ...]
Radii = tuple[tuple[int, int], ...]
"""Variables that are distances ‖d‖, each with the one whose tangent is that of its turn (see `_radial`)."""


class Formula:
    """What a region computes: the stable form, the plain one that its derivatives are also derived from, forms of these
    where they are given, and the distances among its variables.
    """

    def __init__(self, stable: Expr, plain: Expr, slopes: Slopes = (), radii: Radii = ()):
        self.stable, self.plain, self.slopes, self.radii = stable, plain, slopes, radii
        self._partials: dict[int, Formula | None] = {}

    def partial(self, index: int) -> Formula | None:
        """∂/∂x_index; None where it is 0 everywhere."""
        if index not in self._partials:
            self._partials[index] = self._partial(index)
        return self._partials[index]

    def _partial(self, index: int) -> Formula | None:
        from robustad.rewriting.expressions._calculus import better, stabilized_derivative

        for radius, turn in self.radii:
            if index == radius and is_smooth(self.plain, radius):
                return None
            if index == turn:
                return self._turned(radius, better) if is_smooth(self.plain, radius) else None
        plain = derivative(self.plain, index)
        given = dict(self.slopes).get(index)
        stable = stabilized_derivative(self.stable, plain, index) if given is None else given
        return None if stable is ZERO else Formula(stable, plain, radii=self.radii)

    def _turned(self, radius: int, better: Callable[..., Expr]) -> Formula | None:
        forms = [turned(e, radius) for e in (self.stable, self.plain) if is_smooth(e, radius)]
        return None if forms[-1] is ZERO else Formula(better(*forms), forms[-1], radii=self.radii)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Formula) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Expr, Expr, Slopes, Radii]:
        return self.stable, self.plain, self.slopes, self.radii

    def __repr__(self) -> str:
        return text(self.stable)


def region(
    expr: Expr, arity: int, plain: Expr | None = None, slopes: Slopes = (), radii: Radii = ()
) -> Callable[..., Array]:
    """The function that `expr` computes of `arity` arrays of equal shape, elementwise.

    The result has the widest floating dtype of its operands. Variables that stand for truth values or integers take arrays
    of these.

    Args:
        expr: the stable form, of variables 0 to arity - 1.
        arity: how many arrays the function takes.
        plain: the form that the user wrote; `expr` where there is no other.
        slopes: forms of partial derivatives, by variable; those that the calculus finds where there is none.
        radii: which variables are distances.
    """
    formula = _formula(expr, expr if plain is None else meant(plain), slopes, radii)

    def function(*operands: Array) -> Array:
        if len(operands) != arity:
            raise TypeError(f"{formula!r} takes {arity} arrays, got {len(operands)}.")
        return _bind(operands, formula)

    return function


@functools.lru_cache(maxsize=1024)
def _formula(stable: Expr, plain: Expr, slopes: Slopes = (), radii: Radii = ()) -> Formula:
    return Formula(stable, plain, slopes, radii)


stable_p = Primitive("stable")


def _bind(operands: Sequence[Array], formula: Formula) -> Array:
    return stable_p.bind(*_jaxpr.varying_alike(*operands), formula=formula)


def _result_dtype(avals: Sequence[Any]) -> Any:
    floating = [a.dtype for a in avals if jnp.issubdtype(a.dtype, jnp.floating)]
    if not floating:
        raise TypeError("A region takes at least one floating array.")
    return functools.reduce(jnp.promote_types, floating)


@stable_p.def_abstract_eval
def _abstract(*avals: Any, formula: Formula) -> Any:
    return avals[0].update(dtype=_result_dtype(avals), weak_type=False)


@functools.lru_cache(maxsize=1024)
def _compiled(formula: Formula) -> Callable[..., Array]:
    return jax.jit(lambda *operands: stable_p.bind(*operands, formula=formula))


@stable_p.def_impl
def _evaluate(*operands: Array, formula: Formula) -> Array:
    with jax.disable_jit(False):
        return _compiled(formula)(*operands)


def _jvp(operands: Sequence[Array], steps: Sequence[Any], *, formula: Formula) -> tuple[Array, Any]:
    value = _bind(operands, formula)
    terms = []
    for i, step in enumerate(steps):
        if type(step) is ad.Zero or not jnp.issubdtype(operands[i].dtype, jnp.floating):
            continue
        partial = formula.partial(i)
        if partial is not None:
            terms.append(_times(operands, partial, step, value))
    return value, functools.reduce(operator.add, terms) if terms else ad.Zero(jax.typeof(value).to_tangent_aval())


def _times(operands: Sequence[Array], partial: Formula, step: Array, value: Array) -> Array:
    slope = _simple(operands, partial.stable, value)
    slope = _bind(operands, partial) if slope is None else slope
    (step,) = _jaxpr.varying_alike(step, slope)[:1]
    return lax.mul(slope, lax.convert_element_type(step, value.dtype))


def _simple(operands: Sequence[Array], e: Expr, like: Array) -> Array | None:
    """A slope that is an operand, or its negative: nothing to compute."""
    inner = e.args[0] if e.op == "neg" else e
    if inner.op != "var" or operands[inner.value].dtype != like.dtype:
        return None
    x = operands[inner.value]
    return x if inner is e else lax.neg(x)


def _batch(operands: Sequence[Array], axes: Sequence[int | None], *, formula: Formula) -> tuple[Array, int]:
    size = next(x.shape[axis] for x, axis in zip(operands, axes) if axis is not None)
    moved = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes)
    ]
    return _bind(moved, formula), 0


def _kernel(wide: bool) -> Callable[..., Array]:
    def kernel(*operands: Array, formula: Formula) -> Array:
        dtype = _result_dtype(operands)
        working = np.dtype(np.float64) if wide or dtype == np.float64 else np.dtype(np.float32)
        with jax.enable_x64(True):
            return lax.convert_element_type(
                evaluate(merged(formula.stable), operands, working, working == dtype), dtype
            )

    return kernel


def _lowering(wide: bool) -> Callable[..., Any]:
    rule = mlir.lower_fun(_kernel(wide), multiple_results=False)

    def lower(ctx: Any, *operands: Any, **params: Any) -> Any:
        # Inside shard_map the operands' types say over which axes they vary; the kernel's constants vary over none.
        return rule(ctx.replace(avals_in=[_jaxpr.on_one_device(a) for a in ctx.avals_in]), *operands, **params)

    return lower


ad.primitive_jvps[stable_p] = _jvp
batching.primitive_batchers[stable_p] = _batch
_jaxpr.check_for_nan(stable_p)
mlir.register_lowering(stable_p, _lowering(wide=False))
for _platform in ("cpu", "cuda", "rocm"):
    mlir.register_lowering(stable_p, _lowering(wide=True), platform=_platform)
