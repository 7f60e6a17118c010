"""The logarithm of what is made of exponentials, products and sums: carried, never evaluated.

`log` of a quotient, product, power or sum of exponentials overflows or underflows in the middle although its value is of
moderate size (Theano and PyTensor's `local_log_*` rewrites are special cases, for forward graphs). Here a term is taken
apart as sign-free factors, exp(L) · rest, where L is computed by sums, logsumexp and the stable twins of log-space, and
log(term) = L + log(rest).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import Array, lax

from robustad import stability as st
from robustad.rewriting._graph import Term, made_by, scalar, unwrapped
from robustad.rewriting._layout import reduced_axes
from robustad.rewriting._rewriter import Rewriter, derived, number
from robustad.rewriting._softmax import softmax_of
from robustad.rewriting.twins import _shares as shares


class Parts(NamedTuple):
    """A term as exp(log) · rest, of the term's shape (or a scalar); `rest` None for 1. Both are rewritten terms."""

    log: Term
    rest: Term | None


_Taken: TypeAlias = "Callable[[Term, Rewriter], Parts | None]"
_PARTS: dict[str, _Taken] = {}
_DEEPEST = 64  # how many operations may lie between a logarithm and the exponentials


def parts_of(*primitives: str) -> Callable[[_Taken], _Taken]:
    """Registers how what these primitives make is taken apart."""

    def register(f: _Taken) -> _Taken:
        for name in primitives:
            if name in _PARTS:
                raise ValueError(f"`{name}` is taken apart in two ways")
            _PARTS[name] = f
        return f

    return register


def is_carried_by(primitive: str) -> bool:
    """Whether what a primitive makes may be taken apart."""
    return primitive in _PARTS


def parts(term: Term, rw: Rewriter) -> Parts | None:
    """A term taken apart; None where nothing in it is carried as a logarithm, or only far below."""
    if term not in rw.carried:
        rw.carried[term] = None
        if rw.depth < _DEEPEST:
            rw.depth += 1
            rw.carried[term] = _parts(term, rw)
            rw.depth -= 1
    return rw.carried[term]


def _parts(term: Term, rw: Rewriter) -> Parts | None:
    seen = unwrapped(term)
    take = _PARTS.get(seen.name)
    got = take(seen, rw) if take else None
    if got is None or seen is term:
        return got
    log = derived(term, "convert", lambda a: a, [got.log])
    return Parts(log, got.rest and derived(term, "convert", lambda a: a, [got.rest]))


def outline(term: Term, depth: int = 5) -> str:
    """A term as a formula, to a few levels."""
    term = unwrapped(term)
    if (value := scalar(term)) is not None:
        return f"{float(value):g}"
    if depth == 0 or not term.operands:
        return "x" if term.name == "input" else "…"
    inner = [outline(t, depth - 1) for t in term.operands[:3]]
    signs = {"add": " + ", "sub": " - ", "mul": " · ", "div": " / "}
    if term.name in signs and len(inner) == 2:
        return f"({signs[term.name].join(inner)})"
    if term.name in ("broadcast_in_dim", "reshape", "squeeze", "convert_element_type", "stop_gradient", "transpose"):
        return inner[0]
    if term.name in ("slice", "dynamic_slice", "gather"):
        return f"{inner[0]}[…]"
    names = {"reduce_sum": "sum", "reduce_prod": "prod", "reduce_max": "max", "logistic": "sigmoid"}
    return f"{names.get(term.name, term.name)}({', '.join(inner)})"


# ---------------------------------------------------------------------------------------- exponentials, sigmoids


@parts_of("exp")
def _exp(term: Term, rw: Rewriter) -> Parts:
    return Parts(rw(term.operands[0]), None)


@parts_of("exp2")
def _exp2(term: Term, rw: Rewriter) -> Parts:
    return Parts(derived(term, "mul", lambda a: a * math.log(2), [rw(term.operands[0])]), None)


@parts_of("logistic")
def _logistic(term: Term, rw: Rewriter) -> Parts:
    return Parts(derived(term, "log_sigmoid", st.log_sigmoid, [rw(term.operands[0])]), None)


@parts_of("cosh")
def _cosh(term: Term, rw: Rewriter) -> Parts:
    return Parts(derived(term, "log_cosh", st.log_cosh, [rw(term.operands[0])]), None)


