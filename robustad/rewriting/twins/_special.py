"""Twins of special functions: at poles, where two of them cancel, and where a rounded value is exponentiated."""

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import stability
from robustad.stability import _log_gamma
from robustad.stability import _words as words

from ._twin import Entry, by_slope, by_terms, constant, elementwise, smooth

# ---- the gamma function


def _turn(x: Array) -> tuple[Array, Array]:
    """sin πx and cos πx up to their common sign."""
    r = math.pi * (x - lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN))
    return lax.sin(r), lax.cos(r)


def _reflected(x: Array, far: Callable[[Array], Array], pole: Callable[[Array, Array], Array], sign: float) -> Array:
    """far(x) for x > 0; pole + sign · far(1 - x) elsewhere, the pole a function of sin πx and cos πx."""
    positive = x > 0
    value = far(lax.select(positive, x, 1 - x))
    return lax.select(positive, value, pole(*_turn(x)) + sign * value)


def _beyond_gamma(n: int, x: Array, far: Callable[[Array], Array]) -> Array:
    """The polygamma function of order n, for x > 0; `far` where 1/x² is lost beside 1, where XLA's becomes 0."""
    large = x > float(jnp.finfo(x.dtype).eps) ** -0.5
    near = lax.polygamma(constant(x, n), lax.select(large, constant(x, 1), x))
    return lax.select(large, far(x), near)


@smooth()
def _tetragamma(x: Array) -> Array:
    def positive(y: Array) -> Array:
        return _beyond_gamma(2, y, lambda y: -(1 / y) * (1 / y) * (1 + 1 / y))

    return _reflected(x, positive, lambda s, c: -2 * math.pi**3 * c / (s * s * s), 1.0)


@smooth(_tetragamma)
def _trigamma(x: Array) -> Array:
    def positive(y: Array) -> Array:
        return _beyond_gamma(1, y, lambda y: (1 / y) * (1 + 0.5 / y))

    value = _reflected(x, positive, lambda s, c: (math.pi / s) * (math.pi / s), -1.0)
    return lax.select(x == -np.inf, constant(x, np.nan), value)


def _digamma_value(x: Array) -> Array:
    return lax.select(x == 0, -1 / x, lax.digamma(x))


_digamma = smooth(_trigamma)(_digamma_value)


@smooth()
def _log_gamma_value(x: Array) -> Array:
    """XLA's, but around its zeros: there the series of log Γ(2 + z), and log Γ(1 + z) = log Γ(2 + z) - log(1 + z)."""
    first = lax.abs(x - 1) < 0.3
    near = first | (lax.abs(x - 2) < 0.3)
    z = lax.select(first, x - 1, lax.select(near, x - 2, constant(x, 0)))
    terms = _log_gamma._near_two(10 if x.dtype == jnp.float32 else 22)
    series = words.polynomial(-z, terms)
    value = z * ((1 - float(np.euler_gamma)) + z * series) - lax.select(first, lax.log1p(z), constant(x, 0))
    return lax.select(near, value, lax.lgamma(x))


def _polygamma_value(m: Array, x: Array) -> Array:
    value = lax.select(m == 1, _trigamma(x), lax.select(m == 2, _tetragamma(x), lax.polygamma(m, x)))
    return lax.select((x > 0) & (x < float(jnp.finfo(x.dtype).eps) ** -0.5), lax.polygamma(m, x), value)


def _polygamma_m(*_: Array) -> Array:
    raise ValueError("polygamma gradient with respect to m is not supported")


def _polygamma_x(t: Array, y: Array, m: Array, x: Array) -> Array:
    return t * _polygamma(m + 1, x)


_polygamma = elementwise(_polygamma_value, _polygamma_m, _polygamma_x)

# ---- Bessel functions: I_n ~ eʸ/√(2πy) Σ b_k y⁻ᵏ, and so their difference


@functools.cache
def _far_terms() -> tuple[list[float], list[float]]:
    """Of √(2πy) e⁻ʸ times I₁ - I₀ and times I₁' - I₁, from y⁻¹ on."""
    zeroth, first, differences, slopes = 1.0, 1.0, [], []
    for k in range(1, 40):
        odd, before = (2 * k - 1) ** 2, first
        zeroth, first = zeroth * odd / (8 * k), first * (odd - 4) / (8 * k)
        differences.append(first - zeroth)
        slopes.append(zeroth - first - before)
    return differences, slopes


def _by_series(near: Callable[[Array], Array], which: int, y: Array) -> Array:
    """`near`, whose differences lose y units and more, up to the y from which on the series loses e⁻²ʸ, for y ≥ 0."""
    start, count = (10.0, 16) if y.dtype == jnp.float32 else (20.0, 39)
    far = y > start
    z = 1 / lax.select(far, y, constant(y, 2 * start))
    series = lax.sqrt(z * (0.5 / math.pi)) * z * words.polynomial(z, _far_terms()[which][:count])
    return lax.select(far, series, near(lax.select(far, constant(y, 1), y)))


