"""Singular values, spectral norm and radius against NumPy in float64, on matrices that NumPy holds."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from robustad.diagnosis import Spectrum, singular_values, spectral_norm, spectral_radius

EPS = 2.0**-23
RNG = np.random.default_rng(0)
SMALL, TALL = RNG.standard_normal((12, 9)), RNG.standard_normal((150, 120))
LARGE = RNG.standard_normal((120, 120))


def times(x, a):
    return a @ x


@functools.cache
def compiled(tool, **options):
    """One program a shape, whatever the matrix."""
    return jax.jit(tool(times, **options))


def given(a, dtype="float32"):
    a = jnp.asarray(a, dtype)
    return jnp.ones(a.shape[1], dtype), a


def of_numpy(a, k):
    return np.linalg.svd(np.asarray(a).astype(np.float64), compute_uv=False)[:k]


@pytest.mark.parametrize("scale", [1.0, 1e25, 1e-25])
@pytest.mark.parametrize("matrix", [SMALL, SMALL.T, TALL], ids=["small", "wide", "large"])
def test_singular_values(matrix, scale):
    x, a = given(matrix * scale)
    found = compiled(singular_values, k=3)(x, a)
    expected = of_numpy(a, 3)
    np.testing.assert_allclose(found.values, expected, rtol=40 * EPS)
    assert found.converged and (found.residuals < 1e-3 * expected[0]).all()
    assert found.shape == a.shape and found.products > 0


@pytest.mark.parametrize("scale", [1.0, 1e25, 1e-25])
def test_a_plain_power_iteration_overflows_or_vanishes(scale):
    x, a = given(SMALL * scale)

    def plain(x):
        v = lax.fori_loop(0, 50, lambda _, v: (w := a.T @ (a @ v)) / jnp.linalg.norm(w), x)
        return jnp.linalg.norm(a @ v)

    right = abs(plain(x) / of_numpy(a, 1)[0] - 1) < 1e-3
    assert right == (scale == 1)
    assert compiled(spectral_norm)(x, a).value == pytest.approx(of_numpy(a, 1)[0], rel=1e-6)


def test_float64():
    with jax.enable_x64(True):
        x, a = given(SMALL, "float64")
        found = singular_values(times, k=2)(x, a)
    assert found.values.dtype == np.float64
    np.testing.assert_allclose(found.values, of_numpy(SMALL, 2), rtol=1e-14)
    assert float(found.value * 2) == 2 * float(found)  # NumPy's, usable outside of x64


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    x, a = given(SMALL, dtype)
    found = spectral_norm(times)(x, a)
    assert found.values.dtype == np.float32 and found.converged
    assert found.value == pytest.approx(of_numpy(a, 1)[0], rel=2 * float(jnp.finfo(dtype).eps))


DEGENERATE = {
    "zero": np.zeros((150, 120)),
    "identity": np.eye(150, 120),
    "orthogonal": np.linalg.qr(TALL)[0],
    "rank 2": TALL[:, :2] @ TALL[:2, :120],
    "graded": np.diag(2.0 ** -np.arange(150.0))[:, :120],
    "one entry": np.eye(150, 120, 7) * (np.arange(120) == 60),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_where_lanczos_divides_by_zero(name):
    x, a = given(DEGENERATE[name])
    found = compiled(singular_values, k=3)(x, a)
    expected = of_numpy(a, 3)
    np.testing.assert_allclose(found.values, expected, atol=20 * EPS * expected[0])
    assert found.converged


def test_not_finite_is_not_converged():
    for matrix in (SMALL, TALL):
        x, a = given(matrix)
        for bad in (jnp.nan, jnp.inf):
            found = compiled(singular_values, k=3)(x, a.at[3, 4].set(bad))
            assert not found.converged and "NOT converged: the derivative is not finite" in str(found)
    assert not np.isfinite(compiled(spectral_radius)(*given(np.full((9, 9), np.nan))).value)


def test_what_has_not_converged_says_so():
    near = np.linalg.qr(LARGE)[0] @ np.diag(1 - np.arange(120) * 1e-4) @ np.linalg.qr(LARGE.T)[0]
    found = singular_values(times, k=3, rtol=1e-6, cycles=1)(*given(near))
    assert not found.converged and "NOT converged: more `cycles`" in str(found)
    formed = spectral_norm(times, rtol=1e-30)(*given(SMALL))
    assert not formed.converged and "NOT converged: rtol is below rounding" in str(formed)
    expected = of_numpy(near, 3)
    assert (found.values <= expected * (1 + 10 * EPS)).all()  # from below, and within the residual of a true one
    every = of_numpy(near, 120)
    assert all(np.abs(every - s).min() <= r + 10 * EPS for s, r in zip(found.values, found.residuals))


# ---- spectral radius


def blocks(*, decay, angle):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    a = np.diag(np.linspace(-decay, decay, 300))
    a[:2, :2] = turn
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((300, 300)))[0]
    return basis @ a @ basis.T


@pytest.mark.parametrize("scale", [1.0, 1e25, 1e-25])
def test_spectral_radius(scale):
    for a in (SMALL[:9], SMALL[:9] - SMALL[:9].T):
        x, a = given(a * scale)
        expected = np.abs(np.linalg.eigvals(np.asarray(a, np.float64))).max()
        assert compiled(spectral_radius)(x, a).value == pytest.approx(expected, rel=1e-5)
    x, a = given(blocks(decay=0.7, angle=2.0) * scale)  # a complex pair, by Arnoldi's method
    found = compiled(spectral_radius)(x, a)
    assert found.value == pytest.approx(scale, rel=1e-5) and found.converged


def test_radius_and_norm_of_what_is_not_normal():
    basis = np.linalg.qr(RNG.standard_normal((20, 20)))[0]
    x, a = given(basis @ (np.diag(np.linspace(0.1, 0.5, 20)) + 50 * np.eye(20, k=1)) @ basis.T)
    radius, norm = compiled(spectral_radius)(x, a), compiled(spectral_norm)(x, a)
    assert norm.value == pytest.approx(of_numpy(a, 1)[0], rel=1e-6) and norm.value > 50
    assert (
        radius.converged and 0.5 < radius.value < norm.value
    )  # of a matrix that is within rounding, and not of this one
    assert (
        compiled(spectral_radius)(*given(np.eye(9, k=1))).value < 0.3
    )  # nilpotent: true 0, the ninth root of rounding
    assert compiled(spectral_radius)(*given(np.zeros((9, 9)))).value == 0
    # Backward stable, though its residual is no small share of the eigenvalue: it is one of the norm.
    x, a = given(basis[:3, :3] @ np.array([[1.0, 1e6, 0], [0, -1.0, 1e6], [0, 0, 0.5]]) @ np.linalg.inv(basis[:3, :3]))
    radius = compiled(spectral_radius)(x, a)
    assert radius.converged and radius.residual > EPS * radius.value


# ---- functions


def test_pytrees_and_complex_leaves():
    def f(p, c):
        return {"y": 3 * p["a"], "z": (c * p["z"], 7)}, jnp.arange(3)

    p = {"a": jnp.ones((2, 2)), "z": jnp.ones(3, jnp.complex64)}
    found = singular_values(f, k=7)(p, jnp.complex64(3 + 4j))
    np.testing.assert_allclose(found.values, [5] * 6 + [3], rtol=1e-6)  # multiplication by c turns and stretches by 5
    assert found.shape == (10, 10)
    conjugate = spectral_norm(lambda z: jnp.conj(z) * (1 + 2j) + z)(jnp.ones(2, jnp.complex64))
    assert conjugate.value == pytest.approx(1 + 5**0.5, rel=1e-6)
    real = spectral_norm(lambda z: jnp.real(z * (3 + 4j)))(jnp.ones(2, jnp.complex64))
    assert real.value == pytest.approx(5, rel=1e-6)
    both = spectral_norm(lambda x, y: 3 * x + 4 * y, argnums=(0, 1))(1.0, 2.0)
    assert both.value == pytest.approx(5, rel=1e-6)


@jax.custom_vjp
def tripled(x):
    return 3 * x


tripled.defvjp(lambda x: (3 * x, None), lambda _, u: (3 * u,))


@pytest.mark.parametrize(
    ("f", "norm"),
    [
        (tripled, 3),  # no forward mode
        (jax.checkpoint(lambda x: x * 2), 2),
        (lambda x: lax.scan(lambda c, _: (2 * c, None), x, length=3)[0], 8),
        (lambda x: lax.cond(x.sum() > 0, lambda x: 2 * x, lambda x: x, x), 2),
    ],
    ids=["custom_vjp", "checkpoint", "scan", "cond"],
)
def test_through_rules_and_control_flow(f, norm):
    assert spectral_norm(f)(jnp.ones(3)).value == pytest.approx(norm, rel=1e-6)


def test_modules():
    x = jnp.asarray([0.3, -1.2, 0.7])
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    found = spectral_norm(lambda m, x: m(x))(model, x)  # of the parameters: y = xᵀK + b
    assert found.value == pytest.approx((1 + float(x @ x)) ** 0.5, rel=1e-6) and found.shape == (2, 8)
    layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    assert spectral_norm(lambda m, x: m(x))(layer, x).value == pytest.approx((1 + float(x @ x)) ** 0.5, rel=1e-6)
    inside = spectral_norm(layer)(x)  # of the input
    assert inside.value == pytest.approx(of_numpy(layer.weight, 1)[0], rel=1e-6)


def test_jit_vmap_and_keys():
    x, a = given(SMALL)
    batch = jax.vmap(singular_values(times, k=2), in_axes=(None, 0))(x, jnp.stack([a, 2 * a, 0 * a]))
    assert isinstance(batch, Spectrum) and batch.values.shape == (3, 2) and batch.converged.all()
    np.testing.assert_allclose(batch.value, of_numpy(a, 1)[0] * np.array([1, 2, 0]), rtol=1e-6)
    assert "3 converged" in str(batch)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(x, a):
        return spectral_norm(times)(x, a).value

    assert step(x, a) == pytest.approx(of_numpy(a, 1)[0], rel=1e-6)
    step(x, 2 * a)
    x, a = given(TALL)
    first, again = (compiled(singular_values, k=3)(x, a) for _ in range(2))
    np.testing.assert_array_equal(first.values, again.values)
    other = singular_values(times, k=3, key=jax.random.key(7))(x, a)
    np.testing.assert_allclose(other.values, first.values, rtol=1e-5)
    assert (other.values != first.values).any()


def test_aux_does_not_count():
    x = jnp.ones(3)
    for tool in (spectral_norm, singular_values, spectral_radius):
        found = tool(lambda x: (2 * x, {"other": 9 * x}), has_aux=True, rtol=np.float32(1e-3))(x)
        np.testing.assert_allclose(found.values, 2, rtol=4 * EPS)
        assert (found.values == tool(lambda x: 2 * x)(x).values).all()
    with pytest.raises(ValueError, match=r"has_aux=True expects `f` to return \(value, aux\)"):
        spectral_norm(lambda x: 2 * x, has_aux=True)(x)


def test_it_prints_and_logs():
    found = compiled(singular_values, k=3)(*given(SMALL))
    assert "singular values of the Jacobian of times, 12 x 9: 9 products" in str(found)
    assert found.scalars()["converged"] == 1.0 and found.residual == found.residuals[0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: spectral_norm(3), "`f` must be a function; got int"),
        (lambda: spectral_norm(jnp.exp, rtol=2), r"`rtol` must be a number in \(0, 1\)"),
        (lambda: spectral_norm(jnp.exp, key=jnp.ones(2)), "`key` must be one key"),
        (lambda: spectral_norm(jnp.exp, cycles=0), "`cycles` must be an integer >= 1"),
        (lambda: spectral_norm(jnp.exp)(3), "nothing to differentiate"),
        (lambda: spectral_norm(jnp.argmax)(jnp.ones(3)), "must return floating arrays"),
        (
            lambda: singular_values(jnp.exp, k=4)(jnp.ones(3)),
            "`k`=4 singular values were asked for, but the Jacobian has 3",
        ),
        (lambda: spectral_radius(jnp.sum)(jnp.ones(3)), "must be square to have eigenvalues; it is 1 x 3"),
        (lambda: spectral_norm(jnp.exp)(jnp.ones(0)), "is empty: 0 x 0"),
        (
            lambda: spectral_norm(lambda x: lax.while_loop(lambda y: y.sum() < 9, lambda y: 2 * y, x)[:1])(jnp.ones(3)),
            "no reverse mode that JAX can make",
        ),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
