"""The logarithm of what chooses, moves and joins elements that are carried as logarithms (`_log_space`)."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import _jaxpr
from robustad.rewriting._graph import Graph, Term, scalar
from robustad.rewriting._log_space import Parts, both, factor, filled, parts, parts_of
from robustad.rewriting._rewriter import Rewriter, derived, number

# ----------------------------------------------------------------------------------------------------- choices


@parts_of("max", "min")
def _extremum(term: Term, rw: Rewriter) -> Parts | None:
    for x, least in (term.operands, term.operands[::-1]):
        if term.name == "max" and scalar(least) == 0 and x.shape == term.shape:
            got = parts(x, rw)
            return got if got and got.rest is None else None  # an exponential is never below 0
    if (got := both(term, rw)) is None or got[0].rest is not None or got[1].rest is not None:
        return None
    run = jnp.maximum if term.name == "max" else jnp.minimum
    return Parts(derived(term, term.name, run, [got[0].log, got[1].log]), None)


@parts_of("clamp")
def _clamp(term: Term, rw: Rewriter) -> Parts | None:
    low, x, high = term.operands
    limits = [scalar(low), scalar(high)]
    got = parts(x, rw)
    if got is None or got.rest is not None or any(c is None or not c >= 0 for c in limits):
        return None
    bounds = [-math.inf if c == 0 else math.log(c) for c in limits if c is not None]
    return Parts(derived(term, "clamp", lambda a: jnp.clip(a, *bounds), [got.log]), None)


@parts_of("select_n")
def _select(term: Term, rw: Rewriter) -> Parts | None:
    which, *cases = term.operands
    if (taken := _joined(cases, rw)) is None:
        return None

    def run(w: Array, *x: Array) -> Array:
        return lax.select_n(w, *(jnp.broadcast_to(jnp.asarray(a, term.dtype), term.shape) for a in x))

    which, one = rw(which), number(term, 1.0)
    log = derived(term, "select_n", run, [which, *(p.log for p in taken)])
    if all(p.rest is None for p in taken):
        return Parts(log, None)
    return Parts(log, derived(term, "select_n", run, [which, *(p.rest or one for p in taken)]))


def _joined(terms: Sequence[Term], rw: Rewriter) -> list[Parts] | None:
    """Terms that stand beside each other taken apart, if one of them is carried."""
    got = [parts(t, rw) for t in terms]
    if not any(got):
        return None
    return [p or (_zero(t) if scalar(t) == 0 else factor(t, rw)) for p, t in zip(got, terms)]


def _zero(like: Term) -> Parts:
    return Parts(number(like, -math.inf), None)


# ------------------------------------------------------------------------------------------------------- moves


@parts_of(
    "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "rev", "slice", "dynamic_slice", "gather",
    "copy", "pvary", "stop_gradient", "convert_element_type",
)  # fmt: skip
def _moved(term: Term, rw: Rewriter) -> Parts | None:
    if term.name == "convert_element_type" and not _stays_floating(term):
        return None
    fill = term.params.get("fill_value")
    if term.name == "gather" and fill is not None and not np.isnan(fill):
        return None
    first, *others = term.operands
    if (got := parts(first, rw)) is None:
        return None
    rest = [rw(t) for t in others]

    def moved(part: Term) -> Term:
        if not part.shape and first.shape:
            return part
        return _by_equation(term, [filled(part, first), *rest])

    return Parts(moved(got.log), got.rest and moved(got.rest))


def _stays_floating(term: Term) -> bool:
    """Whether a conversion is one between floats: the logarithm of a rounded sum is rounded less."""
    return bool(jnp.issubdtype(term.operands[0].dtype, jnp.floating) and jnp.issubdtype(term.dtype, jnp.floating))


def _by_equation(term: Term, operands: Sequence[Term]) -> Term:
    """The term's own operation on other operands."""
    eqn, index = term.step.equation, term.index
    assert eqn is not None
    params = {} if term.name != "convert_element_type" else {"new_dtype": term.dtype}
    return derived(
        term, term.name, lambda *x: _jaxpr.bind(eqn, x, **params)[index], operands, elementwise=False
    )  # fmt: skip


@parts_of("sort", "top_k")
def _sorted(term: Term, rw: Rewriter) -> Parts | None:
    """The order of positive numbers is that of their logarithms."""
    got = parts(term.operands[0], rw) if len(term.operands) == 1 and term.index == 0 else None
    if got is None or got.rest is not None:
        return None
    return Parts(_by_equation(term, [filled(got.log, term.operands[0])]), None)


@parts_of("concatenate", "stack", "pad", "dynamic_update_slice", "scatter")
def _put_together(term: Term, rw: Rewriter) -> Parts | None:
    """Elements of several arrays, each where it was."""
    floating = [t for t in term.operands if t.floating]
    if term.name == "scatter" and term.params.get("update_jaxpr") is not None:
        return None
    if (taken := _joined(floating, rw)) is None:
        return None
    others = [None if t.floating else rw(t) for t in term.operands]

    def joined(made: Sequence[Term]) -> Term:
        left = iter(filled(part, t) for part, t in zip(made, floating))
        return _by_equation(term, [t if t is not None else next(left) for t in others])

    log = joined([p.log for p in taken])
    if all(p.rest is None for p in taken):
        return Parts(log, None)
    return Parts(log, joined([p.rest or number(term, 1.0) for p in taken]))


@parts_of("scatter-add")
def _added_up(term: Term, rw: Rewriter) -> Parts | None:
    """Sums of segments, each beside its largest term."""
    into, indices, updates = term.operands
    got = parts(updates, rw)
    if scalar(into) != 0 or got is None or got.rest is not None:
        return None
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    params = {name: term.params[name] for name in names}

    def run(at: Array, logs: Array) -> Array:
        dtype = jnp.promote_types(logs.dtype, jnp.float32)
        logs = logs.astype(dtype)
        none = jnp.full(term.shape, -jnp.inf, dtype)
        largest = lax.stop_gradient(lax.scatter_max(none, at, logs, **params))
        largest = jnp.where(jnp.isfinite(largest), largest, 0)

        def added(x: Array) -> Array:
            return lax.scatter_add(jnp.zeros(term.shape, dtype), at, x, **params)

        (own,) = jax.linear_transpose(added, logs)(largest)  # of each term, that of its segment
        total = added(jnp.exp(logs - own))
        empty = total == 0
        return jnp.where(empty, -jnp.inf, largest + jnp.log(jnp.where(empty, 1, total))).astype(term.dtype)

    operands = [rw(indices), filled(got.log, updates)]
    return Parts(derived(term, "logsumexp", run, operands, elementwise=False), None)


@parts_of("cond")
def _of_any_platform(term: Term, rw: Rewriter) -> Parts | None:
    """What JAX computes in another way on some platforms, as `jnp.diagonal`: by the way of all others."""
    eqn = term.step.equation
    if eqn is None or (body := _jaxpr.of_any_platform(eqn)) is None:
        return None
    made = Graph().read(body, term.operands[1:], lambda *_: True)
    return parts(made[term.index], rw)


@parts_of("abs")
def _abs(term: Term, rw: Rewriter) -> Parts | None:
    if (got := parts(term.operands[0], rw)) is None:
        return None
    return Parts(got.log, got.rest and derived(term, "abs", jnp.abs, [got.rest]))
