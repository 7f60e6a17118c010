"""Numerical primitives whose value, first and second derivative are right to the last bits."""

from ._accumulator import Accumulator
from ._backend import BackendError, BackendFinding, BackendReport, verify_backend
from ._block_scaled import block_scaled_sum
from ._cholesky import cholesky
from ._compensated_cumsum import compensated_cumsum
from ._compensated_dot import compensated_dot, compensated_matmul
from ._compensated_polyval import compensated_polyval
from ._compensated_sum import compensated_mean, compensated_sum
from ._cross_entropy import sigmoid_cross_entropy, softmax_cross_entropy
from ._differences import diff_of_products, sqrt_diff
from ._division import divide
from ._eigh import eigh
from ._error_free import fast_two_sum, split, two_prod, two_sum
from ._exponential import cexpexp, exp2, expm1, expm1_over_x, xexpx
from ._formats import FormatInfo, format_info, sum_error_bound
from ._global_norm import reproducible_global_norm
from ._hyperbolic import acosh, asinh, atanh, log_cosh, logabssinh, logabstanh, tanh
from ._log_exp import cloglog, log1mexp, log2mexp, logaddexp, logexpm1, logit1mexp, logsubexp
from ._log_matmul import log_matmul
from ._log_pdfs import (
    bernoulli_logpmf,
    beta_logpdf,
    binom_logpmf,
    cauchy_logpdf,
    chi2_logpdf,
    dirichlet_logpdf,
    expon_logpdf,
    gamma_logpdf,
    laplace_logpdf,
    logistic_logpdf,
    multivariate_normal_logpdf,
    norm_logpdf,
    poisson_logpmf,
    t_logpdf,
    uniform_logpdf,
)
from ._logarithm import entr, log, log1p, log1pmx, log1psq, logmxp1, xlog1py, xlogx, xlogy
from ._logistic import elu, log1pexp, log_sigmoid, logit, selu, sigmoid, silu, softplus
from ._logsumexp import logcumsumexp, logmeanexp, logsumexp
from ._mesh import reproducible_psum
from ._moments import mean, std, var
from ._normal import erf, erfc, log_ndtr
from ._norms import cosine_similarity, global_norm, norm, normalize
from ._pairwise import kahan_sum, pairwise_sum
from ._plane import arctan2, hypot
from ._power import power
from ._quadratic import quadratic_roots
from ._range import CastCounts, RangeReport, range_report, saturating_cast
from ._reproducible import reproducible_mean, reproducible_sum
from ._reproducible_dot import reproducible_dot
from ._roots import acos, asin, cbrt, one_minus_cos, rsqrt, sqrt, sqrt1pm1
from ._scaled import prod, scaled_prod
from ._scatter import gather, scatter_add, segment_sum
from ._sharded import sharded_logsumexp, sharded_softmax_cross_entropy
from ._signed_log import SignedLog
from ._softmax import log_softmax, softmax
from ._streaming import LogSumExp, chunked_logsumexp
from ._svd import svd
from ._where import safe_where

__all__ = [
    "Accumulator",
    "BackendError",
    "BackendFinding",
    "BackendReport",
    "CastCounts",
    "FormatInfo",
    "LogSumExp",
    "RangeReport",
    "SignedLog",
    "acos",
    "acosh",
    "arctan2",
    "asin",
    "asinh",
    "atanh",
    "bernoulli_logpmf",
    "beta_logpdf",
    "binom_logpmf",
    "block_scaled_sum",
    "cauchy_logpdf",
    "cbrt",
    "cexpexp",
    "chi2_logpdf",
    "cholesky",
    "chunked_logsumexp",
    "cloglog",
    "compensated_cumsum",
    "compensated_dot",
    "compensated_matmul",
    "compensated_mean",
    "compensated_polyval",
    "compensated_sum",
    "cosine_similarity",
    "diff_of_products",
    "dirichlet_logpdf",
    "divide",
    "eigh",
    "elu",
    "entr",
    "erf",
    "erfc",
    "exp2",
    "expm1",
    "expm1_over_x",
    "expon_logpdf",
    "fast_two_sum",
    "format_info",
    "gamma_logpdf",
    "gather",
    "global_norm",
    "hypot",
    "kahan_sum",
    "laplace_logpdf",
    "log",
    "log1mexp",
    "log1p",
    "log1pexp",
    "log1pmx",
    "log1psq",
    "log2mexp",
    "log_cosh",
    "log_matmul",
    "log_ndtr",
    "log_sigmoid",
    "log_softmax",
    "logabssinh",
    "logabstanh",
    "logaddexp",
    "logcumsumexp",
    "logexpm1",
    "logistic_logpdf",
    "logit",
    "logit1mexp",
    "logmeanexp",
    "logmxp1",
    "logsubexp",
    "logsumexp",
    "mean",
    "multivariate_normal_logpdf",
    "norm",
    "norm_logpdf",
    "normalize",
    "one_minus_cos",
    "pairwise_sum",
    "poisson_logpmf",
    "power",
    "prod",
    "quadratic_roots",
    "range_report",
    "reproducible_dot",
    "reproducible_global_norm",
    "reproducible_mean",
    "reproducible_psum",
    "reproducible_sum",
    "rsqrt",
    "safe_where",
    "saturating_cast",
    "scaled_prod",
    "scatter_add",
    "segment_sum",
    "selu",
    "sharded_logsumexp",
    "sharded_softmax_cross_entropy",
    "sigmoid",
    "sigmoid_cross_entropy",
    "silu",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "split",
    "sqrt",
    "sqrt1pm1",
    "sqrt_diff",
    "std",
    "sum_error_bound",
    "svd",
    "t_logpdf",
    "tanh",
    "two_prod",
    "two_sum",
    "uniform_logpdf",
    "var",
    "verify_backend",
    "xexpx",
    "xlog1py",
    "xlogx",
    "xlogy",
]
