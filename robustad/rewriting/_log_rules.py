"""The rules that take logarithms of what is carried as one (`_log_space`)."""

import jax.numpy as jnp
from jax import Array

from robustad import stability as st
from robustad.rewriting._graph import Term, scalar, unwrapped
from robustad.rewriting._layout import is_spread_of, reduced_axes, spread
from robustad.rewriting._log_space import complement, is_carried_by, outline, parts
from robustad.rewriting._rewriter import Rewriter, number, replaced, rule
from robustad.rewriting._softmax import softmax_of
from robustad.rewriting.twins import _shares as shares
from robustad.rewriting.twins._composites import composite


@rule("log", "log1p")
def log_of_reduced(term: Term, rw: Rewriter) -> Term | None:
    """As below, where a reduction or a selection of elements is under the logarithm, or 1 ± a function that tends to ∓1."""
    (operand,) = term.operands
    sign = {"add": 1.0, "sub": -1.0}.get(operand.name)
    near = sign is not None and scalar(operand.operands[0]) == 1 and complement(term, operand.operands[1], sign, rw)
    if not near and not _reduces(operand):
        return None
    return (log_of_carried if term.name == "log" else log1p_of_carried)(term, rw)


def _reduces(term: Term) -> bool:
    """Whether something not elementwise lies between a term and the exponentials that it is carried by."""
    stack, seen = [term], set()
    while stack:
        t = stack.pop()
        if t in seen or not is_carried_by(t.name):
            continue
        seen.add(t)
        if not t.step.elementwise:
            return True
        if t.name not in ("exp", "exp2", "logistic", "cosh", "erfc"):
            stack.extend(t.operands)
    return False


@rule("log", late=True)
def log_of_carried(term: Term, rw: Rewriter) -> Term | None:
    r"""log of exponentials, sums, products: \(\log(e^L r) = L + \log r\).

    The plain form evaluates e^L, which leaves the range where \(|L| > 88\) (float32) and has the derivative 0/0 or
    inf/inf there. L itself is of the size of the result. Source: Blanchard, Higham, Higham, IMA J. Numer. Anal. 41 (2021).
    """
    (operand,) = term.operands
    if (got := parts(operand, rw)) is None:
        return None
    kind = "log-space"
    reason = "what is under the logarithm leaves the range of the dtype long before its logarithm does"
    before, after = f"log({outline(operand)})", "its logarithm by sums of logarithms and logsumexp"
    told = {"before": before, "after": after, "reason": reason, "elementwise": True}
    if got.rest is None:
        return replaced(term, kind, lambda a: a, [got.log], **told)
    return replaced(term, kind, lambda a, b: a + st.log(b), [got.log, got.rest], **told)


@rule("log1p")
def log1p_of_complement(term: Term, rw: Rewriter) -> Term | None:
    """log(1 ± u) of a function u that tends to ∓1, by the exponential that is its distance."""
    (operand,) = term.operands
    sign, inner = (-1.0, operand.operands[0]) if operand.name == "neg" else (1.0, operand)
    if (got := complement(term, inner, sign, rw)) is None or got.rest is not None:
        return None
    return replaced(
        term, "log-space", lambda a: a, [got.log], before=f"log1p({outline(operand)})", after="its logarithm in log-space",
        reason="the function rounds to 1 far out, and what is left of the difference is its rounding", elementwise=True,
    )  # fmt: skip


@rule("atanh")
def inverse_of_tanh(term: Term, rw: Rewriter) -> Term | None:
    """artanh(tanh x): tanh rounds to 1, and with it goes x."""
    (operand,) = term.operands
    if operand.name != "tanh":
        return None
    return replaced(
        term, "inverse", lambda a: a, [rw(operand.operands[0])], before="arctanh(tanh(x))", after="x",
        reason="tanh rounds to 1 from 9.01 on (float32)", elementwise=True,
    )  # fmt: skip


@rule("custom_jvp_call")
def inverse_of_sigmoid(term: Term, rw: Rewriter) -> Term | None:
    """logit(sigmoid(x)), of the library: the sigmoid rounds to 1, and with it goes x."""
    eqn = term.step.equation
    if eqn is None or len(term.operands) != 1 or term.operands[0].name != "logistic":
        return None
    if (whole := composite(eqn)) is None or whole.name != "logit":
        return None
    return replaced(
        term, "inverse", lambda a: a, [rw(term.operands[0].operands[0])], before="logit(sigmoid(x))", after="x",
        reason="sigmoid rounds to 1 from 17 on (float32)", elementwise=True,
    )  # fmt: skip


