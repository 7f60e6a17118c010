"""Random expressions: where a rule fires, values and slopes are never less accurate than the plain form's, within 3 ulp."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad.rewriting.expressions._derivative import derivative
from tests.rewriting._scalar import exact, expression, firings, stable, ulps

FUNCTIONS = "exp log sin cos arctan sqrt expm1 log1p tanh sinh".split()


def drawn(rng, depth):
    """A random expression as nested tuples."""
    if depth == 0 or rng.random() < 0.12:
        return rng.choice(["x", "x", "y", "1.0", "2.0", "0.5", "3.0"])
    if rng.random() < 0.4:
        return rng.choice(FUNCTIONS), drawn(rng, depth - 1)
    return rng.choice("+--**/"), drawn(rng, depth - 1), drawn(rng, depth - 1)


def function(tree):
    def value(t, x, y):
        match t:
            case str():
                return {"x": x, "y": y}.get(t) if t in "xy" else np.float32(t)
            case (name, a):
                return getattr(jnp, name)(value(a, x, y))
            case (sign, a, b):
                a, b = jnp.asarray(value(a, x, y)), value(b, x, y)
                return {"+": a.__add__, "-": a.__sub__, "*": a.__mul__, "/": a.__truediv__}[sign](b)

    return lambda x, y: jnp.asarray(value(tree, x, y)) + 0 * x


def fired(count):
    """The first `count` seeds whose expression is rewritten."""
    seeds, seed = [], 0
    while len(seeds) < count:
        f = function(drawn(random.Random(seed), 3))
        with np.errstate(all="ignore"):
            if firings(f, 2):
                seeds.append(seed)
        seed += 1
    return seeds


@pytest.mark.parametrize("seed", fired(16))
def test_never_less_accurate(seed):
    f = function(drawn(random.Random(seed), 3))
    e = expression(f, 2)
    wanted = [e, derivative(e, 0), derivative(e, 1)]
    rng = np.random.default_rng(seed)
    points = 10 ** rng.uniform(-5, 5, (12, 2)) * rng.choice([-1, 1], (12, 2))
    points[8:] = 1 + 10 ** rng.uniform(-6, -1, (4, 2))
    points = points.astype(np.float32)

    def evaluated(h):
        value, slopes = jax.jit(jax.vmap(jax.value_and_grad(h, (0, 1))))(points[:, 0], points[:, 1])
        return np.stack([value, *slopes], 1)

    for point, plain, ours in zip(points, evaluated(f), evaluated(stable(f))):
        for got, before, w in zip(ours, plain, wanted):
            want = exact(w, point, 250)
            if want is not None and 1e-36 < abs(want) < 1e37:
                assert ulps(got, want) <= max(3, 1.2 * ulps(before, want)), (point, got, before, want)
