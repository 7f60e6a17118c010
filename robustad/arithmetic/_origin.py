r"""Origin tracking: every value of the shadow walk carries, element by element, the equation that hurt it most.

The error of an element comes along a path of equations. Its *tag* names the equation on that path at which the most
bits were lost between the operand with the dominating error and the output: the one that amplified, not the one that
shows it. Tags flow as data flows: a gather gathers them, a select selects them, a sum takes that of the term with the
largest error (a running sum or a scatter, that with the largest loss). Where an output is right again (a compensation,
a masked infinity) its tag is dropped. MemorySanitizer tracks the origin of uninitialised memory in the same way
(Stepanov and Serebryany, CGO 2015); Herbgrind (Sanchez-Stern et al., PLDI 2018) follows influences of floating-point
error.

Bits lost of an element: \(\mathrm{clip}(p + \log_2|x - x^*| - \log_2|x^*|, 0, p)\) for a given precision p, with
the logarithms rounded down to exponents.

A tag is one int32, so that the maximum of two tags is the one with the larger loss:

    bits 24-30  bits lost (127: a non-finite value was born)
    bits  7-23  number of the equation, from 1
    bits  4-6   the invalid operation that made a NaN, or 0
    bits  0-3   what happened (`Event`)
"""

import dataclasses
import enum
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import _jaxpr
from robustad._interpret import Arithmetic
from robustad._jaxpr import Equation, Path
from robustad.arithmetic import _shadow
from robustad.arithmetic._edges import within_range
from robustad.arithmetic._shadow import Shadow


class Event(enum.IntEnum):
    """What happened at an equation, to one element."""

    OVERFLOW = 1
    UNDERFLOW = 2
    CANCELLATION = 3
    ABSORPTION = 4
    AMPLIFICATION = 5
    POLE = 6
    INVALID = 7
    OUT_OF_BOUNDS = 8


class Invalid(enum.IntEnum):
    """The six classes of invalid operation."""

    ZERO_TIMES_INF = 1
    INF_MINUS_INF = 2
    ZERO_BY_ZERO = 3
    INF_BY_INF = 4
    LOG_ZERO = 5
    NEGATIVE = 6


_BORN = 127
LOSS, _SITE, _CLASS = 24, 7, 4
MOST_SITES = 2**17 - 1

_ADDING = frozenset(
    "add add_any sub reduce_sum psum psum_invariant reduce_scatter cumsum scatter-add scatter-sub".split()
) | {"dot_general", "conv_general_dilated", "ragged_dot_general", "reduce_window_sum", "select_and_scatter_add"}
_EXTREMAL = frozenset({"reduce_max", "reduce_min"})
_MULTIPLYING = frozenset({"mul", "dot_general", "conv_general_dilated", "reduce_prod", "cumprod", "integer_pow"})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Origin:
    """A shadow value and its tags; `tag` is None where `high` is."""

    working: Array
    high: Array | None
    tag: Array | None
    precision: int = dataclasses.field(metadata={"static": True})

    @property
    def shadow(self) -> Shadow:
        return Shadow(self.working, self.high)

    @functools.cached_property
    def bad(self) -> Array:
        """Where the working value is not finite."""
        return ~jnp.isfinite(self.working)

    @functools.cached_property
    def gap(self) -> Array:
        """|x - x*|, 0 where equal (infinities too), infinite where it is not a number."""
        w, s = _shadow.widened(self.working), self.high
        gap = lax.abs(w - s)
        return jnp.where(w == s, 0.0, jnp.where(gap == gap, gap, jnp.inf))

    @functools.cached_property
    def lost(self) -> Array:
        """Bits lost, int32; `_BORN` where a non-finite value is nobody's mask."""
        wrong = self.gap != 0
        bits = jnp.where(wrong, _fewer(self.gap, lax.abs(self.high), self.precision), 0)
        return jnp.where(self.bad & (wrong | (self.tag > 0)), _BORN, bits)


