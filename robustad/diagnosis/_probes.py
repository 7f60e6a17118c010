"""Which derivatives are taken by differences, and what they are: elements one by one, and random directions."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from robustad.diagnosis._float64_slopes import Float64Slopes
from robustad.diagnosis._slopes import ExactSlopes, Slope

_BUDGET = 2e7
"""Scalar operations that are spent on the slopes of one point."""


@dataclasses.dataclass(frozen=True)
class Probes:
    """The slopes along the coordinates of one leaf, and along random directions in it.

    slopes: in the shape of `coordinates`, NaN (error: inf) where none was taken. taken: which elements were. directions:
    (direction, slope along it).
    """

    slopes: Slope
    taken: np.ndarray
    directions: list[tuple[np.ndarray, Slope]]


def coordinates(gradient: np.ndarray) -> np.ndarray:
    """(elements, 1): the derivatives along the real coordinates of a leaf; (elements, 2) of a complex leaf, whose gradient
    is ∂f/∂x - i ∂f/∂y."""
    flat = gradient.ravel()
    return np.stack([np.real(flat), -np.imag(flat)], -1) if np.iscomplexobj(flat) else flat[:, None]


def from_coordinates(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    return (x[:, 0] - 1j * x[:, 1] if np.iscomplexobj(like) else x[:, 0]).reshape(like.shape)


def probes(
    slopes: ExactSlopes | Float64Slopes,
    leaves: Sequence[np.ndarray],
    elements: int,
    directions: int,
    random: np.random.Generator,
) -> list[Probes]:
    """The slopes of a scalar output at float64 (complex128) `leaves`: of all elements where there are no more than
    `elements`; else of as many, drawn at random, and along `directions` random directions a leaf."""
    elements = min(elements, max(int(_BUDGET / slopes.cost), 4))
    total = sum(x.size for x in leaves)
    made = []
    for k, x in enumerate(leaves):
        share = x.size if total <= elements else min(math.ceil(elements * x.size / total), x.size)
        chosen = np.arange(x.size) if share == x.size else np.sort(random.choice(x.size, share, replace=False))
        width = 2 if np.iscomplexobj(x) else 1
        found = Slope(*(np.full((x.size, width), fill) for fill in (np.nan, np.nan, np.nan, np.inf)))
        for i in chosen:
            for axis in range(width):
                unit = _unit(x, int(i), axis, slopes.exact)
                step = np.zeros(x.size, x.dtype)
                step[i] = unit * (1j if axis else 1.0)
                (slope, *_) = slopes.along(_only(leaves, k, step.reshape(x.shape)), unit)
                for field in dataclasses.fields(Slope):
                    getattr(found, field.name)[i, axis] = getattr(slope, field.name)
        taken = np.zeros(x.size, bool)
        taken[chosen] = True
        along = []
        for _ in range(directions if share < x.size else 0):
            v = _direction(x, random)
            (slope, *_) = slopes.along(_only(leaves, k, v))
            along.append((v, slope))
        made.append(Probes(found, taken, along))
    return made


def _only(leaves: Sequence[np.ndarray], k: int, step: np.ndarray) -> list[Any]:
    return [step if j == k else None for j in range(len(leaves))]


def _size(x: np.ndarray) -> float:
    """A typical magnitude of an array, 1 where it is all zeros."""
    finite = np.abs(x[np.isfinite(x)])
    largest = float(np.max(finite, initial=0.0))
    return largest * math.sqrt(float(np.mean((finite / largest) ** 2))) if largest else 1.0


def _unit(x: np.ndarray, i: int, axis: int, exact: bool) -> float:
    """A power of two near the magnitude of a coordinate, or of the leaf where it is 0 (for coarse steps: or small)."""
    own = float(abs(np.imag(x.flat[i]) if axis else np.real(x.flat[i])))
    size = _size(x) if not own else own if exact else max(own, _size(x) / 16)
    return 2.0 ** max(math.floor(math.log2(size)), -1000) if math.isfinite(size) else 1.0


def _direction(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Normally distributed, of the magnitude of each element."""
    v = random.standard_normal(x.shape)
    if np.iscomplexobj(x):
        v = v + 1j * random.standard_normal(x.shape)
    size = np.abs(x)
    return v * np.where((size > 0) & np.isfinite(size), size, _size(x))


def steps_like(leaves: Sequence[np.ndarray], random: np.random.Generator) -> list[np.ndarray]:
    """A random direction in all leaves at once."""
    return [_direction(x, random) for x in leaves]
