"""Cross-entropies: p - y to the last bits, masks, smoothing, ignored rows; beside optax."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from robustad.stability import sigmoid_cross_entropy, softmax_cross_entropy
from tests._log_space import INF, Exact, rows, words
from tests._subset import thinned
from tests._ulp import ulps

BOUND = {np.float32: 4, np.float64: 8}
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])


def worst(got, exact) -> float:
    return float(ulps(got, *words(exact)).max())


def slope(e: Exact, label: int) -> list:
    return [-q if i == label else p for i, (p, q) in enumerate(zip(e.p, e.q))]


@DTYPES
def test_hard_and_one_hot_labels(dtype):
    with jax.enable_x64(dtype == np.float64):
        xs = [x for x in rows(dtype, 5, count=4) if x.max() <= 64]
        labels = np.array(
            [int(np.argmax(x)) if i % 2 else int(np.argmin(np.where(x > -INF, x, INF))) for i, x in enumerate(xs)]
        )
        one_hot = np.eye(len(xs[0]), dtype=dtype)[labels]
        for y in (labels, one_hot):
            values = np.asarray(jax.jit(softmax_cross_entropy)(np.stack(xs), y))
            gradients = np.asarray(jax.jit(jax.vmap(jax.grad(softmax_cross_entropy)))(np.stack(xs), y))
            hessians = np.asarray(jax.jit(jax.vmap(jax.hessian(softmax_cross_entropy)))(np.stack(xs), y))
            for x, label, value, gradient, hessian in zip(xs, labels, values, gradients, hessians):
                e = Exact(x)
                assert worst(value, -e.log_softmax[label]) <= BOUND[dtype], (x, label)
                assert worst(gradient, slope(e, label)) <= BOUND[dtype], (x, label)
                assert not gradient[x == -INF].any()
                assert worst(hessian, e.covariance()) <= 2 * BOUND[dtype], (x, label)


def test_two_units_of_one():
    """|error of p - y| ≤ 2⁻²³, at logits up to 10⁴ and 10³ classes."""
    rng = np.random.default_rng(0)
    for scale in (1.0, 10.0, 1e4):
        x = (rng.normal(size=(20, 1000)) * scale).astype(np.float32)
        y = rng.integers(0, 1000, 20)
        e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
        exact = e / e.sum(1, keepdims=True) - np.eye(1000)[y]
        gradient = jax.jit(jax.grad(lambda x, y=y: softmax_cross_entropy(x, y).sum()))(x)
        assert np.abs(gradient - exact).max() <= 2.0**-23


def test_the_plain_forms_fail():
    x = jnp.array([40.0, 0.0])
    plain = optax.losses.softmax_cross_entropy_with_integer_labels
    assert plain(x, 0) == 0 and jax.grad(plain)(x, 0)[0] == 0
    assert softmax_cross_entropy(x, 0) != 0 and jax.grad(softmax_cross_entropy)(x, 0)[0] != 0
    assert np.isnan(jax.grad(plain)(jnp.array([INF, 0.0]), 0)).any()
    assert np.isnan(optax.losses.sigmoid_binary_cross_entropy(jnp.array(INF), 1.0))


POLICY = [  # row, label, loss, gradient
    ([1e4, -1e4, 0.0], 0, 0.0, [0, 0, 0]),
    ([1e4, -1e4, -INF], 1, 2e4, [1, -1, 0]),
    ([7.0, 7.0, -INF], 2, INF, [0.5, 0.5, 0]),
    ([-INF, -INF, -INF], 0, INF, [0, 0, 0]),
    ([5.0, INF, -INF], 1, 0.0, [0, 0, 0]),
    ([5.0, INF, -INF], 0, INF, [-1, 1, 0]),
    ([INF, INF, 0.0], 0, np.log(2), [-0.5, 0.5, 0]),
]


@pytest.mark.parametrize("hard", thinned([True, False], 2))
def test_policy_at_infinities(hard):
    x, labels, values, gradients = (np.array(z) for z in zip(*POLICY))
    x = x.astype(np.float32)
    y = labels if hard else np.eye(3, dtype=np.float32)[labels]
    np.testing.assert_allclose(softmax_cross_entropy(x, y), values, rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(jax.vmap(jax.grad(softmax_cross_entropy)))(x, y), gradients)
    assert np.isfinite(jax.jit(jax.vmap(jax.hessian(softmax_cross_entropy)))(x, y)).all()


def test_soft_labels():
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32) * 8
    y = np.random.default_rng(1).dirichlet(np.ones(6), 5).astype(np.float32)
    wide, soft = x.astype(np.float64), y.astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    assert ulps(softmax_cross_entropy(x, y), -(soft * log_p).sum(1)).max() <= 4
    in_x, in_y = jax.grad(lambda x, y: softmax_cross_entropy(x, y).sum(), (0, 1))(x, y)
    np.testing.assert_allclose(in_x, soft.sum(1, keepdims=True) * np.exp(log_p) - soft, atol=2.0**-23)
    assert ulps(in_y, -log_p).max() <= 4
    np.testing.assert_allclose(softmax_cross_entropy(x.T, y.T, axis=0), softmax_cross_entropy(x, y), rtol=1e-6)
    check_grads(jax.jit(softmax_cross_entropy), (x / 8, y), 2, rtol=2e-2)


@pytest.mark.parametrize("hard", thinned([True, False], 2))
def test_smoothing_as_optax(hard):
    x = jax.random.normal(jax.random.key(0), (5, 6)) * 8
    y = jnp.array([0, 1, 2, 3, 5])
    smooth = optax.losses.smooth_labels(jax.nn.one_hot(y, 6), 0.1)
    labels = y if hard else jax.nn.one_hot(y, 6)
    wanted = optax.losses.softmax_cross_entropy(x, smooth)
    np.testing.assert_allclose(softmax_cross_entropy(x, labels, label_smoothing=0.1), wanted, rtol=2e-6)
    gradient = jax.grad(lambda x: softmax_cross_entropy(x, labels, label_smoothing=0.1).sum())(x)
    np.testing.assert_allclose(gradient, jax.nn.softmax(x) - smooth, atol=3e-7)
    masked = x.at[0, 3].set(-INF)
    loss = softmax_cross_entropy(masked, labels, label_smoothing=0.1)[0]
    others = jnp.delete(masked[0], 3)
    np.testing.assert_allclose(loss, softmax_cross_entropy(others, 0, label_smoothing=0.1), rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: softmax_cross_entropy(x, labels, label_smoothing=0.1).sum())(masked)).all()


def test_ignored_rows_masks_and_bad_labels():
    x = jax.random.normal(jax.random.key(0), (4, 5)).at[2].set(jnp.nan)
    y = jnp.array([0, 4, -1, 2])
    loss, gradient = jax.value_and_grad(lambda x: softmax_cross_entropy(x, y, ignore_index=-1).sum())(x)
    assert np.isfinite(loss) and not gradient[2].any() and np.isfinite(gradient).all()
    assert softmax_cross_entropy(x, y, ignore_index=-1)[2] == 0
    assert np.isnan(softmax_cross_entropy(x[0], 7)) and np.isnan(jax.grad(softmax_cross_entropy)(x[0], 7)).all()
    where = jnp.arange(5) != 3
    kept = jax.grad(lambda x: softmax_cross_entropy(x, 1, where=where))(x[0])
    assert kept[3] == 0
    np.testing.assert_allclose(
        softmax_cross_entropy(x[0], 1, where=where), softmax_cross_entropy(jnp.delete(x[0], 3), 1), rtol=1e-6
    )


def test_errors_and_dtypes():
    x = jnp.zeros((4, 5))
    with pytest.raises(ValueError, match=r"`labels` have shape \(3,\), expected \(4,\)"):
        softmax_cross_entropy(x, jnp.zeros(3, int))
    with pytest.raises(ValueError, match="`label_smoothing` is 2"):
        softmax_cross_entropy(x, jnp.zeros(4, int), label_smoothing=2)
    with pytest.raises(ValueError, match="`ignore_index` needs integer"):
        softmax_cross_entropy(x, x, ignore_index=0)
    with jax.numpy_dtype_promotion("strict"):
        half = x.astype(jnp.bfloat16)
        y = jnp.zeros(4, jnp.int32)
        assert softmax_cross_entropy(half, y).dtype == jnp.bfloat16
        assert jax.grad(lambda x: softmax_cross_entropy(x, y, label_smoothing=0.1).sum())(half).dtype == jnp.bfloat16
        assert sigmoid_cross_entropy(half, half).dtype == jnp.bfloat16
        assert softmax_cross_entropy(x, x, where=x == 0).dtype == jnp.float32


@DTYPES
def test_sigmoid(dtype):
    with jax.enable_x64(dtype == np.float64):
        x = np.r_[0.0, 1e-30, 37.43, -37.43, 88.0, -88.0, 1e4, -1e4, np.random.default_rng(0).normal(size=60) * 20]
        x = x.astype(dtype)
        for y in (0.0, 1.0, 0.25, 0.75):
            value, first, second = (
                np.asarray(jax.jit(jax.vmap(f))(x, np.full_like(x, y)))
                for f in (
                    sigmoid_cross_entropy,
                    jax.grad(sigmoid_cross_entropy),
                    jax.grad(jax.grad(sigmoid_cross_entropy)),
                )
            )
            with mpmath.workprec(300):
                a = [mpmath.mpf(float(v)) for v in x]
                s = [1 / (1 + mpmath.exp(-v)) for v in a]
                c = [1 / (1 + mpmath.exp(v)) for v in a]
                exact = [-y * mpmath.log(p) - (1 - y) * mpmath.log(q) for p, q in zip(s, c)]
                slopes = [(1 - y) * p - y * q for p, q in zip(s, c)]
                curvatures = [p * q for p, q in zip(s, c)]
            assert worst(value, exact) <= BOUND[dtype]
            if y in (0, 1):
                assert worst(first, slopes) <= BOUND[dtype]
            assert np.abs(first - words(slopes)[0]).max() <= np.finfo(dtype).eps
            assert worst(second, curvatures) <= BOUND[dtype]


def test_sigmoid_at_infinities():
    x, y = jnp.array([INF, INF, -INF, -INF]), jnp.array([1.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(sigmoid_cross_entropy(x, y), [0, INF, 0, INF])
    np.testing.assert_array_equal(jax.vmap(jax.grad(sigmoid_cross_entropy))(x, y), [0, 1, 0, -1])
    np.testing.assert_array_equal(jax.grad(sigmoid_cross_entropy, 1)(3.0, 0.5), -3.0)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int32])
def test_labels_of_a_vocabulary_that_just_fits_their_dtype(dtype):
    classes = min(256, int(jnp.iinfo(dtype).max) + 1)
    loss = softmax_cross_entropy(jnp.zeros((2, classes)), jnp.array([3, classes - 1], dtype))
    assert ulps(loss, np.log(classes)).max() <= 1


def test_forward_mode_where_an_infinite_loss_meets_a_zero_weight():
    a, y, t = jnp.array([1.0, 2.0, -INF]), jnp.array([0.5, 0.5, 0.0]), jnp.array([1.0, 0.0, 0.0])

    def soft(a):
        return softmax_cross_entropy(a, y)

    def plain(a):
        return -(y * jax.nn.log_softmax(a)).sum()

    slope = 1 / (1 + np.e) - 0.5
    assert ulps(jax.jvp(soft, (a,), (t,))[1], slope) <= 2 and ulps(jax.grad(soft)(a)[0], slope) <= 2
    assert np.isnan(plain(a))
    assert jax.jvp(lambda a: sigmoid_cross_entropy(a, 1.0), (INF,), (1.0,))[1] == 0
    assert np.isnan(-jax.nn.log_sigmoid(INF) - (1 - 1.0) * jax.nn.log_sigmoid(-INF))


def test_the_derivative_in_a_binary_label():
    """It is -a, exactly; the difference of two logarithms cancels."""
    a = jnp.array([1e-8, 1.2543e-5, 3.0, -40.0, 100.0])

    def plain(a, y):
        return -y * jax.nn.log_sigmoid(a) - (1 - y) * jax.nn.log_sigmoid(-a)

    ours, theirs = (jax.vmap(jax.grad(f, 1), (0, None))(a, 0.3) for f in (sigmoid_cross_entropy, plain))
    np.testing.assert_array_equal(ours, -a)
    assert theirs[0] == 0 and ulps(theirs[1], -np.float64(a[1])) > 1000
