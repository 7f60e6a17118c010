"""Where a test's function has its statements."""

from collections.abc import Callable
from typing import Any


def line(f: Callable[..., Any], offset: int) -> int:
    """The number of the line `offset` lines below the `def` of f."""
    return f.__code__.co_firstlineno + offset
