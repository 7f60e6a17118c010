"""Cases of several values as functions of one: of each value every element counts."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def weighted(case: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A case as a function with one value."""

    def f(x: Any) -> Any:
        out = case(x)
        return jnp.sum(out * jnp.arange(1, 1 + out.size, dtype=out.dtype).reshape(out.shape))

    return f


def plain_of(cases: Mapping[str, Callable[[Any], Any]], x: np.ndarray) -> Callable[[Any], dict[str, Any]]:
    """Value and gradient of all cases as they stand, at x in a dtype."""

    @functools.cache
    def plainly(dtype: Any) -> dict[str, Any]:
        with jax.enable_x64(dtype == np.float64):
            run = jax.jit(lambda x: {name: jax.value_and_grad(weighted(f))(x) for name, f in cases.items()})
            return jax.tree.map(np.asarray, run(x.astype(dtype)))

    return plainly
