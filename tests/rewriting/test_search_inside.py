"""`stabilize(f, examples=...)` in the bodies of loops, branches and checkpoints, against the same program in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import robustad as rad
from robustad.rewriting._recorded import recorded
from tests._subset import thinned
from tests.rewriting._scalar import ulps

_QUARTER = float(np.float32(np.pi / 2))
POINTS = [np.float32(x) for x in 10 ** np.random.default_rng(3).uniform(-4, 0, 24)]
EXAMPLES = [(x,) for x in POINTS]


def angle(x: Any) -> Any:
    """No rule knows it, and for small x it loses all its digits."""
    return 2 * jnp.arctan(jnp.exp(x)) - _QUARTER


def scanned(x: Any) -> Any:
    return jnp.sum(lax.scan(lambda c, t: (c * t, angle(c * t)), x, jnp.asarray([0.5, 0.75, 1.0], x.dtype))[1])


def reversed_scan(x: Any) -> Any:
    xs = jnp.asarray([1.0, 0.75, 0.5], x.dtype)
    return jnp.sum(lax.scan(lambda c, t: (c * t, angle(c) * angle(t * x)), x, xs, reverse=True)[1])


def fori(x: Any) -> Any:
    return lax.fori_loop(0, 5, lambda i, c: angle(c) * 0.9, x)


def while_loop(x: Any) -> Any:
    return lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, angle(s[1])), (0, x))[1]


def branch(x: Any) -> Any:
    return lax.cond(x > 1e-3, angle, lambda x: 2 * x, x)


CONTROL = {
    "scan": scanned,
    "scan backwards": reversed_scan,
    "fori_loop": fori,
    "cond": branch,
    "switch": lambda x: lax.switch(jnp.int32(x > 1e-3), [jnp.sin, angle], x),
    "jit": lambda x: jax.jit(angle)(x) ** 2,
    "checkpoint": jax.checkpoint(angle),
    "vmap of scan": lambda x: jnp.sum(jax.vmap(scanned)(jnp.stack([x, x / 2]))),
    "map of cond": lambda x: jnp.sum(lax.map(branch, jnp.stack([x, x / 2]))),
    "cond in scan": lambda x: jnp.sum(
        lax.scan(lambda c, t: (c * t, branch(c)), x, jnp.asarray([0.5, 0.9], x.dtype))[1]
    ),
    "scan in checkpoint": jax.checkpoint(scanned),
}


@pytest.mark.parametrize("name", thinned(list(CONTROL), 4, ["cond in scan"]))
def test_value_and_gradient_as_accurate_as_outside(name):
    f = CONTROL[name]
    by_rules, g = rad.stabilize(f), rad.stabilize(f, examples=EXAMPLES)
    assert "search" in {r.rule for r in g.rewrites(POINTS[0])}
    plain, ours = (jax.jit(jax.vmap(jax.value_and_grad(h)))(jnp.stack(POINTS)) for h in (by_rules, g))
    with jax.enable_x64(True):
        wanted = jax.jit(jax.vmap(jax.value_and_grad(f)))(np.stack(POINTS).astype(np.float64))
        wanted = np.asarray(wanted).tolist()
    worst = [max(ulps(a, b) for a, b in zip(got[0], wanted[0])) for got in (plain, ours)]
    assert worst[0] > 100
    assert worst[1] <= 8
    slopes = [max(ulps(a, b) for a, b in zip(got[1], wanted[1])) for got in (plain, ours)]
    assert slopes[1] <= max(8, slopes[0])


def test_a_while_loop():
    g = rad.stabilize(while_loop, examples=EXAMPLES)
    assert [r.rule for r in g.rewrites(POINTS[0])] == ["search"]
    xs = np.stack(POINTS)
    with jax.enable_x64(True):
        wide = xs.astype(np.float64)
        wanted = np.asarray(jax.jvp(jax.vmap(while_loop), (wide,), (np.ones_like(wide),))).tolist()
    for h, right in (rad.stabilize(while_loop), False), (g, True):
        got = jax.jit(lambda x, t, h=h: jax.jvp(jax.vmap(h), (x,), (t,)))(xs, np.ones_like(xs))
        assert all(ulps(a, b) <= 8 for a, b in zip(got[0], wanted[0])) is right
        assert not right or all(ulps(a, b) <= 8 for a, b in zip(got[1], wanted[1]))


def test_what_is_right_there_is_left_alone():
    def f(x):
        ys = lax.scan(lambda c, t: (jnp.sin(c) * t, jnp.exp(-c)), x, jnp.ones(4))[1]
        return lax.cond(x > 0.1, jnp.sin, jnp.cos, jnp.sum(ys))

    assert not rad.stabilize(f, examples=EXAMPLES).rewrites(POINTS[0])


def test_a_branch_that_no_example_takes_goes_by_the_rules():
    def f(x):
        return lax.cond(x < 0, angle, lambda x: x, x) + lax.cond(x < 0, lambda x: (1 - jnp.cos(x)) / x**2, jnp.sin, x)

    rules = {r.rule for r in rad.stabilize(f, examples=EXAMPLES).rewrites(POINTS[0])}
    assert rules == {r.rule for r in rad.stabilize(f).rewrites(POINTS[0])}
    assert rules


def test_keys_and_running_sums_of_16_bits():
    def f(x):
        def step(c, key):
            total, x = c
            y = angle(x) * (1 + jax.random.uniform(key, ()))
            return (total + y.astype(jnp.bfloat16), x * 0.9), y

        return jnp.sum(lax.scan(step, (jnp.bfloat16(0), x), jax.random.split(jax.random.key(0), 4))[1])

    g = rad.stabilize(f, examples=EXAMPLES)
    assert {"search", "accumulator"} <= {r.rule for r in g.rewrites(POINTS[0])}
    x = POINTS[np.argmin(POINTS)]
    with jax.enable_x64(True):
        exact = 2 * np.arctan(np.exp(np.float64(x) * 0.9 ** np.arange(4))) - _QUARTER
    draws = np.array([jax.random.uniform(k, ()) for k in jax.random.split(jax.random.key(0), 4)], np.float64)
    np.testing.assert_allclose(g(x), np.sum(exact * (1 + draws)), rtol=3e-6)
    assert abs(f(x) / np.sum(exact * (1 + draws)) - 1) > 1e-4


def test_it_is_deterministic():
    first, second = (str(rad.stabilize(scanned, examples=EXAMPLES).rewrites(POINTS[0])) for _ in range(2))
    assert first == second


def test_the_iterations_are_spread_over_the_loop_and_bounded():
    from robustad import _jaxpr

    def f(x):
        return lax.while_loop(lambda s: s[0] < x, lambda s: (s[0] + 1, s[1] * 2), (jnp.float32(0), x))[1]

    (eqn,) = (e for e in _jaxpr.trace(f, 1.0)[0].equations if e.primitive.name == "while")
    loop = _jaxpr.control(eqn)
    assert isinstance(loop, _jaxpr.While)
    lengths = np.array([0, 2, 1000, 5000], np.float32)
    given = {"x": lengths, "0": np.zeros(4, np.float32)}
    columns = [given["x"]] * (loop.cond_consts + loop.body_consts) + [given["0"], given["x"]]
    condition, body = recorded(loop, columns)
    assert condition is not None and body is not None
    counts = np.asarray(body[-2])
    assert len(counts) == 2 + 16 + 16
    np.testing.assert_array_equal(counts[:2], [0, 1])
    for many, length in (counts[2:18], 1000), (counts[18:], 5000):
        assert len(set(many)) == 16 and many.min() < length / 16 and many.max() >= length * 15 / 16
    assert recorded(loop, [c[:1] for c in columns]) == [None, None]
