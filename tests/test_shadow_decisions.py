"""The twin follows the working program's decisions: orders, pivots, signs, branches, roundings."""

from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests._operands import cast, positive_definite, square
from tests._walking import assert_close, assert_same_bits, walk

#
# In each, `rounded` casts to bfloat16 and back: the working values are tied or reordered, the twins are not.


def rounded(x: Any) -> Any:
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def swallowed(x: Any) -> Any:
    """0 in the working program for |x| < 8, x in the twin."""
    return rounded(x + 2048) - 2048


near = jnp.asarray([1.0, 1.002, 0.999, 1.001, 3.0, -2.0], jnp.float32)  # the first four are 1 in bfloat16
exact = np.asarray(near, np.float64)


def test_rounding_keeps_the_twin() -> None:
    assert_same_bits(walk(rounded, near).working, rounded(near))
    assert_close(walk(rounded, near).high, exact)
    assert_close(walk(lambda x: lax.reduce_precision(x, 5, 3), near).high, exact)


def test_sort_and_its_permutation_follow() -> None:
    order = [5, 0, 1, 2, 3, 4]  # stable, ties as they stood; the twins alone would be sorted otherwise
    walked = walk(lambda x: jnp.sort(rounded(x)), near)
    assert_close(walked.high, exact[order])
    assert not np.all(np.diff(walked.high) >= 0)
    assert_close(walk(lambda x: x[jnp.argsort(rounded(x))], near).high, exact[order])
    carried = walk(lambda x: lax.sort((rounded(x), 2 * x), num_keys=1), near)
    assert_close(carried[1].high, 2 * exact[order])


def test_top_k_follows() -> None:
    values, places = walk(lambda x: lax.top_k(rounded(x), 3), near)
    np.testing.assert_array_equal(places.working, [4, 0, 1])
    assert_close(values.high, exact[[4, 0, 1]])


def test_argmax_follows() -> None:
    def f(x: Any) -> Any:
        return x[jnp.argmax(rounded(x[:4]))], x[jnp.argmin(rounded(x[:4]))]

    assert_close([v.high for v in walk(f, near)], exact[[0, 0]])


@pytest.mark.parametrize("f,plain", [(jnp.max, np.max), (jnp.min, np.min)])
def test_reduced_extremum_is_among_the_elements_taken(f: Any, plain: Any) -> None:
    """The third element is off by all of its value; the twin of the extremum is its twin, not the largest."""

    sign = -1 if f is jnp.min else 1

    def g(x: Any) -> Any:  # times sign: 0.25, 0.25, 0.5 in the working program; 0.25, 0.25, 0 in the twin
        return f(sign * jnp.stack([x / 2, x / 2, x - swallowed(x)]))

    walked = walk(g, jnp.float32(0.5))
    assert (float(walked.working), float(walked.high)) == (sign * 0.5, 0.0)
    tied = walk(lambda x: f(rounded(x[:4])), near)
    assert_close(tied.high, plain(exact[:4]))


def test_reduced_extremum_of_nan() -> None:
    walked = walk(lambda x: jnp.max(jnp.log(x)), jnp.asarray([1.0, -1.0, 2.0]))
    assert np.isnan(walked.working) and np.isnan(walked.high)
    recovered = walk(lambda x: jnp.max(x * 1e30 * 1e30 - x * 1e30 * 1e30), jnp.ones(2))
    assert np.isnan(recovered.working)
    assert_close(recovered.high, 0.0)


def test_maximum_takes_the_working_operand() -> None:
    def f(x: Any) -> Any:
        wrong = swallowed(x)
        return jnp.maximum(wrong, 0.5), jnp.minimum(0.5, wrong), jnp.maximum(wrong, 0.0)

    larger, smaller, tied = walk(f, jnp.float32(0.75))
    assert (float(larger.working), float(larger.high)) == (0.5, 0.5)
    assert (float(smaller.working), float(smaller.high)) == (0.0, 0.75)
    assert (float(tied.working), float(tied.high)) == (0.0, 0.75)


def test_select_and_branch_follow() -> None:
    def f(x: Any) -> Any:
        wrong = swallowed(x)
        chosen = lax.cond(wrong > 0, lambda v: 2 * v, lambda v: 3 * v, x)
        return jnp.where(wrong > 0, 2 * x, 3 * x), chosen

    for value in walk(f, jnp.float32(0.75)):
        assert (float(value.working), float(value.high)) == (2.25, 2.25)


@pytest.mark.parametrize("f", [jnp.floor, jnp.ceil, jnp.round, jnp.sign])
def test_rounding_to_integers_follows(f: Any) -> None:
    def below(x: Any) -> Any:  # 2 in float32, just below or above in the twin
        return f((x - 2e-9) if f is not jnp.sign else swallowed(x))

    walked = walk(below, jnp.float32(2.0) if f is not jnp.sign else jnp.float32(0.75))
    assert_same_bits(np.float64(walked.working), walked.high)


