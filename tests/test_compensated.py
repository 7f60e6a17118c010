"""Programs in double-word arithmetic: what fails plainly, derivatives, transformations."""

from fractions import Fraction
from functools import partial, reduce

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import robustad as rad
from robustad import stability
from robustad.arithmetic._double_word import DoubleWord
from tests._double_words import ROUNDED, as_mp, difference_of_roots, error, exactly

# ------------------------------------------------------------------------------------------ programs that fail


def logistic_map(x, n=12):
    return lax.scan(lambda x, _: (4 * x * (1 - x), None), x, None, n)[0]


def determinant(a):
    def eliminate(k, state):
        a, product = state
        row = a[k] / a[k, k]
        below = jnp.arange(a.shape[0])[:, None] > k
        return jnp.where(below, a - a[:, k, None] * row, a), product * a[k, k]

    return lax.fori_loop(0, a.shape[0], eliminate, (a, jnp.ones((), a.dtype)))[1]


def muller(steps):
    """Kahan's and Muller's recurrence: tends to 6, but any rounding takes it to 100."""
    eleven = jnp.asarray(11.0)

    def step(state, _):
        before, x = state
        return (x, 111 - 1130 / x + 3000 / (x * before)), None

    return lax.scan(step, (eleven / 2, 61 / eleven), None, steps)[0][1]


def horner(x):
    """(x - 1)⁶, expanded."""
    return reduce(lambda total, c: total * x + c, (1.0, -6.0, 15.0, -20.0, 15.0, -6.0, 1.0))


def exact_dot():
    """Two vectors whose dot product cancels by 4 digits."""
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal(100).astype(np.float32) for _ in range(2))
    y = np.append(y, np.float32(1))
    big = np.float32(np.round(-np.dot(x.astype(float), y.astype(float)[:-1]), 2))
    x = np.append(x, big)
    return x, y, sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x, y))


def _elimination(a):
    a = [[Fraction(float(v)) for v in row] for row in a]
    product = Fraction(1)
    for k in range(len(a)):
        product *= a[k][k]
        for i in range(k + 1, len(a)):
            factor = a[i][k] / a[k][k]
            a[i] = [u - factor * v for u, v in zip(a[i], a[k])]
    return product


def _cases():
    hilbert = (1 / (1 + np.add.outer(range(5), range(5)))).astype(np.float32)
    x, y, dot = exact_dot()
    orbit = Fraction(float(np.float32(0.3)))
    for _ in range(12):
        orbit = 4 * orbit * (1 - orbit)
    near = Fraction(float(np.float32(1.3)))
    return {
        "roots": (difference_of_roots, (np.float32(1e6),), mpmath.sqrt(1000001) - 1000),
        "orbit": (logistic_map, (np.float32(0.3),), orbit),
        "determinant": (determinant, (hilbert,), _elimination(hilbert)),
        "polynomial": (horner, (np.float32(1.3),), (near - 1) ** 6),
        "dot": (jnp.dot, (x, y), dot),
        "sum": (jnp.sum, (np.float32([1, 1e9, 1e-3, -1e9]),), 1 + Fraction(float(np.float32(1e-3)))),
        "variance": (lambda x: jnp.mean(x * x) - jnp.mean(x) ** 2, (np.float32([1000, 1001, 1002]),), Fraction(2, 3)),
    }


CASES = _cases()


@pytest.mark.parametrize("name", CASES)
def test_what_fails_plainly_is_right(name):
    f, args, truth = CASES[name]
    (truth,) = [truth] if isinstance(truth, mpmath.mpf) else as_mp([truth])
    assert error(jax.jit(f)(*args), [truth]) > 16 * ROUNDED
    assert error(rad.compensated(f)(*args), [truth]) <= 1.01 * ROUNDED


def test_a_recurrence_in_float64():
    before, x = Fraction(11, 2), Fraction(61, 11)
    for _ in range(18):
        before, x = x, 111 - 1130 / x + 3000 / (x * before)
    with jax.enable_x64(True):
        assert muller(18) > 50
        assert error(rad.compensated(muller)(18), as_mp([x])) < 2.0**-26


# ---------------------------------------------------------------------------------------------- derivatives


def cancelling(x):
    return jnp.sum(jnp.log(1 + jnp.exp(x)) - x)


def test_derivatives_in_both_orders_of_composition():
    x = np.float32(1e6)
    m = mpmath.mpf(10) ** 6
    first = (1 / mpmath.sqrt(m + 1) - 1 / mpmath.sqrt(m)) / 2
    second = -(1 / mpmath.sqrt(m + 1) ** 3 - 1 / mpmath.sqrt(m) ** 3) / 4
    g = rad.compensated(difference_of_roots)
    assert error(jax.grad(difference_of_roots)(x), [first]) > 1e-2
    assert error(rad.compensated(jax.grad(difference_of_roots))(x), [first]) <= 1.01 * ROUNDED
    assert error(jax.grad(g)(x), [first]) <= 1.01 * ROUNDED
    assert error(jax.jvp(g, (x,), (np.float32(1),))[1], [first]) <= 1.01 * ROUNDED
    assert error(jax.jacfwd(jax.jacrev(g))(x), [second]) <= 1.01 * ROUNDED
    assert error(jax.jacrev(jax.jacfwd(g))(x), [second]) <= 1.01 * ROUNDED


def test_gradient_of_a_cancelling_loss():
    x = np.float32([15.0, 12.5])
    truths = [-1 / (1 + mpmath.exp(mpmath.mpf(float(v)))) for v in x]
    assert error(jax.grad(cancelling)(x), truths) > 1e-3
    assert error(rad.compensated(jax.grad(cancelling))(x), truths) < 1e-6


