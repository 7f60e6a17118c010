"""Calls of library functions in a program, recognised by their programs.

A call carries the name of its function and the file that holds it. That tells which library function to look at, but not
with which static arguments it was called: those are guessed from the equations inside, and then the library's function,
traced with them at the same shapes, must give the same program. So a function of the user's called `norm` is left alone,
and a version of JAX in which a function is written otherwise as well.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad import _jaxpr
from robustad._jaxpr import Body, Equation

Static = tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """A library function with its static arguments: hashable, as `functools.partial` is not."""

    function: Callable[..., Any]
    static: Static = ()

    def __call__(self, *operands: Array) -> Any:
        return self.function(*operands, **dict(self.static))


def of(function: Callable[..., Any], **static: Any) -> Call:
    return Call(function, tuple(sorted(static.items())))


_HOMES = tuple(os.path.join(p, "") for p in (os.path.dirname(os.path.abspath(jax.__file__)),))


def name_of(eqn: Equation) -> str | None:
    """The name of the JAX function that an equation calls."""
    origin = _jaxpr.origin(eqn)
    return origin[0] if origin and origin[1].startswith(_HOMES) else None


def inside(eqn: Equation) -> Body:
    """The program of a call."""
    control = _jaxpr.control(eqn)
    assert isinstance(control, _jaxpr.Call)
    return control.body


def equations(program: Body) -> Iterator[Equation]:
    """Those of a program and of the calls in it."""
    for eqn in program.equations:
        yield eqn
        control = _jaxpr.control(eqn)
        if isinstance(control, _jaxpr.Call):
            yield from equations(control.body)


def is_call_of(eqn: Equation, call: Call, elementwise: bool = False) -> bool:
    """Whether an equation holds the program of that call at its operands' shapes.

    elementwise: at the output's shape, up to broadcasts, of which `vmap` may have added some.
    """
    shape = _jaxpr.aval(eqn.outvars[0]).shape
    avals = [_jaxpr.aval(x) for x in eqn.invars]
    shapes = tuple((shape if elementwise else x.shape, x.dtype, x.weak_type) for x in avals)
    with eqn.ctx.manager:
        programs = _programs(call, name_of(eqn), shapes, bool(jax.config.jax_enable_x64))  # pyright: ignore[reportAttributeAccessIssue]
    return any(_jaxpr.same_program(inside(eqn), program, elementwise) for program in programs)


def spread(eqn: Equation, operands: Sequence[Array]) -> list[Array] | None:
    """The operands of an elementwise call, broadcast to its output as its program does; None where that is unclear."""
    shape, program = _jaxpr.aval(eqn.outvars[0]).shape, inside(eqn)
    results = []
    for x, var in zip(operands, program.inputs):
        if x.shape and x.shape != shape:
            along = {
                tuple(map(int, use.params["broadcast_dimensions"]))
                for use in program.equations
                if use.primitive.name == "broadcast_in_dim"
                and use.invars[0] is var
                and len(use.params["shape"]) == len(shape)
            }
            if len(along) != 1:
                return None
            x = lax.broadcast_in_dim(x, shape, along.pop())
        results.append(x if x.shape == shape else jnp.broadcast_to(x, shape))
    return results


@functools.lru_cache(maxsize=4096)
def _programs(call: Call, name: str | None, shapes: tuple[Any, ...], wide: bool) -> list[Body]:
    """The programs of that name in the trace of a call; none where it cannot be called so."""
    avals = [jax.ShapeDtypeStruct(shape, dtype, weak_type=weak) for shape, dtype, weak in shapes]
    try:
        traced, _ = _jaxpr.trace(call, *avals)
    except Exception:  # a guess of the static arguments that does not fit
        return []
    return [inside(eqn) for eqn in equations(traced) if name_of(eqn) == name]
