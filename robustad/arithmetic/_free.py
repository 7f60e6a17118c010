"""The program in float64 with decisions of its own: what the mathematics would have done, not what the program did."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from robustad import _jaxpr
from robustad._interpret import Arithmetic
from robustad._jaxpr import Equation, Path
from robustad.arithmetic import _shadow
from robustad.arithmetic._shadow import Shadow

_OF_BITS = frozenset("bitcast_convert_type nextafter random_gamma rng_uniform".split())
"""Made of the bits of the dtype that the program has."""

_RETYPED = frozenset("scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max reduce reduce_window".split())


@dataclasses.dataclass(frozen=True)
class FreeArithmetic(Arithmetic[Array]):
    """Values are arrays, those of floating dtypes in float64 (complex128)."""

    def lift(self, x: Any) -> Array:
        return _shadow.high(_shadow.lift(x))

    def plain(self, value: Array) -> Array:
        return value

    def equation(self, eqn: Equation, operands: Sequence[Array], path: Path) -> tuple[list[Array], None]:
        name = eqn.primitive.name
        if name in _OF_BITS or _shadow.is_lost(eqn):
            narrow = [_jaxpr.widen(x, _jaxpr.aval(v).dtype) for x, v in zip(operands, eqn.invars)]
            return [self.lift(x) for x in _jaxpr.evaluate(eqn, narrow)], None
        if name == "reduce_precision":
            return list(operands), None
        if name in _RETYPED:
            values = [Shadow(x, x if _jaxpr.is_inexact(x) else None) for x in operands]
            outs = _shadow.RULES[name](eqn, values, [_jaxpr.aval(v) for v in eqn.outvars])
            if all(out is not None for out in outs):
                return [jnp.asarray(out) for out in outs], None
        return [self.lift(x) for x in _jaxpr.evaluate(eqn, operands, **_shadow.widened_parameters(eqn))], None
