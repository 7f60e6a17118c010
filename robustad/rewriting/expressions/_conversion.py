"""From programs to expressions: what an equation's primitive means for scalars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr
from robustad.rewriting.expressions._expression import Expr, const, rational, var

_SAME_NAME = frozenset(
    """add sub mul div neg exp exp2 expm1 log log1p sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh
    logistic sqrt rsqrt cbrt pow erf erfc lgamma digamma abs sign max min lt le gt ge eq ne and or not""".split()
)
_TRANSPARENT = frozenset("copy copy_p pvary broadcast_in_dim reshape squeeze".split())


def expression_of(primitive: str, params: Mapping[str, Any], operands: Sequence[Expr]) -> Expr | None:
    """The expression that an elementwise equation computes of its operands'; None where it has none: make it a leaf.

    Conversions of dtype are the caller's: only one that widens is transparent.
    """
    if primitive in _SAME_NAME:
        return None if params.get("accuracy") is not None else Expr(primitive, tuple(operands))
    match primitive:
        case "integer_pow":
            return Expr("integer_pow", tuple(operands), int(params["y"]))
        case "polygamma" if (order := rational(operands[0])) is not None and order > 0 and order.denominator == 1:
            return Expr("polygamma", (operands[1],), int(order))
        case "square":
            return Expr("integer_pow", tuple(operands), 2)
        case "select_n":
            return Expr("select", tuple(operands)) if len(operands) == 3 else None
        case "clamp":
            lo, x, hi = operands
            return Expr("min", (Expr("max", (x, lo)), hi))
        case "one_minus_square":
            return Expr("sub", (const(1), Expr("integer_pow", tuple(operands), 2)))
        case _ if primitive in _TRANSPARENT:
            return operands[0]
        case _:
            return None


def constant(x: np.ndarray) -> Expr | None:
    """A scalar literal as an exact constant; None for what is no real number or truth value."""
    if x.ndim or not (jnp.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer)):
        return None
    return const(float(x)) if jnp.issubdtype(x.dtype, np.floating) else const(int(x))


def _widens(eqn: _jaxpr.Equation) -> bool:
    old, new = _jaxpr.aval(eqn.invars[0]).dtype, _jaxpr.aval(eqn.outvars[0]).dtype
    floats = jnp.issubdtype(old, jnp.floating) and jnp.issubdtype(new, jnp.floating)
    return floats and jnp.promote_types(old, new) == new


def expressions(program: _jaxpr.Body) -> list[Expr]:
    """The outputs of a program of scalar elementwise equations, as expressions of its inputs.

    Raises:
        NotImplementedError: an equation that has no expression.
    """
    return _walk(program, [var(i) for i in range(len(program.inputs))])


def _walk(program: _jaxpr.Body, operands: Sequence[Expr]) -> list[Expr]:
    env: dict[Any, Expr] = dict(zip(program.inputs, operands))
    for variable, value in program.constants:
        env[variable] = _constant(np.asarray(value))

    def read(atom: Any) -> Expr:
        literal = _jaxpr.literal(atom)
        return env[atom] if literal is None else _constant(literal)

    for eqn in program.equations:
        ins = [read(a) for a in eqn.invars]
        inner = _jaxpr.control(eqn)
        if isinstance(inner, _jaxpr.Call):
            env.update(zip(eqn.outvars, _walk(inner.body, inner.of(ins))))
        elif eqn.primitive.name == "convert_element_type" and _widens(eqn):
            env[eqn.outvars[0]] = ins[0]
        elif eqn.primitive.name == "convert_element_type" and (number := rational(ins[0])) is not None:
            env[eqn.outvars[0]] = _constant(np.asarray(float(number), _jaxpr.aval(eqn.outvars[0]).dtype))
        else:
            made = expression_of(eqn.primitive.name, eqn.params, ins)
            if made is None:
                raise NotImplementedError(f"no expression for `{eqn.primitive.name}`")
            env[eqn.outvars[0]] = made
    return [read(a) for a in program.outputs]


def _constant(x: np.ndarray) -> Expr:
    made = constant(x)
    if made is None:
        raise NotImplementedError(f"no scalar constant: {x!r}")
    return made
