"""A JAX primitive from a function that knows nothing of tracing: the linear maps whose rules stay within one family.

The sum, the sum by segments and the dot product work on bit patterns, of which JAX would make silent zero gradients. As
primitives they are linear maps with their own transposes, so that tangents and cotangents go through the same exact
sums, to any order, in forward and reverse mode.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

from robustad.stability._digits import wide

Implementation = Callable[..., Array]  # (*operands, float64, **parameters)
Shape = tuple[int, ...]


def operator(name: str, implementation: Implementation, result: Callable[..., tuple[Shape, Any]]) -> Primitive:
    """A primitive of the shape and dtype `result(*avals, **parameters)`; it varies over a mesh as the first operand does.

    `float64` tells the implementation whether the platform's float64 is IEEE arithmetic. On TPU it is not; the bits of the
    result must be the same either way.
    """
    primitive = Primitive(name)
    with_64_bits = wide(implementation)

    @functools.cache
    def compiled(float64: bool, **parameters: Any) -> Callable[..., Array]:
        return jax.jit(functools.partial(with_64_bits, float64=float64, **parameters))

    def evaluate(*operands: Array, **parameters: Any) -> Array:
        return compiled(jax.default_backend() != "tpu", **parameters)(*operands)

    def abstract(*avals: Any, **parameters: Any) -> Any:
        shape, dtype = result(*avals, **parameters)
        return avals[0].update(shape=shape, dtype=jax.numpy.dtype(dtype), weak_type=False)

    def lowering(float64: bool) -> Callable:
        def rule(ctx: Any, *operands: Any, **parameters: Any) -> Any:
            # inside shard_map the operands' types say over which axes they vary; nothing here communicates
            plain = [ShapedArray(aval.shape, aval.dtype) for aval in ctx.avals_in]
            body = functools.partial(with_64_bits, float64=float64, **parameters)
            return mlir.lower_fun(body, multiple_results=False)(ctx.replace(avals_in=plain), *operands)

        return rule

    primitive.def_impl(evaluate)
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, lowering(True))
    mlir.register_lowering(primitive, lowering(False), platform="tpu")
    return primitive


def no_tangent(value: Array) -> ad.Zero:
    return ad.Zero(jax.typeof(value).to_tangent_aval())


def varying_alike(*arrays: Array) -> list[Array]:
    """The arrays, each varying over all mesh axes over which one of them does: JAX's own operations do it by themselves."""
    over = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    every = frozenset().union(*over)
    return [lax.pcast(x, tuple(every - own), to="varying") if every - own else x for x, own in zip(arrays, over)]
