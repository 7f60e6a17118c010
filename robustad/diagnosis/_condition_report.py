"""What `condition_number` says: numbers, digits, and how they look."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from robustad.diagnosis._strict_json import strict_json

DTYPES = ("bfloat16", "float16", "float32", "float64")
MEASURES = ("componentwise", "mixed", "normwise")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LeafCondition:
    """The condition of one leaf: of an input (the others are exact), or of an output (all inputs are perturbed)."""

    name: str = dataclasses.field(metadata={"static": True})
    normwise: float
    mixed: float
    componentwise: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConditionNumber:
    """What `condition_number` says of a function at a point.

    Attributes:
        normwise, mixed, componentwise: of all inputs and outputs together, as `condition_number` defines them.
        inputs, outputs: a `LeafCondition` of each leaf.
        worst: the output component that the componentwise number is of, or None where there are no outputs.
        exact: whether they were computed from the whole Jacobian; else they are estimates from below.
        function: its name.
        size: how many input and output components there are.
    """

    normwise: float
    mixed: float
    componentwise: float
    inputs: tuple[LeafCondition, ...]
    outputs: tuple[LeafCondition, ...]
    worst: str | None = dataclasses.field(metadata={"static": True})
    exact: bool = dataclasses.field(metadata={"static": True})
    function: str = dataclasses.field(metadata={"static": True})
    size: tuple[int, int] = dataclasses.field(metadata={"static": True})

    def bits_lost(self, dtype: Any, measure: str = "componentwise") -> float:
        """The bits, log2 of the condition number, that every program loses where its inputs are rounded to a dtype.

        At most the p bits of the dtype's significand. A program may keep more only where its inputs happen to be exact.

        Args:
            dtype: a floating dtype.
            measure: "componentwise": of the worst output component; "mixed": of the largest; "normwise": of the output's
                norm, for errors of the inputs' norm.
        """
        if measure not in MEASURES:
            raise ValueError(f"`measure` must be one of {', '.join(map(repr, MEASURES))}; got {measure!r}.")
        if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            raise TypeError(f"`dtype` must be a floating dtype; got {jnp.dtype(dtype)}.")
        number, p = getattr(self, measure), jnp.finfo(dtype).nmant + 1
        return math.nan if math.isnan(number) else min(max(math.log2(max(number, 1.0)), 0.0), p)

    def digits_lost(self, dtype: Any, measure: str = "componentwise") -> float:
        """`bits_lost` in decimal digits."""
        return self.bits_lost(dtype, measure) * math.log10(2)

    def digits_left(self, dtype: Any, measure: str = "componentwise") -> float:
        """The decimal digits of a dtype that a program can keep: p log10 2 less those lost."""
        return (jnp.finfo(dtype).nmant + 1) * math.log10(2) - self.digits_lost(dtype, measure)

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger."""
        out = {measure: getattr(self, measure) for measure in MEASURES}
        for side, leaves in (("inputs", self.inputs), ("outputs", self.outputs)):
            out |= {f"{side}/{leaf.name}/{measure}": getattr(leaf, measure) for leaf in leaves for measure in MEASURES}
        return out

    def to_json(self, **options: Any) -> str:
        """As strict JSON (non-finite numbers are the strings "inf" and "nan"); `options` are passed to `json.dumps`."""
        return strict_json(dataclasses.asdict(self), **options)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(c: ConditionNumber) -> Iterator[str]:
    how = "" if c.exact else "   (estimates)"
    yield f"condition of {c.function}: {c.size[0]} inputs, {c.size[1]} outputs{how}"
    yield f"{'':<34}{'normwise':>14}{'mixed':>14}{'componentwise':>16}"
    rows = [("all", c), *((f"input {x.name}", x) for x in c.inputs), *((f"output {x.name}", x) for x in c.outputs)]
    for title, row in rows if len(rows) <= 24 else rows[:24]:
        yield f"{title:<34}{row.normwise:>14.3g}{row.mixed:>14.3g}{row.componentwise:>16.3g}"
    if len(rows) > 24:
        yield f"... {len(rows) - 24} more"
    yield "digits left, in any program, where the inputs are rounded to"
    for dtype in DTYPES:
        total = (jnp.finfo(dtype).nmant + 1) * math.log10(2)
        largest, worst = c.digits_left(dtype, "mixed"), c.digits_left(dtype)
        of = f", {worst:.1f} at the worst, {c.worst}" if c.worst else ""
        yield f"  {dtype:<10}{largest:5.1f} of {total:.1f} in the largest component{of}"
