"""How many bits a leaf has lost, on the host: norms that neither overflow nor underflow, structural zeros."""

import dataclasses
from typing import Any

import jax
import numpy as np

from robustad.diagnosis._leaves import Leaf

STRUCTURAL_ZERO = 2.0**-40


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """One leaf beside its reference.

    bits_lost: a float, or an array with one entry a slice where a scan runs over the leaf; None without a reference.
    nonfinite: how many elements of the gradient are not finite. norm: of the gradient, in float64.
    """

    gradient: jax.Array
    reference: np.ndarray | None
    bits_lost: Any
    nonfinite: int
    norm: float
    precision: int | None
    slices: int | None

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


def accuracy(gradient: jax.Array, high: Any, known: Leaf, terms: np.ndarray | float) -> Accuracy:
    """Compares a gradient leaf with its twin; `terms`: the size of its last reductions' terms (one a slice)."""
    g = np.asarray(gradient).astype(wide(np.asarray(gradient)))
    ref = np.asarray(high)
    nonfinite = int(g.size - np.isfinite(g).sum())
    if known.precision is None or not np.isfinite(ref).all():
        return Accuracy(gradient, None, None, nonfinite, norm(g), known.precision, known.slices)
    rows = known.slices or 1
    sizes = np.broadcast_to(np.atleast_1d(terms), (rows,))
    each = [
        bits_lost(a, b, known.precision, float(t))
        for a, b, t in zip(g.reshape(rows, -1), ref.reshape(rows, -1), sizes, strict=True)
    ]
    bits = np.array(each) if known.slices else each[0]
    return Accuracy(gradient, ref, bits, nonfinite, norm(g), known.precision, known.slices)


def bits_lost(g: np.ndarray, reference: np.ndarray, precision: int, terms: float = 0.0) -> float:
    r"""\(\mathrm{clip}(p + \log_2(\lVert g - g^* \rVert / s), 0, p)\).

    s is the reference's norm, except for a structural zero (below 2⁻⁴⁰ of the size of the terms that its last reduction
    added up), where it is that size. All p bits where g is not finite.
    """
    if not np.isfinite(g).all():
        return float(precision)
    gap, size = norm(g - reference), norm(reference)
    if size < STRUCTURAL_ZERO * terms:
        size = terms
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
