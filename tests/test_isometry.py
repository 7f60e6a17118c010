"""The isometry defect against its definition, from NumPy's singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad.diagnosis import IsometryDefect, isometry_defect

RNG = np.random.default_rng(0)


def times(x, a):
    return a @ x


DEFECT = jax.jit(isometry_defect(times))


def of_numpy(a):
    squares = np.linalg.svd(np.asarray(a, np.float64), compute_uv=False) ** 2
    return squares.std() / squares.mean(), np.sqrt(squares.mean())


def measured(a):
    a = jnp.asarray(a, jnp.float32)
    return DEFECT(jnp.ones(a.shape[1]), a), *of_numpy(a)


@pytest.mark.parametrize("shape", [(20, 20), (30, 12), (12, 30), (150, 100)])
@pytest.mark.parametrize("scale", [1.0, 1e25, 1e-25])
def test_definition(shape, scale):
    a = RNG.standard_normal(shape)
    found, defect, size = measured(a * scale)
    exact = min(shape) <= 64
    assert found.exact == exact and found.shape == shape
    assert found.defect == pytest.approx(defect, rel=1e-5 if exact else 0.1)
    assert found.scale == pytest.approx(size, rel=1e-5 if exact else 0.05)
    assert (found.standard_error == 0) == exact
    isometry, _, _ = measured(np.linalg.qr(a if shape[0] >= shape[1] else a.T)[0] * scale)
    assert isometry.defect < 1e-6  # a few eps, by estimates too
    assert isometry.scale == pytest.approx(scale, rel=1e-5)


def test_a_deep_linear_net():
    """Orthogonal layers keep dynamical isometry at every depth; Gaussian ones lose it. (Saxe 2014, section 3.)"""
    gaussian = RNG.standard_normal((20, 24, 24)) / np.sqrt(24)
    orthogonal = np.linalg.qr(gaussian)[0]

    def net(x, layers):
        return jax.lax.scan(lambda x, w: (w @ x, None), x, layers)[0]

    of = jax.jit(isometry_defect(net))
    x = jnp.ones(24)
    good, bad = (of(x, jnp.asarray(w, jnp.float32)) for w in (orthogonal, gaussian))
    assert good.defect < 2e-6 and good.scale == pytest.approx(1, rel=1e-5)
    assert bad.defect > 3


def test_the_error_that_it_states():
    a = jnp.asarray(RNG.standard_normal((100, 100)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 30)
    found = jax.vmap(lambda key: isometry_defect(times, key=key)(jnp.ones(100), a))(keys)
    errors = (np.asarray(found.defect) - of_numpy(a)[0]) / np.asarray(found.standard_error)
    assert 0.3 < np.sqrt(np.mean(errors**2)) < 2
    assert "a batch of (30,)" in str(found)


def test_degenerate_and_not_finite():
    rank_one = np.outer(RNG.standard_normal(20), RNG.standard_normal(20))
    assert measured(rank_one)[0].defect == pytest.approx(np.sqrt(19), rel=1e-5)
    for m, n in ((20, 20), (150, 100)):
        zero = DEFECT(jnp.ones(n), jnp.zeros((m, n)))
        assert zero.defect == np.inf and zero.scale == 0 and zero.standard_error == 0
        assert np.isnan(DEFECT(jnp.ones(n), jnp.full((m, n), jnp.nan)).defect)


def test_it_prints_and_composes():
    found = isometry_defect(lambda x: 3 * x)(jnp.ones(4, jnp.bfloat16))
    assert isinstance(found, IsometryDefect) and float(found) < 1e-6
    assert "4 x 4" in str(found) and "3 times an isometry" in str(found)
    assert found.scalars()["scale"] == pytest.approx(3)
    with jax.enable_x64(True):
        assert float(isometry_defect(jnp.sin)(jnp.ones(4, jnp.float64))) < 1e-14
    assert isometry_defect(lambda x: (3 * x, x[:2] ** 2), has_aux=True)(jnp.ones(4)).scale == pytest.approx(3)
    with pytest.raises(ValueError, match="`f` must be a function; got int"):
        isometry_defect(3)
    with pytest.raises(ValueError, match=r"the Jacobian of `.*` is empty: 0 x 4"):
        isometry_defect(lambda x: x[:0])(jnp.ones(4))
    with pytest.raises(ValueError, match="`samples` must be an integer >= 2"):
        isometry_defect(jnp.sin, samples=1)
