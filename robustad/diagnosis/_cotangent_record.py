"""What is kept of a cotangent: sums, so that records which automatic differentiation adds are the record of all of them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
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
@dataclasses.dataclass(frozen=True)
class CotangentRecord:
    r"""What `tap` records of a cotangent.

    The fields are sums over entries, so that where JAX adds records (a tap used twice, a loop, `vmap`, a mesh) the sum is
    the record of all of the cotangents together. The one exception is `largest`, which is then an upper bound.

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
    x = lax.abs(lax.convert_element_type(x, dtype)).reshape(*x.shape[:axes], -1)
    shape, size = x.shape[:-1], x.shape[-1]
    finite = x < jnp.inf
    nonfinite = _count(~finite)
    x = jnp.where(finite, x, 0)
    peak = jnp.max(x, -1, initial=0)
    # Exact powers of two bring the largest entry near 1; what then underflows is of no weight beside it. The barrier: XLA
    # makes (x scale)^2 of a constant cotangent x^2 scale^2, which is 0 times infinity.
    up, down = scales(x.dtype)
    high, low = peak > 2.0 ** (math.log2(up) / 2), peak < 2.0 ** (-math.log2(up) / 2)
    scale = jnp.where(high, down, jnp.where(low, up, 1)).astype(x.dtype)
    scaled = lax.optimization_barrier(x) * lax.optimization_barrier(scale)[..., None]
    square = jnp.sum(scaled * scaled, -1)
    return jnp.stack(
        [
            jnp.ones(shape, x.dtype),
            jnp.full(shape, size, x.dtype),
            (_count(x == 0) - nonfinite).astype(x.dtype),
            nonfinite.astype(x.dtype),
            jnp.where(low, square, 0),
            jnp.where(low | high, 0, square),
            jnp.where(high, square, 0),
            peak,
            _count((x < 2.0**-14) & (x > 0)).astype(x.dtype),
            _count((x <= 2.0**-25) & (x > 0)).astype(x.dtype),
            _count((x < 2.0**-126) & (x > 0)).astype(x.dtype),
        ],
        -1,
    )


def _count(mask: Array) -> Array:
    return jnp.sum(mask, -1, dtype=jnp.int32)


def scales(dtype: jax.typing.DTypeLike) -> tuple[float, float]:
    """The powers of two by which small and large arrays are scaled before squaring.

    After Blue, A portable Fortran program to find the Euclidean norm of a vector (ACM TOMS 4, 1978), but one scale an array:
    sums of squares of three ranges can still be added without overflow.
    """
    half = 2.0 ** (1 - int(jnp.finfo(dtype).minexp))  # 2^127 in float32
    root = 2.0 ** (int(math.log2(half)) * 2 // 3)
    return root, 1 / root
