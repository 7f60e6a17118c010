"""A region is one primitive: every transformation of JAX's goes through it, and all orders of derivative are accurate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from robustad.rewriting.expressions._branches import merged
from robustad.rewriting.expressions._expression import Expr, add, call, const, neg, nodes, select, var
from robustad.rewriting.expressions._region import region
from tests.rewriting._scalar import expression, stable


def f(x):
    return (1 - jnp.cos(x)) / (x * x)


g = stable(f)
X = np.float32(1e-4)
FIRST, SECOND = -X / 12, -1 / 12


def test_the_plain_form_fails():
    assert f(X) == 0
    assert abs(jax.grad(f)(X)) > 1


@pytest.mark.parametrize("compiled", [False, True])
def test_value_and_derivatives(compiled):
    wrap = jax.jit if compiled else lambda h: h
    np.testing.assert_allclose(wrap(g)(X), 0.5, rtol=1e-7)
    np.testing.assert_allclose(wrap(jax.grad(g))(X), FIRST, rtol=1e-6)
    for second in (
        jax.hessian(g),
        jax.grad(jax.grad(g)),
        jax.jacfwd(jax.jacfwd(g)),
        jax.jacrev(jax.jacfwd(g)),
    ):
        np.testing.assert_allclose(wrap(second)(X), SECOND, rtol=1e-6)


def test_at_the_point_itself():
    assert np.isnan(f(np.float32(0)))
    np.testing.assert_allclose(g(np.float32(0)), 0.5, rtol=1e-7)
    assert jax.grad(g)(np.float32(0)) == 0


def test_vmap_of_some_operands():
    h = stable(lambda x, y: jnp.log(x + y) - jnp.log(x))
    xs = jnp.array([1e8, 1e10, 3.0], jnp.float32)
    want = jnp.log1p(2 / np.asarray(xs, np.float64)).astype(np.float32)
    np.testing.assert_allclose(jax.vmap(h, (0, None))(xs, np.float32(2)), want, rtol=2e-7)
    slopes = jax.vmap(jax.grad(h, 1), (0, None))(xs, np.float32(2))
    np.testing.assert_allclose(slopes, 1 / (np.asarray(xs, np.float64) + 2), rtol=2e-7)


def test_control_flow_and_remat():
    def loop(x):
        return jax.lax.scan(lambda c, _: (c + g(x), None), jnp.float32(0), None, length=3)[0]

    np.testing.assert_allclose(jax.grad(loop)(X), 3 * FIRST, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(jax.grad(loop))(X), 3 * SECOND, rtol=1e-6)
    branch = lambda x: jax.lax.cond(x > 0, g, lambda x: x, x)  # noqa: E731
    np.testing.assert_allclose(jax.grad(branch)(X), FIRST, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.checkpoint(g)))(X), FIRST, rtol=1e-6)


def test_shard_map():
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
    h = stable(lambda x, y: (1 - jnp.cos(x)) / (x * x) * y)
    total = jax.shard_map(
        lambda x, y: jax.lax.psum(jax.vmap(h, (0, None))(x, y).sum(), "i"),
        mesh=mesh,
        in_specs=(PartitionSpec("i"), PartitionSpec()),
        out_specs=PartitionSpec(),
    )
    xs = jnp.full(8, X)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(xs, jnp.float32(2)), np.full(8, 2 * FIRST), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(total, 1))(xs, jnp.float32(2)), 4.0, rtol=1e-6)


def test_float64_and_narrow_formats():
    with jax.enable_x64(True):
        x = np.float64(1e-7)
        np.testing.assert_allclose(g(x), 0.5, rtol=1e-15)
        np.testing.assert_allclose(jax.grad(g)(x), -x / 12, rtol=1e-15)
    for dtype in (jnp.bfloat16, jnp.float16):
        assert g(jnp.asarray(1e-2, dtype)).dtype == dtype
        assert g(jnp.asarray(1e-2, dtype)) == dtype(0.5)


def test_a_region_bound_on_float64_operands_is_evaluated_in_float64():
    program = jax.make_jaxpr(g)(X)
    (eqn,) = [e for e in program.eqns if e.primitive.name == "stable"]
    with jax.enable_x64(True):
        out = eqn.primitive.bind(np.float64(1.5), **eqn.params)
        assert out.dtype == np.float64
        np.testing.assert_allclose(out, (1 - np.cos(1.5)) / 1.5**2, rtol=1e-15)


def test_export():
    exported = jax.export.export(jax.jit(jax.grad(g)), platforms=["cpu", "cuda", "tpu"])(X)
    np.testing.assert_allclose(exported.call(X), FIRST, rtol=1e-6)


def test_it_prints_its_formula():
    h = stable(lambda x: jnp.exp(x) - 1)
    assert "stable[formula=expm1(x)]" in str(jax.make_jaxpr(h)(X))


def test_a_truth_value_as_operand():
    e = select(var(1), const(0), call("log", var(0)))
    h = region(e, 2)
    x, which = jnp.array([0.0, 2.0], jnp.float32), jnp.array([False, True])
    np.testing.assert_allclose(h(x, which), [0, np.log(2)], rtol=1e-7)
    np.testing.assert_allclose(jax.grad(lambda x: h(x, which).sum())(x), [0, 0.5])


def test_equal_expressions_are_one_object():
    assert expression(f, 1) is expression(f, 1)
    assert Expr("add", (var(0), const(1))) is Expr("add", (var(0), const(1.0)))


def test_no_retracing():
    h = jax.jit(jax.grad(g))
    h(X)
    h(X + 1)
    assert h._cache_size() == 1


def test_the_cases_of_a_sign_share_their_exponential():
    t = var(0)
    cases = add(t, call("log1p", call("exp", neg(t)))), call("log1p", call("exp", t))
    softplus = select(Expr("lt", (t, const(0))), *cases)
    assert [n.op for n in nodes(softplus)].count("exp") == 2
    assert [n.op for n in nodes(merged(softplus))].count("exp") == 1
    x = np.float32([-60, -3, -1e-8, 0, 2, 90])
    np.testing.assert_allclose(region(softplus, 1)(x), np.logaddexp(0, np.float64(x)), rtol=2**-23)
    assert np.isnan(region(softplus, 1)(np.float32(np.nan)))
