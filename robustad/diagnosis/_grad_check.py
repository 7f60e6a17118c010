"""`grad_check`: is this gradient the derivative of this function, and accurate?"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustad.diagnosis._accuracy import wide
from robustad.diagnosis._arguments import AuditError
from robustad.diagnosis._grad_check_report import GradCheck, LeafCheck
from robustad.diagnosis._judgement import judged, known
from robustad.diagnosis._nan_inputs import refuse_nan_that_reaches
from robustad.diagnosis._options import count, is_number, name_of, numpy_seed, refuse_no_function, refuse_no_rtol
from robustad.diagnosis._point import Point, point
from robustad.diagnosis._probes import Probes, from_coordinates, probes
from robustad.diagnosis._program import Audited, derivative_program
from robustad.diagnosis._tracing import refuse_tracers


def grad_check(
    f: Callable[..., Any],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    scales: Sequence[float] = (1.0,),
    order: int = 1,
    rtol: float | None = None,
    elements: int = 100,
    directions: int = 2,
    key: jax.Array | None = None,
) -> Callable[..., GradCheck]:
    r"""Is the gradient of `f` the derivative of its value, and how many of its digits are right?

    The gradients of `jax.grad` and, in forward mode, of `jax.jvp` are compared with differences of the value alone:
    neither JAX's derivative rules nor your `custom_jvp` and `custom_vjp` rules are asked. With python-flint (`pip install
    'robustad[exact]'`) the value's program is evaluated in exact arithmetic, with a step of \(2^{-100}\), taking the
    decisions that it takes at the point: the reference has all digits, however small the derivative, and a wrong gradient of
    1e-17 is found like one of 1. Programs that are too large or use what has no exact rule are differenced in float64
    (Ridders), and what that cannot decide is said to be unknown.

    Args:
        f: as for `rad.audit`: a function to a real floating scalar.
        argnums, has_aux: as for `jax.grad`.
        scales: the check is made with the differentiated arguments times each of these: `(1e-20, 1, 1e20)` shows a norm
            whose squares overflow or vanish.
        order: 2 checks second derivatives too: the gradient of \(\langle \nabla f, v \rangle\) with a random v.
        rtol: a leaf (each slice of one that a scan runs over) is right where
            \(\lVert g - \nabla f \rVert \le \mathrm{rtol} \lVert \nabla f \rVert\); by default \(2^{-p/2}\), half of the p
            bits of the narrowest dtype that it passes through (2e-4 in float32, 1e-8 in float64, 6 % in bfloat16). A
            small element of a large leaf may lose its digits, not its rule: without rounding, each checked element must
            agree to rtol of itself.
        elements: how many elements are checked at most, each by itself; all, where there are no more.
        directions: how many random directions are checked too, for each leaf of which not all elements are.
        key: `jax.random.key` that draws elements, directions and v.

    Returns:
        A function of `f`'s arguments that returns a `GradCheck`, whose `.ok` is the verdict.

    Raises:
        ValueError: what `rad.audit` refuses; an option out of range.

    At kinks (relu and abs at 0, equal maxima) every value between the one-sided derivatives is right. What passes through
    `stop_gradient` counts as a constant, for the differences too: a straight-through estimator that is written with it,
    x + stop_gradient(round(x) - x), is ok. One by a custom rule is not the derivative of its value, and is reported.

    >>> import jax
    >>> from robustad.diagnosis import grad_check
    >>> check = grad_check(jax.nn.tanh)(-9.0109)  # 1 - tanh(x)^2 is 0 in float32
    >>> check.ok, check.checks[0].got, f"{check.checks[0].expected_there:.4g}"
    (False, 0.0, '5.961e-08')
    """
    refuse_no_function(f, "grad_check")
    options = _Options.checked(scales, order, rtol, elements, directions, key)

    @functools.wraps(f, updated=())
    def check(*args: Any, **kwargs: Any) -> GradCheck:
        refuse_tracers("grad_check", (args, kwargs))
        with jax.debug_nans(False), jax.debug_infs(False), jax.disable_jit(False):
            audited = derivative_program(f, argnums, has_aux, args, kwargs)
            refuse_nan_that_reaches(
                audited.arguments, jax.value_and_grad(audited.function), "the value or the gradient"
            )
            return _run(f, audited, options)

    return check


@dataclasses.dataclass(frozen=True)
class _Options:
    scales: tuple[float, ...]
    order: int
    rtol: float | None
    elements: int
    directions: int
    seed: Any

    @staticmethod
    def checked(scales: Any, order: Any, rtol: Any, elements: Any, directions: Any, key: Any) -> "_Options":
        given = tuple(scales) if isinstance(scales, Sequence | np.ndarray) else (scales,)
        if not given or not all(is_number(s) and 0 < abs(s) < np.inf for s in given):
            raise AuditError(f"`scales` must be finite numbers other than 0; got {scales!r}.")
        if not isinstance(order, int) or isinstance(order, bool) or order not in (1, 2, 3):
            raise AuditError(f"`order` must be 1, 2 or 3; got {order!r}.")
        refuse_no_rtol(rtol)
        count("elements", elements, 0)
        count("directions", directions, 0)
        if elements + directions == 0:
            raise AuditError(
                "`elements` and `directions` are both 0: there is nothing to check. Leave out one of them."
            )
        return _Options(tuple(map(float, given)), order, rtol, int(elements), int(directions), numpy_seed(key))


def _run(f: Any, audited: Audited, options: _Options) -> GradCheck:
    started = time.perf_counter()
    leaves, others = audited.arguments.leaves, audited.arguments.others
    checks: list[LeafCheck] = []
    notes: list[str] = []
    first: Point | None = None
    undefined = False
    for scale in options.scales:
        scaled = [_scaled(x, scale) for x in leaves]
        if lost := [name for name, x, y in zip(audited.arguments.names, leaves, scaled) if _unscalable(x, y)]:
            notes.append(
                f"not checked at scale {scale:g}: {', '.join(lost) or 'the argument'} leaves its dtype's range."
            )
            continue
        function, program = audited.function, audited
        for order in range(1, options.order + 1):
            if order > 1:
                function = _derivative_along(function, scaled, np.random.default_rng([*options.seed, order]))
            if order > 1 or scale != 1:
                program = derivative_program(function, 0, False, (scaled, others), {})
            at = point(program)
            first = first or at
            undefined |= order == 1 and np.isnan(at.value)
            notes += at.notes
            found, said = _checked(at, audited.arguments.names, order, scale, options)
            checks += found
            notes += said
    if first is None:
        raise AuditError(f"`scales`={options.scales!r}: the arguments leave their dtype's range at every one of them.")
    return GradCheck(
        checks=tuple(checks),
        ok=all(check.ok for check in checks) and not undefined,
        reference="exact" if first.slopes.exact else "float64",
        value=first.value,
        value_reference=first.value_reference,
        notes=tuple(dict.fromkeys([*_of_the_value(first, options), *notes])),
        function=name_of(f),
        seconds=time.perf_counter() - started,
    )


def _scaled(x: jax.Array, scale: float) -> jax.Array:
    if scale == 1:
        return x
    with np.errstate(over="ignore"):
        y = np.asarray(x)
        return jnp.asarray((y.astype(np.complex128 if np.iscomplexobj(y) else np.float64) * scale).astype(y.dtype))


def _unscalable(x: jax.Array, y: jax.Array) -> bool:
    """Whether finite numbers other than 0 do not survive."""
    a, b = np.asarray(x).astype(complex), np.asarray(y).astype(complex)
    return bool((np.isfinite(a) & (a != 0) & (~np.isfinite(b) | (b == 0))).any())


def _derivative_along(function: Any, leaves: list[jax.Array], random: np.random.Generator) -> Any:
    """The derivative of a function of (leaves, others) along random directions, one a leaf."""
    steps = [jnp.asarray(random.standard_normal(x.shape).astype(np.float32)).astype(x.dtype) for x in leaves]

    def along(leaves: Sequence[jax.Array], others: Sequence[jax.Array]) -> jax.Array:
        terms = [jnp.real(jnp.sum(g * v)) for g, v in zip(jax.grad(function)(list(leaves), list(others)), steps)]
        widest = max((t.dtype for t in terms), key=lambda dtype: dtype.itemsize)
        return functools.reduce(jnp.add, [t.astype(widest) for t in terms])

    return along


def _of_the_value(at: Point, options: _Options) -> list[str]:
    expected, value = at.value_reference, at.value
    precision = at.audited.value.precision or 53
    tolerance = options.rtol or 2.0 ** (-precision / 2)
    if np.isnan(value):
        return ["the value is NaN, which has no derivative; robustad.audit names the statement that makes it."]
    if expected is None or not np.isfinite(expected) or abs(value - expected) <= tolerance * abs(expected):
        return []
    if abs(expected) < 2.0**-126 and abs(value) < 2.0**-126:
        return []
    return [f"the value is wrong too: {value:.6g}, without rounding {expected:.6g}."]


def _checked(
    at: Point, names: Sequence[str], order: int, scale: float, options: _Options
) -> tuple[list[LeafCheck], list[str]]:
    """The checks of every leaf in both modes, and notes."""
    leaves = [np.asarray(x).astype(wide(np.asarray(x))) for x in at.audited.arguments.leaves]
    random = np.random.default_rng(options.seed)
    probed = probes(at.slopes, leaves, options.elements, options.directions, random)
    forward, notes = _forward(at, probed)
    checks: list[LeafCheck] = []
    for k, (name, gradient, probe, x) in enumerate(zip(names, at.gradients, probed, at.audited.arguments.leaves)):
        rtol = options.rtol or 2.0 ** (-gradient.precision / 2)
        reference = known(gradient, probe, rtol, float(jnp.finfo(x.dtype).tiny))
        for mode, got in (("reverse", gradient.working), ("forward", forward[k] if forward else None)):
            if got is not None:
                describe = functools.partial(LeafCheck, name=name, order=order, mode=mode, scale=scale)
                checks.append(judged(got, gradient, probe, reference, rtol, describe))
    return checks, notes


def _forward(at: Point, probed: Sequence[Probes]) -> tuple[list[np.ndarray] | None, list[str]]:
    """The derivatives along the probed elements by `jax.jvp`, NaN elsewhere; None where `f` has no forward mode."""
    leaves, others = at.audited.arguments.leaves, at.audited.arguments.others

    @jax.jit
    def derivative(steps: list[jax.Array], leaves: list[jax.Array], others: list[jax.Array]) -> jax.Array:
        return jax.jvp(lambda moved: at.audited.function(moved, others), (leaves,), (steps,))[1]

    zeros = [np.zeros(x.shape, x.dtype) for x in leaves]
    found = []
    try:
        for k, (x, probe) in enumerate(zip(leaves, probed)):
            width = probe.slopes.value.shape[1]
            made = np.full((x.size, width), np.nan)
            for i in np.flatnonzero(probe.taken):
                for axis in range(width):
                    step = np.zeros(x.size, x.dtype)
                    step[i] = 1j if axis else 1
                    steps = [*zeros[:k], step.reshape(x.shape), *zeros[k + 1 :]]
                    made[i, axis] = float(derivative(steps, leaves, others))
            found.append(from_coordinates(made, np.empty(x.shape, wide(np.asarray(x)))))
    except TypeError as error:  # a custom_vjp has no forward mode
        return None, [f"forward mode is not defined: {str(error).splitlines()[0][:200]}"]
    return found, []
