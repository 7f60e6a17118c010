"""The functions of two and four arguments: exact partial derivatives by ball arithmetic, points, and errors in ulps."""

from collections.abc import Callable
from dataclasses import dataclass

import flint
import numpy as np

from tests._ulp import ulps
from tests.special._measure import evaluate
from tests.special._oracle import _words
from tests.special._points import moderate, patterns

arb = flint.arb


@dataclass(frozen=True)
class Entry:
    """`exact` gives, in arb, value, first and second partial derivatives (upper triangle, row by row)."""

    exact: Callable
    domain: Callable = lambda *args: np.full(args[0].shape, True)
    arity: int = 2


def _divide(x, y):
    return [x / y, 1 / y, -x / y**2, arb(0), -1 / y**2, 2 * x / y**3]


def _hypot(x, y):
    h = (x * x + y * y).sqrt()
    return [h, x / h, y / h, y * y / h**3, -x * y / h**3, x * x / h**3]


def _arctan2(y, x):
    s = x * x + y * y
    return [arb.atan2(y, x), x / s, -y / s, -2 * x * y / s**2, (y * y - x * x) / s**2, 2 * x * y / s**2]


def _power(x, y):
    sign, size = (-1 if x < 0 else 1), abs(x)
    log = size.log()

    def raised(shift):
        e = y - shift
        odd = y.is_integer() and int((y - shift).mid().man_exp()[1]) == 0 and int((y - shift).unique_fmpz()) % 2
        return (-1 if sign < 0 and odd else 1) * (e * log).exp()

    first, second = y * raised(1), y * (y - 1) * raised(2)
    if sign < 0:
        nan = arb("nan")
        return [raised(0), first, nan, second, nan, nan]
    return [raised(0), first, raised(0) * log, second, raised(1) * (1 + y * log), raised(0) * log * log]


def _power_domain(x, y):
    size = y.astype(np.float64) * np.log(np.abs(x.astype(np.float64)))
    return ((x > 0) | (y == np.round(y))) & (np.abs(size) < 5000)


def _sqrt_diff(x, h):
    new, old = (x + h).sqrt(), x.sqrt()
    third = (1 / new**3, 1 / old**3)
    return [
        new - old,
        (1 / new - 1 / old) / 2,
        1 / (2 * new),
        -(third[0] - third[1]) / 4,
        -third[0] / 4,
        -third[0] / 4,
    ]


def _diff_of_products(a, b, c, d):
    one, zero = arb(1), arb(0)
    return [a * b - c * d, b, a, -d, -c, zero, one, zero, zero, zero, zero, zero, zero, -one, zero]


TABLE = {
    "divide": Entry(_divide),
    "hypot": Entry(_hypot),
    "arctan2": Entry(_arctan2),
    "power": Entry(_power, _power_domain),
    "sqrt_diff": Entry(_sqrt_diff, lambda x, h: (x > 0) & (x.astype(np.longdouble) + h.astype(np.longdouble) > 0)),
    "diff_of_products": Entry(_diff_of_products, arity=4),
}


def points(entry: Entry, dtype, count: int, seed: int = 0) -> list[np.ndarray]:
    """Normal numbers: random bit patterns, moderate numbers, comparable ones, nearly equal ones, a grid of edges."""
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype)
    edges = np.array([1, 2, 3, 0.5, 1 + info.eps, 1 - info.epsneg, 1e-25, 1e20, 3e-20, 4e-20], dtype)
    edges = np.concatenate([edges, np.array([info.max, info.smallest_normal], dtype)])
    edges = np.concatenate([edges, -edges])
    if entry.arity == 2:
        columns = [np.repeat(edges, len(edges)), np.tile(edges, len(edges))]
    else:
        columns = [rng.choice(edges, 400) for _ in range(entry.arity)]
    head = len(columns[0])
    common = moderate(rng, dtype, count)
    with np.errstate(all="ignore"):
        for i in range(entry.arity):
            near = common * (1 + info.eps * rng.integers(-9, 10, count)) * rng.choice([-1, 1], count)
            similar = common * rng.uniform(0.2, 5, count) * rng.choice([-1, 1], count)
            whole = np.round(rng.normal(0, 20, count)) if i else moderate(rng, dtype, count)
            parts = [columns[i], patterns(rng, dtype, count), moderate(rng, dtype, count), near, similar, whole]
            columns[i] = np.concatenate([p.astype(dtype) for p in parts])
    with np.errstate(all="ignore"):
        keep = entry.domain(*columns)
    for x in columns:
        keep = keep & np.isfinite(x) & (np.abs(x) >= info.smallest_normal)
    index = np.flatnonzero(keep)
    first, rest = index[index < head], index[index >= head]
    rest = rng.choice(rest, min(len(rest), max(count - len(first), 0)), replace=False)
    return [x[np.concatenate([first, rest])] for x in columns]


def errors(name: str, function: Callable, columns: list[np.ndarray]) -> list[np.ndarray]:
    """Per order, the ulps (partial, point) of `function` and its derivatives."""
    entry = TABLE[name]
    flint.ctx.prec = 600 if name == "diff_of_products" else 5000
    truth = np.array([[_words(v) for v in entry.exact(*(arb(float(x)) for x in point))] for point in zip(*columns)])
    got = np.concatenate(evaluate(function, entry.arity, columns))
    error = ulps(got, truth[..., 0].T, truth[..., 1].T)
    return np.split(error, [1, 1 + entry.arity])
