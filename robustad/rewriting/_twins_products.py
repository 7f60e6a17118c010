"""Twins of products and running logarithms of sums over an axis."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import stability
from robustad._jaxpr import Equation, aval
from robustad.stability import _scaled
from robustad.stability._custom_jvp import custom_jvp

from ._twin import Arrays, Entry, in_float64, is_real
from ._twins_choices import running

_Axes = tuple[int, ...]  # negative: leading axes may be added


def _in_range(x: Array) -> Array:
    return jnp.all((jnp.abs(x) >= float(jnp.finfo(x.dtype).smallest_normal)) & (jnp.abs(x) < np.inf))


@functools.partial(custom_jvp, nondiff_argnums=(0,), over_leading_axes=True)
def _product(axes: _Axes, x: Array) -> Array:
    """As it stands where that is in range or a factor is 0; else of mantissas and exponents."""
    plain = lax.reduce_prod_p.bind(x, axes=tuple(i + x.ndim for i in axes))
    right = _in_range(jnp.where(jnp.any(x == 0, axes), jnp.ones_like(plain), plain))
    wide = x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32

    def scaled() -> Array:
        return _scaled._plain(_scaled._product(x.astype(wide), axes)).astype(x.dtype)

    return lax.cond(right, lambda: plain, scaled)


def _product_of_others(axes: _Axes, x: Array) -> Array:
    """For each factor the product of the others, the reduced axes flattened into the first."""
    y = _scaled._front(x, axes)

    def before(y: Array, reverse: bool) -> Array:
        one = jnp.ones_like(y[:1])
        shifted = jnp.concatenate([y[1:], one] if reverse else [one, y[:-1]])
        return lax.associative_scan(jnp.multiply, shifted, reverse=reverse)

    left, right = before(y, False), before(y, True)
    plain = left * right
    fine = _in_range(left) & _in_range(right) & _in_range(plain)
    return lax.cond(fine, lambda: plain, lambda: _scaled._leave_one_out(y))


@_product.defjvp
def _product_jvp(axes: _Axes, primals: Sequence[Array], tangents: Sequence[Array]):
    (x,), (t,) = primals, tangents
    with in_float64(x):
        wide = x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32
        others = _product_of_others(axes, x.astype(wide)).astype(x.dtype)
        return _product(axes, x), jnp.sum(others * _scaled._front(t, axes), 0)


def _of_product(eqn: Equation) -> Arrays | None:
    x = aval(eqn.invars[0])
    axes = tuple(i - len(x.shape) for i in eqn.params["axes"])
    if not is_real(eqn) or 0 in x.shape:
        return None
    return lambda x: [_product(axes, x)]


TABLE: dict[str, Entry] = {
    "reduce_prod": Entry("partial products leave the range where the product or its derivative does not", _of_product),
    "cumlogsumexp": Entry("NaN where no term is finite", functools.partial(running, stability.logaddexp)),
}
