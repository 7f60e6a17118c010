"""`fit`: the same function, its gradient within a budget of bytes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import re
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr
from robustad.memory._after import after, sealed
from robustad.memory._bytes import in_bytes, readable
from robustad.memory._checkpoint import checkpoint
from robustad.memory._flat import Flat, Step, flat, plain_call
from robustad.memory._flops import program_flops
from robustad.memory._gradient import GradientCall, spec, temporaries
from robustad.memory._loops import Way, numbered, run
from robustad.memory._opened import without_checkpoints
from robustad.memory._plan import Planner
from robustad.memory._planned import Planned, planned
from robustad.memory._running import is_fused, kept_policy, operands_of, outputs_of, run_steps
from robustad.memory._segments import Plan, Segment
from robustad.memory._tied import tied

log = logging.getLogger("robustad")

ATTEMPTS = 4
"""Plans that are compiled at most, beside the function as it is."""
SMALL = 4096
"""Bytes up to which keys and integers that a segment reads wait until it is its turn."""
_ADDRESS = re.compile(r"(?<=0x)[0-9a-f]+")
GOAL, VERY_CLOSE, CLOSE = 0.975, 0.96, 0.93
"""Shares of the budget: what plans aim at, and from which on a plan that adds some operations, or few, is good enough."""


class InfeasibleBudget(ValueError):  # noqa: N818 (what it is, not an error of the program)
    """No plan keeps to the budget. least: the bytes of the best that was measured."""

    def __init__(self, message: str, least: int):
        super().__init__(message)
        self.least = least


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What a fitted function comes to at arguments of some shapes. Sizes are bytes of temporaries of `value_and_grad`.

    unplanned: of the function as it is. predicted: before the plan was compiled, corrected by what was measured before.
    flop_ratio: operations of the gradient against those of the unplanned one (1.0: nothing is done again). compiled: plans
    that were compiled. difference: the largest difference between the gradients of the fitted function and of the function
    as it is, in units of the leaf's largest element; None where the arguments are shapes alone, or it was not asked for.
    """

    budget: int
    unplanned: int
    predicted: int
    measured: int
    flop_ratio: float
    segments: int
    compiled: int
    difference: float | None

    @property
    def holds(self) -> bool:
        """Whether the measured bytes are within the budget."""
        return self.measured <= self.budget

    def __str__(self) -> str:
        agreed = "" if self.difference is None else f", gradients agree to {self.difference:.1e}"
        return (
            f"{readable(self.measured)} of {readable(self.budget)} ({readable(self.unplanned)} unplanned, "
            f"{readable(self.predicted)} predicted), {self.flop_ratio - 1:+.1%} operations{agreed}"
        )


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """A plan that was compiled."""

    plan: Plan
    predicted: int
    measured: int
    flops: int


@dataclasses.dataclass(frozen=True)
class _Fit:
    """The plan for arguments of some shapes."""

    chosen: _Outcome
    unplanned: _Outcome
    budget: int
    compiled: int
    ways: dict[int, list[Way]]
    """Of the loops in the program."""


def between(outcomes: Sequence[_Outcome], peak: int) -> int:
    """The bytes to expect of a plan with `peak` by the model: between those measured of plans with less and with more."""
    peaks, measured = zip((0, 0), *sorted((one.plan.peak, one.measured) for one in outcomes))
    return int(np.interp(peak, peaks, measured))


