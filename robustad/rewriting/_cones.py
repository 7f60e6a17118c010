"""The elementwise cones of a program: what the calculus of expressions is given, and the regions that it gives back.

A cone is what is computed element by element between operations that are not (reductions, matrix products, loops). It is
read as one scalar expression of its leaves; where a rule of the calculus applies, the cone becomes a region.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad.rewriting._demand import Demand, boolean
from robustad.rewriting._graph import Step, Term, scalar, widens
from robustad.rewriting._norms import norm_of, radius_and_turn
from robustad.rewriting._report import Rewrite
from robustad.rewriting._rewriter import Rewriter, fitted, place_of
from robustad.rewriting._search import Search
from robustad.rewriting.expressions._calculus import Firing, stabilized
from robustad.rewriting.expressions._conversion import expression_of
from robustad.rewriting.expressions._error_free import has_error_free
from robustad.rewriting.expressions._evaluation import evaluate
from robustad.rewriting.expressions._expression import Expr, const, nodes, select, var
from robustad.rewriting.expressions._radial import is_smooth
from robustad.rewriting.expressions._reads import Case, reads
from robustad.rewriting.expressions._region import Radii, Slopes, region
from robustad.rewriting.expressions._text import text
from robustad.rewriting.twins._composites import composite

_DEEPEST = 32  # levels of one cone; a longer chain is cut
_LARGEST = 600  # nodes of its tree


class Cones:
    """The cones of one program.

    search: what measures the forms of a cone on examples.
    roots: the terms at which one ends: their readers are not elementwise, or they are cut from too long a chain.
    """

    def __init__(self, terms: Sequence[Term], outputs: Sequence[Term], search: Search | None = None):
        level: dict[Term, int] = dict.fromkeys(outputs, 0)
        self._search = search
        self._cut: set[Term] = set()
        self._numbers: set[Term] = set()  # scalars beside arrays: mended once, not for every element
        self.roots: set[Term] = set(outputs)
        for term in reversed(terms):
            deep = level.get(term, 0)
            if deep >= _DEEPEST:
                self._cut.add(term)
                deep = 0
            if deep == 0:
                self.roots.add(term)
            inner = term.step.elementwise and _is_real(term)
            for operand in term.operands:
                if inner and term.shape and not operand.shape and operand.step.elementwise:
                    self._numbers.add(operand)
                if not inner:
                    self.roots.add(operand)
                level[operand] = max(level.get(operand, 0), deep + 1 if inner else 0)
        self._protected = _error_free(terms)
        self._leaves: dict[Term, Expr] = {}
        self._terms: list[Term] = []
        self._known: dict[Term, Expr] = {}
        self._places: dict[Expr, Step] = {}

    def __call__(self, term: Term, rw: Rewriter) -> Term | None:
        """The region that a root becomes; None where no rule of the calculus applies."""
        whole = term in self.roots
        if not (whole or term in self._numbers) or not _is_real(term) or not term.step.elementwise:
            return None
        plain = self._expression(term, rw, root=True)
        if plain.op in ("var", "const") or plain.size > _LARGEST or not plain.leaves or self._is_protected(term, plain):
            return None
        plain, leaves, places = self._numbered(plain)

        def told(firing: Firing) -> Rewrite:
            place = place_of(places.get(firing.expr, term.step))
            return Rewrite(*place, firing.rule, firing.before, firing.after, firing.reason)

        (stable,), firings = stabilized([plain])
        if (smooth := [i for i, leaf in enumerate(leaves) if norm_of(leaf) and is_smooth(plain, i)]) != []:
            if not whole:
                self._cut.add(term)
            rewrites = [Rewrite(*place_of(term.step), *_RADIAL), *map(told, firings)]
            operands, radii = _with_turns(leaves, smooth, rw)
            return _step(term, (stable, plain), operands, rewrites, radii=radii)
        if self._search is not None and whole:
            found = self._search(term, plain, stable if firings else None, leaves)
            if found is not None:
                if found.firing is None:
                    return None
                return _step(term, (found.form, plain), list(map(rw, leaves)), [told(found.firing)], found.slopes)
        if firings and not whole:
            self._cut.add(term)
        if firings:
            return _step(term, (stable, plain), list(map(rw, leaves)), list(map(told, firings)))
        if whole and any(map(_is_narrow, leaves)) and (firings := _rounded_once(plain)):
            return _in_float32(term, plain, list(map(rw, leaves)), told(firings[0]))
        return None

    def _numbered(self, e: Expr) -> tuple[Expr, list[Term], dict[Expr, Step]]:
        """An expression with its variables numbered from 0, what these stand for, and the steps of its nodes.

        So equal expressions at different places of a program are one, whatever their leaves.
        """
        used = sorted(e.leaves)
        made: dict[Expr, Expr] = {var(i): var(k) for k, i in enumerate(used)}
        for n in nodes(e):
            made.setdefault(n, Expr(n.op, tuple(made[a] for a in n.args), n.value))
        places = {made[n]: self._places[n] for n in nodes(e) if n in self._places}
        return made[e], [self._terms[i] for i in used], places

    # ---------------------------------------------------------------------------------------------- reading

    def _expression(self, term: Term, rw: Rewriter, root: bool = False) -> Expr:
        if term in self._known and not root:
            return self._known[term]
        made = self._read(term, rw, root)
        if not root:
            self._known[term] = made
        self._places.setdefault(made, term.step)
        return made

    def _read(self, term: Term, rw: Rewriter, root: bool) -> Expr:
        value = scalar(term)
        if value is not None and term.floating:
            return const(value)
        if term.name == "broadcast_in_dim" and not term.operands[0].shape and len(term.operands) == 1:
            return self._expression(term.operands[0], rw) if term.floating else self._leaf(term)
        if (log := _weighted_logarithm(term)) is not None and rw.by_rule(term) is None:
            x, y = (self._expression(t, rw) for t in term.operands)
            nothing = Expr("and", (Expr("eq", (x, const(0))), Expr("eq", (y, const(0)))))
            return select(nothing, Expr("mul", (x, Expr(log, (y,)))), const(0))
        if not term.step.elementwise or (not root and (term in self._cut or rw.by_rule(term) is not None)):
            return self._leaf(term)
        if term.name in ("convert_element_type", "copy"):
            return self._expression(term.operands[0], rw) if widens(term) else self._leaf(term)
        if not (_is_real(term) or _is_boolean(term)) or not all(map(_fits, term.operands)):
            return self._leaf(term)
        made = expression_of(term.name, term.params, [self._expression(t, rw) for t in term.operands])
        return self._leaf(term) if made is None else made

    def _is_protected(self, term: Term, plain: Expr) -> bool:
        """Whether a cone holds a part of an error-free transform of the user's."""
        if not self._protected:
            return False
        held = {self._known.get(t) for t in self._protected}
        return term in self._protected or any(n in held for n in nodes(plain) if n.op != "var")

    def _leaf(self, term: Term) -> Expr:
        if term not in self._leaves:
            self._leaves[term] = var(len(self._leaves))
            self._terms.append(term)
        return self._leaves[term]


