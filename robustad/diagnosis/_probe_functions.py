"""How far the elementary functions of a device are off, in ulps, over wide ranges of arguments."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustad.diagnosis._measurement import Measurement, asked, wider

POINTS = 4096


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of one or two arguments, its NumPy twin, and the magnitudes (powers of two) of its arguments.

    An argument has both signs where `signed`. None stands for the dtype's own range.
    """

    device: Callable[..., Any]
    host: Callable[..., Any]
    low: float | None = None
    high: float | None = None
    signed: bool = True
    arguments: int = 1


FUNCTIONS: dict[str, Function] = {
    "exp": Function(jnp.exp, np.exp, -20, None),
    "expm1": Function(jnp.expm1, np.expm1, None, None),
    "log": Function(jnp.log, np.log, signed=False),
    "log1p": Function(jnp.log1p, np.log1p, None, None, signed=False),
    "tanh": Function(jnp.tanh, np.tanh, None, 6),
    "logistic": Function(lax.logistic, lambda x: 1 / (1 + np.exp(-x)), -20, 6),
    "sin, |x| < 64": Function(jnp.sin, np.sin, None, 6),
    "cos, |x| < 64": Function(jnp.cos, np.cos, None, 6),
    "sin of any size": Function(jnp.sin, np.sin),
    "sqrt": Function(jnp.sqrt, np.sqrt, signed=False),
    "rsqrt": Function(lax.rsqrt, lambda x: 1 / np.sqrt(x), signed=False),
    "division": Function(jnp.divide, np.divide, arguments=2),
    "pow": Function(jnp.power, np.power, -4, 4, signed=False, arguments=2),
}


def functions(dtype: Any) -> Iterator[Measurement]:
    """The worst error of each function in a dtype, and where; results that are not normal numbers do not count."""
    dtype = jnp.dtype(dtype)
    questions = [("function", dtype.name, name, "ulp") for name in FUNCTIONS]

    def work() -> list[tuple[float, float]]:
        wide = wider(dtype)
        arguments = [_arguments(f, dtype) for f in FUNCTIONS.values()]
        program = jax.jit(lambda groups: [f.device(*xs) for f, xs in zip(FUNCTIONS.values(), groups)])
        return [
            _worst(got, f.host, [x.astype(wide) for x in xs], dtype)
            for got, f, xs in zip(jax.device_get(program(arguments)), FUNCTIONS.values(), arguments)
        ]

    return asked(questions, work)


def _arguments(f: Function, dtype: np.dtype) -> list[np.ndarray]:
    """Random significands and signs, with exponents drawn evenly from the range; fixed, so that probes can be compared."""
    random, info = np.random.default_rng(0), jnp.finfo(dtype)
    low = info.minexp if f.low is None else max(f.low, info.minexp)
    high = info.maxexp if f.high is None else f.high
    if f.host in (np.exp, np.expm1):
        high = np.log2(info.maxexp * np.log(2))
    xs = []
    for _ in range(f.arguments):
        size = np.exp2(random.uniform(low, high, POINTS).astype(np.longdouble))
        sign = np.where(random.random(POINTS) < 0.5, -1, 1) if f.signed else 1
        x = (size * sign).astype(np.float64).astype(dtype)
        xs.append(np.where(np.isfinite(x.astype(np.float64)), x, np.ones((), dtype)))
    return xs


def _worst(got: np.ndarray, host: Callable[..., Any], xs: list[np.ndarray], dtype: np.dtype) -> tuple[float, float]:
    info = jnp.finfo(dtype)
    with np.errstate(all="ignore"):
        exact = host(*xs)
        _, exponent = np.frexp(exact)
        ulp = np.ldexp(np.ones_like(exact), exponent - 1 - info.nmant)
        error = np.abs(got.astype(exact.dtype) - exact) / ulp
        normal = (np.abs(exact) >= float(info.smallest_normal)) & (np.abs(exact) < float(info.max))
        error = np.where(normal, np.where(np.isnan(error), np.inf, error), 0)
    i = int(np.argmax(error))
    return float(error[i]), float(xs[0][i])
