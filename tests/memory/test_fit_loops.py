"""Loops under `fit`: recomputed iteration by iteration, in blocks, from few states, in part."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from robustad import _jaxpr
from robustad.memory import checkpointed_scan, fit
from robustad.memory._flops import program_flops
from tests.memory.test_fit import WS, X, plain, temporaries


@pytest.mark.parametrize("reverse", [False, True])
def test_loops_in_blocks(reverse):
    """A length that the block does not divide; stacked outputs; integers carried."""

    def loss(w, xs):
        def body(carry, x):
            h, n = carry
            h = jnp.tanh(h @ w + x)
            return (h, n + 1), (jnp.sum(h), n)

        (h, n), (ys, ns) = lax.scan(body, (jnp.zeros((64, 64)), 0), xs, reverse=reverse)
        return jnp.mean(h**2) + jnp.sum(ys * ns) * 1e-3 + n

    w, xs = (
        WS[0][:, :64].T @ WS[1][:, :64],
        jnp.asarray(np.random.default_rng(0).normal(size=(61, 64, 64)), jnp.float32),
    )
    fitted = fit(loss, 0.72 if _jaxpr.XLA_KEEPS_BARRIERS else 0.6)
    ours, theirs = (jax.jit(jax.value_and_grad(f))(w, xs) for f in (fitted, loss))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert fitted.certificate(w, xs).holds


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_in_few_states(reverse):
    """Budgets far below a state for each step: a binomial schedule, with the bits of the plain gradient."""

    def loss(w, xs):
        h, ys = jax.lax.scan(lambda h, x: (jnp.tanh(h @ w + x), h[0]), jnp.zeros((8, 32)), xs, reverse=reverse)
        return jnp.mean(h**2) + jnp.mean(ys[:, 0] ** 2)

    w, xs = 0.9 * jnp.eye(32), jnp.asarray(np.random.default_rng(0).normal(size=(1500, 8, 32)), jnp.float32) / 9
    # From the last element to the first, `xs` is copied; either way there are ys and their cotangents.
    certificate = fit(loss, 0.7 if reverse else 0.25).certificate(w, xs, compare=True)
    assert certificate.holds and certificate.difference == 0
    assert certificate.flop_ratio < 1.4  # each step once more


@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_steps_of_a_scan_may_be_kept(reverse):
    """A little less memory costs a little: only the first steps are done again."""

    def loss(w, xs):
        def step(h, x):
            h = h + jnp.tanh(jnp.sin(h @ w) @ w.T + x)
            return h, h[0, :2]

        h, ys = jax.lax.scan(step, jnp.zeros((8, 32)), xs, reverse=reverse)
        return jnp.mean(h**2) + jnp.mean(ys**2)

    w, xs = 0.1 * jnp.eye(32, 64), jnp.asarray(np.random.default_rng(0).normal(size=(67, 1, 32)), jnp.float32)
    certificate = fit(loss, 0.9).certificate(w, xs, compare=True)
    assert certificate.holds and certificate.difference < 1e-6
    assert certificate.flop_ratio < 1.12  # 1.33: each step once more


def test_a_scan_with_operands_of_every_kind_in_few_states():
    """Constants, integers, random keys, results of each step: as `jax.lax.scan`."""

    def loss(w, key, n):
        def step(carry, x):
            h, key, i = carry
            key, sub = jax.random.split(key)
            return (jnp.tanh(w * h + 0.1 * jax.random.normal(sub, h.shape) + x), key, i + n), h[:2]

        (h, _, i), ys = jax.lax.scan(step, (jnp.zeros(64), key, 0), jnp.linspace(0, 1, 800))
        return jnp.sum(h**2) * i + jnp.sum(ys**2)

    arguments = jnp.linspace(0, 1, 64), jax.random.key(0), 2
    small = fit(loss, 0.4)
    assert small.certificate(*arguments).holds
    expected, got = (jax.jit(jax.grad(f))(*arguments) for f in (loss, small))
    np.testing.assert_array_equal(got, expected)


def test_checkpoints_in_the_body_of_a_scan_are_taken_over():
    ws, x = jnp.stack(WS) / 4, X[:64]

    def loss(wrap):
        def body(x, pair):
            def inner(x, w):
                return x + jnp.tanh(jnp.sin(x @ w) @ w.T), x.sum()

            x, y = lax.scan(wrap(inner), x, pair)
            return x, y.sum()

        return lambda ws, x: sum(map(jnp.sum, lax.scan(body, x, ws.reshape(4, 2, *ws.shape[1:]))))

    plainly, wrapped = (fit(loss(wrap), 0.5).certificate(ws, x, compare=True) for wrap in (plain, jax.checkpoint))
    assert temporaries(loss(jax.checkpoint), ws, x) < 0.9 * temporaries(loss(plain), ws, x)
    assert (wrapped.unplanned, wrapped.measured) == (plainly.unplanned, plainly.measured)
    assert wrapped.holds and wrapped.difference < 1e-5


@pytest.mark.parametrize("mapped", [False, True])
def test_operations_of_loops_in_few_states_are_counted(mapped):
    """Those of the plain gradient, and each step once or more again."""

    def gradient(scan, **limits):
        def loss(w, h):
            h, _ = scan(lambda h, _: (jnp.tanh(h @ w), None), h, None, 100, **limits)
            return jnp.sum(h**2)

        grad = jax.grad(loss)
        return jax.vmap(grad, (None, 0)) if mapped else grad

    w, h = jnp.eye(16), jnp.ones((3, 4, 16)) if mapped else jnp.ones((4, 16))
    plain, ours = (
        program_flops(_jaxpr.body(jax.make_jaxpr(g)(w, h)))
        for g in (gradient(lax.scan), gradient(checkpointed_scan, checkpoints=5))
    )
    assert 1.3 * plain < ours < 3 * plain


def test_the_users_unroll_is_kept():
    def loss(w, xs):
        h, _ = lax.scan(lambda h, x: (jnp.tanh(h @ w + x), None), jnp.zeros((8, 32)), xs, unroll=5)
        return jnp.sum(h**2)

    w, xs = jnp.eye(32), jnp.ones((200, 8, 32))
    program = _jaxpr.body(jax.make_jaxpr(fit(loss, 0.6))(w, xs))
    loops = [site.equation.params for site in _jaxpr.sites(program) if site.primitive in ("scan", "checkpointed_loop")]
    assert loops and all(5 in (p.get("unroll"), getattr(p.get("loop"), "unroll", None)) for p in loops)
