"""Writes the table of special functions into robustad/stability/README.md.

python experiments/document.py
"""

import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.special._table import TABLE, Special  # noqa: E402

README = ROOT / "robustad" / "stability" / "README.md"
START, END = "<!-- table: experiments/document.py -->", "<!-- end of table -->"


def number(x: float) -> str:
    named = {np.pi: "π", -np.pi: "-π", np.pi / 2: "π/2", -np.pi / 2: "-π/2", 1 / 3: "1/3", float(np.log(2)): "ln 2"}
    if x in named:
        return named[x]
    return str(x).replace("inf", "∞") if not float(x).is_integer() else str(int(x))


def row(entry: Special) -> str:
    domain = " × ".join(
        f"[{number(low)}, {number(high)}]".replace("[-∞", "(-∞").replace("∞]", "∞)") for low, high in entry.domain
    )
    edges = "; ".join(f"{number(x)}: {', '.join(map(number, values))}" for x, values in entry.limits.items())
    notes = "; ".join(
        part
        for part in (
            entry.reason and f"order {', '.join(map(str, sorted({*entry.scale, *entry.bounds})))}: {entry.reason}",
            entry.reference,
        )
        if part
    )
    return "| " + " | ".join([f"`{entry.name}`", entry.formula.replace("|", "\\|"), domain, edges, notes]) + " |"


def table() -> str:
    head = [
        "| function | value | domain | at edges: value, first, second derivative | exceptions, name or method after |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([START, *head, *map(row, TABLE), END])


def main() -> None:
    text = README.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    README.write_text(before + table() + after)


if __name__ == "__main__":
    main()
