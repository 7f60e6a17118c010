"""Lyapunov exponents against closed forms and the literature: what an orbit does when it collapses, diverges, vanishes."""

import dataclasses
import functools
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from robustad.diagnosis import LyapunovExponents, lyapunov_exponents

LN2 = math.log(2)


def logistic(x, r=4.0):
    return jnp.asarray(r, x.dtype) * x * (1 - x)


def henon(x):
    return jnp.stack([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])


def lorenz(state, h=0.01):
    """A step of the classical Runge-Kutta method with (σ, ρ, β) = (10, 28, 8/3)."""

    def f(s):
        x, y, z = s["x"], s["y"], s["z"]
        return {"x": 10 * (y - x), "y": x * (28 - z) - y, "z": x * y - 8 / 3 * z}

    def moved(k, by):
        return jax.tree.map(lambda s, v: s + by * v, state, k)

    k1 = f(state)
    k2 = f(moved(k1, h / 2))
    k3 = f(moved(k2, h / 2))
    k4 = f(moved(k3, h))
    return jax.tree.map(lambda s, a, b, c, d: s + h / 6 * (a + 2 * b + 2 * c + d), state, k1, k2, k3, k4)


@functools.cache
def of_lorenz():
    start = {"x": jnp.float32(1), "y": jnp.float32(2), "z": jnp.float32(3)}
    return lyapunov_exponents(lorenz, steps=100_000, burn_in=1_000, dt=0.01, every=10)(start)


@functools.cache
def of_logistic():
    with jax.enable_x64(True):
        return lyapunov_exponents(logistic, steps=20_000)(jnp.float64(0.3))


def test_logistic_map():
    found = of_logistic()
    assert found.largest == pytest.approx(LN2, rel=0.01)
    assert abs(found.largest - LN2) < 4 * found.standard_error[0] + 1e-3 and found.standard_error[0] < 0.005
    assert found.verdict == "chaotic" and found.converged and found.dtype == "float64"
    assert found.exponents.dtype == np.float64  # and usable outside of x64
    assert found.kaplan_yorke_dimension == 1
    horizon = found.predictability_horizon()
    assert horizon.steps == pytest.approx(52, rel=0.01) and horizon.time == horizon.steps  # eps doubles 52 times
    assert found.predictability_horizon(1e-3, 0.1).time == pytest.approx(math.log(100) / LN2, rel=0.01)
    assert found.gradient_growth(100) == pytest.approx(100, rel=0.01)
    assert found.gradient_horizon() == pytest.approx(128, rel=0.01)
    assert found.gradient_horizon("float16") == pytest.approx(16, rel=0.01)


def test_reverse_mode_overflows_at_the_gradient_horizon():
    def after(x, n):
        return lax.fori_loop(0, n, lambda _, x: logistic(x), x)

    slope = jax.jit(jax.grad(lambda x, n: after(x, n)), static_argnums=1)
    reach = int(of_logistic().gradient_horizon())
    assert np.isfinite(slope(jnp.float32(0.3), reach - 12)) and not np.isfinite(slope(jnp.float32(0.3), reach + 25))


def test_lorenz():
    found = of_lorenz()
    assert found.largest == pytest.approx(0.906, rel=0.05)
    assert found.exponents.sum() == pytest.approx(-(10 + 1 + 8 / 3), rel=0.01)
    assert abs(found.exponents[1]) < 0.02  # along the flow
    assert found.verdict == "chaotic" and found.converged and found.period == 0
    assert found.kaplan_yorke_dimension == pytest.approx(2.06, abs=0.01)
    horizon = found.predictability_horizon()
    assert horizon.time == pytest.approx(0.01 * horizon.steps)
    assert horizon.time == pytest.approx(23 * LN2 / 0.906, rel=0.05)


def test_henon():
    found = lyapunov_exponents(henon, steps=20_000)(jnp.array([0.1, 0.1]))
    assert found.largest == pytest.approx(0.419, rel=0.03)
    assert found.exponents.sum() == pytest.approx(math.log(0.3), rel=1e-4)
    assert found.kaplan_yorke_dimension == pytest.approx(1.26, abs=0.01)