def _difference(y: Array) -> Array:
    return lax.bessel_i1e(y) - lax.bessel_i0e(y)


def _i1e_slope_near(y: Array) -> Array:
    tiny = y < float(jnp.finfo(y.dtype).eps)
    safe = lax.select(tiny, constant(y, 1), y)
    return lax.select(tiny, 0.5 - y, -_difference(safe) - lax.bessel_i1e(safe) / safe)


@smooth()
def _i0e_slope(x: Array) -> Array:
    return lax.sign(x) * _by_series(_difference, 0, lax.abs(x))


@smooth()
def _i1e_slope(x: Array) -> Array:
    return _by_series(_i1e_slope_near, 1, lax.abs(x))


def _i1_slope(x: Array) -> Array:
    """e⁻ʸ (I₀(x) - I₁(x)/x), y = |x|: 1/2 at 0."""
    tiny = lax.abs(x) < float(jnp.finfo(x.dtype).eps)
    safe = lax.select(tiny, constant(x, 1), x)
    return lax.select(tiny, constant(x, 0.5), lax.bessel_i0e(safe) - lax.bessel_i1e(safe) / safe)


def _grown(x: Array, scaled: Array) -> Array:
    return lax.exp(lax.abs(x)) * scaled


# The products that `jax.scipy.special.i0` and `i1` are made of: differentiated factor by factor, I₀ + (I₁ - I₀) cancels.
bessel_i1 = elementwise(lambda x: _grown(x, lax.bessel_i1e(x)), lambda t, y, x: t * _grown(x, _i1_slope(x)))
bessel_i0 = elementwise(lambda x: _grown(x, lax.bessel_i0e(x)), lambda t, y, x: t * bessel_i1(x))

# ---- the inverse error function


def _refined(x: Array) -> Array:
    """After a step of Newton's method, from the distance to ±1 where that is small."""
    y = lax.erf_inv(x)
    tail = (1 - lax.abs(x)) - stability.erfc(lax.abs(y))
    residual = lax.select(lax.abs(x) < 0.5, x - stability.erf(y), -lax.sign(x) * tail)
    step = residual * ((0.5 * math.sqrt(math.pi)) * lax.exp(y * y))
    return lax.select(lax.is_finite(step), y + step, y)


def _erf_inv_value(x: Array) -> Array:
    return _refined(x) if x.dtype == jnp.float64 else lax.erf_inv(x)


def _erf_inv_slope_value(x: Array) -> Array:
    y = _refined(x)
    return (0.5 * math.sqrt(math.pi)) * lax.exp(y * y)


@smooth()
def _erf_inv_curvature(x: Array) -> Array:
    s = _erf_inv_slope_value(x)
    return (2 * _refined(x)) * s * s


_erf_inv_slope = smooth(_erf_inv_curvature)(_erf_inv_slope_value)

# ---- incomplete gamma and beta functions: their derivatives are densities


def _gamma_density(t: Array, y: Array, a: Array, x: Array) -> Array:
    return t * jnp.exp(stability.gamma_logpdf(x, a))


def _beta_density(t: Array, y: Array, a: Array, b: Array, x: Array) -> Array:
    return t * jnp.exp(stability.beta_logpdf(x, a, b))


def _by_shape(sign: float, t: Array, y: Array, a: Array, x: Array) -> Array:
    return sign * t * lax.igamma_grad_a(a, x)


def _no_betainc_gradient(t: Array, y: Array, a: Array, b: Array, x: Array) -> Array:
    raise ValueError("Gradients of betainc with respect to a and b are not supported.")


_DENSITY = "exp of a sum of large terms that cancel: few digits for large parameters"
TABLE: dict[str, Entry] = {
    "lgamma": by_slope(
        "NaN at 0; the second derivative is wrong for negative arguments, the value near its zeros 1 and 2",
        _digamma,
        value=_log_gamma_value,
    ),
    "digamma": by_slope(
        "NaN at 0, and the derivative is wrong for negative arguments", _trigamma, value=_digamma_value
    ),
    "polygamma": by_terms("wrong for negative arguments", _polygamma_m, _polygamma_x, value=_polygamma_value),
    "bessel_i0e": by_slope("I₁ - I₀ cancels for large arguments", _i0e_slope),
    "bessel_i1e": by_slope("I₀ - I₁ cancels for large arguments", _i1e_slope),
    "erf_inv": by_slope("exp(y²) of a y that lost digits in 1 - x²", _erf_inv_slope, value=_erf_inv_value),
    "igamma": by_terms(_DENSITY, functools.partial(_by_shape, 1.0), _gamma_density),
    "igammac": by_terms(_DENSITY, functools.partial(_by_shape, -1.0), lambda t, y, a, x: -_gamma_density(t, y, a, x)),
    "regularized_incomplete_beta": by_terms(_DENSITY, _no_betainc_gradient, _no_betainc_gradient, _beta_density),
}
