"""The branch that is not taken: it may not poison the derivative, at any order.

A `select` gives the branch that is not taken the cotangent 0, and 0 times an infinite derivative is NaN. The user's cure
is the double `where`: the branch is evaluated at a harmless point wherever it is not taken. Here it is inserted: a nonlinear
operation computes at a safe point wherever nothing demands its result (`_demand`). No result changes, since nothing reads
those elements; and only a select (an extremum, a branch) can make a mask, so that a computed 0 · inf stays what it is.

What a decision itself depends on (comparisons, casts to integers, `stop_gradient`) is computed unguarded.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad.rewriting._demand import DECIDING, Demand, Demands, mask
from robustad.rewriting._graph import Step, Term, in_order, is_constant
from robustad.rewriting._report import Rewrite
from robustad.rewriting._rewriter import place_of

_ONE = (
    "abs asinh atan atan2 bessel_i0e bessel_i1e cbrt cos cosh digamma div erf erfc exp exp2 expm1 igamma igammac "
    "integer_pow lgamma log log1p logistic mul one_minus_square polygamma pow rem rsqrt sin sinh sqrt square tan tanh"
)
SAFE: dict[str, float] = (
    dict.fromkeys(_ONE.split(), 1.0)
    | dict.fromkeys(["acos", "asin", "atanh", "erf_inv"], 0.5)
    | {"acosh": 2.0, "zeta": 2.0}
)
"""Where a primitive is computed if nothing demands it: a point at which derivatives of all orders are finite."""

_SINGULAR = frozenset(
    "acos acosh asin atan2 atanh cbrt cosh digamma div erf_inv exp exp2 expm1 lgamma log log1p pow rsqrt sinh sqrt tan "
    "polygamma zeta igamma igammac".split()
)


def guarded(outputs: Sequence[Term], demanded: Demand = None, effects: Iterable[Step] = ()) -> list[Term]:
    """The outputs of a program in which branches that are not taken are harmless."""
    effects = list(effects)
    demands = Demands(outputs, demanded, effects)
    if all(d is None for held in demands.of.values() for d in held.values()):
        return list(outputs)
    new: dict[Step, Sequence[Term]] = {}

    def seen(term: Term) -> Term:
        return new[term.step][term.index] if term.floating and term.step in new else term

    for step in in_order(t.step for t in outputs):
        if step not in demands.of or step.name in DECIDING or step in effects or not step.operands:
            continue
        operands = tuple(map(seen, step.operands))
        demand = next(iter(demands.of[step].values())) if len(step.outputs) == 1 else None
        inserted = None
        if demand is not None and step.masked is not None:
            new[step] = [step.masked(operands, mask(demand, step.outputs[0].shape))]
            continue
        if demand is not None and step.elementwise:
            operands, inserted = _safe(step, operands, demand, demands)
        if operands == step.operands:
            continue
        if step.name in ("max", "min", "clamp"):
            new[step] = [_decided(step, operands)]
            continue
        told = [r for r in (step.rewrite, inserted) if r is not None]
        new[step] = step.on(operands, rewrite=next(iter(told), None), inside=(*step.inside, *told[1:])).outputs
    return [seen(t) for t in outputs]


def _safe(step: Step, operands: tuple[Term, ...], demand: Demand, demands: Demands):
    """The operands of a step at a safe point where nothing demands it, and what is told of that."""
    wanted = step.safe if step.safe is not None else SAFE.get(step.name)
    if wanted is None or (demands.is_weak(demand) and step.name not in _SINGULAR and step.safe is None):
        return operands, None
    varying = [t for t in operands if t.floating and not is_constant(t)]
    if (step.name == "mul" and len(varying) < 2) or (step.name == "div" and is_constant(operands[1])) or not varying:
        return operands, None
    shape = step.outputs[0].shape
    chosen = mask(demand, shape)

    def at(term: Term) -> Term:
        if term not in varying:
            return term
        aval = jax.ShapeDtypeStruct(shape, term.dtype)

        def run(m: Array, x: Array) -> list[Array]:
            x = jnp.broadcast_to(x, shape)
            return [lax.select(m, x, jnp.full_like(x, wanted))]

        return Step.of("select", run, (chosen, term), aval, origin=step.origin)

    told = Rewrite(
        *place_of(step),
        rule="untaken-branch",
        before=step.name,
        after=f"{step.name} at {wanted:g} wherever its result is not selected",
        reason="the cotangent of a branch that is not taken is 0, and 0 times an infinite derivative is NaN",
    )
    return tuple(map(at, operands)), told


def _decided(step: Step, operands: tuple[Term, ...]) -> Term:
    """An extremum by the decision that the unguarded operands take; ties share, as JAX has it."""
    n, aval = len(operands), step.outputs[0].aval

    def run(*arrays: Array) -> list[Array]:
        plain = [jnp.broadcast_to(x, aval.shape) for x in arrays[:n]]
        safe = [jnp.broadcast_to(x, aval.shape) for x in arrays[n:]]
        if n == 2:
            first = plain[0] > plain[1] if step.name == "max" else plain[0] < plain[1]
            shared = lax.select(plain[0] == plain[1], 0.5 * safe[0] + 0.5 * safe[1], safe[1])
            out = lax.select(first, safe[0], shared)
            return [lax.select(plain[0] != plain[0], safe[0], out)]  # NaN is passed on
        low, x, high = safe
        return [lax.select(plain[1] < plain[0], low, lax.select(plain[1] > plain[2], high, x))]

    return Step.of(step.name, run, (*step.operands, *operands), aval, origin=step.origin)
