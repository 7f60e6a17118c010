"""From what the taps recorded to the layers of a report."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from robustad.diagnosis import _activations
from robustad.diagnosis._cotangent_record import FIELDS, scales
from robustad.diagnosis._flow_layers import Loop, Plan, Stage
from robustad.diagnosis._flow_report import LayerFlow


class Measured(NamedTuple):
    """The value, the records of the stages, and those of the gradient and of the parameters, one a leaf."""

    value: Any
    records: Any
    gradients: Any
    parameters: Any


@dataclasses.dataclass(frozen=True)
class Summary:
    """The record of several arrays together, in float64 on the host."""

    passes: float
    count: float
    zeros: float
    nonfinite: float
    norm: float
    largest: float
    below_float16: float
    below_float32: float

    @property
    def rms(self) -> float:
        return self.norm / math.sqrt(max(self.count - self.nonfinite, 1))


def summary(records: Sequence[np.ndarray]) -> Summary:
    """The `Summary` of records, each of shape (..., fields)."""
    flat: list[dict[str, np.ndarray]] = [
        dict(zip(FIELDS, np.asarray(r, np.float64).reshape(-1, len(FIELDS)).T)) for r in records
    ]
    totals = {name: sum(float(r[name].sum()) for r in flat) for name in FIELDS}
    norms = [float(x) for r, sums in zip(records, flat) for x in _norms(sums, r.dtype)]
    peaks = [
        np.where(r["passes"] > 1, np.minimum(r["peaks"], _norms(r, x.dtype)), r["peaks"]) for x, r in zip(records, flat)
    ]
    largest = max((float(p.max()) for p in peaks if p.size), default=0.0)
    kept = ("passes", "count", "zeros", "nonfinite", "below_float16", "below_float32")
    return Summary(norm=math.hypot(*norms), largest=largest, **{name: totals[name] for name in kept})


def _norms(sums: dict[str, np.ndarray], dtype: Any) -> np.ndarray:
    up, _ = scales(dtype)
    parts = (np.sqrt(sums["small"]) / up, np.sqrt(sums["medium"]), np.sqrt(sums["large"]) * up)
    return np.hypot(np.hypot(parts[0], parts[1]), parts[2])


def rows(
    plan: Plan, titles: Sequence[str], names: Sequence[str], modules: Sequence[str], measured: Measured
) -> list[LayerFlow]:
    """The layers in the order of the program, not yet judged; at the end those whose output the program does not have."""
    found: list[tuple[tuple[int, ...], LayerFlow]] = []
    uses: dict[str, int] = {}
    for k, stage in enumerate(plan.stages):
        if stage.kind:
            continue
        behind = [j for j, other in enumerate(plan.stages) if other.owner is stage]
        for index in np.ndindex(*(loop.length for loop in stage.sliced)):
            name = titles[stage.layer] + (f"[{', '.join(map(str, index))}]" if index else "")
            uses[name] = uses.get(name, 0) + 1
            name += f" (use {uses[name]})" if uses[name] > 1 else ""
            steps = _picked(stage, stage, index, measured.records[k])
            activity = [
                (plan.stages[j].kind, _picked(plan.stages[j], stage, index, measured.records[j])) for j in behind
            ]
            leaves = [i for i, module in enumerate(modules) if module == titles[stage.layer]]
            own = [(names[i], *_slice(plan, measured, i, index)) for i in leaves]
            found.append((_position(stage, index), _layer(name, stage, own, steps, activity)))
    missing = [title for title in titles if title not in {titles[stage.layer] for stage in plan.stages}]
    unused = []
    for title in missing:
        own = [(names[i], *_slice(plan, measured, i, ())) for i, module in enumerate(modules) if module == title]
        unused.append(_layer(title, None, own, None, []))
    return [layer for _, layer in sorted(found, key=lambda pair: pair[0])] + unused


def _slice(plan: Plan, measured: Measured, leaf: int, index: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The records of a leaf's gradient and of the leaf, of one layer's slice where it is stacked."""
    both = measured.gradients[leaf], measured.parameters[leaf]
    n = plan.sliced[leaf]
    shape = both[0].shape[:-1]
    inside = n == len(index) and len(shape) == n and all(i < size for i, size in zip(index, shape))
    return (both[0][index], both[1][index]) if inside else both


