"""Functions in double-word arithmetic, against mpmath and fractions at 100 digits."""

from fractions import Fraction
from functools import cache, partial, reduce

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
from tests._walking import shadows, walk

mpmath.mp.dps = 100
ROUNDED = 2.0**-24  # a result that is right but for its last rounding


def exactly(x):
    """A double word, or an array, as rational numbers."""
    words = [x.hi, x.lo] if isinstance(x, DoubleWord) else [x]
    flat = [np.asarray(w).ravel() for w in words]
    return [sum(map(Fraction, map(float, numbers))) for numbers in zip(*flat)]


def error(got, truths):
    """The largest relative error."""
    worst = mpmath.mpf(0)
    for x, truth in zip(exactly(got), truths, strict=True):
        x, truth = mpmath.mpf(x.numerator) / x.denominator, mpmath.mpmathify(truth)
        worst = max(worst, abs(x - truth) / abs(truth) if truth else abs(x))
    return float(worst)


def as_mp(fractions):
    return [mpmath.mpf(q.numerator) / q.denominator for q in fractions]


def random_words(rng, low, high, dtype, n=60):
    x = rng.uniform(low, high, n).astype(dtype)
    rest = (x * rng.uniform(-0.25, 0.25, n) * np.finfo(dtype).eps).astype(dtype)
    return DoubleWord(jnp.asarray(x), jnp.asarray(rest))


# ---------------------------------------------------------------------------------------- digits of a function

ELEMENTARY = {
    "sqrt": (jnp.sqrt, mpmath.sqrt, (0, 100)),
    "rsqrt": (lax.rsqrt, lambda x: 1 / mpmath.sqrt(x), (0, 100)),
    "cbrt": (jnp.cbrt, mpmath.cbrt, (0, 100)),
    "exp": (jnp.exp, mpmath.exp, (-40, 40)),
    "exp2": (jnp.exp2, lambda x: mpmath.mpf(2) ** x, (-40, 40)),
    "expm1": (jnp.expm1, mpmath.expm1, (-1, 1)),
    "log": (jnp.log, mpmath.log, (0.5, 3)),
    "log1p": (jnp.log1p, mpmath.log1p, (-0.5, 3)),
    "sin": (jnp.sin, mpmath.sin, (-100, 100)),
    "cos": (jnp.cos, mpmath.cos, (-1e9, 1e9)),
    "tan": (jnp.tan, mpmath.tan, (-10, 10)),
    "tanh": (jnp.tanh, mpmath.tanh, (-5, 5)),
    "logistic": (jax.nn.sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), (-40, 40)),
    "sinh": (jnp.sinh, mpmath.sinh, (-5, 5)),
    "cosh": (jnp.cosh, mpmath.cosh, (-5, 5)),
    "asinh": (jnp.arcsinh, mpmath.asinh, (-5, 5)),
    "atanh": (jnp.arctanh, mpmath.atanh, (-1, 1)),
    "acos, acosh": (
        lambda x: jnp.arccos(x) + jnp.arccosh(2 + x),
        lambda x: mpmath.acos(x) + mpmath.acosh(2 + x),
        (0, 0.9),
    ),
    "asin": (jnp.arcsin, mpmath.asin, (-1, 1)),
    "atan": (jnp.arctan, mpmath.atan, (-5, 5)),
    "erf": (lax.erf, mpmath.erf, (-4, 4)),
    "cube": (lambda x: x**3, lambda x: x**3, (-5, 5)),
    "inverse square": (lambda x: x**-2, lambda x: x**-2, (1, 5)),
}
BINARY = {
    "add": (lax.add, lambda x, y: x + y),
    "sub": (lax.sub, lambda x, y: x - y),
    "mul": (lax.mul, lambda x, y: x * y),
    "div": (lax.div, lambda x, y: x / y),
    "atan2": (jnp.arctan2, mpmath.atan2),
}


CALLS = 81  # one shape for all tests: each function is compiled once
FUNCTIONS = {**ELEMENTARY, **{k: (*fs, (-9, 9)) for k, fs in BINARY.items()}}
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, np.finfo(np.float32).max, np.finfo(np.float32).tiny]


