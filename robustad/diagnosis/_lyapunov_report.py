"""What `lyapunov_exponents` says: exponents, and what follows from them."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad.diagnosis._on_host import namespace, on_host


class Horizon(NamedTuple):
    """How long something lasts: in units of time, and in steps."""

    time: Array
    steps: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LyapunovExponents:
    r"""What `lyapunov_exponents` says of an orbit; under `jax.vmap`, of each of a batch of them (leading axes).

    Attributes:
        exponents: shape (k,), the largest first: nats per unit of time. -inf where a direction is annihilated; NaN where
            the orbit diverged, and (last) where a direction shrinks to rounding beside the others within `every` steps:
            smaller steps, or a wider dtype, resolve it.
        standard_error: shape (k,): from the averages of consecutive blocks of the orbit (30 or so).
        diverged_at: the first step, counted from the start, whose state or Jacobian is not finite; -1 where there is none.
        period: of the cycle that the state, in floating point, is exactly on at the end; 0 where it is on none.
        cycle_from: a step from which the orbit is known to be on that cycle; -1 where it is on none.
        at_rest: whether the last step has moved the state by no more than rounding.
        steps, burn_in, dt, size: how many steps were measured, and skipped before them; time per step; real
            components of the state.
        dtype: the narrowest dtype of the state.
        function: the name of the map.
    """

    exponents: Array
    standard_error: Array
    diverged_at: Array
    period: Array
    cycle_from: Array
    at_rest: Array
    steps: int = dataclasses.field(metadata={"static": True})
    burn_in: int = dataclasses.field(metadata={"static": True})
    dt: float = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})
    function: str = dataclasses.field(metadata={"static": True})

    @property
    def largest(self) -> Array:
        """The largest exponent, in nats per unit of time."""
        return self.exponents[..., 0]

    @property
    def _resolution(self) -> Any:
        """What cannot be told from an exponent of 0: statistics, and the growth by a constant factor in a finite time."""
        return 3 * on_host(self.standard_error)[..., 0] + 3 / (self.steps * self.dt)

    @property
    def verdict(self) -> Any:
        """One of these, as a string (a NumPy array of them for a batch; not under `jax.jit`).

        - "chaotic": the largest exponent is positive, beyond its error
        - "periodic": it is zero within its error (a limit cycle of a flow, or quasi-periodic motion), or it is negative
          and the state repeats with a period of more than one step
        - "stable": it is negative: the orbit goes to a fixed point, or to a cycle that it has not reached yet
        - "collapsed": it is positive on a cycle on which rounding has caught the orbit. The exponents are
          those of that unstable cycle, not of the attractor: use a wider dtype, or start elsewhere
        - "diverged": state or Jacobian became inf or NaN at step `diverged_at`
        """
        first, period, diverged_at = (np.asarray(x) for x in (self.largest, self.period, self.diverged_at))
        resolution = np.where(np.isfinite(first), self._resolution, 0)
        cases = [
            diverged_at >= 0,
            (first > resolution) & (period > 0),
            first > resolution,
            (first >= -resolution) | (period > 1) & ~np.asarray(self.at_rest),
        ]
        found = np.select(cases, ["diverged", "collapsed", "chaotic", "periodic"], "stable")
        return found if found.ndim else str(found)

    @property
    def converged(self) -> Array:
        """Whether the largest exponent's standard error is at most 5 % of it (or one e-folding in the whole time)."""
        first, error = on_host((self.exponents, self.standard_error))
        first, error = first[..., 0], error[..., 0]
        xp = namespace(first)
        settled = (error <= 0.05 * xp.abs(first) + 1 / (self.steps * self.dt)) | xp.isneginf(first)
        return settled & (on_host(self.diverged_at) < 0)

    @property
    def kaplan_yorke_dimension(self) -> Array:
        r"""\(j + (\lambda_1 + \dots + \lambda_j) / |\lambda_{j+1}|\), j the largest with a sum that is not negative.

        NaN where the k exponents do not decide it: their sums are all positive, and k is less than the state's size; or the
        one that is next is not resolved.
        Source: Kaplan and Yorke, Chaotic behavior of multidimensional difference equations (1979).
        """
        exponents = on_host(self.exponents)
        xp, k = namespace(exponents), exponents.shape[-1]
        sums = xp.cumsum(exponents, axis=-1)
        j = xp.sum(sums >= 0, axis=-1)
        last = xp.take_along_axis(sums, xp.maximum(j - 1, 0)[..., None], -1)[..., 0]
        following = xp.take_along_axis(exponents, xp.minimum(j, k - 1)[..., None], -1)[..., 0]
        inside = (j > 0) & (j < k)
        between = j + xp.where(inside, last, 0) / xp.where(inside, xp.abs(following), 1)
        found = xp.where(j < k, between, k if k == self.size else np.nan)
        return xp.where(xp.isnan(exponents[..., 0]), np.nan, found)

    def predictability_horizon(self, initial_error: float | None = None, tolerance: float = 1.0) -> Horizon:
        r"""When an error of the state has grown to a tolerance: \(\ln(\text{tolerance} / \text{error}) / \lambda_1\).

        Args:
            initial_error: in the tolerance's unit. By default the rounding of the state's dtype, eps, which is relative:
                then the tolerance is relative too.
            tolerance: the error at which a prediction is of no use.

        Returns:
            Time and steps; inf where the largest exponent is not positive beyond its error; NaN where the orbit diverged.
        """
        error = float(jnp.finfo(self.dtype).eps) if initial_error is None else float(initial_error)
        if not 0 < error < math.inf or not 0 < tolerance < math.inf:
            raise ValueError(
                f"`initial_error` and `tolerance` must be positive numbers; got {initial_error!r} and {tolerance!r}."
            )
        first = on_host(self.exponents)[..., 0]
        xp = namespace(first)
        grows = first > self._resolution
        time = max(math.log(tolerance / error), 0.0) / xp.where(grows, first, 1)
        time = xp.where(xp.isnan(first), np.nan, xp.where(grows, time, np.inf))
        return Horizon(time, time / self.dt)

    def gradient_growth(self, n: int) -> Array:
        """log2 of the factor by which reverse mode through n steps typically makes a gradient larger."""
        return on_host(self.exponents)[..., 0] * (self.dt * n / math.log(2))

    def gradient_horizon(self, dtype: Any = "float32") -> Array:
        """How many steps reverse mode goes through before a gradient of 1 leaves a dtype's range.

        It overflows where the largest exponent is positive, underflows where it is negative; inf where it is neither,
        beyond its error.
        """
        if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            raise TypeError(f"`dtype` must be a floating dtype; got {jnp.dtype(dtype)}.")
        limits = jnp.finfo(dtype)
        first = on_host(self.exponents)[..., 0]
        xp = namespace(first)
        room = xp.where(first > 0, math.log(float(limits.max)), -math.log(float(limits.tiny)))
        resolved = (xp.abs(first) > self._resolution) | xp.isneginf(first)
        found = room / xp.where(resolved, xp.abs(first * self.dt), 1)
        return xp.where(xp.isnan(first), np.nan, xp.where(resolved, found, np.inf))

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger."""
        out = {f"exponent/{i + 1}": float(x) for i, x in enumerate(self.exponents)}
        out |= {"kaplan_yorke_dimension": float(self.kaplan_yorke_dimension), "converged": float(self.converged)}
        return out | {"predictability_horizon": float(self.predictability_horizon().time)}

    def __str__(self) -> str:
        if self.exponents.ndim > 1:
            kinds, counts = np.unique(self.verdict, return_counts=True)
            return f"Lyapunov exponents of {self.function}, a batch: " + ", ".join(
                f"{n} {kind}" for kind, n in zip(kinds, counts)
            )
        return "\n".join(_lines(self))


def _lines(found: LyapunovExponents) -> list[str]:
    unit = "step" if found.dt == 1 else f"unit of time (dt = {found.dt:g})"
    unsure = "" if bool(found.converged) or found.verdict == "diverged" else ", NOT converged: take more steps"
    lines = [f"Lyapunov exponents of {found.function} in {found.dtype}: {found.verdict}{unsure}"]
    if found.verdict == "diverged":
        return [*lines, f"  state or Jacobian is not finite at step {int(found.diverged_at)}: there are no exponents"]
    if found.verdict == "collapsed":
        lines.append(
            f"  rounding has caught the orbit on a cycle of {int(found.period)} from step {int(found.cycle_from)} on, or "
            "before: the exponents are that cycle's. Use a wider dtype, or start elsewhere."
        )
    elif int(found.period):
        lines.append(
            f"  repeats exactly, with period {int(found.period)}, from step {int(found.cycle_from)} on or before"
        )
    shown = list(zip(np.asarray(found.exponents), np.asarray(found.standard_error)))
    lines += [f"  {x:12.6g} ± {error:.2g}" for x, error in shown[:12]]
    lines += [f"  ... {len(shown) - 12} more"] if len(shown) > 12 else []
    lines[-1] += f"   nats per {unit}, over {found.steps} steps"
    if any(math.isnan(x) for x, _ in shown):
        lines.append("  NaN: shrinks to rounding beside the others within a step: smaller steps, or a wider dtype")
    horizon = found.predictability_horizon()
    lines.append(f"  Kaplan-Yorke dimension {float(found.kaplan_yorke_dimension):.4g}")
    if math.isfinite(float(horizon.steps)):
        lines.append(f"  rounding has grown to the size of the state after {float(horizon.steps):.0f} steps")
    reach = float(found.gradient_horizon())
    if math.isfinite(reach):
        what = "overflow" if float(found.largest) > 0 else "underflow"
        lines.append(f"  gradients of 1 {what} float32 after {reach:.0f} steps of reverse mode")
    return lines
