"""Expressions as a reader writes them, for the list of rewrites and for programs that print."""

from fractions import Fraction

from robustad.rewriting.expressions._expression import Expr, nodes

_INFIX = {"add": (" + ", 1), "sub": (" - ", 1), "mul": ("*", 2), "div": ("/", 2)}
_COMPARED = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=", "and": "and", "or": "or"}
_LETTERS = "xyzuvwabcdpq"


def name(index: int) -> str:
    """The letter that stands for a variable."""
    return _LETTERS[index] if index < len(_LETTERS) else f"x{index}"


def text(e: Expr, longest: int = 400) -> str:
    """The expression in infix notation, its end left out beyond `longest` characters."""
    written: dict[Expr, tuple[str, int]] = {}  # the text and how tightly its outermost operation binds
    for n in nodes(e):
        whole, level = _one(n, written)
        written[n] = (whole if len(whole) <= longest else whole[: longest - 3] + "...", level)
    return written[e][0]


def _one(n: Expr, written: dict[Expr, tuple[str, int]]) -> tuple[str, int]:
    def within(a: Expr, level: int) -> str:
        inner, its = written[a]
        return inner if its >= level else f"({inner})"

    match n.op:
        case "var":
            return name(n.value), 9
        case "const":
            if isinstance(n.value, Fraction) and n.value.denominator > 1:
                short = n.value.denominator <= 999
                return (str(n.value) if short else f"{float(n.value):.9g}"), 2 if short else (9 if n.value > 0 else 0)
            return str(n.value), 9 if n.value >= 0 else 0
        case "add" | "sub" | "mul" | "div":
            sign, level = _INFIX[n.op]
            tighter = level + (n.op in ("sub", "div"))
            return f"{within(n.args[0], level)}{sign}{within(n.args[1], tighter)}", level
        case "neg":
            return f"-{within(n.args[0], 2)}", 1
        case "integer_pow":
            return f"{within(n.args[0], 4)}^{n.value}", 3
        case "square":
            return f"{within(n.args[0], 4)}^2", 3
        case "select" if len(n.args) == 3:
            return f"({within(n.args[2], 1)} if {within(n.args[0], 0)} else {within(n.args[1], 1)})", 9
        case "series":
            f, centre = n.value.function, n.value.centre
            around = f" around {centre}" if centre else ""
            return f"series({text(f, 120)}{around})", 9
        case _ if n.op in _COMPARED:
            return f"{within(n.args[0], 1)} {_COMPARED[n.op]} {within(n.args[1], 1)}", 0
        case _:
            return f"{n.op}({', '.join(within(a, 0) for a in n.args)})", 9
