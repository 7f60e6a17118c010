"""The exact walk: its rules against JAX in float64, its special values against IEEE, its control flow and its limits."""

import builtins
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax import lax

from robustad import _jaxpr
from robustad._eager import UnsupportedError
from robustad.arithmetic import _ball
from robustad.arithmetic._ball import Ball, balls
from robustad.arithmetic._ball_cost import TooLargeError, program_cost
from robustad.arithmetic._ball_walk import Exact, ExactWalk, exact_outputs
from tests._operands import cast
from tests.test_shadow_rules import ROWS

WITHOUT_RULE = set(
    """ragged_dot cholesky_update householder_product ormqr symmetric_product eigvalsh eigh eig hessenberg tridiagonal svd
    random_gamma""".split()
) | {
    "scatter, applying", "reduce_window", "qr, whole", "qr, pivoting", "eigh's derivative",
    "eigvals' derivative", "singular values", "svd's derivative",
}  # fmt: skip
SHARDED = {"psum", "psum_invariant", "pvary", "pmax", "pmin", "all_gather_invariant", "all_gather", "all_to_all"} | {
    "ppermute", "reduce_scatter", "pmean's derivative", "reshard",
}  # fmt: skip


def walked(f: Any, *args: Any, **options: Any) -> list[Exact]:
    program, _ = _jaxpr.trace(f, *args)
    return exact_outputs(program, [jnp.asarray(x) for x in jax.tree.leaves(args)], **options)


def value(f: Any, *args: Any) -> np.ndarray:
    (out,) = walked(f, *args)
    assert out.determined.all() | np.isnan(out.value).all()
    return out.value


OF_ONE_DTYPE = {"real", "imag", "reduce_precision"}  # tested below
COMPOSED = {"determinant's derivative", "qr's derivative", "max's derivative", "solve", "qr"}
RULED = [row for row in ROWS if row.high and row.name not in WITHOUT_RULE | SHARDED | OF_ONE_DTYPE | COMPOSED]


@pytest.mark.parametrize("row", RULED, ids=lambda row: row.name)
def test_exact_values_are_those_of_float64(row: Any) -> None:
    """The working program in float64 is the oracle; a twin of another element, or another function, is far from it."""
    with jax.enable_x64(True):
        args = [x.astype(np.float64) if x.dtype == np.float32 else x for x in (cast(a, "f32") for a in row.args)]
        for out in walked(row.f, *args):
            working = np.asarray(out.working)
            if out.exact is None:
                assert working.dtype.kind not in "fc"
                continue
            finite = np.isfinite(working)
            assert out.determined[finite].all()
            np.testing.assert_array_equal(out.value[~finite], working[~finite])
            size = np.max(np.abs(working[finite]), initial=0.0)
            np.testing.assert_allclose(out.value[finite], working[finite], rtol=0, atol=1e-11 * size)


@pytest.mark.parametrize("name", ["eigh", "svd", "psum"])
def test_a_primitive_without_a_rule_is_named(name: str) -> None:
    row = next(row for row in ROWS if row.name.startswith(name))
    with pytest.raises(UnsupportedError, match=r"`(eigh|svd|shard_map)`"):
        walked(row.f, *(cast(a, "f32") for a in row.args))


def test_complex_functions() -> None:
    z = jnp.asarray([1.5 - 2j, 0.25 + 0.5j], jnp.complex64)
    for f in (jnp.exp, jnp.log, jnp.tanh, lambda z: z**3 / (1 + jnp.conj(z)), jnp.abs, jnp.sqrt):
        expected = np.asarray(f(np.asarray(z, np.complex128)))
        np.testing.assert_allclose(value(f, z), expected, rtol=1e-6)
    (out,) = walked(lambda z: jnp.real(z) + 1, z)
    assert out.value.dtype == np.float64


def test_fourier_transforms() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    for f in (jnp.fft.fft, jnp.fft.ifft2, jnp.fft.rfft2, lambda x: jnp.fft.irfft2(jnp.fft.rfft2(x), s=(5, 6))):
        np.testing.assert_allclose(value(f, x), np.asarray(f(x), np.complex128), atol=1e-5)
    np.testing.assert_allclose(value(lambda x: jnp.fft.irfft(jnp.fft.rfft(x), 5), x[0, 0, :5]), x[0, 0, :5], rtol=1e-15)


def test_casts_and_reduced_precision_do_not_round() -> None:

    def f(x):
        return lax.reduce_precision(x.astype(jnp.bfloat16).astype(jnp.float32), 8, 7) + jnp.int32(2)

    (out,) = walked(f, jnp.float32(1.234567))
    assert out.value == float(np.float32(1.234567)) + 2 and float(out.working) != out.value