def test_integers_cast_from_floats_follow() -> None:
    walked = walk(lambda x: (x - 2e-9).astype(jnp.int32).astype(jnp.float32), jnp.float32(2.0))
    assert (float(walked.working), float(walked.high)) == (2.0, 2.0)


def test_remainder_follows_the_quotient() -> None:
    """6 - 2e-9 modulo 2 is nearly 2, but the working program, which holds 6, took the quotient 3."""
    walked = walk(lambda x: lax.rem(x - jnp.float32(2.0**-30), jnp.float32(2)), jnp.float32(6.0))
    assert float(walked.working) == 0.0
    assert float(walked.high) == -(2.0**-30)


@pytest.mark.parametrize("f", [lambda x: jnp.clip(x, 1.0, 1.5), lambda x: lax.clamp(1.0, x, 1.5)], ids=["jnp", "lax"])
def test_clamp_follows(f: Any) -> None:
    """What the working program left alone stays, though its twin may be out of bounds: the derivative is 1 there."""
    walked = walk(lambda x: f(rounded(x) * jnp.float32(1.25)), near)
    kept = exact * 1.25
    assert_close(walked.high, np.where(kept > 1.5, 1.5, np.where(kept < 1, 1.0, kept)))
    outside = walk(lambda x: f(swallowed(x)), jnp.float32(1.25))
    assert (float(outside.working), float(outside.high)) == (1.0, 1.0)
    inside = walk(lambda x: f(1.25 + swallowed(x)), jnp.float32(1.0))
    assert (float(inside.working), float(inside.high)) == (1.25, 2.25)


def test_pooling_derivative_goes_where_the_working_program_sent_it() -> None:
    def f(x: Any) -> Any:
        pooled = lax.reduce_window(rounded(x), -jnp.inf, lax.max, (4,), (4,), "VALID")
        return jnp.sum(pooled * 1.5)

    walked = walk(jax.grad(f), near[:4])
    np.testing.assert_array_equal(walked.working, [1.5, 0, 0, 0])
    np.testing.assert_array_equal(walked.high, [1.5, 0, 0, 0])


def test_lu_pivots_follow() -> None:
    """The first column is a tie in bfloat16, and the twin alone would pivot otherwise."""
    a = jnp.asarray([[1.0, 2.0, 0.5], [1.002, -1.0, 4.0], [0.25, 3.0, 1.0]], jnp.float32)
    factors, _, order = walk(lambda a: lax.linalg.lu(rounded(a)), a)
    packed, permuted = np.asarray(factors.high), np.asarray(a, np.float64)[np.asarray(order.working)]
    assert np.asarray(order.working)[0] == 0
    assert_close((np.tril(packed, -1) + np.eye(3)) @ np.triu(packed), permuted)
    assert_close(factors.high, factors.working, 0.02)


def test_lu_of_a_singular_matrix_stays_finite() -> None:
    a = jnp.asarray([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 0.0, 1.0]])
    factors, _, _ = walk(lax.linalg.lu, a)
    np.testing.assert_array_equal(factors.high, factors.working)


def test_qr_pivots_follow() -> None:
    a = jnp.asarray([[1.0, 1.002, 0.25], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]) + jnp.eye(3) / 64
    q, r, order = walk(lambda a: lax.linalg.qr(rounded(a), pivoting=True), a)
    assert_close(q.high @ r.high, np.asarray(a, np.float64)[:, np.asarray(order.working)])
    assert_close(q.high, q.working, 0.1)


SYMMETRIC = jnp.asarray(positive_definite() - np.eye(4), jnp.float32)
GENERAL = jnp.asarray(square, jnp.float32)


@pytest.mark.parametrize("dtype", ["f32", "c64"])
def test_signs_of_factors_follow(dtype: str) -> None:
    """eigh, svd and qr leave a sign (phase) free; each factor must be near the working one and yet exact."""
    a = cast(square, dtype)
    wide = np.asarray(a, np.complex128)
    values, vectors = walk(lambda a: jnp.linalg.eigh(a + jnp.conj(a.T), symmetrize_input=False), a)
    assert_close(vectors.high, vectors.working, 1e-5)
    assert_close((wide + wide.conj().T) @ vectors.high, vectors.high * values.high)
    u, s, vt = walk(lambda a: jnp.linalg.svd(a, full_matrices=False), a)
    assert_close(u.high, u.working, 1e-5)
    assert_close(vt.high, vt.working, 1e-5)
    assert_close((u.high * s.high) @ vt.high, wide)
    q, r = walk(jnp.linalg.qr, a)
    assert_close(q.high, q.working, 1e-5)
    assert_close(q.high @ r.high, wide)
    values, left, right = walk(lax.linalg.eig, a)
    for value in (values, left, right):
        assert_close(value.high, value.working, 1e-5)
    assert_close(wide @ right.high, right.high * values.high)
