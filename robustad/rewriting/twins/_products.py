"""Twins of products and running logarithms of sums over an axis."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad._jaxpr import Equation, aval
from robustad.stability import _scaled
from robustad.stability._custom_jvp import custom_jvp

from ._choices import running
from ._log_add import log_add
from ._twin import Arrays, Entry, in_float64, is_real

_Axes = tuple[int, ...]  # negative: leading axes may be added


def _in_range(x: Array) -> Array:
    return jnp.all((jnp.abs(x) >= float(jnp.finfo(x.dtype).smallest_normal)) & (jnp.abs(x) < np.inf))


def _wide(x: Array) -> Array:
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


@functools.partial(custom_jvp, nondiff_argnums=(0,), over_leading_axes=True)
def _product(axes: _Axes, x: Array) -> Array:
    """As it stands where that is in range; else of mantissas and exponents."""
    plain = lax.reduce_prod_p.bind(x, axes=tuple(i + x.ndim for i in axes))

    def scaled() -> Array:
        return _scaled._plain(_scaled._product(_wide(x), axes)).astype(x.dtype)

    return lax.cond(_in_range(plain), lambda: plain, scaled)


@functools.partial(custom_jvp, nondiff_argnums=(0,), over_leading_axes=True)
def _others(axes: _Axes, x: Array) -> Array:
    """For each factor the product of the others, the reduced axes flattened into the first after the leading ones."""
    y = _flat(axes, x)
    whole = jnp.prod(y, 0)
    quotient = whole / y
    fine = _in_range(whole) & _in_range(quotient)
    return _back(axes, x, lax.cond(fine, lambda: quotient, lambda: _scaled._leave_one_out(y)))


@_others.defjvp
def _others_jvp(axes: _Axes, primals: Sequence[Array], tangents: Sequence[Array]):
    (x,) = primals

    def from_both_sides(x: Array) -> Array:
        return _back(axes, x, _scaled._leave_one_out(_flat(axes, x)))

    with in_float64(x):
        return _others(axes, x), jax.jvp(from_both_sides, primals, tangents)[1]


def _flat(axes: _Axes, x: Array) -> Array:
    """The reduced axes as the first."""
    return _scaled._front(x, tuple(i + x.ndim for i in axes))


def _back(axes: _Axes, x: Array, y: Array) -> Array:
    """The other way round."""
    y = y.reshape(*(x.shape[i] for i in axes), *y.shape[1:])
    return jnp.moveaxis(y, range(len(axes)), axes)


@_product.defjvp
def _product_jvp(axes: _Axes, primals: Sequence[Array], tangents: Sequence[Array]):
    (x,), (t,) = primals, tangents
    with in_float64(x):
        others = _others(axes, _wide(x)).astype(x.dtype)
        return _product(axes, x), jnp.sum(others * t, axes)


def _of_product(eqn: Equation) -> Arrays | None:
    x = aval(eqn.invars[0])
    axes = tuple(i - len(x.shape) for i in eqn.params["axes"])
    if not is_real(eqn) or 0 in x.shape:
        return None
    return lambda x: [_product(axes, x)]


TABLE: dict[str, Entry] = {
    "reduce_prod": Entry("partial products leave the range where the product or its derivative does not", _of_product),
    "cumlogsumexp": Entry("NaN where no term is finite", functools.partial(running, log_add)),
}
