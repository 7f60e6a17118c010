"""Functions whose plain JAX derivative is wrong, by class, with the truth: what `stabilize` is tested on.

Each is a function of one array as a user writes it. The truth is a number, evaluated to more digits than are compared, or
a function of the rounded argument for mpmath. The wrappers put a function into what models are made of.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import mpmath
import numpy as np

INF = float("inf")


@dataclass(frozen=True)
class Case:
    """`grad(f)(x)` must be `gradient` (for a function, what mpmath makes of it at x); `wide`: in float64."""

    name: str
    f: Callable[[Any], Any]
    x: Any
    gradient: Any
    wide: bool = False

    @property
    def dtype(self) -> Any:
        return np.float64 if self.wide else np.float32

    @property
    def truth(self) -> np.ndarray:
        if not callable(self.gradient):
            return np.asarray(self.gradient, np.float64)
        with mpmath.workdps(60):
            return np.float64(self.gradient(mpmath.mpf(float(self.dtype(self.x)))))

    def is_right(self, got: Any) -> bool:
        """Within 1e-4 (float64: 1e-10). A correct 0 is below the smallest normal, or the rounding of larger entries."""
        got, want = np.asarray(got, np.float64), self.truth
        least = float(np.finfo(self.dtype).tiny)
        rtol = 1e-10 if self.wide else 1e-4
        rounding = np.finfo(self.dtype).eps * np.max(np.abs(np.where(np.isfinite(want), want, 0)), initial=0.0)
        with np.errstate(invalid="ignore"):
            close = np.abs(got - want) <= rtol * np.abs(want)
        return bool(np.all(np.where(np.abs(want) < least, np.abs(got) <= max(least, rounding), (got == want) | close)))


def _where_log(c: float) -> Callable[[Any], Any]:
    return lambda x: jnp.sum(jnp.where(x > 0, jnp.log(c * x), 0.0))


def _hand_softplus(a: float) -> Callable[[Any], Any]:
    return lambda x: jnp.sum(jnp.log(1 + jnp.exp(a * x)))


_SELU = mpmath.mpf(1.0507009873554804934193349852946 * 1.6732632423543772848170429916717)
_P = float(1 / (1 + mpmath.exp(mpmath.mpf(37.43))))

CASES = [
    # 1. log-space written by hand
    Case("log(1+exp)", _hand_softplus(1.0), 100.0, 1.0),
    Case("log(1+exp(3x))", _hand_softplus(3.0), 100.0, 3.0),
    Case("log(1+exp) tail", _hand_softplus(1.0), -40.0, 4.248354255291589e-18),
    Case("log1p(exp)", lambda x: jnp.log1p(jnp.exp(x)), 100.0, 1.0),
    Case("log(2+exp)", lambda x: jnp.log(2 + jnp.exp(x)), 100.0, 1.0),
    Case("log(sum(exp))", lambda x: jnp.log(jnp.sum(jnp.exp(x))), [1000.0, 0.0], [1.0, 0.0]),
    Case("log(mean(exp))", lambda x: jnp.log(jnp.mean(jnp.exp(x))), [-1000.0, -1000.0], [0.5, 0.5]),
    Case("log(sum(w exp))", lambda x: jnp.log(jnp.sum(jnp.array([0.2, 0.8]) * jnp.exp(x))), [500.0, 500.0], [0.2, 0.8]),
    Case("log(softmax)[0]", lambda x: jnp.log(jax.nn.softmax(x))[0], [0.0, 200.0], [1.0, -1.0]),
    Case("log(softmax[0])", lambda x: jnp.log(jax.nn.softmax(x)[0]), [0.0, 200.0], [1.0, -1.0]),
    Case("log(exp/sum exp)", lambda x: jnp.log(jnp.exp(x) / jnp.sum(jnp.exp(x)))[1], [0.0, 200.0], [-1.4e-87, 0.0]),
    Case("log(1-sigmoid)", lambda x: jnp.log(1 - jax.nn.sigmoid(x)), 100.0, -1.0),
    Case("log(sigmoid)", lambda x: jnp.log(jax.nn.sigmoid(x)), -200.0, 1.0),
    Case("log(prod)", lambda x: jnp.log(jnp.prod(x)), [1e-20, 1e-25, 1e-10], [1e20, 1e25, 1e10]),
    Case("log(prod sigmoid)", lambda x: jnp.log(jnp.prod(jax.nn.sigmoid(x))), [-60.0, -70.0], [1.0, 1.0]),
    Case("log(exp)", lambda x: jnp.log(jnp.exp(x)), 89.0, 1.0),
    Case("log(cosh)", lambda x: jnp.log(jnp.cosh(x)), 100.0, 1.0),
    Case("log(1-tanh^2)", lambda x: jnp.log(1 - jnp.tanh(x) ** 2), 20.0, -2.0),
    Case("log(Phi)", lambda x: jnp.log(0.5 * (1 + jax.scipy.special.erf(x / jnp.sqrt(2.0)))), -9.0,
         lambda x: mpmath.npdf(x) / mpmath.ncdf(x)),
    Case("1/(1+exp(-x))", lambda x: 1 / (1 + jnp.exp(-x)), -200.0, 0.0),
    Case("1/(1+exp(-x)) tail", lambda x: 1 / (1 + jnp.exp(-x)), -60.0, 8.75651076269652e-27),
    Case("exp/(exp+1)", lambda x: jnp.exp(x) / (jnp.exp(x) + 1), 100.0, 0.0),
    Case("log(exp a + exp b)", lambda x: jnp.log(jnp.exp(x[0]) + jnp.exp(x[1])), [300.0, 300.0], [0.5, 0.5]),
    # 2. cancellation
    Case("(1-cos x)/x^2", lambda x: (1 - jnp.cos(x)) / x**2, 1e-4, -8.33333332e-6),
    Case("expm1(x)/x", lambda x: jnp.expm1(x) / x, 0.0, 0.5),
    Case("x/tan x", lambda x: x / jnp.tan(x), 0.0, 0.0),
    Case("(exp x - 1)/x", lambda x: (jnp.exp(x) - 1) / x, 1e-5, 0.5000033333),
    Case("sin x/x", lambda x: jnp.sin(x) / x, 1e-4, -3.3333333e-5),
    Case("sqrt(x+1)-sqrt(x)", lambda x: jnp.sqrt(x + 1) - jnp.sqrt(x), 1e8, -2.4999999812e-13),
    Case("log(x+1)-log(x)", lambda x: jnp.log(x + 1) - jnp.log(x), 1e8, -9.9999999e-17),
    Case("1/(x+1)-1/x", lambda x: 1 / (x + 1) - 1 / x, 1e6, 1.999997e-18),
    Case("exp x-2+exp -x", lambda x: jnp.exp(x) - 2 + jnp.exp(-x), 1e-4, 2.0000000033e-4),
    Case("E[x^2]-E[x]^2", lambda x: jnp.mean(x**2) - jnp.mean(x) ** 2, [1e4, 1e4 + 1, 1e4 + 2], [-2 / 3, 0.0, 2 / 3]),
    Case("sqrt(x^2+1)-x", lambda x: jnp.sqrt(x * x + 1) - x, 1e4, -4.9999999625e-9),
    Case("matern32", lambda x: (1 + jnp.sqrt(x**2)) * jnp.exp(-jnp.sqrt(x**2)), 0.0, 0.0),
    # 3. the untaken branch
    Case("where(x<1, x, sqrt x)", lambda x: jnp.where(x < 1, x, jnp.sqrt(x)), 0.0, 1.0),
    Case("where log", _where_log(1.0), 0.0, 0.0),
    Case("where log(2x)", _where_log(2.0), [0.0, 1.0], [0.0, 1.0]),
    Case("where entropy", lambda x: jnp.sum(jnp.where(x > 0, -x * jnp.log(x), 0.0)), [0.0, 1.0], [0.0, -1.0]),
    Case("where arctan2", lambda a: jnp.sum(jnp.where(a == 0, 0.0, jnp.arctan2(a, a))), [3.0, 0.0, -5.0], [0.0, 0.0, 0.0]),
    Case("where x/y", lambda y: jnp.sum(jnp.where(y == 0, 0.0, 1 / y)), [0.0, 2.0], [0.0, -0.25]),
    Case("nanmean(x^2)", lambda x: jnp.nanmean(x**2), [np.nan, 1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 1.0, 1.5, 2.0]),
    Case("arccos(clip)", lambda x: jnp.arccos(jnp.clip(x, -1, 1)), 10.0, 0.0),
    Case("max(log x, -10)", lambda x: jnp.maximum(jnp.log(x), -10.0), 0.0, 0.0),
    Case("where norm of rows", lambda x: jnp.sum(jnp.where(x[:, 0] > 0, jnp.sqrt(jnp.sum(x**2, -1)), 0.0)),
         [[0.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [0.6, 0.8]]),
    Case("where reduce", lambda x: jnp.where(jnp.sum(x) > 0, jnp.log(jnp.sum(x)), 0.0), [0.0, 0.0], [0.0, 0.0]),
    # 4. singular points
    Case("norm^2", lambda x: jnp.linalg.norm(x) ** 2, [0.0, 0.0], [0.0, 0.0]),
    Case("norm(a*0)", lambda a: jnp.linalg.norm(a * jnp.zeros(3)), 1.3, 0.0),
    Case("std", jnp.std, [1.0, 1.0], [0.0, 0.0]),
    Case("std by hand", lambda x: jnp.sqrt(jnp.mean((x - jnp.mean(x)) ** 2)), [1.0, 1.0], [0.0, 0.0]),
    Case("x**0.", lambda x: jnp.power(x, 0.0), 0.0, 0.0),
    Case("sqrt(d^2) pairs", lambda x: jnp.sum(jnp.sqrt((x[:, None] - x[None]) ** 2)), [0.0, 1.0, 3.0], [-4.0, 0.0, 4.0]),
    Case("sum(x**arange)", lambda x: jnp.sum(x ** jnp.arange(3)), 0.0, 1.0),
    # 5. range
    Case("norm of tiny", jnp.linalg.norm, [3e-20, 4e-20], [0.6, 0.8]),
    Case("norm of huge", jnp.linalg.norm, [3e20, 4e20], [0.6, 0.8]),
    Case("sqrt(x^2+y^2)", lambda x: jnp.sqrt(x[0] ** 2 + x[1] ** 2), [3e25, 4e25], [0.6, 0.8]),
    Case("arctan2 tiny", lambda x: jnp.arctan2(x[0], x[1]), [1e-30, 1e-30], [5e29, -5e29]),
    Case("x/y tiny", lambda y: 1e-30 / y, 1e-25, -1e20),
    # 6. infinities as masks
    Case("logsumexp -inf", lambda x: jax.scipy.special.logsumexp(jnp.array([-INF, -INF]) + jnp.stack([x, x])), 1.0, 0.0),
    Case("masked softmax", lambda x: jax.nn.softmax(jnp.where(jnp.array([True, True, False]), x, -INF))[0],
         [1.0, 1.0, 100.0], [0.25, -0.25, 0.0]),
    Case("logaddexp -inf", lambda x: jnp.logaddexp(x - INF, -INF), 1.0, 0.0),
    # 7. tails
    Case("tanh", jnp.tanh, -9.0109, lambda x: mpmath.sech(x) ** 2),
    Case("sigmoid", jax.nn.sigmoid, 40.0, 4.248354255291589e-18),
    Case("expm1 x64", jnp.expm1, -40.0, 4.248354255291589e-18, True),
    Case("elu x64", jax.nn.elu, -40.0, 4.248354255291589e-18, True),
    Case("selu x64", jax.nn.selu, -700.0, lambda x: _SELU * mpmath.exp(x), True),
    Case("sigmoid x64", jax.nn.sigmoid, 37.43, lambda x: 1 / (2 + mpmath.exp(x) + mpmath.exp(-x)), True),
    Case("silu x64", jax.nn.silu, -709.0, lambda x: mpmath.diff(lambda y: y / (1 + mpmath.exp(-y)), x), True),
    Case("exp2 x64", jnp.exp2, 1024.0000000000002, INF, True),
    Case("log_softmax x64", lambda x: jax.nn.log_softmax(x)[0], [37.43, 0.0], [_P, -_P], True),
    Case("i0 x64", jax.scipy.special.i0, 1e-300, 5e-301, True),
    # 8. degenerate linear algebra
    Case("norm of svd", lambda a: jnp.linalg.norm((lambda u, s, v: (u * s) @ v)(*jnp.linalg.svd(a))),
         np.diag([1.0, 1.0, 2.0, 3.0]).tolist(), (np.diag([1.0, 1.0, 2.0, 3.0]) / np.sqrt(15)).tolist()),
    Case("det", jnp.linalg.det, [[1.0, 2.0], [2.0, 4.0]], [[4.0, -2.0], [-2.0, 1.0]]),
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ wrappers


def plainly(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return f


def in_scan(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def g(x: Any) -> Any:
        return jax.lax.scan(lambda c, _: (c + f(x), None), jnp.zeros((), x.dtype), None, length=3)[0] / 3

    return g


def in_scan_over(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: jnp.sum(jax.lax.scan(lambda c, y: (c, f(y)), 0, jnp.stack([x, x]))[1]) / 2


def in_cond(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: jax.lax.cond(jnp.sum(x) == 12345, lambda y: 0 * jnp.sum(y), f, x)


def in_remat(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return jax.checkpoint(f)


def in_jit(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: jax.jit(f)(x) * 1.0


def batched(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: jnp.sum(jax.vmap(f)(jnp.stack([x, x, x]))) / 3


def in_equinox(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    class Layer(eqx.Module):
        act: Callable[[Any], Any]

        def __call__(self, x: Any) -> Any:
            return self.act(x)

    layer = Layer(f)
    return lambda x: layer(x)


def in_flax(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return f(x)

    return lambda x: Layer().apply({}, x)


WRAPPERS = [plainly, in_scan, in_scan_over, in_cond, in_remat, in_jit, batched, in_equinox, in_flax]
