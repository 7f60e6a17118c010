"""Functions of one argument: value, first and second derivative in mpmath, where to try them, and how well."""

import dataclasses
from collections.abc import Callable

import jax
import mpmath
import numpy as np
from jax import lax

mp = mpmath.mp
inf = np.inf


@dataclasses.dataclass(frozen=True)
class Function:
    """domain: open; hard: further points; ulp: per order, relative to the result; better: the value is not the primitive's.

    plain_fails: the orders at which JAX's own is off by more than 500 ulp somewhere, on both lanes.
    """

    name: str
    plain: Callable
    exact: tuple[Callable | None, ...]
    domain: tuple[float, float] = (-inf, inf)
    hard: tuple[float, ...] = ()
    ulp: tuple[float, float, float] = (inf, 8, 8)
    better: bool = False
    plain_fails: tuple[int, ...] = (1, 2)


def _decay(x):
    return mp.exp(-abs(x))


def _reflected(order):
    return lambda x: mp.polygamma(order, x)


def _i0e_second(x):
    y = abs(x)
    return mp.exp(-y) * (2 * mp.besseli(0, y) - mp.besseli(1, y) * (2 + 1 / y))


TWO_OVER_ROOT_PI = 2 / mp.sqrt(mp.pi)
FUNCTIONS = [
    Function("tanh", lax.tanh, (mp.tanh, lambda x: mp.sech(x) ** 2, lambda x: -2 * mp.tanh(x) * mp.sech(x) ** 2)),
    Function(
        "logistic",
        lax.logistic,
        (
            lambda x: 1 / (1 + mp.exp(-x)),
            lambda x: _decay(x) / (1 + _decay(x)) ** 2,
            lambda x: -mp.sign(x) * _decay(x) * (1 - _decay(x)) / (1 + _decay(x)) ** 3,
        ),
    ),
    Function("expm1", lax.expm1, (mp.expm1, mp.exp, mp.exp), hard=(-40.0, -20.0), plain_fails=()),
    Function(
        "exp2",
        lax.exp2,
        tuple(lambda x, n=n: mp.log(2) ** n * mp.mpf(2) ** x for n in range(3)),
        hard=(1024.0000000000002, 128.0),
        ulp=(4, 8, 8),
        better=True,
    ),
    Function(
        "asin",
        lax.asin,
        (mp.asin, lambda x: 1 / mp.sqrt(1 - x * x), lambda x: x / mp.sqrt(1 - x * x) ** 3),
        (-1, 1),
        better=True,
        plain_fails=(),
    ),
    Function(
        "acos",
        lax.acos,
        (mp.acos, lambda x: -1 / mp.sqrt(1 - x * x), lambda x: -x / mp.sqrt(1 - x * x) ** 3),
        (-1, 1),
        plain_fails=(),
    ),
    Function(
        "asinh",
        lax.asinh,
        (mp.asinh, lambda x: 1 / mp.sqrt(1 + x * x), lambda x: -x / mp.sqrt(1 + x * x) ** 3),
        hard=(1e15, 1e30),
        plain_fails=(2,),
    ),
    Function(
        "acosh",
        lax.acosh,
        (mp.acosh, lambda x: 1 / mp.sqrt(x * x - 1), lambda x: -x / mp.sqrt(x * x - 1) ** 3),
        (1, inf),
        plain_fails=(),
    ),
    Function(
        "atanh",
        lax.atanh,
        (mp.atanh, lambda x: 1 / (1 - x * x), lambda x: 2 * x / (1 - x * x) ** 2),
        (-1, 1),
        plain_fails=(),
    ),
    Function(
        "atan",
        lax.atan,
        (mp.atan, lambda x: 1 / (1 + x * x), lambda x: -2 * x / (1 + x * x) ** 2),
        hard=(1e10, 1e11, 1e90),
        plain_fails=(2,),
    ),
    Function(
        "log", lax.log, (mp.log, lambda x: 1 / x, lambda x: -1 / x**2), (0, inf), hard=(7.8e-20, 9e-155), plain_fails=()
    ),
    Function(
        "erf",
        lax.erf,
        (mp.erf, lambda x: TWO_OVER_ROOT_PI * mp.exp(-x * x), lambda x: -2 * x * TWO_OVER_ROOT_PI * mp.exp(-x * x)),
        hard=(9.05, 18.5),
        plain_fails=(),
    ),
    Function(
        "erfc",
        lax.erfc,
        (mp.erfc, lambda x: -TWO_OVER_ROOT_PI * mp.exp(-x * x), lambda x: 2 * x * TWO_OVER_ROOT_PI * mp.exp(-x * x)),
        hard=(9.05, 18.5),
        plain_fails=(),
    ),
    Function(
        "erf_inv",
        lax.erf_inv,
        (
            mp.erfinv,
            lambda x: mp.exp(mp.erfinv(x) ** 2) / TWO_OVER_ROOT_PI,
            lambda x: 2 * mp.erfinv(x) * mp.exp(2 * mp.erfinv(x) ** 2) / TWO_OVER_ROOT_PI**2,
        ),
        (-1, 1),
        ulp=(inf, 64, 128),
        better=True,
    ),
    Function(
        "digamma", lax.digamma, tuple(_reflected(n) for n in range(3)), (-40, inf), ulp=(inf, 64, 128), better=True
    ),
    Function(
        "lgamma",
        lax.lgamma,
        (lambda x: mp.log(abs(mp.gamma(x))) if x < 1000 else mp.loggamma(x), mp.digamma, _reflected(1)),
        (0.01, inf),
        hard=(1 + 2.0**-20, 2 + 2.0**-20, 1 - 2.0**-20, 1.2, 2.29),
        ulp=(128, inf, 64),
        better=True,
        plain_fails=(),
    ),
    Function(
        "bessel_i0e",
        lax.bessel_i0e,
        (
            lambda x: mp.besseli(0, x) * mp.exp(-abs(x)),
            lambda x: mp.sign(x) * mp.exp(-abs(x)) * (mp.besseli(1, abs(x)) - mp.besseli(0, abs(x))),
            _i0e_second,
        ),
        (-1e15, 1e15),
        ulp=(inf, 256, 4096),
    ),
    Function(
        "bessel_i1e",
        lax.bessel_i1e,
        (
            lambda x: mp.besseli(1, x) * mp.exp(-abs(x)),
            lambda x: mp.exp(-abs(x)) * (mp.besseli(0, x) - mp.besseli(1, x) / x - mp.besseli(1, abs(x))),
            None,
        ),
        (-1e15, 1e15),
        hard=(1e6, 1e8, 20.0, 9.9),
        ulp=(inf, 512, inf),
        plain_fails=(1,),
    ),
    Function(
        "silu",
        jax.nn.silu,
        (
            lambda x: x / (1 + mp.exp(-x)),
            lambda x: (1 + x / (1 + mp.exp(x))) / (1 + mp.exp(-x)),
            lambda x: (2 + x * (1 - mp.exp(x)) / (1 + mp.exp(x))) * mp.exp(x) / (1 + mp.exp(x)) ** 2,
        ),
        (-700, 40),
        hard=(-709.0, -90.0, -80.0),
        ulp=(inf, 64, 64),
        better=True,
        plain_fails=(),
    ),
    Function(
        "softplus",
        jax.nn.softplus,
        (
            lambda x: mp.log(1 + mp.exp(x)),
            lambda x: 1 / (1 + mp.exp(-x)),
            lambda x: _decay(x) / (1 + _decay(x)) ** 2,
        ),
        (-700, 700),
        hard=(37.43, 17.0),
        plain_fails=(2,),
    ),
    Function(
        "sinc",
        jax.numpy.sinc,
        (
            lambda x: mp.sinc(mp.pi * x),
            lambda x: (mp.cos(mp.pi * x) - mp.sinc(mp.pi * x)) / x,
            lambda x: -(mp.pi**2) * mp.sinc(mp.pi * x) - 2 * (mp.cos(mp.pi * x) - mp.sinc(mp.pi * x)) / x**2,
        ),
        (-1.2, 1.2),
        hard=(1e-3, 1e-4, 0.01, 0.3),
        ulp=(inf, 256, 256),
        plain_fails=(),
    ),
    Function(
        "elu",
        jax.nn.elu,
        (mp.expm1, mp.exp, mp.exp),
        (-700, 0),
        hard=(-40.0, -20.0),
        plain_fails=(),
    ),
]


