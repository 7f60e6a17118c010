"""What primitives that only move data do to NumPy arrays of any dtype, objects too."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Move = Callable[..., list[np.ndarray]]


def _broadcast_in_dim(p: dict[str, Any], x: np.ndarray, *_: Any) -> list[np.ndarray]:
    expanded = [1] * len(p["shape"])
    for d, size in zip(p["broadcast_dimensions"], x.shape):
        expanded[d] = size
    return [np.broadcast_to(x.reshape(expanded), p["shape"])]


def _select_n(p: dict[str, Any], which: np.ndarray, *cases: np.ndarray) -> list[np.ndarray]:
    at = which.astype(int)
    out = cases[0]
    for k, case in enumerate(cases[1:], 1):
        out = np.where(at == k, case, out)
    return [np.asarray(out, cases[0].dtype)]


def _slice(p: dict[str, Any], x: np.ndarray) -> list[np.ndarray]:
    strides = p["strides"] or (1,) * x.ndim
    return [x[tuple(map(slice, p["start_indices"], p["limit_indices"], strides))]]


def _window(x: np.ndarray, sizes: Sequence[int], starts: Sequence[np.ndarray]) -> tuple[slice, ...]:
    """A slice of the given sizes, its starts moved inside as XLA does."""
    inside = [int(np.clip(int(s), 0, n - size)) for s, n, size in zip(starts, x.shape, sizes)]
    return tuple(slice(s, s + size) for s, size in zip(inside, sizes))


def _dynamic_slice(p: dict[str, Any], x: np.ndarray, *starts: np.ndarray) -> list[np.ndarray]:
    return [x[_window(x, p["slice_sizes"], starts)]]


def _dynamic_update_slice(p: dict[str, Any], x: np.ndarray, new: np.ndarray, *starts: np.ndarray) -> list[np.ndarray]:
    out = np.array(x)
    out[_window(x, new.shape, starts)] = new
    return [out]


def _pad(p: dict[str, Any], x: np.ndarray, filling: np.ndarray) -> list[np.ndarray]:
    shape, source, target = [], [], []
    for n, (low, high, interior) in zip(x.shape, p["padding_config"]):
        size = max(low + high + n + max(n - 1, 0) * interior, 0)
        at = low + np.arange(n) * (interior + 1)
        inside = (at >= 0) & (at < size)
        shape.append(size)
        source.append(np.flatnonzero(inside))
        target.append(at[inside])
    out = np.empty(shape, x.dtype)
    out[...] = filling[()]
    out[np.ix_(*target)] = x[np.ix_(*source)]
    return [out]


def _split(p: dict[str, Any], x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, np.cumsum(p["sizes"])[:-1], p["axis"])


def _same(p: dict[str, Any], *operands: np.ndarray) -> list[np.ndarray]:
    return list(operands)


MOVES: dict[str, Move] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": lambda p, *xs: [np.concatenate(xs, p["dimension"])],
    "copy": _same,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "name": _same,
    "optimization_barrier": _same,
    "pad": _pad,
    "reshape": lambda p, x, *_: [x.reshape(p["new_sizes"])],
    "rev": lambda p, x: [np.flip(x, tuple(p["dimensions"]))],
    "select_n": _select_n,
    "slice": _slice,
    "split": _split,
    "squeeze": lambda p, x: [x.squeeze(tuple(p["dimensions"]))],
    "stop_gradient": _same,
    "tap": lambda p, x, record: [x],
    "transpose": lambda p, x: [x.transpose(p["permutation"])],
} | dict.fromkeys("device_put layout_constraint pbroadcast pvary reshard sharding_constraint".split(), _same)
