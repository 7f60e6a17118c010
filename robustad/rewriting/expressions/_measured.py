"""Forms of one expression, measured on examples: the error of each, of value and slopes, against decimals.

Candidates are the plain form in the wider format, the form that the rules give, the forms that they give when they look at
the examples in the place of their own sample points, slopes derived from each of these, Taylor series where the examples
lie close together, and two of these on either side of a threshold. One is taken only if it is better in the mean, and on no
example worse than the plain form (beyond two units in the last place); else the rules' form stays. Why not equality
saturation: the rules already are what such a search would need identities for, with bounds, and which of their forms is
best is a question of the points.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustad.rewriting.expressions._calculus import Firing, form_of, stabilized_derivative
from robustad.rewriting.expressions._decimals import settled
from robustad.rewriting.expressions._derivative import derivative, has_derivative
from robustad.rewriting.expressions._evaluation import evaluate
from robustad.rewriting.expressions._exponents import meant
from robustad.rewriting.expressions._expression import Expr, call, const, nodes, select, var
from robustad.rewriting.expressions._removable import taylor
from robustad.rewriting.expressions._samples import at
from robustad.rewriting.expressions._text import text

_POINTS = 64
_LARGEST, _LARGEST_FORM, _MOST_LEAVES = 200, 3000, 6
_FREE = 1.6  # bits that any form may be wrong by: two units in the last place
_WORTH, _WORTH_CASES = 0.25, 0.5  # mean bits that another form, and one more case, must save


class Found(NamedTuple):
    """The form to take, with forms of its slopes; without a firing the program as it stands is best."""

    form: Expr
    slopes: tuple[tuple[int, Expr], ...]
    firing: Firing | None


@dataclasses.dataclass(frozen=True)
class _Form:
    expr: Expr
    errors: np.ndarray  # in bits, of each example

    @property
    def mean(self) -> float:
        return float(np.mean(self.errors))


def best(plain: Expr, stable: Expr | None, columns: Mapping[int, np.ndarray], dtype: Any) -> Found | None:
    """What the examples say of an expression; None where they change nothing.

    plain: the user's form.
    stable: that of the rules, None where none fires.
    columns: the values of its variables on the examples.
    dtype: the format, float32 or float64.
    """
    if plain.size > _LARGEST or len(plain.leaves) > _MOST_LEAVES or not all(map(has_derivative, nodes(plain))):
        return None
    places = _Places(plain, plain if stable is None else meant(plain), columns, dtype)
    if places.count < 4:
        return None
    before = places.plain()
    forms = _values(plain, stable, places)
    current = stable if stable is not None else plain
    value = _chosen(forms, 0, before[0], current, stable is not None, places)
    if value is None:
        return None
    slopes = []
    for k, i in enumerate(places.variables, 1):
        candidates, usual = _slopes(plain, _distinct([value.expr, *forms]), i, places)
        taken = _chosen(candidates, k, before[k], usual, stable is not None and value.expr is current, places)
        if taken is None:
            return None
        slopes.append((i, taken, usual))
    after = [value, *(t for _, t, _ in slopes)]
    gain = sum(float(np.mean(b)) for b in before) - sum(f.mean for f in after)
    if stable is not None and gain < 0:
        return Found(plain, (), None)
    if stable is not None and value.expr is current and all(t.expr is usual for _, t, usual in slopes):
        return None
    if stable is None and (max(float(np.mean(b)) for b in before) <= 1 or gain < _WORTH):
        return None
    named = tuple((i, t.expr) for i, t, _ in slopes)
    return Found(value.expr, named, _told(plain, value.expr, before, after))


def _told(plain: Expr, form: Expr, before: Sequence[np.ndarray], after: Sequence[_Form]) -> Firing:
    old, new = float(np.mean(before[0])), after[0].mean
    slopes = ""
    if len(before) > 1:
        of = float(np.mean([np.mean(b) for b in before[1:]])), float(np.mean([f.mean for f in after[1:]]))
        slopes = f", of the slopes {of[0]:.1f} before, {of[1]:.1f} after"
    reason = f"on the examples the mean error of the value is {old:.1f} bits before, {new:.1f} after{slopes}"
    return Firing("search", text(plain), text(form), reason, plain)


class _Places:
    """The examples at which value and slopes are defined, and the right results there."""

    def __init__(self, plain: Expr, truth: Expr, columns: Mapping[int, np.ndarray], dtype: Any):
        self.dtype = np.dtype(dtype).type
        self.working = np.dtype(np.float64)
        self.expr = plain
        self.variables = [i for i in sorted(plain.leaves) if np.asarray(columns[i]).dtype.kind == "f"]
        count = min(_POINTS, max(np.size(c) for c in columns.values()))
        self.columns = {i: _spread(np.ravel(columns[i]), count) for i in sorted(plain.leaves)}
        orders = [truth, *(derivative(truth, i) for i in self.variables)]
        size = max(plain.leaves) + 1
        rows = []
        for k in range(count):
            point = [self.columns[i][k] if i in self.columns else 0.0 for i in range(size)]
            rows.append(settled(orders, point, self.dtype))
        held = [k for k, row in enumerate(rows) if all(v is not None for v in row)]
        self.count = len(held)
        self.columns = {i: c[held] for i, c in self.columns.items()}
        self.wanted = np.array([rows[k] for k in held], self.dtype).reshape(len(held), len(orders)).T

    def errors(self, e: Expr, order: int) -> np.ndarray:
        """In bits, of the value or a slope computed by this form."""
        with jax.enable_x64(True), jax.ensure_compile_time_eval():
            out = evaluate(e, self._arrays(), self.working, self.working == self.dtype)
            return bits(np.asarray(lax.convert_element_type(out, self.dtype)), self.wanted[order])

    def plain(self) -> list[np.ndarray]:
        """The errors of the program as it stands, and of the derivatives that JAX has of it."""
        with jax.enable_x64(True), jax.ensure_compile_time_eval():
            arrays = self._arrays()

            def of(*given: jax.Array) -> jax.Array:
                held = list(arrays)
                for i, x in zip(self.variables, given):
                    held[i] = x
                return evaluate(self.expr, held, self.dtype)

            value, pullback = jax.vjp(of, *(arrays[i] for i in self.variables))
            results = [value, *pullback(jnp.ones_like(value))]
            return [bits(np.asarray(r), w) for r, w in zip(results, self.wanted)]

    def _arrays(self) -> list[jax.Array]:
        some = next(iter(self.columns.values()))
        return [jnp.asarray(self.columns.get(i, some)) for i in range(max(self.columns) + 1)]


def _spread(x: np.ndarray, count: int) -> np.ndarray:
    """`count` of the values, evenly over all of them; a scalar is repeated."""
    return np.resize(x, count) if x.size <= count else x[np.arange(count) * x.size // count]


def bits(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """log₂(1 + distance in units in the last place); all bits where the result is not finite."""
    kind, full = (np.int32, 32) if want.dtype == np.float32 else (np.int64, 64)

    def ordered(x: np.ndarray) -> np.ndarray:
        i = x.view(kind).astype(object)
        return np.where(i >= 0, i, -(i & ((1 << (full - 1)) - 1)))

    got = np.ascontiguousarray(got)
    apart = np.abs(ordered(got) - ordered(np.ascontiguousarray(want))).astype(float)
    return np.where(np.isfinite(got), np.minimum(np.log2(1 + apart), full), float(full))


# ------------------------------------------------------------------------------------------------- candidates


def _values(plain: Expr, stable: Expr | None, places: _Places) -> list[Expr]:
    found = [*([stable] if stable is not None else []), plain, meant(plain), form_of(plain)]
    with at(places.columns):
        found.append(form_of(plain))
    found += _near(plain, places)
    return _distinct(found)


def _slopes(plain: Expr, forms: Sequence[Expr], index: int, places: _Places) -> tuple[list[Expr], Expr]:
    """The candidates, and the one that the rules take for the first form."""
    slope = derivative(meant(plain), index)
    usual = stabilized_derivative(forms[0], slope, index)
    found = [usual, slope, derivative(plain, index)]
    with at(places.columns):
        found += [stabilized_derivative(f, slope, index) for f in _distinct(forms)[:3]]
        found.append(form_of(slope))
    found += [derivative(f, index) for f in _distinct(forms)[:3]] + _near(slope, places)
    return _distinct(found), usual


def _near(e: Expr, places: _Places) -> list[Expr]:
    """A series around the middle of the examples, where they lie close together."""
    if len(e.leaves) != 1:
        return []
    (index,) = e.leaves
    x = places.columns[index].astype(np.float64)
    middle = float(np.float32(np.median(x)))
    made = taylor(e, Fraction(middle), float(np.max(np.abs(x - middle))) * 1.5)
    return [] if made is None else [made]


def _distinct(forms: Sequence[Expr]) -> list[Expr]:
    return [e for e in dict.fromkeys(forms) if e.size <= _LARGEST_FORM]


def _chosen(
    exprs: Sequence[Expr], order: int, before: np.ndarray, usual: Expr, fires: bool, places: _Places
) -> _Form | None:
    """The best of the forms that are nowhere worse than the plain one; where a rule fires, its own unless another one is
    as good in the mean.
    """
    forms = [_Form(e, places.errors(e, order)) for e in exprs]
    limit = np.maximum(before, _FREE)

    def better(some: Sequence[_Form]) -> _Form | None:
        allowed = [f for f in some if np.all(f.errors <= limit)]
        return min(allowed, key=lambda f: (round(f.mean, 2), f.expr.size), default=None)

    one, cases = better(forms), better(_cases(forms, places))
    if cases is not None and (one is None or cases.mean < one.mean - _WORTH_CASES):
        one = cases
    own = next((f for f in forms if f.expr is usual), None)
    if own is None or (one is not None and not fires and not np.all(own.errors <= limit)):
        return one
    if one is None:
        return own if fires else None
    harmless = bool(np.all(own.errors <= limit))
    worth = one.mean < own.mean - _WORTH or (not harmless and one.mean <= own.mean + _WORTH)
    return one if worth else own


def _cases(forms: Sequence[_Form], places: _Places) -> list[_Form]:
    """Two forms on either side of a threshold of one variable or its size, where each is the better one."""
    few = sorted(forms, key=lambda f: f.mean)[:4]
    found: list[_Form] = []
    margin = max(places.count // 10, 3)
    for a, b in itertools.permutations(few, 2):
        for index, sized in itertools.product(places.variables, (False, True)):
            x = places.columns[index].astype(np.float64)
            x = np.abs(x) if sized else x
            order = np.argsort(x, kind="stable")
            below = np.concatenate([[0.0], np.cumsum(a.errors[order])])
            above = np.concatenate([np.cumsum(b.errors[order][::-1])[::-1], [0.0]])
            k = int(np.argmin(below + above))
            if not margin <= k <= places.count - margin or x[order[k - 1]] == x[order[k]]:
                continue
            total = (below + above)[k] / places.count
            if total > min(a.mean, b.mean) - _WORTH_CASES:
                continue
            edge = _between(float(x[order[k - 1]]), float(x[order[k]]))
            where = call("abs", var(index)) if sized else var(index)
            form = select(Expr("lt", (where, const(edge))), b.expr, a.expr)
            found.append(_Form(form, np.where(x < edge, a.errors, b.errors)))
    return found


def _between(low: float, high: float) -> float:
    """The geometric mean of numbers of one sign, else their middle."""
    middle = np.sign(low) * np.sqrt(abs(low)) * np.sqrt(abs(high)) if low * high > 0 else (low + high) / 2
    return float(middle)