def _log_erfc(x: Array) -> Array:
    return st.log_ndtr(-math.sqrt(2) * x) + math.log(2)


@parts_of("erfc")
def _erfc(term: Term, rw: Rewriter) -> Parts:
    return Parts(derived(term, "log_erfc", _log_erfc, [rw(term.operands[0])]), None)


# ----------------------------------------------------------------------------------------- products and powers


def _times(like: Term, a: Term | None, b: Term | None, sign: float = 1.0) -> Term | None:
    """a·b (a/b for a negative sign) of two factors, None being 1."""
    if a is None and b is None:
        return None
    if b is None:
        return a
    if a is None:
        return b if sign > 0 else derived(like, "div", lambda y: 1 / y, [b])
    return derived(like, "mul" if sign > 0 else "div", jnp.multiply if sign > 0 else st.divide, [a, b])


def factor(term: Term, rw: Rewriter) -> Parts:
    """A term as a factor beside carried ones: itself, not carried."""
    if (c := scalar(term)) is not None and 0 < c < math.inf:
        return Parts(number(term, math.log(c)), None)
    return Parts(number(term, 0.0), rw(term))


def both(term: Term, rw: Rewriter) -> tuple[Parts, Parts] | None:
    """Both operands taken apart, if one of them is carried."""
    a, b = (parts(t, rw) for t in term.operands)
    if a is None and b is None:
        return None
    first, second = term.operands
    a, b = a or factor(first, rw), b or factor(second, rw)
    return a, b


@parts_of("mul")
def _mul(term: Term, rw: Rewriter) -> Parts | None:
    for constant, other in (term.operands, term.operands[::-1]):
        if (c := scalar(constant)) is not None and 0 < c < math.inf and (half := _half(term, other, rw)) is not None:
            return Parts(half if c == 0.5 else derived(term, "add", lambda a, c=c: a + math.log(2 * c), [half]), None)
    if (got := both(term, rw)) is None:
        return None
    a, b = got
    return Parts(derived(term, "add", jnp.add, [a.log, b.log]), _times(term, a.rest, b.rest))


@parts_of("div")
def _div(term: Term, rw: Rewriter) -> Parts | None:
    if (soft := softmax_of(term)) is not None:
        run = lambda x: shares.log_softmax(x, soft.axes)  # noqa: E731
        return Parts(derived(term, "log_softmax", run, [rw(soft.logits)], elementwise=False), None)
    if (got := both(term, rw)) is None:
        return None
    a, b = got
    return Parts(derived(term, "sub", jnp.subtract, [a.log, b.log]), _times(term, a.rest, b.rest, -1.0))


@parts_of("pow")
def _pow(term: Term, rw: Rewriter) -> Parts | None:
    base, exponent = term.operands
    if (got := parts(base, rw)) is None or got.rest is not None:
        return None
    return Parts(derived(term, "mul", jnp.multiply, [got.log, rw(exponent)]), None)


@parts_of("integer_pow", "square")
def _integer_pow(term: Term, rw: Rewriter) -> Parts | None:
    if (got := parts(term.operands[0], rw)) is None:
        return None
    n = term.params.get("y", 2)
    rest = got.rest and derived(term, "integer_pow", lambda r: lax.integer_pow(r, n), [got.rest])
    return Parts(derived(term, "mul", lambda a: n * a, [got.log]), rest)


@parts_of("sqrt", "rsqrt", "cbrt")
def _root(term: Term, rw: Rewriter) -> Parts | None:
    got = parts(term.operands[0], rw)
    if got is None or got.rest is not None:
        return None
    share = {"sqrt": 1 / 2, "rsqrt": -1 / 2, "cbrt": 1 / 3}[term.name]
    return Parts(derived(term, "mul", lambda a: share * a, [got.log]), None)


# ------------------------------------------------------------------------------------------------------- sums


@parts_of("reduce_sum")
def _reduce_sum(term: Term, rw: Rewriter) -> Parts | None:
    (operand,), axes = term.operands, reduced_axes(term, "reduce_sum")
    if (got := parts(operand, rw)) is None:
        return None
    log, rest = (x and filled(x, operand) for x in got)
    assert log is not None
    if rest is None:
        run = lambda a: st.logsumexp(a, axes)  # noqa: E731
        return Parts(derived(term, "logsumexp", run, [log], elementwise=False), None)
    return weighted(term, [log, rest], lambda a, b: st.logsumexp(a, axes, b, return_sign=True), elementwise=False)


