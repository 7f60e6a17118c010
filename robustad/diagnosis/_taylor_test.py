"""`taylor_test`: does the remainder of the first-order Taylor polynomial shrink with the square of the step?"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from robustad.arithmetic._ball import flint, to_float
from robustad.diagnosis._accuracy import wide
from robustad.diagnosis._arguments import AuditError
from robustad.diagnosis._nan_inputs import refuse_nan_that_reaches
from robustad.diagnosis._options import count, is_number, name_of, numpy_seed, refuse_no_function
from robustad.diagnosis._point import Point, point
from robustad.diagnosis._probes import coordinates, steps_like
from robustad.diagnosis._program import derivative_program
from robustad.diagnosis._slopes import ExactSlopes
from robustad.diagnosis._tracing import refuse_tracers

_STEPS = 2.0 ** -np.arange(2, 25)
_BITS = 512


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class TaylorTest:
    r"""The result of `taylor_test`.

    Attributes:
        steps: the step sizes h, relative to the arguments.
        remainders: \(|f(x + h v) - f(x) - h \langle g, v \rangle|\), one row a direction; NaN where it does not stand above
            rounding.
        slopes: of each direction, that of the remainder at the smallest steps: 2, or more where the second derivative
            along it vanishes; infinite where there is no remainder (linear); NaN where nothing could be computed.
        ok: every slope is at least 2 - tolerance.
        reference: how the values were computed, "exact" or "float64".
        function: what was tested.
    """

    steps: np.ndarray
    remainders: np.ndarray
    slopes: tuple[float, ...] = dataclasses.field(metadata={"static": True})
    ok: bool = dataclasses.field(metadata={"static": True})
    reference: str = dataclasses.field(metadata={"static": True})
    function: str = dataclasses.field(metadata={"static": True})

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger."""
        return {"ok": float(self.ok), "slope": min(self.slopes)}

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "NOT ok"
        lines = [f"taylor_test({self.function}): {verdict}, by {self.reference} values"]
        for slope, row in zip(self.slopes, self.remainders):
            known = row[np.isfinite(row) & (row > 0)]
            if slope == np.inf:
                lines.append("  linear along this direction: the remainder is 0")
            elif np.isnan(slope):
                lines.append("  unknown: the gradient or the value is not finite")
            else:
                what = "2 of a right gradient" if slope > 1.5 else "1 of a wrong gradient"
                lines.append(f"  slope {slope:.3f} ({what}); remainders {known[0]:.2e} to {known[-1]:.2e}")
        return "\n".join(lines)

    __repr__ = __str__


def taylor_test(
    f: Callable[..., Any],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    directions: int = 2,
    tolerance: float = 0.1,
    key: jax.Array | None = None,
) -> Callable[..., TaylorTest]:
    r"""Whether the gradient of `f` is right, by Taylor's theorem.

    \(|f(x + h v) - f(x) - h \langle g, v \rangle|\) shrinks like \(h^2\) with a right gradient g and like h with a wrong
    one. The values are computed without rounding (with python-flint, for small programs), or in float64; g is what the
    derivative program of `jax.grad` gives without rounding, so that a step can be small in every dtype. What a dtype
    loses to rounding is `grad_check`'s business. The directions v are random, in all differentiated arguments, relative
    to their elements. `f` takes the decisions that it takes at x, and ties may be broken either way.

    Args:
        f: as for `rad.audit`: a function to a real floating scalar.
        argnums, has_aux: as for `jax.grad`.
        directions: how many random directions.
        tolerance: slopes of at least 2 - tolerance are right.
        key: `jax.random.key` that draws the directions.

    Returns:
        A function of `f`'s arguments that returns a `TaylorTest`.

    Raises:
        ValueError: what `rad.audit` refuses; an option out of range.

    Source: Farrell, Ham, Funke, Rognes, SIAM J. Sci. Comput. 35 (2013), section 5.

    >>> import jax.numpy as jnp
    >>> from robustad.diagnosis import taylor_test
    >>> test = taylor_test(lambda x: jnp.sum(jnp.sin(x)))(jnp.array([0.5, 2.0]))
    >>> test.ok, [round(s, 2) for s in test.slopes]
    (True, [2.0, 2.0])
    """
    refuse_no_function(f, "taylor_test")
    count("directions", directions, 1)
    if not is_number(tolerance) or not 0 < tolerance < 1:
        raise AuditError(f"`tolerance` must be a number in (0, 1); got {tolerance!r}.")
    seed = numpy_seed(key)

    @functools.wraps(f, updated=())
    def test(*args: Any, **kwargs: Any) -> TaylorTest:
        refuse_tracers("taylor_test", (args, kwargs))
        with jax.debug_nans(False), jax.debug_infs(False), jax.disable_jit(False):
            audited = derivative_program(f, argnums, has_aux, args, kwargs)
            refuse_nan_that_reaches(
                audited.arguments, jax.value_and_grad(audited.function), "the value or the gradient"
            )
            at = point(audited)
            random = np.random.default_rng(seed)
            found = [_along(at, random) for _ in range(directions)]
        slopes = tuple(slope for slope, _ in found)
        return TaylorTest(
            steps=_STEPS,
            remainders=np.array([row for _, row in found]),
            slopes=slopes,
            ok=all(slope >= 2 - tolerance for slope in slopes),
            reference="exact" if at.slopes.exact else "float64",
            function=name_of(f),
        )

    return test


