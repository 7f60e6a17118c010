"""Twins that leave the range of float64 stay at its edges, and so differ from zeros and infinities still.

A probability that is 0 in float32 and in float64 alike has underflowed, though the two agree.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad import _jaxpr
from robustad._jaxpr import Equation

TINIEST = 2.0**-1022
LARGEST = (2 - 2.0**-52) * 2.0**1023

_PRODUCTS = frozenset({"reduce_prod", "cumprod"})
_UNDERFLOWING = _PRODUCTS | frozenset("mul div exp exp2 square integer_pow pow logistic erfc".split())
"""Of finite operands none of which is 0 they make no 0."""

_OVERFLOWING = (_UNDERFLOWING - {"logistic", "erfc"}) | frozenset("add sub add_any expm1 sinh cosh".split())
"""Of finite operands (of which a divisor is not 0) they make no infinity."""


def within_range(eqn: Equation, operands: Sequence[Array | None], outs: Sequence[Array | None]) -> list[Array | None]:
    """The twins `outs` of an equation's outputs, in float64, brought back to the range that they have left."""
    name, highs = eqn.primitive.name, [x for x in operands if x is not None]
    out = outs[0] if len(outs) == 1 else None
    if out is None or name not in _UNDERFLOWING | _OVERFLOWING or not all(map(jnp.isrealobj, [out, *highs])):
        return list(outs)
    finite, nonzero = jnp.asarray(True), jnp.asarray(True)
    for x in highs:
        here = jnp.isfinite(x), x != 0
        if name in _PRODUCTS:
            here = (_jaxpr.evaluate(eqn, [ok.astype(np.float64)])[0] == 1 for ok in here)
        finite, nonzero = (before & ok for before, ok in zip((finite, nonzero), here))
    if name in _UNDERFLOWING:
        out = jnp.where(finite & nonzero & (jnp.abs(out) < TINIEST), jnp.copysign(TINIEST, out), out)
    if name in _OVERFLOWING:
        regular = finite & nonzero if name in ("div", "pow", "integer_pow") else finite
        out = jnp.where(regular & jnp.isinf(out), jnp.copysign(LARGEST, out), out)
    return [out]
