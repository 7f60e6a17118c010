"""What an entry of the zoo looks like, and the decorators that collect the entries."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FAULT_MARK = "# FAULT"


@dataclass(frozen=True)
class Fault:
    """A planted numerical fault.

    `make()` gives `(loss, args)`; `make(dtype=jnp.float64)` gives the same loss with every hard-coded
    cast widened, for a float64 twin. The faulty statement carries a trailing `# FAULT` in make's source.
    """

    name: str
    model: str
    make: Callable[..., tuple[Callable[..., Any], tuple[Any, ...]]]
    kinds: frozenset[str]
    dtype: str
    phase: str | None = None  # "forward" or "backward": the pass in which the error arises, None if in both


@dataclass(frozen=True)
class Healthy:
    """A tricky but correct model; `dtype` is the narrowest dtype its computation passes through.

    `zero_leaves` names (by a substring of the key path, "" for a bare array) the gradient leaves that are
    zero in exact arithmetic, of which a computed gradient holds rounding noise only.
    """

    name: str
    model: str
    make: Callable[..., tuple[Callable[..., Any], tuple[Any, ...]]]
    dtype: str = "float32"
    zero_leaves: tuple[str, ...] = ()


faults: list[Fault] = []
healthies: list[Healthy] = []


def _name(make: Callable[..., Any]) -> str:
    return make.__name__.removeprefix("make_")


def fault(model: str, *kinds: str, phase: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Collect `make` as a Fault; its working dtype is the default of make's `dtype` argument."""

    def collect(make: Callable[..., Any]) -> Callable[..., Any]:
        dtype = inspect.signature(make).parameters["dtype"].default
        faults.append(Fault(_name(make), model, make, frozenset(kinds), dtype.dtype.name, phase))
        return make

    return collect


def healthy(model: str, zero_leaves: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Collect `make` as a Healthy; its working dtype is the default of make's `dtype` argument."""

    def collect(make: Callable[..., Any]) -> Callable[..., Any]:
        dtype = inspect.signature(make).parameters["dtype"].default
        healthies.append(Healthy(_name(make), model, make, dtype.dtype.name, zero_leaves))
        return make

    return collect


def fault_lines(fault: Fault) -> tuple[str, set[int]]:
    """The file of a fault and the numbers of its marked lines."""
    source, start = inspect.getsourcelines(fault.make)
    filename = inspect.getsourcefile(fault.make)
    assert filename is not None
    return filename, {start + i for i, line in enumerate(source) if line.rstrip().endswith(FAULT_MARK)}
