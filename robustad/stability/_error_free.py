"""Error-free transforms: a sum or a product of two floats as a rounded result and its exact rounding error."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from robustad.stability._arguments import numbers, refuse_complex
from robustad.stability._backend import require_error_free
from robustad.stability._custom_jvp import custom_jvp

# ---- kernels


def two_sum_kernel(a: Array, b: Array) -> tuple[Array, Array]:
    """`two_sum` without guards, for loops over data that was loaded from memory (no product, no compile-time constant)."""
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


def two_sum_guarded(a: Array, b: Array) -> tuple[Array, Array]:
    """`two_sum` of float32 or float64 operands of one dtype, for loops whose terms are products or constants."""
    return two_sum_kernel(opaque(jnp.asarray(a)), opaque(jnp.asarray(b)))


def fast_two_sum_kernel(a: Array, b: Array) -> tuple[Array, Array]:
    """`fast_two_sum` without guards, see `two_sum_kernel`."""
    s = a + b
    return s, b - (s - a)


def split_kernel(a: Array) -> tuple[Array, Array]:
    """`split` of a float32 or float64 by its bits: no product, so nothing to contract or to overflow but the rounding.

    The low ⌈p/2⌉ bits of the significand are rounded away, half away from zero. Where that would round the largest floats
    to infinity they are cut off instead, and the low word has one bit more.
    """
    return _split(a, math.ceil((jnp.finfo(a.dtype).nmant + 1) / 2), float(jnp.finfo(a.dtype).max))


def two_prod_kernel(a: Array, b: Array) -> tuple[Array, Array]:
    """`two_prod` of float32 or float64 without the care for range: its split parts must not underflow, `a b` not overflow.

    Contraction to fused multiply-add is harmless inside, for the products of the parts are exact; only the product itself
    must be rounded once, so that neither this error nor a sum that follows absorbs it.
    """
    p = rounded_once(a * b)
    a_high, a_low = split_kernel(a)
    b_high, b_low = split_kernel(b)
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


def opaque(x: Array) -> Array:
    """x, rounded to its dtype, behind which no compiler sees: neither XLA's simplifier nor LLVM's contraction.

    Two layers, for each has a gap: `optimization_barrier` hides constants from the simplifier, but it is gone by the time
    LLVM contracts a product and a sum (measured: `two_prod(a, b)[0] + c` was a fused multiply-add for 17 % of random
    arguments on jax 0.10.2); against that, `rounded_once`.
    """
    return rounded_once(lax.optimization_barrier(x))


@custom_jvp
def rounded_once(x: Array) -> Array:
    """x, rounded to its dtype: no product is contracted through it. Unlike `opaque` it can be fused with its neighbours.

    The smaller of the bit pattern and that of the last NaN but one is the same float for every bit pattern, but no rewrite
    rule knows that.
    """
    bits = jnp.finfo(x.dtype).bits
    integer = jnp.dtype(f"int{bits}")
    pattern = lax.bitcast_convert_type(x, integer)
    if bits < 16:  # the largest pattern of some is a number: compare in a wider integer
        pattern = lax.min(pattern.astype(jnp.int16), jnp.int16(2 ** (bits - 1) - 1)).astype(integer)
    else:
        pattern = lax.min(pattern, pattern.dtype.type(2 ** (bits - 1) - 2))
    return lax.bitcast_convert_type(pattern, x.dtype)


rounded_once.defjvp(lambda primals, tangents: (rounded_once(*primals), tangents[0]))


def _split(a: Array, drop: int, largest: float) -> tuple[Array, Array]:
    integer = jnp.dtype(f"int{jnp.finfo(a.dtype).bits}")
    keep, half = integer.type(-(2**drop)), integer.type(2 ** (drop - 1))
    bits = lax.bitcast_convert_type(a, integer)
    high = lax.bitcast_convert_type((bits + half) & keep, a.dtype)
    cut = lax.bitcast_convert_type(bits & keep, a.dtype)
    high = jnp.where(jnp.abs(high) <= largest, high, cut)
    return high, a - high


# ---- the transforms


def two_sum(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    r"""The rounded sum of two floats and its rounding error: $s = \mathrm{fl}(a + b)$, $s + e = a + b$ exactly.

    Elementwise with broadcasting, for every real float dtype. It holds under `jit`, `vmap` and `scan`, where an argument
    is a product (which the compiler could contract with the sum) or a constant (against which it could simplify): both
    arguments pass through a barrier. The plain formula fails there: on jax 0.10.2, with a constant `a`, its error is
    wrong for 78 % of random `b`.

    Args:
        a, b: real numbers. Integers and booleans become the default float.

    Returns:
        `(s, e)`, in the promoted dtype. `e` is 0 where `s` is not finite. On a backend that flushes subnormals, exact
        where each of `a` and `b` is 0 or at least $2^{e_{\min} + p - 1}$ in magnitude (for float32 $2^{-103}$). The tangent
        of `s` is that of the sum, the tangent of `e` is 0.

    Raises:
        TypeError: for complex arguments.
        BackendError: if the backend's arithmetic does not round each operation once.

    Source: Knuth, The Art of Computer Programming 2, 4.2.2, theorem B; on overflow, Boldo, Graillat and Muller, On the
    Robustness of the 2Sum and Fast2Sum Algorithms, ACM TOMS 44 (2017).

    >>> s, e = two_sum(jnp.float32(1.0), jnp.float32(1e-9))
    >>> float(s), bool(e == jnp.float32(1e-9))
    (1.0, True)
    """
    return _two_sum(*_operands("two_sum", a, b))


def fast_two_sum(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    r"""`two_sum` for $|a| \ge |b|$ or `a == 0`: three operations instead of six.

    The order is not checked; where it is broken `e` may be wrong, `s` never. Arguments, range, derivative and errors as for
    `two_sum`.

    Source: Dekker, A floating-point technique for extending the available precision, Numer. Math. 18 (1971).

    >>> s, e = fast_two_sum(jnp.float32(1.0), jnp.float32(1e-9))
    >>> float(s), bool(e == jnp.float32(1e-9))
    (1.0, True)
    """
    return _fast_two_sum(*_operands("fast_two_sum", a, b))


def split(a: ArrayLike) -> tuple[Array, Array]:
    r"""A float as the sum of two of half the significand: `high + low == a` exactly.

    With $p$ bits and $s = \lceil p/2 \rceil$, `high` is `a` rounded to $p - s$ bits and `low` has at most $s - 1$ bits and a
    sign, so that products of such parts are exact. Dekker's multiplication by $2^s + 1$ overflows for
    $|a| > 2^{e_{\max} - s}$; here the bits are rounded and nothing overflows. Only where rounding would give infinity (the
    largest $2^{-(p-s)}$ of the range) `high` is cut off and `low` has $s$ bits.

    Args:
        a: real numbers. Integers and booleans become the default float.

    Returns:
        `(high, low)` in the dtype of `a`; `(a, 0)` where `a` is not finite. On a backend that flushes subnormals, exact for
        $|a| \ge 2^{e_{\min} + p - 1}$ and 0. The tangent of `high` is that of `a`, the tangent of `low` is 0.

    Raises:
        TypeError: for a complex argument.
        BackendError: if the backend's arithmetic does not round each operation once.

    >>> high, low = split(jnp.float32(1.0) + 2.0**-23)
    >>> float(high), float(low) == 2.0**-23
    (1.0, True)
    """
    (a,) = _operands("split", a)
    return _split_any(a)


def two_prod(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    r"""The rounded product of two floats and its rounding error: $p = \mathrm{fl}(a b)$, $p + e = a b$ exactly.

    Elementwise with broadcasting, for every real float dtype; it holds under `jit`, `vmap` and `scan`, also where `p` is
    then added to something (without a guard the compiler contracts that into one fused multiply-add, and `p` in the sum is
    not the rounded product). The error is computed from the significands alone, so no intermediate overflows or
    underflows, as Dekker's does for $|a| > 2^{e_{\max} - s}$.

    Args:
        a, b: real numbers. Integers and booleans become the default float.

    Returns:
        `(p, e)`, in the promoted dtype. `e` is 0 where `p` is not finite. Exact where `a` and `b` are 0 or normal and
        $|a b| \ge 2^{e_{\min} + 2p}$ (for float32 $2^{-78}$): below, `e` may not be representable. The tangent of `p` is
        that of the product, the tangent of `e` is 0.

    Raises:
        TypeError: for complex arguments.
        BackendError: if the backend's arithmetic does not round each operation once.

    Source: Dekker, Numer. Math. 18 (1971), due to Veltkamp.

    >>> p, e = two_prod(jnp.float32(1.0) + 2.0**-23, jnp.float32(1.0) + 2.0**-23)
    >>> float(p) == 1 + 2.0**-22, float(e) == 2.0**-46
    (True, True)
    """
    return _two_prod(*_operands("two_prod", a, b))


# ---- their derivatives


def _with_zero_tangent_of_the_error(transform, plain):
    """`transform` as a custom_jvp function whose first output has the tangent of `plain` and whose second has none."""
    function = custom_jvp(transform)

    @function.defjvp
    def rule(primals, tangents):
        outputs = function(*primals)
        return outputs, (jax.jvp(plain, primals, tangents)[1], jnp.zeros_like(outputs[1]))

    return function


def _sum_and_error(kernel, a: Array, b: Array) -> tuple[Array, Array]:
    dtype = a.dtype
    wide = _working_dtype(dtype)
    a, b = opaque(a).astype(wide), opaque(b).astype(wide)
    s, e = kernel(a, b)
    if wide != dtype:
        # The error of rounding to `dtype` is representable there, as that of the wider sum is part of it. Rounding twice
        # is harmless, because float32 has more than 2p + 2 bits (Figueroa, SIGNUM 30, 1995).
        narrow = opaque(s.astype(dtype))
        s, e = narrow, (s - narrow.astype(wide)) + e
    return s, jnp.where(jnp.isfinite(s), e, 0).astype(dtype)


def _product_and_error(a: Array, b: Array) -> tuple[Array, Array]:
    dtype = a.dtype
    a, b = opaque(a), opaque(b)
    if _working_dtype(dtype) != dtype:  # the product is exact in float32
        exact = a.astype(jnp.float32) * b.astype(jnp.float32)
        p = opaque(exact.astype(dtype))
        e = opaque(exact) - p.astype(jnp.float32)
    else:
        p = opaque(a * b)
        (a, a_scale), (b, b_scale) = _significand(a), _significand(b)
        e = two_prod_kernel(a, b)[1]
        # The larger power first: |e| <= 2 ** (1 - p), so neither step overflows, nor the first underflow.
        e = e * lax.max(a_scale, b_scale) * lax.min(a_scale, b_scale)
    return p, jnp.where(jnp.isfinite(p), e, 0).astype(dtype)


def _significand(a: Array) -> tuple[Array, Array]:
    """(m, 2 ** k) with a = m 2 ** k and 1 <= |m| < 2 of a normal float; (m, 0) of a zero or a subnormal."""
    info = jnp.finfo(a.dtype)
    integer = jnp.dtype(f"int{info.bits}")
    exponent = integer.type((2**info.nexp - 1) << info.nmant)
    one = integer.type((2 ** (info.nexp - 1) - 1) << info.nmant)
    bits = lax.bitcast_convert_type(a, integer)
    return (
        lax.bitcast_convert_type((bits & ~exponent) | one, a.dtype),
        lax.bitcast_convert_type(bits & exponent, a.dtype),
    )


def _split_word(a: Array) -> tuple[Array, Array]:
    dtype = a.dtype
    info, wide = jnp.finfo(dtype), _working_dtype(dtype)
    a = opaque(a).astype(wide)
    drop = math.ceil((info.nmant + 1) / 2) + jnp.finfo(wide).nmant - info.nmant
    high, low = _split(a, drop, float(info.max))
    finite = jnp.isfinite(a)
    return jnp.where(finite, high, a).astype(dtype), jnp.where(finite, low, 0).astype(dtype)


_two_sum = _with_zero_tangent_of_the_error(partial(_sum_and_error, two_sum_kernel), lax.add)
_fast_two_sum = _with_zero_tangent_of_the_error(partial(_sum_and_error, fast_two_sum_kernel), lax.add)
_two_prod = _with_zero_tangent_of_the_error(_product_and_error, lax.mul)
_split_any = _with_zero_tangent_of_the_error(_split_word, lambda a: a)


def _working_dtype(dtype):
    return dtype if dtype in (jnp.float32, jnp.float64) else jnp.dtype(jnp.float32)


def _operands(function: str, *arguments: ArrayLike) -> list[Array]:
    """The arguments in their common float dtype and shape."""
    for argument in arguments:
        numbers(function, x=argument)
    dtype = jnp.result_type(*arguments)
    refuse_complex(function, "x", dtype, "Transform the real and the imaginary part, `z.real` and `z.imag`.")
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    require_error_free()
    return jnp.broadcast_arrays(*(jnp.asarray(argument, dtype) for argument in arguments))
