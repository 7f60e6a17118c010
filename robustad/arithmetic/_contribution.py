r"""How much each equation's own error contributes to the error at the end.

Beside every working value w and its twin h goes their distance d = w - h, as a *linear* function of shifts s, one an
equation, that are all 1 in the program that ran:

\[ d_{out} = L(d_{in}) + s_e\, \delta_e, \qquad \delta_e = (w - h)_{out} - L\,(w - h)_{in} \]

L is a map with \(F(w) - F(h) = L (w - h)\) in float64: secants for elementwise functions, mixed products for contractions;
for the few primitives that are neither, the derivative at h. So the errors add up to what was measured even where they
are not small, and \(\delta_e\) is what an equation rounds, overflows or flushes by itself. The derivative of
\(\langle u, d \rangle\) for a direction u of an output's error, taken once in reverse mode, lists every equation's
contribution, those of a loop's iterations added up; with respect to the inputs' own shifts it is the condition of the
problem.

Adjoint-weighted estimates of rounding errors go back to Linnainmaa (BIT 16, 1976); ADAPT (Menon et al., SC 2018) and CHEF-FP
(Vassiliev et al., IPDPS 2023) bound \(\delta\) by the unit roundoff and linearise.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import _jaxpr
from robustad._interpret import Arithmetic, through
from robustad._jaxpr import Control, Equation, Path, While
from robustad.arithmetic import _shadow
from robustad.arithmetic._shadow import Shadow, ShadowArithmetic
from robustad.stability._error_free import rounded_once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shifted:
    """A working array, its twin and their distance, linear in the shifts; the last two are None for integers.

    error: w - h, where more is known of it than the difference of the two tells.
    """

    working: Array
    high: Array | None
    distance: Array | None
    error: Array | None = None

    @property
    def shadow(self) -> Shadow:
        return Shadow(self.working, self.high)

    @functools.cached_property
    def gap(self) -> Any:
        """w - h; where w alone is not finite it counts as a number away from h, where h is not, as equal."""
        if self.high is None:
            return None
        gap = _shadow.widened(self.working) - self.high if self.error is None else self.error
        away = jnp.where(jnp.isfinite(self.high), jnp.where(self.high == 0, 1.0, self.high), 0.0)
        return jnp.where(jnp.isfinite(gap), gap, away)

    @functools.cached_property
    def seen(self) -> Any:
        """The working value as the secants see it, h + gap."""
        return None if self.high is None else self.high + self.gap


@dataclasses.dataclass(frozen=True, eq=False)
class ContributionArithmetic(Arithmetic[Shifted]):
    """The shadow walk with distances. numbers: path of an equation to its position in `shifts`.

    A `while` loop is one equation: its outputs' whole error is its own, since reverse mode does not pass through it.
    """

    numbers: dict[Path, int]
    shifts: Array
    known: Mapping[Path, Sequence[Shifted]] = dataclasses.field(default_factory=dict)
    """Outputs that need not be computed again."""

    @property
    def whole(self) -> frozenset[type[Control]]:
        return frozenset({While})

    def lift(self, x: Any) -> Shifted:
        shadow = _shadow.lift(x)
        return Shifted(shadow.working, shadow.high, None if shadow.high is None else jnp.zeros_like(shadow.high))

    def plain(self, value: Shifted) -> Array:
        return value.working

    def equation(self, eqn: Equation, operands: Sequence[Shifted], path: Path) -> tuple[list[Shifted], None]:
        made = self._made(eqn, operands, path)
        # Rounded once, however often the compiler computes them: distances are differences of them.
        made = [
            o
            if o.high is None or jnp.iscomplexobj(o.working)
            else dataclasses.replace(o, working=rounded_once(o.working))
            for o in made
        ]
        return with_distances(
            eqn, operands, made, self.shifts[self.numbers[path]] if path in self.numbers else None
        ), None

    def _made(self, eqn: Equation, operands: Sequence[Shifted], path: Path) -> Sequence[Shifted]:
        """The outputs of an equation, without distances."""
        if path in self.known:
            return self.known[path]
        if (loop := _jaxpr.control(eqn)) is not None:
            outs, _ = through(ShadowArithmetic(), loop, [v.shadow for v in operands], path)
            return [Shifted(o.working, o.high, None) for o in outs]
        working, highs = lax.optimization_barrier(_shadow.shadowed(eqn, [v.shadow for v in operands]))
        return [Shifted(w, h, None) for w, h in zip(working, highs)]


def with_distances(
    eqn: Equation, operands: Sequence[Shifted], made: Sequence[Shifted], shift: Array | None
) -> list[Shifted]:
    """What an equation has made, with its distances; `shift`: the equation's own, or None where it is not counted."""
    highs = [out.high for out in made]
    if all(v.high is None for v in operands) or all(h is None for h in highs):
        none = [None if h is None else jnp.zeros_like(h) for h in highs]
        return [dataclasses.replace(out, distance=d) for out, d in zip(made, none)]
    linear = _linear_map(eqn, operands, highs)
    inherited, passed_on = linear([v.gap for v in operands]), linear([v.distance for v in operands])
    outs = []
    for out, before, distance in zip(made, inherited, passed_on):
        if out.high is not None and shift is not None and eqn.primitive.name not in _shadow.MOVING:
            distance = distance + shift * (out.gap - before)
        outs.append(dataclasses.replace(out, distance=distance))
    return outs


