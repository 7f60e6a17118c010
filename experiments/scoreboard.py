"""How many points each library gets wrong, per function and order of derivative.

    python experiments/scoreboard.py [--points 100000] [--functions tanh,erf] [--dtype float32] [--json FILE]

A point is wrong where the error exceeds 4 ulp (float32) or 8 ulp (float64) of ball arithmetic (python-flint), or where the
result is not finite and should be. Points: tests/special/_points.py. `plain` is JAX's function of the name, or the textbook
formula where JAX has none.
"""

import argparse
import json
import pathlib
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from robustad import stability
from tests.special import _measure, _points, _rivals
from tests.special._table import TABLE, Special


def _optax() -> dict:
    import optax

    return {"log_cosh": lambda x: optax.losses.log_cosh(x, 0 * x)}


def wrong_points(entry: Special, function, columns, truth, limit: float) -> dict:
    errors = _measure.errors(entry, _measure.evaluate(function, entry.arity, columns), truth, columns)
    worst = [e.max(0) for e in errors]
    finite = [w[np.isfinite(w)] for w in worst]
    return {
        "wrong": [int((w > limit).sum()) for w in worst],
        "largest_ulp": [round(float(f.max()), 2) if f.size else None for f in finite],
        "worst_at": [[float(x[w.argmax()]) for x in columns] for w in worst],
    }


def score(entry: Special, dtype, count: int, rivals: dict[str, dict]) -> dict:
    limit = {np.float32: 4.0, np.float64: 8.0}[dtype]
    with jax.enable_x64(dtype == np.float64):
        columns = _points.interior(entry, dtype, count)
        truth = _measure.reference(entry, columns)
        row: dict = {"function": entry.name, "dtype": np.dtype(dtype).name, "points": len(columns[0])}
        row["robustad"] = wrong_points(entry, getattr(stability, entry.name), columns, truth, limit)
        for rival, functions in rivals.items():
            if entry.name in functions:
                row[rival] = wrong_points(entry, functions[entry.name], columns, truth, limit)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--functions", default="")
    parser.add_argument("--dtype", choices=["float32", "float64", "both"], default="both")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    wanted = set(options.functions.split(",")) - {""}
    dtypes = [np.float32, np.float64] if options.dtype == "both" else [np.dtype(options.dtype).type]
    rivals = {"plain": _rivals.JAX, "tfp": _rivals.tfp(), "optax": _optax()}
    print(
        f"jax {jax.__version__}, {jax.default_backend()}; wrong points at orders 0, 1, 2 (our largest finite error, ulp)"
    )
    print(f"{'function':14s}{'dtype':9s}{'points':>8s}  {'robustad':30s}" + "".join(f"{r:22s}" for r in rivals))
    rows = []
    for entry in TABLE:
        if wanted and entry.name not in wanted:
            continue
        for dtype in dtypes:
            row = score(entry, dtype, options.points, rivals)
            rows.append(row)
            ours = row["robustad"]
            text = "{:22s}".format(" ".join(map(str, ours["wrong"]))) + f"({max(ours['largest_ulp']):.1f})"
            cells = "".join("{:22s}".format(" ".join(map(str, row[r]["wrong"])) if r in row else "-") for r in rivals)
            print(f"{entry.name:14s}{row['dtype']:9s}{row['points']:8d}  {text:30s}{cells}", flush=True)
    totals = {
        k: np.sum([r[k]["wrong"] for r in rows if k in r], axis=0).tolist()
        for k in ("robustad", *rivals)
        if any(k in r for r in rows)
    }
    print("total wrong:", totals)
    if options.json:
        options.json.write_text(json.dumps({"jax": jax.__version__, "rows": rows, "total": totals}, indent=1) + "\n")


if __name__ == "__main__":
    main()
