"""Rules of the exact twins for sums, products, extrema and contractions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from robustad import _jaxpr
from robustad._eager import UnsupportedError, interpret_eagerly
from robustad._jaxpr import Equation, Path
from robustad.arithmetic._ball import Ball, boxed, exact, flint, mapped, widened, zero
from robustad.arithmetic._ball_limits import logarithm
from robustad.arithmetic._ball_rules import enclosed, evaluated, extreme, rule
from robustad.arithmetic._windows import windows

Twins = list[np.ndarray | None]


@rule("reduce_sum")
def _sum(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    x = exact(operands[0])
    return [boxed(np.add.reduce(x, tuple(eqn.params["axes"]), initial=zero(x)))]


@rule("reduce_prod")
def _product(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    x = exact(operands[0])
    return [boxed(np.multiply.reduce(x, tuple(eqn.params["axes"]), initial=zero(x) + 1))]


@rule("reduce_max", "reduce_min")
def _extreme(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    """Among the elements that the working program took; among all where it took none, having met a NaN."""
    (value,), axes = operands, tuple(eqn.params["axes"])
    x, out = exact(value), np.asarray(working[0])
    kept = [d for d in range(x.ndim) if d not in axes]
    rows = x.transpose(*kept, *axes).reshape(out.size, -1)
    held = np.asarray(value.working).transpose(*kept, *axes).reshape(out.size, -1)
    if not rows.shape[1]:
        return [boxed(exact(Ball(working[0], None)))]
    return [_among(rows, held == out.reshape(-1, 1), eqn.primitive.name).reshape(out.shape)]


def _among(rows: np.ndarray, taken: np.ndarray, name: str) -> np.ndarray:
    """The extreme of each row's taken elements."""
    out = rows[np.arange(len(rows)), taken.argmax(1)]
    for i in np.flatnonzero(taken.sum(1) != 1):
        among = rows[i][taken[i]] if taken[i].any() else rows[i]
        best = among[0]
        for x in among[1:]:
            best = extreme(name)(best, x)
        out[i] = best
    return out


