"""Looking at equations that are to blame: the worst element of each, and where a non-finite value shows first."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from robustad._jaxpr import Equation, Path
from robustad.arithmetic import _shadow
from robustad.arithmetic._edges import within_range
from robustad.arithmetic._origin import LOSS, Origin, judged, lifted
from robustad.arithmetic._shadow import Shadow, Shadowed


@dataclasses.dataclass(frozen=True)
class SampleArithmetic(Shadowed):
    """The shadow walk that looks at some equations: the worst element of each (path, event) in `events`, and whether those
    in `suspects` make a non-finite value of finite ones."""

    events: tuple[tuple[Path, int], ...]
    suspects: frozenset[Path]
    precision: int
    loops: frozenset[Path] = frozenset()
    """Whose iterations are told; those of the shards of a map are not."""

    @property
    def watched(self) -> frozenset[Path]:
        return self.suspects | {path for path, _ in self.events}

    def equation(self, eqn: Equation, operands: Sequence[Shadow], path: Path) -> tuple[list[Shadow], Any]:
        working, highs = _shadow.shadowed(eqn, operands)
        highs = within_range(eqn, [v.high for v in operands], highs)
        outs = [Shadow(w, h) for w, h in zip(working, highs)]
        if path not in self.watched:
            return outs, None
        wanted = [event for p, event in self.events if p == path]
        record: dict[str, Any] = {"born": born(operands, outs)}
        if wanted:
            origins = [lifted(v, self.precision) for v in operands]
            out = next(lifted(o, self.precision) for o in outs if o.high is not None)
            tag = judged(eqn, origins, out, 1)
            record |= {str(event): sample(origins, out, tag, event) for event in wanted}
        return outs, record

    def blank(self, path: Path, at: Path) -> Any:
        none = {
            "score": jnp.full((), -1, jnp.int32),
            "iteration": jnp.full((), -1, jnp.int32),
            "index": jnp.full((), -1, jnp.int32),
            "out": jnp.full(2, jnp.nan),
            "operands": jnp.full((2, 2), jnp.nan),
        }
        return {"born": jnp.zeros((), bool)} | {str(event): none for p, event in self.events if p == path}

    def fold(self, path: Path, at: Path, record: Any, new: Any, iteration: Array) -> Any:
        def worse(old: Any, new: Any) -> Any:
            stamped = dict(new, iteration=iteration) if at in self.loops else new
            return jax.tree.map(lambda a, b: jnp.where(new["score"] > old["score"], b, a), old, stamped)

        return {k: record[k] | new[k] if k == "born" else worse(record[k], new[k]) for k in record}


def born(operands: Sequence[Shadow], outs: Sequence[Shadow]) -> Array:
    """Whether some element of the outputs is not finite though its operands (all of them, where it has many) are."""
    floats = [v.working for v in operands if v.high is not None]
    found = jnp.zeros((), bool)
    for out in (o.working for o in outs if o.high is not None):
        pointwise = all(jnp.shape(x) in ((), out.shape) for x in floats)
        bad = [~jnp.isfinite(x) if pointwise else jnp.any(~jnp.isfinite(x)) for x in floats]
        found |= jnp.any(~jnp.isfinite(out) & ~functools.reduce(jnp.logical_or, bad, jnp.zeros((), bool)))
    return found


def sample(operands: Sequence[Origin], out: Origin, tag: Array, event: int) -> dict[str, Array]:
    """The element that an equation hurt most by an event: (working, true) of its output and of up to two operands.

    score: bits lost there (-1: none); index: of the element in the flattened output; iteration: of the innermost
    loop around the equation; NaN stands for an operand that has no element of its own for the output's.
    """
    shape = jnp.shape(out.working)
    score = jnp.where((tag & 15) == event, tag >> LOSS, -1).ravel()
    at = jnp.argmax(score).astype(jnp.int32)

    def element(v: Origin) -> Array:
        x = jnp.stack([_real(_shadow.widened(v.working)), _real(v.high)]).reshape(2, -1)
        return x[:, at if v.working.shape == shape else 0]

    shown = [v for v in operands if v.high is not None and jnp.shape(v.working) in ((), shape)][:2]
    values = [element(v) for v in shown] + [jnp.full(2, jnp.nan)] * (2 - len(shown))
    return {
        "score": score[at],
        "iteration": jnp.full((), -1, jnp.int32),
        "index": at,
        "out": element(out),
        "operands": jnp.stack(values),
    }


def _real(x: Array) -> Array:
    return jnp.abs(x) if jnp.issubdtype(x.dtype, jnp.complexfloating) else x
