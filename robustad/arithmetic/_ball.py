"""Exact twins: every floating value of a program beside a ball of arbitrary precision (python-flint's `arb`, `acb`).

A ball is a midpoint with a radius that bounds all errors so far, in an exponent range that nothing overflows. The twin
follows the decisions that the working program takes, as the float64 twin of `_shadow` does; its infinities are IEEE's.
Source: Johansson, Arb: efficient arbitrary-precision midpoint-radius interval arithmetic, IEEE Trans. Comput. 66 (2017).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from robustad import _jaxpr
from robustad.arithmetic._edges import LARGEST, TINIEST

ENOUGH = 60
"""Relative bits that make an element determined: more than float64 holds."""


@functools.cache
def flint() -> Any:
    """The module `flint`."""
    try:
        import flint
    except ImportError as error:
        raise ImportError(
            "exact references need python-flint, which is not installed: pip install 'robustad[exact]'."
        ) from error
    return flint


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ball:
    """A working array and its exact twin, an object array of `arb` (complex: `acb`); None for integers, booleans, keys."""

    working: Any
    exact: np.ndarray | None


def lift(x: Any) -> Ball:
    """An exact array (an input, a constant) as a value."""
    return Ball(x, widened(x))


def widened(x: Any) -> np.ndarray | None:
    """A twin that starts anew from a working array."""
    return balls(x) if _jaxpr.is_inexact(x) else None


def balls(x: Any) -> np.ndarray:
    """The numbers of an array (integers too) as exact balls."""
    x = np.asarray(x)
    if np.iscomplexobj(x):
        return mapped(flint().acb, x.astype(np.complex128))
    exact_in_float64 = x.dtype.kind not in "iu"
    return mapped(flint().arb, x.astype(np.float64) if exact_in_float64 else x.astype(object))


def mapped(f: Callable[..., Any], *operands: Any) -> np.ndarray:
    """A function of scalars over arrays; always an object array."""
    return boxed(np.frompyfunc(f, len(operands), 1)(*operands))


def boxed(x: Any) -> np.ndarray:
    """NumPy gives a scalar where an array of shape () is meant."""
    return x if isinstance(x, np.ndarray) else np.asarray(x, object)


def exact(value: Ball) -> np.ndarray:
    """What a rule computes with: the twin, or the integers themselves."""
    return balls(value.working) if value.exact is None else value.exact


def zero(like: np.ndarray) -> Any:
    return flint().arb(0) if not like.size or isinstance(like.flat[0], flint().arb) else flint().acb(0)


def is_finite(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.frompyfunc(lambda v: v.is_finite(), 1, 1)(x), bool)


# ------------------------------------------------------------------------------------------------ results


def determined(x: Any) -> bool:
    """Whether a ball is known to float64: an infinity, zero, or a number to more than its 53 bits."""
    if not isinstance(x, flint().arb):
        return determined(x.real) and determined(x.imag)
    return x.rel_accuracy_bits() >= ENOUGH


def to_float(x: Any) -> float:
    """A determined real ball in float64; what is neither 0 nor infinite neither becomes, subnormal numbers included."""
    if not x.is_finite():
        return float(x)
    value = float(x)
    if not x.is_zero() and abs(value) < TINIEST:
        return TINIEST if x > 0 else -TINIEST
    return min(max(value, -LARGEST), LARGEST)


def to_complex(x: Any) -> complex:
    return complex(to_float(x.real), to_float(x.imag))
