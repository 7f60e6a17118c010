"""The stable form of an expression: every rule of the calculus applied where it leaves fewer hazards than the plain form."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from robustad.rewriting._derivative import derivative
from robustad.rewriting._error_free import has_error_free
from robustad.rewriting._exponentials import scaled
from robustad.rewriting._expression import ONE, Expr, add, call, neg, nodes, rebuilt, sub, substituted
from robustad.rewriting._logarithms import logarithm_of
from robustad.rewriting._products import collected
from robustad.rewriting._removable import cancellations, removed
from robustad.rewriting._selects import hoisted
from robustad.rewriting._sums import difference, hazards
from robustad.rewriting._text import text

_DEPTH = 8


@dataclasses.dataclass(frozen=True)
class Firing:
    """One replacement: the rule, the form before and after, why, and the node that it was applied to."""

    rule: str
    before: str
    after: str
    reason: str
    expr: Expr


@dataclasses.dataclass(frozen=True)
class Stable:
    """A stable form, the hazards that are left in it and what was replaced."""

    expr: Expr
    hazards: int
    firings: tuple[Firing, ...]


def stabilized(exprs: Sequence[Expr]) -> tuple[list[Expr], tuple[Firing, ...]]:
    """The stable forms of expressions; the same objects where no rule applies."""
    forms, firings = [], []
    for e in exprs:
        found = stable(e)
        forms.append(found.expr if found.firings else e)
        firings.extend(found.firings)
    return forms, tuple(dict.fromkeys(firings))


def stable(e: Expr) -> Stable:
    """The stable form of one expression; a user's error-free transform is left alone."""
    key = "stable"
    if key not in e.facts:
        if has_error_free(e):
            e.facts[key] = Stable(e, 0, ())
        else:
            e.facts[key] = _Pass().whole(e)
    return e.facts[key]


def stabilized_derivative(form: Expr, plain: Expr, index: int) -> Expr:
    """The stable form of a derivative: that of the stable form's or that of the plain form's (`plain`), whichever leaves fewer
    hazards."""
    of_plain = stable(plain)
    if not of_plain.hazards and form is not plain and any(n.op == "series" for n in nodes(form)):
        return of_plain.expr
    of_stable = _Pass().whole(derivative(form, index))
    first, second = of_stable, of_plain
    return min((first, second), key=lambda s: (s.hazards, s.expr.size)).expr


class _Pass:
    """One walk over an expression, which notes what it replaces."""

    def __init__(self) -> None:
        self.firings: list[Firing] = []
        self.hazards = 0
        self.memo: dict[Expr, Expr] = {}

    def whole(self, e: Expr) -> Stable:
        form = self.form(hoisted(e), 0)
        return Stable(form, self.hazards, tuple(self.firings))

    def fired(self, rule: str, before: Expr, after: Expr, reason: str) -> Expr:
        self.firings.append(Firing(rule, text(before), text(after), reason, before))
        return after

    def form(self, e: Expr, depth: int) -> Expr:
        if e not in self.memo:
            self.memo[e] = e  # a form that contains its own plain form stops here
            self.memo[e] = self._form(e, depth)
        return self.memo[e]

    def children(self, e: Expr, depth: int) -> Expr:
        return hoisted(rebuilt(e, tuple(self.form(a, depth) for a in e.args))) if e.args else e

    def _form(self, e: Expr, depth: int) -> Expr:
        if not e.args or depth > _DEPTH or e.op == "series":
            return e
        match e.op:
            case "add" | "sub":
                return self.sum(e, depth)
            case "mul" | "div":
                return self.product(e, depth)
            case "log" | "log1p":
                made = logarithm_of(e)
                if made is not None:
                    return self.fired("logarithm", e, self.form(made, depth + 1), _LOGARITHM)
        return self.children(e, depth)

    def sum(self, e: Expr, depth: int) -> Expr:
        terms = collected(e)
        if not hazards(terms):
            return self._summands(e, depth)
        opened = _opened(e)
        best = min((difference(x, x_zero) for x in dict.fromkeys((e, opened)) for x_zero in (_ZERO,)), key=lambda c: c.hazards)
        if best.hazards < hazards(terms):
            rule = best.rules[0] if best.rules else "like terms"
            return self.fired(rule, e, self.form(hoisted(best.expr), depth + 1), _CANCELLATION)
        if cancellations(e):
            far = self._summands(e, depth)
            made = removed(e, far)
            if made is not None:
                return self.fired("series", e, made, _SERIES)
        self.hazards += 1
        return self._summands(e, depth)

    def _summands(self, e: Expr, depth: int) -> Expr:
        """The sum itself as it stands, its terms stable."""

        def walk(x: Expr) -> Expr:
            if x.op in ("add", "sub", "neg"):
                return rebuilt(x, tuple(walk(a) for a in x.args))
            return self.form(x, depth)

        return walk(e)

    def product(self, e: Expr, depth: int) -> Expr:
        made = scaled(e)
        if made is not None:
            return self.fired("exponentials scaled", e, self.form(made, depth + 1), _SCALED)
        if e.op == "div" and cancellations(e):
            count, hazard = len(self.firings), self.hazards
            far = self.children(e, depth)
            made = removed(e, far)
            if made is not None:
                del self.firings[count:]
                self.hazards = hazard
                return self.fired("series", e, made, _SERIES)
            return far
        return self.children(e, depth)


_ZERO = Expr("const", (), ONE.value - 1)
_CANCELLATION = "the terms cancel where they are close to each other, and what is left is their rounding errors"
_SERIES = "the terms cancel near a point at which the expression has a limit, and 0/0 is not a number there"
_LOGARITHM = "the operand is rounded where it is near 1, and overflows or underflows where its logarithm does not"
_SCALED = "the exponentials overflow where their quotient does not"


def _opened(e: Expr) -> Expr:
    """expm1 and log1p written out, so that they can be compared with exp and log."""
    changes: dict[Expr, Expr] = {}
    for n in nodes(e):
        args = tuple(changes.get(a, a) for a in n.args)
        if n.op == "expm1":
            changes[n] = sub(call("exp", args[0]), ONE)
        elif n.op == "log1p":
            changes[n] = call("log", add(ONE, args[0]))
        else:
            changes[n] = rebuilt(n, args)
    return changes[e]


__all__ = ["Firing", "Stable", "neg", "stabilized", "stabilized_derivative", "stable", "substituted"]