Map = Callable[[Sequence[Any]], list[Any]]

_LINEAR = (
    _shadow.MOVING | {"cumsum", "reduce_window_sum", "psum", "psum_invariant", "reduce_scatter", "fft"}
) | frozenset("add add_any sub neg reduce_sum convert_element_type reduce_precision real imag conj complex".split())
NEAR = 2.0**-27
"""Relative distance below which a derivative is nearer to a secant than its differences in float64 are."""
_BILINEAR = _shadow.CONTRACTING | {"mul"}


def _linear_map(eqn: Equation, operands: Sequence[Shifted], highs: Sequence[Array | None]) -> Map:
    """L of an equation, from the distances of its operands to those of its outputs."""
    name, floats = eqn.primitive.name, [k for k, v in enumerate(operands) if v.high is not None]
    if _jaxpr.control(eqn) is not None or _shadow.is_lost(eqn):
        return lambda _: [None if h is None else jnp.zeros_like(h) for h in highs]
    if name == "stop_gradient":  # nothing to errors
        return list
    if name in _LINEAR:
        return lambda ds: [_finite(x) if name == "gather" else x for x in _at(eqn, operands, ds)]
    real = all(jnp.isrealobj(x) for x in (*(operands[k].high for k in floats), *highs))
    if name == "abs" and real:
        return _secants(eqn, operands, floats, highs[0])
    if name in _shadow.CONTRACTING and real and len(floats) == 2:
        return _contracted(eqn, operands, floats, highs[0])
    if name in _BILINEAR and len(floats) == 2:
        return _mixed(eqn, operands, floats)
    if name in _shadow.ELEMENTWISE and real:
        return _secants(eqn, operands, floats, highs[0])
    return lambda ds: _tangents(eqn, [v.shadow for v in operands], floats, highs, ds)


def _mixed(eqn: Equation, operands: Sequence[Shifted], floats: list[int]) -> Map:
    """w v - h g = (w - h) v + h (v - g)."""
    a, b = floats
    seen, high = operands[b].seen, operands[a].high

    def through_operands(ds: Sequence[Array | None]) -> list[Array | None]:
        first = _at(eqn, operands, [seen if k == b else d for k, d in enumerate(ds)])
        second = _at(eqn, operands, [high if k == a else d for k, d in enumerate(ds)])
        return [x + y for x, y in zip(first, second)]

    return through_operands


def _finite(x: Array | None) -> Array | None:
    return None if x is None else jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))


def _at(eqn: Equation, operands: Sequence[Shifted], values: Sequence[Any]) -> list[Any]:
    """The equation on other twins of its operands."""
    return _shadow.shadowed(eqn, [Shadow(v.working, x) for v, x in zip(operands, values)])[1]


