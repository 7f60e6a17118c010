r"""Dot products and matrix products that no order of the terms can change."""

import math

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from robustad.stability import _exact_dot
from robustad.stability._arguments import floating
from robustad.stability._order_free import kernels
from robustad.stability._primitive import batch_first, linear_primitive


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

        >>> import math

    import jax.numpy as jnp
        >>> from robustad.stability import reproducible_dot
        >>> a, b = jnp.array([1e20, 1.0, 1e20]), jnp.array([1e20, 3.0, -1e20])
        >>> print(reproducible_dot(a, b))  # 1e40 - 1e40 of it overflows in float32
        3.0
    """
    if slices is not None and slices < 1:
        raise ValueError(f"reproducible_dot: `slices` is {slices}; expected None or a positive number.")
    complex_too = "`compensated_dot` takes complex arrays."
    a, b = (floating("reproducible_dot", x, argument, complex_too) for argument, x in (("a", a), ("b", b)))
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
    columns = jnp.moveaxis(b, contracted, -1)
    shape = (*a.shape[:-1], *columns.shape[:-1])
    rows, columns = (x.reshape(1, math.prod(x.shape[:-1]), x.shape[-1]) for x in (a, columns))
    return _dots(rows, columns, slices=slices).reshape(shape)


# ---- the primitive: (batch, m, k) and (batch, n, k) to (batch, m, n)


def _plain(a: Array, b: Array, *, slices: int | None) -> Array:
    return lax.dot_general(a, b, (((2,), (2,)), ((0,), (0,))))


def _swapped(x: Array) -> Array:
    return lax.transpose(x, (0, 2, 1))


def _batch(size: int, operands, batch_axes, *, slices: int | None) -> Array:
    if batch_axes[1] is None and len(operands[1]) == 1:  # more rows of one matrix
        a = jnp.moveaxis(operands[0], batch_axes[0], 0)
        rows = a.reshape(1, math.prod(a.shape[:3]), a.shape[3])
        return _dots(rows, operands[1], slices=slices).reshape(*a.shape[:3], operands[1].shape[1])
    a, b = batch_first(size, operands, batch_axes)
    joined = (x.reshape(math.prod(x.shape[:2]), *x.shape[2:]) for x in (a, b))
    return _dots(*joined, slices=slices).reshape(*a.shape[:3], b.shape[2])


_dots = linear_primitive(
    "order_free_dot",
    kernels=kernels(_exact_dot.dots),
    shape=_plain,
    transposes={
        0: lambda cotangent, a, b, *, slices: _dots(cotangent, _swapped(b), slices=slices),
        1: lambda cotangent, a, b, *, slices: _dots(_swapped(cotangent), _swapped(a), slices=slices),
    },
    batch=_batch,
)
