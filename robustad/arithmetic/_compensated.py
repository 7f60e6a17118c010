r"""`compensated(f)`: a function with every floating intermediate in twice the precision of its own dtype."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad import _jaxpr
from robustad.arithmetic._double_word import DoubleWord
from robustad.arithmetic._double_word_arithmetic import evaluate, is_plain
from robustad.arithmetic._double_word_rules import narrowed
from robustad.arithmetic._linear_walk import directional, walked
from robustad.stability._backend import require_error_free
from robustad.stability._custom_jvp import custom_jvp


def compensated(f: Callable[..., Any], *, words: bool = False) -> Callable[..., Any]:
    r"""`f` with every floating intermediate as an unevaluated sum of two floats of its dtype, rounded at the end.

    Twice the precision without a wider dtype: float32 computes with 48 bits (14 digits), float64 with 106 (31 digits), on
    hardware that has nothing wider. `f` is traced and its program is walked in double-word arithmetic, through `jit`,
    `scan`, `while_loop`, `cond`, `custom_jvp`, `remat` and `shard_map`. What `f` loses to rounding it no longer loses, as
    long as 48 (106) bits suffice; what it loses to range (overflow, underflow) stays lost.

    Accuracy. With \(u = 2^{-24}\) (\(2^{-53}\)): + - × ÷ √ within \(u^2\); the elementary functions within a few \(u^2\);
    \(x^y\) within a few \(u^2 (1 + |y \log x|)\); sums, products and matrix products within \(u^2\) a term. Below about
    \(10^{-23}\) (\(10^{-276}\)) the second word of a product is gradually lost.

    What is not improved:
      - Inputs and constants are what the program holds: 0.1 is the float nearest to 0.1. Write `x / 10`, or give the
        argument as a `DoubleWord`.
      - A cast to a narrower float, and `lax.reduce_precision`, round: the program asks for it. Values of float16 and
        bfloat16 are carried in two words of float32, and the result is rounded to their own dtype.
      - A primitive without a rule (convolution, factorizations, complex numbers, `erfc`, `lgamma` ...) is evaluated
        plainly on its rounded operands: `compensated(f).plain_operations(*args)` lists them.
      - An approximation stays one: a polynomial that was made for float32 is evaluated exactly, but is no closer to its
        function. Iterations that stop at a tolerance stop there.

    Derivatives. `compensated(jax.grad(f))` walks the program of the gradient: this is the way to accurate gradients, of
    any order and mode. `jax.grad(compensated(f))`, `jax.jvp`, `jax.hessian` are right too: the derivative is again a program
    walked in double words, and rounded once. With several functions composed, the first way rounds once in all.

    Cost. An addition is about 40 operations, a product 150, an exponential 2500 (float64: 5000), each of which the compiler
    sees: for a loss that cancels, not for a network. A scatter-add runs one update after the other unless
    `unique_indices` is set.

    Args:
      f: a function of pytrees that JAX can trace. Arrays and Python floats are traced; other leaves (integers, strings,
        functions) stay as they are, and must hash. A leaf may be a `DoubleWord` where `f` takes an array.
      words: return floating outputs as `DoubleWord(hi, lo)`, in which the further digits are; the derivative of `hi` is
        that of the output, that of `lo` is 0.

    Returns:
      A function of the same signature and pytree structure.

    Raises:
      TypeError: `f` is no function.
      BackendError: at the call, where the backend's arithmetic breaks error-free transforms.

    Source: Dekker, Numer. Math. 18 (1971); Joldes, Muller, Popescu, ACM TOMS 44 (2017).

    >>> import jax.numpy as jnp
    >>> import robustad as rad
    >>> f = lambda x: jnp.sqrt(x + 1) - jnp.sqrt(x)
    >>> print(f"{f(1e6):.6e} {rad.compensated(f)(1e6):.6e}")  # the truth is 4.999999e-04
    4.882812e-04 4.999998e-04
    """

    if not callable(f):
        raise TypeError(
            f"compensated: `f` has type {type(f).__name__}; expected a function. Give the function itself, not its value: "
            "`compensated(f)(x)`."
        )

    def taken_apart(args: Any, kwargs: Any) -> tuple[_Plan, list[Any]]:
        leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=_is_pair)
        dynamic = [isinstance(x, jax.Array | np.ndarray | np.generic | float | complex | DoubleWord) for x in leaves]
        fixed = tuple(None if d else x for x, d in zip(leaves, dynamic))
        return (structure, fixed, tuple(dynamic)), [x for x, d in zip(leaves, dynamic) if d]

    def called(plan: _Plan, leaves: Sequence[Any]) -> Any:
        structure, fixed, dynamic = plan
        given = iter(leaves)
        args, kwargs = structure.unflatten(next(given) if d else x for x, d in zip(fixed, dynamic))
        return f(*args, **kwargs)

    @functools.partial(jax.jit, static_argnums=0)
    def evaluated(plan: _Plan, leaves: list[Any]) -> Any:
        plain = [x.hi if _is_pair(x) else x for x in leaves]
        function, closed_over = jax.closure_convert(functools.partial(called, plan), plain)
        traced = [*leaves, *closed_over]

        def flat(*operands: Any) -> list[Any]:
            return jax.tree.leaves(function(list(operands[: len(leaves)]), *operands[len(leaves) :]))

        outs = _in_double_words(flat, traced)
        shapes = jax.eval_shape(function, plain, *closed_over)
        return jax.tree.unflatten(jax.tree.structure(shapes), outs if words else [_rounded(x) for x in outs])

    @functools.wraps(f)
    def transformed(*args: Any, **kwargs: Any) -> Any:
        require_error_free()
        return evaluated(*taken_apart(args, kwargs))

    def plain_operations(*args: Any, **kwargs: Any) -> tuple[tuple[str, str | None, int | None], ...]:
        """(primitive, file, line) of what is evaluated plainly: see `compensated`."""
        plan, leaves = taken_apart(args, kwargs)
        program, _ = _jaxpr.trace(functools.partial(called, plan), [x.hi if _is_pair(x) else x for x in leaves])
        sites = (s for s in _jaxpr.sites(program) if not _jaxpr.control(s.equation) and is_plain(s.equation))
        places = ((s.primitive, s.location) for s in sites)
        return tuple(dict.fromkeys((name, at and at.file, at and at.line) for name, at in places))

    transformed.plain_operations = plain_operations  # type: ignore[attr-defined]
    return transformed


_Plan = tuple[Any, tuple[Any, ...], tuple[bool, ...]]


def _is_pair(x: Any) -> bool:
    return isinstance(x, DoubleWord)


def _rounded(x: Any) -> Any:
    return x.hi if _is_pair(x) else x


def _in_double_words(f: Callable[..., list[Any]], operands: Sequence[Any]) -> list[Any]:
    """The outputs of `f` on arrays or pairs; floating ones as pairs of their own dtype. Differentiable again and again."""

    @custom_jvp
    def walk(operands: list[Any]) -> list[Any]:
        program, _ = _jaxpr.trace(f, *map(_rounded, operands))
        dtypes = [_jaxpr.aval(out).dtype for out in program.outputs]
        values = zip(evaluate(program, operands), dtypes)
        return [v.hi if v.lo is None else narrowed(v, dtype) for v, dtype in values]

    @walk.defjvp
    def rule(primals: tuple[list[Any]], tangents: tuple[list[Any]]) -> tuple[list[Any], list[Any]]:
        (operands,), (moved,) = primals, tangents
        outs = walk(operands)
        floating = [_rounded(x) for x in outs if _jaxpr.is_inexact(_rounded(x))]
        directions = [
            t.hi + t.lo if _is_pair(t) else t for t, x in zip(moved, operands) if _jaxpr.is_inexact(_rounded(x))
        ]
        made = iter(walked(directional(f), operands, directions, floating))
        return outs, [_tangent(x, made) for x in outs]

    return walk([x if _is_pair(x) else jnp.asarray(x) for x in operands])


def _tangent(x: Any, made: Iterator[Array]) -> Any:
    """The tangent of an output: a pair's is its high word's, an integer's is nothing."""
    if _is_pair(x):
        return DoubleWord(next(made), jnp.zeros_like(x.lo))
    return next(made) if _jaxpr.is_inexact(x) else np.zeros(x.shape, jax.dtypes.float0)
