"""Errors in units in the last place, against a reference of higher precision."""

import numpy as np


def spacing(x: np.ndarray, dtype) -> np.ndarray:
    """The distance of neighbouring floats of `dtype` at the magnitude of `x` (float64), as float64."""
    info = np.finfo(dtype) if np.dtype(dtype).kind == "f" else _bfloat16_info()
    _, exponent = np.frexp(np.abs(np.asarray(x, np.float64)))
    return np.ldexp(1.0, np.maximum(exponent - 1 - info.nmant, info.minexp - info.nmant))


def ulps(got, exact, low=0.0) -> np.ndarray:
    """How far `got` is from `exact + low` (float64 arrays), in ulps of `got`'s dtype at the exact value.

    Equal infinities, NaN for NaN, and a zero for a value below the smallest normal count as 0; a wrong class as inf. A value
    that rounds to infinity may be given as infinity, and the other way round at the largest finite number.
    """
    got = np.asarray(got)
    dtype = got.dtype
    info = np.finfo(dtype) if dtype.kind == "f" else _bfloat16_info()
    wide, exact, low = np.broadcast_arrays(
        got.astype(np.float64), np.asarray(exact, np.float64), np.asarray(low, np.float64)
    )
    with np.errstate(all="ignore"):
        largest = float(info.max)
        limit = largest + spacing(np.float64(largest), dtype) if dtype != np.float64 else np.inf
        error = np.abs((wide - exact) - low) / spacing(exact, dtype)
        close_to_largest = np.isinf(wide) & (np.abs(exact) >= largest * (1 - 8 * float(info.eps)))
        close_to_largest |= np.isinf(exact) & (np.abs(wide) >= largest * (1 - 8 * float(info.eps)))
        overflow = (np.abs(exact) >= limit) & np.isinf(wide)
        same = (wide == exact) & ((low == 0) | np.isinf(exact)) | (np.isnan(wide) & np.isnan(exact))
        sign = np.sign(wide) == np.sign(exact)
        flushed = (np.abs(exact) < float(info.smallest_normal)) & (wide == 0)
        error = np.where(same | flushed | ((overflow | close_to_largest) & sign), 0.0, error)
        return np.where(np.isnan(error), np.inf, error)


def _bfloat16_info():
    import ml_dtypes

    return ml_dtypes.finfo(ml_dtypes.bfloat16)
