"""Results as NumPy arrays, which keep float64 outside of `jax.enable_x64`; as JAX arrays while they are being traced."""

from types import ModuleType
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr

T = TypeVar("T")


def on_host(tree: T) -> T:
    """The same pytree with NumPy arrays for leaves; those that are being traced stay."""
    return jax.tree.map(lambda x: x if _jaxpr.is_traced(x) else np.asarray(x), tree)


def namespace(x: object) -> ModuleType:
    """`jax.numpy` for an array that is being traced, else NumPy."""
    return jnp if _jaxpr.is_traced(x) else np
