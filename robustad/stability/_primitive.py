"""A primitive of our own: linear in each differentiable operand, computed by a kernel that need not be.

`jax.custom_jvp` cannot say that an accurate sum of tangents is linear and has a transpose; a primitive can. So the tangent
of an accurate sum is an accurate sum and its cotangent a broadcast, in every order. A kernel may also work on bit patterns,
of which JAX would make silent zero gradients.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from robustad import _jaxpr

from ._width import in_float64

Kernel = Callable[..., Array]


def linear_primitive(
    name: str,
    *,
    kernels: Mapping[str | None, Kernel],
    shape: Kernel,
    transposes: Mapping[int, Callable[..., Array]],
    batch: Callable[..., Array],
    tangents: Mapping[int, Callable[..., Array]] | None = None,
) -> Callable[..., Array]:
    """A function of arrays and hashable keywords with the rules of a primitive that is linear in some operands.

    Args:
        name: what programs print.
        kernels: the function that computes it on each platform; under None, on all others.
        shape: a plain function with the same result but for rounding: gives shape, dtype and mesh axes.
        transposes: for each operand that it is linear in, `transpose(cotangent, *operands, **keywords)`, where that operand
            is given by its aval (`.shape`, `.dtype`). Where there are none the function has no derivative, and JAX says so.
        batch: `batch(size, operands, axes, **keywords)`, with the batch axis of each operand, or None; the batch axis of the
            result is 0.
        tangents: where the function is not linear, for each differentiable operand `tangent(*operands, **keywords)` with the
            tangent in its place.
    """
    primitive = Primitive(name)

    def bind(*operands: Array, **keywords: Any) -> Array:
        with in_float64(*operands):
            return primitive.bind(*_jaxpr.varying_alike(*operands), **keywords)

    @functools.cache
    def compiled(keywords: tuple[tuple[str, Any], ...]) -> Callable[..., Array]:
        return jax.jit(lambda *operands: primitive.bind(*operands, **dict(keywords)))

    @primitive.def_impl
    def evaluate(*operands: Array, **keywords: Any) -> Array:
        with (
            jax.disable_jit(False),
            in_float64(*operands),
        ):  # the kernel is compiled even so: it has no meaning operation by operation
            return compiled(tuple(sorted(keywords.items())))(*operands)

    @primitive.def_abstract_eval
    def abstract(*avals, **keywords: Any):
        with in_float64(*avals):
            result = jax.make_jaxpr(functools.partial(shape, **keywords))(*avals).out_avals[0]
        return result.update(weak_type=False)

    def jvp(operands, steps, /, **keywords: Any):
        value = bind(*operands, **keywords)
        terms = [
            rule(*operands[:i], steps[i], *operands[i + 1 :], **keywords)
            for i, rule in rules.items()
            if type(steps[i]) is not ad.Zero
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
                with in_float64(cotangent):
                    results.append(_jaxpr.sharded_as(operand.aval, transposes[i](cotangent, *others, **keywords)))
        return results

    def batched(operands, batch_axes, /, **keywords: Any):
        size = next(x.shape[axis] for x, axis in zip(operands, batch_axes) if axis is not None)
        with in_float64(*operands):
            return batch(size, operands, batch_axes, **keywords), 0

    rules = tangents or {i: bind for i in transposes}
    if rules:
        ad.primitive_jvps[primitive] = jvp
    if transposes:
        ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batched
    _jaxpr.check_for_nan(primitive)
    for platform, kernel in kernels.items():
        mlir.register_lowering(primitive, _lowering(kernel), platform=platform)
    return bind


def _lowering(kernel: Kernel) -> Callable[..., Any]:
    rule = mlir.lower_fun(kernel, multiple_results=False)

    def lower(ctx: Any, *operands: Any, **keywords: Any) -> Any:
        # Inside shard_map the operands' types say over which axes they vary. The kernel's own loops need not know.
        with in_float64(*ctx.avals_in):
            return rule(
                ctx.replace(avals_in=[_jaxpr.on_one_device(aval) for aval in ctx.avals_in]), *operands, **keywords
            )

    return lower


def batch_first(size: int, operands: Sequence[Array], batch_axes: Sequence[int | None]) -> list[Array]:
    """The operands with a leading batch axis each."""
    return [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, batch_axes)
    ]
