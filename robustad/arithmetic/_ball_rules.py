"""Rules of the exact twins: how data moves, and what follows the decisions of the working program.

A rule takes an equation, its operands and its working outputs, and returns the outputs' twins. What moves data is found
by moving positions: the primitive is evaluated on integers that say where an element comes from.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr
from robustad._eager import UnsupportedError
from robustad._jaxpr import Equation
from robustad.arithmetic._ball import Ball, boxed, exact, flint, mapped, widened
from robustad.arithmetic._ball_elementwise import ELEMENTWISE, elementwise
from robustad.arithmetic._movement import MOVES

Rule: TypeAlias = Callable[[Equation, Sequence[Ball], Sequence[Any]], list[np.ndarray | None]]
RULES: dict[str, Rule] = {}


def rule(*primitives: str) -> Callable[[Rule], Rule]:
    """Registers a rule for primitives; a second rule for one primitive is an error."""

    def register(f: Rule) -> Rule:
        for name in primitives:
            if name in RULES:
                raise ValueError(f"a second exact rule for primitive `{name}`")
            RULES[name] = f
        return f

    return register


rule(*ELEMENTWISE)(elementwise)


def enclosed(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> list[np.ndarray | None]:
    """The twins of an equation's working outputs.

    Raises:
        UnsupportedError: there is no rule for its primitive.
    """
    if not any(_jaxpr.is_inexact(out) for out in working):
        return [None] * len(working)
    name = eqn.primitive.name
    if all(v.exact is None for v in operands) and name != "convert_element_type":
        return _anew(eqn, operands, working)
    if name not in RULES:
        raise UnsupportedError(f"the primitive `{name}` has no exact rule.")
    return RULES[name](eqn, operands, working)


# ------------------------------------------------------------------------------------------------- movement


@rule(
    *"""broadcast_in_dim broadcast_to concatenate copy device_put dynamic_slice dynamic_update_slice expand_dims gather
    layout_constraint name optimization_barrier pad pbroadcast pvary reshape reshard rev select_n
    sharding_constraint slice split squeeze stack stop_gradient tap tie tile transpose unstack""".split()
)
def _moved(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> list[np.ndarray | None]:
    """By the positions of the outputs' elements among all elements of the operands, one after the other."""
    name = eqn.primitive.name
    if name in MOVES and not any(_is_key(v.working) for v in operands):
        outs = MOVES[name](eqn.params, *(np.asarray(v.working) if v.exact is None else v.exact for v in operands))
        return [out if _jaxpr.is_inexact(w) else None for out, w in zip(outs, working)]
    places, start = [], 0
    for v in operands:
        if v.exact is None:
            places.append(v.working)
        else:
            places.append(np.arange(start, start + v.exact.size, dtype=np.int32).reshape(v.exact.shape))
            start += v.exact.size
    changed = {"fill_value": -1} if name == "gather" else {}
    fill = eqn.params.get("fill_value")
    source = np.concatenate([np.ravel(v.exact) for v in operands if v.exact is not None])
    outs = _jaxpr.evaluate(eqn, places, **changed)
    moved: list[np.ndarray | None] = []
    for out, w in zip(outs, working):
        at = np.asarray(out) if _jaxpr.is_inexact(w) else None
        if at is not None and changed:
            missing = flint().arb(float("nan") if fill is None else float(fill))
            moved.append(boxed(np.append(source, missing)[np.where(at < 0, source.size, at)]))
        else:
            moved.append(None if at is None else boxed(source[at]))
    return moved


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.extended)


def evaluated(eqn: Equation, operands: Sequence[Any]) -> list[Any]:
    """An equation's working outputs. What only moves data needs no compiled program.

    Raises:
        UnsupportedError: it cannot be evaluated outside its program.
    """
    name = eqn.primitive.name
    if name in MOVES and not any(map(_is_key, operands)):
        return MOVES[name](eqn.params, *map(np.asarray, operands))
    try:
        return _jaxpr.evaluate(eqn, operands)
    except Exception as error:  # whatever a primitive says without its mesh, its axes or its device
        raise UnsupportedError(f"`{name}` cannot be evaluated by itself: {error}") from error