# ------------------------------------------------------------------------------------------------ precision


def test_more_digits_where_they_are_needed() -> None:
    """1 - cos x = x²/2 of 1e-300 needs 2000 bits; in float64 it is 0."""
    with jax.enable_x64(True):
        out = value(lambda x: (1 - jnp.cos(x)) / x / x, jnp.float64(1e-300))
        assert float(out) == 0.5
        assert float((1 - jnp.cos(1e-300)) / 1e-300 / 1e-300) == 0.0


def test_what_is_not_known_is_not_determined() -> None:
    (out,) = walked(lambda x: 1 / (jnp.log(jnp.exp(x)) - x), jnp.float32(1.5))
    assert not out.determined and np.isnan(out.value)
    assert value(lambda x: jnp.log(jnp.exp(x)) - x, jnp.float32(1.5)) == 0  # below 2^-1500 at 8192 bits


def test_rounding_saturates() -> None:
    """A number other than 0 is never rounded to 0 or to a subnormal number, a finite one never to infinity."""
    x = jnp.asarray([-1000.0, 1000.0, -100.0, -jnp.inf, jnp.inf])
    expected = [_ball.TINIEST, _ball.LARGEST, float(mpmath.exp(-100)), 0.0, np.inf]
    np.testing.assert_array_equal(value(jnp.exp, x), expected)
    np.testing.assert_array_equal(value(lambda x: -jnp.exp(x), x), -np.asarray(expected))


def test_overflow_that_cancels() -> None:
    x = jnp.float32(1000.0)
    f = jax.grad(lambda x: jnp.log(1 + jnp.exp(x)))
    assert np.isnan(f(x))
    assert value(f, x) == 1.0


def test_operands_that_are_not_the_working_ones() -> None:
    program, _ = _jaxpr.trace(lambda x: jnp.where(x > 1, x * x, 0.0), jnp.float32(1.5))
    near = Ball(jnp.float32(1.5), balls(np.float64(0.5)))
    (out,) = exact_outputs(program, [near])
    assert out.value == 0.25, "the decision is the working program's, the value the exact one's"


# ------------------------------------------------------------------------------------------------ special values


def both(*values: float) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


SPECIAL = both(0.0, -0.0, 1.0, -1.0, jnp.inf, -jnp.inf, jnp.nan, 2.5, -2.5)
UNARY = """exp expm1 log log1p sqrt rsqrt cbrt tanh logistic erf erfc erf_inv sinh cosh asinh acosh atanh atan sin cos
exp2 lgamma""".split()


