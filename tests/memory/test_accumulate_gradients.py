"""Accumulated gradients equal those of the whole batch: means, sums, tokens, ragged batches, narrow types."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad.memory import accumulate_gradients
from tests.memory._loops import normal, worst

WEIGHTS = {"w": normal(0, 5, 4), "b": normal(1, 4)}
X, Y = normal(2, 13, 5), normal(3, 13, 4)
ULP16 = 16 * 2.0**-23


def squares(params, x, y):
    return (jnp.tanh(x @ params["w"] + params["b"]) - y) ** 2


def mean(params, x, y):
    return jnp.mean(squares(params, x, y))


def in_float64(derive, *args):
    """`derive(*args)` of arguments in float64."""
    with jax.enable_x64(True):
        wide = [
            jax.tree.map(lambda x: np.asarray(x, np.float64 if x.dtype == np.float32 else x.dtype), a) for a in args
        ]
        return jax.tree.map(np.asarray, derive(*jax.tree.map(jnp.asarray, wide)))


@pytest.mark.parametrize("microbatch", [1, 4, 13, 50])
@pytest.mark.parametrize("accumulate", ["compensated", "plain"])
def test_mean_of_a_ragged_batch(microbatch, accumulate):
    got = jax.jit(accumulate_gradients(mean, microbatch, accumulate=accumulate))(WEIGHTS, X, Y)
    truth = in_float64(jax.value_and_grad(mean), WEIGHTS, X, Y)
    assert worst(got, truth) < 4e-7
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, truth)


def test_mean_of_means_would_be_another():
    """The bars above are not met by what optax and hand-written loops do on a ragged batch."""
    parts = [jax.value_and_grad(mean)(WEIGHTS, X[i : i + 4], Y[i : i + 4]) for i in range(0, 13, 4)]
    averaged = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *parts)
    assert worst(averaged, jax.value_and_grad(mean)(WEIGHTS, X, Y)) > 1e-2


def test_sum_and_several_arguments():
    def total(x, params, shift, y):
        return jnp.sum(squares(params, x, y - shift))

    args = X, WEIGHTS, jnp.float32(0.5), Y
    got = jax.jit(accumulate_gradients(total, 4, argnums=(1, -2), reduction="sum"))(*args)
    assert worst(got, in_float64(jax.value_and_grad(total, (1, 2)), *args)) < ULP16


def test_tokens_and_a_microbatch_without_any():
    mask = jnp.asarray(np.random.default_rng(0).random((12, 4)) < 0.4).at[4:8].set(False)
    x, y = X[:12], Y[:12]

    def loss(params, x, y, mask):
        each = squares(params, x, y)
        return jnp.sum(each * mask) / jnp.sum(mask), {"error": jnp.sum(each**0.5 * mask) / jnp.sum(mask)}

    got = jax.jit(accumulate_gradients(loss, 4, has_aux=True, weight=lambda x, y, mask: mask.sum()))(
        WEIGHTS, x, y, mask
    )
    assert worst(got, in_float64(jax.value_and_grad(loss, has_aux=True), WEIGHTS, x, y, mask)) < ULP16


def test_many_cancelling_microbatches():
    """The compensated sum is right where the plain one is not."""
    signs = jnp.asarray(np.resize([1e8, 1.0, -1e8], 3000), jnp.float32)

    def loss(w, s):
        return jnp.sum(w * s)

    def gradient(accumulate):
        f = accumulate_gradients(loss, 1, reduction="sum", accumulate=accumulate)
        return float(jax.jit(f)(jnp.float32(1), signs)[1])

    assert gradient("compensated") == 1000.0
    assert gradient("plain") != 1000.0


def test_narrow_gradients_are_added_in_float32():
    w = jnp.ones((), jnp.bfloat16)
    f = accumulate_gradients(lambda w, x: jnp.sum(w * x), 1, reduction="sum", accumulate="plain")
    value, gradient = jax.jit(f)(w, jnp.ones(1000, jnp.bfloat16))
    assert gradient.dtype == value.dtype == jnp.bfloat16
    assert float(gradient) == 1000  # summed in bfloat16 it would stop at 256


def test_memory_is_that_of_a_microbatch():
    x = jnp.ones((2048, 256))

    def loss(w, x):
        for _ in range(4):
            x = jnp.tanh(x @ w)
        return jnp.mean(x)

    def temporaries(f):
        return jax.jit(f).lower(jnp.ones((256, 256)), x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(accumulate_gradients(loss, 16)) < 0.5 * temporaries(jax.value_and_grad(loss))


def test_inside_other_transformations():
    f = accumulate_gradients(mean, 4)
    double = jax.jit(jax.grad(lambda p: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(f(p, X, Y)[1]))))(WEIGHTS)
    g = jax.grad(lambda p: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jax.grad(mean)(p, X, Y))))(WEIGHTS)
    assert worst(double, g) < 1e-5
    batch = jnp.stack([X, X + 1])
    assert (
        worst(jax.vmap(lambda x: f(WEIGHTS, x, Y)[1])(batch), jax.vmap(lambda x: jax.grad(mean)(WEIGHTS, x, Y))(batch))
        < 1e-6
    )


@pytest.mark.parametrize(
    "options, args, error, message",
    [
        ({"microbatch": 0}, (WEIGHTS, X, Y), ValueError, "`microbatch` must be an integer from 1 up; got 0"),
        ({"microbatch": 2.0}, (WEIGHTS, X, Y), TypeError, "`microbatch` must be an integer; got 2.0"),
        ({"microbatch": 2, "reduction": "avg"}, (WEIGHTS, X, Y), ValueError, "must be one of 'mean', 'sum'; got 'avg'"),
        ({"microbatch": 2, "accumulate": "f64"}, (WEIGHTS, X, Y), ValueError, "one of 'compensated', 'plain'"),
        ({"microbatch": 2, "weight": len, "reduction": "sum"}, (WEIGHTS, X, Y), ValueError, "`weight`"),
        ({"microbatch": 2}, (WEIGHTS, X, Y[:3]), ValueError, r"batch\[0\] 13, batch\[1\] 3"),
        ({"microbatch": 2}, (WEIGHTS, X, 1.0), ValueError, "is a scalar"),
        ({"microbatch": 2}, (WEIGHTS, X[:0], Y[:0]), ValueError, "no examples"),
        ({"microbatch": 2, "argnums": "a"}, (WEIGHTS, X, Y), TypeError, "`argnums` is 'a'; expected the position"),
        ({"microbatch": 2, "argnums": 3}, (WEIGHTS, X, Y), ValueError, "`argnums` is 3, but the call has 3 positional"),
        ({"microbatch": 2, "argnums": (0, 1, 2)}, (WEIGHTS, X, Y), ValueError, "needs a batch"),
    ],
)
def test_refusals(options, args, error, message):
    with pytest.raises(error, match=message):
        accumulate_gradients(mean, **options)(*args)


def test_keywords():
    f = accumulate_gradients(mean, 4)
    assert worst(f(y=Y, params=WEIGHTS, x=X), f(WEIGHTS, X, Y)) == 0
    with pytest.raises(TypeError, match=r"by position; got `scale`\. Close over"):
        accumulate_gradients(lambda w, x, *, scale: jnp.sum(w * x) * scale, 4)(1.0, X, scale=2.0)
    with pytest.raises(TypeError, match="`f` is None of type NoneType; expected a function"):
        accumulate_gradients(None, 2)  # pyright: ignore


def test_refuses_what_is_no_scalar():
    with pytest.raises(TypeError, match=r"must return a scalar, .*got shape \(2, 4\)"):
        accumulate_gradients(squares, 2)(WEIGHTS, X, Y)
    with pytest.raises(TypeError, match=r"must return a pair; got float32\[\]"):
        accumulate_gradients(functools.partial(mean), 2, has_aux=True)(WEIGHTS, X, Y)


def test_counts_are_added_exactly():
    """As integers: in float32 numbers from 2**24 up would be rounded."""

    def loss(w, x):
        return jnp.sum(w * x), {"large": jnp.sum(jnp.where(x > 2, 2**24 + 1, 0)), "sum": jnp.sum(x)}

    (_, aux), _ = jax.jit(accumulate_gradients(loss, 2, has_aux=True, reduction="sum"))(1.0, jnp.arange(7.0))
    assert aux["large"].dtype == jnp.int32
    assert (int(aux["large"]), float(aux["sum"])) == (4 * (2**24 + 1), 21)


def test_refuses_what_is_no_mean_of_the_examples():
    def of(aux, batch=7, **options):
        f = accumulate_gradients(lambda w, x: (jnp.mean(w * x), aux(x)), 2, has_aux=True, **options)
        return f(1.0, jnp.arange(float(batch)))

    with pytest.raises(
        ValueError, match=r"aux\['each'\] has shape \(2,\) for 2 examples and \(7,\) for 7. Return its mean"
    ):
        of(lambda x: {"each": x})
    with pytest.raises(ValueError, match="must have one structure for any number of examples"):
        of(list)
    with pytest.raises(TypeError, match="aux is int32"):
        of(lambda x: jnp.sum(x > 2))
    with pytest.raises(TypeError, match="aux is bool"):
        of(lambda x: jnp.any(x > 2), reduction="sum")
    assert of(lambda x: x * 2, batch=2)[0][1].tolist() == [0, 2]  # a batch that is one microbatch