@parts_of("cumsum")
def _cumsum(term: Term, rw: Rewriter) -> Parts | None:
    got = parts(term.operands[0], rw)
    if got is None or got.rest is not None:
        return None
    axis, reverse = term.params["axis"], term.params["reverse"]

    def run(a: Array) -> Array:
        return lax.associative_scan(st.logaddexp, a, reverse, axis)

    return Parts(derived(term, "logaddexp", run, [filled(got.log, term.operands[0])], elementwise=False), None)


def filled(part: Term, like: Term) -> Term:
    """A part of the shape of the whole."""
    return part if part.shape == like.shape else derived(like, "broadcast", lambda a: a, [part])


def weighted(term: Term, operands: Sequence[Term], run: Callable[..., tuple[Array, Array]], elementwise: bool) -> Parts:
    log = derived(term, "logsumexp", lambda *x: run(*x)[0], operands, elementwise)
    sign = derived(term, "sign", lambda *x: lax.stop_gradient(run(*x)[1]), operands, elementwise)
    return Parts(log, sign)


@parts_of("add", "add_any")
def _add(term: Term, rw: Rewriter) -> Parts | None:
    if (got := _complement(term, rw, 1.0)) is not None:
        return got
    if (got := both(term, rw)) is None:
        return None
    a, b = got
    if a.rest is None and b.rest is None:
        return Parts(derived(term, "logaddexp", st.logaddexp, [a.log, b.log]), None)
    return _signed_sum(term, a, b, 1.0)


@parts_of("sub")
def _sub(term: Term, rw: Rewriter) -> Parts | None:
    if (got := _complement(term, rw, -1.0)) is not None:
        return got
    if (got := both(term, rw)) is None:
        return None
    a, b = got
    if a.rest is None and b.rest is None:
        larger = lambda x, y: st.logsubexp(jnp.maximum(x, y), jnp.minimum(x, y))  # noqa: E731
        log = derived(term, "logsubexp", larger, [a.log, b.log])
        if scalar(term.operands[0]) == 1 and made_by(term.operands[1], "exp"):
            return Parts(log, derived(term, "sign", lambda y: jnp.where(y > 0, -1.0, 1.0), [b.log]))
        return Parts(log, derived(term, "sign", lambda x, y: jnp.where(x < y, -1.0, 1.0), [a.log, b.log]))
    return _signed_sum(term, a, b, -1.0)


def _signed_sum(term: Term, a: Parts, b: Parts, sign: float) -> Parts:
    """exp(L₁)·r₁ ± exp(L₂)·r₂ by logsumexp with weights."""
    one = number(term, 1.0)

    def run(la: Array, ra: Array, lb: Array, rb: Array) -> tuple[Array, Array]:
        logs = jnp.stack([jnp.broadcast_to(a, term.shape) for a in (la, lb)])
        weights = jnp.stack([jnp.broadcast_to(a, term.shape) for a in (ra, sign * rb)])
        return st.logsumexp(logs, 0, weights, return_sign=True)

    return weighted(term, [a.log, a.rest or one, b.log, b.rest or one], run, elementwise=True)


def _half(like: Term, term: Term, rw: Rewriter, side: int = 1) -> Term | None:
    """The logarithm of half of a term that tends to 2 on one side and to 0 on the other, of the shape of `like`: near 0
    there, it would be lost beside log 2. side: -1 for the logarithm of 1 less that half."""
    term = unwrapped(term)
    if term.name == "select_n":
        which, *cases = term.operands
        if None in (halves := [_half(term, case, rw, side) for case in cases]):
            return None
        run = lambda w, *x: lax.select_n(w, *(jnp.broadcast_to(a, term.shape) for a in x))  # noqa: E731
        return derived(like, "select_n", run, [rw(which), *(h for h in halves if h)])
    if term.name == "erfc":
        return derived(like, "log_ndtr", lambda x: st.log_ndtr(-side * math.sqrt(2) * x), [rw(term.operands[0])])
    if term.name not in ("add", "sub"):
        return None
    for k, (constant, other) in enumerate((term.operands, term.operands[::-1])):
        sign, other = 1.0 if term.name == "add" else -1.0, unwrapped(other)
        if k == 1 and sign < 0:
            break
        if other.name == "neg":
            sign, other = -sign, unwrapped(other.operands[0])
        functions: dict[tuple[Any, str, float], Callable[[Array], Array]] = {
            (1, "erf", sign): lambda x, s=side * sign: st.log_ndtr(s * math.sqrt(2) * x),
            (1, "tanh", sign): lambda x, s=side * sign: st.log_sigmoid(2 * s * x),
            (2, "erfc", -1.0): lambda x: st.log_ndtr(side * math.sqrt(2) * x),
        }
        if run := functions.get((scalar(constant), other.name, sign)):
            return derived(like, f"log(half of {scalar(constant)} ± {other.name})", run, [rw(other.operands[0])])
    return None


