"""Twins of library functions that reduce over axes; which axes, and whether they are kept, is read off their programs."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from robustad import _jaxpr, stability
from robustad._jaxpr import Equation, aval

from ._library import Call, equations, inside, of
from ._shares import log_softmax, logsumexp

Candidates = Callable[[Equation], Iterator[tuple[Call, Callable[..., Array]]]]


def first_axes(eqn: Equation) -> tuple[int, ...]:
    """Of the first reduction inside a call."""
    for inner in equations(inside(eqn)):
        if inner.primitive.name in ("reduce_sum", "reduce_max"):
            return tuple(inner.params["axes"])
    return ()


def _axis(axes: tuple[int, ...]) -> Any:
    """As one would write it: some functions take a tuple of one axis otherwise."""
    return axes if len(axes) != 1 else axes[0]


def _keeps(eqn: Equation) -> bool:
    return len(aval(eqn.outvars[0]).shape) == len(aval(eqn.invars[0]).shape)


# ---- softmax and means of exponentials


def _jax_log_softmax(x: Array, where: Array | None = None, *, axis: int) -> Array:
    return jax.nn.log_softmax(x, axis, where)


def _log_softmax(eqn: Equation) -> Iterator[tuple[Call, Callable[..., Array]]]:
    axes = first_axes(eqn)
    if axes:
        axis = _axis(axes)

        def function(x: Array, where: Array | None = None) -> Array:
            return log_softmax(x, axes, where)

        yield of(_jax_log_softmax, axis=axis), function


def _log_mean_exp(eqn: Equation) -> Iterator[tuple[Call, Callable[..., Array]]]:
    axes, keepdims = first_axes(eqn), _keeps(eqn)

    def function(x: Array) -> Array:
        return logsumexp(x, axes, keepdims) - math.log(math.prod(x.shape[i] for i in axes))

    if axes:
        yield of(jax.nn.logmeanexp, axis=axes, keepdims=keepdims), function


# ---- norms


def order(eqn: Equation) -> float | None:
    """The exponent in Σ|x|ᵖ of a norm, where there is one."""
    for inner in equations(inside(eqn)):
        if inner.primitive.name == "pow":
            value = _jaxpr.literal(inner.invars[1])
            return None if value is None or value.ndim else float(value)
    return None


def _norm(eqn: Equation) -> Iterator[tuple[Call, Callable[..., Array]]]:
    axes, keepdims, power = first_axes(eqn), _keeps(eqn), order(eqn)
    if not axes:
        return
    axis = _axis(axes)
    for a in (None, axis) if len(axes) == len(aval(eqn.invars[0]).shape) else (axis,):
        yield (
            of(jnp.linalg.norm, ord=power, axis=a, keepdims=keepdims),
            functools.partial(stability.norm, ord=power, axis=axes, keepdims=keepdims),
        )


# ---- spreads


def _jax_spread(
    x: Array, correction: Any, where: Array | None = None, *, name: str, axis: Any, keepdims: bool
) -> Array:
    return getattr(jnp, name)(x, axis, ddof=correction, where=where, keepdims=keepdims)


def _spread(name: str, eqn: Equation) -> Iterator[tuple[Call, Callable[..., Array]]]:
    correction = _jaxpr.literal(eqn.invars[1]) if len(eqn.invars) > 1 else None
    if correction is None or not first_axes(eqn):
        return
    static = {"axis": first_axes(eqn), "keepdims": _keeps(eqn)}

    def function(x: Array, _: Array, where: Array | None = None) -> Array:
        return getattr(stability, name)(x, ddof=float(correction), where=where, **static)

    yield of(_jax_spread, name=name, **static), function


def _jax_nan_spread(x: Array, *ddof: Any, name: str, axis: Any, keepdims: bool) -> Array:
    return getattr(jnp, name)(x, axis, keepdims=keepdims, **({"ddof": ddof[0]} if ddof else {}))


def _nan_spread(name: str, eqn: Equation) -> Iterator[tuple[Call, Callable[..., Array]]]:
    ddof = _second(eqn, 0.0)
    if ddof is None:
        return
    static = {"axis": first_axes(eqn), "keepdims": _keeps(eqn)}

    def function(x: Array, *_: Array) -> Array:
        return getattr(stability, name)(x, where=~jnp.isnan(x), ddof=ddof, **static)

    yield of(_jax_nan_spread, name="nan" + name, **static), function


def _second(eqn: Equation, default: float) -> float | None:
    """The second operand of a call, where it is a number; the default, which JAX writes into the program, without it."""
    if len(eqn.invars) == 1:
        return default
    value = _jaxpr.literal(eqn.invars[1])
    return None if value is None or len(eqn.invars) > 2 else float(value)


# ---- standardization


def _jax_standardize(x: Array, *epsilon: Any, axis: Any) -> Array:
    return jax.nn.standardize(x, axis, **({"epsilon": epsilon[0]} if epsilon else {}))


def _standardize(eqn: Equation) -> Iterator[tuple[Call, Callable[..., Array]]]:
    axes, epsilon = first_axes(eqn), _second(eqn, 1e-5)
    if not axes or epsilon is None:
        return

    def function(x: Array, *_: Array) -> Array:
        mean = jnp.mean(x, axes, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(stability.var(x, axes, keepdims=True) + epsilon)

    yield of(_jax_standardize, axis=axes), function


_SPREAD = "the square root of the variance of equal values: NaN; squares leave the range"
TABLE: dict[str, tuple[str, Candidates]] = {
    "log_softmax": ("1 - p of a confident entry, from a rounded p; NaN where all are -inf", _log_softmax),
    "logmeanexp": ("NaN where no term is finite", _log_mean_exp),
    "norm": ("NaN at 0; squares leave the range", _norm),
    "_std": (_SPREAD, functools.partial(_spread, "std")),
    "_var": (
        "squares leave the range; the mean's rounding shows in small variances",
        functools.partial(_spread, "var"),
    ),
    "nanstd": (_SPREAD, functools.partial(_nan_spread, "std")),
    "nanvar": ("squares leave the range", functools.partial(_nan_spread, "var")),
    "standardize": ("E[x²] - E[x]² cancels", _standardize),
}