def _float(value) -> float:
    value = value.real if isinstance(value, mpmath.mpc) else value
    try:
        return float(value)
    except OverflowError:
        return inf if value > 0 else -inf


def words(function: Callable, x: float) -> tuple[float, float]:
    """The exact value as two float64 words; NaN where mpmath has none."""
    with mpmath.workprec(500):
        try:
            value = function(mp.mpf(x))
        except (ValueError, OverflowError, ZeroDivisionError, mpmath.libmp.NoConvergence):
            return np.nan, 0.0
        high = _float(value)
        return high, (_float(value - mp.mpf(high)) if np.isfinite(high) else 0.0)


def points(function: Function, dtype, count: int) -> np.ndarray:
    """Random bit patterns, moderate numbers, neighbours of ±1 and 0, and the hard ones."""
    rng, info = np.random.default_rng(7), np.finfo(dtype)
    low, high = function.domain
    bits = rng.integers(0, 2**info.bits - 1, 3 * count, np.dtype(f"uint{info.bits}")).view(dtype)
    moderate = (rng.choice([-1, 1], count) * 2.0 ** rng.uniform(-12, 6, count)).astype(dtype)
    uniform = rng.uniform(max(low, -20), min(high, 20), count).astype(dtype)
    near = 1 - 2.0 ** -rng.integers(1, info.nmant, count // 2).astype(dtype)
    with np.errstate(all="ignore"):
        x = np.concatenate([bits, moderate, uniform, near, -near, 2 - near, np.array(function.hard, dtype)])
        return x[np.isfinite(x) & (np.abs(x) >= info.smallest_normal) & (x > low) & (x < high) & (np.abs(x) > 1e-60)]
