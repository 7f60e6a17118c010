"""What an exact walk costs, before it is walked."""

import numpy as np

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Cond, Equation, Scan, ShardMap, While

DISPATCH = 100.0
"""Of one equation, however small: its evaluation by JAX and Python, in scalar operations of 0.2 µs."""

_WEIGHTS = dict.fromkeys(
    "exp log log1p expm1 tanh logistic sin cos tan sinh cosh pow sqrt rsqrt cbrt div".split(), 4.0
) | (
    dict.fromkeys("erf erfc erf_inv lgamma digamma atan2 asin acos atan asinh acosh atanh exp2 log2".split(), 15.0)
    | dict.fromkeys("igamma igammac polygamma zeta bessel_i0e bessel_i1e regularized_incomplete_beta".split(), 300.0)
    | {"igamma_grad_a": 3000.0}
)


class TooLarge(Exception):  # noqa: N818 (what happened, not a fault)
    """An exact walk costs more than its limit."""


def _size(atom) -> float:
    return float(np.prod(getattr(_jaxpr.aval(atom), "shape", ()), dtype=float))


def cost(eqn: Equation) -> float:
    """Scalar operations of one plain equation; of integers alone, nothing but its dispatch."""
    if not any(_jaxpr.is_inexact(v) for v in eqn.outvars):
        return DISPATCH
    name, out = eqn.primitive.name, max(_size(v) for v in eqn.outvars)
    largest = max([out, *(_size(v) for v in eqn.invars)])
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = _jaxpr.aval(eqn.invars[0]).shape
        return DISPATCH + out * float(np.prod([shape[d] for d in contracted], dtype=float))
    if name == "conv_general_dilated":
        channels = _jaxpr.aval(eqn.invars[1]).shape[eqn.params["dimension_numbers"].rhs_spec[0]]
        return DISPATCH + out * _size(eqn.invars[1]) / max(channels, 1)
    if "window_dimensions" in eqn.params:
        return DISPATCH + largest + out * float(np.prod(eqn.params["window_dimensions"], dtype=float))
    if name in ("cholesky", "lu", "qr", "triangular_solve"):
        return DISPATCH + largest * max(_jaxpr.aval(eqn.invars[0]).shape[-2:])
    return DISPATCH + largest * _WEIGHTS.get(name, 1.0)


def program_cost(program: Body) -> float:
    """Scalar operations of a program: loops times their length, `while` loops once, the dearest branch."""
    total = 0.0
    for eqn in program.equations:
        match _jaxpr.control(eqn):
            case None:
                total += cost(eqn)
            case Scan(body=inner, length=length):
                total += length * program_cost(inner)
            case While(cond=cond, body=inner):
                total += program_cost(cond) + program_cost(inner)
            case Cond(branches=branches):
                total += max(map(program_cost, branches))
            case Call(body=inner) | ShardMap(body=inner):
                total += program_cost(inner)
    return total
