"""A primitive of our own: linear in each differentiable operand, computed by a kernel that need not be.

`jax.custom_jvp` cannot say that an accurate sum of tangents is linear and has a transpose; a primitive can. So the tangent
of an accurate sum is an accurate sum, its cotangent a broadcast, in every order.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Kernel = Callable[..., Array]


def linear_primitive(
    name: str,
    *,
    kernels: Mapping[str | None, Kernel],
    shape: Kernel,
    transposes: Mapping[int, Callable[..., Array]],
    batch: Callable[..., Array],
) -> Callable[..., Array]:
    """A function of arrays and hashable keywords with the rules of a primitive that is linear in some operands.

    Args:
        name: what programs print.
        kernels: the function that computes it on each platform; under None, on all others.
        shape: a plain function with the same result but for rounding: gives shape, dtype and mesh axes.
        transposes: for each operand that it is linear in, `transpose(cotangent, *operands, **keywords)`, where that operand
            is given by its aval (`.shape`, `.dtype`).
        batch: `batch(size, operands, axes, **keywords)`, with the batch axis of each operand, or None; the batch axis of the
            result is 0.
    """
    primitive = Primitive(name)

    def bind(*operands: Array, **keywords: Any) -> Array:
        return primitive.bind(*_same_mesh_axes(operands), **keywords)

    @functools.cache
    def compiled(keywords: tuple[tuple[str, Any], ...]) -> Callable[..., Array]:
        return jax.jit(lambda *operands: primitive.bind(*operands, **dict(keywords)))

    @primitive.def_impl
    def evaluate(*operands: Array, **keywords: Any) -> Array:
        with jax.disable_jit(False):  # the kernel is compiled even so: it has no meaning operation by operation
            return compiled(tuple(sorted(keywords.items())))(*operands)

    @primitive.def_abstract_eval
    def abstract(*avals, **keywords: Any):
        return jax.make_jaxpr(functools.partial(shape, **keywords))(*avals).out_avals[0]

    def jvp(operands, tangents, /, **keywords: Any):
        value = bind(*operands, **keywords)
        terms = [
            bind(*operands[:i], tangents[i], *operands[i + 1 :], **keywords)
            for i in transposes
            if type(tangents[i]) is not ad.Zero
        ]
        return value, functools.reduce(operator.add, terms) if terms else ad.Zero(jax.typeof(value))

    def transpose(cotangent, *operands, **keywords: Any):
        results = []
        for i, operand in enumerate(operands):
            if not ad.is_undefined_primal(operand):
                results.append(None)
            elif type(cotangent) is ad.Zero:
                results.append(ad.Zero(operand.aval))
            else:
                others = [o.aval if ad.is_undefined_primal(o) else o for o in operands]
                results.append(transposes[i](cotangent, *others, **keywords))
        return results

    def batched(operands, batch_axes, /, **keywords: Any):
        size = next(x.shape[axis] for x, axis in zip(operands, batch_axes) if axis is not None)
        return batch(size, operands, batch_axes, **keywords), 0

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batched
    for platform, kernel in kernels.items():
        mlir.register_lowering(primitive, mlir.lower_fun(kernel, multiple_results=False), platform=platform)
    return bind


def _same_mesh_axes(operands: tuple[Array, ...]) -> list[Array]:
    """Inside `shard_map`, every operand varying over the same mesh axes, so that transposing sums over them."""
    varying = [jax.typeof(x).mat.varying for x in operands]
    union = frozenset().union(*varying)
    return [lax.pcast(x, tuple(sorted(union - v)), to="varying") if union - v else x for x, v in zip(operands, varying)]
