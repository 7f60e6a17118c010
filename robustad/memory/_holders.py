"""Who keeps an object alive, in words: a module's variable, a closure, an object's attribute, a cache."""

from __future__ import annotations

import functools
import gc
import sys
import types
from collections import deque
from collections.abc import Collection
from typing import Any

_CACHE = type(functools.lru_cache(lambda: None))
_MOST = 500
"""Objects looked at before the search is given up."""


def holder(x: Any, ignored: Collection[int] = ()) -> str | None:
    """The nearest owner that has a name, as "`history[3]` of module train"; None where none is found.

    ignored: ids of objects that are not to be named.
    """
    seen = {id(x), *ignored}
    queue: deque[tuple[Any, str]] = deque([(x, "")])
    seen.add(id(queue))
    while queue and len(seen) < _MOST:
        held, suffix = queue.popleft()
        referrers = gc.get_referrers(held)
        seen.add(id(referrers))
        for owner in referrers:
            if id(owner) in seen or isinstance(owner, types.FrameType):
                continue
            seen.add(id(owner))
            if isinstance(owner, dict):
                key = next((k for k, v in owner.items() if v is held), None)
                module = sys.modules.get(str(owner.get("__name__")))
                if module is not None and vars(module) is owner:
                    return f"`{key}{suffix}` of module {module.__name__}"
                queue.append((owner, f"[{key!r}]{suffix}"))
            elif isinstance(owner, list | tuple | deque):
                place = next((i for i, v in enumerate(owner) if v is held), 0)
                queue.append((owner, f"[{place}]{suffix}"))
            elif isinstance(owner, set | frozenset):
                queue.append((owner, suffix))
            elif isinstance(owner, types.CellType):
                if named := _of_cell(owner, suffix):
                    return named
            elif isinstance(owner, _CACHE):
                return f"the cache of `{_name(owner)}`"
            elif named := _of_attribute(owner, held, suffix):
                return named
    return None


def _of_cell(cell: types.CellType, suffix: str) -> str | None:
    """The variable of a closure."""
    for closure in gc.get_referrers(cell):
        for function in gc.get_referrers(closure) if isinstance(closure, tuple) else ():
            if isinstance(function, types.FunctionType) and function.__closure__ is closure:
                place = next(i for i, c in enumerate(closure) if c is cell)
                code = function.__code__
                return f"`{code.co_freevars[place]}{suffix}`, which `{_name(function)}` closes over ({_place(code)})"
    return None


def _of_attribute(owner: Any, held: Any, suffix: str) -> str | None:
    try:
        attributes = vars(owner)
    except TypeError:
        return None
    for name, value in attributes.items():
        if value is held or (isinstance(held, dict) and attributes is held):
            label = f".{name}" if value is held else ""
            return f"`{_name(type(owner))}{label}{suffix}`"
    return None


def _name(x: Any) -> str:
    return getattr(x, "__qualname__", type(x).__qualname__)


def _place(code: types.CodeType) -> str:
    return f"{code.co_filename}:{code.co_firstlineno}"