@rule("log1p", late=True)
def log1p_of_carried(term: Term, rw: Rewriter) -> Term | None:
    r"""\(\log(1 + e^L)\) and \(\log(1 - e^L)\), whose plain derivative is inf/inf or loses the tail."""
    (operand,) = term.operands
    sign = 1.0
    if operand.name == "neg":
        (operand,), sign = operand.operands, -1.0
    got = parts(operand, rw)
    if got is None or got.rest is not None:
        return None
    name, run = (
        ("log1pexp", st.log1pexp) if sign > 0 else ("log1mexp", lambda a: jnp.where(a > 0, jnp.nan, st.log1mexp(a)))
    )
    return replaced(
        term, "log-space", run, [got.log],
        before=f"log1p({'-' if sign < 0 else ''}{outline(operand)})", after=f"{name} of its logarithm",
        reason="the exponential overflows, or 1 swallows it", elementwise=True,
    )  # fmt: skip


@rule("pow")
def root_of_product(term: Term, rw: Rewriter) -> Term | None:
    r"""\((\prod_i x_i)^q\) for |q| < 1, a geometric mean: \(\exp(q \sum_i \log x_i)\)."""
    base, exponent = term.operands
    q, inner = scalar(exponent), unwrapped(base)
    if q is None or abs(q) >= 1 or inner.name != "reduce_prod" or (got := parts(base, rw)) is None or got.rest is None:
        return None

    def run(a: Array, sign: Array) -> Array:
        return jnp.where(sign < 0, jnp.nan, jnp.exp(float(q) * a))

    return replaced(
        term, "log-space", run, [got.log, got.rest], before=f"prod(x)^{float(q):g}", after=f"exp({float(q):g} sum(log(x)))",
        reason="the product leaves the range of the dtype, its root does not", elementwise=True,
    )  # fmt: skip


@rule("div")
def weighted_softmax(term: Term, rw: Rewriter) -> Term | None:
    r"""\(w_i e^{u_i} / \sum_j w_j e^{u_j}\): 0/0 where all exponentials vanish, inf/inf where one is too large."""
    top, bottom = (unwrapped(t) for t in term.operands)
    total = spread(bottom).source
    axes = reduced_axes(total, "reduce_sum")
    if (
        axes is None
        or softmax_of(term) is not None
        or unwrapped(total.operands[0]) is not top
        or not _has_exponential(top)
    ):
        return None
    if not is_spread_of(bottom, total, axes, len(top.shape)) or (got := parts(top, rw)) is None:
        return None

    def run(log: Array, weight: Array) -> Array:
        return shares.weighted_softmax(jnp.broadcast_to(log, term.shape), jnp.broadcast_to(weight, term.shape), axes)

    return replaced(
        term, "softmax", run, [got.log, got.rest or number(term, 1.0)],
        before="w exp(x) / sum(w exp(x))", after="the same, less the largest exponent",
        reason="all exponentials together leave the range of the dtype, and their shares do not",
    )  # fmt: skip


def _has_exponential(term: Term, depth: int = 6) -> bool:
    """Whether an exponential is a factor of a term."""
    term = unwrapped(term)
    if term.name in ("exp", "exp2"):
        return True
    return depth > 0 and term.name in ("mul", "div") and any(_has_exponential(t, depth - 1) for t in term.operands)


@rule("sub")
def one_minus_product(term: Term, rw: Rewriter) -> Term | None:
    r"""\(1 - \prod_i p_i\) near 0, of factors whose logarithms are known: \(-\mathrm{expm1}(\sum_i \log p_i)\)."""
    for one, other, sign in ((*term.operands, -1.0), (*term.operands[::-1], 1.0)):
        inner = unwrapped(other)
        if scalar(one) != 1 or inner.name not in (
            "cumprod",
            "reduce_prod",
            "broadcast_in_dim",
            "slice",
            "gather",
            "squeeze",
        ):
            continue
        if inner.name == "reduce_prod" and parts(inner.operands[0], rw) is None:
            continue
        if (got := parts(other, rw)) is None or got.rest is not None:
            continue

        def run(a: Array, s: float = sign) -> Array:
            return s * st.expm1(a)

        return replaced(
            term, "log-space", run, [got.log], before=f"1 - {outline(other)}", after="-expm1 of its logarithm",
            reason="the product rounds to 1, and the difference is lost", elementwise=True,
        )  # fmt: skip
    return None
