"""The integer program that chooses what the segments of a plan keep: its optimum, and what is then computed again."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr
from robustad.memory import checkpoint, fit
from robustad.memory._fit import Call
from robustad.memory._plan import Planner
from robustad.memory._running import kept_policy, run_steps
from robustad.memory._segments import Plan
from robustad.memory._selection import refined, selected


def loss(w, x):
    h = jnp.tanh(x @ w)
    y = x * jnp.exp(jnp.sin(h @ w.T - 1))
    return jnp.sum(jnp.cos(y @ w) * jnp.sum(y, 1, keepdims=True))


CALL = Call(loss, (0, 1), False, (jnp.ones((16, 64)) / 8, jnp.ones((32, 16))), {})
MODEL = Planner(CALL.flat, CALL.moved).model
COUNT = len(CALL.flat.steps)


def whole(kept):
    return MODEL.sweep(0, [COUNT], kept.__contains__, 0)[0]


def test_the_optimum_is_that_of_all_selections():
    made = [v for step in CALL.flat.steps for v in step.results if MODEL.root[v] == v]
    assert len(made) <= 14
    segments = [whole(set(chosen)) for n in range(len(made) + 1) for chosen in itertools.combinations(made, n)]
    better = False
    bare, peaks = whole(set()), sorted(s.inside for s in segments)
    for budget in (peaks[0], *peaks[:: len(peaks) // 6], peaks[-1]):
        least = min(s.flops for s in segments if s.inside <= budget)
        if bare.inside > budget:
            continue
        found = refined(MODEL, Plan((bare,), bare.flops, bare.inside), budget)
        better |= found.flops < bare.flops
        assert found.flops <= least + 0.011 * MODEL.forward_flops and found.peak <= budget
    assert better


def test_plans_become_no_worse():
    def deep(ws, x):
        for w in ws:
            x = x + jnp.tanh(jnp.sin(x @ w) @ w.T)
        return jnp.mean(x**2)

    call = Call(deep, 0, False, ([jnp.ones((16, 64))] * 8, jnp.ones((64, 16))), {})
    planner = Planner(call.flat, call.moved)
    for share in (0.8, 0.6, 0.45):
        budget = share * planner.cut(math.inf).peak
        plan, better = planner.cut(budget), planner.plan(budget)
        assert better.flops <= plan.flops and better.peak <= budget
        assert [(s.start, s.stop) for s in better.segments] == [(s.start, s.stop) for s in plan.segments]


def test_a_selection_of_so_many_bytes_does_the_fewest_operations_again():
    made = [v for step in CALL.flat.steps for v in step.results if MODEL.root[v] == v]
    choices = [set(chosen) for n in range(len(made) + 1) for chosen in itertools.combinations(made, n)]
    costs = [(sum(MODEL.sizes[v] for v in kept), whole(kept).flops) for kept in choices]
    flops = []
    for most in (0, 3000, 9000, 20_000):
        kept = selected(MODEL, most)
        flops.append(whole(kept).flops)
        assert sum(MODEL.sizes[v] for v in kept) <= most
        assert flops[-1] <= min(f for size, f in costs if size <= most) + 0.011 * MODEL.forward_flops
    assert flops == sorted(flops, reverse=True) and flops[0] > flops[-1]


def test_what_made_a_kept_value_is_not_computed_again():
    """An elementwise result after a product: kept, it spares the product (a barrier's derivative must not need it)."""
    last = max(i for i, step in enumerate(CALL.flat.steps) if step.name == "sin")
    steps = CALL.flat.steps[: last + 1]

    def run(chosen):
        def value(*arrays):
            values = dict(CALL.flat.constants) | dict(zip(CALL.flat.inputs, arrays))
            run_steps(steps, values, chosen)
            return jnp.sum(values[steps[last].results[0]])

        f = checkpoint(value, policy=kept_policy(chosen))
        program = _jaxpr.body(jax.make_jaxpr(jax.grad(f))(*CALL.arrays))
        return sum(site.primitive == "dot_general" for site in _jaxpr.sites(program))

    (shifted,) = steps[last].operands
    assert CALL.flat.steps[MODEL.maker[shifted]].name == "sub"
    assert run({shifted}) == run(set()) - 1


def test_a_fit_inside_a_fit_is_planned_anew():
    """The names by which an inner plan keeps values mean nothing to the outer one, whose numbers are others."""

    def loss(w, x):
        for _ in range(4):
            x = x + jnp.tanh(jnp.sin(x @ w) @ w.T)
        return jnp.mean(x**2)

    w, x = jnp.ones((16, 64)) / 8, jnp.ones((256, 16))
    outer = fit(lambda w, x: fit(loss, 0.7)(w, x), 0.6)
    assert outer.certificate(w, x).holds
    np.testing.assert_allclose(jax.jit(outer)(w, x), jax.jit(loss)(w, x), rtol=1e-6)
    program = _jaxpr.body(jax.make_jaxpr(outer)(w, x))
    names = [site.equation.params["name"] for site in _jaxpr.sites(program) if site.primitive == "name"]
    assert names and len(names) == len(set(names))
