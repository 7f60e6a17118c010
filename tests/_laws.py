"""The law of the walk: walked(f)(x) is f(x); and the transformations that it must hold for."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from tests._walking import assert_close, assert_typed, in_float64, shadows, walk

FLOAT32 = 1e-6  # the walk fuses otherwise than the plain program: a few ulp
TWIN = 1e-11

x4, x8, m4 = (
    jnp.asarray(np.random.default_rng(k).uniform(-1, 1, s), jnp.float32) for k, s in enumerate((4, 8, (4, 4)))
)


def derivative(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return jax.value_and_grad(lambda x: jnp.sum(f(x) * jnp.cos(f(x))))


def over_rows(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: jax.vmap(f)(jnp.stack([x, x * x, -x]))


TRANSFORMS: dict[str, Callable[[Callable[[Any], Any]], Callable[[Any], Any]]] = {
    "plain": lambda f: f,
    "grad": derivative,
    "vmap": over_rows,
    "vmap of grad": lambda f: over_rows(derivative(f)),
}


def check(f: Callable[..., Any], *args: Any, float64: bool = True, tolerance: float = FLOAT32) -> None:
    """Working values are the plain program's, twins the float64 program's (or near the working values)."""
    walked, plain = walk(f, *args), jax.jit(f)(*args)
    for value, expected in zip(shadows(walked), jax.tree.leaves(plain), strict=True):
        assert_typed(value)
        assert value.working.dtype == expected.dtype
        assert_close(value.working, expected, tolerance)
    twins = [v for v in shadows(walked) if v.high is not None]
    if float64:
        exact = [e for e in jax.tree.leaves(in_float64(f, *args)) if jnp.issubdtype(e.dtype, jnp.inexact)]
        for value, expected in zip(twins, exact, strict=True):
            assert_close(value.high, expected, TWIN)
    working, high = (np.concatenate([getattr(v, part).ravel() for v in twins]) for part in ("working", "high"))
    assert_close(high, working, 1e-4)


def mesh8() -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
