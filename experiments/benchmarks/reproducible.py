"""What order-free reductions cost beside JAX's own, forward and with the gradient.

Rivals run in turns in one process; a figure is the ratio of their medians:

    python experiments/benchmarks/reproducible.py --repeats 25 --json reproducible.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import robustad.stability as rs

SEGMENTS, WARM_UPS = 1000, 2
BARS = {"sum": 3.0, "segment_sum": 4.0, "dot (2 slices)": 4.0}


def cases(n: int) -> dict[str, tuple[tuple[Array, ...], Callable, dict[str, Callable]]]:
    """Name to operands, JAX's own function and ours, by variant."""
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.standard_normal(n).astype(np.float32)) for _ in range(2))
    ids = jnp.asarray(rng.integers(0, SEGMENTS, n).astype(np.int32))
    wide = x.reshape(100, -1)
    side = 512
    a, b = x[: side * side].reshape(side, side), y[: side * side].reshape(side, side)

    def by_segment(function: Callable) -> Callable:
        return lambda x, ids: function(x, ids, SEGMENTS)

    def sliced(slices: int | None) -> Callable:
        return lambda a, b: rs.reproducible_dot(a, b, slices=slices)

    def along(function: Callable, axis: int) -> Callable:
        return lambda x: function(x, axis)

    return {
        "sum": ((x,), jnp.sum, {"sum": rs.reproducible_sum, "mean": rs.reproducible_mean}),
        "sum over rows": ((wide,), along(jnp.sum, 0), {"sum over rows": along(rs.reproducible_sum, 0)}),
        "sum over columns": ((wide,), along(jnp.sum, 1), {"sum over columns": along(rs.reproducible_sum, 1)}),
        "norm": ((x,), jnp.linalg.norm, {"norm": rs.reproducible_global_norm}),
        "segment_sum": ((x, ids), by_segment(jax.ops.segment_sum), {"segment_sum": by_segment(rs.segment_sum)}),
        "dot": ((x, y), jnp.dot, {"dot": sliced(None), "dot (2 slices)": sliced(2)}),
        "matmul 512": ((a, b), jnp.dot, {f"matmul 512 ({slices} slices)": sliced(slices) for slices in (2, 3)}),
    }


def gradient(function: Callable, operands: tuple[Array, ...]) -> Callable:
    floats = tuple(i for i, operand in enumerate(operands) if jnp.issubdtype(operand.dtype, jnp.floating))
    return jax.grad(lambda *operands: jnp.sum(function(*operands) ** 2), floats)


def measure(functions: dict[str, Callable], operands: tuple[Array, ...], repeats: int) -> dict[str, float]:
    """Median seconds of each, called in turns."""
    compiled = {name: jax.jit(function) for name, function in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(WARM_UPS + repeats):
        for name, function in compiled.items():
            begin = time.perf_counter()
            jax.block_until_ready(function(*operands))
            if turn >= WARM_UPS:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each contender (default 15)")
    parser.add_argument("--terms", type=int, default=10_000_000, help="how many float32 terms (default 1e7)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    options = parser.parse_args()

    device = jax.devices()[0]
    setting = {
        "device": device.device_kind,
        "platform": device.platform,
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "repeats": options.repeats,
        "terms": options.terms,
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(f"{'':28}{'JAX':>10}{'ours':>10}{'ratio':>8}{'bar':>6}   gradient:{'JAX':>9}{'ours':>10}{'ratio':>8}")
    results: dict[str, dict[str, Any]] = {}
    for plain, (operands, own, variants) in cases(options.terms).items():
        forward = measure({"jax": own, **variants}, operands, options.repeats)
        both = {name: gradient(function, operands) for name, function in {"jax": own, **variants}.items()}
        backward = measure(both, operands, options.repeats)
        for name in variants:
            ratios = {"forward": forward[name] / forward["jax"], "gradient": backward[name] / backward["jax"]}
            bar = BARS.get(name)
            results[name] = {
                "rival": plain,
                "seconds": {"forward": forward[name], "gradient": backward[name]},
                "rival seconds": {"forward": forward["jax"], "gradient": backward["jax"]},
                "ratios": ratios,
                **({} if bar is None else {"meets": {part: ratio <= bar for part, ratio in ratios.items()}}),
            }
            print(f"{name:28}{1e3 * forward['jax']:7.2f} ms{1e3 * forward[name]:7.2f} ms", end="")
            print(f"{ratios['forward']:7.2f}x{'' if bar is None else f'{bar:.0f}x':>6}{'':10}", end="")
            print(f"{1e3 * backward['jax']:9.2f} ms{1e3 * backward[name]:7.2f} ms{ratios['gradient']:7.2f}x")
    if options.json:
        options.json.write_text(json.dumps({**setting, "bars": BARS, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
