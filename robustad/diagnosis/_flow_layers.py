"""Where a program uses its parameters: the places at which `gradient_flow` taps it.

A layer is the parameter leaves of one module path. Values are followed through the program as neutral (literals, shapes), a
parameter's (and whatever is computed of parameters alone: casts, transposes, weight norms), or data. An equation in which a
parameter meets data is a use of it. A layer's output is the last one: that of the leaf which is used last.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Cond, Equation, Location, Path, Scan, ShardMap
from robustad.diagnosis import _activations

ENTERED = frozenset(
    ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "remat", "scan", "cond", "shard_map")
)
"""The control flow that is rewritten; any other (custom rules above all) stays as the user wrote it."""

_RESHAPING = frozenset(
    "convert_element_type transpose reshape broadcast_in_dim squeeze expand_dims copy slice dynamic_slice rev pvary "
    "sharding_constraint optimization_barrier reduce_precision".split()
)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A scan around an equation."""

    path: Path
    length: int
    reverse: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """An equation whose outputs are tapped.

    layer: the number of the layer. kind: of an elementwise nonlinearity, else "". sliced: those of the `loops` that run over
    the leaf's leading axes, so that each iteration is another layer; the others are steps. owner: of a nonlinearity, the
    stage of the layer that it belongs to; carried, first: the paths of the loops in whose every iteration but the first, or
    in whose first one alone, it does; in the former it belongs to the iteration before, since its operand was carried.
    """

    path: Path
    layer: int
    loops: tuple[Loop, ...]
    sliced: tuple[Loop, ...]
    dtype: Any
    location: Location | None
    kind: str = ""
    owner: "Stage | None" = None
    carried: frozenset[Path] = frozenset()
    first: frozenset[Path] = frozenset()


class _Passed(NamedTuple):
    """The last use that data has passed: its number, or -1. when: the same, but where it was passed in an iteration before,
    just before the uses of this one. carried: the loops whose iteration before that was."""

    when: float = -1.0
    use: int = -1
    carried: frozenset[Path] = frozenset()


_NONE = _Passed()


@dataclasses.dataclass(frozen=True)
class _Tag:
    """leaves: the parameters that a value is computed of; none of data."""

    leaves: frozenset[int] = frozenset()
    sliced: frozenset[Path] = frozenset()
    passed: _Passed = _NONE


@dataclasses.dataclass(frozen=True)
class _Use:
    leaf: int
    path: Path
    loops: tuple[Loop, ...]
    sliced: frozenset[Path]
    dtype: Any
    location: Location | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stages of a program, and for each leaf how many of its leading axes scans run over."""

    stages: tuple[Stage, ...]
    sliced: tuple[int, ...]


def planned(program: Body, layers: Sequence[int]) -> Plan:
    """The `Plan` of a program whose first inputs are parameters, `layers[k]` the number of the k-th one's layer."""
    walk = _Walk(layers)
    walk.run(program)
    if not walk.uses:  # a function of parameters alone: then everything that is done to them is a use
        walk = _Walk(layers, alone=True)
        walk.run(program)
    last: dict[int, int] = {}
    for use in walk.uses:
        last[layers[use.leaf]] = use.leaf
    stages: list[Stage] = []
    outputs: dict[int, list[tuple[int, Stage]]] = {}
    for k, use in enumerate(walk.uses):
        layer = layers[use.leaf]
        if last[layer] != use.leaf:
            continue
        sliced = tuple(loop for loop in use.loops if loop.path in use.sliced)
        stages.append(Stage(use.path, layer, use.loops, sliced, use.dtype, use.location))
        outputs.setdefault(layer, []).append((k, stages[-1]))
    for activation, (_, use, _) in walk.activations:
        if use < 0:
            continue
        layer = layers[walk.uses[use].leaf]
        # Inside a layer, before its output, or behind that.
        owner = next((stage for k, stage in outputs[layer] if k >= use), outputs[layer][-1][1])
        stages.append(dataclasses.replace(activation, layer=layer, owner=owner))
    axes = [max((len(u.sliced) for u in walk.uses if u.leaf == leaf), default=0) for leaf in range(len(layers))]
    return Plan(tuple(stages), tuple(axes))


