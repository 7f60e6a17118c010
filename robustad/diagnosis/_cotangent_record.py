"""What is kept of a cotangent: sums, so that records which automatic differentiation adds are the record of all of them."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

FIELDS = (
    "passes",
    "count",
    "zeros",
    "nonfinite",
    "small",
    "medium",
    "large",
    "peaks",
    "below_float16",
    "lost_float16",
    "below_float32",
)
_AT = {name: k for k, name in enumerate(FIELDS)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class CotangentRecord:
    r"""What `tap` records of a cotangent.

    The fields are sums over entries, so that where JAX adds records (a tap used twice, a loop, `vmap`, a mesh) the sum is
    the record of all of the cotangents together. The one exception is `largest`, which is then an upper bound. Counts are
    exact to 2^24 entries (2^53 in a float64 record). Subnormal numbers count as what they are, where the machine reads them
    as 0 too; `norm` and `largest` of nothing else are 0 there.

    Attributes:
        sums: floating, shape (..., 11): the fields, by axes of the record. Read them by the properties, each of shape (...).
    """

    sums: Array

    @staticmethod
    def zeros(shape: tuple[int, ...] = (), dtype: jax.typing.DTypeLike = jnp.float32) -> "CotangentRecord":
        """The record to start from.

        Args:
            shape: `()` for one record; `(n,)` for one for each index of x's first axis, or for each step of a scan that
                runs over the record.
            dtype: float32, or float64 for float64 cotangents.
        """
        if jnp.dtype(dtype) not in (jnp.dtype("float32"), jnp.dtype("float64")):
            raise ValueError(
                f"`dtype` of a record must be float32 (for float16 and bfloat16 too) or float64; got {dtype}."
            )
        return CotangentRecord(jnp.zeros((*shape, len(FIELDS)), dtype))

    def __getitem__(self, index: object) -> "CotangentRecord":
        """The record at an index of its axes."""
        return CotangentRecord(self.sums[index])

    def _field(self, name: str) -> Array:
        return self.sums[..., _AT[name]]

    @property
    def passes(self) -> Array:
        """How many cotangents were added up; 0 where none came back: nothing that is differentiated depends on x."""
        return self._field("passes")

    @property
    def count(self) -> Array:
        """Their entries; a complex one counts as two."""
        return self._field("count")

    @property
    def norm(self) -> Array:
        r"""\(\sqrt{\sum |c|^2}\) over the finite entries c; no square of it overflows or underflows."""
        small, medium, large = (self._field(name) for name in ("small", "medium", "large"))
        up, down = scales(self.sums.dtype)
        lower = jnp.where(medium > 0, jnp.sqrt(medium + small / up / up), jnp.sqrt(small) / up)
        return jnp.where(large > 0, jnp.sqrt(large + medium * down * down) / down, lower)

    @property
    def rms(self) -> Array:
        """The root of the mean square of the finite entries; 0 where there are none."""
        return self.norm / jnp.sqrt(jnp.maximum(self.count - self.nonfinite, 1))

    @property
    def largest(self) -> Array:
        """The largest finite magnitude. Of several passes an upper bound: the sum of their largest, or the norm if less."""
        peaks = self._field("peaks")
        return jnp.where(self.passes > 1, jnp.minimum(peaks, self.norm), peaks)

    @property
    def zero_fraction(self) -> Array:
        """The share of entries that are 0."""
        return self._field("zeros") / jnp.maximum(self.count, 1)

    @property
    def nonfinite(self) -> Array:
        """How many entries are inf or NaN; they do not count in `norm`, `rms` and `largest`."""
        return self._field("nonfinite")

    def below(self, dtype: jax.typing.DTypeLike) -> Array:
        """The share of entries, zeros left out, below a dtype's smallest normal number: float16, bfloat16 or float32."""
        name = {"float16": "below_float16", "bfloat16": "below_float32", "float32": "below_float32"}
        if (dtype := str(jnp.dtype(dtype))) not in name:
            raise ValueError(f"`dtype` must be float16, bfloat16 or float32; got {dtype}.")
        return self._field(name[dtype]) / jnp.maximum(self.count, 1)

    @property
    def lost_in_float16(self) -> Array:
        """The share of entries that float16 would round to 0: of magnitude 2^-25 or less, zeros left out."""
        return self._field("lost_float16") / jnp.maximum(self.count, 1)


