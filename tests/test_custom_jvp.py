"""Rules that no transformation forgets: on jax 0.10.2 those of `jax.custom_jvp` are, in second derivatives through scans."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad import stability as st
from robustad.stability._custom_jvp import custom_jvp

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


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_hessian_through_a_scan_is_that_of_the_unrolled_loop(name):
    f = FUNCTIONS[name]
    want = np.asarray(jax.jit(jax.hessian(lambda x: f(x[0]) + f(x[1])))(X))
    got = np.asarray(jax.jit(jax.hessian(scanned(f)))(X))
    bound = 16 * np.finfo(np.float32).eps * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=bound)


def test_vmap_with_a_tangent_on_some_operands():
    @custom_jvp
    def product(x, y):
        return x * y, x

    def rule(primals, tangents):
        (x, y), (dx, _) = primals, tangents
        return product(x, y), (dx * y, dx)

    product.defjvp(rule, symbolic_zeros=True)
    x, y = jnp.arange(3.0), jnp.float32(4)
    gradients = jax.vmap(jax.grad(lambda x, y: product(x, y)[0]), in_axes=(0, None))(x, y)
    assert np.array_equal(gradients, [4, 4, 4])


def test_positional_defaults_and_static_arguments():
    @functools.partial(custom_jvp, nondiff_argnums=(1,))
    def power(x, n=2):
        return x**n

    def rule(n, primals, tangents):
        return power(*primals, n), n * primals[0] ** (n - 1) * tangents[0]

    power.defjvp(rule)
    assert jax.grad(power)(3.0) == 6
    assert jax.grad(lambda x: power(x, 3))(2.0) == 12