class _Walk:
    """The uses and nonlinearities of a program, in its order."""

    def __init__(self, layers: Sequence[int], alone: bool = False):
        self.layers = layers
        self.alone = alone
        self.uses: list[_Use] = []
        self.activations: list[tuple[Stage, _Passed]] = []

    def run(self, program: Body) -> None:
        parameters = [_Tag(frozenset((k,))) for k in range(len(self.layers))]
        data: list[_Tag | None] = [_Tag()] * (len(program.inputs) - len(parameters))
        self._body(program, [*parameters, *data], (), (), None)

    def _body(
        self, program: Body, tags: Sequence[_Tag | None], path: Path, loops: tuple[Loop, ...], outer: Location | None
    ) -> list[_Tag | None]:
        env: dict[Any, _Tag | None] = dict(zip(program.inputs, tags, strict=True))
        env.update((var, _Tag() if _size(var) > 1 else None) for var, _ in program.constants)

        def read(atom: Any) -> _Tag | None:
            return None if _jaxpr.literal(atom) is not None else env[atom]

        for i, eqn in enumerate(program.equations):
            here, ins = (*path, i), [read(atom) for atom in eqn.invars]
            location = _jaxpr.location(eqn) or outer
            inner = _jaxpr.control(eqn) if eqn.primitive.name in ENTERED else None
            match inner:
                case Call() | ShardMap():
                    outs = self._body(inner.body, ins, (*here, 0), loops, location)
                case Scan():
                    outs = self._scan(inner, ins, here, loops, location)
                case Cond():
                    each = [self._body(b, ins[1:], (*here, k), loops, location) for k, b in enumerate(inner.branches)]
                    outs = [_merged(found) for found in zip(*each)]
                case _:
                    outs = [self._equation(eqn, ins, here, loops, location)] * len(eqn.outvars)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in program.outputs]

    def _scan(
        self, scan: Scan, ins: list[_Tag | None], path: Path, loops: tuple[Loop, ...], location: Location | None
    ) -> list[_Tag | None]:
        start, stop = scan.consts, scan.consts + scan.carry
        carried: list[_Tag | None] = []
        for k, tag in enumerate(ins[start:stop]):
            entry = scan.body.inputs[start + k]
            counter = tag is None and not _jaxpr.is_inexact(entry)
            kept = scan.body.outputs[k] is entry or counter
            carried.append(tag if kept else _Tag(passed=tag.passed if tag else _NONE))
        sliced = [t and dataclasses.replace(t, sliced=t.sliced | {path}) if t and t.leaves else t for t in ins[stop:]]
        within = (*loops, Loop(path, scan.length, scan.reverse))

        def body(carried: list[_Tag | None]) -> list[_Tag | None]:
            return self._body(scan.body, [*ins[:start], *carried, *sliced], (*path, 0), within, location)

        uses, activations = len(self.uses), len(self.activations)
        outs = body(carried)
        later = [_onward(tag, out, within, uses) for tag, out in zip(carried, outs)]
        if later != carried:  # what is carried has passed uses in the iteration before
            first = self.activations[activations:]
            del self.uses[uses:], self.activations[activations:]
            outs = body(later)
            self.activations[activations:] = _turned(first, self.activations[activations:], path)
        return [t and dataclasses.replace(t, sliced=t.sliced - {path}) for t in outs]

    def _equation(
        self, eqn: Equation, ins: Sequence[_Tag | None], path: Path, loops: tuple[Loop, ...], location: Location | None
    ) -> _Tag | None:
        merged, floating = _merged(ins), [v for v in eqn.outvars if _jaxpr.is_inexact(v)]
        if merged is None or not floating or eqn.primitive.name == "stop_gradient":
            return merged and _Tag(passed=merged.passed)
        data = any(t is not None and not t.leaves for t in ins)
        if not merged.leaves:
            kind = _activations.kind(eqn)
            if kind:
                found = Stage(path, -1, loops, (), _jaxpr.aval(floating[0]).dtype, location, kind)
                self.activations.append((found, merged.passed))
            return merged
        if not data and (not self.alone or eqn.primitive.name in _RESHAPING):
            # A number made of a whole parameter (a penalty, a norm) is no layer's output.
            of = max(_size(v) for v, t in zip(eqn.invars, ins) if t is not None)
            return None if all(_size(v) == 1 for v in eqn.outvars) and of > 1 else merged
        for leaf in sorted(merged.leaves):
            sliced = frozenset().union(*(t.sliced for t in ins if t is not None and leaf in t.leaves))
            self.uses.append(_Use(leaf, path, loops, sliced, _jaxpr.aval(floating[0]).dtype, location))
        use = len(self.uses) - 1
        return _Tag(passed=_Passed(use, use))


def _onward(before: _Tag | None, after: _Tag | None, loops: tuple[Loop, ...], uses: int) -> _Tag | None:
    """What the innermost of the loops carries into its second iteration; `uses` were there before it."""
    if before is None or after is None or before.leaves or after.passed.when < uses:
        return before
    when = uses - 0.5 ** len(loops)  # after what the loops around it carry
    return dataclasses.replace(before, passed=_Passed(when, after.passed.use, frozenset((loops[-1].path,))))


def _turned(
    first: list[tuple[Stage, _Passed]], later: list[tuple[Stage, _Passed]], path: Path
) -> list[tuple[Stage, _Passed]]:
    """The nonlinearities of a scan's body, from a walk of its first iteration and of its second."""
    found = []
    for (one, was), (other, passed) in zip(first, later, strict=True):
        if path in passed.carried:
            found.append((dataclasses.replace(one, first=one.first | {path}), was))
            found.append((dataclasses.replace(other, carried=other.carried | {path}), passed))
        else:
            found.append((other, passed))
    return found


def _merged(tags: Sequence[_Tag | None]) -> _Tag | None:
    known = [t for t in tags if t is not None]
    if not known:
        return None
    sliced = frozenset().union(*(t.sliced for t in known))
    last = max((t.passed for t in known), key=lambda passed: passed[:2])
    return _Tag(frozenset().union(*(t.leaves for t in known)), sliced, last)


def _size(atom: Any) -> int:
    return getattr(_jaxpr.aval(atom), "size", 1)
