"""`taylor_test` and `adjoint_test`: wrong gradients fail, right ones pass, in every dtype."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad.diagnosis import _point, adjoint_test, taylor_test

X = jnp.asarray([0.5, 2.0, -1.0])


def scaled_vjp(factor: float) -> Callable[..., Any]:
    """x sin x, by a backward rule that is wrong by a factor in one of its terms."""
    f = jax.custom_vjp(lambda x: jnp.sin(x) * x)
    f.defvjp(lambda x: (jnp.sin(x) * x, x), lambda x, g: (g * (jnp.cos(x) * x + factor * jnp.sin(x)),))
    return f


def scaled_jvp(factor: float) -> Callable[..., Any]:
    f = jax.custom_jvp(lambda x: jnp.sum(x**2))
    f.defjvp(lambda p, t: (jnp.sum(p[0] ** 2), factor * jnp.vdot(2 * p[0], t[0])))
    return f


# ------------------------------------------------------------------------------------------------- Taylor


@pytest.mark.parametrize("most", [2e6, 0.0], ids=["exact", "float64"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_slope_is_two(dtype: str, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_point, "MOST", most)
    with jax.enable_x64(dtype == "float64"):
        test = taylor_test(lambda x: jnp.sum(jnp.exp(x) * jax.scipy.special.erf(x)))(X.astype(dtype))
    assert test.ok and all(abs(slope - 2) <= 0.1 for slope in test.slopes), test
    assert test.reference == ("exact" if most else "float64")
    assert test.remainders.shape == (2, len(test.steps))


@pytest.mark.parametrize("most", [2e6, 0.0], ids=["exact", "float64"])
def test_slope_of_a_wrong_gradient_is_one(most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_point, "MOST", most)
    for wrong in (lambda x: jnp.sum(scaled_vjp(1.001)(x)), scaled_jvp(1.001)):
        test = taylor_test(wrong)(X)
        assert not test.ok and all(abs(slope - 1) <= 0.1 for slope in test.slopes), test
        assert "wrong gradient" in str(test) and test.scalars()["ok"] == 0.0
    assert taylor_test(scaled_jvp(1.0))(X).ok


def test_functions_without_a_second_derivative() -> None:
    linear = taylor_test(lambda x: jnp.sum(3 * x))(X)
    assert linear.ok and linear.slopes == (np.inf, np.inf) and "linear" in str(linear)
    cubic = taylor_test(lambda x: jnp.sum(x**3))(jnp.zeros(2))
    assert cubic.ok and all(slope == pytest.approx(3, abs=0.1) for slope in cubic.slopes)


def test_kinks_and_nonfinite_gradients() -> None:

    def kinked(x):
        return jnp.sum(jax.nn.relu(x) ** 2 + jax.nn.relu(x)) + jnp.max(x) ** 2

    assert taylor_test(kinked)(jnp.asarray([0.0, 1.0, 1.0])).ok
    infinite = taylor_test(jnp.linalg.norm)(jnp.zeros(2))
    assert not infinite.ok and np.isnan(infinite.slopes[0]) and "unknown" in str(infinite)


def test_several_arguments() -> None:

    def loss(p, x):
        return (jnp.sum(jnp.tanh(p["w"] * x) ** 2), "aux")

    assert taylor_test(loss, argnums=(0, 1), has_aux=True, key=jax.random.key(3))({"w": X}, X + 1).ok


# ------------------------------------------------------------------------------------------------ adjoint


FUNCTIONS: dict[str, tuple[Callable[..., Any], Any]] = {
    "pytree": (lambda x: {"a": jnp.cumsum(x**2), "b": (jnp.sum(jnp.exp(x)), jnp.argmax(x))}, X),
    "complex outputs": (lambda x: jnp.fft.fft(x * (1 + 2j)), X),
    "complex": (lambda z: z**2 * jnp.conj(z), X * (1 + 1j)),
    "softmax": (lambda x: jax.nn.softmax(x @ x.T), jnp.ones((3, 3), jnp.bfloat16)),
    "scan": (lambda x: jax.lax.scan(lambda c, w: (jnp.tanh(c + w), c * w), 0.3, x), X.astype(jnp.float16)),
    "solve": (lambda a: jnp.linalg.solve(a + 3 * jnp.eye(3), a[0]), jnp.outer(X, X)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_backward_is_the_transpose_of_forward(name: str) -> None:
    f, x = FUNCTIONS[name]
    test = adjoint_test(f)(x)
    assert test.ok and test.tangents == "jvp", test


@pytest.mark.parametrize("most", [2e6, 0.0], ids=["exact", "float64"])
def test_a_wrong_backward_rule_is_found_without_a_forward_mode(most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_point, "MOST", most)
    right, wrong = adjoint_test(scaled_vjp(1.0))(X), adjoint_test(scaled_vjp(1.001))(X)
    assert right.ok and not wrong.ok, (right, wrong)
    assert right.tangents == ("exact" if most else "float64") and "no forward mode" in str(wrong)
    assert (wrong.error > 100 * wrong.bound).any() and wrong.scalars()["error_over_bound"] > 100

    def complex_outputs(x):
        return scaled_vjp(1.0)(x) * (1 + 2j)

    assert adjoint_test(complex_outputs)(X).ok
    assert not adjoint_test(lambda x: scaled_vjp(1.01)(x) * (1 + 2j))(X).ok


def test_a_wrong_transpose_is_found() -> None:
    """A linear function whose transpose was written by hand."""
    shift = jax.custom_derivatives.linear_call

    def f(factor: float) -> Callable[..., Any]:
        return lambda x: shift(lambda _, t: 2.0 * t, lambda _, c: factor * c, (), jnp.sin(x))

    assert adjoint_test(f(2.0))(X).ok
    assert not adjoint_test(f(2.01))(X).ok


def test_in_float64_the_bound_is_that_of_float64() -> None:
    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(X, np.float64))
        assert adjoint_test(lambda x: jnp.cumsum(jnp.tanh(x)))(x).bound.max() < 1e-13
        assert not adjoint_test(scaled_vjp(1 + 1e-9))(x).ok


# ----------------------------------------------------------------------------------------------- bad input


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "taylor, no function": (lambda: taylor_test(1.0), "`f` must be a function; got float"),  # type: ignore[arg-type]
    "taylor, directions": (lambda: taylor_test(jnp.sin, directions=0), "`directions` must be an integer >= 1; got 0"),
    "taylor, tolerance": (lambda: taylor_test(jnp.sin, tolerance=2.0), "`tolerance`"),
    "taylor, vector": (lambda: taylor_test(jnp.sin)(X), "scalar"),
    "adjoint, no function": (lambda: adjoint_test(None), "`f` must be a function"),  # type: ignore[arg-type]
    "adjoint, no floats in": (lambda: adjoint_test(jnp.sin)(3), "nothing to differentiate"),
    "adjoint, no floats out": (lambda: adjoint_test(jnp.argmax)(X), "no floating array"),
    "adjoint, aux": (lambda: adjoint_test(jnp.sin, has_aux=True)(X), "has_aux=True"),
    "adjoint, untraceable": (lambda: adjoint_test(lambda x: x if x[0] > 0 else -x)(X), "cannot be traced"),
    "adjoint, traced": (lambda: jax.jit(lambda x: adjoint_test(jnp.sin)(x).ok)(X), "traced"),
    "adjoint, key": (lambda: adjoint_test(jnp.sin, key=jax.random.split(jax.random.key(0))), "`key`"),
}


@pytest.mark.parametrize("name", BAD)
def test_messages(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
