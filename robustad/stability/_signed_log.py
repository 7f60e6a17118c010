r"""Numbers as a sign and the logarithm of a magnitude.

A zero has no logarithm, and a derivative through :math:`\log|v|` cannot say what happens at v = 0. So a number is
:math:`v = s\, e^x` with s = ±1, and at zero s = 0 with a finite x. A zero's derivative is carried by s, in units of
:math:`e^x`; every other number's by x. So the product of a zero and others has the derivative product of the others,
and sums that cancel have the derivative of a sum.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import _normalizer as normalizer
from ._arguments import Axes, Axis, axes_of, working
from ._compensated_sum import compensated_sum
from ._custom_jvp import custom_jvp
from ._log_exp import log1mexp
from ._logistic import log1pexp


@custom_jvp
def _split(v: Array, c: Array) -> tuple[Array, Array]:
    """(s, x) of v exp(c)."""
    some = v != 0
    return jnp.sign(v), c + jnp.log(jnp.abs(jnp.where(some, v, 1)))


@_split.defjvp
def _split_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    (v, c), (dv, dc) = primals, tangents
    zero = v == 0
    relative = dv / jnp.where(zero, 1, v)
    return _split(v, c), (jnp.where(zero, dv, 0), dc + jnp.where(zero, 0, relative))


@functools.partial(custom_jvp, nondiff_argnums=(2,))
def _sum(s: Array, x: Array, axes: Axes) -> tuple[Array, Array]:
    """(s, x) of Σ s exp(x), the axes kept."""
    c = _sum_shift(s, x, axes)
    value = jnp.sum(s * normalizer.terms(x, c), axes, keepdims=True)
    sign, log = _split(value, c)
    return _infinite_sum(s, x, axes, sign, log)


def _infinite_sum(s: Array, x: Array, axes: Axes, sign: Array, log: Array) -> tuple[Array, Array]:
    """With infinite terms: theirs if they agree in sign, else NaN."""
    infinite = (x == jnp.inf) & (s != 0)
    some = jnp.any(infinite, axes, keepdims=True)
    up, down = (jnp.any(infinite & (s == one), axes, keepdims=True) for one in (1, -1))
    direction = jnp.where(up & down, jnp.nan, jnp.where(up, 1, -1)).astype(sign.dtype)
    return jnp.where(some, direction, sign), jnp.where(some, jnp.inf, log)


def _sum_shift(s: Array, x: Array, axes: Axes) -> Array:
    lowest = jnp.finfo(x.dtype).min
    m = normalizer.maximum(jnp.where(s == 0, -jnp.inf, x), axes)
    m = jnp.where(m == lowest, normalizer.maximum(x, axes), m)  # of zeros alone, for their derivatives
    return normalizer.shift(jnp.where(m == lowest, 0, m))


def _sum_tangent(terms: Any, tangents: Any, value: tuple[Array, Array], axes: Axes) -> tuple[Array, Array]:
    """The tangents of a sum: of one that is zero in units of exp(log)."""
    (s, x), (ds, dx), (sign, log) = terms, tangents, value
    weights = jnp.exp(jnp.where(log == jnp.inf, jnp.where(x == jnp.inf, 0, -jnp.inf), x - log))
    change = jnp.sum(weights * (ds + s * dx), axes, keepdims=True)
    zero = sign == 0
    return jnp.where(zero, change, 0), jnp.where(zero, 0, sign * change)


@_sum.defjvp
def _sum_jvp(axes: Axes, primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    value = _sum(*primals, axes)
    return value, _sum_tangent(primals, tangents, value, axes)


@custom_jvp
def _add(s: Array, x: Array, t: Array, y: Array) -> tuple[Array, Array]:
    """s exp(x) + t exp(y), of numbers of opposite sign by log(1 - exp(-|x - y|))."""
    swap = (s == 0) | ((t != 0) & (y > x))
    s, x, t, y = (jnp.where(swap, a, b) for a, b in ((t, s), (y, x), (s, t), (x, y)))
    d = jnp.where((x == y) | (t == 0), 0, x - y)
    cancelled = (s == -t) & (d == 0)
    more = jnp.where(s == t, log1pexp(-d), log1mexp(jnp.where(d == 0, 1, d)))
    log = jnp.where((t == 0) | cancelled, x, x + more)
    undefined = cancelled & (s != 0) & (x == jnp.inf)
    return jnp.where(undefined, jnp.nan, jnp.where(cancelled, 0, s)), log


@_add.defjvp
def _add_jvp(primals, tangents):
    s, x, t, y = primals
    value = _add(*primals)
    pair = [jnp.stack(z) for z in ((s, t), (x, y), (tangents[0], tangents[2]), (tangents[1], tangents[3]))]
    ds, dx = _sum_tangent(pair[:2], pair[2:], (value[0][None], value[1][None]), (0,))
    return value, (ds[0], dx[0])


@custom_jvp
def _infinity_at_zero(s: Array) -> Array:
    return jnp.where(s == 0, jnp.inf, 0).astype(s.dtype)


@_infinity_at_zero.defjvp
def _infinity_at_zero_jvp(primals: tuple[Array], tangents: tuple[Array]):
    """The derivative of a reciprocal falls to -∞ at zero."""
    (s,), (ds,) = primals, tangents
    return _infinity_at_zero(s), jnp.where(s == 0, -jnp.inf, 0) * ds


@functools.partial(jax.tree_util.register_dataclass, data_fields=["sign", "exponent"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class SignedLog:
    r"""An array of numbers :math:`s\, e^x`, whose range is that of x: magnitudes up to :math:`e^{10^{38}}`.

    Made by `SignedLog.from_array` or `SignedLog.from_log`; `to_array` gives the plain numbers back, `log` the
    logarithm of the magnitudes. The operators + - * / ** @, abs, comparisons, indexing and the usual array methods
    work, also with plain arrays and scalars on one side, under jit, vmap and scan. Derivatives are those of the
    numbers represented.

    An operation's relative error is that of the exponent it makes: about :math:`|x|` units of rounding, so that
    numbers near 1 keep all digits, and those of 10^30 in float32 about five. Products sum their exponents with
    compensation. Second derivatives in the argument of `from_array` form its inverse square, which must be in the
    range: from 1e-19 on in float32. Division by zero gives an infinity with the sign of the numerator, 0/0 and ∞ - ∞
    NaN. At infinities the derivative is NaN.

    Attributes:
      sign: 1, -1, or 0 for zero.
      exponent: x, the logarithm of the magnitude; where the number is zero a finite number, the unit of its derivative.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> x = jnp.array([1e-30, -1e-30, 1e30, 1e30])
    >>> print(st.SignedLog.from_array(x).prod().to_array())
    -1.0
    >>> print(jax.grad(lambda x: st.SignedLog.from_array(x).prod().to_array())(jnp.array([0.0, -3.0, 4.0])))
    [-12.   0.   0.]
    """

    sign: Array
    exponent: Array

    # ---- making and reading

    @classmethod
    def from_array(cls, x: ArrayLike) -> SignedLog:
        """The numbers of a real array; narrow floats as float32."""
        v, _ = working("SignedLog.from_array", x, "x", "A sign is of a real number: give `x.real` and `x.imag`.")
        return cls(*_split(v, jnp.zeros_like(v)))

    @classmethod
    def from_log(cls, log: ArrayLike, sign: ArrayLike = 1) -> SignedLog:
        """sign · exp(log), where sign is -1, 0 or 1; a logarithm of -inf is a zero."""
        x, _ = working("SignedLog.from_log", log, "log", "Give its real part, and as `sign` that of the number.")
        s = jnp.asarray(sign, x.dtype)
        x, s = jnp.broadcast_arrays(x, s)
        zero = (x == -jnp.inf) | (s == 0)
        return cls(jnp.where(zero, 0, s), jnp.where(zero, 0, x))

    def to_array(self) -> Array:
        """The plain numbers; those out of range as 0 or ±inf."""
        most = math.log(float(jnp.finfo(self.dtype).max)) * (1 - 1e-6)
        return self.sign * jnp.exp(jnp.where(self.sign == 0, jnp.minimum(self.exponent, most), self.exponent))

    @property
    def log(self) -> Array:
        """The logarithm of the magnitude: -inf for zero."""
        return jnp.where(self.sign == 0, -jnp.inf, jnp.where(jnp.isnan(self.sign), jnp.nan, self.exponent))

    # ---- shapes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.exponent.shape

    @property
    def ndim(self) -> int:
        return self.exponent.ndim

    @property
    def size(self) -> int:
        return self.exponent.size

    @property
    def dtype(self) -> jnp.dtype:
        return self.exponent.dtype

    @property
    def T(self) -> SignedLog:
        return self.transpose()

    def __len__(self) -> int:
        return len(self.exponent)

    def __getitem__(self, index: Any) -> SignedLog:
        return self._map(lambda z: z[index])

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def reshape(self, *shape: Any) -> SignedLog:
        return self._map(lambda z: z.reshape(*shape))

    def ravel(self) -> SignedLog:
        return self.reshape(-1)

    def transpose(self, *axes: Any) -> SignedLog:
        return self._map(lambda z: z.transpose(*axes))

    def squeeze(self, axis: Axis = None) -> SignedLog:
        return self._map(lambda z: jnp.squeeze(z, axis))

    def broadcast_to(self, shape: tuple[int, ...]) -> SignedLog:
        return self._map(lambda z: jnp.broadcast_to(z, shape))

    def _map(self, function: Any) -> SignedLog:
        return SignedLog(function(self.sign), function(self.exponent))

    # ---- arithmetic

    __array_ufunc__ = None  # numpy arrays on the left leave the operation to us

    def __neg__(self) -> SignedLog:
        return SignedLog(-self.sign, self.exponent)

    def __abs__(self) -> SignedLog:
        return SignedLog(jnp.abs(self.sign), self.exponent)

    def __mul__(self, other: Any) -> SignedLog:
        a, b = _both(self, other)
        undefined = (a.sign == 0) & (b.exponent == jnp.inf) | (a.exponent == jnp.inf) & (b.sign == 0)
        return SignedLog(jnp.where(undefined, jnp.nan, a.sign * b.sign), a.exponent + b.exponent)

    def reciprocal(self) -> SignedLog:
        return SignedLog(jnp.where(self.sign == 0, 1, self.sign), _infinity_at_zero(self.sign) - self.exponent)

    def __truediv__(self, other: Any) -> SignedLog:
        a, b = _both(self, other)
        return a * b.reciprocal()

    def __add__(self, other: Any) -> SignedLog:
        a, b = _both(self, other)
        return SignedLog(*_add(a.sign, a.exponent, b.sign, b.exponent))

    def __sub__(self, other: Any) -> SignedLog:
        a, b = _both(self, other)
        return a + (-b)

    def __pow__(self, power: ArrayLike) -> SignedLog:
        """Real powers; of negative numbers whole ones, else NaN."""
        p = jnp.asarray(power, self.dtype)
        negative, shape = p < 0, jnp.broadcast_shapes(p.shape, self.shape)
        inverse = SignedLog(*(jnp.where(negative, z, 1) for z in (self.sign, self.exponent))).reciprocal()
        pairs = zip((inverse.sign, inverse.exponent), (self.sign, self.exponent))
        s, x = (jnp.where(negative, i, z) for i, z in pairs)
        # the sign of a power does not change with it
        fixed = lax.stop_gradient(jnp.abs(p))
        sign = lax.integer_pow(s, abs(power)) if isinstance(power, int) else jnp.power(s, fixed)
        exponent = jnp.where(p == 0, 0, x * jnp.abs(p))
        return SignedLog(jnp.broadcast_to(sign, shape), jnp.broadcast_to(exponent, shape))

    def __rpow__(self, base: ArrayLike) -> SignedLog:
        """A number to these powers, which must be in the range of floats."""
        return _lift(base, self.dtype) ** self.to_array()

    def __radd__(self, other: Any) -> SignedLog:
        return self + other

    def __rmul__(self, other: Any) -> SignedLog:
        return self * other

    def __rsub__(self, other: Any) -> SignedLog:
        return _lift(other, self.dtype) - self

    def __rtruediv__(self, other: Any) -> SignedLog:
        return _lift(other, self.dtype) / self

    def __matmul__(self, other: Any) -> SignedLog:
        return self.matmul(other)

    def __rmatmul__(self, other: Any) -> SignedLog:
        return _lift(other, self.dtype).matmul(self)

    # ---- reductions

    def sum(self, axis: Axis = None, keepdims: bool = False) -> SignedLog:
        axes = axes_of("SignedLog.sum", axis, self.ndim)
        return SignedLog(*_sum(self.sign, self.exponent, axes))._keep(axes, keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> SignedLog:
        axes = axes_of("SignedLog.mean", axis, self.ndim)
        return self.sum(axis, keepdims) / float(math.prod(self.shape[i] for i in axes))

    def prod(self, axis: Axis = None, keepdims: bool = False) -> SignedLog:
        """The product; the exponents are summed with compensation."""
        axes = axes_of("SignedLog.prod", axis, self.ndim)
        sign = jnp.prod(self.sign, axes, keepdims=True)
        return SignedLog(sign, compensated_sum(self.exponent, axes, keepdims=True))._keep(axes, keepdims)

    def _keep(self, axes: Axes, keepdims: bool) -> SignedLog:
        return self if keepdims else self.squeeze(axes)

    def dot(self, other: Any) -> SignedLog:
        """The sum of products along the last axis of both."""
        return (self * other).sum(-1)

    def matmul(self, other: Any) -> SignedLog:
        """The matrix product, as `jnp.matmul` shapes it; one column of the result at a time."""
        a, b = self, _lift(other, self.dtype)
        if not a.ndim or not b.ndim or a.shape[-1] != b.shape[max(b.ndim - 2, 0)]:
            raise ValueError(
                f"SignedLog.matmul: shapes {a.shape} and {b.shape}; expected (..., n, k) and (..., k, m), or vectors (k,)."
            )
        if b.ndim == 1:
            return a.dot(b)
        columns = b._map(lambda z: jnp.moveaxis(z, -1, 0))
        vector = a.ndim == 1

        def column(c: SignedLog) -> SignedLog:
            return a.dot(c if vector else c._map(lambda z: z[..., None, :]))

        return lax.map(column, columns)._map(lambda z: jnp.moveaxis(z, 0, -1))

    # ---- comparison

    def _compare(self, other: Any, rule: Any) -> Array:
        a, b = _both(self, other)
        order = jnp.where(a.sign == b.sign, a.sign * a.exponent, a.sign)
        than = jnp.where(a.sign == b.sign, b.sign * b.exponent, b.sign)
        return rule(order, than)

    def __lt__(self, other: Any) -> Array:
        return self._compare(other, jnp.less)

    def __le__(self, other: Any) -> Array:
        return self._compare(other, jnp.less_equal)

    def __gt__(self, other: Any) -> Array:
        return self._compare(other, jnp.greater)

    def __ge__(self, other: Any) -> Array:
        return self._compare(other, jnp.greater_equal)

    def __eq__(self, other: Any) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._compare(other, jnp.equal)

    def __ne__(self, other: Any) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._compare(other, jnp.not_equal)

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _lift(x: Any, dtype: Any) -> SignedLog:
    return x if isinstance(x, SignedLog) else SignedLog.from_array(jnp.asarray(x, dtype))


def _both(a: SignedLog, b: Any) -> tuple[SignedLog, SignedLog]:
    b = _lift(b, a.dtype)
    dtype = jnp.promote_types(a.dtype, b.dtype)
    shape = jnp.broadcast_shapes(a.shape, b.shape)
    x, y = (z._map(lambda w: jnp.broadcast_to(w.astype(dtype), shape)) for z in (a, b))
    return x, y
