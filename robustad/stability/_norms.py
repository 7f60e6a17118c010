r"""Norms whose squares neither overflow nor underflow, with the gradients :math:`x / \lVert x \rVert`.

First the plain sum of squares. Only where that is not finite, or so small that squares may have been lost, a second pass
over :math:`x 2^{-k}`, k the exponent of the largest element; elsewhere the bits are those of the plain form. Value and
unit vector come from one helper; the derivative of the unit vector is written with itself, so that derivatives of second
order are formulas too.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from ._arguments import Axis, axes_of, inexact, joint_shape, numbers, refuse_complex, refuse_traced, widened
from ._custom_jvp import custom_jvp
from ._over_leading_axes import over_leading_axes
from ._plane import hypot

_Axes = tuple[int, ...]  # negative, so that leading axes may be added


def power_of_two_near(largest: Array) -> Array:
    """2ᵏ below `largest`, normal as is its inverse; infinity for infinity, 1 where `largest` is no normal number."""
    info = np.finfo(largest.dtype)
    integer = np.dtype(f"int{info.bits}").type
    exponent = integer((2**info.nexp - 1) << info.nmant)
    bits = lax.bitcast_convert_type(largest, integer)
    near = lax.bitcast_convert_type(lax.bitwise_and(bits, lax.full_like(bits, exponent)), largest.dtype)
    one, infinity = lax.full_like(largest, 1), lax.full_like(largest, np.inf)
    limit = 2.0 ** (info.maxexp - 2)
    normal = lax.bitwise_and(lax.gt(near, lax.full_like(near, 0)), lax.lt(near, infinity))
    low, high = (np.asarray(x, largest.dtype) for x in (1 / limit, limit))
    found = lax.select(normal, lax.clamp(low, near, high), one)
    return lax.select(lax.eq(largest, infinity), infinity, found)


def rows(x: Array, axes: _Axes, row: Array) -> Array:
    """`row`, a reduction of x over the axes, in x's shape."""
    return lax.broadcast_in_dim(row, x.shape, [i for i in range(x.ndim) if i - x.ndim not in axes])


def _positive(x: Array, axes: _Axes) -> _Axes:
    return tuple(i + x.ndim for i in axes)


def scaled(x: Array, axes: _Axes, scale: Array) -> Array:
    """x/scale for a power of two near the largest |x|; if that is infinite, infinities count as equal, all else as zero."""
    infinite = lax.eq(lax.abs(x), lax.full_like(x, np.inf))
    inverse = lax.div(lax.full_like(scale, 1), scale)
    return lax.select(infinite, lax.sign(x), lax.mul(x, rows(x, axes, inverse)))


def largest_of(leaves: Sequence[Array], axes: Sequence[_Axes]) -> Array:
    maxima = [lax.reduce_max(lax.abs(x), _positive(x, axis)) for x, axis in zip(leaves, axes)]
    largest = functools.reduce(lax.max, maxima)
    return lax.max(largest, lax.full_like(largest, 0))


def least_safe_square(count: int, dtype: Any) -> float:
    """A sum of squares from which on those that underflow do not count."""
    info = np.finfo(dtype)
    return max(count, 1) * float(info.smallest_normal) / float(info.eps)


def _sum_of_squares(leaves: Sequence[Array], axes: Sequence[_Axes]) -> Array:
    return functools.reduce(
        lax.add, [lax.reduce_sum(lax.mul(x, x), _positive(x, axis)) for x, axis in zip(leaves, axes)]
    )


def _size(axes: Sequence[_Axes], leaves: Sequence[Array]) -> tuple[Array, Array]:
    """(r, s) with the norm r s, s a power of two: 1 where the plain form is right."""
    squares = _sum_of_squares(leaves, axes)
    count = sum(int(np.prod([x.shape[i] for i in axis])) for x, axis in zip(leaves, axes))
    least = lax.full_like(squares, least_safe_square(count, squares.dtype))
    right = lax.bitwise_and(lax.ge(squares, least), lax.is_finite(squares))
    plain, one = lax.sqrt(squares), lax.full_like(squares, 1)

    def careful() -> tuple[Array, Array]:
        scale = power_of_two_near(largest_of(leaves, axes))
        size = lax.sqrt(_sum_of_squares([scaled(x, axis, scale) for x, axis in zip(leaves, axes)], axes))
        return lax.select(right, plain, size), lax.select(right, one, scale)

    return lax.cond(lax.reduce_and(right, tuple(range(right.ndim))), lambda: (plain, one), careful)


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def norm_and_units(axes: tuple[_Axes, ...], leaves: list[Array]) -> tuple[Array, list[Array]]:
    """The joint norm of float32 or float64 arrays over the given axes of each, and the arrays divided by it; 0 by 0 is 0."""
    size, scale = over_leading_axes(functools.partial(_size, axes))(leaves)
    divisor = lax.select(lax.eq(size, lax.full_like(size, 0)), lax.full_like(size, 1), size)
    units = [lax.div(scaled(x, a, scale), rows(x, a, divisor)) for x, a in zip(leaves, axes)]
    return lax.mul(size, scale), units


