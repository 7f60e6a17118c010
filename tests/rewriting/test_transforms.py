"""`stabilize` under and over JAX's transformations, in modules, and what it leaves alone."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import robustad as rad
from robustad.stability import two_sum


def softplus(x: Any) -> Any:
    return jnp.log(1 + jnp.exp(x))


def versine(x: Any) -> Any:
    return (1 - jnp.cos(x)) / x**2


def entropy(x: Any) -> Any:
    return jnp.where(x > 0, -x * jnp.log(x), 0.0)


def length(x: Any) -> Any:
    return jnp.sqrt(x**2 + 1e-50 * x**2)


POINTS = [  # function, point, first derivative, second derivative
    (softplus, 100.0, 1.0, 0.0),
    (softplus, -40.0, 4.248354255e-18, 4.248354255e-18),
    (versine, 1e-4, -8.33333332e-6, -0.0833333331),
    (entropy, 0.0, 0.0, 0.0),
    (entropy, 0.5, -0.3068528194, -2.0),
]
ORDERS = {
    "forward over reverse": lambda f: jax.jacfwd(jax.jacrev(f)),
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(f)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
}


@pytest.mark.parametrize("point", POINTS, ids=lambda p: f"{p[0].__name__} at {p[1]}")
@pytest.mark.parametrize("order", ORDERS)
def test_second_derivatives(point, order: str) -> None:
    f, x, _, second = point
    got = jax.jit(ORDERS[order](rad.stabilize(f)))(jnp.float32(x))
    np.testing.assert_allclose(got, second, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("point", POINTS, ids=lambda p: f"{p[0].__name__} at {p[1]}")
def test_first_derivatives_by_every_transformation(point) -> None:
    f, x, first, _ = point
    x = jnp.float32(x)
    s = rad.stabilize(f)
    loop = lambda x: jax.lax.scan(lambda c, _: (c + s(x), None), 0.0, None, length=2)[0] / 2  # noqa: E731
    got = [
        jax.jvp(s, (x,), (jnp.float32(1.0),))[1],
        jax.linearize(s, x)[1](jnp.float32(1.0)),
        jax.vmap(jax.grad(s))(jnp.stack([x, x]))[1],
        jax.grad(lambda x: jnp.sum(jax.vmap(s)(jnp.stack([x, x]))) / 2)(x),
        jax.grad(jax.checkpoint(s))(x),
        jax.grad(rad.stabilize(s))(x),
        jax.grad(loop)(x),
        jax.grad(jax.jit(rad.stabilize(jax.jit(f))))(x),
    ]
    np.testing.assert_allclose(np.asarray(got), first, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_dtypes(dtype: Any) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        for f, x, first, _ in POINTS:
            got = jax.grad(rad.stabilize(f))(jnp.asarray(x, dtype))
            assert got.dtype == dtype
            if abs(first) > 1e-4 or dtype == jnp.float64:
                np.testing.assert_allclose(float(got), first, rtol=3 * float(jnp.finfo(dtype).eps) + 1e-9)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma: bool) -> None:
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    x = jnp.linspace(-100.0, 100.0, 16)
    mapped = functools.partial(jax.shard_map, mesh=mesh, in_specs=P("d"), out_specs=P(), check_vma=check_vma)
    outer = rad.stabilize(mapped(lambda x: jax.lax.pmean(jnp.mean(softplus(x)), "d")))
    inner = mapped(lambda x: jax.lax.pmean(jnp.mean(rad.stabilize(softplus)(x)), "d"))
    want = jax.nn.sigmoid(x) / 16
    for f in (outer, inner):
        np.testing.assert_allclose(jax.grad(f)(x), want, rtol=1e-5, atol=1e-37)


def test_exports_for_other_platforms() -> None:
    for f, *_ in POINTS:
        exported = jax.export.export(jax.jit(jax.grad(rad.stabilize(f))), platforms=["cpu", "cuda", "tpu"])
        assert exported(jnp.float32(1.0)).mlir_module()


def test_a_loop_of_many_steps_is_one() -> None:
    def f(x: Any) -> Any:
        return jax.lax.fori_loop(0, 50, lambda i, c: softplus(c) - 0.5 * i, x)

    assert str(jax.make_jaxpr(rad.stabilize(f))(1.0)).count("stable") == 1
    assert jnp.isfinite(jax.grad(rad.stabilize(f))(100.0))


@pytest.mark.parametrize("x", [1.0, np.float64(1.0), np.float32(1.0)], ids=["float", "float64", "float32"])
def test_numbers_in_the_forward_mode_of_the_forward_mode(x: Any) -> None:
    def f(x: Any) -> Any:
        return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))

    g = rad.stabilize(f)
    sigmoid = 1 / (1 + np.exp(-1.0))
    want = sigmoid * (1 - sigmoid)
    np.testing.assert_allclose([jax.hessian(g)(x), jax.jacfwd(jax.jacfwd(g))(x)], want, rtol=1e-6)
    assert jax.hessian(g)(x).dtype == jnp.float32


def test_arguments_of_all_kinds() -> None:
    @rad.stabilize
    def f(p: Any, n: int, mode: str, *, scale: Any) -> Any:
        """Documented."""
        out = sum(softplus(p["a"] * scale["s"]) for _ in range(n))
        return (out if mode == "on" else -out), {"input": p["a"], "count": n}

    assert f.__doc__ == "Documented."
    value, gradient = jax.value_and_grad(f, has_aux=True)({"a": 100.0}, 3, "on", scale={"s": 2.0})
    assert value[0] == 600.0 and gradient["a"] == 6.0
    assert jax.grad(lambda a: rad.stabilize(lambda x: softplus(a * x))(2.0))(100.0) == 2.0  # a closure over a tracer


def test_nothing_to_replace_is_the_same_program() -> None:
    f = lambda x: jnp.sum(jnp.sin(x) * x)  # noqa: E731
    assert not rad.stabilize(f).rewrites(jnp.ones(3))
    assert str(jax.make_jaxpr(rad.stabilize(f))(jnp.ones(3))) == str(jax.make_jaxpr(f)(jnp.ones(3)))


def kahan(x: Any) -> Any:
    def step(state: Any, x: Any) -> Any:
        total, error = state
        y = x - error
        new = total + y
        return (new, (new - total) - y), None

    return jax.lax.scan(step, (jnp.zeros((), x.dtype), jnp.zeros((), x.dtype)), x)[0][0]


def two_sum_by_hand(x: Any) -> Any:
    a, b = x[0], x[1]
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def split_by_hand(x: Any) -> Any:
    c = 4097.0 * x[0]
    high = c - (c - x[0])
    return high, x[0] - high


@pytest.mark.parametrize("f", [kahan, two_sum_by_hand, split_by_hand, lambda x: two_sum(x[0], x[1])])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_error_free_transforms_keep_their_bits(f: Any, dtype: Any) -> None:
    x = jnp.asarray(np.array([1e8, 1.0, -1e8, 1e-3, 3.0, 1.7] * 5), dtype)
    for mode in (lambda g: g, jax.jit):
        for got, want in zip(jax.tree.leaves(mode(rad.stabilize(f))(x)), jax.tree.leaves(mode(f)(x))):
            assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


def test_custom_derivatives_are_the_users_word() -> None:
    @jax.custom_jvp
    def odd(x: Any) -> Any:
        return softplus(x)

    odd.defjvp(lambda p, t: (odd(*p), 7.0 * t[0]))
    stable = rad.stabilize(lambda x: odd(x) + softplus(x))
    assert jax.grad(stable)(100.0) == 8.0
    (told,) = stable.rewrites(100.0).untouched
    assert told.primitive == "odd" and told.file == __file__


def test_effects_run_once_and_in_order(capfd: pytest.CaptureFixture) -> None:
    def f(x: Any) -> Any:
        jax.debug.print("first {}", x)
        y = softplus(x)
        jax.debug.print("second")
        return y

    stable = rad.stabilize(f)
    assert jax.grad(stable)(100.0) == 1.0
    jax.effects_barrier()
    assert capfd.readouterr().out.split("\n")[:2] == ["first 100.0", "second"]
    assert [u.primitive for u in stable.rewrites(100.0).untouched] == ["debug_print"] * 2


def test_callbacks_pass_through() -> None:
    def f(x: Any) -> Any:
        y = jax.pure_callback(
            lambda x: np.float32(2 * x), jax.ShapeDtypeStruct((), jnp.float32), jax.lax.stop_gradient(x)
        )
        return softplus(x) + y

    assert jax.grad(rad.stabilize(f))(jnp.float32(100.0)) == 1.0


def test_flax_nnx_keeps_its_state() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layer, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

    def loss(net: Net, x: Any) -> Any:
        return -jnp.mean(jnp.log(jax.nn.softmax(300 * net.norm(net.layer(x)))[:, 0]))

    x = jnp.arange(15.0).reshape(5, 3)
    plain, stable = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    nnx.grad(loss)(plain, x)
    gradient = nnx.jit(nnx.grad(rad.stabilize(loss)))(stable, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(plain.norm.mean[...], stable.norm.mean[...], rtol=1e-5)


def test_equinox_modules() -> None:
    net = eqx.nn.MLP(3, 4, 8, 1, key=jax.random.key(0))

    def loss(net: Any, x: Any) -> Any:
        return -jnp.mean(jnp.log(jax.nn.softmax(300 * jax.vmap(net)(x))[:, 0]))

    x = jnp.arange(15.0).reshape(5, 3)
    assert not np.isfinite(eqx.filter_grad(loss)(net, x).layers[0].bias).all()
    assert np.isfinite(eqx.filter_jit(eqx.filter_grad(rad.stabilize(loss)))(net, x).layers[0].bias).all()


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"`f` has type int; expected a function"):
        rad.stabilize(3)  # type: ignore[arg-type]

    def branches(x: Any, y: Any) -> Any:
        return x if x > 0 else y

    with pytest.raises(jax.errors.TracerBoolConversionError, match=r"function branches at .* argument x"):
        rad.stabilize(branches)(1.0, 2.0)


def test_rewrites_are_told_with_their_lines() -> None:
    def f(x: Any) -> Any:
        y = 1 - jnp.cos(x)  # here
        return y / x**2

    told = rad.stabilize(f).rewrites(1.0)
    assert any(r.line == f.__code__.co_firstlineno + 1 and r.file == __file__ and "cos" in r.before for r in told)
    assert "# here" in str(told) and "->" in str(told)
    assert str(rad.stabilize(jnp.sin).rewrites(1.0)) == "nothing is replaced"
