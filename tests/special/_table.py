"""The special functions: domain, edges, oracle, bound. Tests, the documentation table and the scoreboard come from it."""

import dataclasses
from collections.abc import Callable

import flint
import numpy as np

inf, nan = np.inf, np.nan


@dataclasses.dataclass(frozen=True)
class Special:
    """One function of one or two real arguments.

    Attributes:
      name: in robustad.stability.
      formula: how the documentation writes it.
      oracle: the function on `arb_series`; must be right at every finite point inside the domain that is not in `limits`.
      domain: per argument, closed; outside, the value is NaN (None where the function is defined by other rules).
      switches: points at which the implementation changes branch, and other hard ones: tested with their neighbours.
      limits: point -> (value, first, second), what the policy says where the oracle has no value.
      scale: per order, the size that errors are relative to, where that is not the result itself; with `reason`.
      reference: where name or method come from.
    """

    name: str
    formula: str
    oracle: Callable
    domain: tuple[tuple[float, float], ...]
    switches: tuple = ()
    limits: dict = dataclasses.field(default_factory=dict)
    scale: dict[int, Callable] = dataclasses.field(default_factory=dict)
    reason: str = ""
    reference: str = ""
    bounds: dict[int, float] = dataclasses.field(default_factory=dict)  # per order, in float32, where 4 ulp is not kept
    plain: Callable | None = None
    also: Callable | None = None  # a further condition on the arguments

    @property
    def arity(self) -> int:
        return len(self.domain)

    def bound(self, dtype, order: int) -> float:
        """In ulp."""
        return 8.0 if np.dtype(dtype) == np.float64 else self.bounds.get(order, 4.0)


REAL = ((-inf, inf),)
POSITIVE = ((0.0, inf),)
UNIT = ((0.0, 1.0),)
PLANE = ((-inf, inf), (-inf, inf))
one = flint.arb(1)


def log(x):
    return x.log()


def exp(x):
    return x.exp()


def first(x):
    return x[0] if isinstance(x, flint.arb_series) else x


def absolute(x):
    return -x if first(x) < 0 else x


def sigmoid(x):
    return 1 / (1 + exp(-x)) if first(x) > 0 else exp(x) / (1 + exp(x))


def log1pexp(x):
    return x + log(1 + exp(-x)) if first(x) > 0 else log(1 + exp(x))


def sinh(x):
    return (exp(x) - exp(-x)) / 2


def cosh(x):
    return (exp(x) + exp(-x)) / 2


def tanh(x):
    e = exp(-2 * absolute(x))
    t = (1 - e) / (1 + e)
    return -t if first(x) < 0 else t


def log_sinh(x):
    y = absolute(x)
    return y + log((1 - exp(-2 * y)) / 2)


def log_tanh(x):
    e = exp(-2 * absolute(x))
    return log((1 - e) / (1 + e))


def log_cosh(x):
    y = absolute(x)
    return y + log((1 + exp(-2 * y)) / 2)


def cbrt(x):
    return x ** (one / 3) if first(x) > 0 else -((-x) ** (one / 3))


def atanh(x):
    return log((1 + x) / (1 - x)) / 2


def log_ndtr(x):
    if first(x) < -(10**6):  # asymptotic series: the next term is below 1e-150
        terms, term = 1 + 0 * x, 1 + 0 * x
        for k in range(12):
            term = term * -(2 * k + 1) / (x * x)
            terms = terms + term
        return log(terms) - x * x / 2 - log(-x) - (2 * flint.arb.pi()).log() / 2
    return log((-x / flint.arb(2).sqrt()).erfc() / 2)


def logaddexp(x, y):
    return x + log1pexp(y - x)


def logsubexp(x, y):
    return x + log(1 - exp(y - x))


def numpy_sigmoid(x):
    return 1 / (1 + np.exp(-x))


INV_E = float(np.exp(-1))
LN2 = float(np.log(2))

