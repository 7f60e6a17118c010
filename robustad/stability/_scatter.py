r"""Scattering without order: sums by segment, scatter-add, and a gather whose transpose is that sum."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from robustad.stability import _exact_scatter
from robustad.stability._arguments import floating, integer, integers, joint_shape
from robustad.stability._order_free import kernels
from robustad.stability._primitive import batch_first, linear_primitive


def segment_sum(data: ArrayLike, segment_ids: ArrayLike, num_segments: int | None = None) -> Array:
    r"""Sums of the rows of `data` that share an id, exact and rounded once, whatever the order of the rows.

    .. math:: y_s = \operatorname{fl}\Big(\sum_{i:\, \mathrm{id}_i = s} x_i\Big)

    `jax.ops.segment_sum` rounds after every addition, in an order that depends on the device and, on GPUs, changes
    from run to run.

    Args:
        data: `(n, ...)`; float16, bfloat16, float32 or float64, and integers and booleans become the default float.
        segment_ids: `(n,)` integers, not necessarily sorted. As in `jax.ops.segment_sum`, a row whose id is not in
            `[0, num_segments)` is dropped, negative ones too.
        num_segments: how many sums; by default the largest id and one, which must be known when tracing.

    Returns:
        `(num_segments, ...)` in the dtype of `data`; an empty segment is 0. Errors and special values are those of
        :func:`reproducible_sum`. NaN and infinities stay in their segments.

    Raises:
        TypeError: `data` or `segment_ids` is of another kind.
        ValueError: the shapes do not fit, or `num_segments` is negative.

    Derivatives of any order go through :func:`gather` and this sum. Temporary memory: two words of int64 for each
    element of the result, and 13 of int32 where the fast pass does not settle the last bit (float64: 89).

    >>> import jax.numpy as jnp
    >>> from robustad.stability import segment_sum
    >>> print(segment_sum(jnp.array([3e38, 3e38, 1.0, -3e38]), jnp.array([1, 1, 0, 1]), 3))
    [1.e+00 3.e+38 0.e+00]
    """
    data = floating("segment_sum", data, "data")
    ids = integers("segment_sum", segment_ids, "segment_ids")
    if ids.ndim != 1 or data.shape[:1] != ids.shape:
        raise ValueError(
            f"segment_sum: `data` has shape {data.shape} and `segment_ids` {ids.shape}; expected (n, ...) and (n,). Use "
            "jax.vmap for batches."
        )
    if num_segments is None:
        num_segments = int(np.max(np.asarray(ids), initial=-1)) + 1
    num_segments = integer("segment_sum", "num_segments", num_segments)
    if num_segments < 0:
        raise ValueError(f"segment_sum: `num_segments` is {num_segments}; it must not be negative.")
    sums = _segment_sum(data.reshape(len(ids), math.prod(data.shape[1:])), ids, segments=num_segments)
    return sums.reshape(num_segments, *data.shape[1:])


def scatter_add(x: ArrayLike, indices: ArrayLike, updates: ArrayLike) -> Array:
    r"""`x.at[indices].add(updates)`, each element the exact sum of all its terms, rounded once, whatever their order.

    .. math:: y_j = \operatorname{fl}\Big(x_j + \sum_{i:\, \mathrm{index}_i = j} u_i\Big)

    Args:
        x: `(m, ...)`, of a dtype as for :func:`segment_sum`.
        indices: integers of any shape; negative ones count from the end, those out of range are dropped, as in `x.at`.
        updates: of the shape of `indices` followed by that of `x` after its first axis, or broadcastable to it; cast
            to the dtype of `x`.

    Returns:
        An array like `x`. Errors, derivatives and memory are those of :func:`segment_sum`.

    >>> import jax.numpy as jnp
    >>> from robustad.stability import scatter_add
    >>> x, at = jnp.array([0.0, 1e8]), jnp.array([1, 1, 0])
    >>> print(scatter_add(x, at, jnp.array([1.0, -1e8, 2.0])), x.at[at].add(jnp.array([1.0, -1e8, 2.0])))
    [2. 1.] [2. 0.]
    """
    x = floating("scatter_add", x)
    if x.ndim == 0:
        raise ValueError("scatter_add: `x` is a scalar; expected an array whose first axis is indexed.")
    indices = integers("scatter_add", indices, "indices")
    updates = floating("scatter_add", updates, "updates").astype(x.dtype)
    expected = (*indices.shape, *x.shape[1:])
    if joint_shape("scatter_add", updates=updates.shape, **{"x[indices]": expected}) != expected:
        raise ValueError(
            f"scatter_add: `updates` has shape {updates.shape}; expected one that broadcasts to {expected}, that of "
            "`x[indices]`. Drop or sum the axes too many."
        )
    updates = jnp.broadcast_to(updates, expected)
    width = math.prod(x.shape[1:])
    into = _counted_from_end(indices, len(x)).reshape(-1)
    rows = jnp.concatenate([x.reshape(len(x), width), updates.reshape(len(into), width)])
    into = jnp.concatenate([jnp.arange(len(x), dtype=np.int32), into])
    return _segment_sum(rows, into, segments=len(x)).reshape(x.shape)


def gather(x: ArrayLike, indices: ArrayLike) -> Array:
    r"""`jnp.take(x, indices, axis=0)`, whose derivative with respect to `x` is the order-free :func:`segment_sum`.

    The gradient of an embedding lookup is a sum over all places where a row was read. JAX's scatter-add makes its
    last bits depend on their order.

    Args:
        x: `(m, ...)`, of a dtype as for :func:`segment_sum`.
        indices: integers of any shape; negative ones count from the end. As in `jnp.take`, those out of range give
            NaN; they have no gradient.

    Returns:
        Rows of `x`, in the shape of `indices` followed by that of `x` after its first axis.

    >>> import jax, jax.numpy as jnp
    >>> from robustad.stability import gather
    >>> x, at = jnp.array([1.0, 2.0]), jnp.array([0, 0, 0])
    >>> f = lambda gather: jax.grad(lambda x: jnp.sum(gather(x, at) * jnp.array([1e8, 1.0, -1e8])))(x)
    >>> print(f(gather), f(lambda x, at: x[at]))
    [1. 0.] [0. 0.]
    """
    x = floating("gather", x)
    if x.ndim == 0:
        raise ValueError("gather: `x` is a scalar; expected an array whose first axis is indexed.")
    indices = integers("gather", indices, "indices")
    at = _counted_from_end(indices, len(x)).reshape(-1)
    rows = _gather(x.reshape(len(x), math.prod(x.shape[1:])), at)
    rows = jnp.where(((at >= 0) & (at < len(x)))[:, None], rows, jnp.full((), np.nan, x.dtype))
    return rows.reshape(*indices.shape, *x.shape[1:])


def _counted_from_end(indices: Array, size: int) -> Array:
    return jnp.where(indices < 0, indices + np.int32(size), indices)


# ---- two linear maps, each the transpose of the other


def _sums(rows: Array, ids: Array, *, segments: int, float64: bool) -> Array:
    return _exact_scatter.rounded_segments(rows, ids, segments, rows.dtype, float64)


def _plain_sums(rows: Array, ids: Array, *, segments: int) -> Array:
    return jnp.zeros((segments, rows.shape[1]), rows.dtype).at[ids].add(rows)


def _rows(x: Array, at: Array) -> Array:
    """Rows of `(m, k)`; 0 where out of range."""
    dimensions = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
    fill = lax.GatherScatterMode.FILL_OR_DROP
    return lax.gather(x, at[:, None], dimensions, (1, x.shape[1]), mode=fill, fill_value=0)


def _batch_rule(bind: Callable[..., Array], own: Callable[..., int], joined: Callable[..., dict[str, int]]):
    """Rows of a batch with their own ids are rows of one array, in segments of their own; ids in common: more columns.

    `own` is how many segments, or rows to gather from, one of the batch has; `joined` the keywords for all of them.
    """

    def rule(size: int, operands, batch_axes, **keywords) -> Array:
        if batch_axes[1] is None:
            x = jnp.moveaxis(operands[0], batch_axes[0], 1)
            result = bind(x.reshape(len(x), -1), operands[1], **keywords)
            return jnp.moveaxis(result.reshape(len(result), *x.shape[1:]), 1, 0)
        x, ids = batch_first(size, operands, batch_axes)
        count = own(x, **keywords)
        inside = (ids >= 0) & (ids < count)
        ids = jnp.where(inside, ids + count * jnp.arange(size, dtype=np.int32)[:, None], size * count).reshape(-1)
        result = bind(x.reshape(-1, x.shape[2]), ids, **joined(size, **keywords))
        return result.reshape(size, -1, x.shape[2])

    return rule


_segment_sum = linear_primitive(
    "order_free_segment_sum",
    kernels=kernels(_sums),
    shape=_plain_sums,
    transposes={0: lambda cotangent, rows, ids, *, segments: _gather(cotangent, ids)},
    batch=lambda *args, **keywords: _batch_rule(
        _segment_sum, lambda x, segments: segments, lambda size, segments: {"segments": size * segments}
    )(*args, **keywords),
)
_gather = linear_primitive(
    "order_free_gather",
    kernels={None: _rows},
    shape=_rows,
    transposes={0: lambda cotangent, x, at: _segment_sum(cotangent, at, segments=x.shape[0])},
    batch=lambda *args: _batch_rule(_gather, lambda x: x.shape[1], lambda size: {})(*args),
)
