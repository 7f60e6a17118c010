"""Which layer of a loop a nonlinearity belongs to, for `gradient_flow`: as in the same layers, unrolled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from robustad.diagnosis import gradient_flow


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) / shape[-2] ** 0.5, jnp.float32)


X = normal(100, 16, 8) * 4
ACTIVITY = ("saturated", "dead", "inactive")


def activity(flow):
    return {field: [getattr(layer, field) for layer in flow.layers] for field in ACTIVITY}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("act", [lambda x: jnp.tanh(100 * x), jax.nn.relu])
def test_nonlinearities_before_the_weights_in_a_scan(act, reverse):
    """A residual block that begins with its nonlinearity: what it does to a layer's output is in the next iteration."""
    w = normal(3, 4, 8, 8).at[1].set(normal(4, 8, 8) * 1e-4)

    def block(x, w):
        return (x + act(x) @ w).at[:, :2].set(-1.0), None

    def unrolled(p, x):
        for layer in [p[name] for name in sorted(p, reverse=reverse)]:
            x, _ = block(x, layer)
        return jnp.sum(act(x) ** 2)

    def scanned(p, x):
        return jnp.sum(act(lax.scan(block, x, p["w"], reverse=reverse)[0]) ** 2)

    def first(p, x):  # the scan's first nonlinearity belongs to a layer before it
        return scanned(p["blocks"], x @ p["first"])

    apart = gradient_flow(unrolled)({f"w{k}": w[k] for k in range(4)}, X)
    stacked = gradient_flow(scanned)({"w": w}, X)
    both = gradient_flow(first)({"first": jnp.eye(8), "blocks": {"w": w}}, X)
    for field in ("saturated", "dead", "inactive"):
        expected = [getattr(layer, field) for layer in apart.layers]
        np.testing.assert_allclose([getattr(layer, field) for layer in stacked.layers], expected, rtol=1e-5)
        np.testing.assert_allclose([getattr(layer, field) for layer in both.layers[1:]], expected, rtol=1e-5)
    flat = act(X) <= 0 if act is jax.nn.relu else jnp.abs(act(X)) > np.sqrt(0.99)
    flat_share = both.layers[0].inactive if act is jax.nn.relu else both.layers[0].saturated
    assert flat_share == pytest.approx(float(jnp.mean(flat)), rel=1e-5)


def test_in_a_loop_in_a_loop():
    """Blocks of two layers each: an inner scan, whose first nonlinearity is of what the outer one carries."""
    w = normal(5, 3, 2, 8, 8)

    def layer(x, w):
        return x + jnp.tanh(2 * x) @ w, None

    def nested(p, x):
        return jnp.sum(lax.scan(lambda x, w: lax.scan(layer, x, w), x, p["w"])[0] ** 2)

    def flat(p, x):
        return jnp.sum(lax.scan(layer, x, p["w"])[0] ** 2)

    inner, outer = gradient_flow(flat)({"w": w.reshape(6, 8, 8)}, X), gradient_flow(nested)({"w": w}, X)
    assert [layer.name for layer in outer.layers] == [f"w[{i}, {j}]" for i in range(3) for j in range(2)]
    for field, expected in activity(inner).items():
        np.testing.assert_allclose(activity(outer)[field], expected, rtol=1e-5, err_msg=field)


def test_of_weights_that_every_step_uses():
    """All steps together: what the first one begins with belongs to no layer."""

    def recurrent(p, x):
        return jnp.sum(lax.scan(lambda h, _: (jnp.tanh(3 * h) @ p["w"], None), x, length=5)[0])

    w = normal(6, 8, 8)
    (layer,) = gradient_flow(recurrent)({"w": w}, X).layers
    h, flat = X, []
    for _ in range(5):
        y = jnp.tanh(3 * h)
        flat.append(float(jnp.mean(jnp.abs(y) > np.sqrt(0.99))))
        h = y @ w
    assert layer.saturated == pytest.approx(np.mean(flat[1:]), rel=1e-5) and flat[0] != pytest.approx(flat[1], rel=1e-2)
