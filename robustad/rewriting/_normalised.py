r"""Weights that are normalised by a sum, p = e / S, times a logarithm of their own: entropies, divergences.

Where e = 0 the chain rule through S meets 0 · inf: the derivative of p log p by p is -inf there, and that of p by S is 0.
With ṗ in terms of ė and Ṡ, what goes to S is of p log p, whose limit is 0:

.. math:: d(p\,(\pm\log p + c)) = (\pm\log p + c \pm 1)\,\dot e / S - p\,(\pm\log p + c \pm 1)\,\dot S / S + p\,\dot c.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from robustad import _jaxpr
from robustad import stability as st
from robustad._jaxpr import Equation
from robustad.rewriting._graph import Term, unwrapped
from robustad.rewriting._layout import spread
from robustad.rewriting._rewriter import Rewriter, derived, number, replaced, rule
from robustad.rewriting._softmax import softmax_of
from robustad.rewriting.twins._composites import composite
from robustad.stability._custom_jvp import custom_jvp


class _Share(NamedTuple):
    """A weight: `top` over `scale`, or times it (`power` -1 and 1)."""

    top: Term
    scale: Term
    power: int


@custom_jvp
def _product(p: Array, t: Array, top: Array, scale: Array, other: Array, sign: Array, power: Array) -> Array:
    """p·t, 0 where p is."""
    return jnp.where(p == 0, jnp.zeros_like(p), p * t)


@_product.defjvp
def _product_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    p, t, _, scale, _, sign, power = primals
    _, _, of_top, of_scale, of_other, _, _ = tangents
    value = _product(*primals)
    factor = jnp.where(power > 0, scale, 1 / scale)
    slope = (t + sign) * factor * of_top
    return value, slope + power * (value + sign * p) / scale * of_scale + p * of_other


@rule("mul")
def weight_times_log(term: Term, rw: Rewriter) -> Term | None:
    for p, t in (term.operands, term.operands[::-1]):
        negative = p.name == "neg"
        (p,) = p.operands if negative else (p,)
        if p.shape != term.shape or t.shape != term.shape or (share := _share_of(p)) is None:
            continue
        if (found := _without_log(t, p, rw)) is None:
            continue
        sign, other = found
        return _limit(term, p, rw(t), share, sign, other, rw, -1.0 if negative else 1.0)
    return None


@rule("custom_jvp_call")
def library_entropy(term: Term, rw: Rewriter) -> Term | None:
    """`xlogy(p, p)`, and `entr(p)`, which is made of it."""
    p = term.operands[0]
    if term.step.equation is None or not _is_x_log_x(term.step.equation) or p.shape != term.shape:
        return None
    if (share := _share_of(p)) is None:
        return None
    return _limit(term, p, derived(p, "log", st.log, [rw(p)]), share, 1.0, None, rw)


def _is_x_log_x(eqn: Equation) -> bool:
    whole = composite(eqn)
    if whole is not None:
        return whole.name == "xlogy" and eqn.invars[0] is eqn.invars[1]
    inner, told = _jaxpr.control(eqn), _jaxpr.origin(eqn)
    if not isinstance(inner, _jaxpr.Call) or told is None or _jaxpr.is_users(told[1]):
        return False
    equations = inner.body.equations
    return len(equations) == 1 and equations[0].primitive is eqn.primitive and _is_x_log_x(equations[0])


def _limit(
    term: Term, p: Term, t: Term, share: _Share, sign: float, other: Term | None, rw: Rewriter, outer: float = 1.0
) -> Term:
    operands = [rw(p), t, rw(share.top), rw(share.scale), other or number(term, 0.0)]
    operands += [number(term, sign), number(term, share.power)]

    def run(*x: Array) -> Array:
        return outer * _product(*(jnp.broadcast_to(a, term.shape) for a in x))

    return replaced(
        term, "limit", run, operands, before="p log(p), p = e / S", after="p log(p), 0 where e = 0",
        reason="0 times -inf is NaN, in the derivative by S too; the limit is 0", elementwise=True,
    )  # fmt: skip


def _share_of(p: Term) -> _Share | None:
    """A weight that its sum, or another quantity common to several, is divided out of."""
    p = unwrapped(p)
    if p.name not in ("mul", "div") or softmax_of(p) is not None:
        return None
    for top, scale in (p.operands, p.operands[::-1])[: 1 if p.name == "div" else 2]:
        source = spread(scale).source
        is_common = source.shape != p.shape and source.name not in ("constant", "input")
        if is_common and top.shape == p.shape and spread(top).source.shape == top.shape:
            return _Share(top, scale, 1 if p.name == "mul" else -1)
    return None


def _without_log(t: Term, p: Term, rw: Rewriter, depth: int = 3) -> tuple[float, Term | None] | None:
    """±1 and c where a term is ±log p + c; None for no c."""
    t = unwrapped(t)
    if t.name == "log":
        inner = unwrapped(t.operands[0])
        if rw.by_rule(t) is not None:
            return None  # carried
        if inner is unwrapped(p):
            return 1.0, None
        if inner.name == "div" and unwrapped(inner.operands[0]) is unwrapped(p):
            return 1.0, derived(t, "log", lambda q: -st.log(q), [rw(inner.operands[1])])
        return None
    if depth == 0 or t.name not in ("add", "sub", "neg"):
        return None
    if t.name == "neg":
        found = _without_log(t.operands[0], p, rw, depth - 1)
        return found and (-found[0], found[1] and derived(t, "neg", jnp.negative, [found[1]]))
    a, b = t.operands
    minus = -1.0 if t.name == "sub" else 1.0
    if a.shape == t.shape and (found := _without_log(a, p, rw, depth - 1)) is not None:
        c, rest = found[1], rw(b)
        signed = derived(t, "neg", jnp.negative, [rest]) if minus < 0 else rest
        return found[0], signed if c is None else derived(t, "add", jnp.add, [c, signed])
    if b.shape == t.shape and (found := _without_log(b, p, rw, depth - 1)) is not None:
        c, rest = found[1], rw(a)
        if c is None:
            return minus * found[0], rest
        return minus * found[0], derived(t, t.name, jnp.subtract if minus < 0 else jnp.add, [rest, c])
    return None
