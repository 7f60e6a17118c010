"""Exponents that a program could only round: `x ** (1 / 3)` in float32 is a cube root, though its exponent is not 1/3."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from robustad.rewriting.expressions._expression import Expr, const, nodes, rational, rebuilt

_LARGEST = 12


def meant(e: Expr) -> Expr:
    """The expression with the small fractions for which constant exponents stand, where float32 or float64 holds these
    no better.

    Only in expressions that are rewritten anyway: x^(1/3) at x = 1e38 moves by 10 units in the last place of float32.
    """
    changes: dict[Expr, Expr] = {}
    for n in nodes(e):
        args = tuple(changes[a] for a in n.args)
        if n.op == "pow" and (p := rational(args[1])) is not None:
            args = args[0], const(_simple(p))
        changes[n] = n if args == n.args else Expr(n.op, args, n.value) if n.op == "pow" else rebuilt(n, args)
    return changes[e]


def _simple(p: Fraction) -> Fraction:
    for denominator in (3, 5, 6, 7, 9, 10, 11, _LARGEST):
        guess = Fraction(round(p * denominator), denominator)
        if guess.denominator > 1 and abs(guess) < 8 and p in (_rounded(guess, np.float32), _rounded(guess, np.float64)):
            return guess
    return p


def _rounded(x: Fraction, dtype: type) -> Fraction:
    return Fraction(float(dtype(float(x))))