class Call(GradientCall):
    """A call as a flat program of its arrays and of those that the function closes over."""

    def __init__(self, f: Callable[..., Any], argnums: Any, has_aux: bool, args: Any, kwargs: Any):
        super().__init__(f, argnums, has_aux, args, kwargs)
        if jax.sharding.get_abstract_mesh().manual_axes:
            raise NotImplementedError(
                f"`fit` of `{self.name}` is called inside `shard_map`, where it cannot compile what it plans. Put it "
                "around: `fit(shard_map(f, ...), budget)`; or use `checkpoint` inside."
            )
        traced, consts = _jaxpr.closed_over_nothing(jax.make_jaxpr(self._listed)(*self.specs))
        if effects := _jaxpr.repeated_effects(traced):
            raise NotImplementedError(
                f"`{self.name}` has effects, {', '.join(effects)}, which recomputation would repeat. Take callbacks, "
                "ordered prints and writes to references out of it; `jax.debug.print` may stay."
            )
        self.consts = list(consts)
        self.body = _jaxpr.body(without_checkpoints(traced))
        self.flat: Flat = flat(self.body, opened=plain_call)
        self.digest = hashlib.sha256(_ADDRESS.sub("", str(traced)).encode()).digest()
        self.moved = [len(self.consts) + k for k in self.differentiated]
        self.planned = planned(self.flat, self.body.outputs, self.moved)

    def _listed(self, *arrays: Any) -> list[Any]:
        value, aux = self.function(*arrays)
        return [value, *aux]

    def result(self, outputs: Sequence[Any]) -> Any:
        """What the function returns, of the outputs of its program."""
        value, *data = outputs
        tree, fixed = self.aux
        left = iter(data)
        aux = jax.tree.unflatten(tree, [next(left) if x is None else x for x in fixed])
        return (value, aux) if self._has_aux else value


def run_plan(call: Call, ways: dict[int, list[Way]], plan: Plan, arrays: Sequence[Any]) -> list[Any]:
    """The outputs of the program, its segments recomputed as planned. arrays: consts first; ways: of its loops."""
    whole, part = call.flat, call.planned
    if part.step is None:
        return _run_segments(part, ways, plan, arrays)
    values: dict[int, Any] = dict(whole.constants) | dict(zip(whole.inputs, arrays))
    step = whole.steps[part.step]
    run_steps(whole.steps[: part.step], values)
    run = part.mapped(lambda *shards: _run_segments(part, ways, plan, shards))
    values.update(zip(step.results, run(*operands_of(step, values))))
    run_steps(whole.steps[part.step + 1 :], values)
    return outputs_of(whole, values, call.body.outputs)


def _run_segments(part: Planned, ways: dict[int, list[Way]], plan: Plan, arrays: Sequence[Any]) -> list[Any]:
    program = part.program
    values: dict[int, Any] = dict(program.constants) | dict(zip(program.inputs, arrays))
    last = {v: i for i, step in enumerate(program.steps) for v in step.operands if v is not None}
    last |= {v: len(program.steps) for v in program.outputs if v is not None}
    for segment in plan.segments:
        _run_segment(program, ways, segment, values, last)
    return outputs_of(program, values, part.atoms)


def _run_segment(
    program: Flat, ways: dict[int, list[Way]], segment: Segment, values: dict[int, Any], last: dict[int, int]
) -> None:
    steps = program.steps[segment.start : segment.stop]
    numbers = {step.site.path: i for i, step in enumerate(steps, segment.start)}

    def loop(step: Step, operands: Sequence[Any]) -> list[Any]:
        i = numbers[step.site.path]
        way = numbered(ways.get(i), segment.way)
        return _jaxpr.bind(step.equation, operands) if way is None else run(step.equation, operands, way)

    made = {v for step in steps for v in step.results}
    read = [v for v in dict.fromkeys(v for step in steps for v in step.operands) if v is not None and v not in made]
    moved = [v for v in read if _jaxpr.is_inexact(program.avals[v]) and v not in program.inputs]
    small = [v for v in read if not _jaxpr.is_inexact(program.avals[v]) and _jaxpr.nbytes(program.avals[v]) <= SMALL]
    before = {v: values[v] for v in (*moved, *small)}
    if segment.start > 0:  # else random numbers may be drawn for all segments at once: they wait for keys alone
        values.update((v, after(values[v], [values[u] for u in moved])) for v in small)
    if segment.start > 0 and not segment.plain:
        values.update(zip(moved, tied([values[v] for v in moved])))
    given = [v for v in made if last.get(v, -1) >= segment.stop]
    fused = (
        {v for step in steps if is_fused(step) for v in step.results} if segment.stop < len(program.steps) else set()
    )
    if segment.plain:
        run_steps(steps, values, special=loop)
        values.update((v, sealed(values[v])) for v in given if v in fused)
        values.update(before)
        return

    def recomputed(operands: list[Any]) -> list[Any]:
        inside = dict(zip(read, operands))
        run_steps(steps, inside, segment.kept, loop)
        return [inside[v] for v in given]

    outs = checkpoint(recomputed, policy=kept_policy(segment.kept))([values[v] for v in read])
    values.update(before)
    values.update((v, sealed(x) if v in fused else x) for v, x in zip(given, outs))


