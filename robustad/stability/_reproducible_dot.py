r"""Dot products and matrix products that no order of the terms can change."""

import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import ad, batching
from jax.typing import ArrayLike

from robustad.stability import _exact_dot
from robustad.stability._operator import no_tangent, operator, varying_alike
from robustad.stability._reproducible import floating


def reproducible_dot(a: ArrayLike, b: ArrayLike, *, slices: int | None = None) -> Array:
    r"""The dot product of vectors, or `jnp.dot` of matrices and of stacks: exact sums of exact products, rounded once.

    .. math:: \operatorname{fl}\Big(\sum_i a_i b_i\Big)

    `jnp.dot` rounds every partial sum, in an order that depends on shapes, threads and devices. This has one result
    for every order of the terms and every way to split or batch the call.

    Args:
        a, b: arrays; the last axis of `a` is summed with the only axis of `b`, or the last but one, as in `jnp.dot`.
            One dtype of float16, bfloat16, float32 and float64 after promotion.
        slices: None for the exact product. A number rounds each operand first to so many slices of 20 bits below the
            largest of its row (of `b`: column), which makes a product of matrices a few products in float64, of the
            speed of matrix products.

    Returns:
        An array of shape `a.shape[:-1] + b.shape[:-2] + b.shape[-1:]`, scalars and vectors accordingly.

        Without slices the error is at most 1/2 ulp at any condition number, for float64 as long as no product is
        :math:`2^{-900}` of the largest possible. With :math:`s` slices it is at most 1/2 ulp and :math:`n\,2^{1-20s}
        \max|a_i| \max|b_i|` of the row and the column: two suffice for operands of like magnitudes; operands whose
        magnitudes range over :math:`2^{20s-24}` need more. Special values are those of :func:`reproducible_sum`; a
        subnormal float32 counts.

    Raises:
        TypeError: an operand is of another kind.
        ValueError: the shapes do not fit, or `slices` is not positive.

    Derivatives of any order are such products themselves.

    Cost: of vectors 2 to 3 times that of `jnp.dot`, with slices or without; products of matrices without slices are done
    term by term, and slowly.

    Ozaki, Ogita, Oishi and Rump, *Error-free transformations of matrix multiplication* (2012).

    >>> import jax.numpy as jnp
    >>> from robustad.stability import reproducible_dot
    >>> a, b = jnp.array([1e20, 1.0, 1e20]), jnp.array([1e20, 3.0, -1e20])
    >>> print(reproducible_dot(a, b))  # 1e40 - 1e40 of it overflows in float32
    3.0
    """
    if slices is not None and slices < 1:
        raise ValueError(f"reproducible_dot: `slices` is {slices}; expected None or a positive number.")
    a, b = floating("reproducible_dot", a, "a"), floating("reproducible_dot", b, "b")
    if a.dtype != b.dtype:
        a, b = (x.astype(jnp.promote_types(a.dtype, b.dtype)) for x in (a, b))
    if 0 in (a.ndim, b.ndim):
        return a * b
    contracted = b.ndim - 2 if b.ndim > 1 else 0
    if a.shape[-1] != b.shape[contracted]:
        raise ValueError(
            f"reproducible_dot: `a` has shape {a.shape} and `b` {b.shape}; the last axis of `a` must be as long as axis "
            f"{contracted} of `b`."
        )
    rows, columns = a.reshape(1, -1, a.shape[-1]), jnp.moveaxis(b, contracted, -1)
    shape = (*a.shape[:-1], *columns.shape[:-1])
    rows, columns = varying_alike(rows, columns.reshape(1, -1, a.shape[-1]))
    return dot_p.bind(rows, columns, slices=slices).reshape(shape)


dot_p = operator(  # (batch, m, k) and (batch, n, k) to (batch, m, n)
    "order_free_dot",
    lambda a, b, slices, float64: _exact_dot.dots(a, b, slices, float64),
    lambda a, b, slices: ((a.shape[0], a.shape[1], b.shape[1]), a.dtype),
)


def _swapped(x: Array) -> Array:
    return lax.transpose(x, (0, 2, 1))


def _jvp(primals, tangents, *, slices: int | None):
    (a, b), (ta, tb) = primals, tangents
    parts = [] if type(ta) is ad.Zero else [dot_p.bind(ta, b, slices=slices)]
    if type(tb) is not ad.Zero:
        parts.append(dot_p.bind(a, tb, slices=slices))
    value = dot_p.bind(a, b, slices=slices)
    return value, sum(parts[1:], parts[0]) if parts else no_tangent(value)


def _transpose(ct, a, b, *, slices: int | None):
    if ad.is_undefined_primal(a):
        return (ad.Zero(a.aval) if type(ct) is ad.Zero else dot_p.bind(ct, _swapped(b), slices=slices)), None
    return None, (ad.Zero(b.aval) if type(ct) is ad.Zero else dot_p.bind(_swapped(ct), _swapped(a), slices=slices))


def _batch(operands, dims, *, slices: int | None):
    (a, b), (a_dim, b_dim) = operands, dims
    if b_dim is None and len(b) == 1:  # more rows of one matrix
        a = jnp.moveaxis(a, a_dim, 0)
        return dot_p.bind(a.reshape(1, -1, a.shape[-1]), b, slices=slices).reshape(*a.shape[:3], b.shape[1]), 0
    size = next(x.shape[dim] for x, dim in zip(operands, dims) if dim is not None)
    a, b = (
        lax.broadcast(x, (size,)) if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in ((a, a_dim), (b, b_dim))
    )
    joined = (x.reshape(-1, *x.shape[2:]) for x in (a, b))
    return dot_p.bind(*joined, slices=slices).reshape(size, -1, a.shape[2], b.shape[2]), 0


ad.primitive_jvps[dot_p] = _jvp
ad.primitive_transposes[dot_p] = _transpose
batching.primitive_batchers[dot_p] = _batch
