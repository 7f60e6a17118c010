"""Bytes: of arrays, and as users write them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

_DECIMAL = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_UNITS = _DECIMAL | _BINARY | {"": 1, "KB": 10**3}


def parse(name: str, value: Any) -> int:
    """A number of bytes, of an integer or a string such as "2GiB" or "500 MB".

    k, M, G and T are powers of 1000 before B, of 1024 before iB.
    """
    if isinstance(value, str):
        matched = re.fullmatch(r"\s*([0-9.eE+]+)\s*([A-Za-z]*)\s*", value)
        try:
            number = float(matched[1]) * _UNITS[matched[2]] if matched else math.nan
        except (KeyError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f'`{name}` must be a number of bytes or a string such as "2GiB" or "500MB"; got {value!r}. Units: '
                f"{', '.join(_DECIMAL | _BINARY)}."
            )
    elif (
        isinstance(value, bool | complex) or not isinstance(value, int | float | np.number) or not math.isfinite(value)
    ):
        raise TypeError(f'`{name}` must be a number of bytes or a string such as "2GiB"; got {value!r}.')
    else:
        number = value
    if number <= 0:
        raise ValueError(f"`{name}` must be above 0 bytes; got {value!r}.")
    return int(number)


def of(avals: Iterable[Any]) -> int:
    """The bytes of arrays of these types; a random key counts as its words."""
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in avals)


def text(number: float) -> str:
    """A number of bytes in binary units, for reading."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"
