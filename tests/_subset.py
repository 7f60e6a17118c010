"""Which cases of a long list are run each time; all of them are with `pytest --whole`."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def thinned(cases: Sequence[Any], every: int, kept: Iterable[Any] = ()) -> list[Any]:
    """The cases as parameters, of which one in `every`, and those that are `kept`, are run each time."""
    kept = list(kept)
    return [
        case
        if k % every == 0 or any(case is one for one in kept)
        else pytest.param(*_values(case), marks=pytest.mark.whole)
        for k, case in enumerate(cases)
    ]


def _values(case: Any) -> tuple[Any, ...]:
    return tuple(case) if isinstance(case, tuple) else (case,)
