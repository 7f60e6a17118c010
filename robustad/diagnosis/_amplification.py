"""Condition numbers from a Jacobian: of the whole matrix, or of its products where it is too large to be formed."""

import dataclasses
from collections.abc import Callable

import numpy as np

from robustad.diagnosis._linearization import ROWS, DerivativeError, Linearization

DIRECTIONS = 512  # as many products, at most, make a Jacobian
ELEMENTS = 2**25  # a matrix of 256 MiB
ITERATIONS = 20
SKETCHES = 2 * ROWS
CANDIDATES = 16


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
        push, pull = line.push(), line.pull()
        distinct = {(i.start, i.stop, o.start, o.stop): (i, o) for i, o in blocks}
        known = {key: _estimated(push, pull, line.x, line.y, *both) for key, both in distinct.items()}
        made = [known[i.start, i.stop, o.start, o.stop] for i, o in blocks]
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


def _of_sums(sums: np.ndarray, y: np.ndarray, largest: float, normwise: float) -> Amplification:
    """From Σ_j |J_ij| |x_j| of output components i; y: their values; largest: that of all."""
    if not len(y):
        return Amplification(normwise, 0.0, 0.0, None)
    each = np.array([ratio(a, abs(b)) for a, b in zip(sums, y)])
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


def _estimated(push: Product, pull: Product, x: np.ndarray, y: np.ndarray, i: slice, o: slice) -> Amplification:
    """For the inputs in i and the outputs in o alone: the others are held at 0 in every product."""
    random = np.random.default_rng(0)
    with np.errstate(invalid="ignore", over="ignore"):
        # If c is a vector of independent standard Cauchy variables, Σ_j a_j c_j is Σ_j |a_j| times another one, of which the
        # absolute value has median 1. That finds the components with the largest sums, which are then formed.
        directions = np.zeros((SKETCHES, len(x)))
        directions[:, i] = x[i] * random.standard_cauchy((SKETCHES, len(x[i])))
        sketch = np.median(np.abs(push(directions)[:, o]), axis=0)
        relative = np.array([ratio(a, abs(b)) for a, b in zip(sketch, y[o])])
        found = np.union1d(np.argsort(sketch)[-CANDIDATES:], np.argsort(relative)[-CANDIDATES:]).astype(int)
        chosen = np.zeros((len(found), len(y)))
        chosen[np.arange(len(found)), o.start + found] = 1
        sums = np.abs(pull(chosen)[:, i]) @ np.abs(x[i])
        normwise = ratio(_estimated_norm(push, pull, x, i, o, random) * norm(x[i]), norm(y[o]))
    made = _of_sums(sums, y[o][found], _largest(y[o]), normwise)
    return made if made.worst is None else dataclasses.replace(made, worst=int(found[made.worst]))


def _estimated_norm(
    push: Product, pull: Product, x: np.ndarray, i: slice, o: slice, random: np.random.Generator
) -> float:
    """The largest singular value by subspace iteration, from below."""
    block = np.zeros((ROWS, len(x)))
    block[:, i] = random.standard_normal((ROWS, len(x[i])))
    found = 0.0
    for _ in range(ITERATIONS):
        block = np.linalg.qr(block.T)[0].T
        pushed = push(block)
        kept = np.zeros_like(pushed)
        kept[:, o] = pushed[:, o]
        if not np.isfinite(kept).all():
            return float("nan")
        before, found = found, _spectral_norm(kept)
        if found <= before * (1 + 1e-3):
            break
        pulled = pull(kept / found)
        block = np.zeros_like(block)
        block[:, i] = pulled[:, i]
    return found