def test_derivatives_of_a_program_with_everything():
    """Against float64: scan, cond, gather, a matrix product, integers and a closed-over parameter."""

    def loss(scale, params, tokens):
        h = params["embedding"][tokens]

        def step(h, _):
            return lax.cond(h[0, 0] > 0, jnp.square, jnp.sqrt, jnp.abs(h @ params["w"] * scale)), jnp.sum(h)

        h, sums = lax.scan(jax.checkpoint(step), h, None, 2)
        return jnp.mean(h**2) + jnp.sum(sums) * 1e-2

    rng = np.random.default_rng(5)
    params = {
        "embedding": rng.standard_normal((4, 3)).astype(np.float32),
        "w": rng.standard_normal((3, 3)).astype(np.float32),
    }
    tokens = np.int32([0, 1, 1, 3, 1])
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(np.float64), params)
        expected = jax.device_get(jax.grad(loss, (0, 1))(np.float64(0.5), wide, tokens))
    args = np.float32(0.5), params, tokens
    got = jax.grad(lambda s, p: rad.compensated(lambda t: loss(s, p, t))(tokens), (0, 1))(*args[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), got, expected)


def test_the_derivative_of_a_users_rule_is_theirs():
    @jax.custom_vjp
    def f(x):
        return x * x

    f.defvjp(lambda x: (f(x), x), lambda x, ct: (ct * 7 * x,))
    assert jax.grad(rad.compensated(f))(2.0) == 14.0
    assert rad.compensated(jax.grad(f))(2.0) == 14.0


def test_words_in_and_out_of_a_derivative():
    x = DoubleWord(jnp.float32(3), jnp.float32(1e-9))
    f = rad.compensated(lambda x: x * x, words=True)
    slopes = jax.grad(lambda x: f(x).hi)(x)
    assert slopes.hi == slopes.lo == 6
    assert jax.grad(lambda x: f(x).lo)(x).hi == 0  # as for two_sum


# ------------------------------------------------------------------------------------------- transformations


def test_vmap_and_jit():
    x = jnp.float32([1e5, 1e6, 1e7])
    f = rad.compensated(difference_of_roots)
    expected = f(x)
    np.testing.assert_array_equal(jax.vmap(f)(x), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(f))(x), expected)
    np.testing.assert_array_equal(rad.compensated(jax.vmap(difference_of_roots))(x), expected)
    slopes = jnp.stack([jax.grad(f)(v) for v in x])
    np.testing.assert_array_equal(jax.vmap(jax.grad(f))(x), slopes)
    np.testing.assert_array_equal(jax.vmap(partial(jax.jvp, f))((x,), (jnp.ones(3),))[1], slopes)


def test_signature_and_structure_are_kept():
    def f(x, n, *, mode="square", table):
        """Doc."""
        return {"y": x**n if mode == "square" else x, "n": jnp.arange(n), "t": (table["a"] + 1, None)}

    g = rad.compensated(f)
    assert g.__name__ == "f" and g.__doc__ == "Doc."
    got = g(2.0, 3, table={"a": np.float32([1, 2])})
    assert got["y"] == 8 and got["n"].dtype == jnp.int32 and got["t"][1] is None
    assert jax.tree.structure(got) == jax.tree.structure(f(2.0, 3, table={"a": 1.0}))


def test_under_shard_map_the_sum_over_devices_is_compensated():
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
    x = jnp.float32([1, 1e9, 1e-3, -1e9])

    def total(x):
        spec = PartitionSpec("i")
        return jax.shard_map(lambda x: lax.psum(x[0], "i"), mesh=mesh, in_specs=spec, out_specs=PartitionSpec())(x)

    assert total(x) != np.float32(1.001)
    assert rad.compensated(total)(x) == np.float32(1.001)


def test_a_users_error_free_transform_stays_right():
    def two_sum(a, b):
        s = a + b
        v = s - a
        return s, (a - (s - v)) + (b - v)

    def kahan(x):
        def step(state, v):
            total, lost = state
            y = v - lost
            t = total + y
            return (t, (t - total) - y), None

        return lax.scan(step, (jnp.float32(0), jnp.float32(0)), x)[0][0]

    a, b = np.float32(1), np.float32(1e-12)
    truth = Fraction(float(a)) + Fraction(float(b))
    for transform in (two_sum, stability.two_sum):
        s, e = rad.compensated(transform, words=True)(a, b)
        assert exactly(s)[0] + exactly(e)[0] == pytest.approx(truth, rel=1e-14)
    x = np.float32([1, 1e9, 1e-3, -1e9])
    assert rad.compensated(kahan)(x) == np.float32(1.001)


def test_a_part_in_64_bits_is_walked_in_64_bits():
    """`logsumexp` near 0 and `compensated_polyval` turn float64 on for themselves; their programs hold it."""
    x = jnp.float32([-0.5, np.log1p(-np.exp(-0.5))])
    exact = [mpmath.mpf(float(v)) for v in x]
    truth = mpmath.log(mpmath.fsum(map(mpmath.exp, exact)))
    shares = [mpmath.exp(v - truth) for v in exact]
    f = rad.compensated(stability.logsumexp)
    assert error(jax.scipy.special.logsumexp(x), [truth]) > 0.1
    assert f(x).dtype == jnp.float32 and error(f(x), [truth]) <= 1.01 * ROUNDED
    assert error(jax.grad(f)(x), shares) <= 1.01 * ROUNDED
    assert error(rad.compensated(jax.grad(stability.logsumexp))(x), shares) <= 1.01 * ROUNDED
    p, at = jnp.float32([1, -3, 3, -1]), jnp.float32(1.01)
    root = mpmath.mpf(float(at)) - 1
    assert error(rad.compensated(stability.compensated_polyval)(p, at), [root**3]) <= 1.01 * ROUNDED