class Search:
    """The plan for one call: predict, compile, read the bytes, correct."""

    def __init__(self, call: Call):
        self.call = call
        part = call.planned
        self.planner = part.inside(lambda: Planner(part.program, part.differentiated, part.reached))
        n = len(part.program.steps)
        nothing = Plan((Segment(0, n, True, frozenset(), 0, 0, 0, 0),), 0, 0)
        self.unplanned = self._compiled(nothing)

    def fit(self, budget: int | float) -> _Fit:
        self.budget = int(budget * self.unplanned.measured) if isinstance(budget, float) else budget
        if self.unplanned.measured <= self.budget:
            return _Fit(self.unplanned, self.unplanned, self.budget, 0, {})
        free = self.planner.plan(float("inf"))
        assert free is not None
        self.unplanned = dataclasses.replace(self.unplanned, plan=free)  # by the model, the same bytes
        aim = self.budget * free.peak / max(1, self.unplanned.measured)
        tried: list[_Outcome] = []
        while len(tried) < ATTEMPTS:
            plan = self._next(aim, tried)
            if plan is None:
                break
            one = self._compiled(plan, between([self.unplanned, *tried], plan.peak))
            tried.append(one)
            told = (len(tried), readable(one.measured), readable(self.budget), readable(one.predicted))
            log.info("plan %d: %s of %s, predicted %s", *told)
            if self._is_good(one):
                break
            aim = self._aim(tried)
        held = [one for one in tried if one.measured <= self.budget]
        if not held:
            raise self._refusal(tried)
        best = min(held, key=lambda one: (one.flops, one.measured))
        return _Fit(best, self.unplanned, self.budget, len(tried), self.planner.model.ways)

    def _is_good(self, one: _Outcome) -> bool:
        """Whether an outcome keeps to the budget and a larger plan could spare little."""
        added = one.flops / max(1, self.unplanned.flops) - 1
        return (CLOSE if added < 0.01 else VERY_CLOSE) * self.budget <= one.measured <= self.budget

    def _next(self, aim: float, tried: Sequence[_Outcome]) -> Plan | None:
        """A plan that the model puts below `aim` and that is not one of those tried."""
        held = any(one.measured <= self.budget for one in tried)
        if len(tried) == ATTEMPTS - 1 and not held:  # the last: it has to hold
            near = min(one.measured for one in tried) < 1.1 * self.budget
            aim = 0.9 * min(map(self._scaled, tried)) if near else min(aim, self.planner.least() * 1.05)
        for _ in range(8 if held else 4):
            plan = self.planner.plan(aim) or self.planner.plan(1.001 * self.planner.least())
            if plan is None or all(plan.segments != one.plan.segments for one in tried):
                return plan
            if held:  # only a larger one could do with less recomputation
                aim *= 1.04
            else:
                aim *= 0.93
        return None

    def _aim(self, tried: Sequence[_Outcome]) -> float:
        """The model's bytes for which the measured ones should come to just below the budget."""
        below = max((one for one in tried if one.measured <= self.budget), key=lambda one: one.measured, default=None)
        over = [one for one in (self.unplanned, *tried) if one.measured > self.budget]
        above = min(over, key=lambda one: one.measured)
        if below and below.plan.peak < above.plan.peak:
            share = (GOAL * self.budget - below.measured) / (above.measured - below.measured)
            least = 0.0 if above is self.unplanned else 0.1
            return below.plan.peak + min(0.9, max(least, share)) * (above.plan.peak - below.plan.peak)
        aim = sum(map(self._scaled, tried)) / len(tried)
        if below:
            return aim
        return min(aim, min(one.plan.peak for one in tried) * (1 - 0.03 * len(tried)))  # further down each time

    def _scaled(self, one: _Outcome) -> float:
        """The model's bytes of a plan that would measure just below the budget, if the model is as wrong as for `one`."""
        return one.plan.peak * GOAL * self.budget / max(1, one.measured)

    def _compiled(self, plan: Plan, predicted: int | None = None) -> _Outcome:
        call = self.call

        def value(*arrays: Any) -> Any:
            value, *aux = run_plan(call, self.planner.model.ways, plan, arrays)
            return value, aux

        specs = [*map(spec, call.consts), *call.specs]
        traced = jax.jit(jax.value_and_grad(value, tuple(call.moved), has_aux=True)).trace(*specs)
        program = _jaxpr.body(traced.jaxpr)
        measured = temporaries(traced.lower().compile())
        flops = call.planned.inside(lambda: program_flops(program))  # of loops in few states, by tracing
        return _Outcome(plan, measured if predicted is None else predicted, measured, flops)

    def _refusal(self, tried: Sequence[_Outcome]) -> InfeasibleBudget:
        best = min([*tried, self.unplanned], key=lambda one: one.measured)
        largest = max(best.plan.segments, key=lambda s: s.inside)
        program = self.call.planned.program
        steps = program.steps[largest.start : largest.stop]
        sized = sorted(
            {
                (_jaxpr.nbytes(program.avals[v]), str(program.avals[v].str_short()), s.location)
                for s in steps
                for v in s.results
            },
            key=lambda row: -row[0],
        )[:3]
        held = "; ".join(f"{shape} ({readable(size)}){_where(place)}" for size, shape, place in sized)
        return InfeasibleBudget(
            f"`{self.call.name}` cannot be kept to {readable(self.budget)}: the least that was found is "
            f"{readable(best.measured)} ({readable(self.unplanned.measured)} unplanned). Where it needs most there are "
            f"{held}. Give a larger budget, or smaller batches. (A fraction is taken anew for each shape of the arguments, "
            "as that of a smaller last batch; bytes are not.)",
            best.measured,
        )


