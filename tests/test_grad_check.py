"""`grad_check`: finite but wrong gradients that `check_grads` passes, wrong rules, and no false alarms."""

import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.test_util import check_grads

from robustad import stability
from robustad.diagnosis import GradCheck, _point, grad_check
from tests._subset import thinned


def ctc(logits: Any) -> Any:
    return optax.ctc_loss(logits[None], jnp.zeros((1, 2)), jnp.array([[1]]), jnp.zeros((1, 1)))[0]


TWELVE: dict[str, tuple[Callable[..., Any], Any, Any, bool]] = {  # name: function, argument, derivative, in float64
    "expm1": (jnp.expm1, -40.0, 4.248354255291589e-18, True),
    "elu": (jax.nn.elu, -40.0, 4.248354255291589e-18, True),
    "selu": (jax.nn.selu, -700.0, 1.7334290832552394e-304, True),
    "sigmoid": (jax.nn.sigmoid, 37.43, 5.550825086253719e-17, True),
    "grad softplus": (jax.grad(jax.nn.softplus), 37.43, 5.550825086253719e-17, True),
    "grad log_sigmoid": (jax.grad(jax.nn.log_sigmoid), -37.43, -5.550825086253719e-17, True),
    "tanh": (jnp.tanh, -9.0109, 5.960628852911439e-08, False),
    "i0": (jax.scipy.special.i0, 1e-300, 5e-301, True),
    "silu": (jax.nn.silu, -709.0, -8.614807714413836e-306, True),
    "log_softmax": (
        lambda x: jax.nn.log_softmax(x)[0],
        [37.43, 0.0],
        [5.550825086253719e-17, -5.550825086253719e-17],
        True,
    ),
    "1 - cos": (lambda x: (1 - jnp.cos(x)) / x**2, 1e-4, -8.33333311726007e-06, False),
    "ctc_loss": (ctc, [[0.0, 17.0]] * 2, [[1.7139082186778086e-15, -1.7139082186778086e-15]] * 2, True),
}


@pytest.mark.parametrize("name", thinned(list(TWELVE), 2))
def test_finite_but_wrong_gradients_are_found(name: str) -> None:
    """Where this version of JAX has them wrong; the derivatives are those of mpmath."""
    f, x, derivative, wide = TWELVE[name]
    with jax.enable_x64(wide):
        x = jnp.asarray(x)
        gradient = np.asarray(jax.jit(jax.grad(f))(x), np.float64)
        check = grad_check(f)(x)
        if name != "1 - cos":  # passes: differences in working precision are as wrong
            check_grads(f, (x,), 1, modes=["rev"])
    assert np.isfinite(gradient).all()
    wrong = np.max(np.abs(gradient - derivative)) > (1e-10 if wide else 1e-4) * np.max(np.abs(derivative))
    assert check.checks[0].ok != wrong and check.reference == "exact"
    np.testing.assert_allclose(check.checks[0].expected, derivative, rtol=1e-14)
    if wrong:
        assert check.checks[0].reason == "rounding" and check.checks[0].norm_error > 0.01
    else:
        assert jax.__version_info__ >= (0, 12), "all twelve are wrong in 0.10.2"


FURTHER: dict[str, tuple[Callable[..., Any], Any, bool]] = {
    "logistic, float32": (jax.nn.sigmoid, 17.5, False),
    "softmax": (lambda x: jax.nn.softmax(x)[0], [40.0, 0.0], True),
    "log(1 - exp(-x))": (lambda x: jnp.log(1 - jnp.exp(-x)), 1e-12, True),
    "variance of raw moments": (lambda x: jnp.mean(x**2) - jnp.mean(x) ** 2, [1000.0, 1000.001, 1000.002], False),
    "sqrt(x+1) - sqrt(x)": (lambda x: jnp.sqrt(x + 1) - jnp.sqrt(x), 1e14, True),
    "x - sin x": (lambda x: x - jnp.sin(x), 1e-3, False),
    "second derivative of tanh": (jax.grad(jnp.tanh), 20.0, True),
}


