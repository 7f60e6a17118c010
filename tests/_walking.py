"""Programs under the shadow arithmetic, beside two oracles: the plain program, and the same program in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr
from robustad._interpret import interpret
from robustad.arithmetic import _shadow
from robustad.arithmetic._shadow import Shadow, ShadowArithmetic

TOLERANCE = 1e-12  # of a twin, relative to its largest element


def walk(f: Callable[..., Any], *args: Any) -> Any:
    """`f(*args)` as a pytree of `Shadow`s."""
    program, shapes = _jaxpr.trace(f, *args)
    with jax.enable_x64(True):
        leaves = [jnp.asarray(x) for x in jax.tree.leaves(args)]
        outs, _ = jax.jit(lambda xs: interpret(ShadowArithmetic(), program, [_shadow.lift(x) for x in xs]))(leaves)
    return jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.map(on_host, outs))


def on_host(x: Any) -> Any:
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)


def shadows(tree: Any) -> list[Shadow]:
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Shadow))


def in_float64(f: Callable[..., Any], *args: Any) -> Any:
    """The same function on the same numbers in float64 (complex128)."""
    with jax.enable_x64(True):
        wide = [_jaxpr.widen(jnp.asarray(x), _shadow.wide(x.dtype)) for x in jax.tree.leaves(args)]
        return jax.jit(f)(*jax.tree.unflatten(jax.tree.structure(args), wide))


def assert_typed(value: Shadow) -> None:
    """A floating array has a twin of its own shape, an integer, boolean or key array none."""
    if jnp.issubdtype(value.working.dtype, jnp.inexact):
        assert value.high is not None
        assert value.high.shape == value.working.shape
        assert value.high.dtype == _shadow.wide(value.working.dtype)
    else:
        assert value.high is None


def assert_close(got: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """Equal up to `tolerance` of the largest finite element; not finite in the same places."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite])
    size = np.max(np.abs(expected[finite]), initial=0.0)
    np.testing.assert_allclose(got[finite], expected[finite], rtol=0, atol=tolerance * size)


def assert_same_bits(got: Any, expected: Any) -> None:
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype
    if jnp.issubdtype(got.dtype, jnp.inexact):  # numpy's comparison knows no NaN of bfloat16
        got, expected = (x.astype(_shadow.wide(x.dtype)) for x in (got, expected))
    np.testing.assert_array_equal(got, expected)
