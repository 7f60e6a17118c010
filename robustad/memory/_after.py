"""An order that XLA keeps: an array that cannot be had before others are.

`after(x, tokens)` is x, bit for bit. On CPU, where XLA strips `lax.optimization_barrier` and then merges a recomputation
with what it repeats, it is a branch, `cond(p, x, 0)`, with a predicate of the tokens' first bits,
population_count(bits) >= 0, that is true but that no compiler pass can know; elsewhere it is the barrier. (A `where` keeps
the order too, but XLA fuses elementwise operations through it, and keeps alive what they add up.) Its type is that of x
alone: whatever is done to the tokens by `vmap` or `shard_map` does not reach x, so that the branch stays one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from robustad import _jaxpr

_after = Primitive("after")


def after(x: Array, tokens: Sequence[Array]) -> Array:
    """`x`, computed into only once the `tokens` are there."""
    return _after.bind(x, *tokens) if tokens else x


def sealed(x: Array) -> Array:
    """`x`, computed once: else XLA, where it fuses elementwise operations, may compute x again for a later use, and keep for
    that all that x is made of."""
    return lax.optimization_barrier(x) if _jaxpr.XLA_KEEPS_BARRIERS else _after.bind(x)


def _branch(x: Array, *tokens: Array) -> Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_branch(jax.random.key_data(x), *tokens), impl=jax.random.key_impl(x))
    bits = [_bits(token) for token in tokens or (x,) if token.size]
    if not bits or not x.size:
        return x
    arrived = sum(map(lax.population_count, bits)) >= 0
    return lax.cond(arrived, lambda x: x, jnp.zeros_like, x)


def _bits(token: Array) -> Array:
    """Some bits of the first element, as int32."""
    if jnp.issubdtype(token.dtype, jax.dtypes.prng_key):
        token = jax.random.key_data(token)
    first = lax.slice(token, (0,) * token.ndim, (1,) * token.ndim).reshape(())
    if jnp.issubdtype(first.dtype, jnp.complexfloating):
        first = lax.real(first)
    if jnp.issubdtype(first.dtype, jnp.floating):
        width = 8 * first.dtype.itemsize
        first = lax.bitcast_convert_type(first, jnp.dtype(f"int{width}"))
    return lax.convert_element_type(first, jnp.int32)


def _barrier(x: Array, *tokens: Array) -> Array:
    return lax.optimization_barrier((x, *tokens))[0]


def _lowering(function: Any) -> Any:
    rule = mlir.lower_fun(function, multiple_results=False)

    def lower(ctx: Any, *operands: Any) -> Any:
        return rule(ctx.replace(avals_in=[_jaxpr.on_one_device(aval) for aval in ctx.avals_in]), *operands)

    return lower


def _jvp(operands: Sequence[Any], steps: Sequence[Any]) -> Any:
    x, *tokens = operands
    out = _after.bind(x, *tokens)
    return out, ad.Zero(jax.typeof(out).to_tangent_aval()) if type(steps[0]) is ad.Zero else after(steps[0], tokens)


def _transpose(cotangent: Any, x: Any, *tokens: Any) -> list[Any]:
    return [cotangent if ad.is_undefined_primal(x) else None, *(None for _ in tokens)]


def _batch(operands: Sequence[Array], axes: Sequence[int | None]) -> tuple[Array, int | None]:
    x, *tokens = operands
    first = [t if axis is None else lax.index_in_dim(t, 0, axis, keepdims=False) for t, axis in zip(tokens, axes[1:])]
    return _after.bind(x, *first), axes[0]


_after.def_impl(lambda x, *_: x)  # operation by operation there is nothing to merge
_after.def_abstract_eval(lambda x, *_: x)
ad.primitive_jvps[_after] = _jvp
ad.primitive_transposes[_after] = _transpose
batching.primitive_batchers[_after] = _batch
mlir.register_lowering(_after, _lowering(_barrier))
mlir.register_lowering(_after, _lowering(_branch), platform="cpu")
