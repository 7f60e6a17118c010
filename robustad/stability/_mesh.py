r"""The sum over the devices of a mesh, exact and rounded once."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from robustad.stability import _digits, _exact
from robustad.stability._accumulator import Accumulator
from robustad.stability._arguments import Axis, AxisName, axes_of, floating, names, without
from robustad.stability._order_free import in_the_middle, order_free_sum


def reproducible_psum(x: ArrayLike, axis_name: AxisName, *, axis: Axis = ()) -> Array:
    r"""The sum of `x` over the devices of one or more named axes, and over axes of its own, exact and rounded once.

    .. math:: \operatorname{fl}\Big(\sum_{d}\sum_i x_{d,i}\Big)

    The last bits of `jax.lax.psum` depend on the number of devices and on how the terms are divided among them.
    These do not, if *all* the
    summing is done here: sum a device's own terms by `axis`, not before. (To sum pieces that come one by one, see
    :class:`Accumulator`; its bits are the same.)

    Args:
        x: as for :func:`reproducible_sum`.
        axis_name: as for `jax.lax.psum`.
        axis: axes of `x` to sum over as well; None is all of them, and by default there are none.

    Returns:
        The sum, in the shape of `x` without `axis`, replicated. Errors, special values and dtypes are those of
        :func:`reproducible_sum`.

    Derivatives are those of `jax.lax.psum`, with and without `check_vma`. In reverse mode with it, no sum over
    devices occurs in them; without it, and in forward mode, a device's own terms are summed without order, but the
    devices by `jax.lax.psum` itself.

    Devices exchange a maximum of int32, an int64 and an int32 for each element; the digits of an
    :class:`Accumulator` only where these leave a last bit open.

    >>> import jax, jax.numpy as jnp
    >>> from robustad.stability import reproducible_psum
    >>> x = jnp.array([3e38, 3e38, -3e38])
    >>> print(jax.vmap(lambda x: reproducible_psum(x, "i"), axis_name="i", out_axes=None)(x))
    3e+38
    """
    x = floating("reproducible_psum", x)
    return _psum(x, names("reproducible_psum", axis_name), axes_of("reproducible_psum", axis, x.ndim))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _psum(x: Array, axis_names: tuple, axes: tuple[int, ...]) -> Array:
    return _exact_psum(x, axis_names=axis_names, axes=axes)


@_psum.defjvp
def _psum_jvp(axis_names, axes, primals, tangents):
    (x,), (t,) = primals, tangents
    return _psum(x, axis_names, axes), lax.psum(order_free_sum(t, axes=axes, dtype=t.dtype), axis_names)


@functools.partial(jax.jit, static_argnames=("axis_names", "axes"))
def _exact_psum(x: Array, axis_names: tuple, axes: tuple[int, ...]) -> Array:
    def by_digits(x: Array) -> Array:
        return Accumulator.init(without(x.shape, axes), x.dtype).add(x, axes).psum(axis_names).finalize()

    if x.dtype == np.float64 or not x.size or jax.default_backend() == "tpu":
        return by_digits(x)
    result, certain = _one_pass(in_the_middle(x, axes), axis_names)

    def decide(state: tuple[Array, Array]) -> tuple[Array, Array]:
        # behind the barrier, what the loop may never do is not moved in front of it
        terms, _ = lax.optimization_barrier((x, state[1]))
        return by_digits(terms), jnp.ones((), bool)

    # a loop, for a condition under vmap would do both
    return lax.while_loop(lambda state: ~state[1], decide, (result.reshape(without(x.shape, axes)), certain))[0]


@_digits.wide
def _one_pass(x: Array, axis_names: tuple) -> tuple[Array, Array]:
    bits = _digits.bits_of(x)
    terms = x.shape[1] * math.prod(lax.axis_size(name) for name in axis_names)
    largest = lax.pmax(_exact.over_axis((bits,), _digits.magnitude, np.int32(0), lax.max), axis_names)
    low, high, loses = _exact.counts((bits,), _exact.window(largest), terms)
    low, loses = lax.psum(low, axis_names), lax.psum(loses, axis_names)
    high = lax.psum(high, axis_names) if terms > _exact.FAN**2 else lax.full_like(low, 0)
    result, certain = _exact.settled(low, high, loses, largest, x.dtype)
    return result, lax.reduce_and(certain, (0, 1))