@rule("cumsum", "cumprod", "cumlogsumexp", "cummax", "cummin", "compensated_cumsum")
def _running(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    name, axis, reverse = eqn.primitive.name, eqn.params["axis"], eqn.params["reverse"]
    (value,) = operands
    x, held = (np.flip(v, axis) if reverse else v for v in (exact(value), np.asarray(value.working)))
    if name == "cumprod":
        out = np.multiply.accumulate(x, axis)
    elif name in ("cumsum", "compensated_cumsum"):
        out = np.add.accumulate(x, axis)
    elif name == "cumlogsumexp":
        out = mapped(logarithm, np.add.accumulate(mapped(lambda v: v.exp(), x), axis))
    else:
        out = _running_extreme(name, np.moveaxis(x, axis, 0), np.moveaxis(held, axis, 0))
        out = np.moveaxis(out, 0, axis)
    return [np.flip(out, axis) if reverse else out]


def _running_extreme(name: str, x: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Along the first axis, the element that the working program holds so far."""
    out, best = np.array(x), np.array(held)
    for i in range(1, len(x)):
        new = (held[i] > best[i - 1]) if name == "cummax" else (held[i] < best[i - 1])
        new |= held[i] != held[i]
        tie = held[i] == best[i - 1]
        out[i] = np.where(new, x[i], np.where(tie, mapped(extreme(name), x[i], out[i - 1]), out[i - 1]))
        best[i] = np.where(new, held[i], best[i - 1])
    return out


class _Combining:
    """A combiner of scalars, on arrays of a shape."""

    def __init__(self, shape: tuple[int, ...]):
        self._shape = shape

    def lift(self, x: Any) -> Ball:
        x = np.broadcast_to(np.asarray(x), self._shape)
        return Ball(x, widened(x))

    def plain(self, value: Ball) -> Any:
        return value.working

    def equation(self, eqn: Equation, operands: Sequence[Ball], path: Path) -> tuple[list[Ball], None]:
        made = evaluated(eqn, [v.working for v in operands])
        return list(map(Ball, made, enclosed(eqn, operands, made))), None


@rule("reduce")
def _reduce(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    """Element after element by the combiner's own program."""
    n, axes, shape = len(operands) // 2, tuple(eqn.params["dimensions"]), np.shape(working[0])

    def rows(x: Any) -> np.ndarray:
        kept = [d for d in range(np.ndim(x)) if d not in axes]
        return np.asarray(x).transpose(*axes, *kept).reshape(-1, *shape)

    arithmetic, combiner = _Combining(shape), _jaxpr.body(eqn.params["jaxpr"])
    total = [
        Ball(*(None if x is None else np.broadcast_to(np.asarray(x), shape) for x in (v.working, v.exact)))
        for v in operands[n:]
    ]
    parts = [(rows(v.working), None if v.exact is None else rows(v.exact)) for v in operands[:n]]
    for i in range(len(parts[0][0])):
        element = [Ball(held[i, ...], None if x is None else x[i, ...]) for held, x in parts]
        total = interpret_eagerly(arithmetic, combiner, [*total, *element])
    return [v.exact for v in total]


# ----------------------------------------------------------------------------------------------- contractions


@rule("dot_general")
def _dot(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    (contracted, batch), (a, b) = eqn.params["dimension_numbers"], (exact(v) for v in operands)
    shape = np.shape(working[0])

    def matrices(x: np.ndarray, k: int) -> np.ndarray:
        """(batch, free, contracted)"""
        inner, outer = list(contracted[k]), list(batch[k])
        free = [d for d in range(x.ndim) if d not in inner and d not in outer]
        sizes = [int(np.prod([x.shape[d] for d in dims], dtype=int)) for dims in (outer, free, inner)]
        return x.transpose(*outer, *free, *inner).reshape(sizes)

    return [product(matrices(a, 0), matrices(b, 1).swapaxes(1, 2)).reshape(shape)]


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix products over a leading axis."""
    if not a.shape[-1] or not a.size or not b.size:
        return np.full((*a.shape[:-1], b.shape[-1]), zero(a))
    return a @ b


@rule("conv_general_dilated")
def _conv(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    p, (lhs, rhs) = eqn.params, (exact(v) for v in operands)
    spec = p["dimension_numbers"]
    a, b = lhs.transpose(spec.lhs_spec), rhs.transpose(spec.rhs_spec)
    at, spatial = windows(
        a.shape[2:], b.shape[2:], p["window_strides"], p["padding"], p["lhs_dilation"], p["rhs_dilation"]
    )
    flat = np.concatenate([a.reshape(*a.shape[:2], -1), np.full((*a.shape[:2], 1), zero(a))], 2)
    held = flat[:, :, at]  # (batch, channel, output position, kernel position); -1 is the zero at the end
    kernel = b.reshape(*b.shape[:2], -1)
    groups, batches = p["feature_group_count"], p["batch_group_count"]
    outs = []
    for g in range(groups * batches):
        n, c, o = a.shape[0] // batches, b.shape[1], b.shape[0] // (groups * batches)
        part = held[g * n : (g + 1) * n] if batches > 1 else held[:, g * c : (g + 1) * c]
        rows = part.transpose(0, 2, 1, 3).reshape(-1, c * at.shape[1])
        columns = kernel[g * o : (g + 1) * o].reshape(o, -1).T
        outs.append(product(rows[None], columns[None])[0].reshape(n, at.shape[0], o))
    out = np.concatenate(outs, 2).transpose(0, 2, 1).reshape(outs[0].shape[0], b.shape[0], *spatial)
    return [out.transpose(np.argsort(spec.out_spec))]


# -------------------------------------------------------------------------------------------------- windows


def window_places(eqn: Equation, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    p, ones = eqn.params, (1,) * len(shape)
    return windows(
        shape,
        p["window_dimensions"],
        p["window_strides"],
        p["padding"],
        p.get("base_dilation") or ones,
        p.get("window_dilation") or ones,
    )


@rule("reduce_window_sum")
def _window_sum(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    x = exact(operands[0])
    at, shape = window_places(eqn, x.shape)
    return [boxed(np.add.reduce(np.append(x.ravel(), zero(x))[at], 1, initial=zero(x))).reshape(shape)]


@rule("reduce_window_max", "reduce_window_min")
def _window_extreme(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    x, held = exact(operands[0]), np.asarray(operands[0].working)
    at, shape = window_places(eqn, x.shape)
    taken = (held.ravel()[at] == np.asarray(working[0]).reshape(-1, 1)) & (at >= 0)
    missing = flint().arb(float("-inf" if "max" in eqn.primitive.name else "inf"))
    return [_among(np.append(x.ravel(), missing)[at], taken, eqn.primitive.name).reshape(shape)]


def _selected(eqn: Equation, held: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """The position that each window selects, the first among equals; -1 where it holds no element."""
    at, shape = window_places(eqn, held.shape)
    keep = eqn.params["select_prim"].name
    if keep not in ("ge", "le"):
        raise UnsupportedError(f"`{eqn.primitive.name}` that selects by `{keep}` has no exact rule.")
    values = held.astype(np.float64).ravel()[at] * (1 if keep == "ge" else -1)
    best = np.where(at < 0, -np.inf, values).argmax(1)
    return at[np.arange(len(at)), best], shape


@rule("select_and_scatter_add")
def _unpooled(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    source, operand = operands
    held = np.asarray(operand.working)
    at, _ = _selected(eqn, held)
    x = exact(source)
    out = np.full(held.size + 1, zero(x))
    np.add.at(out, at, x.ravel())
    return [out[:-1].reshape(held.shape)]


@rule("select_and_gather_add")
def _pooled(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    tangents, operand = operands
    at, shape = _selected(eqn, np.asarray(operand.working))
    x = exact(tangents)
    return [np.append(x.ravel(), zero(x))[at].reshape(shape)]
