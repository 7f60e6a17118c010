"""64-bit arrays outside of `jax.enable_x64(True)`: a rule may be asked for after the context that made them was left."""

import contextlib
from typing import Any

import jax
import numpy as np

_WIDE = tuple(map(np.dtype, (np.float64, np.complex128)))


def in_float64(*arrays: Any) -> contextlib.AbstractContextManager[Any]:
    """The context in which operations on these arrays (or avals) keep their dtypes."""
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return contextlib.nullcontext()
    wide = any(_is_wide(getattr(x, "aval", x)) for x in arrays)
    return jax.enable_x64(True) if wide else contextlib.nullcontext()  # pyright: ignore[reportAttributeAccessIssue]


def _is_wide(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)  # None is float64 to numpy; and numpy's numbers are narrow to JAX here
    return dtype is not None and not isinstance(x, np.generic) and dtype in _WIDE
