"""Sums over the axis of a mesh, or of a `vmap` with a name: what `stabilize` sees through them, inside and outside."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import robustad as rad
from tests._subset import thinned

ROWS = np.array([[100.0, -300.0, 20.0], [200.0, 50.0, -5.0], [150.0, 149.0, 0.0], [-100.0, 3.0, 7.0]], np.float32)


def softmax(x: Any) -> Any:
    e = jnp.exp(x)
    return e / lax.psum(jnp.sum(e), "d")


def variance(x: Any) -> Any:
    n, s, q = (lax.psum(t, "d") for t in (1.0 * x.size, jnp.sum(x), jnp.sum(x * x)))
    return q / n - (s / n) ** 2


CASES: dict[str, tuple[Callable[[Any], Any], np.ndarray]] = {
    "logsumexp": (lambda x: jnp.log(lax.psum(jnp.sum(jnp.exp(x)), "d")), ROWS),
    "log of a mean": (lambda x: jnp.log(lax.pmean(jnp.mean(jnp.exp(x)), "d")), ROWS),
    "log-softmax": (lambda x: x - jnp.log(lax.psum(jnp.sum(jnp.exp(x)), "d")), ROWS),
    "softmax": (softmax, ROWS),
    "variance": (variance, ROWS / 100 + np.float32(1e4)),
    "variance of means": (
        lambda x: lax.pmean(jnp.mean(x * x), "d") - lax.pmean(jnp.mean(x), "d") ** 2,
        ROWS / 50 + 1e4,
    ),
    "norm": (lambda x: jnp.sqrt(lax.psum(jnp.sum(x * x), "d")), ROWS * np.float32(1e25)),
    "elementwise": (lambda x: lax.psum(jnp.sum(jnp.log(1 + jnp.exp(x))), "d"), ROWS),
}


def by_vmap(f: Callable[[Any], Any], x: Any) -> Any:
    out = jax.vmap(f, axis_name="d")(x)
    return jnp.sum(out.reshape(4, -1) * jnp.arange(1, 5, dtype=x.dtype)[:, None])


def by_shard_map(check_vma: bool, f: Callable[[Any], Any], x: Any) -> Any:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("d",))

    def one(rows: Any) -> Any:
        out = jnp.atleast_1d(f(rows[0]))[None]
        return lax.pcast(out, ("d",), to="varying") if check_vma and not jax.typeof(out).mat.varying else out

    out = jax.shard_map(one, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=check_vma)(x)
    return jnp.sum(out * jnp.arange(1, 5, dtype=x.dtype)[:, None])


MAPS = {
    "vmap": by_vmap,
    "shard_map": functools.partial(by_shard_map, True),
    "unchecked": functools.partial(by_shard_map, False),
}


@functools.cache
def truths() -> dict[str, Any]:
    with jax.enable_x64(True):
        arrays = {name: x.astype(np.float64) for name, (_, x) in CASES.items()}
        run = jax.jit(
            lambda a: {n: jax.value_and_grad(lambda x, f=f: by_vmap(f, x))(a[n]) for n, (f, _) in CASES.items()}
        )
        return jax.tree.map(np.asarray, run(arrays))


@functools.cache
def plainly() -> dict[str, Any]:
    run = jax.jit(lambda a: {n: jax.value_and_grad(lambda x, f=f: by_vmap(f, x))(a[n]) for n, (f, _) in CASES.items()})
    return jax.tree.map(np.asarray, run({name: x for name, (_, x) in CASES.items()}))


@pytest.mark.parametrize(("name", "how"), thinned([(name, how) for name in CASES for how in MAPS], 2))
def test_inside_of_a_map(name, how):
    f, x = CASES[name]
    value, slope = jax.jit(jax.value_and_grad(lambda x: MAPS[how](rad.stabilize(f), x)))(x)
    want, plain = truths()[name], plainly()[name]
    largest = np.abs(want[1]).max()
    with np.errstate(invalid="ignore"):
        assert not np.abs(plain[1] - want[1]).max() <= 1e-6 * largest
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    np.testing.assert_allclose(slope, want[1], rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("how", ["shard_map", "unchecked"])
@pytest.mark.parametrize("name", ["logsumexp", "softmax", "variance", "norm"])
def test_around_a_map(name, how):
    f, x = CASES[name]
    value, slope = jax.jit(jax.value_and_grad(rad.stabilize(lambda x: MAPS[how](f, x))))(x)
    want = truths()[name]
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    np.testing.assert_allclose(slope, want[1], rtol=1e-5, atol=1e-6 * np.abs(want[1]).max())


@pytest.mark.parametrize("name", ["logsumexp", "log of a mean", "variance", "elementwise"])
def test_around_a_vmap_with_a_name(name):
    f, x = CASES[name]
    value, slope = jax.jit(jax.value_and_grad(rad.stabilize(lambda x: by_vmap(f, x))))(x)
    want = truths()[name]
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    np.testing.assert_allclose(slope, want[1], rtol=1e-5, atol=1e-6 * np.abs(want[1]).max())
