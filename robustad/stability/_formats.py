"""What a floating-point format can hold, and how far a sum in it can be off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from robustad.stability._arguments import Axis, axes_of, inexact, refuse_complex
from robustad.stability._compensated_sum import compensated_sum


@dataclass(frozen=True)
class FormatInfo:
    """The parameters of a binary floating-point format.

    Attributes:
        name: the dtype's name.
        p: bits of the significand, with the implicit one.
        exponent_bits: bits of the exponent field.
        digits: decimal digits that every conversion there and back keeps, ⌊(p - 1) log10 2⌋.
        max: the largest finite number.
        min_normal: the smallest positive normal number.
        min_subnormal: the smallest positive number. XLA flushes subnormals of most formats to 0, see `verify_backend`.
        u: the unit roundoff 2⁻ᵖ, half the distance from 1 to the next number (`finfo.eps` is the whole).
    """

    name: str
    p: int
    exponent_bits: int
    digits: int
    max: float
    min_normal: float
    min_subnormal: float
    u: float


def format_info(dtype: DTypeLike) -> FormatInfo:
    """The parameters of a real floating dtype: float64, float32, float16, bfloat16, or one of 8 bits.

    Raises:
        TypeError: for another dtype.

    >>> half = format_info(jnp.float16)
    >>> half.p, half.exponent_bits, half.max, half.u == 2.0**-11
    (11, 5, 65504.0, True)
    >>> format_info(jnp.float8_e4m3fn).max, format_info(jnp.float8_e5m2).max
    (448.0, 57344.0)
    """
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"format_info takes a real floating dtype, got {dtype}. Try `jnp.float32`.")
    info = jnp.finfo(dtype)
    p = info.nmant + 1
    return FormatInfo(
        name=dtype.name,
        p=p,
        exponent_bits=info.nexp,
        digits=math.floor((p - 1) * math.log10(2)),
        max=float(info.max),
        min_normal=2.0**info.minexp,
        min_subnormal=2.0 ** (info.minexp - info.nmant),
        u=2.0**-p,
    )


METHODS: Sequence[str] = ("recursive", "pairwise", "kahan", "compensated")


def sum_error_bound(x: ArrayLike, method: str, axis: Axis = None) -> Array:
    r"""An upper bound of the absolute error of a sum in the dtype of `x`, barring underflow and overflow.

    With $n$ terms, unit roundoff $u$ and $\gamma = (n - 1) u / (1 - (n - 1) u)$:

    - "recursive", one term after the other, or in any order: $(n - 1) u \sum |x_i|$
    - "pairwise": $\lceil \log_2 n \rceil u \sum |x_i|$
    - "kahan": $(2u + 4 n u^2) \sum |x_i|$, where the literature has $2u + O(n u^2)$
    - "compensated": $u |\sum x_i| + \gamma^2 \sum |x_i|$

    Args:
        x: real array.
        method: one of the above.
        axis: the axis or axes that are summed; None for all.

    Returns:
        The bound, in float32 or wider, rounded up by some ulps; infinity where $(n - 1) u \ge 1$.

    Raises:
        ValueError: for another method.
        TypeError: for complex `x`.

    Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), chapter 4; without second-order terms: Jeannerod
    and Rump, SIAM J. Matrix Anal. Appl. 34 (2013); compensated: Ogita, Rump and Oishi (2005), proposition 4.5.

    >>> float(sum_error_bound(jnp.ones(1025), "pairwise") / (11 * 1025 * 2.0**-24)) < 1.001
    True
    """
    if method not in METHODS:
        raise ValueError(f"sum_error_bound: `method` must be one of {', '.join(METHODS)}, got {method!r}.")
    x, _ = inexact("sum_error_bound", x)
    refuse_complex("sum_error_bound", "x", x.dtype, "Bound `x.real` and `x.imag`.")
    u = format_info(x.dtype).u
    n = math.prod(x.shape[i] for i in axes_of("sum_error_bound", axis, x.ndim))
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    x = x.astype(wide)
    gamma = (n - 1) * u / (1 - (n - 1) * u) if (n - 1) * u < 1 else math.inf
    factor = {
        "recursive": max(n - 1, 0) * u if (n - 1) * u < 1 else math.inf,
        "pairwise": math.ceil(math.log2(max(n, 1))) * u,
        "kahan": 2 * u + 4 * n * u**2,
        "compensated": gamma**2 if n > 1 else 0.0,
    }[method]
    bound = jnp.asarray(factor, wide) * compensated_sum(jnp.abs(x), axis)
    if method == "compensated":
        bound = bound + jnp.asarray(u, wide) * jnp.abs(compensated_sum(x, axis))
    return bound * jnp.asarray(1 + 8 * format_info(wide).u, wide)
