"""Schedules: as few advances as any, within their slots, in a valid order."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustad.memory import Schedule, revolve_schedule
from robustad.memory import _binomial as binomial


def replay(schedule: Schedule, costs=None) -> float:
    """Carries a schedule out on step numbers, with what must hold on the way; the cost of its advances."""
    costs = np.ones(schedule.steps) if costs is None else np.asarray(costs, float)
    slots: dict[int, int] = {}
    current, expected, spent, total = 0, schedule.steps - 1, 0.0, 0
    for kind, step, stop, slot in schedule.actions:
        if kind == "store":
            assert current == step
            slots[slot] = step
            assert max(slots) < schedule.checkpoints
        elif kind == "restore":
            assert slots[slot] == step
            current = step
        elif kind == "advance":
            assert current == step < stop < schedule.steps
            spent += costs[step:stop].sum()
            total += stop - step
            current = stop
        else:
            assert kind == "reverse" and step == current == expected
            expected -= 1
    assert expected == -1
    assert total == schedule.advances
    return spent


def least_advances(most: int, slots: int) -> np.ndarray:
    """least[s, n] by brute force over every place to store next."""
    least = np.zeros((slots + 1, most + 1), int)
    for n in range(most + 1):
        least[1, n] = n * (n - 1) // 2
    for s in range(2, slots + 1):
        for n in range(2, most + 1):
            least[s, n] = min(m + least[s, m] + least[s - 1, n - m] for m in range(1, n))
    return least


def test_optimum_for_all_small():
    least = least_advances(60, 8)
    for n in range(1, 61):
        for s in range(1, 9):
            schedule = revolve_schedule(n, s)
            assert schedule.advances == least[s, n] == binomial.advances(n, s)
            assert replay(schedule) == least[s, n]


@pytest.mark.parametrize("n, s", [(100, 3), (1009, 5), (1009, 30), (2500, 7), (10_000, 20), (777, 200), (50, 49)])
def test_against_the_published_package(n, s):
    package = pytest.importorskip("checkpoint_schedules")
    actions = itertools.takewhile(
        lambda a: not isinstance(a, package.EndReverse), package.MultistageCheckpointSchedule(n, s, 0)
    )
    theirs = sum(a.n1 - a.n0 for a in actions if isinstance(a, package.Forward)) - n  # n: within the reversals
    assert revolve_schedule(n, s).advances == theirs
    assert replay(revolve_schedule(n, s)) == theirs


def test_formula_of_griewank_and_walther():
    for s in range(1, 12):
        for r in range(1, 8):
            n = binomial.math.comb(s + r, s)  # the most that r repetitions reverse
            assert binomial.repetitions(n, s) == r and binomial.repetitions(n + 1, s) == r + 1
            assert binomial.advances(n, s) == r * n - binomial.math.comb(s + r, s + 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 4))
def test_unequal_steps_by_brute_force(costs, s):
    @functools.cache
    def least(start: int, stop: int, free: int) -> float:
        if stop - start <= 1:
            return 0
        again = sum(sum(costs[start:k]) for k in range(start, stop))
        if free == 1:
            return again
        return min(
            sum(costs[start:m]) + least(start, m, free) + least(m, stop, free - 1) for m in range(start + 1, stop)
        )

    schedule = revolve_schedule(len(costs), s, costs=costs)
    assert schedule.cost == replay(schedule, costs) == least(0, len(costs), s)


def test_equal_costs_give_the_binomial_optimum():
    for n, s in ((1, 1), (7, 2), (40, 4), (5, 9)):
        assert revolve_schedule(n, s, costs=[1] * n).cost == revolve_schedule(n, s).advances


def test_splits_in_a_program():
    for n, s in ((70, 2), (70, 5), (300, 60)):
        r = binomial.repetitions(n, s)
        table = binomial.bounds(n, s, r)
        pairs = [(m, i) for i in range(2, s + 1) for m in range(2, min(n, binomial.math.comb(i + r, i)) + 1)]
        split = jax.jit(jax.vmap(functools.partial(binomial.traced_split, table)))
        assert split(*jnp.asarray(pairs).T).tolist() == [binomial.split(m, i) for m, i in pairs]


def test_unequal_steps_gain():
    costs = [1] * 20 + [50] * 5
    assert revolve_schedule(25, 3, costs=costs).cost < replay(revolve_schedule(25, 3), costs)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n": 0, "s": 2}, "`n` must be an integer from 1 up; got 0"),
        ({"n": 5, "s": 0}, "`s` must be an integer from 1 up; got 0"),
        ({"n": 5, "s": 2, "costs": [1, 2]}, "`costs` must hold 5 finite numbers"),
        ({"n": 2, "s": 2, "costs": [1, -2]}, "not below zero"),
        ({"n": 2, "s": 2, "costs": [1, float("nan")]}, "finite"),
        ({"n": 3, "s": 2, "costs": "abc"}, "`costs` must hold 3 finite numbers.*got 'abc'"),
        ({"n": 3, "s": 2, "costs": 2.0}, "`costs` must hold 3 finite numbers.*got 2.0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        revolve_schedule(**arguments)


def test_costs_may_be_a_generator():
    assert revolve_schedule(3, 2, costs=(c for c in [1, 2, 3])) == revolve_schedule(3, 2, costs=[1, 2, 3])


def test_refuses_what_is_no_integer():
    with pytest.raises(TypeError, match=r"`s` must be an integer; got 2\.5 of type float"):
        revolve_schedule(5, 2.5)  # pyright: ignore[reportArgumentType]
