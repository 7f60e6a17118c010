r"""Quotients by an exponential, as of residuals by exp(log_scale): d(x e^(-s)) = ẋ e^(-s) - (x e^(-s)) ṡ.

The chain rule goes through 1/e^s and e^s, whose product is 1: where the quotient is large and the exponential small, a
cotangent times the one overflows, and the other does not bring it back.
"""

import jax.numpy as jnp
from jax import Array, lax

from robustad.rewriting._graph import Term
from robustad.rewriting._layout import spread
from robustad.rewriting._rewriter import Rewriter, replaced, rule
from robustad.stability._custom_jvp import custom_jvp


@custom_jvp
def _quotient(x: Array, e: Array, s: Array) -> Array:
    """x/e, where e = exp(s)."""
    return x / e


@_quotient.defjvp
def _quotient_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    x, e, s = primals
    of_x, _, of_s = tangents
    q = _quotient(x, e, s)
    return q, _quotient(of_x, e, s) - q * of_s


@rule("div", late=True)
def quotient(term: Term, rw: Rewriter) -> Term | None:
    x, bottom = term.operands
    seen = spread(bottom)
    if seen.source.name != "exp" or -1 in seen.dims or seen.source.dtype != term.dtype:
        return None

    def run(a: Array, e: Array, s: Array) -> Array:
        shape = jnp.broadcast_shapes(jnp.shape(a), jnp.shape(e))
        if s.shape and s.shape != shape:
            s = lax.broadcast_in_dim(s, jnp.shape(e), seen.dims)
        return _quotient(*(jnp.broadcast_to(y, shape) for y in (a, e, s)))

    return replaced(
        term, "derivative", run, [rw(x), rw(bottom), rw(seen.source.operands[0])], before="x / exp(s)",
        after="x / exp(s), with the derivative -x / exp(s) by s", elementwise=True,
        reason="the derivatives 1/exp(s)² and exp(s) leave the range where their product does not",
    )  # fmt: skip
