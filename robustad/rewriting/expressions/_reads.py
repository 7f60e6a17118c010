"""In which cases an expression reads its variables, by its selects."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

from robustad.rewriting.expressions._expression import Expr, nodes

Case: TypeAlias = frozenset[tuple[Expr, bool]]
"""Conditions, each with the value that it has."""

_ALWAYS: Case = frozenset()
_DECIDED = frozenset("var const lt le gt ge eq ne and or not".split())
_MOST = 6


def reads(e: Expr, doubtful: Collection[int] = ()) -> dict[int, frozenset[Case] | None]:
    """The cases in which each variable matters to the value; None: in all, as far as can be told.

    What a condition reads matters in all. Only conditions that compare variables (but the `doubtful` ones) with each other
    and with constants make cases: these come out the same in every precision.
    """
    if not any(n.op == "select" for n in nodes(e)):
        return dict.fromkeys(e.leaves)
    cases: dict[Expr, set[Case]] = {e: {_ALWAYS}}

    def add(n: Expr, more: set[Case]) -> None:
        held = cases.setdefault(n, set()) | more
        cases[n] = {_ALWAYS} if len(held) > _MOST else {c for c in held if not any(o < c for o in held)}

    for n in reversed(list(nodes(e))):
        here = cases.get(n, set())
        if n.op != "select" or len(n.args) != 3:
            for a in n.args:
                add(a, here)
            continue
        condition, no, yes = n.args
        decided = all(m.op in _DECIDED for m in nodes(condition)) and condition.leaves.isdisjoint(doubtful)
        add(condition, {_ALWAYS})
        for a, value in ((no, False), (yes, True)):
            literal = {(condition, value)} if decided else set()
            add(a, {case | literal for case in here if (condition, not value) not in case})
    variables = {n.value: cases.get(n, set()) for n in nodes(e) if n.op == "var"}
    return {i: None if _ALWAYS in held else frozenset(held) for i, held in variables.items()}
