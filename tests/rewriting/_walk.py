"""A function with its equations replaced by their twins: what `rad.stabilize` does, for straight programs and jit."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from robustad import _jaxpr
from robustad._jaxpr import Body, Equation
from robustad.rewriting.twins._composites import composite
from robustad.rewriting.twins._primitives import twin
from robustad.rewriting.twins._twin import Twin


def replacement(eqn: Equation) -> Twin | None:
    return composite(eqn) or twin(eqn)


def _run(program: Body, arguments: Sequence[Any]) -> list[Any]:
    env = dict(zip(program.inputs, arguments)) | dict(program.constants)

    def read(atom: Any) -> Any:
        return env[atom] if (value := _jaxpr.literal(atom)) is None else value

    for eqn in program.equations:
        operands = [read(a) for a in eqn.invars]
        if found := replacement(eqn):
            outputs = found.function(*operands)
        elif eqn.primitive.name in ("jit", "pjit"):
            outputs = _run(_jaxpr.control(eqn).body, operands)
        else:
            outputs = _jaxpr.bind(eqn, operands)
        assert [(jnp.shape(x), x.dtype) for x in outputs] == [(v.aval.shape, v.aval.dtype) for v in eqn.outvars], eqn
        env.update(zip(eqn.outvars, outputs))
    return [read(a) for a in program.outputs]


def twinned(f: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any) -> Any:
        args = jax.tree.map(jnp.asarray, args)
        program, shapes = _jaxpr.trace(f, *args)
        return jax.tree.unflatten(jax.tree.structure(shapes), _run(program, jax.tree.leaves(args)))

    return function


def names(f: Callable[..., Any], *args: Any) -> list[str]:
    """Of the twins in a program, those in nested calls too."""
    found = []

    def look(program: Body) -> None:
        for eqn in program.equations:
            if one := replacement(eqn):
                found.append(one.name)
            elif isinstance(inner := _jaxpr.control(eqn), _jaxpr.Call) and eqn.primitive.name in ("jit", "pjit"):
                look(inner.body)

    look(_jaxpr.trace(f, *args)[0])
    return found
