"""Scalar expressions as immutable, hash-consed graphs.

Two expressions of the same structure are one object, so that like terms are recognised by identity and every analysis can be
remembered on the object. The constructors below simplify only what is exact in real arithmetic and needs no thought (x + 0,
x · 1, −(−x), operations on rational constants); a user's program is converted without them (`_conversion`).
"""

from __future__ import annotations

import functools
import hashlib
import math
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, TypeVar

Value = TypeVar("Value")


class Expr:
    """A node: `op` is named as the lax primitive, `args` are nodes, `value` what else the operation needs.

    Leaves: "var" (value: its index) and "const" (value: a `Fraction`; ±inf and nan as floats).
    """

    __slots__ = ("__weakref__", "args", "digest", "facts", "leaves", "op", "size", "value")

    op: str
    args: tuple[Expr, ...]
    value: Any
    leaves: frozenset[int]  # the variables that it depends on
    size: int  # of the tree
    digest: bytes  # orders nodes in the same way in every process
    facts: dict[str, Any]  # what analyses remember

    def __new__(cls, op: str, args: tuple[Expr, ...] = (), value: Any = None) -> Expr:
        # Floats are told apart by their text: nan is not equal to itself, and 0.0 is to -0.0.
        key = (op, args, repr(value) if isinstance(value, float) else value)
        known = _known.get(key)
        if known is not None:
            return known
        self = super().__new__(cls)
        self.op, self.args, self.value, self.facts = op, args, value, {}
        below: frozenset[int] = frozenset().union(*(a.leaves for a in args))
        self.leaves = below | {int(value)} if op == "var" else below
        self.size = 1 + sum(a.size for a in args)
        digest = hashlib.blake2b(f"{op} {value!r}".encode(), digest_size=12)
        for a in args:
            digest.update(a.digest)
        self.digest = digest.digest()
        _known[key] = self
        return self

    def __reduce__(self) -> Any:
        return Expr, (self.op, self.args, self.value)

    def __copy__(self) -> Expr:
        return self

    def __deepcopy__(self, memo: Any) -> Expr:
        return self

    def __repr__(self) -> str:
        from robustad.rewriting.expressions._text import text

        return text(self)


_known: weakref.WeakValueDictionary[Any, Expr] = weakref.WeakValueDictionary()


view: list[str] = [""]  # the sample points that analyses look at, by name


def remembered(analysis: Callable[[Expr], Value]) -> Callable[[Expr], Value]:
    """An analysis of one node, computed once for each node and each set of sample points."""
    name = f"{analysis.__module__}.{analysis.__qualname__}"

    @functools.wraps(analysis)
    def once(e: Expr) -> Value:
        key = name + view[0]
        if key not in e.facts:
            e.facts[key] = analysis(e)
        return e.facts[key]

    return once


def nodes(*roots: Expr) -> Iterator[Expr]:
    """Every node below, each once, operands first."""
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        e, entered = stack.pop()
        if e in seen:
            continue
        if entered:
            seen.add(e)
            yield e
        else:
            stack.append((e, True))
            stack.extend((a, False) for a in reversed(e.args))


# --------------------------------------------------------------------------------------------- constructors


def var(index: int) -> Expr:
    return Expr("var", (), index)


def const(value: Any) -> Expr:
    """A constant; a finite float stands for its exact value."""
    if isinstance(value, float) and not math.isfinite(value):
        return Expr("const", (), value)
    return Expr("const", (), Fraction(value))


ZERO, ONE, TWO, HALF = const(0), const(1), const(2), const(Fraction(1, 2))


def rational(e: Expr) -> Fraction | None:
    """The value of a finite constant."""
    return e.value if e.op == "const" and isinstance(e.value, Fraction) else None


def add(a: Expr, b: Expr) -> Expr:
    p, q = rational(a), rational(b)
    if p is not None and q is not None:
        return const(p + q)
    if p == 0:
        return b
    if q == 0:
        return a
    if b.op == "neg":
        return sub(a, b.args[0])
    if a.op == "neg":
        return sub(b, a.args[0])
    return Expr("add", (a, b))