def linear(x, a):
    return a @ x


@functools.cache
def of_linear(k=None, every=1, steps=100):
    return jax.jit(lyapunov_exponents(linear, steps=steps, burn_in=60, k=k, every=every))


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("every", [1, 2])
def test_a_linear_map_has_the_logarithms_of_its_eigenvalues(scale, every):
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0] + np.eye(3)
    a = turn @ np.diag([1.5, -0.8, 0.1]) @ np.linalg.inv(turn) * scale
    found = of_linear(every=every)(jnp.zeros(3), jnp.asarray(a, jnp.float32))
    assert found.exponents == pytest.approx(np.log(np.array([1.5, 0.8, 0.1]) * scale), abs=2e-5)
    assert found.verdict == ("collapsed" if scale == 1 else "stable")  # the fixed point 0 is unstable, or stable


def test_k_leading_exponents():
    a = jnp.diag(jnp.array([0.5, 0.25, 3.0, 2.0]))
    found = of_linear(2)(jnp.zeros(4), a)
    assert found.exponents == pytest.approx(np.log([3, 2]), abs=1e-5)
    assert np.isnan(found.kaplan_yorke_dimension)  # these two do not decide it
    whole = of_linear()(jnp.zeros(4), a)
    assert whole.kaplan_yorke_dimension == pytest.approx(3 + math.log(3) / math.log(4), abs=1e-4)  # ln 0.5 + ln 2 = 0
    default = jax.eval_shape(lyapunov_exponents(linear), jnp.zeros(40), jnp.eye(40))
    assert default.exponents.shape == (32,)


@pytest.mark.parametrize("tiny", [1e-25, 1e25])
def test_growth_that_leaves_the_range_of_squares(tiny):
    found = of_linear()(jnp.zeros(2), jnp.diag(jnp.array([1.0, 0.1])) * tiny)
    assert found.exponents == pytest.approx(np.log([tiny, 0.1 * tiny]), rel=1e-6)


def test_a_singular_jacobian_has_minus_infinity():
    u, v = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.3, -0.2, 0.25])
    found = of_linear()(jnp.ones(3), jnp.outer(u, v))
    assert found.exponents[0] == pytest.approx(math.log(0.65), rel=1e-5)
    # Of rank one but for rounding: whether anything is left of the other directions cannot be told.
    assert np.isnan(found.exponents[1:]).all() and found.standard_error[0] < 1e-5
    assert found.kaplan_yorke_dimension == 0 and found.verdict == "stable"
    flat = of_linear()(jnp.ones(3), jnp.zeros((3, 3)).at[0].set(v))
    assert flat.exponents[0] == pytest.approx(math.log(0.3), rel=1e-5) and np.isneginf(flat.exponents[1:]).all()
    dead = of_linear()(jnp.ones(3), jnp.zeros((3, 3)))
    assert np.isneginf(dead.exponents).all() and dead.verdict == "stable" and dead.kaplan_yorke_dimension == 0
    assert dead.gradient_horizon() == 0 and dead.predictability_horizon().time == np.inf
    assert "-inf" in str(dead)


def test_what_rounding_hides_is_unknown():
    """In a step of 1 the third direction of Lorenz's flow shrinks by e^-15.5: below rounding in float32, not in float64."""

    def unit_step(state):
        return lax.fori_loop(0, 100, lambda _, s: lorenz(s), state)

    of = lyapunov_exponents(unit_step, steps=200, burn_in=20)
    start = dict.fromkeys("xyz", 1.0)
    found = of(jax.tree.map(jnp.float32, start))
    assert found.verdict == "chaotic" and np.isnan(found.exponents[2]) and np.isnan(found.standard_error[2])
    assert np.isnan(found.kaplan_yorke_dimension) and "smaller steps, or a wider dtype" in str(found)
    with jax.enable_x64(True):
        found = of(jax.tree.map(jnp.float64, start))
    assert found.exponents[2] == pytest.approx(-14.57, rel=0.02) and "wider dtype" not in str(found)


