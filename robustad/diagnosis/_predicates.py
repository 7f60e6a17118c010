"""The decisions of a program: which primitives take one, what they compare, and whether float64 decides otherwise.

A rule turns an equation into pairs of values whose order, or equality, it decides on: the two operands of a comparison; a
number and the jump of floor that is nearest; neighbours in an order.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import _jaxpr
from robustad._jaxpr import Equation
from robustad.arithmetic._shadow import Shadow


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Pairs that were compared, their float64 twins, whether these decide otherwise: arrays of the rank of the result.

    `far`: where there is no threshold near, if that can be.
    """

    left: Array
    right: Array
    true_left: Array
    true_right: Array
    otherwise: Array
    far: Array | bool = False


Rule: TypeAlias = Callable[[Equation, Sequence[Shadow]], Decisions]

KINDS: dict[str, str] = {}
RULES: dict[str, Rule] = {}


def rule(kind: str, *primitives: str) -> Callable[[Rule], Rule]:
    """Registers a rule. Kinds: a "comparison", a "kink" (the derivative jumps), a "jump" (the value does), an "order"."""

    def register(f: Rule) -> Rule:
        for name in primitives:
            if name in RULES:
                raise ValueError(f"a second rule for the decisions of primitive `{name}`")
            RULES[name], KINDS[name] = f, kind
        return f

    return register


def kind(eqn: Equation) -> str | None:
    """The kind of decision that an equation takes on floating values; None where it takes none."""
    name, atoms = eqn.primitive.name, eqn.invars
    found = KINDS.get(name)
    if found is None:
        return None
    if name == "sort":
        atoms = [a for a in atoms[: eqn.params["num_keys"]] if _jaxpr.is_inexact(a)] or atoms
    if not jnp.issubdtype(dtype := _jaxpr.aval(atoms[0]).dtype, jnp.floating):
        return None
    if jnp.finfo(dtype).bits < 8:  # such a number has no place in memory of its own
        return None
    if name == "convert_element_type" and jnp.issubdtype(eqn.params["new_dtype"], jnp.inexact):
        return None
    if found == "comparison" and atoms[0] is atoms[1]:  # whether it is NaN
        return None
    if name == "sort" and len(eqn.invars) == 1:
        return "kink"
    return found


def steps(a: Array, b: Array) -> Array:
    """How many floats of their dtype it takes from a to b, in float64: 0 for equal ones (and 0 and -0), 1 for neighbours."""
    bits = np.dtype(f"int{8 * a.dtype.itemsize}")

    def place(x: Array) -> Array:
        i = lax.bitcast_convert_type(x, bits).astype(np.int64)
        return jnp.where(i < 0, np.iinfo(bits).min - i, i)

    i, j = jnp.broadcast_arrays(place(a), place(b))
    wide = jnp.abs(i).astype(np.float64) + jnp.abs(j).astype(np.float64)
    return jnp.where((i < 0) == (j < 0), jnp.abs(i - j).astype(np.float64), wide)


def high(value: Shadow) -> Array:
    """The twin of a floating operand."""
    return widened(value.working) if value.high is None else value.high


def widened(x: Array) -> Array:
    return lax.convert_element_type(x, np.float64)


def _ordered(a: Array, b: Array, x: Array, y: Array) -> Array:
    """Whether a and b are ordered otherwise than x and y."""
    return ((a < b) != (x < y)) | ((a > b) != (x > y))


# -------------------------------------------------------------------------------------------- pairs of operands


@rule("comparison", "gt", "lt", "ge", "le", "eq", "ne")
def _compare(eqn: Equation, operands: Sequence[Shadow]) -> Decisions:
    a, b = operands
    (taken,), (true,) = (_jaxpr.evaluate(eqn, pair) for pair in ([a.working, b.working], [high(a), high(b)]))
    return Decisions(a.working, b.working, high(a), high(b), taken != true)


@rule("kink", "max", "min")
def _extremum(eqn: Equation, operands: Sequence[Shadow]) -> Decisions:
    a, b = operands
    return Decisions(a.working, b.working, high(a), high(b), _ordered(a.working, b.working, high(a), high(b)))


