"""Shadow arithmetic: every floating value of a program beside its twin in float64.

The twin follows the program that runs: it branches, rounds, sorts and selects where the working values do, so that the
two differ by rounding and range alone (running, windowed and cross-device extrema, `cummax`, `reduce_window_max`, `pmax`,
take the twin's own at near ties). Memory checkers and NSan (Courbet, CC 2021) shadow in the same way.

A rule says how the outputs of one primitive are made in high precision. Rules are grouped by what the primitive does
to its operands, and registered on the line below the group; a primitive without a rule is evaluated plainly, its twin
starts anew from the working value, and the place is listed (`is_lost`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import _jaxpr
from robustad._interpret import Arithmetic
from robustad._jaxpr import Equation, Path


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shadow:
    """A working array and its twin, float64 or complex128; `high` is None for integers, booleans and keys."""

    working: Array
    high: Array | None


Rule: TypeAlias = Callable[[Equation, Sequence[Shadow], Sequence[Array]], list[Array | None]]
RULES: dict[str, Rule] = {}


def rule(*primitives: str) -> Callable[[Rule], Rule]:
    """Registers a rule for primitives; a second rule for one primitive is an error."""

    def register(f: Rule) -> Rule:
        for name in primitives:
            if name in RULES:
                raise ValueError(f"a second shadow rule for primitive `{name}`")
            RULES[name] = f
        return f

    return register


def wide(dtype: Any) -> np.dtype:
    """The twin's dtype: complex128 for a complex dtype, else float64."""
    return np.dtype(np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64)


def widened(x: Array) -> Array | None:
    """A twin that starts anew from a working array."""
    return _jaxpr.widen(x, wide(x.dtype)) if _jaxpr.is_inexact(x) else None


def lift(x: Any) -> Shadow:
    """An exact array (an input, a constant) as a value."""
    x = jnp.asarray(x)
    return Shadow(x, widened(x))


def high(value: Shadow) -> Array:
    """What a rule computes with: the twin, or the integers themselves."""
    return value.working if value.high is None else value.high


# ------------------------------------------------------------------------------------- the regular primitives


def widened_parameters(eqn: Equation) -> dict[str, Any]:
    """The parameters of a primitive that hold a dtype or a precision, for float64."""
    held = {key: eqn.params.get(key) for key in ("preferred_element_type", "new_dtype", "input_dtype")}
    wider = {k: wide(dtype) for k, dtype in held.items() if dtype is not None and jnp.issubdtype(dtype, jnp.inexact)}
    # A preset of bf16 passes means nothing to float64.
    return wider | ({"precision": None} if "precision" in eqn.params else {})


def _same(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array], **changed: Any) -> list[Array | None]:
    """The same primitive on the twins, its dtype parameters widened."""
    outs = _jaxpr.evaluate(eqn, [high(v) for v in operands], **(widened_parameters(eqn) | changed))
    return [out if _jaxpr.is_inexact(w) else None for out, w in zip(outs, working)]


ELEMENTWISE = frozenset(
    """abs acos acosh add add_any asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt complex conj cos cosh digamma
    div erf erf_inv erfc exp exp2 expm1 igamma igamma_grad_a igammac imag integer_pow lgamma log log1p log2 logistic
    mul neg one_minus_square polygamma polynomial pow real regularized_incomplete_beta rsqrt sin sinh sqrt square sub
    tan tanh zeta""".split()
)
"""Smooth where defined; operands are of the output's shape or scalar."""

MOVING = frozenset(
    """all_gather all_gather_invariant all_to_all broadcast_in_dim concatenate copy device_put dynamic_slice
    dynamic_update_slice gather layout_constraint name optimization_barrier pad pbroadcast ppermute pvary reshape
    reshard rev select_n sharding_constraint slice split squeeze stack stop_gradient tap tile transpose unstack""".split()
)
"""Data moves and is not changed."""

REDUCING = frozenset("reduce_sum reduce_prod psum psum_invariant reduce_scatter".split())
CUMULATIVE = frozenset("cumsum cumprod cummax cummin cumlogsumexp".split())
CONTRACTING = frozenset("dot_general conv_general_dilated ragged_dot_general".split())
WINDOWED = frozenset("reduce_window_sum reduce_window_max reduce_window_min".split())
FACTORING = frozenset(
    """cholesky cholesky_update fft geqrf hessenberg householder_product ormqr symmetric_product triangular_solve
    tridiagonal tridiagonal_solve""".split()
)