def _where(place: Any) -> str:
    return f" at {place.file.rpartition('/')[2]}:{place.line}" if place else ""


def certificate_of(found: _Fit, difference: float | None = None) -> Certificate:
    """What a plan comes to."""
    return Certificate(
        budget=found.budget,
        unplanned=found.unplanned.measured,
        predicted=found.chosen.predicted,
        measured=found.chosen.measured,
        flop_ratio=found.chosen.flops / max(1, found.unplanned.flops),
        segments=len(found.chosen.plan.segments),
        compiled=found.compiled,
        difference=difference,
    )


class Fitted:
    """A function with the signature of another, whose gradient keeps to a budget; made by `fit`."""

    def __init__(self, f: Callable[..., Any], budget: int | float, argnums: Any, has_aux: bool):
        functools.update_wrapper(self, f)
        self._f, self._budget, self._argnums, self._has_aux = f, budget, argnums, has_aux
        self._known: dict[Any, _Fit] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self._call(args, kwargs)
        found = self._found(call)
        arrays, call.consts, call.arrays = [*call.consts, *call.arrays], [], []
        return call.result(run_plan(call, found.ways, found.chosen.plan, arrays))

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def certificate(self, *args: Any, compare: bool = False, **kwargs: Any) -> Certificate:
        """What the plan comes to at these arguments. compare: compute both gradients, which needs the memory of both."""
        call = self._call(args, kwargs)
        known = not any(x is None for x in call.arrays)
        return certificate_of(self._found(call), self._difference(args, kwargs) if compare and known else None)

    def _call(self, args: Any, kwargs: Any) -> Call:
        return Call(self._f, self._argnums, self._has_aux, args, kwargs)

    def _found(self, call: Call) -> _Fit:
        # Under `jit` shardings are not known: what was planned for the same program with some holds.
        program = (call.digest, tuple(call.differentiated))
        placed = (*program, tuple(map(str, call.specs)))
        keys = [placed, program] if any(map(_jaxpr.is_traced, call.arrays)) else [placed]
        for key in keys:
            if key in self._known:
                return self._known[key]
        found = self._known[placed] = self._known[program] = Search(call).fit(self._budget)
        return found

    def _difference(self, args: Any, kwargs: Any) -> float:
        gradients = []
        for f in (self._f, self):
            call = self._call(args, kwargs).of(f)
            gradients.append(jax.jit(call.value_and_grad)(*call.arrays)[1])
        worst = [0.0]
        for a, b in zip(*gradients):
            a, b = (np.asarray(x.astype(jnp.promote_types(x.dtype, jnp.float32))) for x in (a, b))
            size = np.max(np.abs(a), initial=0, where=np.isfinite(a))
            with np.errstate(invalid="ignore"):
                apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
            worst.append(np.max(apart, initial=0) / max(size, 1e-30))
        return float(np.max(worst))  # nan where one of the two is


