"""Formats against jnp.finfo and the published tables; error bounds against observed errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad import stability
from tests._ill_conditioned import exact_sum

# p, exponent bits, largest, smallest normal, smallest; IEEE 754-2019, table 3.5; Micikevicius et al. 2022, table 1.
TABLE = {
    "float16": (11, 5, 65504.0, 2.0**-14, 2.0**-24),
    "bfloat16": (8, 8, (2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133),
    "float32": (24, 8, (2 - 2.0**-23) * 2.0**127, 2.0**-126, 2.0**-149),
    "float64": (53, 11, (2 - 2.0**-52) * 2.0**1023, 2.0**-1022, 2.0**-1074),
    "float8_e4m3fn": (4, 4, 448.0, 2.0**-6, 2.0**-9),
    "float8_e5m2": (3, 5, 57344.0, 2.0**-14, 2.0**-16),
}


@pytest.mark.parametrize("name", TABLE)
def test_formats_are_those_of_the_tables_and_of_finfo(name):
    info, expected = stability.format_info(name), jnp.finfo(name)
    assert (info.p, info.exponent_bits, info.max, info.min_normal, info.min_subnormal) == TABLE[name]
    assert info.u == float(expected.eps) / 2
    assert info.max == float(expected.max) and info.min_normal == float(expected.smallest_normal)
    if not name.startswith("float8"):
        assert info.digits == expected.precision


def test_formats_refuse_what_is_not_a_real_float():
    for dtype in (jnp.int32, jnp.complex64, bool):
        with pytest.raises(TypeError, match="real floating dtype"):
            stability.format_info(dtype)


def by_one(x):
    return jax.lax.scan(lambda s, v: (s + v, None), jnp.zeros((), x.dtype), x)[0]


SUMS = {
    "recursive": by_one,
    "pairwise": stability.pairwise_sum,
    "kahan": stability.kahan_sum,
    "compensated": stability.compensated_sum,
}


@pytest.mark.parametrize("method", SUMS)
def test_the_observed_error_is_below_the_bound(method):
    random = np.random.default_rng(0)
    run = jax.jit(SUMS[method])
    worst = 0.0
    for draw in (
        random.standard_normal,
        random.random,
        lambda n: random.standard_normal(n) * 2.0 ** random.integers(0, 30, n),
    ):
        x = draw(3000).astype(np.float32)
        error = abs(float(exact_sum([run(x)]) - exact_sum(x)))
        bound = float(stability.sum_error_bound(x, method))
        assert error <= bound
        worst = max(worst, error / bound)
    assert worst > 1e-4  # not vacuous: within four decades, for errors that are random and a bound that is not


def test_the_bounds_follow_their_formulas():
    x, u = np.full(1000, 0.5, np.float32), 2.0**-24
    expected = {
        "recursive": 999 * u * 500,
        "pairwise": 10 * u * 500,
        "kahan": 2 * u * 500,
        "compensated": u * 500 + (999 * u) ** 2 * 500,
    }
    for method, value in expected.items():
        assert float(stability.sum_error_bound(x, method)) == pytest.approx(value, rel=1e-3)
    assert stability.sum_error_bound(jnp.ones((3, 4)), "pairwise", axis=0).shape == (4,)
    assert np.isinf(stability.sum_error_bound(jnp.ones(4096, jnp.float16), "recursive"))
    assert stability.sum_error_bound(jnp.ones(0), "compensated") == 0
    with pytest.raises(ValueError, match="`method`"):
        stability.sum_error_bound(x, "naive")
    with pytest.raises(TypeError, match="`x` has dtype complex64; expected real numbers"):
        stability.sum_error_bound(jnp.ones(2, jnp.complex64), "kahan")
