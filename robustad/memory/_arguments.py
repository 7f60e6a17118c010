"""What a user gives must be."""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def positive_integer(name: str, value: Any) -> int:
    """`value` as an int, at least 1."""
    return integer_from(name, value, 1)


def integer_from(name: str, value: Any, least: int) -> int:
    """`value` as an int, not below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        hint = " It must be known when the program is traced." if hasattr(value, "aval") else ""
        raise TypeError(f"`{name}` must be an integer; got {value!r} of type {type(value).__name__}.{hint}") from None
    if isinstance(value, bool) or number < least:
        raise ValueError(f"`{name}` must be an integer from {least} up; got {value!r}.")
    return number


def refuse_what_is_no_function(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"`{name}` is {value!r} of type {type(value).__name__}; expected a function.")


def bound(f: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call with all that can be given by position among the positional arguments."""
    with contextlib.suppress(TypeError, ValueError):  # what does not fit is told when f is called
        call = inspect.signature(f).bind(*args, **kwargs)
        return call.args, call.kwargs
    return tuple(args), kwargs


def positions(argnums: int | Sequence[int], count: int, name: str = "argnums") -> list[int]:
    """The positions that `argnums` names among `count` arguments, from 0 up."""
    given = argnums if isinstance(argnums, Sequence) else [argnums]
    wanted = [operator.index(i) for i in given if hasattr(i, "__index__") and not isinstance(i, bool | np.ndarray)]
    if len(wanted) < len(given):
        raise TypeError(f"`{name}` is {argnums!r}; expected the position of an argument, or a sequence of positions.")
    if not all(-count <= i < count for i in wanted):
        raise ValueError(f"`{name}` is {argnums!r}, but the call has {count} positional arguments.")
    found = [i % count for i in wanted]
    if len(set(found)) < len(found):
        raise ValueError(f"`{name}` is {argnums!r}, which names an argument twice. Leave one of them out.")
    return found


def shown(x: Any) -> str:
    """The dtype and shape of an array or number, the type of anything else."""
    if isinstance(x, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
        aval = jax.typeof(x)
        return f"{aval.dtype}{list(aval.shape)}"
    return type(x).__name__ + (f" of {len(x)}" if isinstance(x, tuple | list) else "")
