"""Expressions at fixed sample points, to see where the terms of a sum cancel at large.

A cancellation that matters for a rule is one that happens in a whole region (x large, h small, u near v, x near 1), and
shows at many points of every magnitude; a sum that passes 0 somewhere cancels only near there, and no other form would
help. float64 is enough to tell the two apart: terms that agree to many digits do so in any arithmetic. The points are
the same in every process, and in the cases of a select they are those that come there.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from scipy import special

from robustad.rewriting.expressions import _tails as tails
from robustad.rewriting.expressions._expression import Expr, nodes, view

COUNT = 240
_FREE = 4.0  # bits that a sum of random terms loses now and then
_LEAST = 0.4  # mean bits below which nothing is wrong

_columns: dict[int, np.ndarray] = {}
_given: list[Mapping[int, np.ndarray]] = []
_conditions: list[tuple[Expr, bool]] = []


@contextlib.contextmanager
def at(columns: Mapping[int, np.ndarray]) -> Iterator[None]:
    """Within it the points are these values of the variables."""
    columns = {i: np.resize(np.asarray(x), COUNT) for i, x in columns.items()}
    digest = hashlib.blake2b(digest_size=12)
    for i, x in sorted(columns.items()):
        digest.update(f"{i} {x.dtype}".encode() + x.tobytes())
    _given.append(columns)
    before, view[0] = view[0], digest.hexdigest()
    try:
        yield
    finally:
        _given.pop()
        view[0] = before


def _column(index: int) -> np.ndarray:
    """The values of one variable: two fifths of any magnitude, a fifth moderate, a fifth near variable 0, a fifth near
    ±1.
    """
    if _given:
        return _given[-1][index]
    if index not in _columns:
        rng = np.random.default_rng([index, 20])
        sign = rng.choice([-1.0, 1.0], COUNT)
        wide = 10 ** rng.uniform(-30, 30, COUNT)
        narrow = 10 ** rng.uniform(-3, 2.5, COUNT)
        small = 10 ** rng.uniform(-12, -1, COUNT) * rng.choice([-1.0, 1.0], COUNT)
        kind = np.arange(COUNT) % 5
        base = np.where(kind < 2, wide, narrow) * sign
        first = base if index == 0 else _column(0)
        near = first * (1 + small) if index else base
        column = np.select([kind == 3, kind == 4], [near, sign * (1 + small)], base)
        _columns[index] = column.astype(np.float32).astype(np.float64)
    return _columns[index]


@contextlib.contextmanager
def where(condition: Expr, holds: bool) -> Iterator[None]:
    """Within it only the points count at which the condition holds (or fails)."""
    _conditions.append((condition, holds))
    try:
        yield
    finally:
        _conditions.pop()


def conditions() -> tuple[tuple[Expr, bool], ...]:
    return tuple(_conditions)


def _mask() -> np.ndarray:
    mask = np.ones(COUNT, bool)
    for condition, holds in _conditions:
        v = sampled(condition)
        narrower = mask & (v if holds else ~v) if v.dtype == bool else mask
        if narrower.sum() >= COUNT // 20:
            mask = narrower
    return mask


def loss(terms: Sequence[Expr]) -> float:
    """The mean number of bits that adding these terms cancels, at the points where the sum is finite."""
    values = np.stack([np.broadcast_to(sampled(t), COUNT) for t in terms])
    with np.errstate(all="ignore"):
        valid = _mask() & np.isfinite(values).all(0)
        if valid.sum() < COUNT // 40:
            return 0.0
        values = values[:, valid]
        size, total = np.abs(values).max(0), np.abs(values.sum(0))
        bits = np.where(size == 0, 0.0, np.clip(np.log2(size) - np.log2(total), 0, 50))
    mean = float(np.mean(np.clip(bits - _FREE, 0, None)))
    return mean if mean >= _LEAST else 0.0


def undefined(e: Expr, other: Expr) -> float:
    """At which part of the points e is no finite number where the other expression is one."""
    a, b = np.broadcast_to(sampled(e), COUNT), np.broadcast_to(sampled(other), COUNT)
    return float(np.mean(~np.isfinite(a) & np.isfinite(b)))


def narrow_errors(e: Expr) -> float:
    """At which part of the points float32 in the middle spoils a value that float32 can hold."""
    wide = np.broadcast_to(sampled(e), COUNT)
    values: dict[Expr, Any] = {}
    with np.errstate(all="ignore"):
        for n in nodes(e):
            narrow = np.asarray(_one(n, [values[a] for a in n.args]))
            values[n] = _flushed(narrow.astype(np.float32)) if narrow.dtype != bool else narrow
        held = np.isfinite(wide) & (np.abs(wide) < 3e38) & (np.abs(wide) > 1e-37)
        wrong = held & ~(np.abs(values[e] - wide) <= 1e-3 * np.abs(wide))
    return float(wrong.sum()) / max(int(held.sum()), COUNT // 4)


def _flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


def near_one(e: Expr) -> bool:
    """Whether a fair part of the points brings e within 0.1 % of 1."""
    with np.errstate(all="ignore"):
        return bool(np.mean(np.abs(np.broadcast_to(sampled(e), COUNT) - 1) < 1e-3) > 0.03)


def sampled(e: Expr) -> Any:
    """The expression at the points."""
    key = "sampled" + view[0]
    with np.errstate(all="ignore"):
        for n in nodes(e):
            if key not in n.facts:
                n.facts[key] = _one(n, [a.facts[key] for a in n.args])
    return e.facts[key]


_erf, _erfc = np.vectorize(math.erf, otypes=[float]), np.vectorize(math.erfc, otypes=[float])
_FUNCTIONS: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "asin": np.arcsin,
    "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh, "pow": np.power, "max": np.maximum, "min": np.minimum, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "and": np.logical_and,
    "or": np.logical_or, "not": np.logical_not, "erf": _erf, "erfc": _erfc, "rsqrt": lambda x: 1 / np.sqrt(x),
    "logistic": lambda x: 1 / (1 + np.exp(-x)), "lgamma": special.gammaln, "digamma": special.digamma,
}  # fmt: skip
_FUNCTIONS |= {
    name: getattr(np, name)
    for name in "exp exp2 expm1 log log1p sin cos tan sinh cosh tanh sqrt cbrt abs sign hypot".split()
}


def _one(n: Expr, of: list[Any]) -> Any:
    match n.op:
        case "var":
            return _column(n.value)
        case "const":
            return _number(n.value)
        case "integer_pow":
            return of[0] ** float(n.value)
        case "select":
            which = of[0] if np.asarray(of[0]).dtype == bool else np.asarray(of[0]) > 0
            return np.where(which, of[2], of[1])
        case "polygamma":
            return special.polygamma(n.value, of[0])
        case "erfcx":
            return tails.scaled(n.value, of[0], np.float64)
        case "series":
            s = n.value
            t = of[0] - _number(s.centre)
            total = sum(_number(c) * t ** float(s.stride * k + s.valuation) for k, c in enumerate(s.coefficients))
            return np.where(np.abs(t) < float(s.radius), total, of[1])
        case "and" | "or" | "not":
            return _FUNCTIONS[n.op](*(v if np.asarray(v).dtype == bool else np.asarray(v) > 0 for v in of))
        case _:
            return _FUNCTIONS[n.op](*of)


def _number(x: Any) -> np.float64:
    if isinstance(x, Fraction):
        try:
            return np.float64(float(x))
        except OverflowError:
            return np.float64(math.inf if x > 0 else -math.inf)
    return np.float64(x)
