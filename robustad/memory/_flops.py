"""How much arithmetic an equation does, from its shapes: one operation an element, two a multiplication and addition.

As XLA counts, but for two things: a loop's body counts as often as it runs (a `while`, whose count is not in the program,
once), and data that is only moved counts nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from robustad import _jaxpr
from robustad._jaxpr import Body, Cond, Scan, While

_MOVES = frozenset(
    """after all_gather bitcast_convert_type broadcast broadcast_in_dim concatenate convert_element_type copy copy_p
    device_put dynamic_slice dynamic_update_slice empty expand_dims full gather iota name optimization_barrier pad
    ppermute pvary random_unwrap random_wrap reduce_precision reshape rev select_n sharding_constraint slice
    split squeeze stop_gradient transpose""".split()
)
_OVER_INPUT = ("reduce_", "cum", "arg", "scatter", "psum", "reduce", "select_and_")


def program_flops(program: Body) -> int:
    """The operations of a whole program."""
    return sum(map(equation_flops, program.equations))


def recomputed_flops(program: Body) -> int:
    """The operations that checkpoints in a gradient do a second time."""
    total = 0
    for eqn in program.equations:
        if _jaxpr.is_recomputed(eqn):
            total += equation_flops(eqn)
        elif inner := _jaxpr.control(eqn):
            times = inner.length if isinstance(inner, Scan) else 1
            total += times * sum(map(recomputed_flops, _jaxpr.bodies(inner)))
    return total


def equation_flops(eqn: Any) -> int:
    """The operations of an equation, those inside it included."""
    own = eqn.params.get("loop", eqn.params.get("map"))
    if hasattr(own, "operations") and (count := own.operations()) is not None:
        return count  # a loop of ours knows how often its steps run
    inner = _jaxpr.control(eqn)
    match inner:
        case None:
            operands, results = (
                [getattr(_jaxpr.aval(a), "shape", ()) for a in atoms] for atoms in (eqn.invars, eqn.outvars)
            )
            return primitive_flops(eqn.primitive.name, operands, results, eqn.params)
        case Scan():
            return inner.length * program_flops(inner.body)
        case While():
            return program_flops(inner.body) + program_flops(inner.cond)
        case Cond():
            return max(map(program_flops, inner.branches), default=0)
        case _:
            return program_flops(inner.body)


def primitive_flops(name: str, operands: Sequence[Any], results: Sequence[Any], params: dict[str, Any]) -> int:
    """The operations of a primitive on operands of these shapes."""
    if name in _MOVES:
        return 0
    if name in _COUNTED:
        return _COUNTED[name](operands, results, params)
    shapes = operands if name.startswith(_OVER_INPUT) else results
    return max(map(math.prod, shapes), default=0)


def _dot(operands: Sequence[Any], results: Sequence[Any], params: dict[str, Any]) -> int:
    (contracted, _), _ = params["dimension_numbers"]
    return 2 * math.prod(results[0]) * math.prod(operands[0][i] for i in contracted)


def _convolution(operands: Sequence[Any], results: Sequence[Any], params: dict[str, Any]) -> int:
    kernel = operands[1]
    return 2 * math.prod(results[0]) * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]


def _sort(operands: Sequence[Any], results: Sequence[Any], params: dict[str, Any]) -> int:
    return math.prod(operands[0]) * max(1, math.ceil(math.log2(max(2, operands[0][-1] if operands[0] else 1))))


def _cubic(factor: float) -> Callable[..., int]:
    """Of square matrices, `factor` n^3."""

    def count(operands: Sequence[Any], results: Sequence[Any], params: dict[str, Any]) -> int:
        return int(factor * math.prod(operands[0]) * operands[0][-1])

    return count


def _solve(operands: Sequence[Any], results: Sequence[Any], params: dict[str, Any]) -> int:
    return math.prod(results[0]) * operands[0][-1]


_COUNTED = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "sort": _sort,
    "top_k": _sort,
    "triangular_solve": _solve,
    "cholesky": _cubic(1 / 3),
    "lu": _cubic(2 / 3),
    "qr": _cubic(4 / 3),
    "eigh": _cubic(9),
    "svd": _cubic(20),
    "random_bits": lambda operands, results, params: 20 * math.prod(results[0]),  # the rounds of threefry
    "threefry2x32": lambda operands, results, params: 20 * math.prod(results[0]),
}
