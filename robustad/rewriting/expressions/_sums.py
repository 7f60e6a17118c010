"""Sums whose terms cancel, in a form where they do not: factors, common denominators, differences of functions, conjugates.

A *hazard* is a sum, left in a form, whose terms carry rounding errors and cancel; it is counted in mean bits over the sample
points (`_samples`). Every method proposes a form; the one that leaves the least wins, and the plain form stays where none
leaves less.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from robustad.rewriting.expressions._bounds import bounds
from robustad.rewriting.expressions._differences import from_constant, function_difference
from robustad.rewriting.expressions._expression import (
    ONE,
    ZERO,
    Expr,
    add,
    div,
    mul,
    power,
    rational,
    select,
    sub,
    view,
)
from robustad.rewriting.expressions._polynomials import over_rationals, rational_roots, without_real_roots
from robustad.rewriting.expressions._products import (
    Monomial,
    Product,
    Sum,
    TooLong,
    accumulate,
    built,
    collected,
    common,
    divided,
    expanded_sum,
    multiplied,
    of_product,
    product,
    times,
)
from robustad.rewriting.expressions._samples import conditions, loss

_ONE = Fraction(1)
_DEPTH = 4
_WORK, _ALL_WORK = 40, 160  # how many sums are looked at for one, and for a whole expression
_left = [_WORK, _ALL_WORK]


def begin() -> None:
    """A new expression: the work is counted from here."""
    _left[1] = _ALL_WORK


class Closed(NamedTuple):
    """A form of a sum, the hazards that it leaves and the rules that made it."""

    expr: Expr
    hazards: float
    rules: tuple[str, ...] = ()


_memo: dict[Any, Closed] = {}


def close(s: Sum, depth: int = 0) -> Closed:
    """The best form that is found of a sum."""
    key = frozenset(s.items()), conditions(), depth, view[0]
    if key in _memo:
        return _memo[key]
    plain = Closed(built(s), hazards(s))
    if not plain.hazards or depth > _DEPTH or len(s) > 12:
        return plain
    best = plain
    if depth == 0:
        _left[0] = _WORK
    _left[0] -= 1
    _left[1] -= 1
    if min(_left) < 0:
        return plain
    for method in (_factored, _polynomial, _homogeneous, _conjugate, _paired):
        try:
            made = method(s, depth + 1)
        except TooLong:
            continue
        if made is not None and made.hazards < best.hazards:
            best = made
            if not best.hazards:
                break
    if len(_memo) > 20000:
        _memo.clear()
    _memo[key] = best
    return best


def hazards(s: Sum) -> float:
    """The mean bits that the terms cancel, where they carry errors that this brings to light; a part of the sum counts on
    its own if the other terms depend on something else, for these may be 0.
    """
    return max((_cancelled(part) for part in (s, *parts(s))), default=0.0)


def _cancelled(s: Sum) -> float:
    if len(s) < 2 or all(_is_exact(m) for m in s) or not any(a.leaves for m in s for a, _ in m):
        return 0.0
    return loss([of_product((c, m)) for m, c in s.items()])


def parts(s: Sum) -> list[Sum]:
    """The sums of two or more terms, less than all, that hold every term of no other variables than theirs; small ones
    first.
    """
    if len(s) < 3 or len(s) > 12:
        return []
    leaves = {m: frozenset().union(*(a.leaves for a, _ in m)) for m in s}
    kinds = [v for v in dict.fromkeys(leaves.values()) if v]
    if len(kinds) < 2:
        return []
    unions = dict.fromkeys(v | w for v in kinds for w in kinds)
    held = [{m: c for m, c in s.items() if leaves[m] <= v} for v in sorted(unions, key=lambda v: (len(v), sorted(v)))]
    return [part for part in held if 2 <= len(part) < len(s)]


def cancelling_parts(s: Sum) -> list[Sum]:
    """Disjoint parts of a sum that cancel on their own."""
    found: list[Sum] = []
    for part in parts(s):
        if not any(m in other for m in part for other in found) and _cancelled(part):
            found.append(part)
    return found


def _is_exact(m: Monomial) -> bool:
    """A constant or a variable: an operand without error."""
    return not m or (len(m) == 1 and m[0][0].op == "var" and m[0][1] == 1)


def has_like_terms(e: Expr, terms: Sum) -> bool:
    """Whether at least half of a term drops out that is rounded in the middle of a sum: a - (a + b)/2 is (a - b)/2."""
    largest: dict[Monomial, Fraction] = {}
    depths: dict[Monomial, set[int]] = {}
    for depth, c, m in _written(e, Fraction(1), 0):
        largest[m] = max(largest.get(m, Fraction(0)), abs(c))
        depths.setdefault(m, set()).add(depth)
    return any(m and len(depths[m]) > 1 and 2 * abs(terms.get(m, 0)) <= c for m, c in largest.items())


def _written(e: Expr, factor: Fraction, depth: int) -> Iterator[tuple[int, Fraction, Monomial]]:
    """The terms of a sum as they are written, and how many operations each goes through."""
    if e.op in ("add", "sub", "neg"):
        yield from _written(e.args[0], -factor if e.op == "neg" else factor, depth + 1)
        for a in e.args[1:]:
            yield from _written(a, factor if e.op == "add" else -factor, depth + 1)
    elif e.op in ("mul", "div") and (c := rational(e.args[1])):
        yield from _written(e.args[0], factor * c if e.op == "mul" else factor / c, depth)
    elif e.op == "mul" and (c := rational(e.args[0])):
        yield from _written(e.args[1], factor * c, depth)
    else:
        c, m = product(e)
        yield depth, c * factor, m


def is_gelu(e: Expr) -> bool:
    """1 + tanh(c (x + k x³)): an approximation that is itself further from what it stands for than from its limits."""
    if e.op != "add" or not any(a.op == "tanh" for a in e.args):
        return False
    (u,) = next(a for a in e.args if a.op == "tanh").args
    try:
        return any(m[0][1] == 3 for m in expanded_sum(collected(u)) if len(m) == 1)
    except TooLong:
        return False


def difference(a: Expr, b: Expr, depth: int = 0) -> Closed:
    """a - b."""
    s = collected(a)
    accumulate(s, collected(b), Fraction(-1))
    best = close(s, depth)
    if best.hazards:
        try:
            out = expanded_sum(s)
        except TooLong:
            return best
        if out != s:
            other = close(out, depth)
            best = min(best, other, key=lambda c: c.hazards)
    return best


class _Places:
    """Differences of operands, with the count of the hazards that are left in them."""

    def __init__(self, depth: int):
        self.depth, self.hazards = depth, 0.0

    def __call__(self, u: Expr, v: Expr) -> Expr:
        closed = difference(u, v, self.depth)
        self.hazards += closed.hazards
        return closed.expr


# ------------------------------------------------------------------------------------ factors and denominators


def _factored(s: Sum, depth: int) -> Closed | None:
    """What is common taken out, and denominators with it: a b - a c = a (b - c), 1/u - 1/v = (v - u)/(u v)."""
    shared = common(s)
    if not shared[1]:
        return None
    rest = divided(s, shared)
    best = close(rest, depth)
    if best.hazards:
        out = expanded_sum(rest)
        if out != rest and len(out) <= 12:
            best = min(best, close(out, depth), key=lambda c: c.hazards)
    rule = "common denominator" if any(n < 0 for _, n in shared[1]) else "common factor"
    return Closed(_by(shared, best.expr), best.hazards, (rule, *best.rules))


def _by(p: Product, e: Expr) -> Expr:
    """The product, simplified with the factors that e shows, but not with what is inside its sums."""
    return of_product(times(p, visible(e)))


def visible(e: Expr) -> Product:
    """The factors of an expression; a select or a sum is one."""
    match e.op:
        case "mul":
            return times(visible(e.args[0]), visible(e.args[1]))
        case "div":
            c, m = visible(e.args[1])
            return times(visible(e.args[0]), (1 / c, tuple((a, -n) for a, n in m)))
        case "neg":
            c, m = visible(e.args[0])
            return -c, m
        case "integer_pow":
            c, m = visible(e.args[0])
            return c**e.value, tuple((a, n * e.value) for a, n in m)
        case "add" | "sub":
            return _ONE, ((e, 1),)
        case _:
            return product(e)


# ---------------------------------------------------------------------------------------------- polynomials


def _generator(s: Sum) -> tuple[Expr, dict[int, Fraction]] | None:
    """The sum as a polynomial in one atom, e^t for exponentials of multiples of t: {exponent: coefficient}."""
    atoms = {a for m in s for a, _ in m}
    if len(atoms) == 1:
        (g,) = atoms
        return g, {(m[0][1] if m else 0): c for m, c in s.items()}
    if atoms and all(a.op == "exp" for a in atoms) and all(len(m) <= 1 for m in s):
        from robustad.rewriting.expressions._exponentials import common_exponent

        step = common_exponent([a.args[0] for a in atoms])
        if step is not None:
            t, multiples = step
            g = Expr("exp", (t,))
            return g, {(multiples[m[0][0].args[0]] if m else 0): c for m, c in s.items()}
    return None


def _polynomial(s: Sum, depth: int) -> Closed | None:
    """A polynomial in one function factored by its rational roots: e^x - 2 + e^(-x) = (e^x - 1)²/e^x."""
    found = _generator(s)
    if found is None:
        return None
    g, terms = found
    low, high = min(terms), max(terms)
    if high - low < 2 or high - low > 24:
        return None
    roots, rest = rational_roots([terms.get(i, Fraction(0)) for i in range(low, high + 1)])
    if not roots:
        return None
    total, left = of_product(((_ONE), ((g, low),) if low else ())), 0
    if g.op == "exp" and low:
        total = Expr("exp", (mul_by(g.args[0], low),))
    for root, multiplicity in roots:
        factor = close(_line(g, root), depth)
        total, left = mul(total, power(factor.expr, multiplicity)), left + factor.hazards
    if len(rest) > 1:
        left += 0 if without_real_roots(rest) else 1
        total = mul(total, over_rationals(rest, g))
    else:
        total = mul(total, built({(): rest[0]}))
    return Closed(total, left, ("polynomial factored",))


def mul_by(t: Expr, k: int) -> Expr:
    s: Sum = {}
    accumulate(s, collected(t), Fraction(k))
    return built(s)


def _line(g: Expr, root: Fraction) -> Sum:
    return {((g, 1),): _ONE} | ({(): -root} if root else {})


def _homogeneous(s: Sum, depth: int) -> Closed | None:
    """A form of two functions factored by its rational ratios: a² - b² = (a - b)(a + b)."""
    atoms = sorted({a for m in s for a, _ in m}, key=lambda a: a.digest)
    if len(atoms) != 2 or any(n < 0 for m in s for _, n in m):
        return None
    g, h = atoms
    degrees = {sum(n for _, n in m) for m in s}
    if len(degrees) != 1 or (degree := degrees.pop()) < 2 or degree > 12:
        return None
    terms = {dict(m).get(g, 0): c for m, c in s.items()}
    roots, rest = rational_roots([terms.get(i, Fraction(0)) for i in range(degree + 1)])
    if not roots:
        return None
    total, left = ONE, 0
    for root, multiplicity in roots:
        line: Sum = {((g, 1),): _ONE} | ({((h, 1),): -root} if root else {})
        factor = close(line, depth)
        total, left = mul(total, power(factor.expr, multiplicity)), left + factor.hazards
    others: Sum = {}
    n = len(rest) - 1
    for i, c in enumerate(rest):
        if c:
            accumulate(others, {tuple((a, k) for a, k in ((g, i), (h, n - i)) if k): c})
    if n:
        left += 0 if without_real_roots(rest) else 1
    return Closed(mul(total, built(others)), left, ("difference of powers",))


# ---------------------------------------------------------------------------------------------------- conjugates


def _conjugate(s: Sum, depth: int) -> Closed | None:
    """√u + q = (u - q²)/(√u - q) where q < 0 and u - q² is simple; the plain sum where q ≥ 0, where it cannot cancel.

    Kahan's way with quadratic equations, and that of hypot(x, y) - x. Both sides are exact in the sign of q at run time.
    """
    best: Closed | None = None
    for root in {a: None for m in s for a, n in m if a.op == "sqrt" and n == 1 and a.leaves}:
        p = {m: c for m, c in s.items() if (root, 1) in m}
        q = {m: c for m, c in s.items() if (root, 1) not in m}
        if not p or not q:
            continue
        squares = multiplied(p, p)
        accumulate(squares, multiplied(q, q), Fraction(-1))
        top = close(expanded_sum(squares), depth)
        first, second = close(p, depth), close(q, depth)
        left = top.hazards + first.hazards + second.hazards
        if best is not None and best.hazards <= left:
            continue
        a, b = first.expr, second.expr
        plus = close_sign(p)
        mended = div(top.expr, sub(a, b))
        if plus:
            low, high = bounds(b)
            away = Expr("lt", (b, ZERO)) if plus > 0 else Expr("gt", (b, ZERO))
            known = (high <= 0) if plus > 0 else (low >= 0)
            form = mended if known else select(away, add(a, b), mended)
        else:
            form = select(Expr("lt", (mul(a, b), ZERO)), add(a, b), mended)
        best = Closed(form, left, ("conjugate", *top.rules))
    return best


def close_sign(s: Sum) -> int:
    """The sign of a sum where it is known, else 0."""
    low, high = bounds(built(s))
    return 1 if low >= 0 else -1 if high <= 0 else 0


# --------------------------------------------------------------------------------------------------------- pairs


def _paired(s: Sum, depth: int) -> Closed | None:
    """Two terms replaced by the difference of a function, until nothing is left that cancels."""
    best: Closed | None = None
    order = sorted(s, key=lambda m: [(a.digest, n) for a, n in m])
    for i, m in enumerate(order):
        for n in order[i + 1 :]:
            for replaced, left, rules in _pair(s, m, n, depth):
                rest = {k: c for k, c in s.items() if k not in (m, n)}
                accumulate(rest, replaced)
                if rest.keys() == s.keys() or (len(rest) >= len(s) and hazards(rest) + left > hazards(s) / 2):
                    continue
                whole = close(rest, depth)
                total = whole.hazards + left
                if best is None or total < best.hazards:
                    best = Closed(whole.expr, total, (*rules, *whole.rules))
                    if not total:
                        return best
    return best


def _pair(s: Sum, m: Monomial, n: Monomial, depth: int) -> Iterator[tuple[Sum, float, tuple[str, ...]]]:
    """What can stand for the two terms: sums, with the hazards in their factors."""
    shared = common({m: _ONE, n: _ONE})[1]
    a = times((_ONE, m), (_ONE, tuple((x, -k) for x, k in shared)))
    b = times((_ONE, n), (_ONE, tuple((x, -k) for x, k in shared)))
    if a[0] != 1 or b[0] != 1:
        return
    p, q = s[m], s[n]
    if not a[1]:
        a, b, m, n, p, q = b, a, n, m, q, p
    if len(a[1]) != 1 and len(b[1]) == 0:
        return
    for atom, k in a[1]:
        if not b[1]:  # F(u) - c: the constant is q/p
            c = -q / p
            places = _Places(depth)
            made = from_constant(atom, c, places) if k == 1 else None
            if made is None and len(s) > 2:
                for c in (_ONE, -_ONE):  # the rest of the constant is left over
                    if (p > 0) != (q * c > 0) and abs(q) > abs(p):
                        made = from_constant(atom, c, places) if k == 1 else None
                        if made is not None:
                            break
            if made is not None:
                out: Sum = {}
                accumulate(out, _term((p, shared), made))
                accumulate(out, {shared: q + p * c})
                yield out, places.hazards, (f"{atom.op} near {c}",)
            continue
        for other, j in b[1]:
            if j != k or (p > 0) == (q > 0):
                continue
            places = _Places(depth)
            made = function_difference(atom, other, places) if k == 1 else None
            if made is None:
                continue
            rest_a = tuple(x for x in a[1] if x[0] is not atom)
            rest_b = tuple(x for x in b[1] if x[0] is not other)
            rule = (f"difference of {atom.op}",)
            if not rest_a and not rest_b:
                size = min(abs(p), abs(q)) * (1 if p > 0 else -1)
                if abs(p) != abs(q) and len(s) < 3:
                    continue
                out = {}
                accumulate(out, _term((size, shared), made))
                accumulate(out, {m: p - size})
                accumulate(out, {n: q + size})
                yield out, places.hazards, rule
            else:
                # p x F(u) + q y F(v) = p x (F(u) - F(v)) + (p x + q y) F(v) = -q y (F(u) - F(v)) + (p x + q y) F(u)
                line: Sum = {}
                accumulate(line, {rest_a: p})
                accumulate(line, {rest_b: q})
                factor = difference(built(line), ZERO, depth)
                if factor.hazards:
                    continue
                for weight, rest, function in ((p, rest_a, other), (-q, rest_b, atom)):
                    out = {}
                    accumulate(out, _term(times((weight, shared), (_ONE, rest)), made))
                    accumulate(out, _term(times((_ONE, shared), (_ONE, ((function, 1),))), factor.expr))
                    yield out, places.hazards, rule


def _term(p: Product, made: Expr) -> Sum:
    c, m = times(p, visible(made))
    return {m: c} if c else {}
