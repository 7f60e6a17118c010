"""Condition numbers from a Jacobian: of the whole matrix, or of its products where it is too large to be formed."""

import dataclasses
from collections.abc import Callable

import numpy as np

from robustad.diagnosis._accuracy import STRUCTURAL_ZERO
from robustad.diagnosis._linearization import ROWS, DerivativeError, Linearization

DIRECTIONS = 512  # as many products, at most, make a Jacobian
ELEMENTS = 2**25  # a matrix of 256 MiB
ITERATIONS = 20
SKETCHES = ROWS
CANDIDATES = 8


@dataclasses.dataclass(frozen=True)
class Amplification:
    """worst: the component, of the outputs that are looked at, that `componentwise` is of; None where there are none."""

    normwise: float
    mixed: float
    componentwise: float
    worst: int | None


Measured = tuple[Amplification, list[Amplification], list[Amplification], bool]


def measured(line: Linearization) -> Measured:
    """Of everything, of each input leaf alone, of each output leaf alone; and whether that is exact.

    Raises:
        DerivativeError: JAX cannot make the derivative, in a mode that is needed.
    """
    n, m = len(line.x), len(line.y)
    all_inputs, all_outputs = slice(0, n), slice(0, m)
    blocks = [
        (all_inputs, all_outputs),
        *((i, all_outputs) for i in line.inputs),
        *((all_inputs, o) for o in line.outputs),
    ]
    if n * m <= ELEMENTS and min(n, m) <= DIRECTIONS:
        jacobian = _jacobian(line)
        made = [_exact(jacobian[o, i], line.x[i], line.y[o]) for i, o in blocks]
        exact = True
    else:
        made = _estimated(line.push(), line.pull(), line.x, line.y, blocks)
        exact = False
    first = 1 + len(line.inputs)
    return made[0], made[1:first], made[first:], exact


def _jacobian(line: Linearization) -> np.ndarray:
    """By columns where they are not many more than rows: forward mode is finite in untaken branches. Else by rows."""
    n, m = len(line.x), len(line.y)
    if not n * m:
        return np.zeros((m, n))
    if n <= DIRECTIONS and n <= 4 * m:
        try:
            return line.push()(np.eye(n)).T
        except DerivativeError:
            return line.pull()(np.eye(m))
    try:
        by_rows = line.pull()(np.eye(m))
    except DerivativeError:
        if n > DIRECTIONS:
            raise
        return line.push()(np.eye(n)).T
    if np.isnan(by_rows).any() and n <= DIRECTIONS:
        return line.push()(np.eye(n)).T
    return by_rows


def ratio(a: float, b: float) -> float:
    """a / b with 0 / 0 = 0."""
    if a == 0 or a != a:
        return float(a)
    return float("inf") if b == 0 else float(a / b)


def norm(x: np.ndarray) -> float:
    """The 2-norm, without overflow or underflow of squares."""
    largest = _largest(x)
    return largest * float(np.linalg.norm(x / largest)) if 0 < largest < np.inf else largest


