"""What several tools take: functions and options."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustad.diagnosis._arguments import AuditError


def refuse_no_function(f: Any, tool: str, name: str = "f") -> None:
    """Raises an AuditError where what a tool is given is no function."""
    if not callable(f):
        raise AuditError(f"`{name}` must be a function; got {type(f).__name__}. Call it as {tool}({name})(*args).")


def name_of(f: Any) -> str:
    """What reports call a function."""
    return getattr(f, "__name__", type(f).__name__)


def count(name: str, n: Any, least: int) -> None:
    """Raises an AuditError where an option is no integer of at least `least`."""
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < least:
        raise AuditError(f"`{name}` must be an integer >= {least}; got {n!r}.")


def refuse_no_key(key: Any) -> None:
    """Raises an AuditError where a `key` is given that is none."""
    if key is not None and not (
        isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and not key.shape
    ):
        raise AuditError(f"`key` must be one key of jax.random.key(...); got {type(key).__name__}.")


def is_number(x: Any) -> bool:
    """Whether an option is a real number: Python's or NumPy's."""
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)


def refuse_no_rtol(rtol: Any) -> None:
    """Raises an AuditError where an `rtol` is given that is none."""
    if rtol is not None and not (is_number(rtol) and 0 < rtol < 1):
        raise AuditError(f"`rtol` must be a number in (0, 1), or None for half the digits; got {rtol!r}.")


def numpy_seed(key: Any) -> list[int]:
    """A seed for NumPy from a JAX key; the same one each time where there is none."""
    refuse_no_key(key)
    return [0] if key is None else [int(x) for x in np.asarray(jax.random.key_data(key)).ravel()]
