"""What compensated sums cost beside `jnp.sum` and `jnp.dot`, forward and gradient.

Every figure is a ratio to jnp's function on the same operands, jitted, called in turns in the same run:

    python experiments/benchmarks/sums.py --repeats 100 --json sums.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from robustad import stability

WARM_UPS = 3


@dataclass(frozen=True)
class Case:
    """Ours against jnp's, on arrays of these shapes; `bar`: the largest ratio allowed, None where there is none."""

    name: str
    ours: Callable[..., Array]
    plain: Callable[..., Array]
    shapes: Sequence[tuple[int, ...]]
    dtype: str
    bar: float | None = None


@dataclass(frozen=True)
class Figures:
    """Medians in seconds, and the medians of the ratios of neighbouring calls; `compile` likewise, once."""

    plain: float
    ours: float
    ratio: float
    lower_quartile: float
    upper_quartile: float
    compile_plain: float
    compile_ours: float
    bar: float | None
    met: bool | None


def gradient(f: Callable[..., Array]) -> Callable[..., Any]:
    return lambda *operands: jax.value_and_grad(f, tuple(range(len(operands))))(*operands)


def over_rows(f: Callable[..., Array]) -> Callable[..., Array]:
    return lambda x: f(x, 1)


def over_columns(f: Callable[..., Array]) -> Callable[..., Array]:
    return lambda x: f(x, 0)


def cases(n: int) -> list[Case]:
    s, d, m = stability.compensated_sum, stability.compensated_dot, stability.compensated_matmul
    pairwise, mean, cumsum = stability.pairwise_sum, stability.compensated_mean, stability.compensated_cumsum
    flat, odd, wide, tall, square = (n,), (n - 3,), (1000, n // 1000), (n // 1000, 1000), (512, 512)
    return [
        Case("sum f32", s, jnp.sum, [flat], "float32", 1.8),
        Case("sum f32, gradient", gradient(s), gradient(jnp.sum), [flat], "float32", 1.8),
        Case("sum f32, odd length", s, jnp.sum, [odd], "float32"),
        Case("sum f64", s, jnp.sum, [flat], "float64", 4.0),
        Case("sum f64, gradient", gradient(s), gradient(jnp.sum), [flat], "float64", 4.0),
        Case("sum f64, odd length", s, jnp.sum, [odd], "float64"),
        Case("dot f32", d, jnp.dot, [flat, flat], "float32", 2.5),
        Case("dot f32, gradient", gradient(d), gradient(jnp.dot), [flat, flat], "float32", 2.5),
        Case("dot f64", d, jnp.dot, [flat, flat], "float64"),
        Case("mean f32", mean, jnp.mean, [flat], "float32"),
        Case("pairwise f32", pairwise, jnp.sum, [flat], "float32"),
        Case("rows of (1000, n/1000) f32", over_rows(s), over_rows(jnp.sum), [wide], "float32"),
        Case("rows of (n/1000, 1000) f32", over_rows(s), over_rows(jnp.sum), [tall], "float32"),
        Case("columns of (n/1000, 1000) f32", over_columns(s), over_columns(jnp.sum), [tall], "float32"),
        Case("rows of (n/1000, 1000) f64", over_rows(s), over_rows(jnp.sum), [tall], "float64"),
        Case("columns of (n/1000, 1000) f64", over_columns(s), over_columns(jnp.sum), [tall], "float64"),
        Case("sum of 1000 f32", s, jnp.sum, [(1000,)], "float32"),
        Case("sum of 1000 f64", s, jnp.sum, [(1000,)], "float64"),
        Case("matmul of 512 f32", m, jnp.matmul, [square, square], "float32"),
        Case("matmul of 512 f64", m, jnp.matmul, [square, square], "float64"),
        Case("cumsum of n/10 f32", cumsum, jnp.cumsum, [(n // 10,)], "float32"),
        Case("cumsum of n/10 f64", cumsum, jnp.cumsum, [(n // 10,)], "float64"),
    ]


def compiled(function: Callable[..., Any], operands: Sequence[Array]) -> tuple[Callable[..., Any], float]:
    begin = time.perf_counter()
    program = jax.jit(function).lower(*operands).compile()
    return program, time.perf_counter() - begin


def seconds(program: Callable[..., Any], operands: Sequence[Array]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(program(*operands))
    return time.perf_counter() - begin


def measure(case: Case, repeats: int) -> Figures:
    """Compile both and call them in turns, so that a busy machine slows them alike."""
    with jax.enable_x64(case.dtype == "float64"):
        keys = jax.random.split(jax.random.key(0), len(case.shapes))
        operands = [jax.random.normal(key, shape, case.dtype) for key, shape in zip(keys, case.shapes)]
        plain, compile_plain = compiled(case.plain, operands)
        ours, compile_ours = compiled(case.ours, operands)
        for _ in range(WARM_UPS):
            for program in (plain, ours):
                seconds(program, operands)
        pairs = [(seconds(plain, operands), seconds(ours, operands)) for _ in range(repeats)]
    base, mine = (statistics.median(column) for column in zip(*pairs))
    low, _, high = statistics.quantiles([b / a for a, b in pairs])
    met = None if case.bar is None else mine / base <= case.bar
    return Figures(base, mine, mine / base, low, high, compile_plain, compile_ours, case.bar, met)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="timed pairs of calls of each case (default 50)")
    parser.add_argument(
        "--size", type=int, default=10_000_000, metavar="N", help="length of the long sums (default 1e7)"
    )
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    options = parser.parse_args()

    jax.config.update("jax_enable_compilation_cache", False)
    device = jax.devices()[0]
    setting = {
        "device": device.device_kind,
        "platform": device.platform,
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "repeats": options.repeats,
        "size": options.size,
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(f"{'':32}{'jnp ms':>9}{'ours ms':>9}{'ratio':>7}{'quartiles':>13}{'bar':>6}{'':>8}{'compile s':>14}")
    results = {}
    for case in cases(options.size):
        if options.only not in case.name:
            continue
        row = measure(case, options.repeats)
        results[case.name] = asdict(row)
        bar = f"{row.bar:.1f}" if row.bar else ""
        met = "" if row.met is None else "met" if row.met else "MISSED"
        quartiles = f"{row.lower_quartile:.2f}-{row.upper_quartile:.2f}"
        print(
            f"{case.name:32}{1e3 * row.plain:9.3f}{1e3 * row.ours:9.3f}{row.ratio:7.2f}{quartiles:>13}{bar:>6}{met:>8}"
            f"{row.compile_plain:7.2f}{row.compile_ours:7.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps({**setting, "cases": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