def _picked(stage: Stage, layer: Stage, index: tuple[int, ...], records: np.ndarray) -> np.ndarray:
    """Of a stage's records those of one layer, as (steps in the order in which they run, fields)."""
    where = dict(zip((loop.path for loop in layer.sliced), index))
    around = {loop.path for loop in stage.loops}
    if any(
        i != (0 if loop.reverse else loop.length - 1) for loop, i in zip(layer.sliced, index) if loop.path not in around
    ):
        return records[:0].reshape(-1, records.shape[-1])  # what follows a loop belongs to the last one that it ran
    for axis in reversed(range(len(stage.loops))):
        loop = stage.loops[axis]
        turns = np.arange(loop.length)[:: -1 if loop.reverse else 1]
        # The iterations in which a layer's nonlinearity is run, and those in which the layer was, one for one.
        ran, of = turns, turns
        if loop.path in stage.first:  # by the last one, when the loops around this one ran it before
            ran, of = turns[:1], turns[-1:]
        elif loop.path in stage.carried:
            ran, of = turns[1:], turns[:-1]
        if loop.path in where:
            ran = ran[of == where[loop.path]]
        records = np.take(records, ran, axis)
    return records.reshape(-1, records.shape[-1])


def _position(stage: Stage, index: tuple[int, ...]) -> tuple[int, ...]:
    """Where a layer's output stands in the order in which the program runs."""
    where = dict(zip((loop.path for loop in stage.sliced), index))
    iterations = {loop.path: _turn(loop, where.get(loop.path)) for loop in stage.loops}
    position: list[int] = []
    for n, part in enumerate(stage.path, 1):
        position.append(part)
        if stage.path[:n] in iterations:
            position.append(iterations[stage.path[:n]])
    return tuple(position)


def _turn(loop: Loop, i: int | None) -> int:
    return 0 if i is None else loop.length - 1 - i if loop.reverse else i


def _layer(
    name: str,
    stage: Stage | None,
    own: list[tuple[str, np.ndarray, np.ndarray]],
    steps: np.ndarray | None,
    activity: list[tuple[str, np.ndarray]],
) -> LayerFlow:
    gradient, parameter = summary([g for _, g, _ in own]), summary([p for _, _, p in own])
    back = summary([] if steps is None else [steps])
    each = () if steps is None or len(steps) < 2 else tuple(summary([s]).norm for s in steps)
    share = 1 / max(back.count, 1)
    dtype = "" if stage is None else str(stage.dtype)
    below = {"float16": back.below_float16} | dict.fromkeys(("bfloat16", "float32"), back.below_float32)
    relu, smooth = (_share(activity, relu) for relu in (True, False))
    return LayerFlow(
        name=name,
        parameters=tuple(leaf for leaf, _, _ in own),
        dtype=dtype,
        file=stage.location.file if stage and stage.location else "",
        line=stage.location.line if stage and stage.location else 0,
        gradient_norm=gradient.norm,
        gradient_rms=gradient.rms,
        gradient_largest=gradient.largest,
        parameter_norm=parameter.norm,
        cotangents=int(back.passes),
        cotangent_norm=back.norm if stage else math.nan,
        cotangent_rms=back.rms if stage else math.nan,
        cotangent_largest=back.largest if stage else math.nan,
        zero_fraction=back.zeros * share if back.count else math.nan,
        subnormal_fraction=below.get(dtype, 0.0) * share,
        below_float16=back.below_float16 * share,
        below_bfloat16=back.below_float32 * share,
        nonfinite=int(back.nonfinite + gradient.nonfinite),
        saturated=smooth[0],
        dead=relu[1],
        inactive=relu[0],
        steps=each,
    )


def _share(activity: list[tuple[str, np.ndarray]], relu: bool) -> tuple[float, float]:
    """The shares of entries that are flat, and of units that are dead, over the nonlinearities of one sort."""
    sums = sum(
        (r.sum(0, np.float64) for kind, r in activity if (kind == "relu") == relu), np.zeros(len(_activations.FIELDS))
    )
    count, flat, units, dead = (float(x) for x in sums)
    return (flat / count, dead / units) if count else (math.nan, math.nan)
