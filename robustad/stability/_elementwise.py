"""Functions of each element, with their partial derivatives given as functions of the same kind."""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from robustad.stability._arguments import numbers, refuse_complex
from robustad.stability._custom_jvp import custom_jvp


def elementwise(*partials: Callable) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Makes a formula on float32 or float64 arrays of one shape a function of any real arrays.

    `partials` holds the derivative in each argument; each is itself an `elementwise` function, so that derivatives of
    second order come from formulas too. Without partials the formula itself is differentiated.

    Arguments are positional, promoted and broadcast as by `jax.numpy`, but that integers become the default float and that
    the result of Python scalars is not weakly typed; float16 and bfloat16 are computed in float32 and rounded once.
    An argument that carries no tangent contributes nothing, whatever its partial derivative is there.
    """

    def decorate(formula: Callable[..., Array]) -> Callable[..., Array]:
        def evaluate(*args: Array) -> Array:
            dtype = args[0].dtype
            if jnp.finfo(dtype).bits >= 32:
                return formula(*args)
            return formula(*(arg.astype(jnp.float32) for arg in args)).astype(dtype)

        evaluate.__name__ = formula.__name__  # the name of the call in a jaxpr
        rule: Callable[..., Array] = jax.jit(evaluate)
        if partials:
            twin = custom_jvp(rule)

            def jvp(primals, tangents):
                terms = [
                    partial(*primals) * tangent
                    for partial, tangent in zip(partials, tangents)
                    if not isinstance(tangent, SymbolicZero)
                ]
                return twin(*primals), functools.reduce(jnp.add, terms)

            twin.defjvp(jvp, symbolic_zeros=True)
            rule = twin

        kind, given = inspect.Parameter.POSITIONAL_ONLY, inspect.signature(formula).parameters.values()
        parameters = [inspect.Parameter(p.name, kind) for p in given if p.default is inspect.Parameter.empty]
        names = [parameter.name for parameter in parameters]

        @functools.wraps(formula)
        def function(*args: ArrayLike) -> Array:
            if len(args) != len(names):
                raise TypeError(
                    f"{formula.__name__} takes {len(names)} arrays ({', '.join(names)}), got {len(args)}: by position."
                )
            return rule(*promoted(formula.__name__, dict(zip(names, args))))

        if formula.__doc__ and "Args:" not in formula.__doc__:
            function.__doc__ = _documented(formula.__doc__, names)
        function.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        return function

    return decorate


def _documented(text: str, names: list[str]) -> str:
    """The docstring, before its example with what those of all these functions would repeat."""
    text, mark, example = inspect.cleandoc(text).partition(">>>")
    arrays = "real array" if len(names) == 1 else "real arrays, which broadcast"
    return "\n\n".join([text.strip(), _CONTRACT.format(", ".join(names), arrays), mark + example])


_CONTRACT = """Args:
  {}: {}.

Returns:
  An array of the broadcast shape and promoted dtype; integers become the default float, float16 and bfloat16 are computed
  in float32 and rounded once.

Raises:
  TypeError: what is no array of numbers, complex numbers, or a dtype narrower than 16 bits."""


def promoted(name: str, arguments: dict[str, ArrayLike]) -> list[Array]:
    """The arguments in one dtype and shape, as such a function takes them."""
    numbers(name, **arguments)
    for argument, x in arguments.items():
        refuse_complex(name, argument, jnp.result_type(x), "Use the function of jax.numpy for complex ones.")
    dtype = jnp.result_type(*arguments.values())
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    if jnp.finfo(dtype).bits < 16:
        raise TypeError(
            f"{name}: the arguments have dtype {dtype}; expected float16, bfloat16, float32 or float64. Cast them first."
        )
    return jnp.broadcast_arrays(*(jnp.asarray(arg, dtype) for arg in arguments.values()))
