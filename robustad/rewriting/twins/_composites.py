"""Twins of whole library functions, which a program holds as named calls."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from robustad._jaxpr import Equation, aval

from . import _composites_elementwise, _composites_reductions
from ._library import is_call_of, name_of, spread
from ._twin import Twin

_ELEMENTWISE, _REDUCTIONS = _composites_elementwise.TABLE, _composites_reductions.TABLE
ELEMENTWISE = frozenset(_ELEMENTWISE)
"""The names of those that work element by element."""


def composite(eqn: Equation) -> Twin | None:
    """The twin of a call of a library function; None for others, the user's own and those that are right as they stand.

    A function with a rule of the user's (`custom_jvp`, `custom_vjp`) is never replaced.
    """
    name = name_of(eqn)
    if name is None or len(eqn.outvars) != 1 or not jnp.issubdtype(aval(eqn.outvars[0]).dtype, jnp.floating):
        return None
    if name in _ELEMENTWISE:
        reason, call, function = _ELEMENTWISE[name]
        if is_call_of(eqn, call, elementwise=True) and spread(eqn, [jnp.zeros(aval(x).shape) for x in eqn.invars]):
            return Twin(name, _of_equation(eqn, lambda *x: function(*(spread(eqn, x) or x))), reason)
    if name in _REDUCTIONS:
        reason, candidates = _REDUCTIONS[name]
        for call, function in candidates(eqn):
            if is_call_of(eqn, call):
                return Twin(name.lstrip("_"), _of_equation(eqn, function), reason)
    return None


def _of_equation(eqn: Equation, function: Any) -> Any:
    output = aval(eqn.outvars[0])

    def within(*operands: Array) -> list[Array]:
        with eqn.ctx.manager:
            arrays = [jnp.asarray(x, aval(v).dtype) for x, v in zip(operands, eqn.invars)]
            return [function(*arrays).astype(output.dtype)]

    return within
