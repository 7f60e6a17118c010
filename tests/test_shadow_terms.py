"""What the shadow arithmetic records of the size of terms, and what it does without a rule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import mlir

from robustad import _jaxpr
from robustad._interpret import interpret
from robustad.arithmetic import _shadow
from robustad.arithmetic._shadow import ShadowArithmetic
from tests._operands import x, y
from tests._walking import assert_close, assert_same_bits, assert_typed, in_float64, walk

# -------------------------------------------------------------------------------------------------- the size of terms


def terms(f: Callable[..., Any], primitive: str, *args: Any) -> float:
    program, _ = _jaxpr.trace(f, *args)
    (path,) = [site.path for site in _jaxpr.sites(program) if site.primitive == primitive]
    arithmetic = ShadowArithmetic(terms=frozenset({path}))
    with jax.enable_x64(True):
        records = jax.jit(lambda xs: interpret(arithmetic, program, [_shadow.lift(x) for x in xs])[1])(list(args))
        return float(records[path])


a32, b32 = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
a64, b64 = np.abs(np.asarray(a32, np.float64)), np.abs(np.asarray(b32, np.float64))
groups = jnp.asarray([3, 0, 5], jnp.int32)
TERMS: list[tuple[str, Callable[..., Any], tuple[Any, ...], Any]] = [
    ("reduce_sum", lambda x: jnp.sum(x, 0), (a32,), a64.sum(0)),
    ("cumsum", lambda x: jnp.cumsum(x, 1), (a32,), a64.cumsum(1)),
    ("dot_general", lambda x, y: x @ y.T, (a32, b32), a64 @ b64.T),
    ("dot_general", lambda x, y: x @ y.T, (a32.astype(jnp.bfloat16), b32), None),
    ("dot_general", lambda x, y: x @ y.T, (a32 + 0j, b32 + 0j), a64 @ b64.T),
    ("conv_general_dilated", lambda x, y: lax.conv(x[None, None], y[None, None], (1, 1), "VALID"), (a32, b32), None),
    ("scatter-add", lambda x, y: x.at[jnp.array([0, 0, 2])].add(y), (a32, b32), None),
    ("ragged_dot_general", lax.ragged_dot, (a32.T, jnp.stack([b32] * 3), groups), a64.T @ b64),
    ("sin", jnp.sin, (a32,), np.sin(a64)),
]


@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e18])
@pytest.mark.parametrize("case", TERMS, ids=lambda case: case[0])
def test_terms_size(case: Any, scale: float) -> None:
    """The norm of the sum of the magnitudes, whatever their scale: a product of two exceeds float32's range."""
    primitive, f, args, expected = case
    scale = 1.0 if primitive == "sin" else scale
    products = 2 if primitive in _shadow.CONTRACTING else 1
    scaled = [a * jnp.asarray(scale, a.dtype) if jnp.issubdtype(a.dtype, jnp.inexact) else a for a in args]
    if expected is None:
        wide = [np.abs(np.asarray(a).astype(np.float64)) for a in args]
        expected = in_float64(f, *[jnp.asarray(a, jnp.float32) for a in wide])
    np.testing.assert_allclose(
        terms(f, primitive, *scaled), np.linalg.norm(np.ravel(expected)) * scale**products, rtol=1e-2
    )


# ---------------------------------------------------------------------------------------- primitives without a rule


def new_primitive(name: str) -> Callable[[Any], Any]:
    """Doubles; JAX can run it, robustad has no rule for it."""
    primitive = jax.extend.core.Primitive(name)
    primitive.def_impl(lambda x: x * 2)
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(primitive, mlir.lower_fun(lambda x: x * 2, multiple_results=False))
    return primitive.bind


def through_the_host(x: Any) -> Any:
    return jax.pure_callback(lambda v: 2 * np.asarray(v), jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def schur(x: Any) -> Any:
    return jax.scipy.linalg.schur(jnp.diag(x))[0].diagonal()


UNKNOWN = [("doubled_by_a_stranger", None), ("pure_callback", through_the_host), ("schur", schur)]


@pytest.mark.parametrize("name,f", UNKNOWN, ids=lambda v: v if isinstance(v, str) else "")
def test_unknown_primitive_is_plain_and_lost(name: str, f: Any) -> None:
    f = f or new_primitive(name)

    def g(x: Any) -> Any:
        return f(jnp.sin(x)) + 0.5

    x = jnp.linspace(0.25, 1, 5)
    program, _ = _jaxpr.trace(g, x)
    lost = {site.primitive for site in _jaxpr.sites(program) if _shadow.is_lost(site.equation)}
    assert lost - {"select_and_gather_add"} >= {name} and "sin" not in lost
    walked = walk(g, x)
    assert_same_bits(walked.working, jax.jit(g)(x))
    assert_typed(walked)
    anew = np.asarray(jax.jit(lambda x: f(jnp.sin(x)))(x), np.float64)
    assert_close(walked.high, anew + 0.5)  # not 2 sin x in float64: the twin started anew


def test_integers_of_unknown_primitives_are_not_lost() -> None:
    program, _ = _jaxpr.trace(lambda x: jnp.argmax(x) + lax.population_count(jnp.int32(7)), jnp.ones(3))
    assert not any(_shadow.is_lost(site.equation) for site in _jaxpr.sites(program))


def test_a_second_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="a second shadow rule for primitive `sin`"):
        _shadow.rule("sin")(lambda eqn, operands, working: [])