@norm_and_units.defjvp
def _norm_and_units_jvp(axes, primals, tangents):
    (leaves,), (steps,) = primals, tangents
    norm, units = norm_and_units(axes, leaves)
    along = sum(jnp.sum(u * t, axis) for u, t, axis in zip(units, steps, axes))
    turns = [
        (t - u * jnp.expand_dims(along, axis)) / jnp.expand_dims(norm, axis) for u, t, axis in zip(units, steps, axes)
    ]
    return (norm, units), (along, turns)


@functools.partial(custom_jvp, nondiff_argnums=(0, 1))
def _power_norm_and_slope(p: float, axis: _Axes, x: Array) -> tuple[Array, Array]:
    r"""(Σ|x|ᵖ)^(1/p) and its gradient sign(x) (|x|/norm)ᵖ⁻¹."""
    norm, ratio = _power_norm_and_ratio(p, axis, x)
    return norm, jnp.sign(x) * ratio ** (p - 1)


def _power_norm_and_ratio(p: float, axis: _Axes, x: Array) -> tuple[Array, Array]:
    scale = power_of_two_near(largest_of([x], [axis]))
    y = jnp.abs(scaled(x, axis, scale))
    largest = jnp.max(y, axis, initial=0)
    divisor = jnp.where(largest == 0, jnp.ones_like(largest), largest)
    ratio = y / jnp.expand_dims(divisor, axis)
    total = jnp.sum(ratio**p, axis) ** (1 / p)
    length = jnp.where(total == 0, jnp.ones_like(total), total)
    return (largest * total) * scale, ratio / jnp.expand_dims(length, axis)


@_power_norm_and_slope.defjvp
def _power_norm_and_slope_jvp(p, axis, primals, tangents):
    (x,), (t,) = primals, tangents
    norm, slope = _power_norm_and_slope(p, axis, x)
    _, ratio = _power_norm_and_ratio(p, axis, x)
    along = jnp.sum(slope * t, axis)
    turn = (p - 1) * ((ratio ** (p - 2) * t - slope * jnp.expand_dims(along, axis)) / jnp.expand_dims(norm, axis))
    return (norm, slope), (along, turn)


def _real_leaves(x: Array) -> list[Array]:
    return [x.real, x.imag] if jnp.iscomplexobj(x) else [widened(x)]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _norm(x: Array, ord: float, axis: _Axes) -> Array:
    if ord == 2:
        leaves = _real_leaves(x)
        return norm_and_units((axis,) * len(leaves), leaves)[0]
    size = hypot(x.real, x.imag) if jnp.iscomplexobj(x) else jnp.abs(widened(x))
    if ord == 0:
        return jnp.sum((size != 0).astype(size.dtype), axis)
    if ord == 1:
        return jnp.sum(size, axis)
    if ord == np.inf:
        return jnp.max(size, axis, initial=None if size.size else 0)
    if ord == -np.inf:
        return jnp.min(size, axis)
    return _power_norm_and_slope(ord, axis, size)[0]


def norm(x: ArrayLike, ord: float | str | None = None, axis: Axis = None, keepdims: bool = False) -> Array:
    r"""The norm :math:`\left(\sum |x_i|^p\right)^{1/p}`, in range wherever the result is.

    `jnp.linalg.norm` gives 0 with an infinite gradient at (3e-20, 4e-20), inf at 1e20, NaN for the gradient at 0. Where its
    squares are in range the result has its bits. At the zero vector, a finite kink, the gradient is the subgradient of
    smallest norm, 0; the second derivative there is infinite in a direction and undefined between two: a Hessian has inf and
    NaN. Infinite elements give inf, and count as equal in the gradient, all others as 0 there.

    Args:
      x: real or complex array.
      ord: p > 0, `inf` (the largest), `-inf` (the smallest), 0 (how many are not zero); None or "fro" for 2.
      axis: the axes to reduce; None for all. Over several axes, for `ord` None or "fro", the norm of the flattened array.
      keepdims: keep the reduced axes with size 1.

    At zeros and ties the gradients for `ord` 1 and ±inf are JAX's. For `ord` below 1 (2) the first (second) derivatives are
    infinite at an element that is 0, and NaN may come of them.

    Returns:
      A real array in the precision of `x`; float16 and bfloat16 are computed in float32.

    Raises:
      ValueError: an `ord` that is not supported, matrix norms but Frobenius' among them.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> x = jnp.array([0.0, 4e-20])
    >>> print(st.norm(x), jax.grad(st.norm)(x), jax.grad(jnp.linalg.norm)(x))
    4e-20 [0. 1.] [nan inf]
    """
    x = inexact("norm", x)[0]
    axes = axes_of("norm", axis, x.ndim)
    refuse_traced("norm", "ord", ord, "None, 'fro', or a number that is known when tracing")
    if ord in (None, "fro"):
        ord = 2
    elif not isinstance(ord, str) and (np.ndim(ord) or not np.isreal(ord)):
        raise TypeError(
            f"norm: `ord` is {ord!r}; expected None, 'fro', 0, a positive number, inf or -inf. Give one order."
        )
    elif isinstance(ord, str) or (ord < 0 and ord != -np.inf) or np.isnan(ord):
        raise ValueError(
            f"norm: `ord` is {ord!r}; expected None, 'fro', 0, a positive number, inf or -inf. Without it: 2."
        )
    elif len(axes) > 1:
        raise ValueError(
            f"norm: `ord` {ord} over {len(axes)} axes would be a matrix norm; only 'fro' is supported. Flatten `x` for a "
            "vector norm; the spectral and the nuclear norm are the largest singular value and the sum of them, see `svd`."
        )
    result = _norm(x, float(ord), tuple(i - x.ndim for i in axes)).astype(jnp.finfo(x.dtype).dtype)
    return jnp.expand_dims(result, axes) if keepdims else result