# ------------------------------------------------------------------------------------------------- building


def _in_float32(like: Term, plain: Expr, operands: Sequence[Term], told: Rewrite) -> Term:
    """An expression of 16-bit operands as it stands, rounded at its end alone."""

    def run(*arrays: Array) -> Array:
        shaped = [jnp.broadcast_to(x, like.shape) for x in arrays]
        return evaluate(plain, [_at_least(x, jnp.float32) for x in shaped], np.dtype(np.float32))

    return Step.of(
        "wide sum", fitted(run, like.aval), operands, like.aval,
        origin=like.step.origin, rewrite=told, elementwise=True, safe=1.0,
    )  # fmt: skip


_RADIAL = (
    "singular-point", "f(r), r = norm(d)", "f(r), with the derivative f'(r)/r (d · t)",
    "the derivative of the norm jumps at 0, where f'(r) is 0: f(r) is smooth in d",
)  # fmt: skip


def _with_turns(leaves: Sequence[Term], smooth: Sequence[int], rw: Rewriter) -> tuple[list[Term], Radii]:
    """The operands of a cone, where some leaves are distances in which it is smooth: each has its turn at the end."""
    operands, turns, radii = [rw(leaf) if i not in smooth else leaf for i, leaf in enumerate(leaves)], [], []
    for i in smooth:
        operands[i], turn = radius_and_turn(leaves[i], rw)
        radii.append((i, len(leaves) + len(turns)))
        turns.append(turn)
    return [*operands, *turns], tuple(radii)