def sub(a: Expr, b: Expr) -> Expr:
    p, q = rational(a), rational(b)
    if p is not None and q is not None:
        return const(p - q)
    if p == 0:
        return neg(b)
    if q == 0:
        return a
    if a is b:
        return ZERO
    if b.op == "neg":
        return add(a, b.args[0])
    return Expr("sub", (a, b))


def neg(a: Expr) -> Expr:
    p = rational(a)
    if p is not None:
        return const(-p)
    return a.args[0] if a.op == "neg" else Expr("neg", (a,))


def mul(a: Expr, b: Expr) -> Expr:
    p, q = rational(a), rational(b)
    if p is not None and q is not None:
        return const(p * q)
    if p == 0 or q == 0:
        return ZERO
    if p == 1:
        return b
    if q == 1:
        return a
    if p == -1:
        return neg(b)
    if q == -1:
        return neg(a)
    if p is not None and p < 0:
        return neg(mul(const(-p), b))
    if q is not None and q < 0:
        return neg(mul(a, const(-q)))
    if a.op == "neg":
        return neg(mul(a.args[0], b))
    if b.op == "neg":
        return neg(mul(a, b.args[0]))
    return Expr("mul", (a, b))


def div(a: Expr, b: Expr) -> Expr:
    p, q = rational(a), rational(b)
    if q is not None and q != 0:
        return const(p / q) if p is not None else a if q == 1 else neg(a) if q == -1 else Expr("div", (a, b))
    if p == 0:
        return ZERO
    if p is not None and p < 0:
        return neg(div(const(-p), b))
    if a.op == "neg":
        return neg(div(a.args[0], b))
    if b.op == "neg":
        return neg(div(a, b.args[0]))
    return Expr("div", (a, b))


def power(a: Expr, n: int) -> Expr:
    """a^n for an integer n."""
    if n == 0:
        return ONE
    if n == 1:
        return a
    p = rational(a)
    if p is not None and (p != 0 or n > 0):
        return const(p**n)
    return div(ONE, power(a, -n)) if n < 0 else Expr("integer_pow", (a,), n)


_AT_ZERO = dict.fromkeys(
    "sin tan asin atan sinh tanh asinh atanh expm1 log1p sqrt cbrt erf".split(), ZERO
) | dict.fromkeys("exp exp2 cos cosh erfc".split(), ONE)


def call(op: str, *args: Expr) -> Expr:
    """A function; its value at 0 or 1 where that is rational."""
    if len(args) == 1:
        p = rational(args[0])
        if p == 0 and op in _AT_ZERO:
            return _AT_ZERO[op]
        if p == 1 and op in ("sqrt", "rsqrt", "cbrt"):
            return ONE
        if (p == 1 and op == "log") or (p == 0 and op == "sin"):
            return ZERO
        if p == 0 and op == "logistic":
            return HALF
        if p is not None and op == "abs":
            return const(abs(p))
    return Expr(op, args)


def select(condition: Expr, no: Expr, yes: Expr) -> Expr:
    """In the order of `lax.select_n`: the case of False first."""
    return no if no is yes else Expr("select", (condition, no, yes))


def rebuilt(e: Expr, args: tuple[Expr, ...]) -> Expr:
    """The node on other operands."""
    match e.op:
        case _ if args == e.args:
            return e
        case "add":
            return add(*args)
        case "sub":
            return sub(*args)
        case "mul":
            return mul(*args)
        case "div":
            return div(*args)
        case "neg":
            return neg(*args)
        case "integer_pow":
            return power(args[0], e.value)
        case "select" if len(args) == 3:
            return select(*args)
        case _ if e.value is None:
            return call(e.op, *args)
        case _:
            return Expr(e.op, args, e.value)


def substituted(e: Expr, changes: dict[Expr, Expr]) -> Expr:
    """The expression with some nodes put in the place of others."""
    done: dict[Expr, Expr] = {}
    for n in nodes(e):
        done[n] = changes[n] if n in changes else rebuilt(n, tuple(done[a] for a in n.args))
    return done[e]