@pytest.mark.parametrize("name", FURTHER)
def test_others_of_their_kinds(name: str) -> None:
    f, x, wide = FURTHER[name]
    with jax.enable_x64(wide):
        assert not grad_check(f)(jnp.asarray(x)).ok


# ---------------------------------------------------------------------------------------------- wrong rules


def with_vjp(rule: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    f = jax.custom_vjp(lambda x: jnp.sum(jnp.sin(x) * x))
    f.defvjp(lambda x: (jnp.sum(jnp.sin(x) * x), x), lambda x, g: (g * rule(x, g),))
    return f


X = np.linspace(0.3, 2.0, 5).astype(np.float32)


@pytest.mark.parametrize("most", [2e6, 0.0], ids=["exact", "float64"])
def test_wrong_rules_are_found(most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_point, "MOST", most)

    def right(x, g):
        return jnp.cos(x) * x + jnp.sin(x)

    assert grad_check(with_vjp(right))(X).ok

    def one(x, g):
        return right(x, g).at[3].multiply(1.001)

    for wrong in (one, lambda x, g: -right(x, g), lambda x, g: right(x, g) + 1e-3):
        check = grad_check(with_vjp(wrong))(X)
        assert not check.ok and check.checks[0].reason == "rule"
    assert grad_check(with_vjp(one))(X).checks[0].element == (3,)
    assert any("forward mode" in note for note in check.notes)


def test_a_wrong_element_of_a_large_leaf_is_found_with_the_rest_far_larger() -> None:
    """1e-5 of the leaf's norm, and wrong by a factor of two: no norm-wise error of float32 tells."""

    @jax.custom_jvp
    def f(x: Any) -> Any:
        return jnp.sum(x**2 * scale)

    scale = jnp.asarray([1.0, 1.0, 1e-5, 1.0])
    f.defjvp(lambda p, t: (f(*p), jnp.vdot(2 * p[0] * scale * jnp.asarray([1.0, 1.0, 2.0, 1.0]), t[0])))
    check = grad_check(f)(jnp.ones(4))
    assert not check.ok and check.checks[0].element == (2,)
    assert check.checks[0].norm_error < 1e-4
    got, expected = check.checks[0].got, check.checks[0].expected_there
    np.testing.assert_allclose([got, expected], [4e-5, 2e-5], rtol=1e-6)


@pytest.mark.parametrize("most", [2e6, 0.0], ids=["exact", "float64"])
def test_directions_find_what_no_drawn_element_shows(most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_point, "MOST", most)

    @jax.custom_jvp
    def f(x: Any) -> Any:
        return jnp.sum(jnp.tanh(x))

    f.defjvp(lambda p, t: (f(*p), jnp.vdot((1 - jnp.tanh(p[0]) ** 2).at[7].multiply(3.0), t[0])))
    x = jnp.linspace(-1.0, 1.0, 200)
    check = grad_check(f, elements=2, key=jax.random.key(1))(x)
    assert not check.ok and check.checks[0].directions == 2 and check.checks[0].checked == 2
    assert check.checks[0].element is None and "direction" in str(check)
    assert grad_check(lambda x: jnp.sum(jnp.tanh(x)), elements=2, key=jax.random.key(1))(x).ok


def test_nonfinite_gradients_are_not_ok() -> None:
    for f, x in (
        (lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0), 0.0),
        (lambda x: jnp.log(1 + jnp.exp(x)), 100.0),
        (jnp.linalg.norm, [0.0, 0.0]),
        (lambda x: 1 / (1 + jnp.exp(-x)), -200.0),
    ):
        check = grad_check(f)(jnp.asarray(x))
        assert not check.ok and check.checks[0].reason == "nonfinite" and check.checks[0].norm_error == np.inf
    assert grad_check(jnp.sqrt)(0.0).ok, "an infinite derivative of which nothing else is known"


