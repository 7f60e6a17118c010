"""Errors of a function and its derivatives at given points, in ulps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tests._ulp import spacing, ulps
from tests.special._oracle import exact
from tests.special._table import Special


def partials(function: Callable, arity: int) -> list[list[Callable]]:
    """Value, first and second partial derivatives, each on arrays; the second by reverse over reverse mode."""

    def derivative(f, index):
        return lambda *args: jax.grad(lambda *xs: jnp.sum(f(*xs)), index)(*args)

    first = [derivative(function, i) for i in range(arity)]
    second = [derivative(first[i], j) for i in range(arity) for j in range(i, arity)]
    return [[function], first, second]


def reference(entry: Special, columns: list[np.ndarray]) -> list[np.ndarray]:
    """Per order, an array (partial, point, word)."""
    rows = [exact(entry.oracle, *map(float, point)) for point in zip(*columns)]
    return [np.array([row[order] for row in rows]).swapaxes(0, 1) for order in range(3)]


def evaluate(function: Callable, arity: int, columns: list[np.ndarray]) -> list[np.ndarray]:
    """Per order, an array (partial, point)."""
    orders = partials(function, arity)
    run = jax.jit(lambda *xs: [jnp.stack([f(*xs) for f in order]) for order in orders])
    return [np.asarray(values) for values in run(*columns)]


def errors(
    entry: Special, got: list[np.ndarray], truth: list[np.ndarray], columns: list[np.ndarray]
) -> list[np.ndarray]:
    """Per order, an array (partial, point) of ulps; relative to the entry's scale where it has one."""
    result = []
    for order in range(3):
        high, low = truth[order][..., 0], truth[order][..., 1]
        error = ulps(got[order], high, low)
        if order in entry.scale:
            with np.errstate(all="ignore"):
                size = entry.scale[order](*(x.astype(np.float64) for x in columns))
                relative = np.abs(got[order] - high - low) / np.maximum(
                    spacing(size, got[order].dtype), spacing(high, got[order].dtype)
                )
            error = np.where(np.isfinite(relative) & np.isfinite(error), np.minimum(error, relative), error)
        result.append(error)
    return result
