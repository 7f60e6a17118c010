"""Logsumexp in pieces: chunked = whole = sharded, with gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from robustad.stability import (
    LogSumExp,
    chunked_logsumexp,
    logsumexp,
    sharded_logsumexp,
    sharded_softmax_cross_entropy,
    softmax_cross_entropy,
)
from tests._subset import thinned
from tests._ulp import ulps

INF = float("inf")


def logits() -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32) * 10
    x[1, 3:9] = -INF
    x[2] = -INF
    x[3, 10] = 300.0
    x[4] -= 500.0
    x[5] += 1e4
    return x


def reference(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    m = np.maximum(wide.max(1, keepdims=True), -1e300)
    with np.errstate(divide="ignore"):
        return m[:, 0] + np.log(np.exp(wide - m).sum(1))


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("data", "classes"), axis_types=(AxisType.Auto,) * 2)


def sharded(mesh, function, check_vma, *specs):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=check_vma))


def test_chunked_is_whole():
    x = logits()
    whole = jax.jit(jax.jacrev(partial(logsumexp, axis=1)))(x)
    for size in (1, 10, 64, 100):
        assert ulps(jax.jit(partial(chunked_logsumexp, chunk_size=size, axis=1))(x), reference(x)).max() <= 4
        jacobian = jax.jit(jax.jacrev(partial(chunked_logsumexp, chunk_size=size, axis=1)))(x)
        np.testing.assert_allclose(jacobian, whole, rtol=1e-6, atol=1e-37)
    assert ulps(chunked_logsumexp(x.T, 7, axis=0), reference(x)).max() <= 4
    np.testing.assert_allclose(jax.jacfwd(partial(chunked_logsumexp, chunk_size=9))(x[0]), whole[0, 0], rtol=1e-6)
    tangents = jax.jit(jax.hessian(partial(chunked_logsumexp, chunk_size=9)))(x[0] / 10)
    np.testing.assert_allclose(tangents, jax.hessian(logsumexp)(x[0] / 10), rtol=1e-4, atol=1e-6)


def test_memory_of_a_long_axis():
    x = jnp.zeros(1 << 20)

    def temporary(function) -> int:
        return jax.jit(jax.value_and_grad(function)).lower(x).compile().memory_analysis().temp_size_in_bytes

    assert temporary(partial(chunked_logsumexp, chunk_size=1 << 10)) < x.nbytes / 50


@pytest.mark.parametrize(
    ("row", "value", "gradient"), [([INF, 1, INF], INF, [0.5, 0, 0.5]), ([-INF] * 3, -INF, [0, 0, 0])]
)
def test_infinities(row, value, gradient):
    x = jnp.array(row, jnp.float32)
    for size in (1, 2):
        assert chunked_logsumexp(x, size) == value
        np.testing.assert_array_equal(jax.grad(lambda x, n=size: chunked_logsumexp(x, n))(x), gradient)
    assert chunked_logsumexp(jnp.zeros((0, 2)), 3, axis=0).tolist() == [-INF, -INF]
    assert np.isnan(chunked_logsumexp(jnp.array([1.0, jnp.nan, 2.0]), 1))


def test_a_monoid():
    x = logits()
    parts = [LogSumExp.init((6,)).add(x[:, i : i + 16]) for i in range(0, 64, 16)]
    left = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    right = parts[3].merge(parts[2].merge(parts[0].merge(parts[1])))
    for state in (left, right, left.merge(LogSumExp.init((6,)))):
        assert ulps(state.finalize(), reference(x)).max() <= 4
    carried = lax.scan(lambda s, x: (s.add(x), None), LogSumExp.init(), x[0].reshape(4, 16))[0]
    assert ulps(carried.finalize(), reference(x)[:1]).max() <= 4
    signed = LogSumExp.init().add(jnp.array([3.0, 4.0]), b=jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(signed.finalize(), np.log(np.exp(4) - np.exp(3)), rtol=1e-6)
    assert signed.sign() == -1
    with pytest.raises(TypeError, match="expected float32 or float64"):
        LogSumExp.init((), jnp.bfloat16)
    with pytest.raises(ValueError, match="`chunk_size` is 0"):
        chunked_logsumexp(x, 0)


@pytest.mark.parametrize("check_vma", [True, False])
def test_sharded_is_whole(mesh, check_vma):
    x = logits()
    spec = P("data", "classes")
    whole = jax.jit(jax.jacrev(partial(logsumexp, axis=1)))(x)
    for function in (
        lambda a: sharded_logsumexp(a, "classes"),
        lambda a: LogSumExp.init(a.shape[:1]).add(a).psum("classes").finalize(),
    ):
        f = sharded(mesh, function, check_vma, spec)
        assert ulps(f(x), reference(x)).max() <= 4
        np.testing.assert_allclose(jax.jit(jax.jacrev(f))(x), whole, rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("check_vma", [True, False])
def test_sharded_cross_entropy(mesh, check_vma):
    x, y = logits(), jnp.array([0, 5, 7, 10, 63, 20])
    f = sharded(
        mesh, lambda a, y: sharded_softmax_cross_entropy(a, y, "classes"), check_vma, P("data", "classes"), P("data")
    )
    np.testing.assert_allclose(f(x, y), softmax_cross_entropy(x, y), rtol=1e-6)
    weight = jnp.arange(1.0, 7.0)

    def weighted(f):
        return lambda x: jnp.sum(jnp.where(jnp.isinf(f(x, y)), 0, f(x, y)) * weight)

    gradients = [jax.jit(jax.grad(weighted(f)))(x) for f in (f, softmax_cross_entropy)]
    np.testing.assert_allclose(*gradients, rtol=2e-6, atol=1e-37)
    products = [
        jax.jit(lambda x, f=f: jax.jvp(jax.grad(weighted(f)), (x,), (jnp.cos(jnp.arange(64.0)) + 0 * y[:, None],))[1])(
            x
        )
        for f in (f, softmax_cross_entropy)
    ]
    np.testing.assert_allclose(*products, rtol=1e-5, atol=1e-7)
    confident = jnp.zeros((2, 64)).at[:, 9].set(40.0)
    small = jax.jit(jax.grad(lambda x: f(x, jnp.array([9, 9])).sum()))(confident)
    np.testing.assert_allclose(small[:, 9], -63 * np.exp(-40.0), rtol=1e-6)
    assert np.isnan(f(x, y.at[0].set(64))[0])


def test_gradients_inside(mesh):
    """With check_vma=True those of the whole; without, of the sum over devices, as with every collective of JAX."""
    x = logits()
    whole = jax.grad(lambda x: jnp.sum(jnp.where(jnp.isinf(logsumexp(x, 1)), 0, logsumexp(x, 1))))(x)

    def local(a, scale):
        def total(a):
            value = sharded_logsumexp(a, "classes")
            return jnp.sum(jnp.where(jnp.isinf(value), 0, value))

        return jax.grad(total)(a) / scale

    spec = P("data", "classes")
    for check_vma, scale in ((True, 1), (False, 4)):
        f = jax.shard_map(partial(local, scale=scale), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
        np.testing.assert_allclose(jax.jit(f)(x), whole, rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("check_vma", [True, False])
def test_whole_functions_inside_shard_map(mesh, check_vma):
    """The unsharded ones, on each device's own rows."""
    x, y = jnp.asarray(logits()[[0, 1, 3, 4]]), jnp.array([3, 40, 10, 2])
    f = sharded(mesh, lambda a, y: jax.vmap(jax.grad(softmax_cross_entropy))(a, y), check_vma, P("data"), P("data"))
    np.testing.assert_allclose(f(x, y), jax.vmap(jax.grad(softmax_cross_entropy))(x, y), rtol=1e-6)
    long = jnp.tile(x / 50, (1, 5000))
    g = sharded(mesh, lambda a: logsumexp(a - logsumexp(a, 1, keepdims=True), 1), check_vma, P("data"))
    assert np.abs(g(long)).max() < 1e-5


