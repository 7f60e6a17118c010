"""Functions with a branch on one scalar, which keep that branch under `vmap`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_leading_axes(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays (pytrees), which must work over any leading axes, with that as its rule for `vmap`.

    `vmap` would turn a `lax.cond` into a `select`, which evaluates both branches. Here the batch becomes a leading axis of
    the arguments, and the predicate stays a scalar. To be called in the primal part of a `custom_jvp` function only.
    """
    batched = jax.custom_batching.custom_vmap(function)

    @batched.def_vmap
    def rule(size: int, in_batched: Any, *args: Any) -> Any:
        def lead(x: jax.Array, is_batched: bool) -> jax.Array:
            return x if is_batched else jnp.broadcast_to(x, (size, *x.shape))

        results = over_leading_axes(function)(*jax.tree.map(lead, args, tuple(in_batched)))
        return results, jax.tree.map(lambda _: True, results)

    return batched
