"""Weights p = e / S with exact zeros, times a logarithm of their own, and in branches: against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.scipy.special import entr, xlogy

import robustad as rad
from tests._subset import thinned

Q = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
Z = np.array([[1, -1, 2, 0.5], [0.3, 1e-20, 1e-30, -2], [3, 2, 1e-6, 1]], np.float32)


def weights(z):
    """A sparse policy: a rectifier gives exact zeros, the negative logits a derivative of 0."""
    e = jax.nn.relu(z)
    return e / jnp.sum(e, axis=-1, keepdims=True)


def by_reciprocal(z):
    e = jax.nn.relu(z)
    return e * (1 / jnp.sum(e, axis=-1, keepdims=True))


ENTROPIES = {
    "p log p": lambda p: jnp.sum(p * jnp.log(p)),
    "log p · p": lambda p: jnp.sum(jnp.log(p) * p),
    "-p log p": lambda p: -jnp.sum(-p * jnp.log(p)),
    "p (-log p)": lambda p: -jnp.sum(p * -jnp.log(p)),
    "jit": lambda p: jnp.sum(p * jax.jit(jnp.log)(p)),
    "vmap": lambda p: jnp.sum(jax.vmap(lambda p: p * jnp.log(p))(p)),
    "xlogy": lambda p: jnp.sum(xlogy(p, p)),
    "entr": lambda p: -jnp.sum(entr(p)),
    "cond": lambda p: lax.cond(jnp.sum(p) > 0, lambda p: jnp.sum(p * jnp.log(p)), jnp.sum, p),
    "cond in cond": lambda p: lax.cond(
        jnp.sum(p) > 0, lambda p: lax.cond(p[0, 0] > 0, lambda p: jnp.sum(xlogy(p, p)), jnp.sum, p), jnp.sum, p
    ),
    "checkpoint": jax.checkpoint(lambda p: jnp.sum(p * jnp.log(p))),
    "switch": lambda p: lax.switch(1, [jnp.sum, lambda p: jnp.sum(p * jnp.log(p))], p),
    "where": lambda p: jnp.sum(jnp.where(p > 0, p * jnp.log(p), 0)),
}
DIVERGENCES = {
    "difference": lambda p: jnp.sum(p * (jnp.log(p) - jnp.log(Q))),
    "difference, the other way round": lambda p: -jnp.sum((jnp.log(Q) - jnp.log(p)) * p),
    "quotient": lambda p: jnp.sum(p * jnp.log(p / Q)),
    "sum of three": lambda p: jnp.sum(p * (1 + jnp.log(p) - jnp.log(Q))) - 3,
    "quotient in cond": lambda p: lax.cond(jnp.sum(p) > 0, lambda p: jnp.sum(p * jnp.log(p / Q)), jnp.sum, p),
}


def expected(z, q):
    e = np.maximum(z.astype(np.float64), 0)
    p = e / e.sum(-1, keepdims=True)
    t = np.log(np.where(p > 0, p, 1)) - np.log(q)
    slope = (t - (p * t).sum(-1, keepdims=True)) / e.sum(-1, keepdims=True)
    return (p * t).sum(), np.where(z > 0, slope, 0)


@pytest.mark.parametrize("made", thinned([weights, by_reciprocal], 2))
@pytest.mark.parametrize("name", thinned([*ENTROPIES, *DIVERGENCES], 2, ["cond"]))
def test_weights_of_zero(name, made):
    """Within 8 ulp of the largest entry of each row; the plain gradient is NaN."""
    form, q = (ENTROPIES[name], 1.0) if name in ENTROPIES else (DIVERGENCES[name], np.float64(Q))
    f = lambda z: form(made(z))  # noqa: E731
    value, slope = expected(Z, q)
    got = jax.jit(jax.value_and_grad(rad.stabilize(f)))(Z)
    np.testing.assert_allclose(got[0], value, rtol=1e-6)
    unit = np.spacing(np.abs(slope).max(-1, keepdims=True).astype(np.float32))
    assert np.all(np.abs(got[1] - slope) <= 8 * unit)
    assert np.isnan(jax.grad(f)(Z)).any()


@pytest.mark.parametrize("name", thinned(["p log p", "entr", "cond", "checkpoint"], 3))
def test_hessian_inside(name):
    """No worse than four times the plain form's distance, or 2⁻²¹."""
    f = lambda z: ENTROPIES[name](weights(z))  # noqa: E731
    z = np.array([[1, 0.3, 2, 0.5]], np.float32)
    with jax.enable_x64(True):
        wanted = np.asarray(jax.hessian(lambda z: jnp.sum(weights(z) * jnp.log(weights(z))))(np.float64(z)))
    plain, ours = (np.abs(np.asarray(jax.hessian(h)(z)) - wanted).max() for h in (f, rad.stabilize(f)))
    assert ours <= max(2**-21, 4 * plain)


def test_what_is_under_a_logarithm_in_a_branch():
    """log softmax, where the softmax is computed outside: the plain form is -inf."""
    f = lambda z: lax.cond(z[0] > 0, lambda p: jnp.sum(jnp.log(p)), jnp.sum, jax.nn.softmax(z))  # noqa: E731
    z = np.array([100, -300, 20, 5], np.float32)
    value, slope = jax.value_and_grad(rad.stabilize(f))(z)
    np.testing.assert_allclose(value, np.sum(z.astype(np.float64)) - 400, rtol=1e-6)
    np.testing.assert_allclose(slope, [-3, 1, 1, 1], rtol=1e-6)
    assert f(z) == -np.inf
    assert rad.stabilize(f)(-z) == 1


def test_branches_that_gain_nothing_keep_their_operands():
    f = lambda x: lax.cond(x > 1, jnp.log, jnp.sin, jnp.arctan(x))  # noqa: E731
    assert not {r.rule for r in rad.stabilize(f).rewrites(3.0)} - {"derivative", "untaken-branch"}


def test_weights_without_a_sum_are_left_to_the_other_rules():
    f = lambda x: x * jnp.log(x)  # noqa: E731
    (told,) = (r for r in rad.stabilize(f).rewrites(0.0) if r.rule == "limit")
    assert told.before == "x log(x)"
