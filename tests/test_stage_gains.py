"""Gains of chains of stages against NumPy's norms of the products."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad.diagnosis import stage_gains

RNG = np.random.default_rng(0)


def body(carry, w):
    return w @ carry, carry.sum()


SCANNED = stage_gains(body)  # every length of the same shape shares its programs


def of_numpy(matrices):
    """log2 of the norms, and of the norms of the products, with exponents apart."""
    product, lacking, together = np.eye(matrices.shape[2]), 0.0, []
    for a in matrices.astype(np.float64):
        product = a @ product
        size = np.linalg.norm(product, 2)
        product, lacking = product / size, lacking + np.log2(size)
        together.append(lacking)
    return np.log2([np.linalg.norm(a, 2) for a in matrices.astype(np.float64)]), np.array(together)


@pytest.mark.parametrize("scale", [1.0, 1e10, 1e-10])
def test_a_linear_chain_is_exact(scale):
    w = (RNG.standard_normal((60, 5, 5)) * scale).astype(np.float32)
    found = SCANNED(jnp.ones(5), jnp.asarray(w))
    stage, together = of_numpy(w)
    np.testing.assert_allclose(found.log2_stage, stage, atol=1e-5)
    np.testing.assert_allclose(found.log2_cumulative, together, atol=2e-5)
    assert found.converged.all() and (found.log2_cumulative <= found.log2_bound + 1e-4).all()
    assert found.worst == int(np.argmax(stage)) and found.names[7] == "body[7]"
    plain = functools.reduce(jnp.matmul, w[::-1])  # in float32
    assert (np.isfinite(plain).all() and plain.any()) == (scale == 1)


def test_stages_of_several_shapes():
    first, second, third = (jnp.asarray(RNG.standard_normal(s), jnp.float32) for s in ((7, 4), (2, 7), (5, 2)))

    def up(x):
        return {"y": first @ x["x"], "label": jnp.arange(3)}

    def down(s):
        return jnp.tanh(second @ s["y"])

    stages = [up, down, lambda x: third @ x]
    x = jnp.asarray(RNG.standard_normal(4), jnp.float32)
    found = stage_gains(stages)({"x": x})
    jacobians = [jax.jacobian(f)(at) for f, at in ((lambda x: first @ x, x), (lambda y: down({"y": y}), first @ x))]
    jacobians = [np.asarray(j, np.float64) for j in (*jacobians, third)]
    together = [jacobians[0], jacobians[1] @ jacobians[0], jacobians[2] @ jacobians[1] @ jacobians[0]]
    np.testing.assert_allclose(found.stage, [np.linalg.norm(j, 2) for j in jacobians], rtol=1e-5)
    np.testing.assert_allclose(found.cumulative, [np.linalg.norm(j, 2) for j in together], rtol=1e-5)
    assert found.names == ("up", "down", "<lambda>")


def test_a_large_state_is_iterated():
    w = (RNG.standard_normal((4, 100, 100)) / 5).astype(np.float32)
    found = SCANNED(jnp.ones(100), jnp.asarray(w))
    stage, together = of_numpy(w)
    assert found.converged.all()
    np.testing.assert_allclose(found.log2_stage, stage, atol=1.5e-4)  # four digits
    np.testing.assert_allclose(found.log2_cumulative, together, atol=1.5e-4)
    assert (found.log2_cumulative <= together + 1e-5).all()  # from below


def test_what_a_product_amplifies_most_its_factors_may_not():
    a, b = np.ones(100), np.ones(100)
    a[:8], b[8] = 100, 150
    scaled = stage_gains([lambda x: jnp.asarray(a, jnp.float32) * x, lambda x: jnp.asarray(b, jnp.float32) * x])
    found = scaled(jnp.ones(100))
    assert found.converged.all()
    np.testing.assert_allclose(found.stage, [100, 150], rtol=1e-4)
    np.testing.assert_allclose(found.cumulative, [100, 150], rtol=1e-4)


def test_what_is_amplified_most_may_be_annihilated():
    a, b = np.ones(100), np.ones(100)
    a[:8], b[:8] = 1e30, 0
    found = stage_gains([lambda x: jnp.asarray(a, jnp.float32) * x, lambda x: jnp.asarray(b, jnp.float32) * x])(
        jnp.ones(100)
    )
    assert found.converged.all()
    np.testing.assert_allclose(found.log2_cumulative, [30 * np.log2(10), 0], atol=1e-4)


def test_python_numbers_and_narrow_states():
    np.testing.assert_allclose(stage_gains([jnp.sin, jnp.exp])(1.0).stage, [np.cos(1), np.exp(np.sin(1))], rtol=1e-6)
    narrow = stage_gains([lambda x: 3 * x, lambda x: x * x])(jnp.ones(100, jnp.bfloat16))
    assert narrow.converged.all()
    np.testing.assert_allclose(narrow.cumulative, [3, 18], rtol=2**-7)


def test_the_product_is_not_the_product_of_the_norms():
    turn = jnp.asarray(np.diag([100.0, 0.01]), jnp.float32)
    swap = jnp.asarray([[0.0, 1.0], [1.0, 0.0]])
    found = SCANNED(jnp.ones(2), jnp.stack([turn, swap] * 10))
    assert found.log2_cumulative[-1] == pytest.approx(0, abs=1e-4)
    assert found.log2_bound[-1] == pytest.approx(10 * np.log2(100), rel=1e-5)


def test_dead_stages_nan_and_overflow():
    w = jnp.stack([jnp.eye(5), jnp.zeros((5, 5)), jnp.eye(5)])
    found = SCANNED(jnp.ones(5), w)
    assert found.cumulative.tolist() == [1, 0, 0] and np.isneginf(found.log2_cumulative[1:]).all()
    bad = SCANNED(jnp.ones(5), w.at[1, 2, 3].set(jnp.nan))
    assert np.isnan(bad.log2_cumulative[1:]).all() and not bad.converged[1:].any()
    assert str(bad).count("not finite") == 2 and "at least" not in str(bad)
    huge = stage_gains(lambda c, _: (1e30 * c, None), length=40)(jnp.zeros(2))
    assert huge.log2_cumulative[-1] == pytest.approx(40 * 30 * np.log2(10), rel=1e-6) and huge.cumulative[-1] == np.inf


def test_it_prints_and_takes_modules():
    net = eqx.nn.MLP(3, 3, 8, 2, key=jax.random.key(0))
    found = stage_gains([*net.layers, jnp.tanh])(jnp.ones(3))
    expected = np.linalg.norm(np.asarray(net.layers[0].weight, np.float64), 2)
    assert found.stage[0] == pytest.approx(expected, rel=1e-5)
    text = str(found)
    assert "gains of 4 stages" in text and "Linear" in text and "<- largest" in text and "product of norms" in text
    assert found.scalars()["log2_gain/all"] == found.log2_cumulative[-1]
    assert "... 20 more" in str(SCANNED(jnp.ones(5), jnp.tile(jnp.eye(5), (60, 1, 1))))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: stage_gains([]), "non-empty sequence of functions"),
        (lambda: stage_gains([jnp.sin, 3]), "got list of .*int"),
        (lambda: stage_gains([jnp.sin], length=2), "`length`=2 is for the body of a scan"),
        (lambda: stage_gains(body)(jnp.ones(2)), "the scan's length must be given once"),
        (lambda: stage_gains(body, length=2)(jnp.ones(2), jnp.ones((3, 2, 2))), "the scan's length must be given once"),
        (lambda: stage_gains(body)(jnp.ones(2), [1.0, 2.0]), "by the first axis of the arrays"),
        (lambda: stage_gains([jnp.sin])({"a": jnp.ones(2), "b": "relu"}), "arrays and numbers alone; got 'relu'"),
        (lambda: stage_gains(lambda c, x: c, length=2)(jnp.ones(2)), "must return .carry, y."),
        (lambda: stage_gains([jnp.argmax])(jnp.ones(2)), "must return floating arrays"),
        (lambda: stage_gains([jnp.sin])(jnp.ones(0)), "the Jacobian of `sin` is empty: 0 x 0"),
        (lambda: stage_gains([jnp.sin])(3), "nothing to differentiate"),
        (lambda: jax.jit(lambda x: stage_gains([jnp.sin])(x).log2_stage)(jnp.ones(2)), "called on traced arrays"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
