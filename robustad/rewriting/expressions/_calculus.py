"""The stable form of an expression: every rule of the calculus applied where it leaves less hazard than the plain form."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

from robustad.rewriting.expressions._derivative import derivative, has_derivative
from robustad.rewriting.expressions._differences import angle
from robustad.rewriting.expressions._error_free import has_error_free
from robustad.rewriting.expressions._exponentials import scaled
from robustad.rewriting.expressions._exponents import meant
from robustad.rewriting.expressions._expression import (
    ONE,
    ZERO,
    Expr,
    add,
    call,
    neg,
    nodes,
    rebuilt,
    select,
    sub,
    view,
)
from robustad.rewriting.expressions._logarithms import arc_cosine, logarithm, power_near_one
from robustad.rewriting.expressions._products import Sum, TooLong, built, collected, of_product
from robustad.rewriting.expressions._range import (
    has_decaying_sum,
    has_quotient,
    has_quotient_of_functions,
    height,
    meets_branch_point,
    needs_range,
    root_of_square,
    slope_needs_range,
)
from robustad.rewriting.expressions._removable import cancellations, removed
from robustad.rewriting.expressions._samples import conditions, loss, undefined, where
from robustad.rewriting.expressions._selects import hoisted
from robustad.rewriting.expressions._sums import begin, cancelling_parts, difference, has_like_terms, hazards, is_gelu
from robustad.rewriting.expressions._text import text

_DEPTH = 10
_BETTER = 0.5  # what a form must save of the hazard
_LONG_DENSITY = 200  # nodes; the forms of slopes of longer ones, as of JAX's betaln, take minutes to find
_EXTREME = 700  # from that many bits on, products of constants may leave the range of float64


_recent: collections.deque[Expr] = collections.deque(maxlen=1000)  # what was found of these is remembered


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
    """A stable form, the hazard that is left in it and what was replaced."""

    expr: Expr
    hazards: float
    firings: tuple[Firing, ...]


def stabilized(exprs: Sequence[Expr]) -> tuple[list[Expr], tuple[Firing, ...]]:
    """The stable forms of expressions; the same objects where no rule applies."""
    forms, firings = [], []
    for e in exprs:
        found = stable(e)
        fired = found.firings or _as_it_stands(e)
        forms.append(found.expr if found.firings else e)
        firings.extend(fired)
    return forms, tuple(dict.fromkeys(firings))


def _as_it_stands(e: Expr) -> tuple[Firing, ...]:
    """The firing of a form that needs no other value than the plain one, but a region of its own: wider in the middle,
    or with a derivative of its own.
    """
    if has_error_free(e) or not all(map(has_derivative, nodes(e))):
        return ()
    rule = reason = ""
    if needs_range(e) or slope_needs_range(e):
        rule, reason = "wider range", _WIDER
    elif e.size < _LONG_DENSITY and any(map(_is_sum_of_gamma_functions, nodes(e))):
        rule, reason = "wider range", _GAMMA
    elif meets_branch_point(e):
        rule, reason = "wider range", _BRANCH_POINT
    elif (has_quotient(e) or has_decaying_sum(e)) and any(_slope_is_mended(e, i) for i in sorted(e.leaves)):
        rule, reason = "derivative of a quotient" if has_quotient(e) else "derivative of a product", _SLOPE
    elif has_quotient_of_functions(e) and any(_slope_cancels(e, i) for i in sorted(e.leaves)):
        rule, reason = "derivative of a quotient", _SLOPE
    return (Firing(rule, text(e), text(e), reason, e),) if rule else ()


def _is_sum_of_gamma_functions(n: Expr) -> bool:
    """Whether a logarithm of a gamma function is added to what depends on the same variables, or on any if it is one of a
    constant: as in log-densities.
    """
    if n.op not in ("add", "sub"):
        return False
    for own, other in (n.args, n.args[::-1]):
        of = [m.leaves for m in nodes(own) if m.op in ("lgamma", "digamma", "polygamma")]
        if any(not leaves.isdisjoint(other.leaves) or (other.leaves and not leaves) for leaves in of):
            return True
    return False


def _slope_cancels(e: Expr, index: int) -> bool:
    """Whether the terms of a derivative cancel: in a wider format they do so without harm."""
    slope = derivative(e, index)
    return any(hazards(collected(n)) > _BETTER for n in nodes(slope) if n.op in ("add", "sub"))


def _slope_is_mended(e: Expr, index: int) -> bool:
    found = _Pass().whole(derivative(e, index))
    return any(f.rule not in ("wider range",) for f in found.firings) and _gain(derivative(e, index), found)


def _gain(plain: Expr, found: Stable) -> bool:
    return sum(hazards(collected(n)) for n in nodes(plain) if n.op in ("add", "sub")) > found.hazards + _BETTER


def stable(e: Expr) -> Stable:
    """The stable form of one expression; a user's error-free transform is left alone."""
    key = "stable" + view[0]
    if key not in e.facts:
        _recent.append(e)
        found = Stable(e, 0, ()) if has_error_free(e) else _Pass().whole(meant(e))
        e.facts[key] = found if found.firings else Stable(e, found.hazards, ())
    return e.facts[key]


