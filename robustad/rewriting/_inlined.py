"""Library functions that a program holds as equations, not as a call."""

import jax.numpy as jnp
from jax import Array

from robustad.rewriting._graph import Term, unwrapped
from robustad.rewriting._rewriter import Rewriter, replaced, rule
from robustad.rewriting.twins._elementwise import acos_of_contraction
from robustad.rewriting.twins._special import bessel_i0, bessel_i1

_BESSEL = {"bessel_i0e": ("i0", bessel_i0), "bessel_i1e": ("i1", bessel_i1)}


@rule("mul")
def bessel(term: Term, rw: Rewriter) -> Term | None:
    """e^|x| I₀ₑ(x), as `jax.scipy.special.i0` has it: the derivative cancels to 0 near 0, where it is x/2."""
    for growth, scaled in (term.operands, term.operands[::-1]):
        if scaled.name not in _BESSEL or growth.name != "exp" or unwrapped(growth.operands[0]).name != "abs":
            continue
        (x,) = scaled.operands
        if unwrapped(growth.operands[0]).operands[0] is not x:
            continue
        name, function = _BESSEL[scaled.name]
        return replaced(
            term, "function", function, [rw(x)], before=f"exp(|x|) {name}e(x)", after=f"{name}(x)",
            reason="the derivatives of the two factors cancel near 0", elementwise=True,
        )  # fmt: skip
    return None


@rule("acos")
def angle(term: Term, rw: Rewriter) -> Term | None:
    """arccos of a scalar product: that of equal unit vectors rounds to 1 or beyond, and the derivative to -inf or NaN.

    The angle has a kink there, and its smallest subgradient is 0.
    """
    (x,) = term.operands
    inner = unwrapped(x)
    product = inner.name == "dot_general" or (
        inner.name == "reduce_sum" and unwrapped(inner.operands[0]).name in ("mul", "square", "integer_pow")
    )
    if not product:
        return None

    def run(a: Array) -> Array:
        return acos_of_contraction(jnp.asarray(a))

    return replaced(
        term, "singular-point", run, [rw(x)], before="arccos(x · y)", after="arccos(x · y), with derivative 0 at the kink",
        reason="the scalar product of equal unit vectors rounds to 1, where the derivative is infinite", elementwise=True,
    )  # fmt: skip
