"""The first pass: the user's value and gradient and, beside them, the same program in float64. The verdict needs no more."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from robustad.arithmetic._shadow import Shadow, ShadowArithmetic
from robustad.diagnosis._program import Audited, derivative_program


def shadow_program(audited: Audited) -> Callable[..., tuple[list[Shadow], Any]]:
    """The first pass as a jitted function of `audited.operands`, to be run inside `jax.enable_x64(True)`."""
    terms = [(term, one.slices) for one in audited.leaves for term in one.terms]
    arithmetic = ShadowArithmetic(
        terms=frozenset(term.path for term, _ in terms),
        decisions=audited.decisions,
        per_iteration=frozenset((term.path, term.loop, n) for term, n in terms if term.loop is not None and n),
        last_only=frozenset((term.path, loop) for term, _ in terms for loop in term.last_of),
    )
    return jax.jit(audited.walked(arithmetic))


def first_pass(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """`first_pass(f)(*args)`: (jitted program, its operands), what the audit runs first, for timing it."""

    def prepare(*args: Any, **kwargs: Any) -> tuple[Callable[..., Any], Any]:
        audited = derivative_program(f, argnums, has_aux, args, kwargs)
        return shadow_program(audited), audited.operands

    return prepare
