"""`audit`: where and why is this gradient wrong?"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr
from robustad.arithmetic._ball_cost import program_cost
from robustad.arithmetic._shadow import Shadow
from robustad.diagnosis import _causes
from robustad.diagnosis._accuracy import Accuracy, accuracy, bits_lost, wide
from robustad.diagnosis._arguments import AuditError
from robustad.diagnosis._blame import blame
from robustad.diagnosis._contribution import contributions
from robustad.diagnosis._divergence import divergence, divergences, with_decision
from robustad.diagnosis._exact_ranking import exact_rank
from robustad.diagnosis._first_pass import shadow_program
from robustad.diagnosis._leaves import format_of, rounded_to
from robustad.diagnosis._mending import Stabilized, with_remedies
from robustad.diagnosis._nan_inputs import refuse_nan
from robustad.diagnosis._notes import lost, unreferenced
from robustad.diagnosis._options import is_number, name_of, refuse_no_function
from robustad.diagnosis._program import Audited, derivative_program
from robustad.diagnosis._ranking import MOST_RANKED, rank
from robustad.diagnosis._reader import Reader
from robustad.diagnosis._report import Report, summary
from robustad.diagnosis._tracing import refuse_tracers
from robustad.diagnosis._truth import Truth, truth
from robustad.rewriting import Rewrite, stabilize

log = logging.getLogger("robustad")


def audit(
    f: Callable[..., Any],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    threshold: float = 0.5,
    mode: str = "vjp",
    order: int = 1,
    tangents: Any = None,
    ranking: bool | None = None,
    stabilized: bool = False,
) -> Callable[..., Report]:
    r"""Where, why and how badly is the gradient of `f` wrong?

    Runs `jax.value_and_grad(f)` and, beside it and following its branches, the same program in float64, as one XLA
    program. Where that cannot be the truth (it is not finite, it is 0, the verdict is bad, or the program is in float64
    itself) a small program is evaluated exactly, a tiny one always, if python-flint is installed (`robustad[exact]`).
    Where a gradient leaf is not finite or has lost too many bits, further passes find the statements to blame, and the
    branches that rounding took; where the value is another for those, the reference is that of the right ones.

    Args:
        f: a function to a real floating scalar, as for `jax.grad`. Nothing in it needs to change. Arrays in its
            arguments are traced; other leaves (Python ints, strings, functions) are passed as they are.
        argnums: which positional arguments to differentiate: their floating leaves (flax nnx: the `Param`s;
            equinox: the arrays).
        has_aux: whether `f` returns (value, aux).
        threshold: a leaf may lose this share of its precision p. Bits lost are
            \(\mathrm{clip}(p + \log_2(\lVert g - g^* \rVert_2 / s), 0, p)\) with p = 24 in float32, 11 in float16, 8 in
            bfloat16 (the narrowest dtype that the leaf's computation passes through) and s the norm of the reference, or,
            for a structural zero, the size of the terms that its last reduction adds up.
        mode: "vjp" audits the gradient. "jvp" audits forward mode: `f` may return any pytree of arrays, and the leaves are
            the tangents of its floating outputs (`Report.value` is then all of them in one array, where they are several).
        order: 2 audits the derivative of the gradient in one direction v, a Hessian-vector product: `Report.value` is
            \(\langle \nabla f, v \rangle\), and the leaves are \(\nabla^2 f\, v\).
        tangents: the direction that mode "jvp" and order 2 take, like the differentiated arguments; by default ones.
        stabilized: whether to look, where the gradient is not good, at that of `robustad.stabilize(f)` too, at the cost of
            another first pass: `Report.stabilized` has its bits lost, and the remedies name its replacements.
        ranking: whether `Report.ranking` lists which statements made the errors. None: where the gradient is not good.

    Returns:
        A function of `f`'s arguments that returns a `Report`. Every call traces and compiles anew, and runs the program
        once, and several times more where something is wrong or in doubt, with its side effects (callbacks, printing) each
        time. It cannot be called under `jax.jit`: audit the function, not a trace of it.

    Raises:
        AuditError: (a ValueError) on calling: `f` does not trace, is not a floating scalar, or has nothing to
            differentiate; `argnums` is wrong; NaN in the inputs, and nothing else, makes the value or the gradient NaN; the
            program uses mutable arrays (`jax.new_ref`).

    A leaf that is wholly in float64 and has no exact reference is looked at for non-finite values only, and a note says so.

    Example:
        >>> import jax.numpy as jnp
        >>> def loss(x):
        ...     return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))
        >>> report = audit(loss)(jnp.array([0.0, 4.0]))
        >>> report.ok, report.findings[0].kind, report.findings[0].primitive
        (False, 'zero-times-inf', 'sqrt')
    """
    refuse_no_function(f, "audit")
    if not is_number(threshold) or not 0 < threshold <= 1:
        raise AuditError(f"`threshold` must be a share of the precision in (0, 1]; got {threshold!r}.")
    if mode not in ("vjp", "jvp"):
        raise AuditError(f'`mode` must be "vjp" (reverse mode) or "jvp" (forward mode); got {mode!r}.')
    if order not in (1, 2) or (order == 2 and mode == "jvp"):
        raise AuditError(
            f'`order` must be 1, or 2 in mode "vjp"; got order={order!r}, mode={mode!r}. In mode "jvp" audit `jax.grad(f)`.'
        )
    if ranking is not None and not isinstance(ranking, bool):
        raise AuditError(f"`ranking` must be True, False or None (where the gradient is not good); got {ranking!r}.")
    if not isinstance(stabilized, bool):
        raise AuditError(f"`stabilized` must be True or False; got {stabilized!r}.")
    if tangents is not None and mode == "vjp" and order == 1:
        raise AuditError('`tangents` belong to mode="jvp" or order=2; the gradient takes none. Leave them out.')

    @functools.wraps(f, updated=())
    def audited(*args: Any, **kwargs: Any) -> Report:
        # The user's own switches against NaNs and compilation would stop the passes instead of informing them.
        refuse_tracers("audit", (args, kwargs))
        with jax.debug_nans(False), jax.debug_infs(False), jax.disable_jit(False):
            started = time.perf_counter()
            log.info("tracing the gradient")
            audited = derivative_program(f, argnums, has_aux, args, kwargs, mode, order, tangents)
            report, references = _run(audited, f, float(threshold), ranking)
            if stabilized and not report.ok:
                log.info("the same of stabilize(%s)", report.function)
                better = stabilize(f)
                program = derivative_program(better, argnums, has_aux, args, kwargs, mode, order, tangents)
                after = _after(program, references, float(threshold), better.rewrites(*args, **kwargs))
                findings = with_remedies(report.findings, after)
                report = dataclasses.replace(report, stabilized=after, findings=findings)
            return dataclasses.replace(report, seconds=time.perf_counter() - started)

    return audited


def _run(audited: Audited, f: Any, threshold: float, ranking: bool | None) -> tuple[Report, list[Any]]:
    """The report, and the references of value and gradient leaves."""
    with jax.enable_x64(True):
        log.info("first pass: %d equations, in their own precision and in float64", len(audited.flow.sites))
        (value, *gradients), sizes = shadow_program(audited)(*audited.operands)
        outputs: list[Any] = [value, *gradients]
        verdict = _verdict(audited, outputs, sizes, threshold)
        doubtful = verdict.wrong or verdict.doubtful or _is_tiny(audited)
        exact = truth(audited, sizes, EXACT_LIMIT) if doubtful else None
        bits_needed = None
        if exact is not None:
            highs = [np.asarray(out.high) for out in outputs]
            refuted = exact.refutes(highs)
            outputs = [o if t is None else Shadow(o.working, jnp.asarray(t)) for o, t in zip(outputs, exact.outputs)]
            known = [t is not None for t in exact.outputs]
            verdict = _verdict(audited, outputs, sizes, threshold, exact)
            # Where balls have grown too wide for what is wrong, float64's twins tell more.
            if _in_float64(audited) or (refuted and all(known[k] for k, *_ in verdict.wrong)):
                bits_needed = exact.bits
        other, followed = divergence(audited, outputs, sizes, threshold), outputs
        if other is not None and other.decides:
            outputs = [Shadow(o.working, jnp.asarray(x)) for o, x in zip(outputs, other.outputs)]
            verdict = _verdict(audited, outputs, sizes, threshold)
        leaves, wrong, names = verdict.leaves, verdict.wrong, verdict.names
        reference, value_bits = verdict.value
        nonfinite = {name for _, name, leaf, _ in wrong if name in names and (leaf is None or leaf.nonfinite)}
        bits = {"value": value_bits} | {name: leaf.worst for name, leaf in zip(audited.names, leaves)}
        reader, found, notes, ranked = Reader(audited), [], [], {}
        if bool(wrong) if ranking is None else ranking:
            wanted = _rankable(verdict, nonfinite, bits)
            ranked = rank(audited, wanted) if bits_needed is None else exact_rank(audited, wanted, bits_needed)
            if other is not None and other.decides:
                ranked = with_decision(ranked, {name: k for k, name, _ in wanted}, other, followed)
        if other is not None:
            most = max((bits[name] or 0.0 for name in names), default=None)
            first, *rest = divergences(reader, other, sorted(names), most)
            found, notes = ([first], rest) if other.decides and names else ([], [first, *rest])
        if wrong and not found:
            blamed = blame(audited, wrong, bool(nonfinite), bits_needed)
            if nonfinite and not blamed:
                refuse_nan(audited.arguments, "the value or the gradient")
            found, others = _causes.findings(reader, blamed, ranked, names, nonfinite, bits)
            notes = [*others, *notes]
    notes = [*notes, *lost(audited), *unreferenced(audited, leaves)]
    report = Report(
        value=value.working,
        gradient=audited.like([leaf.gradient for leaf in leaves]),
        reference=audited.like([leaf.reference for leaf in leaves]),
        bits_lost=audited.like([leaf.bits_lost for leaf in leaves]),
        ok=not names,
        findings=tuple(found),
        notes=tuple(notes),
        value_bits_lost=value_bits,
        value_reference=reference,
        function=name_of(f),
        threshold=threshold,
        dtype=_dtype(audited),
        equations=len(audited.flow.sites),
        seconds=0.0,
        leaves=tuple(summary(name, leaf, ranked.get(name)) for name, leaf in zip(audited.names, leaves)),
        ranking=contributions(reader, ranked),
    )
    known = [value_bits, *(leaf.bits_lost for leaf in leaves)]
    return report, [o.high if bits is not None else None for o, bits in zip(outputs, known, strict=True)]


def _after(audited: Audited, references: Sequence[Any], threshold: float, rewrites: Sequence[Rewrite]) -> Stabilized:
    """The verdict on a stabilized function, without causes, by the references of the original where there are any."""
    with jax.enable_x64(True):
        made, sizes = shadow_program(audited)(*audited.operands)
        outputs = [o if r is None else Shadow(o.working, jnp.asarray(r)) for o, r in zip(made, references, strict=True)]
        verdict = _verdict(audited, outputs, sizes, threshold)
    lost = {name: leaf.worst for name, leaf in zip(audited.names, verdict.leaves)}
    return Stabilized(not verdict.names, lost | {"value": verdict.value[1]}, tuple(rewrites))


EXACT_LIMIT = 3e6
"""Scalar operations that an exact reference may take: about a second."""

EXACT_ALWAYS = 2e4
"""The same where nothing looks wrong: float64 may be wrong in the same way, and so small a program costs next to nothing."""

Wrong: TypeAlias = tuple[int, str, Accuracy | None, np.ndarray]
"""(number of the output, its name, its accuracy or None for the value, its failing slices)."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Verdict:
    """leaves, value (reference, bits lost): the outputs beside their references. names: of the outputs behind ok = False.
    wrong: those, and the value where it is worth a note. doubtful: whether some reference is missing, is a plain 0, or was
    taken for one."""

    leaves: list[Accuracy]
    value: tuple[Any, float | None]
    wrong: list[Wrong]
    names: set[str]
    doubtful: bool