@pytest.mark.parametrize("name", UNARY)
def test_special_values_of_functions(name: str) -> None:
    f = getattr(lax, name)
    program, _ = _jaxpr.trace(f, SPECIAL)
    (out,) = exact_outputs(program, [SPECIAL])
    working = np.asarray(f(SPECIAL), np.float64)
    np.testing.assert_allclose(out.value, working, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("f", [jnp.add, jnp.subtract, jnp.multiply, jnp.divide, jnp.power, jnp.arctan2, jnp.maximum])
def test_special_values_of_operations(f: Any) -> None:
    x, y = (v.ravel() for v in jnp.meshgrid(SPECIAL, SPECIAL))
    np.testing.assert_allclose(value_or_nan(f, x, y), np.asarray(f(x, y), np.float64), rtol=1e-6)


def value_or_nan(f: Any, *args: Any) -> np.ndarray:
    return walked(f, *args)[0].value


@pytest.mark.parametrize("power", [-3, -2, 0, 2, 3])
def test_special_values_of_integer_powers(power: int) -> None:

    def f(x):
        return lax.integer_pow(x, power)

    np.testing.assert_allclose(value_or_nan(f, SPECIAL), np.asarray(f(SPECIAL), np.float64), rtol=1e-6)


def test_masks_of_infinities() -> None:
    scores, mask = both(100.0, 200.0, 50.0), jnp.asarray([True, False, True])

    def f(s):
        return jax.nn.softmax(jnp.where(mask, s, -jnp.inf))

    (out,) = walked(f, scores)
    small = float(1 / (1 + mpmath.exp(50)))
    np.testing.assert_allclose(out.value, [1 - small, 0.0, small], rtol=1e-15)


def test_subtrahends_beyond_their_domain_by_their_radius_alone() -> None:
    """sqrt of a variance that is 0: the ball of 0 reaches below it."""
    (out,) = walked(lambda x: jnp.std(x), both(0.1, 0.1, 0.1))
    assert abs(out.value) < 1e-100


# ------------------------------------------------------------------------------------------------ control flow


def test_loops_and_branches_follow_the_working_program() -> None:
    def f(x: Any) -> Any:
        def step(c: Any, w: Any) -> Any:
            c = lax.cond(c > 2, lambda c: c * 0.5, lambda c: c * w, c)
            return c, (c, c > 1)

        last, (ys, _) = lax.scan(step, x, jnp.linspace(1.0, 2.0, 7), reverse=True)
        return last + jnp.sum(ys) + lax.fori_loop(0, 5, lambda i, s: s * 1.1 + i, x)

    x = jnp.float32(1.7)
    np.testing.assert_allclose(value(f, x), float(f(x)), rtol=1e-6)


def test_scans_without_iterations() -> None:
    last, ys = walked(lambda x: lax.scan(lambda c, w: (c + w, c * w), 1.0, x), jnp.zeros((0, 2)[:1]))
    assert last.value == 1.0 and ys.value.shape == (0,)


def test_batched_while_loops_keep_what_is_done() -> None:
    x = jnp.arange(1.0, 5.0)
    f = jax.vmap(lambda x: lax.while_loop(lambda c: c < 10, lambda c: c * 1.5, x))
    np.testing.assert_allclose(value(f, x), np.asarray(f(x)), rtol=1e-6)


def test_keys_and_integers_have_no_twin() -> None:
    def f(key: Any, x: Any) -> Any:
        keys = jax.random.split(key, 3)
        _, draws = lax.scan(lambda c, k: (c, jax.random.uniform(k)), 0, keys)
        return draws * x, jnp.argsort(draws), keys

    draws, order, keys = walked(f, jax.random.key(0), jnp.float32(2.0))
    assert draws.exact is not None and order.exact is None and keys.exact is None
    np.testing.assert_allclose(draws.value, np.asarray(draws.working), rtol=1e-6)


def test_custom_derivatives_and_checkpoints_are_calls() -> None:
    @jax.custom_vjp
    def f(x: Any) -> Any:
        return jnp.sin(x)

    f.defvjp(lambda x: (f(x), x), lambda x, g: (g * 7.0 * x,))
    g = jax.checkpoint(lambda x: jax.nn.relu(f(x)) ** 2)
    np.testing.assert_allclose(value(g, jnp.float32(0.5)), np.sin(0.5) ** 2, rtol=1e-15)
    np.testing.assert_allclose(value(jax.grad(g), jnp.float32(0.5)), 2 * np.sin(0.5) * 3.5, rtol=1e-15)


def test_linear_solves() -> None:
    a = np.array([[4.0, 1.0, 0.5], [1.0, 3.0, 0.25], [0.5, 0.25, 2.0]], np.float32)
    b = np.array([1.0, 2.0, 3.0], np.float32)
    expected = np.linalg.solve(a.astype(float), b.astype(float))
    np.testing.assert_allclose(value(jnp.linalg.solve, a, b), expected, rtol=1e-14)
    np.testing.assert_allclose(
        value(lambda a, b: jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(a), True), b), a, b), expected, rtol=1e-14
    )


# ------------------------------------------------------------------------------------------------ limits


def test_a_walk_is_repeated_without_running_the_program() -> None:
    calls = []

    def f(x: Any) -> Any:
        k = jax.pure_callback(lambda: calls.append(1) or np.float32(3.0), jax.ShapeDtypeStruct((), jnp.float32))
        return jnp.where(x > 1, x**2, x) * k

    program, _ = _jaxpr.trace(f, jnp.float32(2.0))
    walk = ExactWalk(program, [jnp.float32(2.0)])
    for exact, expected in ((None, 12.0), ([balls(np.float64(3.0))], 27.0), ([balls(np.float64(0.5))], 0.75)):
        assert float(walk.at(exact)[0].exact[()]) == expected  # type: ignore[index]
    assert len(calls) == 1


def test_programs_that_are_too_large_are_refused_before_and_while_they_run() -> None:
    x = jnp.ones((300, 300))
    program, _ = _jaxpr.trace(lambda x: x @ x, x)
    assert program_cost(program) > 2.7e7
    with pytest.raises(TooLargeError, match="scalar operations"):
        exact_outputs(program, [x])
    with pytest.raises(TooLargeError, match="takes more than"):  # a while loop tells its length as it runs
        walked(lambda x: lax.while_loop(lambda c: c < 1e4, lambda c: c + 1, x), jnp.float32(0.0), limit=5e4)


def test_without_python_flint_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "flint":
            raise ImportError("no flint")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    _ball.flint.cache_clear()
    try:
        with pytest.raises(ImportError, match=r"robustad\[exact\]"):
            walked(jnp.exp, jnp.float32(1.0))
    finally:
        _ball.flint.cache_clear()