def _along(at: Point, random: np.random.Generator) -> tuple[float, np.ndarray]:
    """The slope and the remainders along a random direction."""
    leaves = [np.asarray(x).astype(wide(np.asarray(x))) for x in at.audited.arguments.leaves]
    steps = steps_like(leaves, random)
    terms = [(coordinates(g.exact) * coordinates(np.conj(v))).ravel() for g, v in zip(at.gradients, steps)]
    flat = np.concatenate(terms)
    slope, size = float(flat.sum()), float(np.abs(flat).sum())
    # Constants of the derivative's rules that are rounded to its dtype make no wrong gradient.
    (true, *_) = at.slopes.along(steps)
    precision = min(g.precision for g in at.gradients)
    within = 16 * 2.0**-precision * size
    if float(true.low) - within <= slope <= float(true.high) + within:  # at a tie: every gradient in between is right
        slope = float(true.value)
    with np.errstate(all="ignore"):
        remainder, rounding = _remainders(at, steps, slope, size)
        return _slope(remainder, rounding), np.where(remainder > rounding, remainder, np.nan)


def _remainders(at: Point, steps: list[np.ndarray], slope: float, size: float) -> tuple[np.ndarray, np.ndarray]:
    """The remainders at every step, and how large rounding alone may make them."""
    if isinstance(at.slopes, ExactSlopes):
        with flint().ctx.workprec(_BITS):
            arb = flint().arb

            start, *moved = (at.slopes.moved(steps, arb(h), _BITS)[0][()] for h in (0.0, *_STEPS))
            remainder = np.array([to_float(abs(y - start - arb(h) * arb(slope))) for h, y in zip(_STEPS, moved)])
        return remainder, 100 * 2.0**-52 * size * _STEPS
    (values,) = at.slopes.moved(steps, np.append(_STEPS, 0.0))
    remainder = np.abs(values[:-1] - values[-1] - _STEPS * slope)
    return remainder, 100 * 2.0**-52 * (size * _STEPS + np.maximum(np.abs(values[:-1]), abs(values[-1])))


def _slope(remainder: np.ndarray, rounding: np.ndarray) -> float:
    """The mean slope at the four smallest steps whose remainders stand above rounding."""
    if not np.isfinite(rounding).all() or not np.isfinite(remainder[-4:]).all():
        return np.nan
    above = np.flatnonzero((remainder > rounding) & np.isfinite(remainder))
    if len(above) < 2:
        return np.inf
    last = above[-1]
    first = max(above[0], last - 4)
    return float(np.log2(remainder[first] / remainder[last]) / (last - first))
