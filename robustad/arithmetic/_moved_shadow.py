"""The float64 twin near a working point, as a derivative sees it: `_ball_moved` for programs of any size.

Every value has its twin at the working point, and one that is moved with the operands. What passes a `stop_gradient` stays
where it was; of the operands of a tie the last one counts with the weight `ties`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad import _jaxpr
from robustad._interpret import Arithmetic
from robustad._jaxpr import Equation, Path
from robustad.arithmetic import _shadow
from robustad.arithmetic._shadow import Shadow


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moved:
    """A working array, its twin in float64, and the twin of what is moved; None where it is not floating."""

    working: Array
    high: Array | None
    moved: Array | None

    @property
    def shadow(self) -> Shadow:
        return Shadow(self.working, self.high)


@dataclasses.dataclass(frozen=True)
class MovedArithmetic(Arithmetic[Moved]):
    """stopped: the paths of the `stop_gradient`s. returned: see `_bits.returned`. `ties` may be traced."""

    stopped: frozenset[Path]
    returned: dict[Path, Path]
    ties: Any
    cast: dict[Path, Moved] = dataclasses.field(default_factory=dict)

    def lift(self, x: Any) -> Moved:
        value = _shadow.lift(x)
        return Moved(value.working, value.high, value.high)

    def plain(self, value: Moved) -> Array:
        return value.working

    def equation(self, eqn: Equation, operands: Sequence[Moved], path: Path) -> tuple[list[Moved], None]:
        working, highs = _shadow.shadowed(eqn, [v.shadow for v in operands])
        held = path in self.stopped
        moved = highs if held else self._moved(eqn, operands, working, highs)
        if path in self.returned.values():
            self.cast[path] = operands[0]
        if path in self.returned:
            source = self.cast[self.returned[path]]
            same = source.working == working[0]
            highs, moved = [jnp.where(same, source.high, highs[0])], [jnp.where(same, source.moved, moved[0])]
        return [Moved(*parts) for parts in zip(working, highs, moved)], None

    def _moved(
        self, eqn: Equation, operands: Sequence[Moved], working: Sequence[Array], highs: Sequence[Array | None]
    ) -> Sequence[Array | None]:
        name = eqn.primitive.name
        unmoved = _shadow.is_lost(eqn) or all(v.high is None for v in operands)
        if unmoved or all(high is None for high in highs):
            return highs
        near = [Shadow(v.working, v.moved) for v in operands]
        (*rest,) = _shadow.RULES[name](eqn, near, working)
        if (
            name in _TIES
            and not jnp.issubdtype(working[0].dtype, jnp.complexfloating)
            and not jnp.iscomplexobj(near[0].working)
        ):
            return [_TIES[name](eqn, near, working[0], rest[0], self.ties)]
        return rest


def _blend(x: Array, y: Array, ties: Any) -> Array:
    return jnp.where(ties == 0, x, jnp.where(ties == 1, y, x / 2 + y / 2))


def _binary(eqn: Equation, operands: Sequence[Shadow], working: Array, plain: Array, ties: Any) -> Array:
    a, b = operands
    return jnp.where(a.working == b.working, _blend(_shadow.high(a), _shadow.high(b), ties), plain)


def _absolute(eqn: Equation, operands: Sequence[Shadow], working: Array, plain: Array, ties: Any) -> Array:
    x = _shadow.high(operands[0])
    return jnp.where(operands[0].working == 0, _blend(x, -x, ties), plain)


def _clamp(eqn: Equation, operands: Sequence[Shadow], working: Array, plain: Array, ties: Any) -> Array:
    low, x, top = operands
    a, b, c = (_shadow.high(v) for v in operands)
    at_top = jnp.where(x.working == top.working, _blend(c, b, ties), plain)
    return jnp.where(x.working == low.working, _blend(a, b, ties), at_top)


def _reduction(eqn: Equation, operands: Sequence[Shadow], working: Array, plain: Array, ties: Any) -> Array:
    """The first, the last, or the mean of those that the working program took."""
    (value,), axes = operands, tuple(eqn.params["axes"])
    x = _shadow.high(value)
    taken = value.working == lax.expand_dims(working, axes)
    order = (*(d for d in range(x.ndim) if d not in axes), *axes)
    rows = taken.transpose(order).reshape(*working.shape, -1)
    values = x.transpose(order).reshape(rows.shape)

    def at(k: Array) -> Array:
        return jnp.take_along_axis(values, k[..., None], -1)[..., 0]

    last = rows.shape[-1] - 1 - jnp.argmax(rows[..., ::-1], -1)
    count = rows.sum(-1)
    mean = jnp.where(rows, values, 0).sum(-1) / jnp.maximum(count, 1)
    chosen = jnp.where(ties == 0, at(jnp.argmax(rows, -1)), jnp.where(ties == 1, at(last), mean))
    return jnp.where(count > 1, chosen, plain)


def _window(eqn: Equation, operands: Sequence[Shadow], working: Array, plain: Array, ties: Any) -> Array:
    """The first of those that the working program took, as in its derivative."""
    held = _jaxpr.widen(operands[0].working, plain.dtype)
    return jax.jvp(lambda x: _jaxpr.evaluate(eqn, [x])[0], (held,), (_shadow.high(operands[0]),))[1]


_TIES: dict[str, Callable[..., Array]] = {
    "abs": _absolute,
    "clamp": _clamp,
    "max": _binary,
    "min": _binary,
    "reduce_max": _reduction,
    "reduce_min": _reduction,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
}
