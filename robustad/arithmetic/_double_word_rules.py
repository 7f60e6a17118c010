"""What primitives do to double words: those that work element by element, cast, or move data.

A value is a `DoubleWord`: of float32 words for every real dtype up to float32, of float64 words for float64; with `lo` None
for everything else. Nothing is rounded to the program's dtypes but where the program asks for it: a cast to a narrower
float, `reduce_precision`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import _jaxpr
from robustad._jaxpr import Equation
from robustad.arithmetic import _double_word as dw
from robustad.arithmetic import _double_word_functions as functions
from robustad.arithmetic import _double_word_trigonometry as trigonometry
from robustad.arithmetic._double_word import DoubleWord
from robustad.stability._error_free import opaque

Rule: TypeAlias = Callable[[Equation, Sequence[DoubleWord]], list[DoubleWord]]
RULES: dict[str, Rule] = {}


def rule(*primitives: str) -> Callable[[Rule], Rule]:
    """Registers a rule for primitives; a second rule for one primitive is an error."""

    def register(f: Rule) -> Rule:
        for name in primitives:
            if name in RULES:
                raise ValueError(f"a second double-word rule for primitive `{name}`")
            RULES[name] = f
        return f

    return register


# ------------------------------------------------------------------------------------ to and from plain arrays


def is_real(x: Any) -> bool:
    """Whether a variable or array is of a real floating dtype."""
    dtype = getattr(getattr(x, "aval", x), "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def word(dtype: Any) -> np.dtype:
    """The dtype of the words of a real floating dtype."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def lift(x: Any) -> DoubleWord:
    """An exact array (an input, a constant) as a value."""
    x = jnp.asarray(x)
    return dw.single(lax.convert_element_type(x, word(x.dtype))) if is_real(x) else DoubleWord(x, None)


def rounded(value: DoubleWord, dtype: Any) -> Array:
    """A value as a plain array of the program's dtype, rounded once."""
    if value.lo is None or value.hi.dtype == dtype:
        return value.hi
    return lax.convert_element_type(_rounded_to_odd(value), dtype)


def _rounded_to_odd(value: DoubleWord) -> Array:
    """The high word, its last bit set where the value is not that word: rounded again, it gives what one rounding gives."""
    integer = jnp.dtype(f"int{jnp.finfo(value.hi.dtype).bits}")
    bits = lax.bitcast_convert_type(value.hi, integer)
    towards_zero = (value.lo != 0) & ((value.lo < 0) == (value.hi > 0))
    bits = jnp.where(value.lo != 0, (bits - towards_zero.astype(integer)) | integer.type(1), bits)
    return lax.bitcast_convert_type(bits, value.hi.dtype)


def narrowed(value: DoubleWord, dtype: Any) -> DoubleWord:
    """A value in words of the program's own dtype."""
    if value.lo is None or value.hi.dtype == dtype:
        return value
    high = rounded(value, dtype)
    rest = dw.sub(value, dw.single(lax.convert_element_type(high, value.hi.dtype)))
    return DoubleWord(high, jnp.where(jnp.isfinite(high), rounded(rest, dtype), jnp.zeros_like(high)))


def widened(value: DoubleWord) -> DoubleWord:
    """A pair of a user's, of any dtype, as a value."""
    dtype = word(value.hi.dtype)
    high, low = (opaque(lax.convert_element_type(jnp.asarray(x), dtype)) for x in (value.hi, value.lo))
    s = dw.exact_sum(high, low)  # the user's words may overlap
    return dw.where(jnp.isfinite(s.hi) & (low != 0), s, DoubleWord(high, jnp.zeros_like(low)))


# ----------------------------------------------------------------------------------------------- elementwise


