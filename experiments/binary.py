"""The largest errors of the functions of two and four arguments, in ulps, at many random points and the edges.

python experiments/binary.py --points 100000 --json binary.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from robustad import stability
from tests._two_arguments import TABLE, errors, points

BOUNDS = {"float32": 4, "float64": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--names", nargs="*", default=list(TABLE), choices=list(TABLE))
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    print(
        f"{'':18}{'':8}{'value':>8}{'first':>8}{'second':>8}{'beyond':>8}   largest error in ulps; points beyond the bound"
    )
    for name in options.names:
        for dtype in (np.float32, np.float64):
            kind = np.dtype(dtype).name
            with jax.enable_x64(dtype == np.float64):
                columns = points(TABLE[name], dtype, options.points, seed=1)
                found = errors(name, getattr(stability, name), columns)
            worst = [float(e.max()) for e in found]
            beyond = int(sum((e > BOUNDS[kind]).any(0) for e in found).astype(bool).sum())  # pyright: ignore
            print(f"{name:18}{kind:8}" + "".join(f"{w:8.2f}" for w in worst) + f"{beyond:8}")
            results[f"{name} {kind}"] = {"points": len(columns[0]), "worst": worst, "beyond": beyond}
    if options.json:
        options.json.write_text(
            json.dumps({"jax": jax.__version__, "bounds": BOUNDS, "functions": results}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
