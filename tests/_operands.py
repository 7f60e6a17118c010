"""The operands of small programs, as numbers in float64 and cast to a dtype by its short name."""

from typing import Any

import jax.numpy as jnp
import numpy as np

DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": jnp.bfloat16, "c64": np.complex64}


def cast(x: Any, dtype: str) -> Any:
    x = np.asarray(x)
    if x.dtype.kind not in "fc":
        return jnp.asarray(x)
    if dtype == "c64" and x.dtype.kind == "f":
        x = x + 0.375j * np.cos(np.arange(x.size)).reshape(x.shape)
    return jnp.asarray(x.astype(DTYPES[dtype]))


def numbers(*shape: int, low: float = -1.5, high: float = 1.5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape)


def positive_definite(n: int = 4) -> np.ndarray:
    a = numbers(n, n)
    return a @ a.T + 0.25 * np.eye(n)


x, y = numbers(3, 8), numbers(3, 8, seed=1)
square = numbers(4, 4) + 2 * np.eye(4)
