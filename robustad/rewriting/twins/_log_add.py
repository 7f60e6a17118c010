"""The logarithm of a sum of two exponentials: its derivatives, the shares, are logistic functions of the difference."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ._elementwise import logistic
from ._library import of
from ._twin import Term, constant, elementwise


def _share(unit: float, t: Array, own: Array, other: Array) -> Array:
    """t eˣ/(eˣ + eʸ), x in a unit: none where both are -inf, half where both are inf."""
    difference = (own - other) * unit if unit != 1 else own - other
    infinite = (own == other) & (
        lax.abs(own) == np.inf
    )  # finite ones that are equal still have a difference that moves
    share = logistic(lax.select(infinite, constant(own, 0), difference))
    return lax.select(infinite & (own < 0), constant(t, 0), t * share)


def log_sum_terms(unit: float) -> tuple[Term, Term]:
    return (
        lambda t, z, x, y: _share(unit, t, x, y),
        lambda t, z, x, y: _share(unit, t, y, x),
    )


log_add = elementwise(of(jnp.logaddexp), *log_sum_terms(1.0))