def test_an_orbit_that_diverges_says_when():
    def square(x):
        return x * x

    found = lyapunov_exponents(square, steps=100, burn_in=0)(jnp.float32(4))
    assert found.diverged_at == 6  # 4^(2^5) = 2^64 is the last one that is finite in float32; its derivative too
    assert found.verdict == "diverged" and np.isnan(found.exponents).all() and not found.converged
    assert "not finite at step 6" in str(found)
    assert np.isnan(found.kaplan_yorke_dimension) and np.isnan(found.predictability_horizon().time)
    assert lyapunov_exponents(square, steps=100, burn_in=50)(jnp.float32(4)).diverged_at == 6
    jacobian = lyapunov_exponents(lambda x: jnp.sqrt(x), steps=9, burn_in=0)(jnp.float32(0))
    assert jacobian.diverged_at == 1 and jacobian.verdict == "diverged"


def test_collapse_is_told_from_chaos():
    """In float32 the same map falls onto a cycle of its own."""
    found = lyapunov_exponents(logistic)(jnp.float32(0.3), r=3.9)
    assert found.verdict == "collapsed" and 0 < found.period < 10_000 and found.largest > 0.4
    assert "rounding has caught the orbit on a cycle" in str(found)
    with jax.enable_x64(True):
        wide = lyapunov_exponents(logistic)(jnp.float64(0.3), r=3.9)
    assert wide.verdict == "chaotic" and wide.largest == pytest.approx(0.4945, rel=0.03)
    narrow = lyapunov_exponents(logistic, steps=512)(jnp.bfloat16(0.3))
    assert narrow.verdict == "collapsed" and narrow.dtype == "bfloat16"
    exact = lyapunov_exponents(logistic, steps=64)(jnp.float32(0.5))  # 0.5, 1, 0, 0, ...
    assert exact.verdict == "collapsed" and exact.period == 1 and exact.largest == pytest.approx(math.log(4))


