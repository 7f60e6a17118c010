r"""Compound variables: a function of several variables that is a power product times a function of one such product.

sin(a x)/x is a · sin(u)/u with u = a x, and (e^(k t) - 1)/k is t (e^u - 1)/u. Give every variable a weight such that a
scaling by these weights changes nothing but a factor: operands of functions and exponents must not change, terms of a
sum must change alike. Each of these conditions is a vector of exponents; where all of them are multiples of one vector c,
the expression is M · F(u) with u = ∏ xᵢ^cᵢ, for which F is what the expression is at xᵢ = 1 in all variables but one.
A function of u must stand in the program: a polynomial such as x² - y² is better taken as it is than by x/y.

Powers are exponentials here: (x^k - 1)/k is log(x) (e^u - 1)/u with u = k log(x). A function of a distance √(x² + y²)
alone is one of that.
"""

from __future__ import annotations

from fractions import Fraction
from math import gcd, lcm
from typing import NamedTuple

from robustad.rewriting.expressions._expression import (
    ONE,
    Expr,
    call,
    mul,
    nodes,
    rebuilt,
    remembered,
    substituted,
    var,
)
from robustad.rewriting.expressions._products import of_product, product

_MOST = 4  # variables
_LARGEST = 400

Vector = tuple[Fraction, ...]


class Compound(NamedTuple):
    """e = factor · function(variable), the function being one of the variable `index`."""

    factor: Expr
    variable: Expr
    function: Expr
    index: int


@remembered
def compounds(e: Expr) -> list[Compound]:
    """The ways to write an expression of several variables by a compound one, those whose factor divides by least first."""
    leaves = sorted(e.leaves)
    if (radial := _radial(e)) is not None:
        return [radial]
    if (powers := _logarithmic(e)) is not None:
        inner, given = powers
        return [
            whole._replace(factor=substituted(whole.factor, given), variable=substituted(whole.variable, given))
            for whole in compounds(inner)
        ]
    if not 2 <= len(leaves) <= _MOST or e.size > _LARGEST or any(n.op in ("select", "series") for n in nodes(e)):
        return []
    found = _exponents(e, leaves)
    if found is None or sum(1 for x in found[0] if x) < 2:
        return []
    c, degree = found
    ways = []
    for pivot, index in enumerate(leaves):
        if abs(c[pivot]) != 1:
            continue
        m = tuple(g - degree[pivot] / c[pivot] * x for g, x in zip(degree, c))
        if any(x.denominator != 1 for x in m):
            continue
        at = {var(i): ONE for i in leaves if i != index}
        if c[pivot] < 0:
            at[var(index)] = Expr("div", (ONE, var(index)))
        whole = Compound(_monomial(m, leaves), _monomial(c, leaves), substituted(e, at), index)
        ways.append((sum(min(x, 0) for x in m), whole))
    return [whole for _, whole in sorted(ways, key=lambda way: -way[0])]


def _radial(e: Expr) -> Compound | None:
    """An expression of several variables as a function of a square root of a sum that they form."""
    if len(e.leaves) < 2 or e.size > _LARGEST:
        return None
    index = max(e.leaves) + 1
    for n in nodes(e):
        if n.op == "sqrt" and n is not e and n.leaves == e.leaves and n.args[0].op == "add":
            function = substituted(e, {n: var(index)})
            if function.leaves == {index}:
                return Compound(ONE, n, function, index)
    return None


def _logarithmic(e: Expr) -> tuple[Expr, dict[Expr, Expr]] | None:
    """An expression with exponentials in the place of powers, and variables in that of logarithms, which are returned: where
    what they are of stands nowhere else.
    """
    if e.size > _LARGEST or all(n.op != "pow" or not n.args[1].leaves for n in nodes(e)):
        return None
    changes: dict[Expr, Expr] = {}
    for n in nodes(e):
        args = tuple(changes[a] for a in n.args)
        changes[n] = rebuilt(n, args)
        if n.op == "pow" and n.args[1].leaves:
            changes[n] = call("exp", mul(args[1], call("log", args[0])))
    inner = changes[e]
    index = max(e.leaves) + 1
    given: dict[Expr, Expr] = {}
    for n in [n for n in nodes(inner) if n.op in ("log", "log1p") and n.leaves]:
        replaced = substituted(inner, {n: var(index)})
        if replaced.leaves.isdisjoint(n.leaves):
            inner, given[var(index)] = replaced, n
            index += 1
    return (inner, given) if given else None


def _monomial(exponents: Vector, leaves: list[int]) -> Expr:
    powers = tuple((var(i), int(x)) for i, x in zip(leaves, exponents) if x)
    return of_product((Fraction(1), tuple(sorted(powers, key=lambda p: p[0].digest))))


def _exponents(e: Expr, leaves: list[int]) -> tuple[Vector, Vector] | None:
    """The exponents of the compound variable and the degree of e."""
    zero = (Fraction(0),) * len(leaves)
    degrees: dict[Expr, Vector] = {}
    direction: Vector | None = None
    explicit = False

    def equal(a: Vector, b: Vector) -> bool:
        """Adds the condition a = b; False where it is not a multiple of those before."""
        nonlocal direction
        d = tuple(x - y for x, y in zip(a, b))
        if not any(d):
            return True
        if direction is None:
            direction = _primitive(d)
            return True
        return _primitive(d) in (direction, tuple(-x for x in direction))

    for n in nodes(e):
        of = [degrees[a] for a in n.args]
        match n.op:
            case "var":
                degrees[n] = tuple(Fraction(int(i == n.value)) for i in leaves)
            case "const":
                degrees[n] = zero
            case "neg":
                degrees[n] = of[0]
            case "mul":
                degrees[n] = tuple(x + y for x, y in zip(*of))
            case "div":
                degrees[n] = tuple(x - y for x, y in zip(*of))
            case "integer_pow":
                degrees[n] = tuple(n.value * x for x in of[0])
            case "add" | "sub":
                if not equal(of[0], of[1]):
                    return None
                degrees[n] = of[0]
            case _:
                if not all(equal(d, zero) for d in of):
                    return None
                degrees[n] = zero
                explicit |= any(any(d) and _is_power_product(a) for a, d in zip(n.args, of))
    return (direction, degrees[e]) if direction is not None and explicit else None


def _is_power_product(e: Expr) -> bool:
    _, m = product(e)
    return bool(m) and all(a.op == "var" for a, _ in m)


def _primitive(d: Vector) -> Vector:
    scale = Fraction(lcm(*(x.denominator for x in d)), gcd(*(x.numerator for x in d)))
    first = next(x for x in d if x)
    return tuple(x * scale * (1 if first > 0 else -1) for x in d)
