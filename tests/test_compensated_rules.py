"""The rules of the double-word arithmetic, one primitive and one dtype at a time."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax import lax

import robustad as rad
from tests._double_words import difference_of_roots, error, exactly
from tests._walking import shadows, walk


def _numbers(shape=(4, 5), seed=7):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


PROGRAMS = {
    "moves": lambda x: jnp.pad(jnp.roll(x.T[::-1].reshape(2, 10)[:, 1:], 2, 1), 1, constant_values=0.1)[::2],
    "gathers": lambda x: x[jnp.array([0, 3, 9]), jnp.array([1, 1, 0])] + x.at[7, 0].get(mode="fill", fill_value=2.0),
    "updates": lambda x: lax.dynamic_update_slice(x, x[:2, :2] * 3, (1, 1)),
    "sets": lambda x: x.at[1].set(x[0] / 3),
    "adds": lambda x: x.at[jnp.array([0, 1, 0, 0])].add(x / 3),
    "multiplies": lambda x: x.at[jnp.array([0, 1, 0]), 2].multiply(x[0, :3] / 3),
    "scatter extremum": lambda x: x.at[jnp.array([0, 1, 0])].max(x[1:] / 3),
    "batched scatter": jax.vmap(lambda x: x.at[jnp.array([0, 1, 0])].add(x[2:] / 3)),
    "sorts": lambda x: jnp.sort(x / 3, 0) + jnp.sort(x, 1, descending=True),
    "top": lambda x: lax.top_k(x / 3, 2)[0],
    "extrema": lambda x: jnp.max(x / 3, 0) - jnp.min(x / 7, 0) + jnp.maximum(x, -x / 3) + jnp.clip(x, -0.3, 0.3),
    "products": lambda x: jnp.prod(x, 0)[:, None] + jnp.cumprod(x / 3, 1).T,
    "cumulative": lambda x: jnp.cumsum(x / 3, 0) + lax.cumsum(x, 1, reverse=True) + lax.cummax(x / 3, 1),
    "contractions": lambda x: jnp.einsum("ij,kj->ik", x / 3, x) @ jnp.ones(4) + jnp.einsum("ij,ij->i", x, x / 3),
    "windows": lambda x: lax.reduce_window(x / 3, 0.0, lax.add, (2, 2), (1, 2), "SAME"),
    "rounds": lambda x: jnp.floor(x * 7) + jnp.ceil(x / 3) + jnp.round(x * 2) + jnp.sign(x) + jnp.trunc(x * 9),
    "remainders": lambda x: lax.rem(x, jnp.float32(0.3)) + jnp.mod(x / 3, 0.1),
    "compares": lambda x: jnp.where((x / 3 * 3 > x) | (x == x * 1) & (x >= x), jnp.abs(x), -x) / 3,
    "casts": lambda x: (x * 100).astype(jnp.int32) / 7 + jnp.arange(5) / 3 + (x > 0) + jnp.isfinite(x),
    "whiles": lambda x: lax.while_loop(lambda y: jnp.max(y) < 3, lambda y: y * 1.1, jnp.abs(x)),
    "roots": lambda x: jnp.linalg.norm(x, axis=1) + jnp.var(x, 1),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_rule_against_float64(name):
    """The same program with its values in float64, by the shadow arithmetic."""
    f, x = PROGRAMS[name], _numbers()
    expected = np.asarray(shadows(walk(f, x))[0].high)
    got = rad.compensated(f, words=True)(x)
    value = np.asarray(got.hi, np.float64) + np.asarray(got.lo, np.float64)
    np.testing.assert_allclose(value, expected, 1e-12, 1e-13)
    assert got.hi.dtype == got.lo.dtype == np.float32


def test_argmax_goes_by_both_words():

    def third(x):
        return x / 3 + jnp.float32([0, 1e-9, 5e-10])

    x = jnp.ones(3, jnp.float32)
    assert jnp.argmax(third(x)) == 0
    assert rad.compensated(lambda x: jnp.argmax(third(x)))(x) == 1
    assert rad.compensated(lambda x: jnp.argmin(-third(x)))(x) == 1
    assert rad.compensated(lambda x: jnp.argmax(x))(jnp.float32([1, np.nan, 2])) == 1
    np.testing.assert_array_equal(rad.compensated(lambda x: jnp.argsort(third(x)))(x), [0, 2, 1])


# -------------------------------------------------------------------------------------- dtypes, special values


def test_a_narrower_cast_rounds():
    got = rad.compensated(lambda x: (x / 3).astype(jnp.bfloat16).astype(jnp.float32), words=True)(np.float32(1))
    assert got.hi == np.float32(jnp.bfloat16(1 / 3)) and got.lo == 0
    kept = rad.compensated(lambda x: lax.reduce_precision(x / 3, 8, 7), words=True)(np.float32(1))
    assert kept.hi == np.float32(jnp.bfloat16(1 / 3)) and kept.lo == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_carried_in_float32(dtype):
    x = jnp.asarray(1000, dtype)
    truth = mpmath.sqrt(1001) - mpmath.sqrt(1000)
    got = rad.compensated(difference_of_roots)(x)
    pair = rad.compensated(difference_of_roots, words=True)(x)
    assert got.dtype == pair.hi.dtype == pair.lo.dtype == dtype
    assert error(difference_of_roots(x), [truth]) > 0.01
    assert error(got, [truth]) <= float(jnp.finfo(dtype).eps) / 2
    assert error(pair, [truth]) <= float(jnp.finfo(dtype).eps) ** 2


def test_rounding_to_a_narrow_dtype_is_done_once():
    """1 + 2**-8 + 2**-40: rounded to float32 it is a tie of bfloat16."""
    x = jnp.float32([1, 1 + 2.0**-7, 1])
    y = jnp.float32([2.0**-8, 2.0**-8, 2.0**-8])
    z = jnp.float32([2.0**-40, -(2.0**-40), -(2.0**-40)])
    got = rad.compensated(lambda x, y, z: ((x + y) + z).astype(jnp.bfloat16))(x, y, z)
    np.testing.assert_array_equal(got.astype(jnp.float32), [1 + 2.0**-7, 1 + 2.0**-7, 1])


def test_large_integers_become_exact_words():
    n = jnp.int32([2**31 - 1, -(2**31), 123456789])
    got = rad.compensated(lambda n: n.astype(jnp.float32), words=True)(n)
    assert exactly(got) == [2**31 - 1, -(2**31), 123456789]
    back = rad.compensated(lambda n: n.astype(jnp.float32).astype(jnp.int32))(n)
    np.testing.assert_array_equal(back[1:], n[1:])


# ------------------------------------------------------------------------------------------ no rule, no effect


def test_what_has_no_rule_is_evaluated_plainly_and_listed():
    def f(x):
        return jax.scipy.special.gammaln(x) + x / 3

    x = jnp.float32([0.7, 2.5])
    np.testing.assert_allclose(rad.compensated(f)(x), f(x), rtol=1e-6)
    ((name, file, line),) = rad.compensated(f).plain_operations(x)
    assert name == "lgamma" and file == __file__ and line == f.__code__.co_firstlineno + 1
    assert rad.compensated(difference_of_roots).plain_operations(x) == ()
    factor = rad.compensated(lambda x: jnp.linalg.cholesky(jnp.diag(x)))
    assert [name for name, _, _ in factor.plain_operations(x)] == ["cholesky"]
    np.testing.assert_allclose(factor(x), np.diag(np.sqrt(x)), rtol=1e-6)


def test_complex_values_pass_plainly():
    def f(x):
        return jnp.abs(jnp.exp(1j * x) * x)

    assert rad.compensated(f)(jnp.float32(2.0)) == pytest.approx(2.0)
    assert {name for name, _, _ in rad.compensated(f).plain_operations(2.0)} >= {"exp", "mul"}


def test_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        f = rad.compensated(lambda x: jnp.sum(jnp.abs(x) ** 3 / 3) + jnp.where(x > 1, x, 0)[0])
        assert jnp.isfinite(jax.grad(f)(jnp.float32([1, 2])).sum())
