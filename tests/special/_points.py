"""Arguments: edges, switch points with their neighbours, random bit patterns, random moderate numbers."""

import numpy as np

from tests.special._table import Special


def _inside(entry: Special, columns: list[np.ndarray]) -> np.ndarray:
    keep = np.ones(columns[0].shape, bool)
    for (low, high), x in zip(entry.domain, columns):
        tiny = np.finfo(x.dtype).smallest_normal
        # Subnormal arguments are read as zero by XLA on CPU; zero itself is among the edges.
        keep &= np.isfinite(x) & (x > low) & (x < high) & (np.abs(x) >= tiny)
    if entry.also is not None:
        keep &= entry.also(*columns)
    return keep


def patterns(rng: np.random.Generator, dtype, count: int) -> np.ndarray:
    """Random bit patterns."""
    integer = np.dtype(f"uint{8 * np.dtype(dtype).itemsize}")
    return rng.integers(0, np.iinfo(integer).max, count, integer, endpoint=True).view(dtype)


def moderate(rng: np.random.Generator, dtype, count: int) -> np.ndarray:
    """Both signs, magnitudes log-uniform from 2⁻³⁰ to 2¹⁰."""
    return (rng.choice([-1.0, 1.0], count) * 2.0 ** rng.uniform(-30, 10, count)).astype(dtype)


def neighbours(points, dtype) -> np.ndarray:
    points = np.array(points, dtype)
    return np.concatenate([points, np.nextafter(points, dtype(np.inf)), np.nextafter(points, dtype(-np.inf))])


def interior(entry: Special, dtype, count: int, seed: int = 0) -> list[np.ndarray]:
    """Normal numbers inside the domain: half bit patterns, a quarter moderate, a quarter uniform, and the switch points."""
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype)
    with np.errstate(all="ignore"):
        if entry.arity == 1:
            (low, high), *_ = entry.domain
            uniform = rng.uniform(max(low, -20), min(high, 20), count).astype(dtype)
            near = neighbours([*entry.switches, *(-s for s in entry.switches)], dtype)
            edges = np.array([info.max, info.smallest_normal, -info.max, -info.smallest_normal, low, high], dtype)
            edges = np.concatenate([edges, np.nextafter(edges, dtype(0))])
            columns = [
                np.concatenate([near, edges, patterns(rng, dtype, 2 * count), moderate(rng, dtype, count), uniform])
            ]
        else:
            x = np.concatenate(
                [patterns(rng, dtype, count), moderate(rng, dtype, count), rng.normal(0, 10, 2 * count).astype(dtype)]
            )
            y = np.concatenate(
                [patterns(rng, dtype, count), moderate(rng, dtype, count), rng.normal(0, 10, 2 * count).astype(dtype)]
            )
            tied = (x[-count:] * (1 + info.eps * rng.integers(-3, 4, count))).astype(dtype)
            columns = [np.concatenate([x, x[-count:]]), np.concatenate([y, tied])]
        keep = _inside(entry, columns)
    columns = [x[keep] for x in columns]
    if len(columns[0]) > count:  # the switch points and edges come first
        head = min(60, count // 2) if entry.arity == 1 else 0
        pick = np.concatenate(
            [np.arange(head), rng.choice(np.arange(head, len(columns[0])), count - head, replace=False)]
        )
        columns = [x[pick] for x in columns]
    return columns