def form_of(e: Expr) -> Expr:
    """What the rules make of an expression, as a candidate: at the sample points that are looked at now."""
    return e if has_error_free(e) else _Pass().whole(meant(e)).expr


def stabilized_derivative(form: Expr, plain: Expr, index: int) -> Expr:
    """The stable form of a derivative: that of the stable form's or that of the plain form's (`plain`), whichever is
    better.
    """
    if has_error_free(form):
        return derivative(form, index)
    return better(derivative(form, index), plain)


def better(*forms: Expr) -> Expr:
    """Of two forms of the same, made stable, the one that leaves less hazard and is defined at more points; of equals one
    with series, for points that the samples do not have.
    """
    candidates = [_Pass().whole(complemented(e) if k == 0 else meant(complemented(e))) for k, e in enumerate(forms)]
    if candidates[0].expr is candidates[-1].expr:
        return _angles(candidates[0].expr)

    def cost(k: int) -> tuple[float, bool, float, int]:
        form = candidates[k].expr
        lost = 50 * undefined(form, candidates[1 - k].expr)
        plain = all(n.op != "series" for n in nodes(form))
        return round(candidates[k].hazards + lost, 1), plain, height(form), form.size

    return _angles(candidates[min((0, 1), key=cost)].expr)


def complemented(e: Expr) -> Expr:
    """1 - logistic(u) as logistic(-u), before a common denominator is looked for, which would keep it as it is."""
    changes: dict[Expr, Expr] = {}
    for n in nodes(e):
        args = tuple(changes[a] for a in n.args)
        changes[n] = rebuilt(n, args)
        if n.op == "sub" and args[0] is ONE and args[1].op == "logistic":
            changes[n] = call("logistic", neg(args[1].args[0]))
        elif n.op == "sub" and args[1] is ONE and args[0].op == "logistic":
            changes[n] = neg(call("logistic", neg(args[0].args[0])))
    return changes[e]