def _complement(term: Term, rw: Rewriter, sign: float) -> Parts | None:
    """1 ± a function that tends to ∓1, or 2 - one that tends to 2, as an exponential."""
    if sign < 0 and scalar(term.operands[0]) == 2 and unwrapped(term.operands[1]).name == "erfc":
        (x,) = unwrapped(term.operands[1]).operands
        return Parts(derived(term, "log(2 - erfc)", lambda x: _log_erfc(-x), [rw(x)]), None)
    for one, other in [term.operands] if sign < 0 else [term.operands, term.operands[::-1]]:
        if scalar(one) == 1 and (got := complement(term, other, sign, rw)) is not None:
            return got
    return None


def complement(like: Term, other: Term, sign: float, rw: Rewriter) -> Parts | None:
    """1 ± u, of the shape of `like`, for a sigmoid, tanh, tanh², erf, or a distribution function made of one."""
    other = unwrapped(other)
    if other.name == "neg" and sign > 0:
        (other,), sign = other.operands, -1.0
    if other.name == "mul" and sign < 0:
        a, b = other.operands
        twice = b if scalar(a) == 0.5 else a if scalar(b) == 0.5 else None
        if twice is not None and (half := _half(like, twice, rw, -1)) is not None:
            return Parts(half, None)
    if (base := squared(other)) is not None and sign < 0 and unwrapped(base).name == "tanh":
        (x,) = unwrapped(base).operands
        return Parts(derived(like, "log_cosh", lambda x: -2 * st.log_cosh(x), [rw(x)]), None)
    functions: dict[str, Callable[[Array], Array]] = {
        "tanh": lambda x: st.log_sigmoid(2 * sign * x) + math.log(2),
        "erf": lambda x: _log_erfc(-sign * x),
    }
    if sign < 0:
        functions["logistic"] = lambda x: st.log_sigmoid(-x)
    if other.name not in functions:
        return None
    return Parts(derived(like, f"log(1 ± {other.name})", functions[other.name], [rw(other.operands[0])]), None)


def squared(term: Term) -> Term | None:
    if term.name == "square" or (term.name == "integer_pow" and term.params["y"] == 2):
        return term.operands[0]
    if term.name == "mul" and term.operands[0] is term.operands[1]:
        return term.operands[0]
    return None


@parts_of("reduce_prod")
def _reduce_prod(term: Term, rw: Rewriter) -> Parts | None:
    (operand,), axes = term.operands, tuple(term.params["axes"])
    got = parts(operand, rw)
    if got is None:
        x = rw(operand)
        log = derived(term, "sum of logs", lambda a: jnp.sum(st.log(jnp.abs(a)), axes), [x], elementwise=False)
        sign = lambda a: jnp.prod(lax.stop_gradient(jnp.sign(a) + (a == 0)), axes)  # noqa: E731
        return Parts(log, derived(term, "sign", sign, [x], elementwise=False))
    log, rest = (x and filled(x, operand) for x in got)
    assert log is not None
    rest = rest and derived(term, "prod", lambda a: jnp.prod(a, axes), [rest], elementwise=False)
    return Parts(derived(term, "sum", lambda a: jnp.sum(a, axes), [log], elementwise=False), rest)


@parts_of("cumprod")
def _cumprod(term: Term, rw: Rewriter) -> Parts | None:
    if (got := parts(term.operands[0], rw)) is None:
        return None
    axis, reverse = term.params["axis"], term.params["reverse"]
    log, rest = (x and filled(x, term.operands[0]) for x in got)
    assert log is not None
    rest = rest and derived(term, "cumprod", lambda a: lax.cumprod(a, axis, reverse), [rest], elementwise=False)
    return Parts(derived(term, "cumsum", lambda a: lax.cumsum(a, axis, reverse), [log], elementwise=False), rest)
