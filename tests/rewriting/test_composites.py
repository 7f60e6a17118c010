"""Library functions are recognised by their programs, whatever their static arguments, and get accurate twins."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.scipy import special
from jax.scipy.stats import norm as normal

from robustad.rewriting.twins._composites import composite
from robustad.rewriting.twins._shares import logsumexp, softmax
from tests._subset import thinned
from tests.rewriting._walk import names, twinned

mp = mpmath.mp
X = jnp.linspace(0.1, 0.9, 12).reshape(3, 4)
MASK = jnp.arange(12).reshape(3, 4) % 3 > 0

RECOGNISED = {
    "log_softmax": [
        jax.nn.log_softmax,
        lambda x: jax.nn.log_softmax(x, 0),
        lambda x: jax.nn.log_softmax(x, (0, 1)),
        jax.vmap(jax.nn.log_softmax),
    ],
    "logmeanexp": [jax.nn.logmeanexp, lambda x: jax.nn.logmeanexp(x, 1, keepdims=True)],
    "norm": [
        jnp.linalg.norm,
        lambda x: jnp.linalg.norm(x, axis=1, keepdims=True),
        lambda x: jnp.linalg.norm(x, "fro"),
        lambda x: jnp.linalg.norm(x, 2, axis=0),
        lambda x: jnp.linalg.norm(x, 3, axis=0),
        lambda x: jnp.linalg.norm(x + 1j * x, axis=0),
        jax.vmap(jnp.linalg.norm, in_axes=1),
    ],
    "std": [
        jnp.std,
        lambda x: jnp.std(x, 1, ddof=1, keepdims=True),
        lambda x: jnp.std(x, where=MASK),
        jax.vmap(jnp.std),
    ],
    "var": [lambda x: jnp.var(x, (0, 1)), lambda x: jnp.var(x, 0, ddof=2)],
    "nanstd": [jnp.nanstd, lambda x: jnp.nanstd(x, 0, ddof=1)],
    "nanvar": [lambda x: jnp.nanvar(x, 0, ddof=1, keepdims=True)],
    "standardize": [jax.nn.standardize, lambda x: jax.nn.standardize(x, (0, 1), epsilon=1e-3)],
    "softplus": [jax.nn.softplus, jax.nn.log_sigmoid],
    "logaddexp": [
        lambda x: jnp.logaddexp(x, 2 * x),
        lambda x: jnp.logaddexp(x, 0.0),
        lambda x: jax.vmap(jnp.logaddexp, (0, None))(x, x[0]),
        lambda x: jax.vmap(jnp.logaddexp, (0, 0))(x, x[:, 0]),
    ],
    "logaddexp2": [lambda x: jnp.logaddexp2(x, 2 * x)],
    "silu": [jax.nn.silu],
    "hypot": [lambda x: jnp.hypot(x, 2 * x)],
    "sinc": [jnp.sinc],
    "xlogy": [lambda x: special.xlogy(x, 2 * x)],
    "xlog1py": [lambda x: special.xlog1py(x, 2 * x)],
    "logit": [special.logit],
    "log_ndtr": [special.log_ndtr, normal.logcdf],
    "log1mexp": [jax.nn.log1mexp],
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_recognised_and_equal_where_the_plain_form_is_right(name):
    for f in RECOGNISED[name]:
        assert name in names(f, X), name

        @jax.jit
        def run(x, f=f):
            return [(g(x), jax.grad(lambda x, g=g: g(x).sum())(x)) for g in (twinned(f), f)]

        (value, slope), (plain_value, plain_slope) = run(X)
        np.testing.assert_allclose(value, plain_value, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(slope, plain_slope, rtol=2e-4, atol=2e-6)


def test_the_users_own_functions_are_left_alone():
    def norm(x):
        return 2 * jnp.sqrt((x * x).sum())

    def softplus(x):
        return jnp.logaddexp(x, 0.0) + 1

    @jax.custom_jvp
    def silu(x):
        return x * jax.nn.sigmoid(x)

    silu.defjvp(lambda primals, tangents: (silu(*primals), 7 * tangents[0]))
    for f in (norm, softplus):
        eqn = jax.make_jaxpr(jax.jit(f))(X).eqns[0]
        assert eqn.params["name"] == f.__name__ and composite(eqn) is None
    assert composite(jax.make_jaxpr(silu)(X).eqns[0]) is None
    np.testing.assert_array_equal(jax.grad(lambda x: twinned(silu)(x).sum())(X), jnp.full_like(X, 7))
    assert names(lambda x: jnp.linalg.norm(x, 1, axis=0), X) == []


@pytest.mark.parametrize("compiled", thinned([True, False], 2))
def test_singular_points(compiled):
    """P3, P4, P5, P8, P25, and members of their classes."""
    run = jax.jit if compiled else lambda f: f

    def gradient(f, x):
        return run(jax.grad(lambda x: twinned(f)(x).sum()))(jnp.asarray(x))

    zero = np.zeros(2, np.float32)
    np.testing.assert_array_equal(gradient(lambda x: jnp.linalg.norm(x) ** 2, zero), zero)
    np.testing.assert_array_equal(gradient(lambda a: jnp.linalg.norm(a * zero), 1.3), 0)
    np.testing.assert_array_equal(gradient(lambda x: jnp.linalg.norm(x, axis=1), np.zeros((2, 2), np.float32)), 0)
    np.testing.assert_array_equal(gradient(lambda x: jnp.linalg.norm(x, 3), zero), zero)
    np.testing.assert_allclose(gradient(jnp.linalg.norm, [3e-20, 4e-20]), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(gradient(jnp.linalg.norm, [3e30, 4e30]), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(gradient(jnp.std, [1.0, 1.0]), zero)
    np.testing.assert_array_equal(gradient(jnp.nanstd, [1.0, np.nan, 1.0]), np.zeros(3))
    np.testing.assert_array_equal(gradient(lambda x: jnp.std(x, 0), np.ones((3, 2), np.float32)), 0)
    np.testing.assert_array_equal(gradient(lambda x: jnp.hypot(x, 0 * x), 0.0), 0)
    mask = jnp.array([True, True, False])
    np.testing.assert_allclose(
        gradient(lambda x: jax.nn.log_softmax(x, where=mask)[0], [1.0, 1.0, 100.0]), [0.5, -0.5, 0.0]
    )
    lows = jnp.array([-jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(gradient(lambda x: jnp.logaddexp(x, lows), lows), zero)
    for f, curvature in ((lambda x: jnp.logaddexp(x, -x), 1.0), (lambda x: jnp.logaddexp(2 * x + 1, 1.0), 1.0)):
        np.testing.assert_allclose(jax.hessian(twinned(f))(0.0), curvature, rtol=1e-6)  # where the arguments are equal
    assert gradient(special.entr, 0.0) == jnp.inf
    assert gradient(lambda y: special.xlogy(0.0, y), 0.0) == 0
    assert np.isnan(jax.grad(jnp.linalg.norm)(zero)).all() and np.isnan(jax.grad(jnp.std)(jnp.ones(2))).all()


def test_tails_in_float64():
    """P28 to P31, P35, P36."""
    with jax.enable_x64(True):

        def at(f, x, order=1):
            f = twinned(f)
            for _ in range(order):
                f = jax.grad(f)
            return jax.jit(f)(jnp.float64(x))

        e = {x: float(mp.exp(x)) for x in (-40, -37.43)}
        p = e[-37.43] / (1 + e[-37.43]) ** 2
        for got, truth in [
            (at(jnp.expm1, -40), e[-40]),
            (at(jax.nn.elu, -40), e[-40]),
            (at(jax.nn.selu, -700), 1.0507009873554804934 * 1.6732632423543772848 * float(mp.exp(-700))),
            (at(jax.nn.celu, -40), e[-40]),
            (at(jax.nn.sigmoid, 37.43), p),
            (at(jax.nn.softplus, 37.43, 2), p),
            (at(jax.nn.log_sigmoid, -37.43, 2), -p),
            (at(jax.nn.silu, -709), float(-708 * mp.exp(-709))),
            (at(jnp.tanh, 19.5), float(mp.sech(19.5) ** 2)),
            (at(jnp.exp2, 1024.0000000000002), float(mp.log(2) * mp.mpf(2) ** mp.mpf(1024.0000000000002))),
        ]:
            np.testing.assert_allclose(got, truth, rtol=1e-12)
        f = twinned(lambda x: jax.nn.log_softmax(x)[0])
        x = jnp.array([37.43, 0.0])
        q = e[-37.43] / (1 + e[-37.43])
        np.testing.assert_allclose(jax.grad(f)(x), [q, -q], rtol=1e-12)
        np.testing.assert_allclose(f(x), float(-mp.log1p(mp.exp(-37.43))), rtol=1e-12)
        np.testing.assert_allclose(jax.jit(jax.hessian(f))(x), [[-p, p], [p, -p]], rtol=1e-12)
        assert jax.grad(lambda x: jax.nn.log_softmax(x)[0])(x)[0] == 0


def test_shares():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(0, 4, (2, 4))
        x[1, 2] = x[1, 3] = 9.0  # a tie
        for ours, plain in [
            (lambda x: softmax(x, (-1,)), jax.nn.softmax),
            (lambda x: logsumexp(x, (-1,)), lambda x: jax.nn.logsumexp(x, -1)),
            (twinned(jax.nn.log_softmax), jax.nn.log_softmax),
        ]:
            got, truth = (jax.jit(lambda x, g=g: (g(x), jax.jacrev(g)(x), jax.hessian(g)(x)))(x) for g in (ours, plain))
            for one, other in zip(got, truth):
                np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-14)
        confident = jnp.array([40.0, 0.0, -1.0])
        p, slope = softmax(confident, (0,)), jax.jacrev(lambda x: softmax(x, (0,)))(confident)
        rest = float(mp.exp(-40) + mp.exp(-41))
        np.testing.assert_allclose(slope[0, 0], rest / (1 + rest) ** 2, rtol=1e-12)
        np.testing.assert_allclose(p[1:], [float(mp.exp(-40)), float(mp.exp(-41))], rtol=1e-12)
    masked = jnp.array([-jnp.inf, 1.0, -jnp.inf])
    np.testing.assert_array_equal(softmax(masked, (0,)), [0, 1, 0])
    assert jnp.isfinite(jax.jacobian(lambda x: softmax(x, (0,)))(masked)).all()
    nothing = jnp.full(3, -jnp.inf)
    assert logsumexp(nothing, (0,)) == -jnp.inf and (jax.grad(lambda x: logsumexp(x, (0,)))(nothing) == 0).all()


def test_standardization_does_not_cancel():
    x = (1e4 + jnp.arange(4.0))[None]
    exact = (np.arange(4.0) - 1.5) / np.sqrt(1.25 + 1e-5)
    np.testing.assert_allclose(twinned(jax.nn.standardize)(x)[0], exact, rtol=1e-4)
    assert not np.allclose(jax.nn.standardize(x)[0], exact, rtol=1e-2)


def test_inside_a_scan():
    def f(x):
        return jax.lax.scan(lambda c, v: (twinned(jnp.logaddexp)(c, v), None), -jnp.inf, x)[0]

    x = jnp.array([-jnp.inf, 1.0, 2.0, -jnp.inf])
    np.testing.assert_allclose(jax.jit(jax.grad(f))(x)[1:3], jax.nn.softmax(x)[1:3], rtol=1e-6)
    hessian = jax.jit(jax.jacrev(jax.grad(f)))(jnp.array([0.5, 1.0, 2.0, 30.0]))
    reference = jax.hessian(jax.nn.logsumexp)(jnp.array([0.5, 1.0, 2.0, 30.0]))
    np.testing.assert_allclose(hessian, reference, rtol=1e-4, atol=1e-6)