def _step(
    like: Term,
    forms: tuple[Expr, Expr],
    operands: Sequence[Term],
    told: Sequence[Rewrite],
    slopes: Slopes = (),
    radii: Radii = (),
) -> Term:
    """A region in the place of a term."""
    stable, plain = forms
    function = region(stable, len(operands), plain, slopes, radii)

    def run(*arrays: Array) -> Array:
        shaped = [jnp.broadcast_to(x, like.shape) for x in arrays]
        return function(*(_at_least(x, like.dtype) for x in shaped))

    def masked(given: Sequence[Term], mask: Term) -> Term:
        """The same where a mask holds, and 0 with derivative 0 elsewhere, whatever the formula gives there."""
        at = var(len(operands))
        zero = const(0)
        forms = select(at, zero, stable), select(at, zero, plain)
        return _step(like, forms, [*given, mask], told, tuple((i, select(at, zero, e)) for i, e in slopes), radii)

    first, *rest = told
    return Step.of(
        "stable", fitted(run, like.aval), operands, like.aval,
        origin=like.step.origin, rewrite=first, inside=tuple(rest), elementwise=True, masked=masked,
        reads=() if radii else _reads(plain, operands, like.shape),
    )  # fmt: skip


def _reads(plain: Expr, operands: Sequence[Term], shape: tuple[int, ...]) -> tuple[Demand, ...]:
    """The cases in which a region reads its operands, by the selects that the user wrote."""
    whole = {i for i, t in enumerate(operands) if jnp.issubdtype(t.dtype, jnp.integer)}
    known = reads(plain, whole)
    dtype = jnp.result_type(jnp.float32, *(t.dtype for t in operands if t.floating))
    made: dict[Expr, Term] = {}

    def term(condition: Expr) -> Term:
        if condition not in made:

            def run(*arrays: Array) -> Array:
                return evaluate(condition, [jnp.broadcast_to(x, shape) for x in arrays], dtype)

            made[condition] = boolean("case", run, operands, shape)
        return made[condition]

    def literals(case: Case) -> frozenset[tuple[Term, bool]]:
        return frozenset((term(condition), value) for condition, value in case)

    found = (known.get(i, frozenset()) for i in range(len(operands)))
    return tuple(None if cases is None else frozenset(map(literals, cases)) for cases in found)


def _rounded_once(e: Expr) -> tuple[Firing, ...]:
    """In 16 bits: a sum of sums, such as a - (b + c), which loses what it has in common if it is rounded in between."""
    sums = [n for n in nodes(e) if n.op in ("add", "sub") and any(_unsigned(a).op in ("add", "sub") for a in n.args)]
    if not sums or has_error_free(e):
        return ()
    reason = "what is rounded to 16 bits in the middle of a sum is missing in its difference"
    return (Firing("wide sum", text(sums[-1]), "the same, rounded once", reason, sums[-1]),)


def _unsigned(e: Expr) -> Expr:
    return e.args[0] if e.op == "neg" else e


def _at_least(x: Array, dtype: Any) -> Array:
    """Narrower floats in the dtype of the result."""
    return lax.convert_element_type(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _error_free(terms: Sequence[Term]) -> set[Term]:
    """The terms of error-free transforms: of a sum, and the sum or difference that takes one of its operands out of it."""
    found: set[Term] = set()
    for term in terms:
        if term.name in _SIGNS:
            for whole, own, part, other in _both_ways(term):
                if whole.name in _SIGNS and any(t is part and s * own == -other for t, s, *_ in _both_ways(whole)):
                    found |= {term, whole}
    return found


_SIGNS = {"add": 1, "sub": -1}


def _both_ways(term: Term) -> list[tuple[Term, int, Term, int]]:
    """Each operand of a sum with its sign, and the other with its own."""
    (a, b), sign = term.operands, _SIGNS[term.name]
    return [(a, 1, b, sign), (b, sign, a, 1)]


def _weighted_logarithm(term: Term) -> str | None:
    """The logarithm of a library's x log(y) or x log1p(y)."""
    eqn = term.step.equation
    if eqn is None or term.name != "custom_jvp_call" or not all(map(_is_real, term.operands)):
        return None
    whole = composite(eqn)
    return {"xlogy": "log", "xlog1py": "log1p"}.get(whole.name) if whole is not None else None


def _is_narrow(term: Term) -> bool:
    return _is_real(term) and jnp.finfo(term.dtype).bits == 16


def _is_real(term: Term) -> bool:
    return bool(jnp.issubdtype(term.dtype, jnp.floating)) and jnp.finfo(term.dtype).bits >= 16


def _is_boolean(term: Term) -> bool:
    return bool(jnp.issubdtype(term.dtype, jnp.bool_))


def _fits(term: Term) -> bool:
    """Whether an operand can stand in an expression: a real number or a truth value."""
    return _is_real(term) or _is_boolean(term)
