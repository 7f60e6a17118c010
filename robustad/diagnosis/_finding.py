"""A finding: one cause of a wrong gradient, at one statement of the user's."""

import dataclasses
import linecache


@dataclasses.dataclass(frozen=True)
class Finding:
    """One cause, or one thing worth a note.

    Attributes:
        kind: "nan", "overflow", "underflow", "cancellation", "absorption", "unstable-derivative", "zero-times-inf",
            "vanishing", "exploding", "ill-conditioned", "branch-divergence", "shadow-lost" or "reference-untrusted".
        phase: "forward" where the equation computes the value, "backward" where it computes the derivative only.
        file, line, function: the user's statement (line is 1-based); "<unknown>", 0 and "" where no frame is the user's.
        primitive: the JAX primitive to blame; for an equation of a derivative rule, the primitive that it differentiates.
        bits_lost: the most bits lost by a leaf that it reaches (all of them where the leaf is not finite).
        reaches: names of the gradient leaves (and "value") that it reaches.
        committed_at: the line where the rounding was made, when it is another one; None where it is not known.
        committed_file: the file of that line, or None.
        invalid: the class of the invalid operation: "0*inf", "inf-inf", "0/0", "inf/inf", "log 0",
            "sqrt of negative", or None.
        cause, remedy: a sentence each.
        shows_at: "file:line (primitive)" of the equation that first makes a non-finite value of it, or None.
    """

    kind: str
    phase: str
    file: str
    line: int
    function: str
    primitive: str
    bits_lost: float | None
    reaches: tuple[str, ...]
    cause: str
    remedy: str
    committed_at: int | None = None
    invalid: str | None = None
    shows_at: str | None = None
    committed_file: str | None = None

    @property
    def source(self) -> str:
        """The text of the user's line, or ""."""
        return linecache.getline(self.file, self.line).strip()
