"""The bytes that are alive along a program, as XLA would lay them out: predicted, without compiling.

What XLA fuses has no buffer of its own: an elementwise result that only elementwise operations and reductions use, if it
is used once or is only moved data. An elementwise result takes the buffer of an operand of its size that nothing needs any
more. The arguments and the results of the whole program have buffers of their own and are not counted.
"""

import dataclasses
from typing import Any

from robustad import _jaxpr
from robustad._jaxpr import Cond, Path, Scan, Site
from robustad.memory._flat import Flat, Step, within

SAME_BUFFER = frozenset(
    "reshape squeeze expand_dims bitcast_convert_type name stop_gradient copy optimization_barrier pvary "
    "reduce_precision random_wrap random_unwrap sharding_constraint psum_invariant".split()
)
_MOVED = frozenset("broadcast_in_dim iota convert_element_type slice pad rev select_n concatenate".split())
_COMPUTED = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp cos cosh digamma div eq erf erf_inv erfc "
    "exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not "
    "one_minus_square or population_count pow rem round rsqrt shift_left shift_right_arithmetic shift_right_logical sign "
    "sin sinh sqrt square sub tan tanh xor".split()
)
FUSIBLE = _MOVED | _COMPUTED
_TAKES_FUSED = (
    FUSIBLE
    | SAME_BUFFER
    | frozenset(
        "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin gather dynamic_slice transpose "
        "reduce_window_sum reduce_window_max".split()
    )
)
_IN_PLACE = FUSIBLE | frozenset(("dynamic_update_slice", "scatter", "scatter-add", "scatter_add"))


@dataclasses.dataclass(frozen=True)
class Live:
    """bytes[i]: alive while step i runs; held[i]: after it, with the values behind them; peak: the largest of `bytes`."""

    bytes: tuple[int, ...]
    peak: int
    buffers: dict[int, tuple[int, int, int]]
    """value -> (bytes, the step that makes it, the last that uses it), for each value that has a buffer."""


def live(program: Flat, sites: dict[Path, Site]) -> Live:
    """The bytes alive along a program's steps."""
    sizes = [_jaxpr.nbytes(aval) for aval in program.avals]
    stands_for = buffers(program)
    used: dict[int, int] = {}
    for i, step in enumerate(program.steps):
        for value in step.operands:
            for root in () if value is None else stands_for[value]:
                used[root] = i
    own = {*program.inputs, *(root for v in program.outputs if v is not None for root in stands_for[v])}
    ends: list[list[int]] = [[] for _ in program.steps]
    made: dict[int, int] = {}
    for i, step in enumerate(program.steps):
        for value in step.results:
            if stands_for[value] == (value,) and value not in own:
                made[value] = i
                ends[max(i, used.get(value, i))].append(value)
    alive, track = 0, []
    reused: set[int] = set()
    for i, step in enumerate(program.steps):
        new = [v for v in step.results if v in made]
        dying = [v for v in ends[i] if made[v] < i and v not in reused]
        grown = sum(sizes[v] for v in new)
        if step.name in _IN_PLACE and new:
            for v in dying:
                if sizes[v] == sizes[new[0]]:
                    grown -= sizes[v]
                    break
        alive_after = alive + sum(sizes[v] for v in new)
        track.append(alive + grown + inner_peak(step, sites))
        alive = alive_after - sum(sizes[v] for v in ends[i])
    spans = {v: (sizes[v], i, max(i, used.get(v, i))) for v, i in made.items()}
    return Live(tuple(track), max(track, default=0), spans)


def inner_peak(step: Step, sites: dict[Path, Site]) -> int:
    """The bytes that a loop or a branch needs beside its operands and results."""
    inner = _jaxpr.control(step.equation)
    if inner is None:
        return 0
    return max((_body_peak(body, sites, isinstance(inner, Cond | Scan)) for body in within(step, sites)), default=0)


def _body_peak(body: Flat, sites: dict[Path, Site], results: bool) -> int:
    """The largest of what a body has alive, its results counted: they are copied out of it."""
    outputs = sum(_jaxpr.nbytes(body.avals[v]) for v in {*body.outputs} - {None, *body.inputs} if v is not None)
    return live(body, sites).peak + (outputs if results else 0)


def buffers(program: Flat) -> list[tuple[int, ...]]:
    """Of each value, the values whose buffers hold what it is made of: itself, unless it is fused or the same buffer."""
    uses: dict[int, list[Step]] = {}
    for step in program.steps:
        for value in set(step.operands) - {None}:
            uses.setdefault(value, []).append(step)  # pyright: ignore[reportArgumentType]
    returned = {*program.outputs}
    stands_for: list[tuple[int, ...]] = [(v,) for v in range(len(program.avals))]
    for step in program.steps:
        sources = tuple(dict.fromkeys(r for v in step.operands if v is not None for r in stands_for[v]))
        if step.name in SAME_BUFFER and len(step.operands) == len(step.results):
            for value, operand in zip(step.results, step.operands):
                stands_for[value] = () if operand is None else stands_for[operand]
        elif step.name in FUSIBLE and _is_fused(step, uses, returned):
            stands_for[step.results[0]] = sources
    return stands_for


def _is_fused(step: Step, uses: dict[int, list[Step]], returned: set[Any]) -> bool:
    (value,) = step.results
    by = uses.get(value, [])
    return value not in returned and (len(by) <= 1 or step.name in _MOVED) and all(u.name in _TAKES_FUSED for u in by)
