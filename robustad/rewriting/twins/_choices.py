"""Twins of what chooses among its operands: maxima, minima, sorted positions.

JAX multiplies the cotangent by 0 for the operand that is not chosen; where the cotangent is infinite, as behind the arc
cosine of a clipped value or the root of a maximum, that is NaN. Here a selection drops it. Ties share it, as in JAX.
"""

import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad._jaxpr import Equation
from robustad.stability._custom_jvp import custom_jvp

from ._twin import Arrays, Bound, Entry, bound, by_terms, constant, elementwise, in_float64, is_real

# ---- of two


def _chosen(wins: Callable[[Array, Array], Array], t: Array, own: Array, other: Array) -> Array:
    half = lax.select(own == other, 0.5 * t, constant(t, 0))
    return lax.select(wins(own, other), t, half)


def _of_two(wins: Callable[[Array, Array], Array]) -> tuple[Callable[..., Array], Callable[..., Array]]:
    return (
        lambda t, m, x, y: _chosen(wins, t, x, y),
        lambda t, m, x, y: _chosen(wins, t, y, x),
    )


_LARGER, _SMALLER = _of_two(operator.gt), _of_two(operator.lt)
maximum = elementwise(Bound(lax.max_p, ()), *_LARGER)
minimum = elementwise(Bound(lax.min_p, ()), *_SMALLER)

# ---- of many


@functools.partial(custom_jvp, nondiff_argnums=(0, 1))
def _extreme(reduce: Bound, axes: tuple[int, ...], x: Array) -> Array:
    return reduce(x)


@_extreme.defjvp
def _extreme_jvp(reduce: Bound, axes: tuple[int, ...], primals: Sequence[Array], tangents: Sequence[Array]):
    (x,), (t,) = primals, tangents
    with in_float64(x):
        y = _extreme(reduce, axes, x)
        equal = x == jnp.expand_dims(y, axes)
        count = jnp.sum(equal, axes, dtype=jnp.int32).astype(x.dtype)
        chosen = lax.select(equal, t, jnp.zeros_like(t))
        return y, jnp.sum(chosen, axes) / count


def _reduction(eqn: Equation) -> Arrays | None:
    if not is_real(eqn):
        return None
    reduce, axes = bound(eqn), tuple(eqn.params["axes"])
    return lambda x: [_extreme(reduce, axes, x)]


# ---- running


@functools.partial(custom_jvp, nondiff_argnums=(0, 1))
def _running(combine: Callable[..., Array], cumulate: Bound, x: Array) -> Array:
    return cumulate(x)


@_running.defjvp
def _running_jvp(combine: Callable[..., Array], cumulate: Bound, primals: Sequence[Array], tangents: Sequence[Array]):
    params = dict(cumulate.params)
    with in_float64(*primals):
        scan = functools.partial(lax.associative_scan, combine, axis=params["axis"], reverse=params["reverse"])
        return jax.jvp(scan, primals, tangents)  # the value too, as in JAX: the primitive's costs O(n²) here and there


def running(combine: Callable[..., Array], eqn: Equation) -> Arrays | None:
    """A cumulative primitive whose derivative is that of the parallel scan of a function of two (JAX's rule)."""
    if not is_real(eqn):
        return None
    cumulate = bound(eqn)
    return lambda x: [_running(combine, cumulate, x)]


_REASON = "0 times an infinite cotangent, for the operand that is not chosen"
TABLE: dict[str, Entry] = {
    "max": by_terms(_REASON, *_LARGER),
    "min": by_terms(_REASON, *_SMALLER),
    "reduce_max": Entry(_REASON, _reduction),
    "reduce_min": Entry(_REASON, _reduction),
    "cummax": Entry(_REASON, functools.partial(running, maximum)),
    "cummin": Entry(_REASON, functools.partial(running, minimum)),
}
