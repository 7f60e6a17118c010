"""How many bits a leaf has lost, on the host: norms that neither overflow nor underflow, structural zeros."""

import dataclasses
from typing import Any

import jax
import numpy as np

from robustad.diagnosis._leaves import Leaf

STRUCTURAL_ZERO = 2.0**-40
"""Below this share of the terms that its last reduction adds up, a gradient may be a structural zero."""

FLOAT64_ERROR = 2.0**-45
"""Of the terms: what float64 may leave of a zero, its rounding and a margin of 2⁸."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """One leaf beside its reference.

    bits_lost: a float, or an array with one entry a slice where a scan runs over the leaf; None without a reference.
    nonfinite: how many elements of the gradient are not finite. norm: of the gradient, in float64. structural_zero: whether
    it, or one of its slices, was taken for a structural zero.
    """

    gradient: jax.Array
    reference: np.ndarray | None
    bits_lost: Any
    nonfinite: int
    norm: float
    precision: int | None
    slices: int | None
    structural_zero: bool = False

    @property
    def worst(self) -> float | None:
        """The most bits that the leaf, or a slice of it, has lost."""
        return None if self.bits_lost is None else float(np.max(self.bits_lost))

    def failing(self, threshold: float) -> np.ndarray:
        """Which slices (a leaf that is not sliced: itself) are not finite or lose more than threshold * precision."""
        finite = np.isfinite(np.asarray(self.gradient, wide(self.gradient)))
        bad = np.asarray(~finite.reshape(self.slices or 1, -1).all(1))
        if self.bits_lost is None or self.precision is None:
            return bad
        lossy = np.atleast_1d(self.bits_lost) > threshold * self.precision
        return np.asarray(bad | lossy)


def wide(x: Any) -> type:
    return np.complex128 if np.iscomplexobj(x) else np.float64


def accuracy(
    gradient: jax.Array, high: Any, known: Leaf, terms: np.ndarray | float, zeros: np.ndarray | None = None
) -> Accuracy:
    """Compares a gradient leaf with its twin.

    `terms`: the size of its last reductions' terms (one a slice). `zeros`: the elements that may be 0 in exact arithmetic;
    None where float64 alone tells.
    """
    g = np.asarray(gradient).astype(wide(np.asarray(gradient)))
    ref = np.asarray(high)
    nonfinite = int(g.size - np.isfinite(g).sum())
    if known.precision is None or not np.isfinite(ref).all():
        return Accuracy(gradient, None, None, nonfinite, norm(g), known.precision, known.slices)
    rows = known.slices or 1
    sizes = np.broadcast_to(np.atleast_1d(terms), (rows,))
    proven = [None] * rows if zeros is None else [bool(z.all()) for z in zeros.reshape(rows, -1)]
    each, scales = [], []
    for a, b, t, zero in zip(g.reshape(rows, -1), ref.reshape(rows, -1), sizes, proven, strict=True):
        scales.append(scale(norm(a - b), norm(b), float(t), known.precision, zero))
        each.append(bits_lost(a, b, known.precision, scales[-1]))
    structural = any(s != norm(b) for s, b in zip(scales, ref.reshape(rows, -1)))
    bits = np.array(each) if known.slices else each[0]
    return Accuracy(gradient, ref, bits, nonfinite, norm(g), known.precision, known.slices, structural)


def scale(gap: float, size: float, terms: float, precision: int, zero: bool | None = None) -> float:
    """What the error `gap` of a gradient with a reference of norm `size` is measured against: `size`, or for a structural
    zero the size of the `terms` that its last reduction adds up.

    A structural zero is far below its terms, and nothing excludes that it is 0. Exact arithmetic tells (`zero`: whether it
    may be 0). Where float64 alone does (None), its own error is that of the working precision, less by the ratio of the two;
    and no less than the terms' rounding, as a gap may be small by luck.
    """
    if not size < STRUCTURAL_ZERO * terms:
        return size
    if zero is None:
        zero = size <= FLOAT64_ERROR * max(terms, gap * 2.0**precision)
    return terms if zero else size


def bits_lost(g: np.ndarray, reference: np.ndarray, precision: int, size: float | None = None) -> float:
    r"""\(\mathrm{clip}(p + \log_2(\lVert g - g^* \rVert / s), 0, p)\).

    s is `size` (see `scale`), by default the reference's norm. All p bits where g is not finite.
    """
    if not np.isfinite(g).all():
        return float(precision)
    gap, size = norm(g - reference), norm(reference) if size is None else size
    if gap == 0:
        return 0.0
    if size == 0 or not np.isfinite(gap):
        return float(precision)
    return float(np.clip(precision + np.log2(gap) - np.log2(size), 0, precision))


def norm(x: np.ndarray) -> float:
    """The 2-norm, scaled so that no square overflows or underflows."""
    largest = float(np.max(np.abs(x), initial=0.0))
    if largest == 0 or not np.isfinite(largest):
        return largest
    return largest * float(np.linalg.norm((x / largest).ravel()))
