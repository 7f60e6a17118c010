"""What a branch or a checkpoint is given, computed inside of it.

A logarithm in a branch is of a share, an exponential or a product that was computed outside: rules that look at what is
under a logarithm would see a mere input. So its cheap steps (elementwise, moves, reductions) are repeated in the body, on
what they are made of, if a rule then fires that did not.
"""

import dataclasses
from collections.abc import Sequence

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Cond, Control
from robustad.rewriting._graph import Step, Term, in_order, is_constant
from robustad.rewriting._report import Rewrite

_CHEAP = frozenset(
    "broadcast_in_dim reshape squeeze expand_dims transpose rev slice copy convert_element_type stop_gradient reduce_sum "
    "reduce_max reduce_min".split()
)
_DEEPEST = 12
_SAME_THERE = ("derivative", "untaken-branch")  # rules that fire outside as well


@dataclasses.dataclass(frozen=True, eq=False)
class Sunk:
    """Operands with the steps that made them.

    leaves: what these steps are made of.
    """

    operands: tuple[Term, ...]
    leaves: tuple[Term, ...]
    steps: tuple[Step, ...]

    def inside(self, body: Sequence[Term], leaves: Sequence[Term]) -> tuple[list[Term], list[Term]]:
        """The operands as computed from inputs of the body (as given in their place where nothing made them), and what
        was computed.
        """
        made: dict[Term, Term] = dict(zip(self.leaves, leaves))
        new: list[Term] = []
        for step in self.steps:
            outputs = step.on([made.get(t, t) for t in step.operands]).outputs
            made.update(zip(step.outputs, outputs))
            new += outputs
        repeated = {t for step in self.steps for t in step.outputs}
        return [made[t] if t in repeated else given for t, given in zip(self.operands, body)], new


def sunk(step: Step, inner: Control) -> Sunk | None:
    """What the bodies of an equation can be given in the place of its operands; None where that helps no rule."""
    if isinstance(inner, Cond):
        given = step.operands[1:]
    elif isinstance(inner, Call) and inner.picked is None:
        given = step.operands
    else:
        return None
    if not any(t.floating and t.operands for t in given) or not any(map(_takes_logarithms, _jaxpr.bodies(inner))):
        return None
    repeated = {t.step: None for t in given if t.floating and not is_constant(t) and _is_cheap(t.step)}
    edge = list(repeated)
    for _ in range(_DEEPEST):
        edge = [t.step for s in edge for t in s.operands if _is_cheap(t.step) and t.step not in repeated]
        repeated |= dict.fromkeys(edge)
    steps = tuple(s for s in in_order(repeated) if s in repeated)
    read = dict.fromkeys(t for s in steps for t in s.operands if t.step not in repeated and t.name != "constant")
    return Sunk(tuple(given), tuple(read), steps) if steps else None


def fires_more(inside: Sequence[Rewrite], plain: Sequence[Rewrite]) -> bool:
    """Whether a body was rewritten in more places, or by other rules, with its operands computed inside."""
    known = {_kind(r) for r in plain}
    return any(r.rule not in _SAME_THERE and _kind(r) not in known for r in inside)


def _kind(r: Rewrite) -> tuple[object, ...]:
    return r.file, r.line, r.rule, r.before


def _is_cheap(step: Step) -> bool:
    if step.equation is None or not step.operands or _jaxpr.has_effects(step.equation):
        return False
    return (step.elementwise or step.name in _CHEAP) and len(step.outputs) == 1


def _takes_logarithms(program: Body) -> bool:
    for eqn in program.equations:
        inner = _jaxpr.control(eqn)
        if eqn.primitive.name == "log" or (inner is not None and any(map(_takes_logarithms, _jaxpr.bodies(inner)))):
            return True
    return False