def _fewer(gap: Array, size: Array, precision: int) -> Array:
    """clip(p + log2(gap / size), 0, p) of float64s > 0, int32, the logarithms rounded down: shifts are cheap."""

    def exponent(x: Array) -> Array:
        return lax.shift_right_logical(lax.bitcast_convert_type(x, np.int64), np.int64(52)).astype(jnp.int32)

    return jnp.clip(precision + exponent(gap) - exponent(size), 0, precision)


def decode(tag: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(equation number, event, invalid class) of tags."""
    tag = np.asarray(tag)
    return (tag >> _SITE) & MOST_SITES, tag & 15, (tag >> _CLASS) & 7


def without_loss(tag: np.ndarray) -> np.ndarray:
    """Tags that tell only where and what, not how much."""
    return tag & ((1 << LOSS) - 1)


@dataclasses.dataclass(frozen=True)
class Inherited:
    """What an output element takes over from its operands (arrays of the output's shape)."""

    tag: Array
    """of the operand element with the dominating error"""
    lost: Array
    """by that element, in bits"""
    bad: Array
    """whether some operand element is not finite"""
    nan: Array
    """whether some operand element is NaN"""
    size: Array
    """the sum of the magnitudes of what is added up (of the largest operand where nothing is)"""


@dataclasses.dataclass(frozen=True)
class OriginArithmetic(Arithmetic[Origin]):
    """The shadow walk with origins. `numbers`: path of an equation to its number, from 1."""

    numbers: dict[Path, int]
    precision: int

    def lift(self, x: Any) -> Origin:
        return lifted(_shadow.lift(x), self.precision)

    def plain(self, value: Origin) -> Array:
        return value.working

    def equation(self, eqn: Equation, operands: Sequence[Origin], path: Path) -> tuple[list[Origin], None]:
        site = lax.add(
            np.int32(self.numbers.get(path, 0)), np.int32(0)
        )  # a tracer inside a loop, where no options are allowed
        step = _traced_step if _jaxpr.is_traced(site) else _single_step
        return step(Recipe(eqn), list(operands), site, self.precision), None


class Recipe:
    """An equation without its place: two that compute alike are equal, and are compiled once."""

    def __init__(self, eqn: Equation):
        self.eqn = eqn
        params = ((k, _identity(v)) for k, v in sorted(eqn.params.items()))
        self.key = (eqn.primitive, _identity(eqn.ctx), *params, *(str(v.aval) for v in eqn.outvars))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _identity(param: Any) -> Any:
    """A parameter as part of a key; one that cannot be compared is like itself alone (the key's owner keeps it alive)."""
    try:
        hash(param)
    except TypeError:
        return id(param)
    return param


def _step(recipe: Recipe, operands: list[Origin], site: Array, precision: int) -> list[Origin]:
    """The outputs of one equation, with their tags."""
    working, highs = _shadow.shadowed(recipe.eqn, [v.shadow for v in operands])
    highs = within_range(recipe.eqn, [v.high for v in operands], highs)
    return tagged(recipe, operands, [lifted(Shadow(w, h), precision) for w, h in zip(working, highs)], site)


def tagged(recipe: Recipe, operands: list[Origin], outs: list[Origin], site: Array) -> list[Origin]:
    """The outputs of an equation with their tags, which they came without."""
    eqn = recipe.eqn
    if all(v.high is None for v in operands) or all(o.high is None for o in outs):
        return outs
    tags = _moved(eqn, operands, outs, site)
    if tags is None:
        tags = [o.tag if o.high is None else judged(eqn, operands, o, site) for o in outs]
    # XLA would fuse a value's whole history into each of its uses, and take minutes to compile it.
    held = lax.optimization_barrier([(o.working, o.high, t) for o, t in zip(outs, tags)])
    return [Origin(w, h, t, o.precision) for o, (w, h, t) in zip(outs, held)]


_traced_step = jax.jit(_step, static_argnums=(0, 3))
# Run once or a few times: compiled quickly rather than well.
_single_step = jax.jit(_step, static_argnums=(0, 3), compiler_options={"xla_backend_optimization_level": 0})


def lifted(value: Shadow, precision: int) -> Origin:
    """A shadow value without a past."""
    tag = None if value.high is None else jnp.zeros(value.high.shape, jnp.int32)
    return Origin(value.working, value.high, tag, precision)


def _moved(
    eqn: Equation, operands: Sequence[Origin], outs: Sequence[Origin], site: Array
) -> Sequence[Array | None] | None:
    """The tags of outputs that are operands moved; None for a primitive that computes."""
    if eqn.primitive.name == "gather":
        places = operands[1].working
        (tag,) = _jaxpr.evaluate(eqn, [operands[0].tag, places], fill_value=0)
        (outside,) = _jaxpr.evaluate(eqn, [jnp.zeros_like(operands[0].tag), places], fill_value=1)
        out_of_bounds = (outside == 1) & jnp.isnan(outs[0].working)
        return [jnp.where(out_of_bounds, (_BORN << LOSS) | (site << _SITE) | int(Event.OUT_OF_BOUNDS), tag)]
    if eqn.primitive.name in _shadow.MOVING:
        moved = _jaxpr.evaluate(eqn, [v.working if v.tag is None else v.tag for v in operands])
        return [None if o.high is None else tag for o, tag in zip(outs, moved)]
    if eqn.primitive.name == "sort":
        axis = eqn.params["dimension"]
        places = lax.broadcasted_iota(jnp.int32, operands[0].working.shape, axis)
        *_, order = _jaxpr.evaluate(eqn, [*(v.working for v in operands), places])
        return [v.tag if v.tag is None else jnp.take_along_axis(v.tag, order, axis) for v in operands]
    return None


def judged(eqn: Equation, operands: Sequence[Origin], out: Origin, site: Array | int) -> Array:
    """The tags of an output: inherited, or this equation's own where it lost more."""
    taken = inherit(eqn, operands, out)
    w = out.working
    # A non-finite value born of finite ones is this equation's, though the twin agrees; a mask passed on is nobody's.
    nobodys = out.bad & (out.gap == 0) & taken.bad & (taken.lost != _BORN)
    lost = jnp.where(out.bad, jnp.where(nobodys, 0, _BORN), out.lost)
    # An operand badly wrong already (a probability that has underflowed) is to blame for the infinity it becomes.
    own = jnp.where(out.bad & (2 * taken.lost >= out.precision) & (taken.tag > 0), 0, lost - taken.lost)
    event, invalid = happened(eqn, operands, out, taken)
    # What an equation loses at every step of a loop adds up.
    before = jnp.where((taken.tag >> _SITE) & MOST_SITES == site, taken.tag >> LOSS, 0)
    mine = (jnp.minimum(own + before, lost) << LOSS) | (site << _SITE) | event
    mine = jnp.where(jnp.isnan(w) | (event == Event.POLE), mine | (invalid << _CLASS), mine)
    # What is inherited cannot have lost more on the way than the output has; the class of a NaN is that of its birth.
    theirs = (jnp.minimum(taken.tag >> LOSS, lost) << LOSS) | (taken.tag & ((1 << LOSS) - 1))
    unnamed = jnp.isnan(w) & ((taken.tag >> _CLASS) & 7 != invalid) & ~taken.nan
    theirs = jnp.where(unnamed, (theirs & ~(7 << _CLASS)) | (invalid << _CLASS), theirs)
    keep = (taken.tag > 0) & ((mine >> LOSS) <= (theirs >> LOSS))
    return jnp.where(lost > 0, jnp.where(keep, theirs, jnp.where(own > 0, mine, 0)), 0)


# ----------------------------------------------------------------------------------- what operands hand down


def inherit(eqn: Equation, operands: Sequence[Origin], out: Origin) -> Inherited:
    """What each element of `out` takes over, by the way in which the primitive's outputs depend on its operands."""
    name = eqn.primitive.name
    floats = [v for v in operands if v.high is not None]
    shape = jnp.shape(out.working)
    pointwise = all(jnp.shape(v.working) in ((), shape) for v in floats)
    if name in _shadow.REDUCING | _EXTREMAL and "axes" in eqn.params and not pointwise:
        return _over_axes(eqn, floats[0], out)
    if name == "dot_general" and len(floats) == 2:
        return _contracted(eqn, floats[0], floats[1])
    if name in _shadow.CUMULATIVE:
        return _running(eqn, floats[0])
    if name in ("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max"):
        return _scattered(eqn, operands)
    if pointwise and (name in _shadow.ELEMENTWISE or name in _POINTWISE):
        by_size = name in _ADDING or name in ("max", "min")
        return _worst([_element(v, shape, by_size) for v in floats])
    parts = _worst([_whole(v, shape) for v in floats])
    if name == "conv_general_dilated":
        return dataclasses.replace(parts, size=_absolute(eqn, floats))
    return parts


_POINTWISE = frozenset(
    "convert_element_type reduce_precision max min rem round floor ceil sign psum psum_invariant pmax pmin".split()
)


def _masked_max(x: Array, mask: Array, axes: Any = None) -> Array:
    return jnp.max(jnp.where(mask, x, jnp.zeros_like(x)), axes, initial=0)


def _spread(fields: Sequence[Array], shape: Any) -> Inherited:
    return Inherited(*(x if jnp.shape(x) == shape else jnp.broadcast_to(x, shape) for x in fields))


def _element(v: Origin, shape: Any, by_size: bool) -> tuple[Array, Inherited]:
    weight = v.gap if by_size else v.lost
    return jnp.broadcast_to(weight, shape), _spread(
        [v.tag, v.lost, v.bad, jnp.isnan(v.working), jnp.abs(v.high)], shape
    )


def _whole(v: Origin, shape: Any) -> tuple[Array, Inherited]:
    """Every output depends on every element: the dominating one speaks for all."""
    worst, most = jnp.max(v.gap, initial=0.0), jnp.max(jnp.where(v.bad, 0, lax.abs(v.high)), initial=0.0)
    bits = jnp.where(jnp.isinf(worst), _BORN, jnp.where(worst > 0, _fewer(worst, most, v.precision), 0))
    tag = _masked_max(v.tag, (v.gap >= worst / 2) & (v.gap > 0) | (v.bad & (v.tag > 0)))
    taken = _spread([tag, bits, jnp.any(v.bad), jnp.any(jnp.isnan(v.working)), most], shape)
    return taken.lost, taken


def _worst(parts: list[tuple[Array, Inherited]]) -> Inherited:
    """Of several operands, the one with the largest weight; what is non-finite and somebody's comes first."""
    weight, best = parts[0]
    for other_weight, other in parts[1:]:
        born, other_born = best.lost == _BORN, other.lost == _BORN
        take = jnp.where(born | other_born, other_born & (~born | (other.tag > best.tag)), other_weight > weight)
        best = Inherited(
            jnp.where(take, other.tag, best.tag),
            jnp.where(take, other.lost, best.lost),
            best.bad | other.bad,
            best.nan | other.nan,
            jnp.maximum(best.size, other.size),
        )
        weight = jnp.maximum(weight, other_weight)
    return best


def _dominating(v: Origin, weight: Array, axes: Any) -> Array:
    """Where the error of an element dominates along `axes`; an infinity that is somebody's does."""
    weight = jnp.where(v.bad & (v.tag > 0), jnp.inf, weight)
    return (weight >= jnp.max(weight, axes, keepdims=True, initial=0.0) / 2) & (weight > 0)


def _over_axes(eqn: Equation, v: Origin, out: Origin) -> Inherited:
    axes = tuple(eqn.params["axes"])
    gap = v.gap
    if eqn.primitive.name in _EXTREMAL:
        gap = jnp.where((v.working == jnp.expand_dims(out.working, axes)) | v.bad, gap, 0)
    mask = _dominating(v, gap, axes)
    return Inherited(
        _masked_max(v.tag, mask, axes),
        _masked_max(v.lost, mask, axes),
        jnp.any(v.bad, axes),
        jnp.any(jnp.isnan(v.working), axes),
        jnp.sum(jnp.abs(v.high), axes),
    )


def _running(eqn: Equation, v: Origin) -> Inherited:
    axis, reverse = eqn.params["axis"], eqn.params["reverse"]

    def running(x: Array) -> Array:
        return lax.cummax(x.astype(jnp.int32), axis, reverse)

    return Inherited(
        running(v.tag),
        running(jnp.where(v.tag > 0, v.lost, 0)),
        running(v.bad) > 0,
        running(jnp.isnan(v.working)) > 0,
        lax.cumsum(jnp.abs(v.high), axis, reverse),
    )


def _absolute(eqn: Equation, floats: Sequence[Origin]) -> Array:
    """The same contraction of the operands' magnitudes, in float64."""
    (size,) = _jaxpr.evaluate(
        eqn,
        [jnp.abs(jnp.where(jnp.isfinite(v.high), v.high, 0)) for v in floats],
        preferred_element_type=np.dtype(np.float64),
        precision=None,
    )
    return size


def _contracted(eqn: Equation, a: Origin, b: Origin) -> Inherited:
    """Rows of `a` against columns of `b`: each side hands down its row's (column's) dominating element."""
    (ca, cb), (ba, bb) = eqn.params["dimension_numbers"]
    free_a = [d for d in range(a.high.ndim) if d not in (*ca, *ba)]
    free_b = [d for d in range(b.high.ndim) if d not in (*cb, *bb)]
    mag_a, mag_b = (jnp.abs(jnp.where(jnp.isfinite(v.high), v.high, 0)) for v in (a, b))
    # How much an element of `a` counts: its error times the largest element of `b` that it meets, and the reverse.
    met_b, met_a = jnp.max(mag_b, free_b, initial=0.0), jnp.max(mag_a, free_a, initial=0.0)
    order_b, order_a = _remaining([*bb, *cb], free_b), _remaining([*ba, *ca], free_a)
    met_b = _placed(met_b, order_b, [*ba, *ca], a.high.ndim)
    met_a = _placed(met_a, order_a, [*bb, *cb], b.high.ndim)

    def side(v: Origin, met: Array, contracted: Sequence[int], batch: Sequence[int], first: bool):
        counts = jnp.where(jnp.isinf(v.gap), jnp.inf, v.gap * met)
        axes = tuple(contracted)
        mask = _dominating(v, counts, axes)
        fields = [
            jnp.max(counts, axes, initial=0.0),
            _masked_max(v.tag, mask, axes),
            _masked_max(v.lost, mask, axes),
            jnp.any(v.bad, axes),
            jnp.any(jnp.isnan(v.working), axes),
        ]
        kept = [d for d in range(v.high.ndim) if d not in contracted]
        free = [d for d in kept if d not in batch]
        to_out = [kept.index(d) for d in (*batch, *free)]
        other = len(free_b) if first else len(free_a)

        def placed(x: Array) -> Array:
            x = jnp.transpose(x, to_out)
            at = len(batch) + (len(free) if first else 0)
            return jnp.expand_dims(x, tuple(range(at, at + other)))

        return [placed(x) for x in fields]

    size = _absolute(eqn, (a, b))
    parts = []
    for weight, *rest in (side(a, met_b, ca, ba, True), side(b, met_a, cb, bb, False)):
        parts.append((jnp.broadcast_to(weight, size.shape), _spread([*rest, size], size.shape)))
    return _worst(parts)


def _remaining(dims: list[int], removed: list[int]) -> list[int]:
    """The positions of `dims` once `removed` are reduced away."""
    left = sorted(dims)
    return [left.index(d) for d in dims]


def _placed(x: Array, order: list[int], dims: list[int], ndim: int) -> Array:
    """`x`, with its axes taken in `order`, broadcast along the dimensions `dims` of an array of rank `ndim`."""
    x = jnp.transpose(x, order)
    by_dim = sorted(range(len(dims)), key=lambda k: dims[k])
    x = jnp.transpose(x, by_dim)
    return jnp.expand_dims(x, tuple(d for d in range(ndim) if d not in dims))


def _scattered(eqn: Equation, operands: Sequence[Origin]) -> Inherited:
    base, places, updates = operands
    options = {k: eqn.params[k] for k in ("indices_are_sorted", "unique_indices", "mode")}
    put = lax.scatter if eqn.primitive.name == "scatter" else lax.scatter_max

    def merged(f: Callable[[Origin], Array]) -> Array:
        return put(f(base), places.working, f(updates), eqn.params["dimension_numbers"], **options)

    return Inherited(
        merged(lambda v: v.tag),
        merged(lambda v: v.lost),
        merged(lambda v: v.bad.astype(jnp.int32)) > 0,
        merged(lambda v: jnp.isnan(v.working).astype(jnp.int32)) > 0,
        merged(lambda v: jnp.abs(v.high)),
    )


# -------------------------------------------------------------------------------------------- what happened


def happened(eqn: Equation, operands: Sequence[Origin], out: Origin, taken: Inherited) -> tuple[Array, Array]:
    """The event at each output element, and the class of invalid operation that it is where it is one (int32)."""
    name, w = eqn.primitive.name, out.working
    size = jnp.abs(out.high)
    lossy: Any = int(Event.AMPLIFICATION)
    if name in _ADDING:
        rest: Any = int(Event.ABSORPTION)
        if name in ("add", "sub", "add_any") and len(operands) == 2:  # absorbed: half the digits of a term, or more
            a, b = (lax.abs(v.high) for v in operands)
            absorbed = jnp.minimum(a, b) <= jnp.maximum(a, b) * 2.0 ** (-out.precision / 2)
            rest = jnp.where(absorbed, rest, int(Event.AMPLIFICATION))
        lossy = jnp.where(taken.size >= 8 * size, int(Event.CANCELLATION), rest)
    floor = float(jnp.finfo(w.dtype).tiny) * (2.0**8 if name in _shadow.CONTRACTING and w.dtype != jnp.float16 else 1)
    lossy = jnp.where((size < floor) & (size > 0), int(Event.UNDERFLOW), lossy)  # products are flushed before their sum

    invalid: Any = int(Invalid.NEGATIVE)
    if name == "div":
        invalid = jnp.where(operands[1].working == 0, int(Invalid.ZERO_BY_ZERO), int(Invalid.INF_BY_INF))
    elif name in _MULTIPLYING:
        invalid = int(Invalid.ZERO_TIMES_INF)
    elif name in _ADDING:
        invalid = int(Invalid.INF_MINUS_INF)
    invalid = jnp.where(jnp.isinf(w), int(Invalid.LOG_ZERO), invalid)
    # Sums and products of finite numbers are only ever not finite by overflow.
    overflowed = jnp.isinf(w) if name not in _ADDING and name not in _MULTIPLYING else out.bad
    unborn = jnp.where(jnp.isinf(w), int(Event.POLE), int(Event.INVALID))
    nonfinite = jnp.where(jnp.isfinite(out.high) & overflowed, int(Event.OVERFLOW), unborn)
    return jnp.where(out.bad, nonfinite, lossy), jnp.broadcast_to(invalid, w.shape)
