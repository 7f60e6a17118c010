"""Variances and covariances written by hand."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from robustad.rewriting._graph import Term, unwrapped
from robustad.rewriting._layout import mean_of, spread
from robustad.rewriting._log_space import squared
from robustad.rewriting._rewriter import Rewriter, replaced, rule


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