def _verdict(
    audited: Audited,
    outputs: Sequence[Shadow],
    sizes: dict[_jaxpr.Path, jax.Array],
    threshold: float,
    exact: Truth | None = None,
) -> _Verdict:
    """The outputs beside their references, float64's or, where `exact` has them, better ones, which float64 programs have
    too."""
    value, *gradients = outputs
    nothing = [None] * len(outputs)
    truths, zeros = (exact.outputs, exact.zeros[1:]) if exact else (nothing, nothing[1:])
    in_value, *in_leaves = [
        dataclasses.replace(known, precision=known.precision or (None if true is None else 53))
        for known, true in zip(audited.outputs, truths, strict=True)
    ]
    leaves = [
        accuracy(g.working, g.high, known, known.terms_size(sizes), zero)
        for g, known, zero in zip(gradients, in_leaves, zeros, strict=True)
    ]
    reference, value_bits = _value(value, in_value.precision)
    wrong = _wrong(audited.names, value, leaves, threshold)
    names = {name for _, name, *_ in wrong}
    if "value" not in names and (value_bits or 0.0) > threshold * (in_value.precision or 53):
        wrong.append((0, "value", None, np.ones(1, bool)))  # worth a note, though it decides nothing
    unsure = (leaf.reference is None or not leaf.reference.any() or leaf.structural_zero for leaf in leaves)
    doubtful = any(unsure) or not np.any(reference)
    return _Verdict(leaves, (reference, value_bits), wrong, names, doubtful)


