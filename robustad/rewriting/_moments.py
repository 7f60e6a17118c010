"""Norms and variances written by hand."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from robustad import stability as st
from robustad.rewriting._graph import Term, scalar, unwrapped
from robustad.rewriting._layout import mean_of, reduced_axes, spread
from robustad.rewriting._log_space import squared
from robustad.rewriting._rewriter import Rewriter, replaced, rule
from robustad.rewriting._softmax import placed


def sum_of_squares(term: Term) -> tuple[Term, tuple[int, ...], tuple[int, ...]] | None:
    """(x, axes, dims) where a term is Σ x² over axes, spread with the axes of the sum at dims."""
    seen = spread(term)
    inner = seen.source
    if (axes := reduced_axes(inner, "reduce_sum")) is not None:
        x = squared(unwrapped(inner.operands[0]))
        return None if x is None or not x.floating else (x, axes, seen.dims)
    if inner.name == "dot_general" and inner.operands[0] is inner.operands[1]:
        (x, _), (left, right), (batch, _) = inner.operands, *inner.params["dimension_numbers"]
        if left == right and not batch and len(left) == len(x.shape) and x.floating:
            return x, tuple(range(len(x.shape))), seen.dims
    return None


def scaled_sum_of_squares(term: Term) -> tuple[Term, tuple[int, ...], tuple[int, ...], float] | None:
    """(x, axes, dims, c) where a term is c Σ x², c a positive constant."""
    if (plain := sum_of_squares(term)) is not None:
        return (*plain, 1.0)
    inner = unwrapped(term)
    if inner.name not in ("mul", "div"):
        return None
    for total, factor in (inner.operands, inner.operands[::-1])[: 1 if inner.name == "div" else 2]:
        c = scalar(factor)
        if c is not None and 0 < c < math.inf and (of := sum_of_squares(total)) is not None:
            return (*of, float(1 / c if inner.name == "div" else c))
    return None


@rule("sqrt")
def norm(term: Term, rw: Rewriter) -> Term | None:
    """√(c Σ x²): the squares leave the range from 1e19 and below 1e-19 (float32), and the derivative at 0 is 0 · inf."""
    (operand,) = term.operands
    if (x := squared(unwrapped(operand))) is not None and x.floating and x.dtype == term.dtype:
        return replaced(
            term, "abs", lambda a: jnp.abs(a), [rw(x)], before="sqrt(x²)", after="abs(x)",
            reason="x² leaves the range, and the derivative at 0 is 0 · inf", elementwise=True,
        )  # fmt: skip
    if (found := scaled_sum_of_squares(operand)) is None:
        return None
    x, axes, dims, c = found
    factor = math.sqrt(c)

    def run(a: Any) -> Any:
        size = st.norm(a, axis=axes) if len(axes) <= 1 else st.norm(_flat(a, axes), axis=-1)
        return placed(size if factor == 1.0 else size * jnp.asarray(factor, size.dtype), dims, term.shape)

    return replaced(
        term, "norm", run, [rw(x)], before="sqrt(sum(x²))", after="norm(x)",
        reason="the squares overflow from 1.8e19 and vanish below 1.1e-19 (float32); the derivative at 0 is 0 · inf",
    )  # fmt: skip


def _power_of(term: Term) -> tuple[Term, float] | None:
    """(x, n) where a term is |x|ⁿ for a positive constant n."""
    if term.name in ("integer_pow", "square"):
        x, n = term.operands[0], float(term.params.get("y", 2))
    elif term.name == "pow" and (exponent := scalar(term.operands[1])) is not None:
        x, n = term.operands[0], float(exponent)
    else:
        return None
    inner = unwrapped(x)
    positive = inner.name == "abs"
    return (inner.operands[0] if positive else x, n) if n > 0 and (positive or n % 2 == 0) else None


@rule("pow")
def power_norm(term: Term, rw: Rewriter) -> Term | None:
    """(c Σ xⁿ)^(1/n) for an even n, (c Σ |x|ⁿ)^(1/n): the powers leave the range long before the norm does."""
    base, exponent = term.operands
    q = scalar(exponent)
    inner = unwrapped(base)
    c = 1.0
    if inner.name in ("mul", "div") and (factor := scalar(inner.operands[1])) is not None and 0 < factor < math.inf:
        c = float(1 / factor if inner.name == "div" else factor)
        inner = unwrapped(inner.operands[0])
    seen = spread(inner)
    axes = reduced_axes(seen.source, "reduce_sum")
    if axes is None or q is None:
        return None
    if (found := _power_of(unwrapped(seen.source.operands[0]))) is None or abs(q * found[1] - 1) > 1e-6:
        return None
    x, n = found

    def run(a: Any) -> Any:
        size = st.norm(_flat(a, axes), n, axis=-1)
        return placed(size * jnp.asarray(c ** (1 / n), size.dtype), seen.dims, term.shape)

    return replaced(
        term, "norm", run, [rw(x)], before=f"sum(x^{n:g})^(1/{n:g})", after=f"norm(x, {n:g})",
        reason=f"x^{n:g} leaves the range of the dtype from {n:g} times smaller exponents on",
    )  # fmt: skip


def _flat(a: Any, axes: tuple[int, ...]) -> Any:
    """The axes as one, the last."""
    moved = jnp.moveaxis(a, axes, range(a.ndim - len(axes), a.ndim))
    return moved.reshape(*moved.shape[: a.ndim - len(axes)], -1)


@rule("sub")
def variance(term: Term, rw: Rewriter) -> Term | None:
    """E[x²] - E[x]² and E[xy] - E[x]E[y]: cancels where the mean is large beside the spread (Chan, Golub, LeVeque 1983)."""
    of_product = mean_of(spread(term.operands[0]).source)
    if of_product is None or spread(term.operands[0]).source.shape != term.shape:
        return None
    product, axes = of_product
    product = unwrapped(product)
    left = [n for i, n in enumerate(product.shape) if i not in axes and n != 1]
    if [n for n in term.shape if n != 1] != left:
        return None  # repeated
    second = spread(term.operands[1]).source
    if (x := squared(product)) is not None:
        mean = squared(second)
        if mean is None or not _is_mean_of(mean, x, axes):
            return None

        def centred(a: Any) -> Any:
            d = a - jnp.mean(a, axes, keepdims=True)
            return jnp.mean(d * d, axes) - jnp.square(
                jnp.mean(d, axes)
            )  # the mean is rounded: the corrected two-pass form

        told = ("mean(x²) - mean(x)²", "mean((x - mean(x))²)")
        return _moment(term, centred, [rw(x)], told)
    if product.name == "mul" and second.name == "mul":
        (a, b), (u, v) = product.operands, second.operands
        for m, n in ((u, v), (v, u)):
            if _is_mean_of(m, a, axes) and _is_mean_of(n, b, axes):

                def covariance(p: Any, q: Any) -> Any:
                    p, q = jnp.broadcast_arrays(p, q)
                    p, q = p - jnp.mean(p, axes, keepdims=True), q - jnp.mean(q, axes, keepdims=True)
                    return jnp.mean(p * q, axes) - jnp.mean(p, axes) * jnp.mean(q, axes)

                told = ("mean(x y) - mean(x) mean(y)", "mean((x - mean(x)) (y - mean(y)))")
                return _moment(term, covariance, [rw(a), rw(b)], told)
    return None


def _is_mean_of(term: Term, x: Term, axes: tuple[int, ...]) -> bool:
    got = mean_of(spread(term).source)
    return got is not None and unwrapped(got[0]) is unwrapped(x) and got[1] == axes


def _moment(term: Term, run: Callable[..., Any], operands: list[Term], told: tuple[str, str]) -> Term:
    def shaped(*arrays: Any) -> Any:
        return jnp.reshape(run(*arrays), term.shape)

    return replaced(
        term, "variance", shaped, operands, before=told[0], after=told[1],
        reason="two numbers of the size of the squared mean cancel to one of the size of the variance",
    )  # fmt: skip
