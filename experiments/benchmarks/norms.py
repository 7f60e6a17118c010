"""What range-safe norms and moments cost beside the plain ones, as ratios.

python experiments/benchmarks/norms.py --json norms.json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from ratios import Case, main

from robustad import stability as st

SIZE, ROWS = 10**7, 10**4
UNBATCHED, VMAPPED = 1.1, 1.8


def gradients() -> tuple[dict[str, Any]]:
    """A pytree like the gradients of a transformer of 12 blocks of width 512, 38 million parameters."""
    keys = iter(jax.random.split(jax.random.key(0), 200))
    width = 512

    def random(*shape: int) -> Array:
        return jax.random.normal(next(keys), shape, jnp.float32) * 1e-3

    def block() -> dict[str, Array]:
        weights = {"qkv": random(width, 3 * width), "out": random(width, width)}
        weights |= {"up": random(width, 4 * width), "down": random(4 * width, width)}
        return weights | {"gain": random(width), "bias": random(width)}

    return ({"blocks": [block() for _ in range(12)], "last": random(width)},)


def rows(function: Callable) -> Callable[[Array], Array]:
    return lambda x: function(x, axis=-1)


def cases():
    def flat():
        return (jax.random.normal(jax.random.key(1), (SIZE,), jnp.float32),)

    def matrix():
        return (flat()[0].reshape(ROWS, -1),)

    for name, ours, plain in (
        ("norm", st.norm, jnp.linalg.norm),
        ("mean", st.mean, jnp.mean),
        ("var", st.var, jnp.var),
        ("std", st.std, jnp.std),
    ):
        yield Case(name, ours, plain, flat, UNBATCHED)
        yield Case(f"{name}, rows", rows(ours), rows(plain), matrix, UNBATCHED)
        yield Case(f"{name}, vmap", jax.vmap(ours), jax.vmap(plain), matrix, VMAPPED)
    yield Case("global_norm", st.global_norm, optax.global_norm, gradients, UNBATCHED)


if __name__ == "__main__":
    main(__doc__, cases(), repeats=31)