def _contracted(eqn: Equation, operands: Sequence[Shifted], floats: list[int], out: Array) -> Map:
    """The same in float32, each operand divided by its largest magnitude: distances need few digits.

    In reverse mode too, where the values of distances do not matter: nothing depends on them.
    """
    a, b = floats

    def scaled(x: Array) -> tuple[Array, Array]:
        size = jnp.max(jnp.abs(x), initial=0.0)
        size = jnp.where(size > 0, size, 1.0)
        return lax.convert_element_type(x / size, jnp.float32), size

    def evaluate(x: Array, y: Array) -> Array:
        values = [x if k == a else y if k == b else v.working for k, v in enumerate(operands)]
        how = {"preferred_element_type": np.dtype(np.float32), "precision": (lax.Precision.HIGHEST,) * 2}
        return _jaxpr.evaluate(eqn, values, **how)[0]

    seen, high = scaled(operands[b].seen), scaled(operands[a].high)

    def contracted(ds: Sequence[Array | None]) -> list[Array | None]:
        (x, size_x), (y, size_y) = scaled(ds[a]), scaled(ds[b])
        first = evaluate(x, seen[0]).astype(np.float64) * (size_x * seen[1])
        return [first + evaluate(high[0], y).astype(np.float64) * (size_y * high[1])]

    @jax.custom_vjp
    def linear(x: Array, y: Array, seen: Any, high: Any) -> Any:
        return contracted([x if k == a else y if k == b else None for k in range(len(operands))])[0]

    def backward(held: Any, cotangent: Array) -> tuple[Any, ...]:
        (seen, size_seen), (high, size_high) = held
        ct, size = scaled(cotangent)
        (x,) = jax.linear_transpose(lambda x: evaluate(x, seen), high)(ct)
        (y,) = jax.linear_transpose(lambda y: evaluate(high, y), seen)(ct)
        return x.astype(np.float64) * (size * size_seen), y.astype(np.float64) * (size * size_high), None, None

    linear.defvjp(lambda x, y, seen, high: (jnp.zeros(out.shape, np.float64), (seen, high)), backward)
    return lambda ds: [linear(ds[a], ds[b], seen, high)]


def _secants(eqn: Equation, operands: Sequence[Shifted], floats: list[int], out: Array) -> Map:
    """One operand after the other goes from its working value to its twin; the derivative where the two agree."""
    slopes: dict[int, Array] = {}
    here = [v.seen for v in operands]
    if eqn.primitive.name == "div":
        slopes = {floats[0]: 1 / here[1], floats[1]: -out / here[1]}
    elif eqn.primitive.name == "square":
        slopes = {0: here[0] + operands[0].high}
    else:
        value = _at(eqn, operands, here)[0]
        for k in reversed(floats):
            high = operands[k].high
            there = [high if j == k else x for j, x in enumerate(here)]

            def f(x: Array, k: int = k, there: Sequence[Any] = there) -> Array:
                return _at(eqn, operands, [x if j == k else y for j, y in enumerate(there)])[0]

            at = jnp.broadcast_to(high, out.shape)
            moved, partial = jax.jvp(f, (at,), (jnp.ones_like(at),))
            gap = operands[k].gap
            near = jnp.abs(gap) <= NEAR * jnp.abs(high)
            secant = (value - moved) / jnp.where(near, jnp.ones_like(gap), gap)
            slopes[k] = jnp.where(near, partial, secant)
            here, value = there, moved
    slopes = lax.optimization_barrier({k: _finite(slope) for k, slope in slopes.items()})
    return lambda ds: [sum(slope * ds[k] for k, slope in slopes.items())]


def _tangents(
    eqn: Equation, shadows: Sequence[Shadow], floats: list[int], highs: Sequence[Array | None], ds: Sequence[Any]
) -> list[Any]:
    """The derivative at the twins; nothing is passed on where JAX has none."""
    if not _jaxpr.is_differentiable(eqn):
        return [None if h is None else jnp.zeros_like(h) for h in highs]

    def f(*moving: Array) -> list[Array]:
        given = dict(zip(floats, moving))
        _, outs = _shadow.shadowed(eqn, [Shadow(v.working, given.get(k)) for k, v in enumerate(shadows)])
        return [o for o in outs if o is not None]

    _, made = jax.jvp(f, tuple(shadows[k].high for k in floats), tuple(ds[k] for k in floats))
    given = iter(made)
    return [None if h is None else _finite(next(given)) for h in highs]