@rule("kink", "clamp")
def _clamp(eqn: Equation, operands: Sequence[Shadow]) -> Decisions:
    """With the bound that is nearer."""
    low, x, top = (v.working for v in operands)
    true_low, true, true_top = (high(v) for v in operands)
    nearer = steps(x, low) <= steps(x, top)
    otherwise = _ordered(x, low, true, true_low) | _ordered(x, top, true, true_top)
    return Decisions(x, jnp.where(nearer, low, top), true, jnp.where(nearer, true_low, true_top), otherwise)


@rule("jump", "sign")
@rule("kink", "abs")
def _sign(eqn: Equation, operands: Sequence[Shadow]) -> Decisions:
    x, true = operands[0].working, high(operands[0])
    return Decisions(x, jnp.zeros_like(x), true, jnp.zeros_like(true), jnp.sign(x).astype(np.float64) != jnp.sign(true))


# ------------------------------------------------------------------------------------------------ jumps of one operand


def _jump(x: Shadow, threshold: Array, otherwise: Array, far: Array | bool = False) -> Decisions:
    t = threshold.astype(x.working.dtype)
    return Decisions(x.working, t, high(x), widened(t), otherwise & ~jnp.asarray(far), far)


def _integers_only(x: Array) -> Array:
    """Where all neighbours are integers, or not finite: no jump of rounding is near."""
    return ~(jnp.abs(x) < 2.0 ** jnp.finfo(x.dtype).nmant)


@rule("jump", "floor", "ceil", "round")
def _round(eqn: Equation, operands: Sequence[Shadow]) -> Decisions:
    (x,) = operands
    wide = widened(x.working)
    threshold = jnp.floor(wide) + 0.5 if eqn.primitive.name == "round" else jnp.round(wide)
    rounded, true = (_jaxpr.evaluate(eqn, [v])[0] for v in (wide, high(x)))
    return _jump(x, threshold, rounded != true, _integers_only(x.working))


@rule("jump", "convert_element_type")
def _to_integer(eqn: Equation, operands: Sequence[Shadow]) -> Decisions:
    """Towards zero; to a boolean, whether it is not zero."""
    (x,) = operands
    wide = widened(x.working)
    if eqn.params["new_dtype"] == np.bool_:
        return _jump(x, jnp.zeros_like(wide), (wide != 0) != (high(x) != 0))
    nearest = jnp.round(wide)
    threshold = jnp.where(nearest == 0, jnp.copysign(1.0, wide), nearest)
    return _jump(x, threshold, jnp.trunc(wide) != jnp.trunc(high(x)), _integers_only(x.working))


@rule("jump", "rem")
def _remainder(eqn: Equation, operands: Sequence[Shadow]) -> Decisions:
    """x - q y jumps where x is a multiple of y, but 0."""
    x, y = operands
    divisor = widened(y.working)
    quotient, true = widened(x.working) / divisor, high(x) / high(y)
    nearest = jnp.round(quotient)
    threshold = jnp.where(nearest == 0, jnp.copysign(1.0, quotient), nearest) * divisor
    far = ~(jnp.abs(quotient) < 2.0 ** jnp.finfo(x.working.dtype).nmant)
    return _jump(x, threshold, jnp.trunc(quotient) != jnp.trunc(true), far)


# --------------------------------------------------------------------------------------------------------- orders


