"""Steps of a flat program, run on arrays; some of their results named, so that a checkpoint may keep them."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from jax.ad_checkpoint import checkpoint_name

from robustad import _jaxpr
from robustad.memory._after import sealed
from robustad.memory._flat import Flat, Step
from robustad.memory._liveness import FUSIBLE
from robustad.memory._policies import Policy, save_names

_PREFIX = "robustad."


def run_steps(
    steps: Sequence[Step],
    values: dict[int, Any],
    kept: Collection[int] = (),
    special: Callable[[Step, Sequence[Any]], list[Any]] | None = None,
) -> None:
    """Adds the results of steps to `values`; those in `kept` are named. special: runs loops."""
    for step in steps:
        operands = operands_of(step, values)
        with _jaxpr.at(step.equation):
            if special is not None and step.name == "scan":
                results = special(step, operands)
            elif step.name == "name" and step.equation.params["name"].startswith(_PREFIX):  # of a `fit` inside
                results = operands
            else:
                results = _jaxpr.bind(step.equation, operands)
            for v, result in zip(step.results, results):
                if v in kept:
                    result = checkpoint_name(sealed(result) if is_fused(step) else result, _name(v))
                values[v] = result


def operands_of(step: Step, values: dict[int, Any]) -> list[Any]:
    """The operands of a step."""
    pairs = zip(step.equation.invars, step.operands)
    return [_jaxpr.literal_value(atom) if v is None else values[v] for atom, v in pairs]


def is_fused(step: Step) -> bool:
    """Whether XLA may compute a step's result anew wherever it is used."""
    return step.name in FUSIBLE or step.name == "custom_jvp_call"


def kept_policy(kept: Collection[int]) -> Policy:
    """The policy of a checkpoint that keeps these values."""
    return save_names(*map(_name, sorted(kept)))


def outputs_of(program: Flat, values: dict[int, Any], atoms: Sequence[Any]) -> list[Any]:
    """The outputs of a program, of which `atoms` are the literals."""
    return [_jaxpr.literal_value(a) if v is None else values[v] for v, a in zip(program.outputs, atoms)]


def _name(value: int) -> str:
    return f"{_PREFIX}{value}"