# -------------------------------------------------------------------------------------------- no false alarms


def mlp(params: Any, x: Any, y: Any) -> Any:
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = params[-1]
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(x @ w + b) * jax.nn.one_hot(y, 3), -1))


def mlp_arguments(dtype: Any) -> tuple[Any, ...]:
    random = np.random.default_rng(0)
    sizes = (4, 6, 3)
    params = [
        (jnp.asarray(random.normal(size=(m, n)) / np.sqrt(m), dtype), jnp.zeros(n, dtype))
        for m, n in itertools.pairwise(sizes)
    ]
    return params, jnp.asarray(random.normal(size=(7, 4)), dtype), jnp.asarray(random.integers(0, 3, 7))


@pytest.mark.parametrize(
    "dtype,most",
    thinned([("float64", 2e6), ("bfloat16", 2e6), ("float16", 0.0), ("float64", 0.0)], 2),
)
def test_healthy_networks_pass(dtype: str, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_point, "MOST", most)
    with jax.enable_x64(dtype == "float64"):
        check = grad_check(mlp, elements=24)(*mlp_arguments(jnp.dtype(dtype)))
    assert check.ok, check
    assert sum(leaf.checked for leaf in check.checks if leaf.mode == "reverse") >= 20
    assert check.reference == ("exact" if most else "float64")


def ties(x: Any) -> Any:
    return (
        jnp.max(x) + jnp.sum(jnp.abs(x - 1)) + jnp.sum(jax.nn.relu(x - 1)) + jnp.sum(jnp.clip(x, 0.0, 1.0)) + x[0] ** 2
    )


