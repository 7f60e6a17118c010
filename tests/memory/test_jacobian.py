"""Jacobians in chunks and Hessian products: JAX's own results, in less memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from robustad.memory import hvp, jacobian
from tests.memory._loops import normal, worst

W = normal(0, 5, 4)
X = {"a": normal(1, 4), "b": normal(2, 2, 2)}


def f(x, scale=1.0):
    h = jnp.tanh(W @ x["a"]) * scale
    return {"h": h, "s": jnp.sum(x["b"] ** 2) * h[:2], "t": h[0] * x["b"]}


@pytest.mark.parametrize("mode", ["forward", "reverse", None])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_equals_jax(mode, chunk):
    got, plain = jax.jit(jacobian(f, chunk, mode=mode))(X), jax.jacrev(f)(X)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, plain)
    assert worst(got, plain) < 1e-6


def test_several_arguments_and_hessians():
    got, plain = (jax.jit(jac)(X, 2.0) for jac in (jacobian(f, 2, argnums=(1, 0)), jax.jacrev(f, (1, 0))))
    assert worst(got, plain) < 1e-6
    assert worst(jacobian(f, 2)(scale=2.0, x=X), jax.jacrev(f)(X, 2.0)) < 1e-6

    def loss(x):
        return jnp.sum(f(x)["s"])

    got, plain = (jax.jit(h)(X) for h in (jacobian(jax.grad(loss), 3, mode="forward"), jax.hessian(loss)))
    assert worst(got, plain) < 1e-5


def sharded(f, *args):
    """`f` of a matrix that all devices have, and of rows that lie on two."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=specs[1]))(*args)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("argnums", [0, 1])
def test_inside_shard_map(mode, argnums):
    def of(jac):
        return sharded(lambda w, x: jac(lambda w, x: jnp.tanh(x @ w), argnums=argnums)(w, x)[None], W, normal(3, 4, 5))

    plain = jax.jacfwd if mode == "forward" else jax.jacrev
    assert worst(of(functools.partial(jacobian, chunk=3, mode=mode)), of(plain)) < 1e-6


def test_memory_is_that_of_a_chunk():
    wide, back = normal(0, 4000, 200), normal(1, 3, 4000)

    def temporaries(transform):
        program = jax.jit(transform(lambda x: back @ jnp.tanh(wide @ x))).lower(jnp.ones(200)).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(lambda f: jacobian(f, 10, mode="forward")) < 0.2 * temporaries(jax.jacfwd)


def test_refusals():
    with pytest.raises(ValueError, match="`chunk` must be an integer from 1 up; got 0"):
        jacobian(f, 0)
    with pytest.raises(ValueError, match="`mode` must be"):
        jacobian(f, 1, mode="both")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"argument\[0\] is of dtype int32"):
        jacobian(lambda n: n * 1.0, 1)(jnp.arange(3))
    with pytest.raises(TypeError, match=r"result is of dtype complex64. Return `jnp.real`"):
        jacobian(lambda x: x * 1j, 1)(jnp.ones(3))

    with pytest.raises(TypeError, match="`f` is None of type NoneType"):
        jacobian(None, 2)  # pyright: ignore
    with pytest.raises(ValueError, match="`argnums` is 4, but the call has 1 positional"):
        jacobian(f, 2, argnums=4)(X)


def loss(x, w):
    return jnp.sum(jnp.tanh(w @ x["a"]) ** 2) * jnp.sum(jnp.cos(x["b"]))


def test_hessian_products():
    primals, tangents = (X, W), (jax.tree.map(jnp.cos, X), jnp.sin(W))
    gradient = jax.grad(loss, (0, 1))
    expected = jax.jvp(gradient, primals, tangents)
    for mode in ("forward over reverse", "reverse over forward", "reverse over reverse"):
        got = jax.jit(functools.partial(hvp, loss, mode=mode))(primals, tangents)
        assert worst(got, expected) < 1e-5


@pytest.mark.parametrize("mode", ["forward over reverse", "reverse over forward", "reverse over reverse"])
def test_hessian_products_inside_shard_map(mode):
    """The vector does not vary over the devices, as the rows do."""

    def of(hessian_product):
        return sharded(
            lambda w, x: hessian_product(lambda x: jnp.sum(jnp.tanh(x @ w) ** 2), (x,), (jnp.ones((2, 5)),))[1][0],
            W,
            normal(3, 4, 5),
        )

    expected = of(lambda f, x, v: jax.jvp(jax.grad(f, (0,)), x, v))
    assert worst(of(functools.partial(hvp, mode=mode)), expected) < 1e-6


def test_forward_over_reverse_keeps_the_least():
    def deep(x):
        return jnp.sum(jax.lax.scan(lambda c, _: (jnp.sin(c * 1.1), None), x, None, 500)[0])

    def temporaries(mode):
        x = jnp.ones(1000)
        program = jax.jit(lambda x, v: hvp(deep, (x,), (v,), mode=mode)).lower(x, x).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries("forward over reverse") < 0.8 * temporaries("reverse over reverse")


def test_hvp_refusals():
    with pytest.raises(TypeError, match=r"`primals` must be a tuple or list.*got float32\[3\]\. Write `\(x,\)`"):
        hvp(jnp.sum, jnp.ones(3), jnp.ones(3))  # pyright: ignore
    with pytest.raises(ValueError, match="`primals` is empty"):
        hvp(lambda: 1.0, (), ())
    with pytest.raises(TypeError, match="structure and shapes of `primals`"):
        hvp(jnp.sum, (jnp.ones(3),), (jnp.ones(2),))
    with pytest.raises(ValueError, match="`mode` must be"):
        hvp(jnp.sum, (jnp.ones(3),), (jnp.ones(3),), mode="fastest")  # pyright: ignore[reportArgumentType]
