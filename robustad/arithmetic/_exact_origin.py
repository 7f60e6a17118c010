"""Origin tracking beside exact twins: where float64 loses what the program loses, it cannot tell what went wrong."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustad._eager import interpret_eagerly
from robustad._interpret import Arithmetic
from robustad._jaxpr import Body, Equation, Path
from robustad.arithmetic import _ball_walk as _ball_walk  # registers the rules of the balls
from robustad.arithmetic._ball import Ball, flint, mapped, to_complex, to_float, widened
from robustad.arithmetic._ball_rules import enclosed, evaluated
from robustad.arithmetic._origin import Origin, Recipe, judged, lifted, tagged
from robustad.arithmetic._sample import born, sample
from robustad.arithmetic._shadow import Shadow


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExactOrigin:
    """A working value with its exact twin rounded to float64 and its tags, and the exact twin."""

    origin: Origin
    exact: np.ndarray | None


class ExactOriginArithmetic(Arithmetic[ExactOrigin]):
    """`OriginArithmetic` and `SampleArithmetic` in one, on the host (`robustad._eager`).

    numbers: path of an equation to its number, from 1. events, suspects: what is looked at, as in `SampleArithmetic`;
    `records` then holds what it would record, `iteration` counting the visits of an equation.
    """

    def __init__(
        self,
        numbers: Mapping[Path, int],
        precision: int,
        events: Sequence[tuple[Path, int]] = (),
        suspects: frozenset[Path] = frozenset(),
    ):
        self.numbers, self.precision, self.events, self.suspects = numbers, precision, events, suspects
        self.records: dict[Path, dict[str, Any]] = {}
        self.visits: dict[Path, int] = {}

    def lift(self, x: Any) -> ExactOrigin:
        return self._value(jnp.asarray(x), widened(x))

    def plain(self, value: ExactOrigin) -> Any:
        return value.origin.working

    def _value(self, working: Any, exact: np.ndarray | None) -> ExactOrigin:
        if exact is None:
            return ExactOrigin(lifted(Shadow(working, None), self.precision), None)
        rounded = mapped(to_complex, exact).astype(complex) if jnp.iscomplexobj(working) else mapped(to_float, exact)
        high = jnp.asarray(rounded.astype(np.complex128 if jnp.iscomplexobj(working) else np.float64))
        return ExactOrigin(lifted(Shadow(working, high), self.precision), exact)

    def equation(self, eqn: Equation, operands: Sequence[ExactOrigin], path: Path) -> tuple[list[ExactOrigin], None]:
        operands = [jax.tree.map(_on_device, v) for v in operands]
        origins = [v.origin for v in operands]
        working = evaluated(eqn, [o.working for o in origins])
        twins = enclosed(eqn, [Ball(v.origin.working, v.exact) for v in operands], working)
        fresh = [self._value(w, x) for w, x in zip(working, twins)]
        site = jnp.int32(self.numbers.get(path, 0))
        outs = _tagged(Recipe(eqn), origins, [v.origin for v in fresh], site)
        self._look(eqn, origins, outs, path)
        return [ExactOrigin(o, v.exact) for o, v in zip(outs, fresh)], None

    def _look(self, eqn: Equation, operands: Sequence[Origin], outs: Sequence[Origin], path: Path) -> None:
        wanted = [event for at, event in self.events if at == path]
        if not wanted and path not in self.suspects:
            return
        visit = self.visits[path] = self.visits.get(path, -1) + 1
        record = self.records.setdefault(path, {"born": False})
        record["born"] |= bool(_born([o.shadow for o in operands], [o.shadow for o in outs]))
        out = next((o for o in outs if o.high is not None), None)
        if wanted and out is not None:
            for event in wanted:
                seen = {k: np.asarray(v) for k, v in _seen(Recipe(eqn), list(operands), out, event).items()}
                if str(event) not in record or seen["score"] > record[str(event)]["score"]:
                    record[str(event)] = seen | {"iteration": np.asarray(visit if len(path) > 1 else -1)}


def _on_device(leaf: Any) -> Any:
    """What the walk has stacked with NumPy, as JAX arrays again; exact twins stay."""
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype != object else leaf


def _worst(recipe: Recipe, operands: list[Origin], out: Origin, event: int) -> dict[str, Any]:
    return sample(operands, out, judged(recipe.eqn, operands, out, 1), event)


_seen = jax.jit(_worst, static_argnums=(0, 3), compiler_options={"xla_backend_optimization_level": 0})
_born = jax.jit(born)
_tagged = jax.jit(tagged, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})


def exact_origins(program: Body, operands: Sequence[Any], arithmetic: ExactOriginArithmetic, bits: int) -> list[Origin]:
    """The outputs of a program with their origins, its exact twins of `bits` of precision.

    Raises:
        UnsupportedError: a primitive has no exact rule.
    """
    with flint().ctx.workprec(bits):
        outs = interpret_eagerly(arithmetic, program, [arithmetic.lift(x) for x in operands])
    return [out.origin for out in outs]