HEALTHY: dict[str, tuple[Callable[..., Any], Any]] = {
    "ties and kinks": (ties, [1.0, 1.0, 1.0, 0.0]),
    "masked": (lambda x: jnp.sum(jax.nn.softmax(jnp.where(x > 0, x, -jnp.inf)) * x), [1.0, -1.0, 2.0]),
    "structural zero": (lambda x: jnp.sum(jnp.tanh(x - jnp.mean(x)) + 0 * x), [0.1, 0.7, 0.3]),
    "bias before a normalization": (lambda b: jnp.sum(jax.nn.standardize(X * 3 + b) ** 3), 0.3),
    "stopped": (lambda x: jnp.sum(jax.lax.stop_gradient(x) ** 3 * x), [1.0, 2.0]),
    "straight through": (lambda x: jnp.sum((x + jax.lax.stop_gradient(jnp.round(x) - x)) ** 2), [0.3, 1.8]),
    "zero": (lambda x: 0.0 * jnp.sum(x), [1.0, 2.0]),
    "minimum": (lambda x: jnp.sum((x - 1) ** 2 + (x - 1) ** 3), [1.0, 1.0]),
    "saddle": (lambda x: jnp.sum((x - 1) ** 3), [1.0, 2.0]),
    "sort": (lambda x: jnp.sum(jnp.sort(x) * jnp.arange(4.0)), [2.0, -1.0, 2.0, 0.5]),
    "solve": (lambda x: jnp.sum(jnp.linalg.solve(jnp.eye(2) * 3 + x, x[0])), [[0.5, 1.0], [0.25, -0.5]]),
    "complex": (lambda x: jnp.sum(jnp.abs(jnp.fft.fft(x)) ** 2), [0.5, 1.0, 2.0]),
    "scan": (lambda x: jax.lax.scan(lambda c, w: (jnp.tanh(c * w + 1), None), 0.5, x)[0], [0.5, 1.0, 1.5]),
    "cumulative": (lambda x: jnp.sum(jnp.cumsum(x) ** 2 + jax.lax.cumlogsumexp(x)), [0.5, 1.0, 1.5]),
    "indexed": (lambda x: jnp.sum(x[jnp.array([0, 2, 2])] ** 2) + jnp.sum(x.at[1].set(3.0)), [0.5, 1.0, 1.5]),
    "bits that come back": (lambda x: jnp.sum(stability.norm_logpdf(x, 0.5, 2.0)), [0.5, 1.0]),
    "primitives of our own": (lambda x: stability.compensated_sum(x) * stability.logsumexp(x), [0.5, 1.0, -2.0]),
    "empty": (jnp.sum, []),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_false_alarms(name: str) -> None:
    f, x = HEALTHY[name]
    check = grad_check(f)(jnp.asarray(x, jnp.float32))
    assert check.ok, check


def test_a_straight_through_estimator_by_a_custom_rule_is_reported() -> None:
    """By `stop_gradient` it is a program whose derivative is right: see the healthy functions."""
    rounded = jax.custom_jvp(lambda x: jnp.round(x))
    rounded.defjvp(lambda p, t: (jnp.round(p[0]), t[0]))
    check = grad_check(lambda x: jnp.sum(rounded(x) ** 2))(jnp.asarray([0.3, 1.8]))
    assert not check.ok and {leaf.reason for leaf in check.checks} == {"rule"}


def test_kinks_are_counted() -> None:
    check = grad_check(ties)(jnp.asarray([1.0, 1.0, 1.0, 0.0]))
    assert check.checks[0].kinks == 4
    wrong = jax.custom_jvp(jnp.abs)
    wrong.defjvp(lambda p, t: (jnp.abs(p[0]), 2.0 * t[0]))
    assert not grad_check(wrong)(0.0).ok, "beyond what the sides of the kink allow"


# ------------------------------------------------------------------------------------------ scales and orders


def test_scales() -> None:
    """F13: the plain norm fails where its squares leave the range, the scaled one does not."""

    def plain(x):
        return jnp.sqrt(jnp.sum(x * x))

    x, scales = jnp.asarray([3.0, 4.0]), (1e-20, 1.0, 1e20)
    check = grad_check(plain, scales=scales)(x)
    assert [all(leaf.ok for leaf in check.at(s)) for s in scales] == [False, True, False]
    assert grad_check(stability.norm, scales=np.array([1e-20, 1e20], np.float32))(x).ok
    check = grad_check(plain, scales=scales)(x.astype(jnp.float16))
    assert any("range" in note for note in check.notes) and {leaf.scale for leaf in check.checks} == {1.0}


def test_second_order() -> None:

    def f(x):
        return jnp.sum(jax.nn.softplus(x))

    with jax.enable_x64(True):
        x = jnp.asarray(37.43)
        check = grad_check(f, order=2)(x)
    assert [leaf.ok for leaf in check.checks] == [True, True, False, False]
    assert [leaf.order for leaf in check.checks] == [1, 1, 2, 2]
    assert grad_check(jax.nn.logsumexp, order=3)(jnp.asarray([0.5, 1.0])).ok


def test_rtol() -> None:
    f = jax.custom_jvp(jnp.sin)
    f.defjvp(lambda p, t: (jnp.sin(p[0]), 1.0001 * jnp.cos(p[0]) * t[0]))
    assert grad_check(f)(1.0).ok
    assert not grad_check(f, rtol=1e-5)(1.0).ok
    assert grad_check(jnp.sin, rtol=1e-5)(1.0).ok


# --------------------------------------------------------------------------------------------------- arguments


def test_pytrees_and_modules() -> None:
    def loss(p: Any, x: Any, *, power: int) -> Any:
        return jnp.sum((p["w"] @ x) ** power) + jnp.real(p["z"] ** 3 * 1j), {"n": 3}

    p = {"w": jnp.asarray([[0.5, 1.0]]), "z": jnp.asarray(1.0 + 2.0j)}
    check = grad_check(loss, has_aux=True)(p, X[:2], power=3)
    assert check.ok and {leaf.name for leaf in check.checks} == {"w", "z"}
    assert isinstance(check.checks[-1].got, complex)
    model = eqx.nn.MLP(2, "scalar", 3, 1, key=jax.random.key(0))
    assert grad_check(lambda m, x: m(x) ** 2)(model, X[:2]).ok
    linear = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    assert grad_check(lambda m, x: jnp.sum(m(x) ** 2))(linear, X[:2]).ok
    assert grad_check(lambda x, y: jnp.vdot(x, y), argnums=(0, 1))(X, X).ok


def test_the_users_x64_mode_is_left_alone() -> None:
    before = jax.config.jax_enable_x64
    grad_check(jnp.sin)(1.0)
    assert jax.config.jax_enable_x64 == before and jnp.asarray(1.0).dtype == jnp.float32


def test_without_an_exact_walk_the_reason_is_given() -> None:

    def f(x):
        return jnp.sum(jnp.linalg.eigvalsh(x @ x.T) ** 2)

    check = grad_check(f)(jnp.asarray([[1.0, 2.0], [0.5, 3.0]]))
    assert check.ok and check.reference == "float64" and "eigh" in check.notes[0]


def test_what_no_twin_passes_is_unknown() -> None:
    check = grad_check(lambda a: jnp.sum(jax.random.gamma(jax.random.key(0), a, (2,))))(2.0)
    assert check.ok and check.checks[0].checked == 0 and check.checks[0].undetermined == 1
    assert "random_gamma" in check.notes[0]


def test_the_value_is_told_to_be_wrong_too() -> None:
    check = grad_check(lambda x: (1 - jnp.cos(x)) / x**2)(1e-4)
    assert check.value == 0 and check.value_reference == pytest.approx(0.5)
    assert "value is wrong too" in str(check)


def test_what_a_check_prints_and_logs() -> None:
    check = grad_check(jnp.tanh)(-9.0109)
    assert "NOT ok" in str(check) and "5.9606e-08" in str(check) and "rounding" in str(check)
    scalars = check.scalars()
    assert scalars["ok"] == 0.0 and scalars["norm_error/x"] == 1.0 and scalars["norm_error/x, forward"] == 1.0
    assert isinstance(jax.tree.map(lambda x: x, check), GradCheck)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "function": (lambda: grad_check(3.0), "`f` must be a function; got float"),  # type: ignore[arg-type]
    "scales": (lambda: grad_check(jnp.sin, scales=(0.0,)), "`scales`"),
    "a complex scale": (lambda: grad_check(jnp.sin, scales=5j), "`scales`"),  # type: ignore[arg-type]
    "order": (lambda: grad_check(jnp.sin, order=0), "`order` must be 1, 2 or 3; got 0"),
    "rtol": (lambda: grad_check(jnp.sin, rtol=2.0), "`rtol`"),
    "elements": (lambda: grad_check(jnp.sin, elements=-1), "`elements`"),
    "directions": (lambda: grad_check(jnp.sin, directions=1.5), "`directions`"),  # type: ignore[arg-type]
    "nothing to check": (lambda: grad_check(jnp.sin, elements=0, directions=0), "nothing to check"),
    "key": (lambda: grad_check(jnp.sin, key=0), "`key` must be one key"),  # type: ignore[arg-type]
    "argnums": (lambda: grad_check(jnp.sin, argnums=1)(1.0), "`argnums`"),
    "integers": (lambda: grad_check(jnp.sin)(1), "nothing to differentiate"),
    "vector": (lambda: grad_check(jnp.sin)(jnp.ones(2)), "scalar"),
    "aux": (lambda: grad_check(jnp.sin, has_aux=True)(1.0), "has_aux=True"),
    "untraceable": (lambda: grad_check(lambda x: x if x > 0 else -x)(1.0), "cannot be traced"),
    "traced": (lambda: jax.jit(lambda x: grad_check(jnp.sin)(x).ok)(1.0), "traced"),
    "range": (lambda: grad_check(jnp.sin, scales=(1e30,))(jnp.float16(1)), "range"),
}


@pytest.mark.parametrize("name", BAD)
def test_messages(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