# ---------------------------------------------------------------------- primitives that decide or round: follow


@rule("ceil", "floor", "round", "sign", "nextafter", "bitcast_convert_type", "iota")
def _anew(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> list[np.ndarray | None]:
    """Piecewise constant, or made of bits: the working value is the decision that the program took."""
    return [widened(out) for out in working]


@rule("convert_element_type")
def _convert(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> list[np.ndarray | None]:
    """A cast between floats rounds, so the twin keeps its value; an integer is cast from the integer."""
    x, to_complex = exact(operands[0]), np.issubdtype(working[0].dtype, np.complexfloating)
    if to_complex:
        return [mapped(flint().acb, x)]
    return [mapped(lambda v: v.real, x) if np.iscomplexobj(np.asarray(operands[0].working)) else x]


@rule("reduce_precision")
def _unrounded(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> list[np.ndarray | None]:
    return [operands[0].exact]


def _larger(x: Any, y: Any) -> Any:
    return x.max(y)


def _smaller(x: Any, y: Any) -> Any:
    return x.min(y)


def extreme(name: str) -> Callable[[Any, Any], Any]:
    """The maximum or minimum of two balls."""
    return _larger if "max" in name else _smaller


@rule("max", "min")
def _extremum(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> list[np.ndarray | None]:
    """The operand that the working program took (the derivative's mask is made of the same comparison)."""
    name, shape = eqn.primitive.name, np.shape(working[0])
    (a, b), (x, y) = (np.asarray(v.working) for v in operands), (exact(v) for v in operands)
    first = (a > b if name == "max" else a < b) | (a != a)
    out = np.array(np.broadcast_to(boxed(np.where(first, x, y)), shape))
    tie = np.broadcast_to(a == b, shape)
    if tie.any():
        x, y = np.broadcast_to(x, shape), np.broadcast_to(y, shape)
        out[tie] = mapped(extreme(name), x[tie], y[tie])
    return [out]


@rule("clamp")
def _clamped(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> list[np.ndarray | None]:
    """The operand that the working program took."""
    low, x, top = (np.asarray(v.working) for v in operands)
    a, b, c = (exact(v) for v in operands)
    return [boxed(np.where(x < low, a, np.where(x > top, c, b)))]


@rule("rem")
def _remainder(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> list[np.ndarray | None]:
    """x - q y with the quotient q of the working program, an integer."""

    def remainder(x: Any, y: Any, wx: Any, wy: Any, wr: Any) -> Any:
        if not (np.isfinite(wr) and np.isfinite(wy)) or wy == 0:
            return x if np.isfinite(wr) else flint().arb(float("nan"))
        a, b, r = (Fraction(float(w)) for w in (wx, wy, wr))
        return x - round((a - r) / b) * y

    held = (np.asarray(w, np.float64) for w in (operands[0].working, operands[1].working, working[0]))
    return [mapped(remainder, *(exact(v) for v in operands), *held)]


@rule("sort")
def _sort(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> list[np.ndarray | None]:
    axis, shape = eqn.params["dimension"], np.shape(operands[0].working)
    places = np.indices(shape, np.int32)[axis]
    *_, order = _jaxpr.evaluate(eqn, [*(v.working for v in operands), places])
    return [None if v.exact is None else np.take_along_axis(v.exact, np.asarray(order), axis) for v in operands]


@rule("top_k", "approx_top_k")
def _top_k(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> list[np.ndarray | None]:
    axis = eqn.params.get("axis", eqn.params.get("reduction_dimension", -1))
    return [np.take_along_axis(exact(operands[0]), np.asarray(working[1]), axis), None]
