"""The rules, and the pass that applies them: every term of a program and what it is replaced by.

A rule looks at the program as the user wrote it and builds new terms from rewritten operands. The first rule that fires
on a term has it.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad import _jaxpr
from robustad._jaxpr import Body
from robustad.rewriting._graph import Run, Step, Term, constant
from robustad.rewriting._report import Rewrite

Rule: TypeAlias = "Callable[[Term, Rewriter], Term | None]"
RULES: dict[str, list[Rule]] = {}


LATE: dict[str, list[Rule]] = {}


def rule(*primitives: str, late: bool = False) -> Callable[[Rule], Rule]:
    """Registers a rule for terms that these primitives make.

    late: after the calculus of elementwise expressions, which has other forms for the same.
    """

    def register(f: Rule) -> Rule:
        for name in primitives:
            (LATE if late else RULES).setdefault(name, []).append(f)
        return f

    return register


class Rewriter:
    """What the terms of one program become: `rewriter(term)`.

    cones: the region that a term becomes, if any.
    fallback: what a step becomes that no rule wants.
    body: what the body of a loop becomes.
    carried, depth: what `_log_space` knows of terms, and how deep it looks.
    loops: those that `_totals` has looked into.
    scaled: what `_scaled_loops` has made.
    """

    def __init__(
        self,
        cones: "Callable[[Term, Rewriter], Term | None]",
        fallback: "Callable[[Step, Rewriter], Step]",
        body: "Callable[[Body], Callable[..., list[Array]]]",
    ):
        self._cones = cones
        self._fallback = fallback
        self.body = body
        self.carried: dict[Term, Any] = {}
        self.depth = 0
        self.loops: dict[Step, Any] = {}
        self.scaled: dict[tuple[Term, tuple[int, ...]], Any] = {}
        self._known: dict[Term, Term] = {}
        self._steps: dict[Step, Step] = {}
        self._by_rule: dict[Term, Term | None] = {}

    def __call__(self, term: Term) -> Term:
        if term.name in ("input", "constant"):
            return term
        if term not in self._known:
            self._known[term] = self.by_rule(term) or self._otherwise(term)
        return self._known[term]

    def known(self, term: Term, new: Term) -> None:
        """Says what a term becomes, before any rule."""
        self._known[term] = new

    def _otherwise(self, term: Term) -> Term:
        if not is_real_arithmetic(term):
            return self.step(term.step).outputs[term.index]
        late = (f(term, self) for f in (self._cones, *LATE.get(term.name, ())))
        return next((new for new in late if new is not None), None) or self.step(term.step).outputs[term.index]

    def step(self, step: Step) -> Step:
        """What a step becomes that no rule wants."""
        if step not in self._steps:
            self._steps[step] = self._fallback(step, self)
        return self._steps[step]

    def by_rule(self, term: Term) -> Term | None:
        """The replacement that a rule has for a term, if any."""
        if not is_real_arithmetic(term):
            return None
        if term not in self._by_rule:
            self._by_rule[term] = None  # a rule that asks for the term which it rewrites gets the plain one
            fired = (f(term, self) for f in RULES.get(term.name, ()))
            self._by_rule[term] = next((new for new in fired if new is not None), None)
        return self._by_rule[term]


def is_real_arithmetic(term: Term) -> bool:
    """Whether a term and what it is made of hold no complex numbers: the rules are of real functions."""
    return bool(jnp.issubdtype(term.dtype, jnp.floating)) and not any(
        jnp.issubdtype(t.dtype, jnp.complexfloating) for t in term.operands
    )


def replaced(
    term: Term,
    name: str,
    run: Callable[..., Any],
    operands: Sequence[Term],
    *,
    before: str,
    after: str,
    reason: str,
    elementwise: bool = False,
    masked: Callable[[Sequence[Term], Term], Term] | None = None,
) -> Term:
    """A term in the place of another one, told as a `Rewrite` at the statement that made that."""
    told = Rewrite(*place_of(term.step), name, before, after, reason)
    kind = {
        "origin": term.step.origin,
        "rewrite": told,
        "elementwise": elementwise,
        "safe": 1.0 if elementwise else None,
        "masked": masked,
    }
    return Step.of(name, fitted(run, term.aval), operands, term.aval, **kind)


def place_of(step: Step) -> tuple[str | None, int | None, str | None]:
    """The file, line and function of the user's statement that made a step."""
    at = _jaxpr.location(step.origin) if step.origin is not None else None
    return (at.file, at.line, at.function) if at else (None, None, None)


def derived(like: Term, name: str, run: Callable[..., Any], operands: Sequence[Term], elementwise: bool = True) -> Term:
    """An auxiliary term of a replacement, of the shape and dtype of `like`."""
    aval = jax.ShapeDtypeStruct(like.shape, like.dtype)
    kind = {"origin": like.step.origin, "elementwise": elementwise, "safe": 1.0 if elementwise else None}
    return Step.of(name, fitted(run, aval), operands, aval, **kind)


def number(like: Term, value: float) -> Term:
    """A constant of the dtype of `like`."""
    aval = jax.ShapeDtypeStruct((), like.dtype)
    return constant(jnp.asarray(value, like.dtype), aval)


def fitted(run: Callable[..., Any], aval: Any) -> Run:
    """`run` as the run of a step with one output of that shape and dtype, computed in no narrower one."""

    def wide(x: Array) -> Array:
        narrower = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < jnp.finfo(aval.dtype).bits
        return lax.convert_element_type(x, aval.dtype) if narrower else x

    def fitting(*arrays: Array) -> list[Array]:
        out = run(*map(wide, arrays))
        if jnp.shape(out) != tuple(aval.shape):
            out = jnp.broadcast_to(out, aval.shape)
        return [lax.convert_element_type(out, aval.dtype)]

    return fitting