def _relative(sums: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Each sum beside its component. One that is 0, with a sum that rounding of the others could make, does not change."""
    noise = STRUCTURAL_ZERO * np.max(sums, initial=0.0)
    return np.array([0.0 if b == 0 and a <= noise else ratio(a, abs(b)) for a, b in zip(sums, y)])


def _of_sums(sums: np.ndarray, y: np.ndarray, largest: float, normwise: float) -> Amplification:
    """From Σ_j |J_ij| |x_j| of output components i; y: their values; largest: that of all."""
    if not len(y):
        return Amplification(normwise, 0.0, 0.0, None)
    each = _relative(sums, y)
    worst = int(np.argmax(each))  # a NaN, if there is one
    return Amplification(normwise, ratio(float(sums.max()), largest), float(each[worst]), worst)


def _largest(y: np.ndarray) -> float:
    return float(np.max(np.abs(y), initial=0.0))


def _exact(jacobian: np.ndarray, x: np.ndarray, y: np.ndarray) -> Amplification:
    with np.errstate(invalid="ignore", over="ignore"):
        sums = np.abs(jacobian) @ np.abs(x)
        normwise = ratio(_spectral_norm(jacobian) * norm(x), norm(y))
    return _of_sums(sums, y, _largest(y), normwise)


def _spectral_norm(matrix: np.ndarray) -> float:
    largest = _largest(matrix)
    if largest == 0 or not np.isfinite(largest):
        return largest
    scaled = matrix / largest
    gram = scaled @ scaled.T if matrix.shape[0] <= matrix.shape[1] else scaled.T @ scaled
    return largest * float(np.sqrt(np.linalg.eigvalsh(gram)[-1]))


# -------------------------------------------------------------------------------------- without forming the matrix


Product = Callable[[np.ndarray], np.ndarray]
Block = tuple[slice, slice]
"""Of inputs and outputs; in every product the other inputs are held at 0 and the other outputs are not looked at."""


def _estimated(push: Product, pull: Product, x: np.ndarray, y: np.ndarray, blocks: list[Block]) -> list[Amplification]:
    """Of each block; rows of different blocks share the products."""
    random = np.random.default_rng(0)
    with np.errstate(invalid="ignore", over="ignore"):
        norms = _estimated_norms(push, pull, x, y, blocks, random)
        chosen = _candidates(push, x, y, blocks, random)
        rows = np.zeros((sum(map(len, chosen)), len(y)))
        rows[np.arange(len(rows)), np.concatenate(chosen)] = 1
        pulled = iter(np.abs(pull(rows)))
        made = []
        for (i, o), found, size in zip(blocks, chosen, norms):
            sums = np.array([next(pulled)[i] @ np.abs(x[i]) for _ in found])
            of = _of_sums(sums, y[found], _largest(y[o]), ratio(size * norm(x[i]), norm(y[o])))
            made.append(of if of.worst is None else dataclasses.replace(of, worst=int(found[of.worst]) - o.start))
    return made


def _candidates(
    push: Product, x: np.ndarray, y: np.ndarray, blocks: list[Block], random: np.random.Generator
) -> list[np.ndarray]:
    """The outputs of each block where Σ_j |J_ij| |x_j| is likely to be largest, by itself or beside |y_i|.

    If c is a vector of independent standard Cauchy variables, Σ_j a_j c_j is Σ_j |a_j| times another one, of which the
    absolute value has median 1.
    """
    sketches: dict[tuple[int, int], np.ndarray] = {}
    chosen = []
    for i, o in blocks:
        if (i.start, i.stop) not in sketches:
            directions = np.zeros((SKETCHES, len(x)))
            directions[:, i] = x[i] * random.standard_cauchy((SKETCHES, len(x[i])))
            sketches[i.start, i.stop] = np.median(np.abs(push(directions)), axis=0)
        sums = sketches[i.start, i.stop][o]
        relative = _relative(sums, y[o])
        found = np.union1d(np.argsort(sums)[-CANDIDATES:], np.argsort(relative)[-CANDIDATES:])
        chosen.append(o.start + found.astype(int))
    return chosen


def _estimated_norms(
    push: Product, pull: Product, x: np.ndarray, y: np.ndarray, blocks: list[Block], random: np.random.Generator
) -> np.ndarray:
    """The largest singular value of each block, from below, by subspace iteration."""
    width = min(max(2, ROWS // len(blocks)), len(x))
    inside, outside = np.zeros((len(blocks), 1, len(x))), np.zeros((len(blocks), 1, len(y)))
    for k, (i, o) in enumerate(blocks):
        inside[k, :, i], outside[k, :, o] = 1, 1
    directions = inside * random.standard_normal((len(blocks), width, len(x)))
    found = np.zeros(len(blocks))
    for _ in range(ITERATIONS):
        directions = np.stack([np.linalg.qr(d.T)[0].T for d in directions])
        pushed = push(directions.reshape(-1, len(x))).reshape(len(blocks), width, len(y)) * outside
        before, found = found, np.array([_spectral_norm(p) for p in pushed])
        if not (found > before * (1 + 1e-2)).any():  # also where one is not finite
            break
        scaled = pushed / np.maximum(found, np.finfo(float).tiny)[:, None, None]
        directions = pull(scaled.reshape(-1, len(y))).reshape(directions.shape) * inside
    return found
