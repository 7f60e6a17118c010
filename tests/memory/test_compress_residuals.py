"""Compressed residuals: the value untouched, the gradient within what is reported, and fewer bytes kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from robustad.memory import compress_residuals
from robustad.memory._packed import BOUNDS, pack, unpack
from tests.memory._loops import equal_bits, normal, worst


def network(ws, x):
    for w in ws:
        x = jnp.sin(x @ w) + jnp.where(x > 0, jnp.tanh(x), x / 2)
    return jnp.mean(x**2)


WS, X = [normal(i, 32, 32) / 6 for i in range(8)], normal(9, 512, 32)


def temporaries(f, *args):
    return jax.jit(jax.grad(f)).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("to", ["bfloat16", "int8"])
@pytest.mark.parametrize("shape", [(7, 30), (64,), (), (0, 3)])
def test_the_rounding_of_a_residual(to, shape):
    x = normal(0, *shape) * 10.0 ** jnp.asarray(np.random.default_rng(1).integers(-20, 20, shape), jnp.float32)
    packed = pack(x, to, 8)
    got = np.asarray(unpack(packed))
    assert got.shape == shape and got.dtype == x.dtype
    flat, error = np.asarray(x, np.float64).ravel(), np.abs(got.astype(np.float64) - np.asarray(x, np.float64)).ravel()
    if to == "bfloat16":
        scale = np.abs(flat)
    else:
        largest = [np.max(np.abs(flat[k : k + 8])) for k in range(0, flat.size, 8)]
        scale = np.repeat(largest, 8)[: flat.size]
    assert np.all(error <= (1 + 1e-5) * BOUNDS[to] * scale)
    if flat.size:
        assert np.max(error / scale) > 0.1 * BOUNDS[to] or flat.size == 1
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(packed))
    assert kept <= {"bfloat16": 0.5, "int8": 0.25}[to] * x.nbytes + 4 * -(-flat.size // 8) + 8


@pytest.mark.parametrize("to", ["bfloat16", "int8"])
@pytest.mark.parametrize(
    "largest", [np.finfo(np.float32).max, 3.4e38, 1e38, 1e-36, np.finfo(np.float32).tiny, 1e-38, 0]
)
def test_the_rounding_at_the_ends_of_the_range(to, largest):
    x = np.linspace(-1, 1, 129).astype(np.float32) * np.float32(largest)
    got = np.asarray(jax.jit(lambda x: unpack(pack(x, to, 129)))(x), np.float64)
    scale = np.abs(x, dtype=np.float64) if to == "bfloat16" else np.float64(largest)
    assert np.all(np.abs(got - x) <= (1 + 1e-5) * BOUNDS[to] * scale + np.finfo(np.float32).tiny)


def test_what_is_not_finite():
    for value in (np.inf, -np.inf, np.nan):
        x = jnp.ones(16).at[3].set(value)
        rounded, blocks = (np.asarray(unpack(pack(x, to, 8))) for to in ("bfloat16", "int8"))
        np.testing.assert_array_equal(rounded, x)
        assert np.all(np.isnan(blocks[:8])) and np.all(blocks[8:] == 1)


@pytest.mark.parametrize("to", ["bfloat16", "int8"])
def test_gradients_from_large_residuals(to):
    def f(w):
        return jnp.sum(jnp.sin(w) * (w * w * 2e37))

    w = jnp.linspace(3, 4, 1000)
    # In float64, in which their squares are finite.
    got, expected = (np.asarray(jax.jit(jax.grad(g))(w), np.float64) for g in (compress_residuals(f, to), f))
    assert 1e-5 < np.linalg.norm(got - expected) / np.linalg.norm(expected) < 10 * BOUNDS[to]


@pytest.mark.parametrize("to", ["bfloat16", "int8"])
def test_value_gradient_and_report(to):
    small = compress_residuals(network, to)
    value, got = jax.jit(jax.value_and_grad(small))(WS, X)
    plain_value, plain = jax.jit(jax.value_and_grad(network))(WS, X)
    equal_bits(value, plain_value)
    found = small.error(WS, X)
    assert found.bound == BOUNDS[to] and 0.1 * found.bound < found.worst < 10 * found.bound
    assert (
        worst(found.gradient[0], [jnp.linalg.norm(g - p) / jnp.linalg.norm(p) for g, p in zip(got, plain)]) < 1e-2
    )  # what is reported is what is had
    assert found.kept < {"bfloat16": 0.51, "int8": 0.27}[to] * found.uncompressed + 8 * X.size  # and the masks
    assert "gradient error" in str(found) and found.packed >= 16


def test_an_error_that_is_nan_is_the_worst():
    def f(w, v):
        return jnp.sum(jnp.tanh(jnp.sin(w) * 2)) + jnp.sum(v / jnp.exp(jax.lax.stop_gradient(v) * 10))

    w, v = jnp.linspace(0, 1, 256), jnp.full(256, 10.0).at[128:].set(0.001)
    found = compress_residuals(f, "int8", at_least=1, block=256).error(w, v)
    assert np.isfinite(found.gradient[0]) and not np.isfinite(found.gradient[1]) and not np.isfinite(found.worst)
    assert compress_residuals(jnp.sin).error(1).worst == 0  # of no gradient


def test_less_memory():
    def deep(ws, x):
        for w in ws:
            x = jnp.sin(x @ w) + jnp.tanh(x)
        return jnp.mean(x**2)

    plain, *packed = (temporaries(f, WS, X) for f in (deep, compress_residuals(deep), compress_residuals(deep, "int8")))
    assert max(packed) < 0.8 * plain


def scanned(wrap):
    step = wrap(lambda w, c: jnp.sin(c @ w) + jnp.tanh(c))
    return lambda w, x: jnp.mean(jax.lax.scan(lambda c, _: (step(w, c), None), x, None, 16)[0] ** 2)


def test_the_body_of_a_scan():
    plain = scanned(lambda f: f)
    sizes = [temporaries(plain, WS[0], X)]
    expected = jax.jit(jax.grad(plain))(WS[0], X)
    for to, bound in (("bfloat16", 0.75), ("int8", 0.6)):
        f = scanned(lambda g, to=to: compress_residuals(g, to))
        sizes.append(temporaries(f, WS[0], X))
        assert sizes[-1] < bound * sizes[0]  # the carry itself is an input, and is kept as it is
        assert 1e-5 < worst(jax.jit(jax.grad(f))(WS[0], X), expected) < 10 * BOUNDS[to]


def test_forward_mode_and_second_derivatives_are_exact():
    ws, x = WS[:2], X[:40]
    small = compress_residuals(network)
    steps = jax.tree.map(jnp.cos, (ws, x))

    def norm(f):
        return lambda *a: sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(f)(*a)))

    got, plain = (jax.jit(lambda a, t, f=f: jax.jvp(f, a, t))((ws, x), steps) for f in (small, network))
    assert worst(got, plain) < 1e-6
    got, plain = (jax.jit(lambda a, t, f=f: jax.jvp(jax.grad(f), a, t)[1])((ws, x), steps) for f in (small, network))
    assert worst(got, plain) < 2e-6
    got, plain = (jax.jit(jax.grad(norm(f)))(ws, x) for f in (small, network))
    assert worst(got, plain) < 10 * BOUNDS["bfloat16"]  # the first gradient in it is from compressed residuals


def test_vmap_closures_keys_and_several_outputs():
    def over(wrap):
        def loss(scale, w, key, xs):
            def f(w, x, key):
                kept = jax.random.bernoulli(key, 0.5, x.shape)
                h = jnp.tanh(x @ w) * scale
                return {"h": jnp.where(kept, h, 0), "n": jnp.sum(kept)}, jnp.sum(h**2)

            wrapped = wrap(f)
            outs, sums = jax.vmap(lambda x: wrapped(w, x, key=key))(xs)
            return jnp.sum(outs["h"] ** 2) + jnp.sum(sums) + jnp.sum(outs["n"])

        return jax.jit(jax.value_and_grad(loss, (0, 1, 3)))

    args = jnp.float32(1.3), WS[0], jax.random.key(0), jnp.stack([X[:64], X[64:128]])
    got, plain = over(compress_residuals)(*args), over(lambda f: f)(*args)
    equal_bits(got[0], plain[0])
    assert 1e-5 < worst(got[1], plain[1]) < 10 * BOUNDS["bfloat16"]


def test_shard_map():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data, whole = PartitionSpec("data"), PartitionSpec()

    def loss(w, x):
        return jax.lax.pmean(compress_residuals(lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2))(w, x), "data")

    sharded = jax.shard_map(loss, mesh=mesh, in_specs=(whole, data), out_specs=whole)
    got = jax.jit(jax.grad(sharded))(WS[0], X)
    assert worst(got, jax.grad(lambda w: jnp.mean(jnp.tanh(X @ w) ** 2))(WS[0])) < 10 * BOUNDS["bfloat16"]


def test_small_and_narrow_residuals_stay():
    f = lambda x: jnp.sum(jnp.sin(jnp.cos(x)))  # noqa: E731
    assert compress_residuals(f).error(X[0]).packed == 0
    assert compress_residuals(f).error(X.astype(jnp.bfloat16)).packed == 0
    found = compress_residuals(f, at_least=100).error(X[0])
    assert found.packed == 2 and found.kept == found.uncompressed / 2
    x = X[0]
    equal_bits(jax.grad(compress_residuals(f))(x), jax.grad(f)(x))


def test_the_error_of_a_constant():
    assert compress_residuals(lambda x: 1.0).error(jnp.ones(3)).worst == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: compress_residuals(3), TypeError, "`f` of `compress_residuals` must be a function"),  # pyright: ignore
        (lambda: compress_residuals(jnp.sin, "int4"), ValueError, '"bfloat16" or "int8"'),  # pyright: ignore
        (lambda: compress_residuals(jnp.sin, at_least=0), ValueError, "`at_least`"),
        (lambda: compress_residuals(jnp.sin, block=1.5), TypeError, "`block`"),  # pyright: ignore
        (lambda: compress_residuals(lambda x: jax.debug.callback(print, x))(1.0), ValueError, "has effects"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
