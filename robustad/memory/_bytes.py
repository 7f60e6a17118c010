"""Sizes in bytes: as the user writes them and as they are read."""

import math
import numbers
import re
from typing import Any

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_WRITTEN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]+)\s*", re.IGNORECASE)


def in_bytes(size: Any, name: str = "size") -> int:
    """A number of bytes, or a string as "2GiB" or "500 MB", in bytes.

    Raises:
        TypeError: it is neither.
        ValueError: it is not above 0, or of a unit that is none of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB.
    """
    if isinstance(size, str):
        written = _WRITTEN.fullmatch(size)
        if not written or written[2].lower() not in _UNITS:
            unit = f"`{written[2]}` is no unit" if written else "a number and a unit are"
            raise ValueError(
                f"`{name}` is {size!r}: {unit if written else unit + ' expected'}. Write for example '2GiB' or '500 MB' "
                "(B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)."
            )
        number = float(written[1]) * _UNITS[written[2].lower()]
    elif isinstance(size, numbers.Real) and not isinstance(size, bool):
        number = float(size)
    else:
        raise TypeError(
            f"`{name}` is {size!r} of type {type(size).__name__}; expected a number of bytes or a string as '2GiB'."
        )
    if not number >= 1 or math.isinf(number):
        raise ValueError(f"`{name}` is {size!r}; expected a number of bytes above 0, and no fraction of one.")
    return int(number)


def readable(size: float) -> str:
    """Bytes in three digits: 512 B, 1.25 MiB."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(size) >= 0.9995 * factor:
            value = size / factor
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{size:.0f} B"
