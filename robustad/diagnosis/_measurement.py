"""One measured number of a device."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One measured property of a device's arithmetic.

    Attributes:
        kind: what was measured, for example "function", "matmul" or "subnormal operands flushed".
        dtype: in which dtype, or "".
        case: of which function, with which precision preset, ..., or "".
        value: the number, or the answer to a yes-or-no question; None where this device could not be asked.
        unit: "ulp", "bits", or "".
        at: where it was worst, or None.
    """

    kind: str
    dtype: str
    case: str
    value: float | bool | None
    unit: str = ""
    at: float | None = None

    @property
    def name(self) -> str:
        """kind/dtype/case, without what is empty."""
        return "/".join(part for part in (self.kind, self.dtype, self.case) if part)

    def __str__(self) -> str:
        where = f" at {self.at:.6g}" if self.at is not None else ""
        return told(self.value, self.unit) + where


def told(value: float | bool | None, unit: str) -> str:
    """A measured value in words."""
    if value is None:
        return "unknown"
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.4g} {unit}".rstrip()


Question: TypeAlias = tuple[str, str, str, str]
"""kind, dtype, case and unit of a measurement that is still to be made."""


def asked(questions: Iterable[Question], work: Callable[[], Iterable[Any]]) -> Iterator[Measurement]:
    """Measurements from the values (or (value, at)) that `work` gives; unknown where the device cannot run it."""
    questions = list(questions)
    try:
        answers = [a if isinstance(a, tuple) else (a, None) for a in work()]
    except Exception:  # a dtype or an operation that this backend does not have
        answers = [(None, None)] * len(questions)
    for (kind, dtype, case, unit), (value, at) in zip(questions, answers, strict=True):
        if value is not None:
            value = bool(value) if isinstance(value, bool | np.bool_) else float(value)
        yield Measurement(kind, dtype, case, value, unit, None if at is None else float(at))


def precision(dtype: Any) -> int:
    """Significant bits of a floating dtype, the implicit one included."""
    return jnp.finfo(dtype).nmant + 1


def wider(dtype: Any) -> Any:
    """A dtype of NumPy's to compute exact results of a dtype in.

    Raises:
        LookupError: this host has none wider than float64.
    """
    if jnp.finfo(dtype).nmant < np.finfo(np.float64).nmant:
        return np.float64
    if np.finfo(np.longdouble).nmant == np.finfo(np.float64).nmant:
        raise LookupError("NumPy's longdouble is float64 here")
    return np.longdouble


def bits(got: Any, exact: Any, dtype: Any) -> float:
    """How many bits of the results are right, at the worst of them: -log2 of the largest relative error, at most p."""
    wide = np.asarray(got).astype(np.longdouble)
    error = np.max(np.abs(wide - exact) / np.abs(exact))
    if not np.isfinite(error):
        return 0.0
    p = precision(dtype)
    return float(p) if error <= 2.0**-p else max(0.0, -math.log2(error))
