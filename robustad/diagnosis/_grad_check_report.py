"""What `grad_check` found, and how it prints."""

import dataclasses
import math
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LeafCheck:
    """One gradient leaf, in one mode of differentiation, at one scale of the arguments.

    Attributes:
        gradient: as JAX gives it, float64 (complex128) on the host; in forward mode NaN where it was not computed.
        expected: the derivative of the value; NaN where it is not known.
        name, order, mode ("reverse" or "forward"), scale: which gradient this is.
        ok: finite, the derivative of the value, and its digits not lost.
        reason: why not: "nonfinite"; "rule" (even without rounding, the derivative program gives something else than the
            derivative of the value); "rounding" (the program is right and loses the digits); "" where ok.
        element: the index of the worst element; () of a scalar, None where a direction told.
        got, expected_there: the gradient there and what it should be (along a direction: both derivatives along it).
        absolute: |got - expected|. relative: that over max(1, |got|, |expected|).
        norm_error: of the leaf, ‖gradient - expected‖ / ‖expected‖, over the elements whose derivative is known.
        checked, directions: how many elements, and random directions, were compared with differences of the value.
        undetermined: how many elements have no known derivative. kinks: how many of those checked have one for each side,
            or a tie; there every value in between is right.
    """

    gradient: Any
    expected: Any
    name: str = dataclasses.field(metadata={"static": True})
    order: int = dataclasses.field(metadata={"static": True})
    mode: str = dataclasses.field(metadata={"static": True})
    scale: float = dataclasses.field(metadata={"static": True})
    ok: bool = dataclasses.field(metadata={"static": True})
    reason: str = dataclasses.field(metadata={"static": True})
    element: tuple[int, ...] | None = dataclasses.field(metadata={"static": True})
    got: float | complex = dataclasses.field(metadata={"static": True})
    expected_there: float | complex = dataclasses.field(metadata={"static": True})
    absolute: float = dataclasses.field(metadata={"static": True})
    relative: float = dataclasses.field(metadata={"static": True})
    norm_error: float = dataclasses.field(metadata={"static": True})
    checked: int = dataclasses.field(metadata={"static": True})
    directions: int = dataclasses.field(metadata={"static": True})
    undetermined: int = dataclasses.field(metadata={"static": True})
    kinks: int = dataclasses.field(metadata={"static": True})

    @property
    def key(self) -> str:
        """The leaf's name with its order, mode and scale where they are not the plain ones."""
        parts = [self.name]
        if self.order > 1:
            parts.append(f"order {self.order}")
        if self.mode != "reverse":
            parts.append(self.mode)
        if self.scale != 1:
            parts.append(f"x{self.scale:g}")
        return ", ".join(parts)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class GradCheck:
    """The result of `grad_check`.

    Attributes:
        checks: one `LeafCheck` for each leaf, mode, order and scale.
        ok: all of them are, and no value is NaN.
        reference: what the gradient was compared with: "exact" or "float64" differences of the value.
        value, value_reference: the value at the first scale, and without rounding (None where it is not known).
        notes: what was left out, and why.
        function, seconds: what was checked, and how long it took.
    """

    checks: tuple[LeafCheck, ...]
    ok: bool = dataclasses.field(metadata={"static": True})
    reference: str = dataclasses.field(metadata={"static": True})
    value: float = dataclasses.field(metadata={"static": True})
    value_reference: float | None = dataclasses.field(metadata={"static": True})
    notes: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    function: str = dataclasses.field(metadata={"static": True})
    seconds: float = dataclasses.field(metadata={"static": True})

    def at(self, scale: float) -> tuple[LeafCheck, ...]:
        """The checks at one scale."""
        return tuple(check for check in self.checks if check.scale == scale)

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger: ok (0 or 1), and every leaf's norm-wise error."""
        return {"ok": float(self.ok)} | {f"norm_error/{check.key}": check.norm_error for check in self.checks}

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "NOT ok"
        lines = [f"grad_check({self.function}): {verdict}, against {self.reference} differences of the value"]
        rows = [["leaf", "", "worst", "got", "expected", "error", "of the norm", "checked"]]
        for check in self.checks:
            where = "direction" if check.element is None else str(list(check.element)) if check.element else ""
            extent = f"{check.checked}" + (f" + {check.directions} directions" if check.directions else "")
            extent += f", {check.kinks} kinks" if check.kinks else ""
            extent += f", {check.undetermined} unknown" if check.undetermined else ""
            rows.append(
                [
                    check.key or "value",
                    check.reason or "ok",
                    where,
                    *(_short(x) for x in (check.got, check.expected_there, check.absolute, check.norm_error)),
                    extent,
                ]
            )
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines += ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    __repr__ = __str__


def _short(x: float | complex) -> str:
    return f"{x:.5g}" if isinstance(x, complex) or not math.isnan(x) else "?"
