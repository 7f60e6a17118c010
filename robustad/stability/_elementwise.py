"""Functions of each element, with their partial derivatives given as functions of the same kind."""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

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
        names = [inspect.Parameter(p.name, kind) for p in given if p.default is inspect.Parameter.empty]

        @_documented(names)
        @functools.wraps(formula)
        def function(*args: ArrayLike) -> Array:
            if len(args) != len(names):
                expected = ", ".join(parameter.name for parameter in names)
                raise TypeError(f"{formula.__name__} takes {len(names)} arrays ({expected}), got {len(args)}.")
            return rule(*_promote(formula.__name__, args))

        function.__signature__ = inspect.Signature(names)  # pyright: ignore[reportAttributeAccessIssue]
        return function

    return decorate


def _documented(names: list[inspect.Parameter]) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Adds what the docstrings of all these functions would repeat, before the example."""

    def add(function: Callable[..., Array]) -> Callable[..., Array]:
        text, mark, example = inspect.cleandoc(function.__doc__ or "").partition(">>>")
        if text and "Args:" not in text:
            arrays = "real array" if len(names) == 1 else "real arrays, which broadcast"
            contract = _CONTRACT.format(", ".join(name.name for name in names), arrays)
            function.__doc__ = "\n\n".join(part for part in (text.strip(), contract, mark + example) if part)
        return function

    return add


_CONTRACT = """Args:
  {}: {}.

Returns:
  An array of the broadcast shape and promoted dtype; integers become the default float, float16 and bfloat16 are computed
  in float32 and rounded once.

Raises:
  TypeError: complex input, or a dtype narrower than 16 bits."""


def _promote(name: str, args: tuple[ArrayLike, ...]) -> list[Array]:
    dtype = jnp.result_type(*args)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` takes real arrays, got {dtype}. Use the function of jax.numpy for complex ones.")
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    if jnp.finfo(dtype).bits < 16:
        raise TypeError(
            f"`{name}` takes float16, bfloat16, float32 or float64, got {dtype}. Convert the argument first."
        )
    return jnp.broadcast_arrays(*(jnp.asarray(arg, dtype) for arg in args))