def test_stable_periodic_and_neutral_orbits():
    r = lyapunov_exponents(logistic, steps=3000)
    assert r(jnp.float32(0.3), 2.8).verdict == "stable"
    two = r(jnp.float32(0.3), 3.2)
    assert two.verdict == "periodic" and two.period == 2
    product = 3.2**2 * (1 - 2 * 4.2 / 3.2 + 4 * 4.2 / 3.2**2)  # x₁ + x₂ = (r + 1) / r, x₁ x₂ = (r + 1) / r²
    assert two.largest == pytest.approx(math.log(abs(product)) / 2, abs=2e-3)
    turn = jnp.array([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
    quasi = of_linear()(jnp.ones(2), turn)
    assert quasi.verdict == "periodic" and abs(quasi.exponents).max() < 1e-5
    assert quasi.gradient_horizon() == np.inf and quasi.predictability_horizon().steps == np.inf


def test_pytrees_dtypes_and_complex_states():
    def step(s, a):
        return {"z": a * s["z"], "h": (s["h"][0] * jnp.float16(0.5),)}

    state = {"z": jnp.ones(2, jnp.complex64), "h": (jnp.ones((2,), jnp.float16),)}
    found = lyapunov_exponents(step, steps=64, burn_in=32)(state, jnp.complex64(1.2 + 1.6j))
    assert found.size == 6 and found.dtype == "float16"
    assert found.exponents == pytest.approx(np.log([2] * 4 + [0.5] * 2), abs=1e-3)


def test_vmap_jit_and_a_second_call():
    measure = lyapunov_exponents(logistic, steps=400, burn_in=40)
    starts = jnp.linspace(0.1, 0.45, 5)
    batch = jax.jit(jax.vmap(measure))(starts)
    assert isinstance(batch, LyapunovExponents) and batch.exponents.shape == (5, 1)
    assert (
        batch.verdict.shape == batch.kaplan_yorke_dimension.shape == batch.predictability_horizon().time.shape == (5,)
    )
    np.testing.assert_allclose(batch.exponents[1], measure(starts[1]).exponents, rtol=1e-3)
    assert "batch" in str(batch) and "chaotic" in str(batch)
    over_r = jax.vmap(measure, in_axes=(None, 0))(jnp.float32(0.3), jnp.array([2.5, 3.2, 4.0]))
    assert over_r.verdict.tolist() == ["stable", "periodic", "chaotic"]

    @jax.jit
    @chex.assert_max_traces(n=1)
    def dimension(x):
        found = measure(x)
        return found.kaplan_yorke_dimension, found.converged, found.predictability_horizon(), found.gradient_horizon()

    dimension(jnp.float32(0.3)), dimension(jnp.float32(0.4))


def test_the_program_does_not_grow_with_the_steps():
    def size(steps):
        return len(str(jax.make_jaxpr(lyapunov_exponents(logistic, steps=steps))(0.3)))

    assert size(100_000) < size(1_000) * 1.01 + 500


def test_a_plain_mean_of_logarithms_overflows():
    """Without orthonormal vectors every exponent is the largest one, until the vectors overflow."""
    a = jnp.diag(jnp.array([2.0, 0.5]))
    plain = lax.fori_loop(0, 300, lambda _, v: a @ v, jnp.ones((2, 2)) + jnp.eye(2))
    assert not np.isfinite(plain).all()
    assert of_linear(steps=300)(jnp.zeros(2), a).exponents == pytest.approx([LN2, -LN2], abs=1e-5)


def test_it_prints_and_logs():
    text = str(of_lorenz())
    assert (
        "chaotic" in text
        and "unit of time (dt = 0.01)" in text
        and "Kaplan-Yorke" in text
        and "overflow float32" in text
    )
    scalars = json.loads(json.dumps(of_lorenz().scalars()))
    assert scalars["exponent/1"] == float(of_lorenz().largest)
    unsure = dataclasses.replace(of_lorenz(), standard_error=np.full(3, 0.2))
    assert "NOT converged" in str(unsure)


@jax.custom_vjp
def reverse_only(x):
    return 2 * x


reverse_only.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: lyapunov_exponents(jnp.sin)(jnp.ones(0)), "the state that `sin` takes is empty"),
        (lambda: lyapunov_exponents(3), "`step` must be a function; got int"),
        (lambda: lyapunov_exponents(logistic, steps=0), "`steps` must be an integer >= 1; got 0"),
        (lambda: lyapunov_exponents(logistic, steps=10, every=3), "`every`=3 must divide"),
        (lambda: lyapunov_exponents(logistic, steps=10, every=10), "measured but once"),
        (lambda: lyapunov_exponents(logistic, dt=0), "`dt` must be a positive number"),
        (lambda: lyapunov_exponents(logistic, key=3), "`key` must be one key"),
        (lambda: lyapunov_exponents(logistic, k=2)(0.3), "`k`=2 exponents were asked for, but the state has 1"),
        (lambda: lyapunov_exponents(logistic)(3), "nothing to differentiate"),
        (
            lambda: lyapunov_exponents(lambda s: s)({"x": jnp.ones(2), "t": jnp.arange(2)}),
            "holds int32; expected floating",
        ),
        (lambda: lyapunov_exponents(lambda x: x[:1])(jnp.ones(2)), r"got float32\[1\] for float32\[2\]"),
        (lambda: lyapunov_exponents(lambda x: (x, x))(jnp.ones(2)), "must return a state like the one it takes"),
        (lambda: lyapunov_exponents(lambda x: x if x > 0 else -x)(1.0), "cannot be traced"),
        (lambda: lyapunov_exponents(reverse_only)(1.0), "give it a jax.custom_jvp"),
        (lambda: of_lorenz().predictability_horizon(tolerance=-1), "must be positive numbers"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
    with pytest.raises(TypeError, match="floating dtype; got int32"):
        of_lorenz().gradient_horizon("int32")
