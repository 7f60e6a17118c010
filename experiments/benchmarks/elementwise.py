"""Time of the special functions against what they replace: value and gradient, as ratios of medians in one run.

python experiments/benchmarks/elementwise.py [--size 1000000]
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from robustad import stability
from tests.special import _rivals
from tests.special._table import TABLE


def ratio(ours, plain, args, repeats: int) -> float:
    """Median time of `ours` over that of `plain`, interleaved."""
    times: list[list[float]] = [[], []]
    functions = [jax.jit(ours), jax.jit(plain)]
    for f in functions:
        jax.block_until_ready(f(*args))
    for _ in range(repeats):
        for f, record in zip(functions, times):
            start = time.perf_counter()
            jax.block_until_ready(f(*args))
            record.append(time.perf_counter() - start)
    return statistics.median(times[0]) / statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = []
    print(f"jax {jax.__version__}, {jax.default_backend()}, {options.size} float32: time over plain JAX's")
    print(f"{'function':14s}{'value':>8s}{'gradient':>10s}")
    for entry in TABLE:
        args = []
        for low, high in entry.domain:
            args.append(jnp.asarray(rng.uniform(max(low, -8), min(high, 8), options.size), jnp.float32))
        if entry.name == "logsubexp":
            args[1] = args[0] - jnp.abs(args[1])
        ours, plain = getattr(stability, entry.name), _rivals.JAX[entry.name]
        slope = [jax.grad(lambda *xs, f=f: f(*xs).sum()) for f in (ours, plain)]
        row = {"function": entry.name, "value": ratio(ours, plain, args, options.repeats)}
        row["gradient"] = ratio(slope[0], slope[1], args, options.repeats)
        rows.append(row)
        print(f"{entry.name:14s}{row['value']:8.2f}{row['gradient']:10.2f}", flush=True)
    for key in ("value", "gradient"):
        print(f"median {key}: {statistics.median(r[key] for r in rows):.2f}")
    if options.json:
        options.json.write_text(
            json.dumps({"jax": jax.__version__, "size": options.size, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
