"""NaN in the arguments of a call: where it reaches what a tool looks at, nothing can be said of the program."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from robustad import _jaxpr
from robustad.diagnosis._arguments import Arguments, AuditError


def refuse_nan(taken: Arguments, reached: str) -> None:
    """Raises an AuditError if an argument holds NaN; `reached`: what it is known to make NaN."""
    for title, x in taken.inputs:
        if count := _count(x):
            raise AuditError(
                f"the inputs hold NaN: {count} of {x.size} elements of a {x.dtype}{list(x.shape)} array in `{title}`, and "
                f"it reaches {reached}. No equation of the program made it: clean that input, then try again. "
                "If it is masked, mask it before it is used, not after: f(jnp.where(jnp.isnan(x), 0., x))."
            )


def refuse_nan_that_reaches(taken: Arguments, outputs: Callable[..., Any], reached: str) -> None:
    """Raises an AuditError if NaN in the arguments, and nothing else, makes `outputs(leaves, others)` NaN.

    One that a mask keeps out is none of our business, and where others in its place give NaN too the program makes it.
    """
    given = [taken.leaves, taken.others]
    if not any(_count(x) for xs in given for x in xs):
        return
    run = jax.jit(outputs)

    def is_nan(leaves: Sequence[Array], others: Sequence[Array]) -> bool:
        return any(_count(x) for x in jax.tree.leaves(run(leaves, others)))

    if is_nan(*given) and not is_nan(*jax.tree.map(_without_nan, given)):
        refuse_nan(taken, reached)


def _count(x: Array) -> int:
    return int(jnp.isnan(x).sum()) if _jaxpr.is_inexact(x) else 0


def _without_nan(x: Array) -> Array:
    return jnp.where(jnp.isnan(x), jnp.ones_like(x), x) if _jaxpr.is_inexact(x) else x
