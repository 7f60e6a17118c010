"""Reversible stacks: the plain gradient, in memory that does not grow with depth, and what the reconstruction loses."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from robustad.memory import reversible
from tests.memory._loops import equal_bits, normal, worst

WIDTH, ROWS = 8, 6


def half(w, x):
    return jnp.tanh(x @ w["a"]) @ w["b"]


def parameters(depth, size=0.3, width=WIDTH):
    def one(seed):
        return {"a": size * normal(seed, depth, width, width), "b": size * normal(seed + 1, depth, width, width)}

    return one(0), one(2)


def start(rows=ROWS, width=WIDTH):
    return normal(7, rows, width), normal(8, rows, width)


STACK = reversible(half, half)


def loss(run):
    def function(params, x):
        y1, y2 = run(params, x)
        return jnp.sum(jnp.sin(y1)) + jnp.sum(y2**2)

    return function


def gradient(run):
    return jax.jit(jax.value_and_grad(loss(run), (0, 1)))


def exact(f, *args):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), args)
        return jax.tree.map(np.asarray, f(*wide))


def test_equals_the_plain_gradient():
    args = parameters(12), start()
    got, plain = gradient(STACK)(*args), gradient(STACK.plain)(*args)
    expected = exact(gradient(STACK.plain), *args)
    assert got[0] == plain[0]
    assert worst(plain, expected) < 1e-6
    assert worst(got, expected) < 1e-5  # ≤ 10 x the plain one's: the reconstruction rounds too
    y = jax.jit(STACK)(*args)
    assert worst(jax.jit(STACK.inverse)(args[0], y), args[1]) < 1e-6


def test_memory_does_not_grow_with_depth():
    def temporaries(run, depth):
        args = parameters(depth), start(256)
        f = jax.jit(jax.grad(lambda x, params: loss(run)(params, x)))
        return f.lower(args[1], args[0]).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(STACK, 64) < 1.1 * temporaries(STACK, 8)
    assert temporaries(STACK.plain, 64) > 5 * temporaries(STACK.plain, 8) > 5 * temporaries(STACK, 64)


def steep(w, x):
    return jnp.sin(3 * x @ w["a"]) @ w["b"]


def test_drift_is_reported():
    x = start()
    mild = jax.jit(STACK.drift)(parameters(20, 0.1), x)
    assert mild.relative.shape == (20,) and np.max(mild.ulp) < 20
    params, stack = parameters(16, 0.4), reversible(steep, steep)
    drift = jax.jit(stack.drift)(params, x)
    assert np.max(drift.relative) > 1e-2  # and the gradient is as wrong:
    assert np.argmax(drift.relative) < 5  # it grows on the way back
    assert "at the input of block" in str(drift)
    got, plain = gradient(stack)(params, x), gradient(stack.plain)(params, x)
    assert worst(got[1], plain[1]) > 1e-3


def test_no_blocks():
    """The identity."""
    params, x = parameters(0), start()
    equal_bits((STACK(params, x), STACK.inverse(params, x)), (x, x))
    equal_bits(gradient(STACK)(params, x), gradient(STACK.plain)(params, x))
    assert str(STACK.drift(params, x)) == "drift of no blocks"


def test_on_a_grid_nothing_is_lost():
    x, params = start(), parameters(16, 0.4)
    stack = reversible(steep, steep, quantum=2.0**-12)
    assert not np.any(jax.jit(stack.drift)(params, x).relative)
    got, plain = gradient(stack)(params, x), gradient(stack.plain)(params, x)
    assert got[0] == plain[0] and np.isfinite(got[0]) and worst(got[1], plain[1]) < 1e-4


def test_quanta():
    x, params = start(), parameters(2)
    expected = reversible(half, half, quantum=2.0**-16)(params, x)
    for quantum in (np.float32(2**-16), Fraction(1, 2**16)):
        equal_bits(reversible(half, half, quantum=quantum)(params, x), expected)
    for quantum in (True, np.bool_(True), Fraction(1, 3), Fraction(2**60 + 1, 2**60), 2**2000, 0, -2.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="a power of two"):
            reversible(half, half, quantum=quantum)


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [("float16", -14, 14), ("bfloat16", -126, 126), ("float32", -126, 126)],
)
def test_quanta_that_the_states_do_not_hold(dtype, least, most):
    x, params = jax.tree.map(lambda x: x.astype(dtype), (start(), parameters(2)))
    for power in (least - 1, most + 1):
        message = rf"from 2\*\*{least} to 2\*\*{most} for {dtype}; got 2\*\*{power}"
        for run in (reversible(half, half, quantum=2.0**power), reversible(half, half, quantum=2.0**power).plain):
            with pytest.raises(ValueError, match=message):
                run(params, x)
    got = reversible(half, half, quantum=2.0**least)(params, jax.tree.map(lambda x: 100 * x, x))
    assert all(np.all(np.isfinite(y)) for y in got)
    assert not np.any(reversible(half, half, quantum=2.0**most)(params, x)[0])  # all are rounded to 0


def test_forward_mode_and_second_derivatives():
    args = parameters(4), start()
    steps = jax.tree.map(jnp.cos, args)

    def products(run):
        f = loss(run)
        slope = jax.grad(f, (0, 1))

        def norm(*a):
            return sum(jnp.sum(g**2) for g in jax.tree.leaves(slope(*a)))

        return jax.jit(lambda a, t: (jax.jvp(f, a, t), jax.jvp(slope, a, t)[1], jax.grad(norm, (0, 1))(*a)))

    assert worst(products(STACK)(args, steps), products(STACK.plain)(args, steps)) < 1e-5


def test_vmap_closures_integers_and_other_shapes():
    params = {"w": normal(0, 5, 3, 4), "on": jnp.array([0, 1, 1, 0, 1])}, {"w": normal(1, 5, 4, 3)}

    def over(run_of):
        def function(params, shift, x):
            stack = reversible(
                lambda p, x: {"u": p["on"] * jnp.tanh(x @ p["w"].T + shift)},
                lambda q, y: jnp.cos(y["u"] @ q["w"].T) * shift,
            )
            y1, y2 = run_of(stack)(params, x)
            return jnp.sum(y1["u"] ** 2) + jnp.sum(y2**3)

        of_floats = lambda w, shift, x: function(({"w": w, "on": params[0]["on"]}, params[1]), shift, x)  # noqa: E731
        return jax.jit(jax.vmap(jax.grad(of_floats, (0, 1, 2)), (None, None, 0)))

    xs = {"u": normal(3, 2, 6, 3)}, normal(4, 2, 6, 4)
    got, plain = (over(run)(params[0]["w"], jnp.float32(0.7), xs) for run in (lambda s: s, lambda s: s.plain))
    assert worst(got, plain) < 1e-5


def test_shard_map():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data = PartitionSpec("data")
    sharded = jax.shard_map(STACK, mesh=mesh, in_specs=(PartitionSpec(), data), out_specs=data)
    args = parameters(4), start()
    assert worst(gradient(sharded)(*args), gradient(STACK)(*args)) < 1e-5


X = jnp.ones((2, 3))
W = jnp.ones((4, 3, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: reversible(None, jnp.dot), TypeError, "`f` of `reversible` must be a function"),  # pyright: ignore
        (lambda: reversible(jnp.dot, jnp.dot, quantum=0.3), ValueError, "a power of two"),
        (lambda: reversible(jnp.dot, jnp.dot)(W, (X, X)), TypeError, "`params` of a `reversible` stack must be a pair"),
        (lambda: reversible(jnp.dot, jnp.dot)((W, W), X), TypeError, "a pair \\(x1, x2\\)"),
        (lambda: reversible(jnp.dot, jnp.dot)((W, W[:2]), (X, X)), ValueError, "one leading axis, the depth"),
        (lambda: reversible(lambda p, x: x[0], jnp.dot)((W, W), (X, X)), TypeError, "it returns"),
        (lambda: reversible(lambda p, x: x.astype(jnp.bfloat16), jnp.dot)((W, W), (X, X)), TypeError, "bfloat16"),
        (lambda: reversible(jnp.dot, jnp.dot)((W, W), (X.astype(int), X)), TypeError, "floating arrays; got int32"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
