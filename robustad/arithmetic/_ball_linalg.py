"""Rules of the exact twins for factorizations: textbook elimination, which exact numbers can afford."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from robustad._eager import UnsupportedError
from robustad._jaxpr import Equation
from robustad.arithmetic._ball import Ball, exact, flint, mapped, zero
from robustad.arithmetic._ball_limits import square_root
from robustad.arithmetic._ball_rules import rule

Twins = list[np.ndarray | None]


def _over_matrices(f: Callable[..., np.ndarray], *operands: np.ndarray) -> np.ndarray:
    """A function of matrices over leading axes."""
    batch = operands[0].shape[:-2]
    flat = [x.reshape(-1, *x.shape[-2:]) for x in operands]
    outs = [f(*matrices) for matrices in zip(*flat)]
    return np.array(outs, object).reshape(*batch, *outs[0].shape) if outs else operands[-1]


def _conjugate(x: np.ndarray) -> np.ndarray:
    return mapped(lambda v: v if isinstance(v, flint().arb) else v.conjugate(), x)


@rule("triangular_solve")
def _triangular_solve(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    p = eqn.params

    def solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        lower = p["lower"]
        if p["conjugate_a"]:
            a = _conjugate(a)
        if p["transpose_a"]:
            a, lower = a.T, not lower
        if not p["left_side"]:  # x a = b
            a, b, lower = a.T, b.T, not lower
        x = np.array(b)
        rows = range(len(a)) if lower else reversed(range(len(a)))
        for i in rows:
            done = slice(0, i) if lower else slice(i + 1, None)
            if len(a[i, done]):
                x[i] = x[i] - a[i, done] @ x[done]
            if not p["unit_diagonal"]:
                x[i] = x[i] / a[i, i]
        return x if p["left_side"] else x.T

    return [_over_matrices(solve, exact(operands[0]), exact(operands[1]))]


@rule("cholesky")
def _cholesky(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    def factor(a: np.ndarray) -> np.ndarray:
        n = len(a)
        low = np.full((n, n), zero(a))
        for j in range(n):
            row = _conjugate(low[j, :j])
            pivot = a[j, j] - low[j, :j] @ row if j else a[j, j]
            low[j, j] = square_root(pivot.real) + zero(a)
            rest = a[j + 1 :, j] - low[j + 1 :, :j] @ row if j else a[j + 1 :, j]
            low[j + 1 :, j] = rest / low[j, j]
        return low

    return [_over_matrices(factor, exact(operands[0]))]


@rule("lu")
def _lu(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    """The factors of the matrix with its rows in the order that the working program pivoted them to."""

    def eliminate(a: np.ndarray) -> np.ndarray:
        a = np.array(a)
        for k in range(min(a.shape)):
            if a[k, k].is_zero():
                continue
            a[k + 1 :, k] = a[k + 1 :, k] / a[k, k]
            a[k + 1 :, k + 1 :] = a[k + 1 :, k + 1 :] - np.outer(a[k + 1 :, k], a[k, k + 1 :])
        return a

    order = np.asarray(working[2])
    rows = np.take_along_axis(exact(operands[0]), order[..., None], -2)
    return [_over_matrices(eliminate, rows), None, None]


@rule("qr")
def _qr(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    """Gram and Schmidt's, with the signs that the working program gave to the columns of Q."""
    (value,), p = operands, eqn.params
    held, a = np.asarray(value.working), exact(value)
    if p.get("pivoting") or np.iscomplexobj(held) or held.shape[-2] < held.shape[-1]:
        raise UnsupportedError(
            "`qr` has an exact rule for real matrices with full column rank, without pivoting, alone."
        )
    if p.get("full_matrices") and held.shape[-2] > held.shape[-1]:
        raise UnsupportedError("`qr` with full matrices has no exact rule.")
    n = held.shape[-1]

    def factor(a: np.ndarray, like: np.ndarray) -> np.ndarray:
        q, r = np.array(a), np.full((n, n), zero(a))
        for j in range(n):
            for i in range(j):
                r[i, j] = q[:, i] @ q[:, j]
                q[:, j] = q[:, j] - r[i, j] * q[:, i]
            size = square_root(q[:, j] @ q[:, j])
            sign = 1 if np.dot(np.array([float(x) for x in q[:, j]]), like[:, j]) >= 0 else -1
            r[j, j] = size * sign
            q[:, j] = q[:, j] / r[j, j]
        return np.concatenate([q, r])

    both = _over_matrices(factor, a, np.asarray(working[0], np.float64).astype(object))
    m = held.shape[-2]
    return [both[..., :m, :], both[..., m:, :]]


@rule("tridiagonal_solve")
def _tridiagonal_solve(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    def solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        lower, diagonal, upper = np.array(a)
        x = np.array(b)
        for i in range(1, len(x)):
            factor = lower[i] / diagonal[i - 1]
            diagonal[i] = diagonal[i] - factor * upper[i - 1]
            x[i] = x[i] - factor * x[i - 1]
        for i in reversed(range(len(x))):
            rest = x[i] - upper[i] * x[i + 1] if i + 1 < len(x) else x[i]
            x[i] = rest / diagonal[i]
        return x

    bands = np.stack([exact(v) for v in operands[:3]], -2)
    return [_over_matrices(solve, bands, exact(operands[3]))]


@rule("fft")
def _fft(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    kind, lengths = eqn.params["fft_type"].name, eqn.params["fft_lengths"]
    x, inverse = mapped(flint().acb, exact(operands[0])), "I" in kind

    def along(x: np.ndarray, axis: int) -> np.ndarray:
        rows = np.moveaxis(x, axis, -1)
        made = [flint().acb.dft(list(row), inverse) for row in rows.reshape(-1, rows.shape[-1])]
        return np.moveaxis(np.array(made, object).reshape(rows.shape), -1, axis)

    axes = list(range(x.ndim - len(lengths), x.ndim))
    if kind == "IRFFT":  # the other half is the conjugate, of the other axes' mirror image
        for axis in axes[:-1]:
            x = along(x, axis)
        n = lengths[-1]
        mirrored = _conjugate(x[..., [n - k for k in range(n // 2 + 1, n)]])
        return [mapped(lambda v: v.real, along(np.concatenate([x[..., : n // 2 + 1], mirrored], -1), -1))]
    for axis in axes:
        x = along(x, axis)
    return [x[..., : lengths[-1] // 2 + 1] if kind == "RFFT" else x]
