"""safe_where: the branch that is not taken never poisons, and the one that is taken is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad import stability

CASES = {  # name: (condition, branch, other, points, exact gradient, exact second derivative)
    "sqrt": (lambda x: x > 0, jnp.sqrt, jnp.zeros_like, [0.0, 0.25], [0, 1], [0, -2]),
    "log": (lambda x: x > 0, jnp.log, jnp.zeros_like, [0.0, -1.0, 2.0], [0, 0, 0.5], [0, 0, -0.25]),
    "P1": (lambda x: x >= 1, jnp.sqrt, lambda x: x, [0.0, 4.0], [1, 0.25], [0, -1 / 32]),
    "reciprocal": (lambda x: x != 0, lambda x: 1 / x, jnp.zeros_like, [0.0, 2.0], [0, -0.25], [0, 0.25]),
    "arccos": (lambda x: jnp.abs(x) < 1, jnp.arccos, jnp.zeros_like, [1.0, 0.0], [0, -1], [0, 0]),
    "power": (lambda x: x > 0, lambda x: x**0.3, jnp.zeros_like, [0.0, 1.0], [0, 0.3], [0, -0.21]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("compiled", [False, True])
def test_derivatives(case, compiled):
    condition, branch, other, points, first, second = CASES[case]
    x = jnp.array(points)
    wrap = jax.jit if compiled else lambda f: f

    def safe(x):
        return stability.safe_where(condition(x), branch, other, x)

    def plain(x):
        return jnp.where(condition(x), branch(x), other(x))

    def total(x):
        return safe(x).sum()

    np.testing.assert_array_equal(wrap(safe)(x), plain(x))
    np.testing.assert_allclose(wrap(jax.grad(total))(x), first, rtol=1e-6)
    np.testing.assert_allclose(wrap(jax.vmap(jax.grad(safe)))(x), first, rtol=1e-6)
    np.testing.assert_allclose(wrap(jax.grad(lambda x: jax.vmap(safe)(x).sum()))(x), first, rtol=1e-6)
    np.testing.assert_allclose(
        wrap(jax.jvp)(safe, (x,), (jnp.ones_like(x),))[1] if not compiled else first, first, rtol=1e-6
    )
    np.testing.assert_allclose(wrap(jax.hessian(total))(x), np.diag(second), rtol=1e-6)
    np.testing.assert_allclose(wrap(jax.jacrev(jax.grad(total)))(x), np.diag(second), rtol=1e-6)
    assert not np.isfinite(jax.hessian(lambda x: plain(x).sum())(x)).all()


def test_rows_under_scan_and_remat():
    """The norm of a row, masked where the row is zero."""
    rows = jnp.array([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]])

    @jax.checkpoint
    def body(total, x):
        taken = (x != 0).any(-1, keepdims=True)
        norms = stability.safe_where(
            taken, lambda x: jnp.linalg.norm(x, axis=-1, keepdims=True), lambda x: 0 * x[:, :1], x
        )
        return total + norms.sum(), None

    gradient = jax.grad(lambda r: jax.lax.scan(body, 0.0, r)[0])(rows)
    np.testing.assert_allclose(gradient, [[[0.6, 0.8], [0, 0]], [[0, 0], [0, 1]]], rtol=1e-6)


def test_an_indeterminate_product_in_the_taken_branch_is_not_made_zero():
    """sqrt(x) sqrt(x) at 0: the derivative is 1; 0 would be a silent error, NaN is what the program says."""

    def f(x):
        return stability.safe_where(x >= 0, lambda x: jnp.sqrt(x) * jnp.sqrt(x), jnp.zeros_like, x)

    assert np.isnan(jax.grad(f)(0.0))


def test_bad_input():
    with pytest.raises(TypeError, match="`condition` has dtype float32; expected bool"):
        stability.safe_where(jnp.ones(2), jnp.sqrt, jnp.sqrt, jnp.ones(2))
    with pytest.raises(TypeError, match="must return the same structure"):
        stability.safe_where(True, lambda x: (x, x), lambda x: x, jnp.ones(2))
