"""What the numbers that a user gives must be."""

from __future__ import annotations

import operator
from typing import Any


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