def fit(
    f: Callable[..., Any], budget: int | float | str, *, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Fitted:
    """The same function, its gradient within a budget of bytes, at the least recomputation.

    The program of `f` is cut into segments, and in each some results are kept and the others computed again in the backward
    pass. The plan is compiled, its bytes are read, and it is corrected until the *measured* temporaries of `value_and_grad`
    are within the budget: at most four plans for arguments of the same shapes. Arguments and results are not counted (see
    `report`). The budget holds for a call that is not batched; `vmap` multiplies it. It is kept by `value_and_grad` by
    itself: as a part of a larger program, with donated arguments, or without the value, XLA may lay out a few percent more.

    Gradients are those of `f`: random numbers come from keys and are drawn again, rules of `custom_jvp` and `custom_vjp` are
    kept, `jax.checkpoint`s in `f` are replaced by the plan, also in loops, which are recomputed iteration by iteration, in
    blocks, or from few states by the schedule of `checkpointed_scan`.

    With sharded arguments the bytes are those of a device. Under `jit` JAX does not tell shardings: call `certificate` with
    the sharded arguments first, and its plan is used. Put `fit` around `shard_map`, not inside: what each device runs is
    planned.

    What `f` writes into the state of an nnx module that it is given (statistics of BatchNorm, counts of random numbers) is
    lost, as in `jax.jit` and `jax.checkpoint`: take the module apart by `nnx.split`, and return the new state by `has_aux`.

    Args:
        f: a scalar function, or with `has_aux` a function that returns (value, aux).
        budget: bytes, a string as "2GiB", or a fraction of the temporaries that `f` needs as it is: a float up to 1.0. A
            fraction is taken anew for arguments of other shapes, bytes are not.
        argnums: the positions of the arguments that will be differentiated.
        has_aux: f returns (value, aux).

    Returns:
        A function with f's signature, to be differentiated by `jax.grad` or `jax.value_and_grad`, with a method
        `certificate(*args)`.

    Raises:
        ValueError, TypeError: a budget that is not above 0, a fraction above 1, of an unknown unit or of another type.
        InfeasibleBudget: (when called) no plan was found that keeps to it; the message names the least that was found and
            the tensors.
        NotImplementedError: (when called) `f` has effects, which would be repeated; or it is called inside `shard_map`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from robustad.memory import fit
        >>> def loss(ws, x):
        ...     for w in ws:
        ...         x = x + jnp.tanh(jnp.tanh(x @ w) @ w.T)
        ...     return jnp.mean(x**2)
        >>> ws, x = jnp.ones((8, 32, 128)) / 64, jnp.ones((512, 32))
        >>> small = fit(loss, 0.5)
        >>> gradient = jax.jit(jax.grad(small))(ws, x)
        >>> small.certificate(ws, x).holds
        True
    """
    if not callable(f):
        raise TypeError(f"`f` is {f!r} of type {type(f).__name__}; expected a function.")
    if isinstance(budget, float | np.floating):
        if not 0 < budget <= 1:
            raise ValueError(
                f"`budget` is {budget!r}; a float is a fraction of what `f` needs as it is, above 0 and at most 1. Give "
                "bytes as an integer or a string as '2GiB'."
            )
        return Fitted(f, float(budget), argnums, has_aux)
    return Fitted(f, in_bytes(budget, "budget"), argnums, has_aux)
