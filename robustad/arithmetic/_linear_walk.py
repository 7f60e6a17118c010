"""The derivative of a walked function: a primitive that is linear in its tangents, in every mode and order.

The derivative program of a function is walked like the function. Its bits do not look linear, so JAX could not transpose
them; a primitive can say that they are: it holds the *plain* linear function, is transposed and differentiated as that
one, and walked only where it is evaluated.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from robustad import _jaxpr
from robustad.arithmetic import _double_word_rules as rules
from robustad.arithmetic._double_word import DoubleWord
from robustad.arithmetic._double_word_arithmetic import evaluate

Linear = Callable[[Sequence[Array], Sequence[Array]], list[Array]]
"""Of points and directions, linear in the directions."""


def directional(f: Callable[..., list[Any]]) -> Linear:
    """The derivative of the floating outputs of `f`, at points, in the directions of its floating operands."""

    def derivative(points: Sequence[Array], directions: Sequence[Array]) -> list[Array]:
        floating = [_jaxpr.is_inexact(x) for x in points]

        def inexact(*differentiated: Array) -> list[Array]:
            given = iter(differentiated)
            outs = f(*(next(given) if d else x for x, d in zip(points, floating)))
            return [out for out in outs if _jaxpr.is_inexact(out)]

        primals = tuple(jnp.asarray(x) for x, d in zip(points, floating) if d)
        return jax.jvp(inexact, primals, tuple(directions))[1]

    return derivative


def walked(
    linear: Linear, points: Sequence[Array | DoubleWord], directions: Sequence[Array], outs: Sequence[Any]
) -> list[Array]:
    """`linear(points, directions)` in double words, rounded; `outs`: arrays of the shapes and dtypes of the results."""
    pairs = tuple(isinstance(x, DoubleWord) for x in points)
    avals = tuple(jax.typeof(x) for x in outs)
    return _bind([*jax.tree.leaves(list(points)), *directions], linear=linear, pairs=pairs, avals=avals)


_walked = Primitive("compensated_linear")
_walked.multiple_results = True


def _bind(operands: Sequence[Array], **params: Any) -> list[Array]:
    return _walked.bind(*operands, **params)


def _split(operands: Sequence[Any], pairs: tuple[bool, ...]) -> tuple[list[Any], list[Any]]:
    """The points, pairs as `DoubleWord`s, and the directions."""
    rest = iter(operands)
    points = [DoubleWord(next(rest), next(rest)) if pair else next(rest) for pair in pairs]
    return points, list(rest)


def _plain(points: Sequence[Any]) -> list[Any]:
    return [x.hi if isinstance(x, DoubleWord) else x for x in points]


def _kernel(*operands: Array, linear: Linear, pairs: tuple[bool, ...], avals: Any) -> list[Array]:
    points, directions = _split(operands, pairs)
    program, _ = _jaxpr.trace(linear, _plain(points), directions)
    dtypes = [aval.dtype for aval in avals]
    return [rules.rounded(v, dtype) for v, dtype in zip(evaluate(program, [*points, *directions]), dtypes)]


@_walked.def_impl
def _compiled(*operands: Array, **params: Any) -> list[Array]:
    return jax.jit(lambda *operands: _bind(operands, **params))(*operands)


@_walked.def_abstract_eval
def _abstract(*operands: Any, avals: Any, **params: Any) -> Any:
    return avals


def _jvp(operands: Sequence[Any], tangents: Sequence[Any], /, linear: Linear, pairs: tuple[bool, ...], avals: Any):
    values = _bind(operands, linear=linear, pairs=pairs, avals=avals)
    points, directions = _split(operands, pairs)
    moved, turned = _split([ad.instantiate_zeros(t) for t in tangents], pairs)
    moved = [
        t.hi + t.lo if isinstance(t, DoubleWord) else t for t, x in zip(moved, _plain(points)) if _jaxpr.is_inexact(x)
    ]
    n = len(points)
    derivative = directional(lambda *both: linear(list(both[:n]), list(both[n:])))
    return values, walked(derivative, [*points, *directions], [*moved, *turned], values)


def _transpose(cotangents: Sequence[Any], *operands: Any, linear: Linear, pairs: tuple[bool, ...], avals: Any):
    _, directions = _split(operands, pairs)
    free = [ad.is_undefined_primal(t) for t in directions]
    shapes = [t.aval for t in directions if ad.is_undefined_primal(t)]
    known = len(operands) - len(directions)

    def transposed(points: Sequence[Array], cotangents: Sequence[Array]) -> list[Array]:
        def of_free(*given: Array) -> list[Array]:
            # Directions that are known have no part in what the free ones add.
            rest = iter(given)
            fixed = (
                jnp.zeros(t.aval.shape if f else t.shape, t.aval.dtype if f else t.dtype)
                for t, f in zip(directions, free)
            )
            return linear(list(points), [next(rest) if f else zero for f, zero in zip(free, fixed)])

        return list(
            jax.linear_transpose(of_free, *(jax.ShapeDtypeStruct(s.shape, s.dtype) for s in shapes))(list(cotangents))
        )

    given = [ad.instantiate_zeros(ct) for ct in cotangents]
    outs = iter(_bind([*operands[:known], *given], linear=transposed, pairs=pairs, avals=tuple(shapes)))
    return [*[None] * known, *(next(outs) if f else None for f in free)]


def _batched(operands: Sequence[Any], axes: Sequence[Any], /, linear: Linear, pairs: tuple[bool, ...], avals: Any):
    size = next(x.shape[axis] for x, axis in zip(operands, axes) if axis is not None)
    first = [x if a is None else jnp.moveaxis(x, a, 0) for x, a in zip(operands, axes)]
    points, directions = _split(first, pairs)
    mapped, along = _split([None if a is None else 0 for a in axes], pairs)
    for i, pair in enumerate(pairs):
        if pair and (mapped[i].hi, mapped[i].lo) != (None, None):  # both words, if one
            words = zip(points[i], mapped[i])
            points[i] = DoubleWord(*(jnp.broadcast_to(x, (size, *x.shape)) if a is None else x for x, a in words))
            mapped[i] = DoubleWord(0, 0)
    over = jax.vmap(linear, in_axes=(_plain(mapped), along), out_axes=0, axis_size=size)
    outs = tuple(aval.update(shape=(size, *aval.shape)) for aval in avals)
    results = _bind([*jax.tree.leaves(points), *directions], linear=over, pairs=pairs, avals=outs)
    return results, [0] * len(results)


ad.primitive_jvps[_walked] = _jvp
ad.primitive_transposes[_walked] = _transpose
batching.primitive_batchers[_walked] = _batched
mlir.register_lowering(_walked, mlir.lower_fun(_kernel, multiple_results=True))