@cache
def in_words(name):
    return rad.compensated(FUNCTIONS[name][0], words=True)


def _arguments(name, dtype):
    rng = np.random.default_rng(0)
    return [random_words(rng, *FUNCTIONS[name][2], dtype, CALLS) for _ in range(2 if name in BINARY else 1)]


def _truths(name, args):
    return [FUNCTIONS[name][1](*xs) for xs in zip(*(as_mp(exactly(x)) for x in args))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_14_digits_in_float32(name):
    """Of values that have them; the plain function has 7."""
    args = _arguments(name, np.float32)
    bound = 5e-14 if name == "erf" else 1e-14
    assert error(in_words(name)(*args), _truths(name, args)) < bound
    assert error(FUNCTIONS[name][0](*(x.hi for x in args)), _truths(name, args)) > 1e5 * bound


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "sqrt", "exp", "log", "sin", "cos"])
def test_30_digits_in_float64(name):
    with jax.enable_x64(True):
        args = _arguments(name, np.float64)
        assert error(in_words(name)(*args), _truths(name, args)) < 1e-30
        assert error(FUNCTIONS[name][0](*(x.hi for x in args)), _truths(name, args)) > 1e-18


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values_are_those_of_the_plain_function(name):
    args = [v.ravel() for v in jnp.meshgrid(jnp.float32(SPECIAL), jnp.float32(SPECIAL))]
    args = args if name in BINARY else args[:1]
    got = in_words(name)(*(DoubleWord(x, jnp.zeros_like(x)) for x in args))
    value = np.asarray(FUNCTIONS[name][0](*args))
    if name == "asin":  # plain asin flushes the smallest normal float
        value = np.where(np.abs(args[0]) < 1e-30, args[0], value)
    np.testing.assert_allclose(got.hi, value, rtol=1e-5)
    np.testing.assert_array_equal(got.lo[~np.isfinite(value)], 0)
    zero = value == 0
    np.testing.assert_array_equal(np.signbit(got.hi[zero]), np.signbit(value[zero]))


def test_order_and_power_of_special_values():
    a, b = (v.ravel() for v in jnp.meshgrid(jnp.float32(SPECIAL), jnp.float32(SPECIAL)))

    def f(a, b):
        order = jnp.maximum(a, b), jnp.minimum(a, b), a < b, a != b, a >= b, jnp.max(a), jnp.floor(a), jnp.round(a)
        return a**b, lax.rem(a, b), jnp.sum(a), *order

    for got, plain in zip(rad.compensated(f)(a, b), f(a, b), strict=True):
        np.testing.assert_allclose(got, plain, rtol=1e-5)


def test_power():
    """Within a few u² (1 + |y log x|), u = 2**-24."""
    rng = np.random.default_rng(1)
    x, y = random_words(rng, 0.1, 9, np.float32), random_words(rng, -30, 30, np.float32)
    got = rad.compensated(jnp.power, words=True)(x, y)
    truths = [a**b for a, b in zip(*(as_mp(exactly(v)) for v in (x, y)))]
    assert error(got, truths) < 3 * 2.0**-48 * (1 + 30 * np.log(10))


def test_sine_of_huge_arguments():
    """Where float32 has no digit behind the point; both words count."""
    x = DoubleWord(jnp.float32([1e10, 3e38, -7e20, 2.0**127]), jnp.float32([100.5, 1e30, 12345.0, 0]))
    sine, cosine = rad.compensated(lambda x: (jnp.sin(x), jnp.cos(x)), words=True)(x)
    assert error(sine, [mpmath.sin(v) for v in as_mp(exactly(x))]) < 1e-14
    assert error(cosine, [mpmath.cos(v) for v in as_mp(exactly(x))]) < 1e-14


# ------------------------------------------------------------------------------------------ programs that fail


def difference_of_roots(x):
    return jnp.sqrt(x + 1) - jnp.sqrt(x)


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


# ------------------------------------------------------------------------------------- one primitive at a time


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
    third = lambda x: x / 3 + jnp.float32([0, 1e-9, 5e-10])  # noqa: E731
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