@rule("kink", "reduce_max", "reduce_min")
@rule("order", "argmax", "argmin")
def _best(eqn: Equation, operands: Sequence[Shadow]) -> Decisions:
    """The one that was taken, and the best of the others; in float64, of all the others."""
    (x,), least = operands, eqn.primitive.name.endswith("min")
    axes, rank = eqn.params["axes"], operands[0].working.ndim
    kept = [k for k in range(rank) if k not in axes]
    shape = [x.working.shape[k] for k in kept]
    working, true = (jnp.transpose(v, (*kept, *axes)).reshape(*shape, -1) for v in (x.working, high(x)))
    if working.shape[-1] < 2:
        alone = jnp.full(shape, jnp.inf)
        return Decisions(alone.astype(working.dtype), alone.astype(working.dtype), alone, alone, alone < 0)
    first = (jnp.argmin if least else jnp.argmax)(working, -1, keepdims=True)
    others = lax.broadcasted_iota(first.dtype, working.shape, working.ndim - 1) != first
    beyond = jnp.inf if least else -jnp.inf

    def second(v: Array) -> Array:
        rest = jnp.where(others, v, beyond)
        return jnp.min(rest, -1) if least else jnp.max(rest, -1)

    taken, true_taken = (jnp.take_along_axis(v, first, -1)[..., 0] for v in (working, true))
    rival = second(true)
    otherwise = rival < true_taken if least else rival > true_taken
    return Decisions(taken, second(working).astype(taken.dtype), true_taken, rival, otherwise)


@rule("order", "sort")
def _sort(eqn: Equation, operands: Sequence[Shadow]) -> Decisions:
    """Neighbours in the order of the first key in which they differ, or of the last one; of keys in several floating dtypes
    in the widest one's ulps."""
    axis, shape = eqn.params["dimension"], operands[0].working.shape
    places = lax.broadcasted_iota(np.int32, shape, axis)
    *keys, order = _jaxpr.evaluate(eqn, [*(v.working for v in operands), places])
    floating = [key.dtype for key in keys if jnp.issubdtype(key.dtype, jnp.floating)]
    dtype = functools.reduce(jnp.promote_types, floating)
    found: Decisions | None = None
    for key, operand in reversed(list(zip(keys, operands[: eqn.params["num_keys"]]))):
        if jnp.issubdtype(key.dtype, jnp.floating):
            true = jnp.take_along_axis(high(operand), order, axis)
            this = _neighbours(key.astype(dtype), true, axis, descending=False)
        else:  # exact
            this = _neighbours(jnp.zeros(shape, dtype), jnp.zeros(shape, np.float64), axis, descending=False)
            this = dataclasses.replace(this, far=jnp.ones_like(this.otherwise))
        if found is not None:
            tied = jnp.equal(*_pair(key, axis))
            pairs = [(getattr(found, f.name), getattr(this, f.name)) for f in dataclasses.fields(Decisions)]
            this = Decisions(*(jnp.where(tied, later, here) for later, here in pairs))
        found = this
    assert found is not None
    return found


@rule("order", "top_k")
def _top_k(eqn: Equation, operands: Sequence[Shadow]) -> Decisions:
    """Neighbours in the order of those taken and the first one that was not."""
    axis = eqn.params.get("axis", -1) % operands[0].working.ndim
    working, true = (jnp.moveaxis(v, axis, -1) for v in (operands[0].working, high(operands[0])))
    values, order = lax.top_k(working, min(eqn.params["k"] + 1, working.shape[-1]))
    true = jnp.take_along_axis(true, order, -1)
    return _neighbours(jnp.moveaxis(values, -1, axis), jnp.moveaxis(true, -1, axis), axis, descending=True)


def _neighbours(working: Array, true: Array, axis: int, descending: bool) -> Decisions:
    (a, b), (x, y) = _pair(working, axis), _pair(true, axis)
    return Decisions(a, b, x, y, x < y if descending else x > y)


def _pair(v: Array, axis: int) -> tuple[Array, Array]:
    n = v.shape[axis]
    return lax.slice_in_dim(v, 0, max(n - 1, 0), axis=axis), lax.slice_in_dim(v, min(n, 1), n, axis=axis)


def shape(eqn: Equation) -> tuple[int, ...]:
    """The shape of the decisions of an equation."""
    sizes = list(_jaxpr.aval(eqn.outvars[0]).shape)
    if eqn.primitive.name == "sort":
        sizes[eqn.params["dimension"]] -= 1
    if eqn.primitive.name == "top_k":
        axis = eqn.params.get("axis", -1)
        sizes[axis] = min(eqn.params["k"], _jaxpr.aval(eqn.invars[0]).shape[axis] - 1)
    return tuple(sizes)
