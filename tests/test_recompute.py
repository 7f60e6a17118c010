"""`recompute_check`: recomputed residuals against stored ones, and functions that are not the same when run again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad import _jaxpr
from robustad.diagnosis import _recompute_check, recompute_check

RANDOM = np.random.default_rng(0)
W = jnp.asarray(RANDOM.normal(size=(8, 8)) / 3, jnp.float32)
X = jnp.asarray(RANDOM.normal(size=(4, 8)), jnp.float32)


def blocks(wrap: Callable[..., Any]) -> Callable[..., Any]:
    def f(w: Any, x: Any) -> Any:
        for _ in range(3):
            x = wrap(lambda x: jnp.tanh(x @ w))(x)
        return jnp.mean(x**2)

    return f


def scanned(w: Any, x: Any) -> Any:
    step = jax.checkpoint(lambda c, _: (jnp.tanh(c @ w), None))
    return jnp.mean(jax.lax.scan(step, x, None, length=5)[0] ** 2)


def nested(w: Any, x: Any) -> Any:
    """Inside a jit, a branch and another checkpoint, beside a rule of the user's own that must be kept."""
    relu = jax.custom_jvp(lambda x: jnp.maximum(x, 0))
    relu.defjvp(lambda p, t: (relu(p[0]), jnp.where(p[0] > 0, 5.0, 0.0) * t[0]))
    inner = jax.checkpoint(lambda x: relu(x @ w))
    outer = jax.checkpoint(lambda x: inner(x) + jnp.sin(inner(x)))
    branch = jax.jit(lambda x: jax.lax.cond(x[0, 0] > -100, outer, lambda x: x, x))
    return jnp.sum(branch(x) ** 2)


@pytest.mark.parametrize("f", [blocks(jax.checkpoint), scanned, nested], ids=["blocks", "scan", "nested"])
def test_recomputation_keeps_the_accuracy(f: Callable[..., Any]) -> None:
    check = recompute_check(f)(W, X)
    assert check.ok and check.checkpointed and check.repeatable, check
    assert check.leaves[0].error_stored < 1e-5 and check.leaves[0].ulps < 64
    assert check.leaves[0].error_recomputed <= 2 * check.leaves[0].error_stored + 2e-7


def test_checkpoints_are_taken_out() -> None:
    for f in (blocks(jax.checkpoint), scanned, nested):
        program, _ = _jaxpr.trace(f, W, X)

        def bare(*xs):
            return _recompute_check._without_recomputation(program, xs)[0]  # noqa: B023

        gradient, _ = _jaxpr.trace(jax.grad(bare), W, X)
        assert not any(_recompute_check._recomputes(site.equation) for site in _jaxpr.sites(gradient))
        np.testing.assert_allclose(jax.jit(jax.grad(bare))(W, X), jax.jit(jax.grad(f))(W, X), rtol=1e-5, atol=1e-6)


def test_functions_without_a_checkpoint_are_given_one() -> None:
    check = recompute_check(blocks(lambda f: f))(W, X)
    assert check.ok and not check.checkpointed and "jax.checkpoint(f)" in str(check)


def test_float64_is_measured_against_the_exact_walk() -> None:
    with jax.enable_x64(True):
        check = recompute_check(blocks(jax.checkpoint))(W.astype(float), X.astype(float))
    assert check.ok and 0 < check.leaves[0].error_stored < 1e-14


def counting() -> Callable[..., Any]:
    """A callback with a state: it computes something else each time."""
    state = [0]

    def count(x: np.ndarray) -> np.ndarray:
        state[0] += 1
        return np.asarray(x * state[0], np.float32)

    noise = jax.custom_jvp(lambda x: jax.pure_callback(count, jax.ShapeDtypeStruct(x.shape, x.dtype), x))
    noise.defjvp(lambda p, t: (noise(p[0]), t[0]))
    return noise


def test_what_is_different_when_run_again_is_reported() -> None:
    noise = counting()
    for wrap in (jax.checkpoint, lambda f: f):
        check = recompute_check(wrap(lambda w: jnp.sum(jnp.sin(noise(w)))))(W)
        assert not check.ok and not check.repeatable and "stochastic or impure" in str(check)


def test_random_numbers_with_a_key_are_repeatable() -> None:
    f = jax.checkpoint(lambda w, key: jnp.sum(jnp.sin(w) * jax.random.bernoulli(key, 0.5, w.shape)))
    check = recompute_check(f)(W, jax.random.key(0))
    assert check.ok and check.identical


def test_several_leaves_print_and_log() -> None:
    f = jax.checkpoint(lambda p: (jnp.sum(jnp.tanh(p["a"]) * p["b"]), 3))
    check = recompute_check(f, has_aux=True)({"a": X, "b": X.astype(jnp.bfloat16).astype(jnp.float32)})
    assert check.ok and set(check.scalars()) == {"ok", "repeatable", "ulps/a", "ulps/b"} and "a: ok" in str(check)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: recompute_check(1.0), "`f` must be a function; got float"),  # type: ignore[arg-type]
        (lambda: recompute_check(jnp.sin)(3), "nothing to differentiate"),
        (lambda: recompute_check(jnp.sin)(X), "scalar"),
        (lambda: jax.jit(lambda x: recompute_check(jnp.sum)(x).ok)(X), "traced"),
    ],
)
def test_messages(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
