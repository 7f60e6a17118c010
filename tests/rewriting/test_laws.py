"""What holds for every program: the value of f, NaN kept, effects once, dtypes and weak types, layouts, contexts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback

import robustad as rad

S = rad.stabilize
U = jnp.array([[1.0, 2.0], [5.0, 9.0]])
M = jnp.array([1.0, 3.0])
Z = jnp.array([1 + 2j, 3.0], jnp.complex64)


def _ints(c: Any, p: Any) -> Any:
    return (c * p).astype(jnp.int32).astype(jnp.float32), None


SAME: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "shift put back along another axis": (
        lambda u, m: jnp.log(jnp.sum(jnp.exp(u - m[:, None]), 1))[:, None] + m[None, :], (U, M)),
    "shift without keepdims": (
        lambda u, m: u - (jnp.log(jnp.sum(jnp.exp(u - m[:, None]), 1, keepdims=True)) + m), (U, M)),
    "a cast to integers in a constant": (
        lambda y: jnp.sqrt(y + jnp.float32(1000.7).astype(jnp.int32)) - jnp.sqrt(y), (1e4,)),
    "a cast to integers in a scan": (
        lambda x: jnp.log(lax.scan(_ints, jnp.float32(10), x)[0]), (jnp.full(3, 1.55),)),
    "complex root": (lambda z: jnp.sqrt(z * z), (jnp.complex64(1 + 2j),)),
    "complex norm": (lambda z: jnp.sqrt(jnp.sum(z**2)), (Z,)),
    "complex logarithm": (lambda x: jnp.imag(jnp.log(jnp.exp(lax.complex(0 * x, x)))), (10.0,)),
    "complex difference": (lambda z: jnp.abs(1 - z), (Z,)),
    "complex transform": (lambda z: jnp.sum(jnp.abs(jnp.fft.fft(z) - 1)), (Z,)),
    "complex softmax": (lambda z: jnp.exp(z) / jnp.sum(jnp.exp(z)), (Z,)),
    "complex variance": (lambda z: jnp.mean(z**2) - jnp.mean(z) ** 2, (Z,)),
    "repeated mean": (lambda x: jnp.broadcast_to(jnp.sum(x**2), (3,)) / x.size - jnp.mean(x) ** 2, (jnp.arange(4.0),)),
    "empty carry": (
        lambda x: jnp.log(lax.scan(lambda c, p: (c * p, None), jnp.ones((0,)), x)[0]), (jnp.ones(3),)),
    "empty array": (lambda x: jnp.log(jnp.sum(jnp.exp(x), 1)), (jnp.ones((0, 3)),)),
    "integers": (lambda x: (x + 1) * x - x * x, (jnp.arange(4),)),
    "minima in a branch": (lambda x: lax.cond(x[0] > 0, lambda x: jnp.min(x) / x, lambda x: x, x), (jnp.arange(1.0, 4.0),)),
    "while loop": (lambda x: lax.while_loop(lambda c: c < 90.0, lambda c: jnp.log(1 + jnp.exp(c)) + 10.0, x), (10.0,)),
    "reversed scan with outputs": (
        lambda x: lax.scan(lambda c, p: (c + jnp.tanh(p), c * p), 0.0, x, reverse=True, unroll=2)[1], (jnp.arange(5.0),)),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_value_is_that_of_f(name: str) -> None:
    f, args = SAME[name]
    for got, want in zip(jax.tree.leaves(S(f)(*args)), jax.tree.leaves(f(*args)), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=2e-6)
    batched = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 2), args)
    for got, want in zip(
        jax.tree.leaves(jax.vmap(S(f))(*batched)), jax.tree.leaves(jax.vmap(f)(*batched)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=2e-6)


NAN: dict[str, Any] = {
    "entropy": lambda p: -jnp.sum(jax.nn.softmax(p) * jax.nn.log_softmax(p)),
    "weight": lambda u: jnp.sum(jnp.exp(u) * u),
    "x log x": lambda x: jnp.sum(x * jnp.log(x)),
    "logsumexp": lambda x: jax.nn.logsumexp(x),
    "norm": lambda x: jnp.sqrt(jnp.sum(x**2)),
    "log-space": lambda x: jnp.log(jnp.prod(jnp.exp(x))),
    "maximum": lambda x: jnp.sum(jnp.maximum(jnp.log(x), -10.0)),
    "clip": lambda x: jnp.sum(jnp.arccos(jnp.clip(x, -1.0, 1.0))),
}


@pytest.mark.parametrize("name", NAN)
def test_nan_stays_nan(name: str) -> None:
    assert np.isnan(S(NAN[name])(jnp.array([np.nan, 1.0, 0.5])))


def test_a_shift_that_is_not_detached_keeps_its_derivative() -> None:
    f = lambda m, u: (u - (jnp.log(jnp.sum(jnp.exp(u - lax.stop_gradient(m)))) + m))[0]  # noqa: E731
    assert jax.grad(S(f))(1.0, jnp.arange(3.0)) == jax.grad(f)(1.0, jnp.arange(3.0)) == -1.0


def test_products_of_float64_keep_their_digits() -> None:
    with jax.enable_x64(True):
        f = lambda x: jnp.log(lax.scan(lambda c, p: (c * p, None), jnp.ones(()), x)[0])  # noqa: E731
        np.testing.assert_allclose(S(f)(jnp.full(1000, 0.7)), 1000 * np.log(0.7), rtol=1e-14)
        n = 2000
        x = 1e3 + jax.random.normal(jax.random.key(0), (n,))
        g = lambda x: jnp.sum(x**2) / (n - 1) - jnp.mean(x) ** 2  # noqa: E731
        np.testing.assert_allclose(S(g)(x), g(x), rtol=1e-8)  # n - 1 is not n


def test_float64_inside_of_f_alone() -> None:
    def f(x: Any) -> Any:
        with jax.enable_x64(True):
            y = x.astype(jnp.float64)
            return (jnp.sqrt(jnp.sum(y**2)) + jax.nn.logsumexp(y) + lax.cond(True, jnp.tanh, jnp.sin, y[0])).astype(
                jnp.float32
            )

    np.testing.assert_allclose(S(f)(jnp.ones(3)), f(jnp.ones(3)), rtol=1e-6)


def test_reductions_in_float32_of_16_bits_stay_in_float32() -> None:
    x = jax.random.normal(jax.random.key(0), (4096,), jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    root = S(lambda x: jnp.sqrt(jnp.vdot(x, x, preferred_element_type=jnp.float32)))(x)
    np.testing.assert_allclose(root, np.linalg.norm(exact), rtol=1e-5)
    log = S(lambda x: x.astype(jnp.float32) - jnp.log(jnp.sum(jnp.exp(x.astype(jnp.float32)))))(x)
    np.testing.assert_allclose(log, exact - np.log(np.sum(np.exp(exact))), rtol=1e-5)


def test_weak_types_do_not_upcast() -> None:
    assert (S(lambda s: jnp.log(1 + jnp.exp(s)))(1.0) * jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16


def test_random_draws_are_not_merged() -> None:
    def f(x: Any) -> Any:
        k = jax.random.key(0)
        with jax.threefry_partitionable(False):
            a = jax.random.bits(k, (4,))
        with jax.threefry_partitionable(True):
            b = jax.random.bits(k, (4,))
        return jnp.tanh(x), a, b

    for got, want in zip(S(f)(1.0), f(1.0)):
        np.testing.assert_array_equal(got, want)


def test_callbacks_with_effects_run_once() -> None:
    log: list[float] = []

    def note(v: Any) -> Any:
        log.append(float(v))
        return np.float32(v)

    def f(x: Any) -> Any:
        a = io_callback(note, jax.ShapeDtypeStruct((), jnp.float32), jnp.log(1 + jnp.exp(x)), ordered=True)
        jax.debug.callback(lambda v: None, a)
        return a

    assert S(f)(100.0) == 100.0
    jax.effects_barrier()
    assert log == [100.0]


def test_calls_with_shardings_are_told() -> None:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    told = S(jax.jit(lambda x: jnp.log(1 + jnp.exp(x)), out_shardings=place)).rewrites(1.0)
    assert not told and [u.primitive for u in told.untouched] == ["jit"]


def test_integers_of_numpy_stay_as_they_are() -> None:
    assert S(lambda x, n: jnp.log(jnp.exp(x) * jnp.ones(n)))(100.0, np.int64(3)).shape == (3,)


REMOVABLE = {
    "sin(t)/t": lambda t: jnp.sin(t) / t,
    "(1-cos t)/t^2": lambda t: (1 - jnp.cos(t)) / t**2,
    "expm1(t)/t": lambda t: jnp.expm1(t) / t,
    "log(1+t)/t": lambda t: jnp.log(1 + t) / t,
}
OPERANDS = {
    "sum of squares": lambda w: jnp.sum(w * w),
    "norm": lambda w: jnp.sqrt(jnp.sum(w**2)),
    "rows": lambda w: jnp.sum(jnp.outer(w, w), 1),
    "product of two": lambda w: 0.3 * w[0] * w,
}


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("name", REMOVABLE)
def test_where_plain_is_right_so_is_the_gradient(name: str, operand: str) -> None:
    f = lambda w: jnp.sum(REMOVABLE[name](OPERANDS[operand](w)))  # noqa: E731
    w = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(S(f)(w), f(w), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(S(f))(w), jax.grad(f)(w), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "f",
    [lambda u: jnp.log1p(-(jnp.tanh(u) ** 2)), lambda u: jnp.log1p(-jnp.tanh(u)), lambda u: jnp.log(1 - jnp.tanh(u))],
)
def test_rounded_tanh_under_a_logarithm(f: Any) -> None:
    np.testing.assert_allclose(jax.grad(S(f))(6.0), -2.0, rtol=2e-5)
    assert np.isfinite(S(f)(30.0))


def test_a_picked_probability_of_a_softmax() -> None:
    z = jnp.array([[0.0, 300.0, -20.0], [500.0, 1.0, 2.0]])
    loss = lambda z: -jnp.mean(jnp.log(jnp.take_along_axis(jax.nn.softmax(z), jnp.array([[0], [1]]), 1)))  # noqa: E731
    np.testing.assert_allclose(S(loss)(z), (300 + 499) / 2, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(S(loss))(z), [[-0.5, 0.5, 0], [0.5, -0.5, 0]], atol=1e-6)


def test_logsumexp_of_float16() -> None:
    assert S(lambda x: jnp.log(jnp.sum(jnp.exp(x))))(jnp.array([60, 120], jnp.float16)) == 120