class _Pass:
    """One walk over an expression, which notes what it replaces."""

    def __init__(self) -> None:
        self.firings: list[Firing] = []
        self.hazards = 0.0
        self.memo: dict[tuple[Expr, object], Expr] = {}
        self.done: set[Expr] = set()  # sums and products that a rule made
        self.own: dict[Expr, list[tuple[object, ...]]] = {}  # the cases in which a form of these was looked for

    def whole(self, e: Expr) -> Stable:
        begin()
        try:
            form = self.form(hoisted(e), 0)
            if _extremes(form) - _extremes(e):
                raise OverflowError
        except (TooLong, OverflowError, RecursionError):  # a formula that nothing is worth looking for in
            return Stable(e, math.inf, ())
        if self.firings:
            form = _angles(form)
        return Stable(form, self.hazards, tuple(self.firings))

    def fired(self, rule: str, before: Expr, after: Expr, reason: str) -> Expr:
        self.firings.append(Firing(rule, text(before), text(after), reason, before))
        return after

    def form(self, e: Expr, depth: int) -> Expr:
        key = e, conditions()
        if key not in self.memo:
            self.memo[key] = e  # a form that contains its own plain form stops here
            self.memo[key] = self._form(e, depth)
        return self.memo[key]

    def made(self, before: Expr, after: Expr, depth: int, finished: tuple[str, ...]) -> Expr:
        """What a rule made, with what it did not look at stable too; the operations that it made itself are finished."""
        original = set(nodes(before))
        self.done.update(n for n in nodes(after) if n.op in finished and n not in original)
        return self.form(hoisted(after), depth + 1)

    def _is_of_own_form(self, e: Expr) -> bool:
        """Whether a logarithm or power is a case of its own form, or stands within a case in which it has none."""
        here = conditions()
        return any(here[: len(case)] == case for case in self.own.get(e, ()))

    def children(self, e: Expr, depth: int) -> Expr:
        if not e.args:
            return e
        return hoisted(rebuilt(e, tuple(self.form(a, depth) for a in e.args)))

    def _form(self, e: Expr, depth: int) -> Expr:
        if not e.args or depth > _DEPTH or e.op == "series":
            return e
        match e.op:
            case "add" | "sub":
                return self._sum(e, depth)
            case "mul" | "div":
                return self._product(e, depth)
            case "select" if len(e.args) == 3:
                condition, no, yes = e.args
                with where(condition, False):
                    no = self.form(no, depth)
                with where(condition, True):
                    yes = self.form(yes, depth)
                return rebuilt(e, (self.form(condition, depth), no, yes))
            case "pow" if e not in self.done and not self._is_of_own_form(e):
                better = power_near_one(e)
                self.own.setdefault(e, []).append(conditions())
                if better is not None:
                    return self.fired("power near 1", e, self.made(e, better, depth, ("log", "log1p", "pow")), _POWER)
            case "sqrt" if (better := root_of_square(e)) is not None:
                return self.fired("root of a square", e, self.made(e, better, depth, ()), _ROOT)
            case "acos":
                better = arc_cosine(e)
                if better is not None:
                    return self.fired(
                        "arc cosine near 1", e, self.made(e, better, depth, ("add", "sub")), _CANCELLATION
                    )
            case "log" | "log1p" if e not in self.done and not self._is_of_own_form(e):
                better = logarithm(e)
                self.own.setdefault(e, []).append(conditions())
                if better is not None and better is not e:
                    return self.fired("logarithm", e, self.made(e, better, depth, ("log", "log1p")), _LOGARITHM)
        return self.children(e, depth)

    def _sum(self, e: Expr, depth: int) -> Expr:
        if e in self.done or is_gelu(e):
            return self._summands(e, depth)
        terms = collected(e)
        hazard = hazards(terms)
        if not hazard:
            if terms and has_like_terms(e, terms):
                return self.fired("like terms", e, self.made(e, built(terms), depth, ("add", "sub")), _LIKE_TERMS)
            return self._summands(e, depth)
        if (split := self._split(e, terms, depth)) is not None:
            return split
        best = min((difference(x, ZERO) for x in dict.fromkeys((e, _opened(e)))), key=lambda c: c.hazards)
        series = cancellations(e) if best.hazards else []
        if series:
            far = best.expr if best.hazards < hazard - _BETTER else e
            made = removed(e, self._summands(far, depth))
            if made is not None:
                return self.fired("series", e, made, _SERIES)
        if best.hazards < hazard - _BETTER or best.hazards < hazard / 2:
            self.hazards += best.hazards
            rule = best.rules[0] if best.rules else "like terms"
            return self.fired(rule, e, self.made(e, best.expr, depth, ("add", "sub")), _CANCELLATION)
        self.hazards += hazard
        return self._summands(e, depth)

    def _split(self, e: Expr, terms: Sum, depth: int) -> Expr | None:
        """The sum with parts that cancel on their own stable, whatever else is added; None where that leaves as much
        hazard, or the whole sum has a form that leaves less.
        """
        found = cancelling_parts(terms)
        if not found:
            return None
        before, fired = self.hazards, len(self.firings)
        done = [self.form(built(part), depth + 1) for part in found]
        if len(self.firings) == fired:
            self.hazards = before
            return None
        rest = [self.form(of_product((c, m)), depth) for m, c in terms.items() if not any(m in part for part in found)]
        left = self.hazards - before + loss([*done, *rest])
        if left and left > difference(e, ZERO).hazards:
            self.hazards = before
            del self.firings[fired:]
            return None
        made = rest[0] if rest else done.pop(0)
        for term in (*rest[1:], *done):
            made = add(made, term)
        self.done.update(n for n in nodes(made) if n.op in ("add", "sub") and n not in set(nodes(*done)))
        return made

    def _summands(self, e: Expr, depth: int, whole: Expr | None = None) -> Expr:
        """The sum itself as it stands, its terms stable, and so the sums in it that depend on less."""
        whole = whole or e
        if e.op in ("add", "sub") and e.leaves < whole.leaves:
            return self.form(e, depth)
        if e.op in ("add", "sub", "neg"):
            return rebuilt(e, tuple(self._summands(a, depth, whole) for a in e.args))
        return self.form(e, depth)

    def _product(self, e: Expr, depth: int) -> Expr:
        if e in self.done:
            return self.children(e, depth)
        if e.op == "mul" and (of := _log_without_weight(e)) is not None:
            self.done.add(e)
            return self.fired("limit", e, select(Expr("eq", (of, ZERO)), self.children(e, depth), ZERO), _LIMIT)
        if e.op == "mul" and any(_is_zero(a) and b.op == "div" for a, b in (e.args, e.args[::-1])):
            return ZERO  # the derivative of the same
        made = scaled(e)
        if made is not None and made is not e:
            return self.fired("exponentials scaled", e, self.made(e, made, depth, ("mul", "div")), _SCALED)
        if e.op == "div" and cancellations(e):
            hazard = self.hazards
            made = removed(e, self.children(e, depth))
            if made is not None:
                self.hazards = hazard
                return self.fired("series", e, made, _SERIES)
        return self.children(e, depth)