def _wrong(names: Sequence[str], value: Shadow, leaves: Sequence[Accuracy], threshold: float) -> list[Wrong]:
    """The outputs that are behind ok = False."""
    wrong: list[Wrong] = [] if bool(jnp.isfinite(value.working).all()) else [(0, "value", None, np.ones(1, bool))]
    for k, (name, leaf) in enumerate(zip(names, leaves, strict=True), 1):
        failing = leaf.failing(threshold)
        if failing.any():
            wrong.append((k, name, leaf, failing))
    return wrong


def _is_tiny(audited: Audited) -> bool:
    """Whether the program may be evaluated exactly without a reason: it costs next to nothing, and nobody sees it."""
    effects = any(_jaxpr.has_effects(site.equation) for site in audited.flow.sites.values())
    return not effects and program_cost(audited.closed) <= EXACT_ALWAYS


def _in_float64(audited: Audited) -> bool:
    """Whether something is in float64, whose own errors the float64 twin does not show."""
    return any(known.precision is None for known in audited.outputs)


def _rankable(
    verdict: _Verdict, nonfinite: set[str], bits: dict[str, float | None]
) -> list[tuple[int, str, np.ndarray]]:
    """The finite outputs whose error is worth taking apart: the wrong ones, or all where none is, the worst first."""
    every: list[Wrong] = [(k, name, None, np.ones(1, bool)) for k, name in enumerate(bits)]
    known = {name: lost for name, lost in bits.items() if lost is not None and name not in nonfinite}
    finite = [(k, name, failing) for k, name, _, failing in verdict.wrong or every if name in known]
    return sorted(finite, key=lambda one: -known[one[1]])[:MOST_RANKED]


def _value(value: Shadow, precision: int | None) -> tuple[Any, float | None]:
    """The value's reference and the bits that it has lost; None where there is no reference."""
    reference, working = (np.asarray(x).astype(wide(np.asarray(x))) for x in (value.high, value.working))
    if precision is None or not np.isfinite(reference).all():
        return None, None
    return (float(reference) if reference.shape == () and not np.iscomplexobj(reference) else reference), bits_lost(
        working, reference, precision
    )


def _dtype(audited: Audited) -> str:
    """The narrowest float dtype of the audit, by its short name."""
    narrowest = min((leaf.precision or 53 for leaf in audited.outputs), default=53)
    made = [(site.equation, var) for site in audited.flow.sites.values() for var in site.equation.outvars]
    named = [format_of(eqn, var) for eqn, var in made if _jaxpr.is_inexact(var) and rounded_to(eqn, var) == narrowest]
    named.sort(key=lambda name: name.startswith("e"))  # a dtype's own name, where there is one
    return [*named, {53: "f64", 24: "f32", 11: "f16"}.get(narrowest, "bf16")][0]