@pytest.mark.parametrize("level", thinned([-50.0, 20.0, 45.0, 62.0, 1000.0], 3))
def test_second_derivatives_at_every_level(level):
    """At maxima from 44 to 64 the square of the sum of unshifted exponentials is out of range."""
    x, want = jnp.full(2, level), np.array([[1, -1], [-1, 1]]) / 4
    for f in (lambda x: chunked_logsumexp(x, 1), lambda x: LogSumExp.init().add(x).finalize()):
        np.testing.assert_allclose(jax.hessian(f)(x), want, rtol=0, atol=4 * np.finfo(np.float32).eps)
    if level == 45:
        assert not np.isfinite(jax.hessian(lambda x: jnp.log(jnp.exp(x).sum()))(x)).all() or not np.allclose(
            jax.hessian(lambda x: jnp.log(jnp.exp(x).sum()))(x), want
        )


def test_a_psum_is_the_same_for_all_of_a_mapped_axis():
    f = jax.vmap(lambda x: LogSumExp.init().add(x).psum("i").finalize(), axis_name="i", out_axes=None)
    assert f(jnp.ones((4, 2))) == jnp.float32(1 + np.log(8))


def test_shares_of_a_state():
    """Small shares too, though they are of differences that are rounded; and a difference of rounded logarithms is worse."""
    x = np.sort(np.random.default_rng(0).uniform(-20, 64, (50, 32)), 1).astype(np.float32)
    exact = np.exp(x.astype(np.float64) - x.max(1, keepdims=True).astype(np.float64))
    exact /= exact.sum(1, keepdims=True)
    counted = exact > 1e-36
    shares = jax.jit(jax.vmap(jax.grad(lambda x: LogSumExp.init().add(x).finalize())))(x)
    error = np.abs(shares - exact) / exact / np.finfo(np.float32).eps
    assert error[exact > np.exp(-32)].max() <= 8 and error[counted].max() <= 32
    plain = np.exp(x - np.asarray(jax.scipy.special.logsumexp(x, axis=1, keepdims=True)))
    assert (np.abs(plain - exact) / exact / np.finfo(np.float32).eps)[exact > np.exp(-32)].max() > 8