_CANCELLATION = "the terms cancel where they are close to each other, and what is left is their rounding errors"
_SERIES = "the terms cancel near a point at which the expression has a limit, and 0/0 is not a number there"
_LOGARITHM = "the operand is rounded where it is near 1, and overflows or underflows where its logarithm does not"
_ROOT = "the square overflows or underflows, and the slope at 0 is 0/0"
_POWER = "the base is rounded where it is near 1, and the power multiplies that error by the exponent"
_WIDER = "products or squares overflow, underflow or round in the middle where the result does not"
_LIKE_TERMS = "what is rounded in the middle of a sum is missing where most of it is taken away again"
_GAMMA = "logarithms of gamma functions are large, and cancel but for their rounding"
_BRANCH_POINT = "the operand is rounded where it is near 1, and the slope there is infinite"
_SLOPE = "in the derivative of the plain form the terms cancel"
_LIMIT = "0 times the logarithm of 0 is NaN; the limit is 0"
_SCALED = "the exponentials overflow where their quotient does not"


def _log_without_weight(e: Expr) -> Expr | None:
    """The x of 0 · log x, where the 0 is a constant, as in a density with a parameter at which a power drops out."""
    for weight, log in (e.args, e.args[::-1]):
        if log.op == "log" and log.leaves and _is_zero(weight):
            return log.args[0]
    return None


def _extremes(e: Expr) -> set[Fraction]:
    """The constants that are very large or very small."""
    constants = (n.value for n in nodes(e) if n.op == "const" and isinstance(n.value, Fraction))
    return {c for c in constants if abs(c.numerator.bit_length() - c.denominator.bit_length()) > _EXTREME}


def _is_zero(e: Expr) -> bool:
    """Whether a constant, perhaps of several, is 0."""
    return not e.leaves and not collected(e)


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


def _angles(e: Expr) -> Expr:
    """Sines and cosines of sums of variables by angle addition: the rounded sum of a large and a small one is no angle.

    Where the sum itself is small it is rounded relative to itself, and near its zero angle addition cancels.
    """
    changes: dict[Expr, Expr] = {}
    for n in nodes(e):
        whole = rebuilt(n, tuple(changes[a] for a in n.args))
        changes[n] = whole
        if n.op in ("sin", "cos"):
            added = angle(n.op, collected(n.args[0]))
            small = Expr("lt", (call("abs", n.args[0]), ONE))
            changes[n] = added if added is whole or added.op == n.op else select(small, added, whole)
    return changes[e]
