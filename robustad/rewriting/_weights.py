"""Products of a weight with its own logarithm: 0 times -inf, whose limit is 0."""

import jax.numpy as jnp
from jax import Array, lax

from robustad.rewriting._demand import boolean
from robustad.rewriting._graph import Step, Term, is_constant, unwrapped
from robustad.rewriting._report import Rewrite
from robustad.rewriting._rewriter import Rewriter, number, place_of, replaced, rule
from robustad.rewriting._softmax import log_softmax_of, softmax_of
from robustad.stability._custom_jvp import custom_jvp


@custom_jvp
def _xlogx(x: Array) -> Array:
    return jnp.where(x == 0, lax.full_like(x, 0), x * lax.log(x))


@_xlogx.defjvp
def _xlogx_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    return _xlogx(x), (lax.log(x) + 1) * t


@rule("mul", late=True)
def x_log_x(term: Term, rw: Rewriter) -> Term | None:
    """x log x at 0: 0 times -inf. The limit is 0, and that of the derivative -inf."""
    for x, log in (term.operands, term.operands[::-1]):
        negative = x.name == "neg"
        (x,) = x.operands if negative else (x,)
        inner = unwrapped(log)
        if inner.name != "log" or unwrapped(inner.operands[0]) is not unwrapped(x) or x.shape != term.shape:
            continue
        if is_constant(x):
            continue
        if rw.by_rule(inner) is not None:
            return None  # the logarithm is carried: see below

        def run(a: Array, sign: float = -1.0 if negative else 1.0) -> Array:
            return sign * _xlogx(a)

        return replaced(
            term, "limit", run, [rw(x)], before="x log(x)", after="x log(x), 0 at 0",
            reason="0 times -inf is NaN; the limit is 0", elementwise=True,
        )  # fmt: skip
    return None


@rule("mul")
def weighted_logarithm(term: Term, rw: Rewriter) -> Term | None:
    r"""\(e^u t(u)\) for a t that is linear in u, at u = -inf: what has no weight has no share (0 log 0 = 0)."""
    for weight, t in (term.operands, term.operands[::-1]):
        if weight.shape != term.shape or t.shape != term.shape:
            continue
        log = _log_of_weight(unwrapped(weight), t)
        if log is None:
            continue
        u, w, factor = rw(log), rw(weight), rw(t)
        has_weight = boolean("ne", lambda a: a != -jnp.inf, [u], term.shape)
        told = Rewrite(
            *place_of(term.step), "limit", "exp(u) · t(u)", "exp(u) · t(u), 0 where u = -inf",
            "0 times -inf, or -inf less -inf, is NaN; the limit is 0",
        )  # fmt: skip
        origin = term.step.origin
        product = Step.of("mul", lambda a, b: [a * b], [w, factor], term.aval, origin=origin, elementwise=True)
        zero = number(term, 0.0)

        def run(which: Array, no: Array, yes: Array) -> list[Array]:
            return [lax.select(which, yes, lax.full_like(yes, 0))]

        return Step.of(
            "select_n", run, [has_weight, zero, product], term.aval, origin=origin, rewrite=told, elementwise=True
        )
    return None


def _log_of_weight(weight: Term, t: Term) -> Term | None:
    """The logarithm of the weight, where t is linear in it."""
    held = _linear_in(t)
    if weight.name == "exp":
        return next((u for u in held if unwrapped(u) is unwrapped(weight.operands[0])), None)
    if (soft := softmax_of(weight)) is not None:
        for u in held:
            own = log_softmax_of(unwrapped(u))
            if own is not None and own.logits is soft.logits and own.axes == soft.axes:
                return u
            if unwrapped(u).name == "log" and unwrapped(unwrapped(u).operands[0]) is weight:
                return u
    return None


def _linear_in(t: Term, depth: int = 3) -> list[Term]:
    """t, and the terms that it is a sum of."""
    inner = unwrapped(t)
    if depth and inner.name in ("add", "sub", "neg"):
        return [t, *(u for operand in inner.operands for u in _linear_in(operand, depth - 1))]
    return [t]