def record(x: Array, axes: int, dtype: jax.typing.DTypeLike) -> Array:
    """The `sums` of an array, apart for each index of its first `axes` axes."""
    if jnp.iscomplexobj(x):
        x = jnp.stack([lax.real(x), lax.imag(x)], -1)
    if jnp.finfo(x.dtype).bits < 16:
        x = lax.convert_element_type(x, dtype)
    return _record(x.reshape(*x.shape[:axes], math.prod(x.shape[axes:])), jnp.dtype(dtype))


_CHUNK = 4096
"""How many terms are added one by one."""


@functools.partial(jax.jit, static_argnums=1)  # traced once for each shape, however many layers have it
def _record(x: Array, dtype: Any) -> Array:
    # Kinds are told by bits: where the machine reads subnormal numbers as 0, so does every comparison. The barrier: XLA
    # would make (x scale)^2 of a constant cotangent x^2 scale^2, which is 0 times infinity.
    x = lax.optimization_barrier(x)
    shape, size = x.shape[:-1], x.shape[-1]
    padding = -size % _CHUNK if size > _CHUNK else 0
    x = jnp.pad(x, [(0, 0)] * len(shape) + [(0, padding)])
    x = x.reshape(*shape, x.shape[-1] // _CHUNK, _CHUNK) if size > _CHUNK else x[..., None, :]
    bits = _magnitude_bits(x)
    finite = bits < _bits_of(np.inf, x.dtype)
    y = jnp.where(finite, lax.abs(lax.convert_element_type(x, dtype)), 0)
    # Blue, A portable Fortran program to find the Euclidean norm of a vector (ACM TOMS 4, 1978): exact powers of two bring
    # what is small or large near 1.
    up, down = scales(dtype)
    low, high = y < math.sqrt(down), y > math.sqrt(up)
    scaled = jnp.where(low, y * up, jnp.where(high, y * down, y))
    if jnp.finfo(x.dtype).minexp == jnp.finfo(dtype).minexp:
        subnormal = bits < _bits_of(jnp.finfo(x.dtype).smallest_normal, x.dtype)
        unit = jnp.asarray(float(jnp.finfo(x.dtype).smallest_subnormal) * up, dtype)
        scaled = jnp.where(subnormal, lax.convert_element_type(bits, dtype) * unit, scaled)
    square = scaled * scaled
    squares = [jnp.where(mask, square, 0) for mask in (low, ~(low | high), high)]
    some = bits > 0
    limits = (2.0**-14, np.nextafter(2.0**-25, 1.0), 2.0**-126)
    masks = [~some, ~finite, *(some & (bits < _bits_of(limit, x.dtype)) for limit in limits)]
    # One pass over the entries.
    peak, small, medium, large, *counts = _together([y, *squares, *(mask.astype(jnp.int32) for mask in masks)])
    zeros, *others = counts
    zeros, nonfinite, below_float16, lost_float16, below_float32 = (n.astype(dtype) for n in (zeros - padding, *others))
    ones = jnp.ones_like(peak)
    return jnp.stack(
        [
            ones,
            ones * size,
            zeros,
            nonfinite,
            small,
            medium,
            large,
            peak,
            below_float16,
            lost_float16,
            below_float32,
        ],
        -1,
    )


def _magnitude_bits(x: Array) -> Array:
    """The bits without the sign, as unsigned integers: in the order of the magnitudes."""
    width = jnp.finfo(x.dtype).bits
    bits = lax.bitcast_convert_type(x, f"uint{width}")
    return bits & np.asarray((1 << (width - 1)) - 1, bits.dtype)


def _bits_of(limit: Any, dtype: Any) -> np.ndarray:
    """Those of the least number of a dtype that is not below a limit."""
    rounded = np.asarray(limit).astype(dtype)
    bits = rounded.view(f"uint{jnp.finfo(dtype).bits}")
    return bits if rounded.astype(np.float64) >= limit else bits + bits.dtype.type(1)


def _together(xs: list[Array]) -> list[Array]:
    """The maximum of the first array and the sums of the others over the last two axes."""

    def combined(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, ...]:
        return lax.max(a[0], b[0]), *(p + q for p, q in zip(a[1:], b[1:]))

    for _ in range(2):
        start = [np.zeros((), x.dtype) for x in xs]
        axis = xs[0].ndim - 1
        xs = list(lax.reduce(xs, start, combined, (axis,))) if xs[0].shape[axis] != 1 else [x[..., 0] for x in xs]
    return xs


def scales(dtype: jax.typing.DTypeLike) -> tuple[float, float]:
    """The powers of two by which small and large entries are scaled before squaring: 2^84 and 2^-84 in float32."""
    up = 2.0 ** ((1 - int(jnp.finfo(dtype).minexp)) * 2 // 3)
    return up, 1 / up