def _elementwise(f: Callable[..., DoubleWord]) -> Rule:
    def apply(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
        return [f(*_same_shape(eqn, operands))]

    return apply


def _same_shape(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    """Scalars beside arrays broadcast, and integers beside floats as floats."""
    shape = _jaxpr.aval(eqn.outvars[0]).shape
    dtype = next(v.hi.dtype for v in operands if v.lo is not None)
    floats = [v if v.lo is not None else from_integer(v.hi, dtype) for v in operands]
    return [jax.tree.map(lambda x: jnp.broadcast_to(x, shape), v) for v in floats]


def _sign(x: DoubleWord) -> DoubleWord:
    return DoubleWord(jnp.sign(x.hi), jnp.zeros_like(x.lo))


def _one_minus_square(x: DoubleWord) -> DoubleWord:
    one = dw.constant(1, x)
    return dw.mul(dw.sub(one, x), dw.add(one, x))


for _name, _function in {
    "abs": dw.absolute,
    "acos": trigonometry.acos,
    "acosh": functions.acosh,
    "add": dw.add,
    "add_any": dw.add,
    "asin": trigonometry.asin,
    "asinh": functions.asinh,
    "atan": trigonometry.atan,
    "atan2": trigonometry.atan2,
    "atanh": functions.atanh,
    "cbrt": dw.cbrt,
    "ceil": dw.ceil,
    "cos": trigonometry.cos,
    "cosh": functions.cosh,
    "div": dw.div,
    "erf": functions.erf,
    "exp": functions.exp,
    "exp2": functions.exp2,
    "expm1": functions.expm1,
    "floor": dw.floor,
    "log": functions.log,
    "log1p": functions.log1p,
    "logistic": functions.logistic,
    "max": dw.maximum,
    "min": dw.minimum,
    "mul": dw.mul,
    "neg": dw.neg,
    "one_minus_square": _one_minus_square,
    "pow": functions.power,
    "rem": dw.remainder,
    "rsqrt": lambda x: dw.reciprocal(dw.sqrt(x)),
    "sign": _sign,
    "sin": trigonometry.sin,
    "sinh": functions.sinh,
    "sqrt": dw.sqrt,
    "square": dw.square,
    "sub": dw.sub,
    "tan": trigonometry.tan,
    "tanh": functions.tanh,
    "clamp": lambda low, x, high: dw.minimum(dw.maximum(x, low), high),
}.items():
    rule(_name)(_elementwise(_function))


@rule("integer_pow")
def _integer_power(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    return [dw.integer_power(operands[0], eqn.params["y"])]


@rule("round")
def _round(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    return [dw.nearest(operands[0], int(eqn.params["rounding_method"]) == 1)]


_COMPARISONS: dict[str, Callable[[DoubleWord, DoubleWord], Array]] = {
    "eq": dw.equal,
    "ne": lambda x, y: ~dw.equal(x, y),
    "lt": dw.less,
    "gt": lambda x, y: dw.less(y, x),
    "le": lambda x, y: dw.less(x, y) | dw.equal(x, y),
    "ge": lambda x, y: dw.less(y, x) | dw.equal(x, y),
}


@rule(*_COMPARISONS)
def _compare(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    return [DoubleWord(_COMPARISONS[eqn.primitive.name](*_same_shape(eqn, operands)), None)]


@rule("is_finite")
def _is_finite(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    return [DoubleWord(jnp.isfinite(operands[0].hi), None)]


# ---------------------------------------------------------------------------------------------------- casts


def from_integer(x: Array, dtype: np.dtype) -> DoubleWord:
    """An integer or boolean, exactly where two words hold it: summed from pieces that one word holds."""
    if x.dtype == bool:
        return dw.single(lax.convert_element_type(x, dtype))
    bits, piece = jnp.iinfo(x.dtype).bits, jnp.finfo(dtype).nmant - 1
    total, rest = dw.single(jnp.zeros_like(x, dtype)), x
    for shift in reversed(range(0, bits, piece)):
        top = (rest >> shift) << shift
        rest = rest - top
        # A power of two apart, so that the piece by itself is small and converts exactly.
        total = dw.add(total, dw.single(lax.convert_element_type(top >> shift, dtype) * dtype.type(2.0**shift)))
    return total


@rule("convert_element_type")
def _convert(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    """To a narrower float: rounds, as the program asks. To an integer: cut off."""
    (value,), new = operands, _jaxpr.aval(eqn.outvars[0]).dtype
    old = _jaxpr.aval(eqn.invars[0]).dtype
    if value.lo is None:
        return [from_integer(value.hi, word(new))]
    if not jnp.issubdtype(new, jnp.inexact):
        return [DoubleWord(_to_integer(value, new), None)]
    if jnp.finfo(new).nmant < jnp.finfo(old).nmant:
        return [lift(rounded(value, new))]
    if value.hi.dtype == word(new):
        return [value]
    return [widened(DoubleWord(*(lax.convert_element_type(x, word(new)) for x in value)))]


def _to_integer(value: DoubleWord, dtype: Any) -> Array:
    if dtype == np.bool_:
        return value.hi != 0
    whole = dw.truncate(value)
    high = lax.convert_element_type(whole.hi, dtype)
    fits = jnp.abs(whole.hi) < float(jnp.iinfo(dtype).max)
    return jnp.where(fits, high + lax.convert_element_type(whole.lo, dtype), high)


@rule("reduce_precision")
def _reduce_precision(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    plain = rounded(operands[0], _jaxpr.aval(eqn.invars[0]).dtype)
    return [lift(_jaxpr.evaluate(eqn, [plain])[0])]


# ---------------------------------------------------------------------------------------------------- moving


@rule(
    *"""all_gather all_gather_invariant all_to_all broadcast_in_dim concatenate copy copy_p device_put dynamic_slice
    dynamic_update_slice gather layout_constraint name optimization_barrier pad pbroadcast ppermute pvary reshape
    reshard rev scatter select_n sharding_constraint slice split squeeze stack stop_gradient tap tile transpose
    unstack""".split()
)
def moved(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    """Both words move in the same way."""
    changed = {"update_jaxpr": None, "update_consts": ()} if eqn.primitive.name == "scatter" else {}
    high = _jaxpr.evaluate(eqn, [v.hi for v in operands], **changed)
    if eqn.params.get("fill_value") is not None:
        changed = {"fill_value": 0}
    low = _jaxpr.evaluate(eqn, [v.hi if v.lo is None else v.lo for v in operands], **changed)
    # What fills a gather out of bounds is NaN.
    return [
        DoubleWord(h, jnp.where(jnp.isfinite(h), l, jnp.zeros_like(l)) if is_real(v) else None)
        for h, l, v in zip(high, low, eqn.outvars)
    ]
