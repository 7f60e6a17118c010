"""Checkpointing schedules as data."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from robustad.memory import _binomial
from robustad.memory._arguments import positive_integer


class Action(NamedTuple):
    """One action of a schedule on a current state, which is the state before step `step`.

    "store" writes it into `slot`; "restore" makes the state in `slot` the current one; "advance" computes the steps
    from `step` up to, not including, `stop`; "reverse" differentiates step `step`, from the state before it.
    """

    kind: Literal["store", "restore", "advance", "reverse"]
    step: int
    stop: int | None = None
    slot: int | None = None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A schedule that reverses `steps` steps with at most `checkpoints` stored states, the initial one among them.

    Attributes:
        steps, checkpoints: the numbers that it was made for.
        actions: what to do, in order.
        advances: how many times a step is advanced, not counting the differentiation itself.
        cost: the sum of the costs of these advances; equal to `advances` where all steps cost 1.
    """

    steps: int
    checkpoints: int
    actions: tuple[Action, ...] = dataclasses.field(repr=False)
    advances: int
    cost: float


def revolve_schedule(n: int, s: int, *, costs: Sequence[float] | None = None) -> Schedule:
    r"""The schedule that reverses n steps with s stored states by the fewest advances.

    For equal steps it is the binomial schedule: \(t(n, s) = r n - \binom{s + r}{s + 1}\) advances, where r is the least
    number with \(n \le \binom{s + r}{s}\); no schedule has fewer. For steps of different costs it is found by dynamic
    programming over all intervals, in O(n³ s) operations and O(n² s) memory.

    Args:
        n: the number of steps, at least 1.
        s: the number of states that may be stored at a time, at least 1; the initial state is one of them. More than n
            are not used.
        costs: the cost of advancing each step, n numbers not below zero, in any unit; None: all equal.

    Returns:
        A `Schedule`.

    Raises:
        TypeError: n or s is not an integer.
        ValueError: n or s is below 1, or there are not n finite costs from zero up.

    Source: A. Griewank, A. Walther, "Algorithm 799: Revolve", ACM Trans. Math. Softw. 26 (2000) 19-45; for
    unequal steps: A. Walther, "Program reversal schedules for single- and multi-processor machines" (1999).

    >>> schedule = revolve_schedule(4, 2)
    >>> schedule.advances
    4
    >>> for action in schedule.actions[:6]:
    ...     print(action.kind, action.step, action.stop)
    store 0 None
    advance 0 2
    store 2 None
    advance 2 3
    reverse 3 None
    restore 2 None
    >>> revolve_schedule(4, 2, costs=[1, 1, 10, 1]).cost
    13.0
    """
    n, s = positive_integer("n", n), positive_integer("s", s)
    if costs is None:
        actions = tuple(_actions(n, s, lambda start, stop, free: start + _binomial.split(stop - start, free)))
        advances = _binomial.advances(n, s)
        return Schedule(n, s, actions, advances, float(advances))
    weights = np.empty(0)
    with contextlib.suppress(TypeError, ValueError):  # what holds no numbers is refused below
        weights = np.asarray(list(costs), np.float64)
    if weights.shape != (n,) or not np.all(np.isfinite(weights)) or np.any(weights < 0):
        raise ValueError(f"`costs` must hold {n} finite numbers not below zero, one for each step; got {costs!r}.")
    cost, splits = _least_cost(weights, min(s, n))
    actions = tuple(_actions(n, min(s, n), lambda start, stop, free: int(splits[free, start, stop])))
    advances = sum(a.stop - a.step for a in actions if a.stop is not None)
    return Schedule(n, s, actions, advances, cost)


def _actions(n: int, s: int, split: Callable[[int, int, int], int]) -> Iterator[Action]:
    """The walk that every schedule is: advance and store while a slot is free, reverse, go back to the last stored state.

    `split(start, stop, free)` is where to store next, with `free` slots of which one holds the state before `start`.
    """
    yield Action("store", 0, slot=0)
    stored = [0]
    for step in reversed(range(n)):
        at = stored[-1]
        if step < n - 1:
            yield Action("restore", at, slot=len(stored) - 1)
        while at < step and len(stored) < s:
            then = split(at, step + 1, s - len(stored) + 1)
            yield Action("advance", at, stop=then)
            yield Action("store", then, slot=len(stored))
            stored.append(then)
            at = then
        if at < step:
            yield Action("advance", at, stop=step)
        yield Action("reverse", step)
        if stored[-1] == step:
            stored.pop()


def _least_cost(costs: np.ndarray, s: int) -> tuple[float, np.ndarray]:
    """The least cost of advances and, for (free slots, start, stop), where to store next.

    least[start, stop] = min over m of cost(start..m) + least with one slot less[m, stop] + least[start, m].
    """
    n = len(costs)
    until = np.concatenate([[0.0], np.cumsum(costs)])
    starts = np.arange(n + 1)
    # One slot: from its only state every step is reached anew.
    sums = np.concatenate([[0.0], np.cumsum(until[:-1])])
    fewer = (sums[None, :] - sums[:, None]) - (starts[None, :] - starts[:, None]) * until[:, None]
    splits = np.zeros((s + 1, n + 1, n + 1), np.int32)
    for free in range(2, s + 1):
        least = np.zeros((n + 1, n + 1))
        for length in range(2, n + 1):
            start = np.arange(n - length + 1)[:, None]
            middle = start + np.arange(1, length)[None, :]
            total = until[middle] - until[start] + fewer[middle, start + length] + least[start, middle]
            best = np.argmin(total, axis=1)
            rows = start[:, 0]
            splits[free, rows, rows + length] = rows + 1 + best
            least[rows, rows + length] = total[rows, best]
        fewer = least
    return float(fewer[0, n]), splits
