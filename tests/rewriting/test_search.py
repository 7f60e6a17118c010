"""`stabilize(f, examples=...)`: forms measured on examples, against decimals that mpmath agrees with."""

import decimal

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import robustad as rad
from robustad.rewriting.expressions import _decimals
from robustad.rewriting.expressions._decimals import settled
from robustad.rewriting.expressions._derivative import derivative
from robustad.rewriting.expressions._expression import ONE, call, sub, var
from robustad.rewriting.expressions._measured import bits
from tests.rewriting._scalar import exact, expression, ulps

FUNCTIONS = {
    "exp": mp.exp, "expm1": mp.expm1, "log1p": mp.log1p, "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "atan": mp.atan,
    "asin": mp.asin, "acos": mp.acos, "sinh": mp.sinh, "cosh": mp.cosh, "tanh": mp.tanh, "asinh": mp.asinh,
    "acosh": mp.acosh, "atanh": mp.atanh, "logistic": lambda x: 1 / (1 + mp.exp(-x)), "sqrt": mp.sqrt,
    "cbrt": lambda x: mp.cbrt(abs(x)) * mp.sign(x), "erf": mp.erf, "erfc": mp.erfc, "log": mp.log,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_decimals(name):
    rng = np.random.default_rng(0)
    sizes = rng.uniform(-30, 3 if name in ("erf", "erfc", "exp", "expm1", "logistic", "sinh", "cosh") else 30, 12)
    checked = 0
    with mp.workdps(90):
        for x in [*(10**sizes * rng.choice([-1, 1], 12)), *rng.uniform(-1, 1, 12), 1.5]:
            want = FUNCTIONS[name](mp.mpf(x))
            with decimal.localcontext(prec=50, Emin=-(10**12), Emax=10**12):
                try:
                    got = _decimals._FUNCTIONS[name](decimal.Decimal(float(x)))
                except ArithmeticError:
                    assert isinstance(want, mp.mpc)
                    continue
            assert abs(mp.mpf(str(got)) - want) <= mp.mpf(10) ** -45 * abs(want)
            checked += 1
    assert checked >= 1


def test_digits_are_added_until_the_result_is_settled():
    e = sub(ONE, call("cos", var(0)))
    assert settled([e], [1e-140], np.float64) == [5e-281]
    assert settled([call("log", var(0))], [-1.0], np.float64) == [None]


def test_bits():
    one = np.ones(3, np.float32)
    np.testing.assert_allclose(bits(np.array([1, 1 + 2**-23, np.nan], np.float32), one), [0, 1, 32])
    assert bits(np.array([-0.0], np.float32), np.array([0.0], np.float32)) == 0


def points(rng, *columns):
    return [tuple(np.float32(x) for x in row) for row in zip(*columns)]


RNG = np.random.default_rng(3)
WIDE = 10 ** RNG.uniform(-4, 1, 48)
CASES = {
    "no rule knows it": (lambda x: 2 * jnp.arctan(jnp.exp(x)) - 1.5707964, points(RNG, WIDE)),
    "near a point": (
        lambda x: jnp.log(x) - x * np.float32(0.34657359) + jnp.sin(x) * 1e-3,
        points(RNG, 2 + 1e-4 * RNG.uniform(-1, 1, 48)),
    ),
    "two variables": (lambda x, y: jnp.tanh(x * y) - jnp.arctan(x) * y, points(RNG, WIDE, WIDE[::-1])),
}


@pytest.mark.parametrize("name", CASES)
def test_better_on_the_examples_and_nowhere_worse(name):
    f, examples = CASES[name]
    arity = len(examples[0])
    g = rad.stabilize(f, examples=examples)
    (told,) = g.rewrites(*examples[0])
    assert told.rule == "search" and "bits before" in told.reason
    e = expression(f, arity)
    orders = [e, *(derivative(e, i) for i in range(arity))]
    columns = np.array(examples, np.float32).T
    plain, ours = (
        np.stack([v, *s])
        for v, s in (jax.jit(jax.vmap(jax.value_and_grad(h, tuple(range(arity)))))(*columns) for h in (f, g))
    )
    worst = 0.0
    for k, order in enumerate(orders):
        for i, point in enumerate(examples):
            want = exact(order, point, 60)
            before = ulps(plain[k, i], want)
            worst = max(worst, before)
            assert ulps(ours[k, i], want) <= max(3, before)
    assert worst > 30


def test_what_is_right_is_left_alone():
    f = lambda x, y: jnp.sin(x) * jnp.exp(-y)  # noqa: E731
    assert not rad.stabilize(f, examples=points(RNG, WIDE, WIDE)).rewrites(1.0, 1.0)


def test_the_rules_stay_where_they_are_right():
    f = lambda x: (1 - jnp.cos(x)) / (x * x)  # noqa: E731
    assert "search" not in {r.rule for r in rad.stabilize(f, examples=points(RNG, WIDE)).rewrites(1.0)}


def test_arrays_under_every_transformation():
    def f(p):
        x = p["x"] @ p["x"]
        return jnp.sum(2 * jnp.arctan(jnp.exp(x * p["b"])) - 1.5707964)

    examples = [
        ({"x": RNG.normal(size=2).astype(np.float32), "b": RNG.normal(size=3).astype(np.float32) / 1e3},)
        for _ in range(9)
    ]
    g = rad.stabilize(f, examples=examples)
    assert [r.rule for r in g.rewrites(*examples[0])] == ["search"]
    x, b = (np.stack([e[0][k] for e in examples]).astype(np.float64) for k in "xb")
    want = (2 * np.arctan(np.exp((x * x).sum(1)[:, None] * b)) - np.float64(np.float32(1.5707964))).sum(1)
    got = jax.jit(jax.vmap(g))({"x": jnp.asarray(x, jnp.float32), "b": jnp.asarray(b, jnp.float32)})
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_it_is_deterministic():
    f, examples = CASES["no rule knows it"]
    first, second = (str(rad.stabilize(f, examples=examples).rewrites(1.0)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("examples", "error", "match"),
    [
        (3.0, TypeError, "`examples` has type float; expected a list of tuples"),
        ("abc", TypeError, "`examples` has type str"),
        (np.ones((3, 1)), TypeError, "tuple\\(p\\) for p in points"),
        ([], ValueError, "`examples` is empty"),
        ([1.0, 2.0], TypeError, r"`examples\[0\]` has type float; expected a tuple"),
        ([(1.0,), (float("nan"),)], ValueError, r"`examples\[1\]` holds a number that is not finite"),
    ],
)
def test_bad_examples(examples, error, match):
    with pytest.raises(error, match=match):
        rad.stabilize(jnp.sin, examples=examples)


def test_examples_of_another_structure_than_the_call():
    with pytest.raises(TypeError, match="Give every example the structure"):
        rad.stabilize(lambda x, y: x * y, examples=[(1.0,)])(1.0, 2.0)
    with pytest.raises(ValueError, match=r"has shape \(2,\); expected \(\)"):
        rad.stabilize(jnp.sin, examples=[(np.ones(2),)])(1.0)
