"""Casts to a narrower dtype that say what they lose."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from ._arguments import inexact, refuse_complex
from ._custom_jvp import custom_jvp


def _target(name: str, dtype: DTypeLike) -> np.dtype:
    result = jnp.dtype(dtype)
    if not jnp.issubdtype(result, jnp.floating):
        raise TypeError(f"{name}: `dtype` must be a real float dtype such as float16 or bfloat16, got {result}.")
    return result


def _real(name: str, x: ArrayLike, argument: str = "x") -> Array:
    x = inexact(name, x, argument=argument)[0]
    refuse_complex(name, argument, x.dtype, "Give the real and the imaginary part, `x.real` and `x.imag`.")
    return x


# ---- limits of a dtype, as magnitudes


def _limits(dtype: np.dtype) -> dict[str, float]:
    """The magnitudes from which on a number rounds to infinity, to a normal number, and to more than zero.

    Rounding is to nearest, ties to even: half of the least subnormal becomes zero; half a unit above the largest float
    overflows if the significand of that is odd (it is even in float8_e4m3fn).
    """
    info = ml_dtypes.finfo(dtype)
    unit = math.ldexp(1.0, math.frexp(float(info.max))[1] - 1 - info.nmant)
    least = float(info.smallest_subnormal)
    return {
        "overflow": float(info.max) + unit / 2,
        "normal": float(info.smallest_normal) - least / 2,
        "zero": least / 2,
    }


def _magnitude(x: Array) -> Array:
    """|x| as an unsigned bit pattern: ordered like the numbers, and subnormals are seen where arithmetic flushes them."""
    bits = jnp.finfo(x.dtype).bits
    unsigned = np.dtype(f"uint{bits}")
    return lax.bitcast_convert_type(x, unsigned) & unsigned.type(2 ** (bits - 1) - 1)


def _pattern(value: float, dtype: np.dtype, up: bool) -> int:
    """The bit pattern of the least float >= value (`up`), or of the largest <= value."""
    with np.errstate(over="ignore"):
        near = np.float64(value).astype(dtype)
    bits = int(np.asarray(near).view(f"uint{8 * dtype.itemsize}"))
    rounded = float(near)
    return bits + (up and rounded < value) - (not up and rounded > value)


def _classes(x: Array, dtype: np.dtype, shift: int = 0) -> dict[str, Array]:
    """Masks of the elements whose value times 2**shift overflows, becomes subnormal, or becomes zero."""
    limits = {name: math.ldexp(value, -shift) for name, value in _limits(dtype).items()}
    source = np.dtype(x.dtype)
    size = _magnitude(x)
    infinity = _pattern(math.inf, source, True)
    info = ml_dtypes.finfo(dtype)
    odd = int(math.ldexp(math.frexp(float(info.max))[0], info.nmant + 1)) % 2 == 1
    overflow = _pattern(limits["overflow"], source, odd) + (not odd)
    normal = _pattern(limits["normal"], source, True)
    zero = _pattern(limits["zero"], source, False)
    of = size.dtype.type
    return {
        "overflow": (size >= of(min(overflow, infinity))) & (size < of(infinity)),
        "subnormal": (size > of(zero)) & (size < of(normal)),
        "flushed": (size <= of(zero)) & (size > 0),
        "nonfinite": size >= of(infinity),
        "zero": size == 0,
    }


def _number(mask: Array) -> Array:
    return jnp.sum(mask, dtype=jnp.int32)


# ---- the cast


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CastCounts:
    """How many elements a cast cut (`overflow`: finite ones, `infinite`), left NaN, made subnormal, flushed to zero."""

    overflow: Array
    infinite: Array
    nan: Array
    subnormal: Array
    flushed: Array


def _outside(x: Array, dtype: np.dtype) -> Array:
    classes = _classes(x, dtype)
    return classes["overflow"] | jnp.isinf(x)


@functools.partial(custom_jvp, nondiff_argnums=(1,))
def _saturate(x: Array, dtype: np.dtype) -> Array:
    largest = jnp.full(x.shape, ml_dtypes.finfo(dtype).max, dtype)
    return jnp.where(_outside(x, dtype), jnp.where(x < 0, -largest, largest), x.astype(dtype))


@_saturate.defjvp
def _saturate_jvp(dtype, primals, tangents):
    (x,), (t,) = primals, tangents
    return _saturate(x, dtype), jnp.where(_outside(x, dtype), jnp.zeros_like(t), t).astype(dtype)


def saturating_cast(x: ArrayLike, dtype: DTypeLike) -> tuple[Array, CastCounts]:
    r"""`x` in a narrower float dtype, where what would overflow becomes the largest finite number; and how often.

    `x.astype` gives infinity (NaN in dtypes without one). Infinities saturate too; NaN stays NaN. The derivative is
    that of the function as it stands: 1, the cast of the tangent, inside the range; 0 where the value is cut.

    Args:
      x: real array.
      dtype: a real float dtype, float8 among them.

    Returns:
      The array, and `CastCounts` of int32 scalars. `subnormal` and `flushed` count by rounding with gradual underflow;
      hardware that flushes loses the subnormal ones too.

    Raises:
      TypeError: `dtype` or `x` is not real floating.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> value, counts = st.saturating_cast(jnp.array([7e4, 1.0, 1e-9]), jnp.float16)
    >>> print(value, counts.overflow, counts.flushed)
    [6.55e+04 1.00e+00 0.00e+00] 1 1
    """
    target, x = _target("saturating_cast", dtype), _real("saturating_cast", x)
    classes = _classes(lax.stop_gradient(x), target)
    nan = jnp.isnan(x)
    counts = CastCounts(
        overflow=_number(classes["overflow"]),
        infinite=_number(classes["nonfinite"] & ~nan),
        nan=_number(nan),
        subnormal=_number(classes["subnormal"]),
        flushed=_number(classes["flushed"]),
    )
    return _saturate(x, target), counts


# ---- the report


@dataclasses.dataclass(frozen=True)
class RangeReport:
    """What a dtype would do to numbers, and a power of two to multiply them by before.

    Attributes:
      dtype: the dtype asked about.
      size: how many numbers; `zero` and `nonfinite` (infinite or NaN) among them.
      overflow, subnormal, flushed: finite numbers that would become infinite, subnormal, zero.
      largest, smallest: the largest and the smallest nonzero finite magnitude; 0.0 if there is none.
      scale: the recommended factor, a power of two; 1.0 if nothing is lost or nothing helps.
      scaled_overflow, scaled_subnormal, scaled_flushed: the same counts after multiplication by `scale`.
    """

    dtype: str
    size: int
    zero: int
    nonfinite: int
    overflow: int
    subnormal: int
    flushed: int
    largest: float
    smallest: float
    scale: float
    scaled_overflow: int
    scaled_subnormal: int
    scaled_flushed: int

    @property
    def ok(self) -> bool:
        """Whether no finite number overflows, becomes subnormal or is flushed."""
        return not (self.overflow or self.subnormal or self.flushed)

    def __str__(self) -> str:
        rows = [
            ("overflow", self.overflow, self.scaled_overflow),
            ("subnormal", self.subnormal, self.scaled_subnormal),
            ("flushed to 0", self.flushed, self.scaled_flushed),
        ]
        lines = [
            f"{self.size} numbers in {self.dtype}: {self.smallest:.3g} to {self.largest:.3g}, "
            f"{self.zero} zero, {self.nonfinite} not finite",
            f"{'':14}{'as they are':>14}{f'x 2**{int(math.log2(self.scale))}':>14}",
        ]
        lines += [f"{name:14}{count:>14}{scaled:>14}" for name, count, scaled in rows]
        return "\n".join(lines)


def _exact(pattern: int, dtype: np.dtype) -> float:
    return float(np.array(pattern, f"uint{8 * dtype.itemsize}").view(dtype))


def range_report(tree: Any, dtype: DTypeLike) -> RangeReport:
    r"""What casting the arrays of a pytree to `dtype` would lose, and the power of two that would save most.

    The recommended scale is the one nearest to 1 that keeps the largest number in range and, as far as that allows,
    makes the smallest one normal. Counts come from the bit patterns, so subnormal inputs are seen although arithmetic
    on CPU flushes them.

    Args:
      tree: a pytree of real arrays; not inside `jit`, where counts are not known.
      dtype: a real float dtype.

    Returns:
      A `RangeReport`; print it.

    Raises:
      TypeError: `dtype` or a leaf is not real floating, or a leaf is traced.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> print(st.range_report({"g": jnp.array([1e-9, 3e-6, 0.5])}, jnp.float16))
    3 numbers in float16: 1e-09 to 0.5, 0 zero, 0 not finite
                     as they are       x 2**16
    overflow                   0             0
    subnormal                  1             0
    flushed to 0               1             0
    """
    target = _target("range_report", dtype)
    leaves = [_real("range_report", x, "tree") for x in jax.tree.leaves(tree)]
    largest, smallest = 0.0, 0.0
    for x in leaves:
        source, size = np.dtype(x.dtype), _magnitude(x)
        finite = (size > 0) & (size < size.dtype.type(_pattern(math.inf, source, True)))
        if not _known(finite.any()):
            continue
        high = _exact(int(jnp.max(jnp.where(finite, size, 0))), source)
        low = _exact(int(jnp.min(jnp.where(finite, size, size.dtype.type(np.iinfo(size.dtype).max)))), source)
        largest, smallest = max(largest, high), min(smallest or low, low)

    def counts(shift: int) -> dict[str, int]:
        names: tuple[str, ...] = ("overflow", "subnormal", "flushed", "nonfinite", "zero")
        total = {name: 0 for name in names}
        for x in leaves:
            for name, mask in _classes(x, target, shift).items():
                total[name] += int(_number(mask))
        return total

    shift = _recommended(largest, smallest, target)
    plain, after = counts(0), counts(shift)
    return RangeReport(
        dtype=target.name,
        size=sum(x.size for x in leaves),
        **plain,
        largest=largest,
        smallest=smallest,
        scale=math.ldexp(1.0, shift),
        **{f"scaled_{name}": after[name] for name in ("overflow", "subnormal", "flushed")},
    )


def _known(x: Array) -> bool:
    try:
        return bool(x)
    except jax.errors.ConcretizationTypeError:
        raise TypeError(
            "range_report: `tree` is traced; expected arrays whose numbers are known. Call it outside of `jit`, or "
            "count inside by `saturating_cast`."
        ) from None


def _recommended(largest: float, smallest: float, dtype: np.dtype) -> int:
    """The exponent nearest to 0 that keeps `largest` from overflow and then, if it can, makes `smallest` normal."""
    if largest == 0:
        return 0
    info = ml_dtypes.finfo(dtype)
    most = math.frexp(float(info.max))[1] - math.frexp(largest)[1]
    most -= math.ldexp(largest, most) > float(info.max)
    wanted = math.frexp(float(info.smallest_normal))[1] - math.frexp(smallest)[1]
    wanted += math.ldexp(smallest, wanted) < float(info.smallest_normal)
    return min(most, max(wanted, 0))
