"""`checkpoint` saves memory on every version of JAX, with the plain gradient's bits, under every transformation."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec

from robustad import _jaxpr
from robustad.memory import any_of, checkpoint, leak_check, save_bytes, save_names, save_primitives

WIDE, NARROW, ROWS = 128, 32, 256


def layer(w, x):
    h = jnp.tanh(x @ w["up"])
    return x + checkpoint_name(jnp.sin(h) * h, "hidden") @ w["down"]


def parameters(layers=6):
    key = jax.random.key(0)
    up, down = jax.random.normal(key, (2, layers, NARROW, WIDE)) / 8
    return [{"up": u, "down": d.T} for u, d in zip(up, down)], jax.random.normal(key, (ROWS, NARROW))


def network(wrapped):
    def loss(ws, x):
        for w in ws:
            x = wrapped(w, x)
        return jnp.mean(x**2)

    return loss


def temporaries(f, *args):
    return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes


def gradient(f):
    return jax.value_and_grad(network(f))


def test_it_saves_what_jax_alone_does_not():
    args = parameters()
    plain, jaxs, ours = (temporaries(gradient(f), *args) for f in (layer, jax.checkpoint(layer), checkpoint(layer)))
    assert ours < 0.45 * plain
    if not _jaxpr.XLA_KEEPS_BARRIERS:
        assert jaxs > 0.9 * plain


def test_it_saves_in_the_second_derivative():
    args = parameters(4)

    def second(f):
        def norm(ws, x):
            return sum(jnp.vdot(g, g) for g in jax.tree.leaves(jax.grad(network(f))(ws, x)))

        return jax.grad(norm)

    assert temporaries(second(checkpoint(layer)), *args) < 0.65 * temporaries(second(layer), *args)


def test_it_saves_under_vmap():
    ws, x = parameters(4)
    xs = jnp.stack([x] * 3)

    def over(f):
        return jax.vmap(gradient(f), (None, 0))

    assert temporaries(over(checkpoint(layer)), ws, xs) < 0.6 * temporaries(over(layer), ws, xs)


def test_the_bits_are_those_of_the_plain_gradient():
    args = parameters()
    for wrapped in (checkpoint(layer), checkpoint(layer, policy=save_names("hidden"))):
        chex.assert_trees_all_equal(jax.jit(gradient(wrapped))(*args), jax.jit(gradient(layer))(*args))


def test_the_policy_decides_what_is_kept():
    args = parameters()
    nothing, dots, everything = (
        temporaries(gradient(checkpoint(layer, policy=policy)), *args)
        for policy in (None, save_primitives("dot_general"), jax.checkpoint_policies.everything_saveable)
    )
    assert nothing < dots < everything
    if not _jaxpr.XLA_KEEPS_BARRIERS:  # else this is `jax.checkpoint`, whose barriers hold whatever is kept
        assert everything < 1.1 * temporaries(gradient(layer), *args)


def test_many_cotangents_recompute_once():
    x = jnp.linspace(0.1, 1.0, 5)
    f = checkpoint(lambda x: jnp.sin(x) * x)
    pulled = jax.vmap(lambda t: jax.vjp(f, x)[1](t)[0])
    chex.assert_trees_all_close(jax.jit(pulled)(jnp.eye(5)), jnp.diag(jnp.sin(x) + x * jnp.cos(x)), rtol=1e-6)
    sines = [
        site.equation
        for site in _jaxpr.sites(_jaxpr.body(jax.make_jaxpr(pulled)(jnp.eye(5))))
        if site.primitive in ("sin", "cos")
    ]
    assert sines and all(eqn.outvars[0].aval.shape == (5,) for eqn in sines)


# ----------------------------------------------------------------------------------------- transformations


def smooth(w, x):
    return jnp.sum(jnp.tanh(x @ w) ** 2)


W, X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3)), jnp.float32)

TRANSFORMED = {
    "value": lambda f: f,
    "grad": lambda f: jax.grad(f, (0, 1)),
    "jvp": lambda f: lambda w, x: jax.jvp(f, (w, x), (x, w)),
    "jvp of one": lambda f: lambda w, x: jax.jvp(lambda w: f(w, x), (w,), (x,)),
    "linearize": lambda f: lambda w, x: jax.linearize(f, w, x)[1](x, w),
    "hessian": jax.hessian,
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
    "third": lambda f: jax.grad(lambda w, x: jnp.sum(jax.hessian(f)(w, x) ** 2)),
    "vmap of grad": lambda f: lambda w, x: jax.vmap(jax.grad(f), (None, 0))(w, x[:, None]),
    "grad of vmap": lambda f: jax.grad(lambda w, x: jnp.sum(jax.vmap(f, (None, 0))(w, x[:, None]) ** 2)),
    "vmap over a middle axis": lambda f: lambda w, x: jax.vmap(jax.grad(f), (1, None))(jnp.stack([w, 2 * w], 1), x),
    "nested": lambda f: jax.grad(checkpoint(lambda w, x: f(w, x) * f(x, w))),
    "checkpoint of grad": lambda f: jax.grad(checkpoint(lambda w, x: jnp.sum(jax.grad(f)(w, x) ** 2))),
    "in jit": lambda f: jax.grad(jax.jit(f)),
    "in cond": lambda f: jax.grad(lambda w, x: lax.cond(x[0, 0] > 0, f, lambda w, x: f(x, w), w, x)),
    "in scan": lambda f: jax.grad(lambda w, x: lax.scan(lambda c, r: (c + f(w * c, r[None]), c), 1.0, x)[0]),
    "second order in scan": lambda f: jax.hessian(
        lambda w, x: lax.scan(lambda c, r: (c + f(w * c, r[None]), c), 1.0, x)[0]
    ),
    "in while": lambda f: lambda w, x: lax.fori_loop(0, 3, lambda i, w: w - 0.1 * jax.grad(f)(w, x), w),
    "in jax.checkpoint": lambda f: jax.grad(jax.checkpoint(lambda w, x: f(w, x) ** 2)),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_it_commutes_with(name):
    transformed = TRANSFORMED[name]
    ours, plain = (jax.jit(transformed(f))(W, X) for f in (checkpoint(smooth), smooth))
    with jax.enable_x64(True):
        exact = transformed(smooth)(*(jnp.asarray(a, jnp.float64) for a in (W, X)))
    for a, b, c in zip(*map(jax.tree.leaves, (ours, plain, exact))):
        error, fair = (np.max(np.abs(np.asarray(y, np.float64) - np.asarray(c))) for y in (a, b))
        assert a.dtype == b.dtype and a.shape == b.shape
        assert error <= 2 * fair + 1e-6 * np.max(np.abs(c))


@pytest.mark.parametrize("name", ["value", "grad", "jvp", "vmap of grad", "nested", "in jit"])
def test_it_commutes_without_jit(name):
    ours, plain = (TRANSFORMED[name](f)(W, X) for f in (checkpoint(smooth), smooth))
    chex.assert_trees_all_close(ours, plain, rtol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("outside", [True, False])
def test_shard_map(check_vma, outside):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    xs = jnp.concatenate([X[:2]] * 4)

    def run(f):
        def local(w, x):
            return lax.pmean(jnp.mean(f(w, f(w, x))), "data")

        over = functools.partial(
            jax.shard_map,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("data")),
            out_specs=PartitionSpec(),
            check_vma=check_vma,
        )
        return jax.jit(jax.grad(over(local)) if outside else over(jax.grad(local)))(W, xs)

    def f(w, x):
        return jnp.sin(x @ w)

    chex.assert_trees_all_close(run(checkpoint(f)), run(f), rtol=1e-6)


def test_explicit_sharding():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        w = jax.device_put(jnp.eye(4), PartitionSpec())
        x = jax.device_put(jnp.ones((8, 4)), PartitionSpec("data"))

        def f(w, x):
            return jnp.sin(x @ w)

        def run(f):
            return jax.jit(jax.grad(lambda w, x: jnp.mean(f(w, f(w, x)))))(w, x)

        chex.assert_trees_all_equal(run(checkpoint(f)), run(f))


# ----------------------------------------------------------------------------------------------- arguments


def dropped(x, key, rate):
    return jnp.sum(jnp.where(jax.random.bernoulli(key, rate, x.shape), jnp.sin(x), 0.0))


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["typed", "raw"])
def test_the_same_random_numbers_are_drawn_again(key):
    x = jnp.linspace(0.0, 1.0, 64)
    chex.assert_trees_all_equal(jax.jit(jax.grad(checkpoint(dropped)))(x, key, 0.5), jax.grad(dropped)(x, key, 0.5))


def test_keys_batch():
    keys, x = jax.random.split(jax.random.key(3), 4), jnp.linspace(0.0, 1.0, 8)

    def over(f):
        return jax.jit(jax.vmap(jax.grad(f), (None, 0, None)))(x, keys, 0.5)

    chex.assert_trees_all_equal(over(checkpoint(dropped)), over(dropped))


def test_integers_keys_and_constants_come_out():
    def f(x, n):
        return (jnp.sum(jnp.sin(x)) * n, {"at": jnp.argmax(x), "n": n, "key": jax.random.key(0), "one": 1.0})

    ours, plain = (jax.value_and_grad(g, has_aux=True)(jnp.arange(3.0), 2) for g in (checkpoint(f), f))
    key, other = ours[0][1].pop("key"), plain[0][1].pop("key")
    assert jnp.all(jax.random.key_data(key) == jax.random.key_data(other))
    chex.assert_trees_all_equal(ours, plain)
    tangent = np.zeros((), jax.dtypes.float0)
    _, moved = jax.jvp(checkpoint(lambda x, n: jnp.sin(x) * n), (1.0, 2), (1.0, tangent))
    chex.assert_trees_all_close(moved, 2 * jnp.cos(1.0))


def test_arrays_closed_over_are_differentiated():
    def loss(w, x, wrap):
        inner = wrap(lambda x: jnp.sin(x @ w))
        return jnp.sum(inner(inner(x)))

    chex.assert_trees_all_equal(jax.grad(loss)(W, X, checkpoint), jax.grad(loss)(W, X, lambda f: f))


@pytest.mark.parametrize("static", [1, (1,), -1, (-1,)])
def test_static_arguments(static):
    def f(x, n):
        return jnp.sum(x[:n] ** 2)

    chex.assert_trees_all_equal(
        jax.grad(checkpoint(f, static_argnums=static))(jnp.ones(3), 2), jnp.array([2.0, 2.0, 0])
    )


def test_decorator_keywords_and_leaves_that_are_no_arrays():
    @checkpoint(policy=save_bytes(at_most=4))
    def loss(x, activation, *, mode):
        return jnp.sum(activation(x)) if mode == "sum" else jnp.mean(activation(x))

    assert loss.__name__ == "loss"
    chex.assert_trees_all_close(jax.grad(loss)(jnp.ones(2), jnp.sin, mode="mean"), jnp.cos(jnp.ones(2)) / 2)


def test_linear_functions_transpose():
    (out,) = jax.linear_transpose(checkpoint(lambda x: 2 * x), jnp.ones(3))(jnp.ones(3))
    chex.assert_trees_all_equal(out, 2 * jnp.ones(3))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "complex64"])
def test_dtypes_are_kept(dtype):
    x = jnp.ones(3, dtype)

    def f(x):
        return jnp.sum(jnp.abs(jnp.sin(x)))

    ours, plain = (jax.jit(jax.grad(g))(x) for g in (checkpoint(f), f))
    assert ours.dtype == plain.dtype == x.dtype
    chex.assert_trees_all_close(ours, plain, rtol=1e-2)


def test_custom_rules_are_respected():
    @jax.custom_vjp
    def clipped(x):
        return jnp.sin(x)

    clipped.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (jnp.full_like(x, 7.0),))
    chex.assert_trees_all_equal(jax.grad(checkpoint(lambda x: jnp.sum(clipped(x))))(jnp.ones(2)), jnp.full(2, 7.0))


# -------------------------------------------------------------------------------------------------- models


def test_equinox():
    model = eqx.nn.MLP(4, 4, 8, 2, key=jax.random.key(0))

    def loss(model, x):
        return jnp.sum(jax.vmap(model)(x) ** 2)

    x = jnp.ones((5, 4))
    chex.assert_trees_all_equal(
        eqx.filter_jit(eqx.filter_grad(checkpoint(loss)))(model, x), eqx.filter_jit(eqx.filter_grad(loss))(model, x)
    )


def test_linen_and_nnx():
    dense, x = linen.Dense(4), jnp.ones((5, 4))
    params = dense.init(jax.random.key(0), x)

    def loss(params, x):
        return jnp.sum(jnp.sin(dense.apply(params, x)))

    chex.assert_trees_all_equal(jax.jit(jax.grad(checkpoint(loss)))(params, x), jax.jit(jax.grad(loss))(params, x))

    graph, state = nnx.split(nnx.Linear(4, 4, rngs=nnx.Rngs(0)))

    def loss(state, x):
        return jnp.sum(jnp.sin(nnx.merge(graph, state)(x)))

    chex.assert_trees_all_equal(jax.jit(jax.grad(checkpoint(loss)))(state, x), jax.jit(jax.grad(loss))(state, x))


# ----------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("policy", ["hidden", 4, save_names, dict, any_of(save_bytes(at_most=1)).__class__])
def test_what_is_no_policy_is_refused(policy):
    if policy is save_names:
        pytest.skip("a function: it can only fail when it is asked")
    with pytest.raises(TypeError, match=r"`policy` is .*expected a function \(primitive, \*avals, \*\*params\)"):
        checkpoint(layer, policy=policy)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="`f` is 3 of type int"):
        checkpoint(3)  # pyright: ignore


def test_effects_are_refused():
    def written(x):
        jax.debug.print("{}", x, ordered=True)
        return jnp.sum(x**2)

    if _jaxpr.XLA_KEEPS_BARRIERS:
        pytest.skip("left to jax.checkpoint")
    with pytest.raises(NotImplementedError, match=r"effects.*which recomputation would repeat"):
        jax.make_jaxpr(jax.grad(checkpoint(written)))(jnp.ones(3))


def test_no_tracer_outlives_its_trace():
    f = checkpoint(lambda w, x: jnp.sum(jnp.sin(jnp.tanh(x @ w))))
    assert leak_check(jax.jit(jax.grad(f)))(jnp.eye(3), jnp.ones((2, 3))).ok
