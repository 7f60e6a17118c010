"""What `stage_gains` says: gains, and their table."""

import dataclasses
import math

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class StageGains:
    r"""What `stage_gains` says. Gains are held as log2, which does not overflow; all have shape (stages,).

    Attributes:
        log2_stage: log2 of \(\lVert J_k \rVert_2\): what stage k alone can do to an error.
        log2_cumulative: log2 of \(\lVert J_k \cdots J_1 \rVert_2\): what the stages up to k do to an error of x. -inf
            where nothing passes; NaN where a derivative is not finite.
        converged: whether both are known; else they are estimates from below.
        names: of the stages.
    """

    log2_stage: np.ndarray
    log2_cumulative: np.ndarray
    converged: np.ndarray
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    @property
    def stage(self) -> np.ndarray:
        """The gains themselves; inf where they overflow."""
        return _power(self.log2_stage)

    @property
    def cumulative(self) -> np.ndarray:
        """The cumulative gains themselves; inf where they overflow."""
        return _power(self.log2_cumulative)

    @property
    def log2_bound(self) -> np.ndarray:
        """log2 of the product of the norms: what the stages would do if each met the direction that it amplifies most."""
        return np.cumsum(self.log2_stage)

    @property
    def worst(self) -> int:
        """The stage of the largest gain."""
        return int(np.argmax(self.log2_stage))

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger."""
        return {f"log2_gain/{k}": float(x) for k, x in enumerate(self.log2_stage)} | {
            "log2_gain/all": float(self.log2_cumulative[-1])
        }

    def __str__(self) -> str:
        n = len(self.names)
        shown = range(n) if n <= 40 else [*range(20), *range(n - 20, n)]
        lines = [
            f"gains of {n} stages, as powers of two",
            f"{'':28}{'stage':>10}{'so far':>10}{'product of norms':>19}",
        ]
        for k in shown:
            if n > 40 and k == n - 20:
                lines.append(f"  ... {n - 40} more")
            known = not math.isnan(self.log2_stage[k] + self.log2_cumulative[k])
            mark = "" if self.converged[k] else "   at least" if known else "   not finite"
            mark += "   <- largest" if k == self.worst and n > 1 and known else ""
            lines.append(
                f"{k:4} {self.names[k]:23.23}{self.log2_stage[k]:10.3f}{self.log2_cumulative[k]:10.3f}"
                f"{self.log2_bound[k]:19.3f}{mark}"
            )
        return "\n".join(lines)


def _power(exponents: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return np.exp2(exponents)