rule("pmax", "pmin", *ELEMENTWISE, *MOVING, *REDUCING, *CUMULATIVE, *CONTRACTING, *WINDOWED, *FACTORING)(_same)


# ---------------------------------------------------------------------- primitives that decide or round: follow


@rule("ceil", "floor", "round", "sign", "nextafter", "bitcast_convert_type", "random_gamma", "rng_uniform", "iota")
def _anew(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    """Piecewise constant, or made of bits: the working value is the decision that the program took."""
    return [widened(out) for out in working]


@rule("convert_element_type")
def _convert(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    """A cast between floats rounds, so the twin keeps its value; an integer is cast from the integer."""
    (out,), (value,) = working, operands
    if not _jaxpr.is_inexact(out):
        return [None]
    x = high(value)
    if jnp.issubdtype(x.dtype, jnp.complexfloating) and not jnp.issubdtype(out.dtype, jnp.complexfloating):
        x = lax.real(x)
    return [lax.convert_element_type(x, wide(out.dtype))]


@rule("reduce_precision")
def _unrounded(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    return [operands[0].high]


@rule("max", "min")
def _extremum(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    """The operand that the working program took (the derivative's mask is made of the same comparison)."""
    a, b = operands
    first = a.working > b.working if eqn.primitive.name == "max" else a.working < b.working
    taken = jnp.where(first | (a.working != a.working), high(a), high(b))
    return [jnp.where(a.working == b.working, _jaxpr.evaluate(eqn, [high(a), high(b)])[0], taken)]


@rule("clamp")
def _clamped(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    """The operand that the working program took."""
    low, x, top = operands
    inside = jnp.where(x.working > top.working, high(top), high(x))
    return [jnp.where(x.working < low.working, high(low), inside)]


@rule("reduce_max", "reduce_min")
def _extreme(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    """Among the elements that the working program took; among all where it took none, having met a NaN."""
    (value,), axes = operands, eqn.params["axes"]
    taken = value.working == lax.expand_dims(working[0], axes)
    beyond = -jnp.inf if eqn.primitive.name == "reduce_max" else jnp.inf
    kept = taken | ~jnp.any(taken, axes, keepdims=True)
    return list(_jaxpr.evaluate(eqn, [jnp.where(kept, high(value), beyond)]))


@rule("rem")
def _remainder(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    """x - q y with the quotient q of the working program."""
    a, b = operands
    x, y, r = (widened(v) for v in (a.working, b.working, working[0]))
    quotient = jnp.round((x - r) / y)
    return [jnp.where(quotient == 0, high(a), high(a) - quotient * high(b))]


@rule("sort")
def _sort(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    axis, shape = eqn.params["dimension"], operands[0].working.shape
    places = lax.broadcasted_iota(jnp.int32, shape, axis)
    *_, order = _jaxpr.evaluate(eqn, [*(v.working for v in operands), places])
    return [None if v.high is None else jnp.take_along_axis(v.high, order, axis) for v in operands]


@rule("top_k", "approx_top_k")
def _top_k(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    axis = eqn.params.get("axis", eqn.params.get("reduction_dimension", -1))
    return [jnp.take_along_axis(high(operands[0]), working[1], axis), None]


@rule("select_and_scatter_add", "select_and_gather_add")
def _pooled(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    """The derivatives of pooling: positions come from the working operand."""
    values, operand = operands
    return list(_jaxpr.evaluate(eqn, [high(values), widened(operand.working)]))


# ----------------------------------------------------------------------- primitives that carry a program of their own


@rule("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
def _scatter(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    update = eqn.params["update_jaxpr"]
    if update is None:
        return _same(eqn, operands, working)
    retyped = _jaxpr.retype(update, wide(working[0].dtype)).jaxpr
    return _same(eqn, operands, working, update_jaxpr=retyped, update_consts=())


@rule("reduce", "reduce_window")
def _reduce(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    retyped = _jaxpr.retype(eqn.params["jaxpr"], wide(working[0].dtype))
    return _same(eqn, operands, working, jaxpr=retyped)


# ------------------------------------------------------------------------------- factorizations with free signs


def _aligned(x: Array, like: Array, axis: int) -> Array:
    """The sign (phase) that makes `x` agree with `like` along an axis."""
    overlap = jnp.sum(like * jnp.conj(x), axis, keepdims=True)
    size = jnp.abs(overlap)
    return jnp.where(size == 0, jnp.ones_like(overlap), overlap / jnp.where(size == 0, 1.0, size))


@rule("eigh")
def _eigh(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    matrices = operands[0].working.ndim
    return [
        out if out is None or out.ndim < matrices else out * _aligned(out, _jaxpr.widen(w, out.dtype), -2)
        for out, w in zip(_same(eqn, operands, working), working)
    ]


@rule("svd")
def _svd(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    outs = _same(eqn, operands, working)
    if len(outs) == 1 or any(out is None for out in outs):
        return outs
    s, u, vt = outs
    sign = _aligned(u, _jaxpr.widen(working[1], u.dtype), -2)
    k = s.shape[-1]
    turned = jnp.conj(jnp.swapaxes(sign, -1, -2))[..., :k, :]
    vt = vt.at[..., :k, :].multiply(turned) if vt.shape[-2] > k else vt * turned
    return [s, u * sign, vt]


@rule("lu")
def _lu(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    """The factors of the matrix with its rows in the order that the working program pivoted them to."""
    order = working[2]
    return [_eliminated(jnp.take_along_axis(high(operands[0]), order[..., None], -2)), None, None]


def _eliminated(matrix: Array) -> Array:
    """L and U, packed, by elimination without pivoting."""
    rows, columns = (lax.broadcasted_iota(np.int32, matrix.shape, matrix.ndim - k) for k in (2, 1))

    def step(k: Array, a: Array) -> Array:
        row, column = lax.dynamic_index_in_dim(a, k, -2), lax.dynamic_index_in_dim(a, k, -1)
        pivot = lax.dynamic_index_in_dim(row, k, -1)
        factor = jnp.where(pivot == 0, column, column / pivot)
        below = jnp.where(columns > k, a - factor * row, jnp.where(columns == k, factor, a))
        return jnp.where(rows > k, below, a)

    return lax.fori_loop(0, min(matrix.shape[-2:]), step, matrix)


@rule("qr")
def _qr(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    """With its columns in the order that the working program pivoted them to, and the signs that it gave to Q's."""
    matrix, pivots = high(operands[0]), working[2:]
    if pivots:
        matrix = jnp.take_along_axis(matrix, pivots[0][..., None, :], -1)
    q, r = _jaxpr.evaluate(eqn, [matrix], pivoting=False)
    sign = _aligned(q, _jaxpr.widen(working[0], q.dtype), -2)
    return [q * sign, jnp.conj(jnp.swapaxes(sign, -1, -2)) * r, *(None for _ in pivots)]


@rule("eig")
def _eig(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> list[Array | None]:
    """Beside each working eigenvalue the nearest one, beside its vectors that one's, in the same phase."""
    values, *vectors = _jaxpr.evaluate(eqn, [high(operands[0])])
    near, *like = (_jaxpr.widen(w, values.dtype) for w in working)
    order = jnp.argmin(jnp.abs(near[..., :, None] - values[..., None, :]), -1)
    taken = [jnp.take_along_axis(v, order[..., None, :], -1) for v in vectors]
    return [jnp.take_along_axis(values, order, -1), *(v * _aligned(v, w, -2) for v, w in zip(taken, like))]


# ---------------------------------------------------------------------------------------------- the arithmetic


def shadowed(eqn: Equation, operands: Sequence[Shadow]) -> tuple[list[Array], list[Array | None]]:
    """The working outputs of an equation and their twins."""
    working = _jaxpr.evaluate(eqn, [v.working for v in operands])
    if not any(_jaxpr.is_inexact(out) for out in working):
        return working, [None] * len(working)
    if is_lost(eqn) or all(v.high is None for v in operands):
        f: Rule = _convert if eqn.primitive.name == "convert_element_type" else _anew
        return working, f(eqn, operands, working)
    return working, RULES[eqn.primitive.name](eqn, operands, working)


def is_lost(eqn: Equation) -> bool:
    """Whether the shadow is lost at an equation: no rule for its primitive, and floating values that pass through."""
    passes = any(_jaxpr.is_inexact(v) for v in eqn.invars) and any(_jaxpr.is_inexact(v) for v in eqn.outvars)
    return passes and eqn.primitive.name not in RULES


class Shadowed(Arithmetic[Shadow]):
    """What shadow walks have in common."""

    def lift(self, x: Any) -> Shadow:
        return lift(x)

    def plain(self, value: Shadow) -> Array:
        return value.working


@dataclasses.dataclass(frozen=True)
class ShadowArithmetic(Shadowed):
    """The plain shadow walk. It watches the equations whose terms' size is asked for (see `terms_size`), and counts how
    often the twins would decide otherwise than the working values in `decisions`."""

    terms: frozenset[Path] = frozenset()
    decisions: frozenset[Path] = frozenset()
    per_iteration: frozenset[tuple[Path, Path, int]] = frozenset()
    """(watched path, loop, length): there, the record of each iteration of that loop is kept by itself."""
    last_only: frozenset[tuple[Path, Path]] = frozenset()
    """(watched path, loop): there, the record of the last iteration counts, for a carry that is not a running sum."""

    @property
    def watched(self) -> frozenset[Path]:
        return self.terms | self.decisions

    def equation(self, eqn: Equation, operands: Sequence[Shadow], path: Path) -> tuple[list[Shadow], Any]:
        working, highs = shadowed(eqn, operands)
        record = terms_size(eqn, operands, highs) if path in self.terms else None
        if path in self.decisions:
            record = otherwise(eqn, operands, working)
        return [Shadow(w, h) for w, h in zip(working, highs)], record

    def blank(self, path: Path, at: Path) -> Array:
        if path in self.decisions:
            return jnp.zeros(2, np.float64)
        lengths = [n for watched, loop, n in self.per_iteration if watched == path and loop[: len(at)] == at]
        return jnp.zeros(lengths[:1], np.float64)

    def fold(self, path: Path, at: Path, record: Array, new: Array, iteration: Array) -> Array:
        if (path, at) in self.last_only:
            return new
        return record + new if record.shape == new.shape else record.at[iteration].add(new)


DECIDING = frozenset("lt le gt ge eq ne floor ceil round sign argmax argmin convert_element_type".split())
"""Primitives that jump: what they make of the twins need not be what they make of the working values."""


def otherwise(eqn: Equation, operands: Sequence[Shadow], working: Sequence[Array]) -> Array:
    """How many elements of a decision the twins would take otherwise, and the sum of what was decided, in float64."""
    (own,) = _jaxpr.evaluate(eqn, [high(v) for v in operands])
    differ = jnp.sum(own != working[0].astype(own.dtype), dtype=np.float64)
    return jnp.stack([differ, jnp.sum(working[0], dtype=np.float64)])


def terms_size(eqn: Equation, operands: Sequence[Shadow], highs: Sequence[Array | None]) -> Array:
    r"""\(\lVert \sum_i |t_i| \rVert_2\) over the outputs of a sum \(\sum_i t_i\), scaled against overflow, in float64."""
    name = eqn.primitive.name
    if name not in CONTRACTING and name not in ("reduce_sum", "scatter-add", "cumsum"):
        return jnp.linalg.norm(jnp.abs(next(h for h in highs if h is not None)).ravel())
    scales = [jnp.ones(()) if v.high is None else jnp.max(jnp.abs(v.high), initial=0.0) for v in operands]
    safe = [jnp.where((s > 0) & jnp.isfinite(s), s, 1.0) for s in scales]
    if name in CONTRACTING:  # a product's size needs no more than float32
        low = [v.working if v.high is None else jnp.abs(v.high / s).astype(jnp.float32) for v, s in zip(operands, safe)]
        (total,) = _jaxpr.evaluate(eqn, low, preferred_element_type=np.dtype(np.float32), precision=None)
        return jnp.linalg.norm(total.astype(np.float64).ravel()) * safe[0] * safe[1]
    low = [v if v.high is None else Shadow(v.working, jnp.abs(v.high)) for v in operands]
    (total,) = RULES[name](eqn, low, [v.working for v in operands][:1])
    return jnp.linalg.norm((total / safe[-1]).ravel()) * safe[-1]