@jax.jit
def _global_norm(leaves: list[Array]) -> Array:
    return norm_and_units(tuple(tuple(range(-x.ndim, 0)) for x in leaves), leaves)[0]


def global_norm(tree: Any) -> Array:
    r"""The 2-norm of all elements of a pytree together, without overflow or underflow of their squares.

    As `norm` of the concatenated leaves: its gradient is the tree divided by the norm, and 0 for a tree of zeros.
    `optax.global_norm` gives inf for gradients of 1e20 in float32 or 300 in float16.

    Args:
      tree: a pytree of real or complex arrays; integer leaves count as floats.

    Returns:
      A scalar in the widest precision of the leaves; 0 for an empty tree.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> print(st.global_norm({"w": jnp.full(2, 3e20), "b": jnp.full(2, 4e20)}))
    7.071068e+20
    """
    arrays = [inexact("global_norm", x, argument="tree")[0] for x in jax.tree.leaves(tree)]
    if not arrays:
        return jnp.zeros(())
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.finfo(jnp.result_type(*arrays)).dtype
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    return _global_norm([part.astype(wide) for x in arrays for part in _real_leaves(x)]).astype(dtype)


@functools.partial(jax.jit, static_argnums=1)
def _normalize(x: Array, axis: _Axes) -> Array:
    leaves = _real_leaves(x)
    _, units = norm_and_units((axis,) * len(leaves), leaves)
    return lax.complex(*units) if len(units) == 2 else units[0]


def normalize(x: ArrayLike, axis: Axis = -1) -> Array:
    r""":math:`x / \lVert x \rVert` along `axis`, whose squares stay in the range; a zero vector stays zero.

    At a zero vector the direction jumps: derivatives there are inf and NaN, not hidden (see `safe_where`).

    Args:
      x: real or complex array.
      axis: the axes of the norm; None for all.

    Returns:
      An array of the shape and dtype of `x`.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> print(st.normalize(jnp.array([3e-30, -4e-30])))
    [ 0.6 -0.8]
    """
    x = inexact("normalize", x)[0]
    axes = tuple(i - x.ndim for i in axes_of("normalize", axis, x.ndim))
    return _normalize(x, axes).astype(x.dtype)


def cosine_similarity(x: ArrayLike, y: ArrayLike, axis: int = -1) -> Array:
    r""":math:`x \cdot y / (\lVert x \rVert \lVert y \rVert)` along `axis`, in any range, at most 1; 0 for a zero vector.

    At a zero vector the value jumps: the derivative in that vector is inf or NaN, in the other one 0. Where such rows are
    padding, leave them out by `safe_where`.

    Args:
      x, y: real arrays, broadcast against each other.
      axis: the axis of the vectors.

    Returns:
      An array of the broadcast shape without `axis`, in the promoted dtype.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> x, y = jnp.array([1e-25, 0.0]), jnp.array([0.0, 1e25])
    >>> print(st.cosine_similarity(x, y), jax.grad(st.cosine_similarity)(x, y))
    0.0 [0.e+00 1.e+25]
    """
    numbers("cosine_similarity", x=x, y=y)
    dtype = jnp.result_type(x, y)
    for argument, array in (("x", x), ("y", y)):
        instead = "Join the real and the imaginary parts along `axis`: the real part of the complex similarity."
        refuse_complex("cosine_similarity", argument, jnp.result_type(array), instead)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    shape = joint_shape("cosine_similarity", x=jnp.shape(x), y=jnp.shape(y))
    axes = axes_of("cosine_similarity", axis, len(shape))
    x, y = (widened(jnp.broadcast_to(jnp.asarray(z, dtype), shape)) for z in (x, y))
    value = jnp.sum(normalize(x, axes) * normalize(y, axes), axes)
    # its rounding may pass 1, which an arc cosine would not survive; the derivative does not know
    return (value - lax.stop_gradient(value - jnp.clip(value, -1, 1))).astype(dtype)