TABLE = [
    # elementary functions
    Special("sqrt", "√x", lambda x: x.sqrt(), POSITIVE, limits={0.0: (0, inf, -inf), inf: (inf, 0, 0)}),
    Special("rsqrt", "1/√x", lambda x: x.rsqrt(), POSITIVE, limits={0.0: (inf, -inf, inf), inf: (0, 0, 0)}),
    Special("cbrt", "∛x", cbrt, REAL, limits={0.0: (0, inf, -inf), inf: (inf, 0, 0), -inf: (-inf, 0, 0)}),
    Special("log", "log x", log, POSITIVE, limits={0.0: (-inf, inf, -inf), inf: (inf, 0, 0)}, switches=(1.0,)),
    Special(
        "log1p",
        "log(1+x)",
        lambda x: log(1 + x),
        ((-1.0, inf),),
        (-0.29, 0.41, 1.0, 0.0),
        {-1.0: (-inf, inf, -inf), inf: (inf, 0, 0)},
        reference="fdlibm",
    ),
    Special(
        "expm1",
        "eˣ-1",
        lambda x: exp(x) - 1,
        REAL,
        (0.0, LN2, -LN2, 0.3466, -17.0, -37.0),
        {inf: (inf, inf, inf), -inf: (-1, 0, 0)},
    ),
    Special(
        "exp2",
        "2ˣ",
        lambda x: exp(x * flint.arb(2).log()),
        REAL,
        (0.5, 1.0, 127.9, -126.0, 1023.9),
        {inf: (inf, inf, inf), -inf: (0, 0, 0)},
    ),
    Special("tanh", "tanh x", tanh, REAL, (9.0109, 20.0, 0.35), {inf: (1, 0, 0), -inf: (-1, 0, 0)}),
    Special("sigmoid", "1/(1+e⁻ˣ)", sigmoid, REAL, (37.43, 17.0, -88.0), {inf: (1, 0, 0), -inf: (0, 0, 0)}),
    Special(
        "silu",
        "x/(1+e⁻ˣ)",
        lambda x: x * sigmoid(x),
        REAL,
        (-1.278, 2.4, -709.0),
        {inf: (inf, 1, 0), -inf: (0, 0, 0)},
        {
            1: lambda x: numpy_sigmoid(x) * (1 + np.abs(x) * numpy_sigmoid(-x)),
            2: lambda x: (2 + np.abs(x)) * numpy_sigmoid(x) * numpy_sigmoid(-x),
        },
        "derivatives cross zero at points that are not floats (-1.278; ±2.40): there the error is relative to their terms",
    ),
    Special(
        "asin",
        "arcsin x",
        lambda x: x.asin(),
        ((-1.0, 1.0),),
        (0.5,),
        {1.0: (np.pi / 2, inf, inf), -1.0: (-np.pi / 2, inf, -inf)},
    ),
    Special(
        "acos",
        "arccos x",
        lambda x: x.acos(),
        ((-1.0, 1.0),),
        (0.5, 0.0),
        {1.0: (0, -inf, -inf), -1.0: (np.pi, -inf, inf)},
    ),
    Special("asinh", "arsinh x", lambda x: _asinh(x), REAL, (2.0**30, 0.4), {inf: (inf, 0, 0), -inf: (-inf, 0, 0)}),
    Special(
        "acosh",
        "arcosh x",
        lambda x: log(x + ((x - 1).sqrt() * (x + 1).sqrt())),
        ((1.0, inf),),
        (2.0**30,),
        {1.0: (0, inf, -inf), inf: (inf, 0, 0)},
    ),
    Special("atanh", "artanh x", atanh, ((-1.0, 1.0),), (0.17,), {1.0: (inf, inf, inf), -1.0: (-inf, inf, -inf)}),
    # cancellation
    Special(
        "sqrt1pm1",
        "√(1+x)-1",
        lambda x: (1 + x).sqrt() - 1,
        ((-1.0, inf),),
        (0.0,),
        {-1.0: (-1, inf, -inf), inf: (inf, 0, 0)},
    ),
    Special(
        "one_minus_cos",
        "1-cos x",
        lambda x: 1 - x.cos(),
        REAL,
        (0.0, 6.2831855, 3.1415927),
        {inf: (nan, nan, nan), -inf: (nan, nan, nan)},
    ),
    Special(
        "expm1_over_x",
        "(eˣ-1)/x",
        lambda x: _exprel(x),
        REAL,
        (4.0, -4.0, 88.8, 92.0),
        {0.0: (1, 0.5, 1 / 3), inf: (inf, inf, inf), -inf: (0, 0, 0)},
    ),
    Special(
        "log1pmx",
        "log(1+x)-x",
        lambda x: log(1 + x) - x,
        ((-1.0, inf),),
        (-0.29, 0.41, 0.0),
        {-1.0: (-inf, inf, -inf), inf: (-inf, -1, 0)},
        reference="LogExpFunctions.jl",
    ),
    Special(
        "logmxp1",
        "log x-x+1",
        lambda x: log(x) - x + 1,
        POSITIVE,
        (0.25, 1.0, 4.0),
        {0.0: (-inf, inf, -inf), inf: (-inf, -1, 0)},
        reference="LogExpFunctions.jl",
    ),
    Special(
        "log1psq",
        "log(1+x²)",
        lambda x: log(1 + x * x),
        REAL,
        (1.0, 2.0**30),
        {inf: (inf, 0, 0), -inf: (inf, 0, 0)},
        reference="LogExpFunctions.jl",
    ),
    # log-space
    Special(
        "log1pexp",
        "log(1+eˣ)",
        log1pexp,
        REAL,
        (0.0, 37.43, -17.0),
        {inf: (inf, 1, 0), -inf: (0, 0, 0)},
        reference="Mächler 2012",
    ),
    Special(
        "log_sigmoid", "-log(1+e⁻ˣ)", lambda x: -log1pexp(-x), REAL, (0.0, 37.43), {inf: (0, 0, 0), -inf: (-inf, 1, 0)}
    ),
    Special(
        "log1mexp",
        "log(1-e^-|x|)",
        lambda x: log(1 - exp(-absolute(x))),
        REAL,
        (LN2, -LN2, 40.0),
        {0.0: (-inf, inf, -inf), inf: (0, 0, 0), -inf: (0, 0, 0)},
        reference="Mächler 2012",
    ),
    Special(
        "log2mexp",
        "log(2-eˣ)",
        lambda x: log(2 - exp(x)),
        ((-inf, LN2),),
        (0.4, 0.0),
        {-inf: (LN2, 0, 0)},
        reference="LogExpFunctions.jl",
        also=lambda x: x < x.dtype.type(LN2),
    ),
    Special(
        "logexpm1",
        "log(eˣ-1)",
        lambda x: x + log(1 - exp(-x)),
        POSITIVE,
        (LN2, 0.4, 0.5, 1.0),
        {0.0: (-inf, inf, -inf), inf: (inf, 1, 0)},
        reference="LogExpFunctions.jl",
    ),
    Special(
        "logit1mexp",
        "log(e⁻ˣ-1)",
        lambda x: log(1 - exp(x)) - x,
        ((-inf, 0.0),),
        (-LN2, -0.4, -1.0),
        {0.0: (-inf, -inf, -inf), -inf: (inf, -1, 0)},
        reference="LogExpFunctions.jl",
    ),
    Special(
        "logit",
        "log(x/(1-x))",
        lambda x: log(x / (1 - x)),
        UNIT,
        (0.5, 0.3, 0.7),
        {0.0: (-inf, inf, -inf), 1.0: (inf, inf, inf)},
    ),
    Special(
        "cloglog",
        "log(-log(1-x))",
        lambda x: log(-log(1 - x)),
        UNIT,
        (1 - INV_E, 0.45, 0.8),
        {0.0: (-inf, inf, -inf), 1.0: (inf, inf, inf)},
        bounds={2: 5.0},
        reason="five rounded factors: 5 ulp in float32, 4 passed at 1 point in 10⁴",
    ),
    Special(
        "cexpexp",
        "1-exp(-eˣ)",
        lambda x: 1 - exp(-exp(x)),
        REAL,
        (0.0, 4.5, 6.5),
        {inf: (1, 0, 0), -inf: (0, 0, 0)},
        reference="LogExpFunctions.jl",
    ),
    Special("log_cosh", "log cosh x", log_cosh, REAL, (0.0, 1.5), {inf: (inf, 1, 0), -inf: (inf, -1, 0)}),
    Special(
        "logabssinh",
        "log|sinh x|",
        log_sinh,
        REAL,
        (0.6, 0.88137358, 1.0, 1.3, 2.0),
        {0.0: (-inf, inf, -inf), inf: (inf, 1, 0), -inf: (inf, -1, 0)},
        reference="LogExpFunctions.jl",
        bounds={0: 4.5},
        reason="near its zero log1p of a product of four rounded factors: 4.2 ulp in float32 at 1 point in 10⁵",
    ),
    Special(
        "logabstanh",
        "log|tanh x|",
        log_tanh,
        REAL,
        (0.5, 1.0),
        {0.0: (-inf, inf, -inf), inf: (0, 0, 0), -inf: (0, 0, 0)},
        reference="LogExpFunctions.jl",
        bounds={2: 5.0},
        reason="six rounded factors: 5 ulp in float32, 4 passed at 1 point in 10⁴",
    ),
    Special(
        "xlogx",
        "x log x",
        lambda x: x * log(x),
        POSITIVE,
        (INV_E, 0.2, 0.6, 1.0),
        {0.0: (0, -inf, inf), inf: (inf, inf, 0)},
    ),
    Special(
        "entr",
        "-x log x",
        lambda x: -x * log(x),
        POSITIVE,
        (INV_E, 0.2, 0.6, 1.0),
        {0.0: (0, inf, -inf), inf: (-inf, -inf, 0)},
    ),
    Special(
        "xexpx",
        "x eˣ",
        lambda x: x * exp(x),
        REAL,
        (-1.0, -2.0),
        {inf: (inf, inf, inf), -inf: (0, 0, 0)},
        reference="LogExpFunctions.jl",
    ),
    Special("erf", "erf x", lambda x: x.erf(), REAL, (0.75,), {inf: (1, 0, 0), -inf: (-1, 0, 0)}),
    Special("erfc", "erfc x", lambda x: x.erfc(), REAL, (0.5, 9.0, 26.0), {inf: (0, 0, 0), -inf: (2, 0, 0)}),
    Special("log_ndtr", "log Φ(x)", log_ndtr, REAL, (0.0, 5.5, -14.0, 38.0), {inf: (0, 0, 0), -inf: (-inf, inf, -1)}),
    # of two arguments
    Special(
        "logaddexp",
        "log(eˣ+eʸ)",
        logaddexp,
        PLANE,
        scale={0: lambda x, y: np.maximum(np.abs(np.maximum(x, y)), np.log1p(np.exp(-np.abs(x - y))))},
        reason="near eˣ+eʸ = 1 two terms cancel: there the error is relative to the terms",
    ),
    Special(
        "logsubexp",
        "log(eˣ-eʸ)",
        logsubexp,
        PLANE,
        also=lambda x, y: x > y,
        scale={0: lambda x, y: np.maximum(np.abs(x), np.abs(np.log(-np.expm1(y - x))))},
        bounds={2: 5.0},
        reason="near eˣ-eʸ = 1 two terms cancel: there the error is relative to the terms; "
        "the second derivative 5 ulp in float32, 4 passed at 1 point in 10⁴",
    ),
    Special("xlogy", "x log y", lambda x, y: x * log(y), ((-inf, inf), (0.0, inf))),
    Special("xlog1py", "x log(1+y)", lambda x, y: x * log(1 + y), ((-inf, inf), (-1.0, inf))),
]


def _asinh(x):
    y = absolute(x)
    value = log(y + (1 + y * y).sqrt())
    return -value if first(x) < 0 else value


def _exprel(x):
    if first(x).is_zero():
        return flint.arb_series([1, one / 2, one / 6])
    return (exp(x) - 1) / x
