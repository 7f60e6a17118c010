"""Rules that no transformation forgets: on jax 0.10.2 those of `jax.custom_jvp` are, in second derivatives through scans."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import SymbolicZero
from jax.experimental import checkify

from robustad import stability as st
from robustad.stability._custom_jvp import custom_jvp
from tests._subset import thinned

X = jnp.array([[0.3, 0.5, 0.7], [0.4, 0.9, 0.2]])


def function_with(decorator):
    """x, with derivative 3 and second derivative 7: only the rules say so."""

    @decorator
    def value(x):
        return x * 1.0

    @decorator
    def slope(x):
        return 3 * jnp.ones_like(x)

    def value_rule(primals, tangents):
        return value(*primals), slope(*primals) * tangents[0]

    def slope_rule(primals, tangents):
        return slope(*primals), 7 * tangents[0]

    value.defjvp(value_rule)
    slope.defjvp(slope_rule)
    return value


def scanned(f):
    return lambda x: jax.lax.scan(lambda total, row: (total + f(row), None), 0.0, x)[0]


def reverse_twice(f):
    return jax.jacrev(jax.grad(f))


@pytest.mark.parametrize("hessian", [jax.hessian, reverse_twice], ids=["forward over reverse", "reverse over reverse"])
def test_the_rules_hold_in_second_derivatives_through_a_scan(hessian):
    x = jnp.array([1.0, 2.0])
    assert np.array_equal(hessian(scanned(function_with(custom_jvp)))(x), 7 * np.eye(2))
    plain = hessian(scanned(function_with(jax.custom_jvp)))(x)
    if jax.__version_info__ < (0, 11):
        assert not np.array_equal(plain, 7 * np.eye(2))


FUNCTIONS = {
    "norm": st.norm,
    "std": st.std,
    "cosine_similarity": lambda row: st.cosine_similarity(row, row[::-1]),
    "softmax_cross_entropy": lambda row: st.softmax_cross_entropy(row, 1),
    "log_matmul": lambda row: st.log_matmul(row, row),
    "reproducible_global_norm": st.reproducible_global_norm,
    "two_sum": lambda row: st.two_sum(row[0], row[1])[0] ** 2,
    "logcumsumexp": lambda row: st.logcumsumexp(row)[-1] ** 2,
}


@pytest.mark.parametrize("name", thinned(list(FUNCTIONS), 2))
def test_the_hessian_through_a_scan_of_remat_and_vmap_is_that_of_the_unrolled_loop(name):
    f = FUNCTIONS[name]
    want = np.asarray(jax.jit(jax.hessian(lambda x: f(x[0]) + f(x[1])))(X))
    bound = 16 * np.finfo(np.float32).eps * np.abs(want).max()
    for g in (scanned(f), scanned(jax.checkpoint(f)), scanned(lambda row: jax.vmap(f)(row[None])[0])):
        np.testing.assert_allclose(jax.jit(jax.hessian(g))(X), want, rtol=0, atol=bound)


@custom_jvp
def scaled(x, y):
    """x y, with the derivative 3 y in x and 5 in y: only the rule says so."""
    return x * y, x


@functools.partial(scaled.defjvp, symbolic_zeros=True)
def scaled_rule(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    terms = [factor * t for factor, t in ((3 * y, dx), (5.0, dy)) if not isinstance(t, SymbolicZero)]
    return scaled(x, y), (sum(terms), dx)


def test_vmap_with_a_tangent_on_some_operands():
    """First and mixed second derivatives of a scan over mapped calls."""
    y = jnp.float32(4)
    mapped = jax.vmap(scaled, in_axes=(0, None))

    def total(x, y):
        return jax.lax.scan(lambda total, row: (total + mapped(row, y)[0].sum(), None), 0.0, x)[0]

    gradient = jax.grad(total, (0, 1))(X, y)
    assert np.array_equal(gradient[0], np.full_like(X, 12)) and gradient[1] == 5 * X.size
    mixed = jax.jacrev(jax.grad(total), 1)(X, y)
    assert np.array_equal(mixed, np.full_like(X, 3))


def test_a_branch_on_a_scalar_stays_one_under_vmap():
    def doubled_with(decorator):
        @decorator
        def doubled(x):
            return 2 * x

        def rule(primals, tangents):
            (x,), (t,) = primals, tangents
            return doubled(x), jax.lax.cond(jnp.all(x > 0), lambda t: 2 * t, lambda t: 3 * t, t)

        doubled.defjvp(rule)
        return jax.vmap(doubled)

    leading = doubled_with(functools.partial(custom_jvp, over_leading_axes=True))
    direction = jnp.ones_like(X)
    assert "cond" in str(jax.make_jaxpr(lambda x: jax.jvp(leading, (x,), (direction,)))(X))
    assert np.array_equal(jax.grad(lambda x: leading(x).sum())(X), np.full_like(X, 2))
    assert np.array_equal(jax.grad(lambda x: leading(x).sum())(-X), np.full_like(X, 3))
    # Why there is the option: JAX's vmap of a rule makes a select of the branch, whose stop_gradient has no transpose.
    with pytest.raises(NotImplementedError, match="stop_gradient"):
        jax.grad(lambda x: doubled_with(custom_jvp)(x).sum())(X)


def test_a_linear_function_has_a_transpose():
    @custom_jvp
    def weighted(x, y):
        return 3 * x + y, 2 * x

    ones = jnp.ones(2)
    x, y = jax.linear_transpose(weighted, ones, ones)((ones, ones))
    assert np.array_equal(x, [5, 5]) and np.array_equal(y, [1, 1])
    (x,) = jax.linear_transpose(lambda x: weighted(x, ones * 0), ones)((ones, ones))
    assert np.array_equal(x, [5, 5])


def test_positional_defaults_and_static_arguments():
    @functools.partial(custom_jvp, nondiff_argnums=(1,))
    def power(x, n=2):
        return x**n

    def rule(n, primals, tangents):
        return power(*primals, n), n * primals[0] ** (n - 1) * tangents[0]

    power.defjvp(rule)
    assert jax.grad(power)(3.0) == 6
    assert jax.grad(lambda x: power(x, 3))(2.0) == 12


def test_checkify_sees_a_nan_and_no_division_by_zero():
    """JAX's own log has the slope inf at 0 as well, and checkify reports a division by zero there."""

    def error(f, x):
        return jax.jit(checkify.checkify(f, errors=checkify.float_checks))(x)[0].get()

    assert "nan generated" in error(st.log, -1.0) and error(st.log, 1.0) is None
    assert error(jax.grad(st.log), 0.0) is None and "division by zero" in error(jax.grad(jnp.log), 0.0)
    assert error(jax.grad(st.norm), jnp.zeros(3)) is None
    assert "nan generated" in error(st.reproducible_sum, jnp.array([jnp.inf, -jnp.inf]))
