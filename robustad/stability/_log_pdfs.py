r"""Logarithms of densities and probabilities, with limits as derivatives at the edges of their support.

Names and parameters as in `jax.scipy.stats`, flattened: `norm.logpdf` is `norm_logpdf`. Outside the support the value is
-inf and every derivative 0 (`safe_where`); at its edge, value and derivatives are the limits from inside. Parameters
outside their domain give NaN.

The value is within 8 ulp in float32 and 16 in float64 of the larger of 1 and itself, first derivatives are of themselves
but near their zeros, for parameters from 1e-3 to 1e14, near the mode and in the tails; second derivatives within 1e-4 and
1e-10 (`tests/test_log_pdfs.py`). What it takes: x - loc does not overflow where its quotient by the scale does not, and
keeps the digits that it rounds away (`_standardized.py`); densities with large parameters are in their saddle-point form
(`_deviance.py`); derivatives are formulas without cancellation (`_gamma.py`, `_beta.py`, `_student.py`,
`_dirichlet.py`).
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from ._arguments import joint_shape, numbers, refuse_complex, widened
from ._beta import beta, binom
from ._cholesky import cholesky
from ._dirichlet import dirichlet
from ._division import divide
from ._elementwise import elementwise
from ._gamma import gamma, poisson
from ._hyperbolic import log_cosh
from ._log_gamma import LOG_ROOT_2_PI
from ._logarithm import log, xlog1py, xlogy
from ._standardized import halved, square_less_one, standardized, standardized_rest
from ._student import cauchy, student
from ._where import safe_where


def _density(function: Callable[..., Array]) -> Callable[..., Array]:
    """Promotes and broadcasts the arguments; float16 and bfloat16 are computed in float32."""

    compiled, signature = jax.jit(function), inspect.signature(function)

    @functools.wraps(function)
    def density(*args: ArrayLike, **kwargs: ArrayLike) -> Array:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__name__}: {error}; it takes {', '.join(signature.parameters)}.") from None
        bound.apply_defaults()
        values, dtype = _floats(function.__name__, bound.arguments)
        shape = joint_shape(function.__name__, **{name: jnp.shape(x) for name, x in bound.arguments.items()})
        return compiled(*(jnp.broadcast_to(x, shape) for x in values)).astype(dtype)

    return density


def _floats(name: str, arguments: Mapping[str, ArrayLike]) -> tuple[list[Array], jnp.dtype]:
    """The arguments in the dtype to compute in, and that of the result; counts may always be integers."""
    numbers(name, **arguments)
    for argument, x in arguments.items():
        refuse_complex(name, argument, jnp.result_type(x), "Sum the densities of the real and the imaginary part.")
    floating = [x for x in arguments.values() if not jnp.issubdtype(jnp.result_type(x), jnp.integer)]
    dtype = jnp.result_type(*floating) if floating else jnp.result_type(float)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    return [widened(jnp.asarray(x, dtype)) for x in arguments.values()], dtype


def _broadcast(*shapes: tuple[int, ...]) -> bool:
    try:
        jnp.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


def _inside(condition: Array, value: Callable[..., Array], *args: Array) -> Array:
    nan = functools.reduce(jnp.logical_or, [jnp.isnan(x) for x in args])
    return safe_where(condition | nan, value, lambda *xs: jnp.full_like(xs[0], -jnp.inf), *args)


def _where_valid(*conditions: Array) -> Array:
    """0, or NaN where a parameter is outside its domain: a term that is added last, outside the support too."""
    return jnp.where(functools.reduce(jnp.logical_and, conditions), 0.0, jnp.nan)


def _before_end(x: Array, loc: Array, scale: Array) -> Array:
    x, loc, scale = halved(x, loc, scale)
    return x <= loc + scale


def _is_probability(p: Array) -> Array:
    return (p >= 0) & (p <= 1)


def _norm_by_x(x: Array, loc: Array, scale: Array) -> Array:
    return -divide(standardized(x, loc, scale), scale)


def _norm_by_scale(x: Array, loc: Array, scale: Array) -> Array:
    z, low = standardized(x, loc, scale), standardized_rest(x, loc, scale)
    return divide(square_less_one(z, low), scale)


@elementwise(_norm_by_x, lambda x, loc, scale: -_norm_by_x(x, loc, scale), _norm_by_scale)
def _norm(x: Array, loc: Array, scale: Array) -> Array:
    z = standardized(x, loc, scale)
    return -0.5 * z * z - (LOG_ROOT_2_PI + log(scale))


@_density
def norm_logpdf(x: Array, loc: Array = 0.0, scale: Array = 1.0) -> Array:  # pyright: ignore[reportArgumentType]
    r"""Normal: :math:`-z^2/2 - \log\sqrt{2π} - \log s`, z = (x - loc)/s.

    >>> from robustad import stability as st
    >>> print(st.norm_logpdf(0.0))
    -0.9189385
    """
    return _norm(x, loc, scale)


@_density
def laplace_logpdf(x: Array, loc: Array = 0.0, scale: Array = 1.0) -> Array:  # pyright: ignore[reportArgumentType]
    r"""Laplace: :math:`-|z| - \log 2s`.

    >>> from robustad import stability as st
    >>> print(st.laplace_logpdf(2.0))
    -2.6931472
    """
    return -jnp.abs(standardized(x, loc, scale)) - (math.log(2) + log(scale))


@_density
def cauchy_logpdf(x: Array, loc: Array = 0.0, scale: Array = 1.0) -> Array:  # pyright: ignore[reportArgumentType]
    r"""Cauchy: :math:`-\log(1 + z^2) - \log πs`, whose square does not overflow.

    >>> from robustad import stability as st
    >>> print(st.cauchy_logpdf(1e30))
    -139.29984
    """
    return cauchy(x, loc, scale)


@_density
def logistic_logpdf(x: Array, loc: Array = 0.0, scale: Array = 1.0) -> Array:  # pyright: ignore[reportArgumentType]
    r"""Logistic: :math:`-2 \log(2 \cosh(z/2)) - \log s`; the score :math:`-\tanh(z/2)` keeps its digits near 0.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.logistic_logpdf(200.0), jax.grad(st.logistic_logpdf)(1e-20))
    -200.0 -5e-21
    """
    return -2 * log_cosh(0.5 * standardized(x, loc, scale)) - (2 * math.log(2) + log(scale))


@_density
def t_logpdf(x: Array, df: Array, loc: Array = 0.0, scale: Array = 1.0) -> Array:  # pyright: ignore[reportArgumentType]
    r"""Student: :math:`\log\frac{Γ((ν+1)/2)}{Γ(ν/2)} - \log(s\sqrt{πν}) - \frac{ν+1}{2} \log(1 + z^2/ν)`.

    The square does not overflow. For a large ν nothing cancels, neither in the value nor in the derivatives, of which that
    in ν is of the order :math:`ν^{-2}`.

    >>> from robustad import stability as st
    >>> print(st.t_logpdf(0.0, 1e8))
    -0.9189385
    """
    return student(x, df, loc, scale) + _where_valid(df > 0, scale > 0)


@_density
def uniform_logpdf(x: Array, loc: Array = 0.0, scale: Array = 1.0) -> Array:  # pyright: ignore[reportArgumentType]
    r"""Uniform on [loc, loc + s]: :math:`-\log s`.

    >>> from robustad import stability as st
    >>> print(st.uniform_logpdf(1.0, 0.0, 2.0), st.uniform_logpdf(3.0, 0.0, 2.0))
    -0.6931472 -inf
    """
    value = _inside((x >= loc) & _before_end(x, loc, scale), lambda x, scale: -log(scale) + 0 * x, x, scale)
    return value + _where_valid(scale > 0)


@_density
def expon_logpdf(x: Array, loc: Array = 0.0, scale: Array = 1.0) -> Array:  # pyright: ignore[reportArgumentType]
    r"""Exponential: :math:`-z - \log s` for z ≥ 0.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.expon_logpdf)(0.0), jax.grad(st.expon_logpdf)(-1.0))
    -1.0 0.0
    """
    value = _inside(x >= loc, lambda x, loc, scale: -standardized(x, loc, scale) - log(scale), x, loc, scale)
    return value + _where_valid(scale > 0)


@_density
def gamma_logpdf(x: Array, a: Array, loc: Array = 0.0, scale: Array = 1.0) -> Array:  # pyright: ignore[reportArgumentType]
    r"""Gamma: :math:`(a - 1) \log z - z - \log Γ(a) - \log s` for z ≥ 0, computed from the deviance of a - 1 and z.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.gamma_logpdf(0.0, 1.0), jax.grad(st.gamma_logpdf)(0.0, 1.0))
    0.0 -1.0
    """
    return _inside(x >= loc, gamma, x, a, loc, scale) + _where_valid(a > 0, scale > 0)


@_density
def chi2_logpdf(x: Array, df: Array, loc: Array = 0.0, scale: Array = 1.0) -> Array:  # pyright: ignore[reportArgumentType]
    r"""χ² with ν degrees of freedom: the gamma density with a = ν/2 and twice the scale.

    >>> from robustad import stability as st
    >>> print(st.chi2_logpdf(0.0, 2.0))
    -0.6931472
    """
    return gamma_logpdf(x, 0.5 * df, loc, 2 * scale)


@_density
def beta_logpdf(x: Array, a: Array, b: Array, loc: Array = 0.0, scale: Array = 1.0) -> Array:  # pyright: ignore[reportArgumentType]
    r"""Beta: :math:`(a - 1) \log z + (b - 1) \log(1 - z) - \log B(a, b) - \log s` for z in [0, 1].

    For large parameters from the deviances of a - 1 and b - 1.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.beta_logpdf(1.0, 2.0, 1.0), jax.grad(st.beta_logpdf)(1.0, 2.0, 1.0))
    0.6931472 1.0
    """
    inside = (x >= loc) & _before_end(x, loc, scale)
    return _inside(inside, beta, x, a, b, loc, scale) + _where_valid(a > 0, b > 0, scale > 0)


@_density
def bernoulli_logpmf(k: Array, p: Array, loc: Array = 0.0) -> Array:  # pyright: ignore[reportArgumentType]
    r"""Bernoulli: log p for k = 1, log(1 - p) for k = 0, counted from loc.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.bernoulli_logpmf(1, 1.0), jax.grad(st.bernoulli_logpmf, 1)(1.0, 1.0))
    0.0 1.0
    """
    k = k - loc
    value = _inside((k == 0) | (k == 1), lambda k, p: xlogy(k, p) + xlog1py(1 - k, -p), k, p)
    return value + _where_valid(_is_probability(p))


@_density
def binom_logpmf(k: Array, n: Array, p: Array, loc: Array = 0.0) -> Array:  # pyright: ignore[reportArgumentType]
    r"""Binomial: :math:`\log\binom nk + k \log p + (n - k) \log(1 - p)` for whole k from 0 to n, counted from loc.

    For large k and n - k from their deviances (Loader 2000). The derivatives in k and n are those of the gamma function.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.binom_logpmf(0, 5, 0.0), jax.grad(st.binom_logpmf, 2)(0.0, 5.0, 0.0))
    0.0 -5.0
    """
    k = k - loc
    return _inside((k >= 0) & (k <= n) & (k == jnp.floor(k)), binom, k, n, p) + _where_valid(n >= 0, _is_probability(p))


@_density
def poisson_logpmf(k: Array, mu: Array, loc: Array = 0.0) -> Array:  # pyright: ignore[reportArgumentType]
    r"""Poisson: :math:`k \log μ - μ - \log k!` for whole k ≥ 0, counted from loc.

    For k > 1 :math:`-D(k, μ) - \frac12 \log 2πk - μ(k)`, with the deviance :math:`D = k \log(k/μ) + μ - k` and the
    remainder of Stirling's series (Loader 2000). At k = ∞ it is -inf, and its derivative in μ the limit +inf.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.poisson_logpmf(0, 0.0), jax.grad(st.poisson_logpmf, 1)(0.0, 0.0))
    0.0 -1.0
    """
    k = k - loc
    return _inside((k >= 0) & (k == jnp.floor(k)), poisson, k, mu) + _where_valid(mu >= 0)


def dirichlet_logpdf(x: ArrayLike, alpha: ArrayLike) -> Array:
    r"""Dirichlet: :math:`\sum (α_i - 1) \log x_i - \log B(α)` along the last axis, on the simplex.

    x is on the simplex if no element is negative and the sum is 1 within :math:`4 n ε`; derivatives are those of the
    formula in all n coordinates.

    Args:
      x, alpha: real arrays with the n coordinates in the last axis (jax.scipy.stats has them in the first); alpha may be one
        number, of all coordinates.

    Returns:
      An array without that axis.

    Raises:
      ValueError: the last axes differ, or the others do not broadcast.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> x, alpha = jnp.array([0.0, 1.0]), jnp.array([1.0, 3.0])
    >>> print(st.dirichlet_logpdf(x, alpha), jax.grad(st.dirichlet_logpdf)(x, alpha))
    1.0986123 [0. 2.]
    """
    (x, alpha), dtype = _floats("dirichlet_logpdf", {"x": x, "alpha": alpha})
    alpha = jnp.broadcast_to(alpha, x.shape[-1:]) if not alpha.ndim else alpha
    if not x.ndim or x.shape[-1] != alpha.shape[-1] or not _broadcast(x.shape, alpha.shape):
        raise ValueError(
            f"dirichlet_logpdf: `x` has shape {x.shape} and `alpha` {alpha.shape}; expected (..., n) for both, with the "
            "same n and leading axes that broadcast. jax.scipy.stats has the coordinates in the first axis: for such an "
            "`x` pass jnp.moveaxis(x, 0, -1)."
        )
    return _dirichlet(*jnp.broadcast_arrays(x, alpha)).astype(dtype)


@jax.jit
def _dirichlet(x: Array, alpha: Array) -> Array:
    n = x.shape[-1]
    on_simplex = jnp.all(x >= 0, -1) & (jnp.abs(jnp.sum(x, -1) - 1) <= 4 * n * float(jnp.finfo(x.dtype).eps))

    def split(condition: Array) -> tuple[Array, Array]:
        taken = condition[..., None]
        return tuple(jnp.where(taken, z, lax.stop_gradient(z)) for z in (x, alpha))  # pyright: ignore[reportReturnType]

    return jnp.where(on_simplex, dirichlet(*split(on_simplex)), -jnp.inf) + _where_valid(jnp.all(alpha > 0, -1))


def multivariate_normal_logpdf(x: ArrayLike, mean: ArrayLike, cov: ArrayLike) -> Array:
    r"""Multivariate normal: :math:`-\frac12 |L^{-1}(x - μ)|^2 - \log\det L - \frac n2 \log 2π`, :math:`L L^T` = cov.

    A singular covariance has no density: NaN or infinite there.

    Args:
      x, mean: real arrays of shape (..., n); mean may be one number, of all coordinates.
      cov: symmetric positive definite matrices, shape (..., n, n).

    Returns:
      An array of the shape to which the leading axes broadcast.

    Raises:
      ValueError: the shapes are not those.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> print(st.multivariate_normal_logpdf(jnp.zeros(2), jnp.zeros(2), 1e-30 * jnp.eye(2)))
    67.23968
    """
    (x, mean, cov), dtype = _floats("multivariate_normal_logpdf", {"x": x, "mean": mean, "cov": cov})
    n = cov.shape[-1:]
    mean = jnp.broadcast_to(mean, n) if not mean.ndim else mean
    leading = x.shape[:-1], mean.shape[:-1], cov.shape[:-2]
    if cov.ndim < 2 or cov.shape[-2:-1] != n or x.shape[-1:] != n or mean.shape[-1:] != n or not _broadcast(*leading):
        raise ValueError(
            f"multivariate_normal_logpdf: `x` has shape {x.shape}, `mean` has shape {mean.shape} and "
            f"`cov` has shape {cov.shape}; expected (..., n), (..., n) and (..., n, n), with leading axes that broadcast. "
            "For variances without covariances sum `norm_logpdf` over the last axis."
        )
    return _multivariate_normal(x, mean, cov).astype(dtype)


@jax.jit
def _multivariate_normal(x: Array, mean: Array, cov: Array) -> Array:
    factor, step = cholesky(cov), x - mean
    n = cov.shape[-1]
    shape = jnp.broadcast_shapes(step.shape[:-1], factor.shape[:-2])
    step, factor = jnp.broadcast_to(step, (*shape, n)), jnp.broadcast_to(factor, (*shape, n, n))
    z = lax.linalg.triangular_solve(factor, step[..., None], left_side=True, lower=True)[..., 0]
    logs = jnp.sum(log(jnp.diagonal(factor, axis1=-2, axis2=-1)), -1)
    return -0.5 * jnp.sum(z * z, -1) - (logs + n * LOG_ROOT_2_PI)
