"""What the range-safe norms and moments cost beside the plain ones, forward and gradient, in one run.

Every figure is the median ratio of interleaved calls:

    python experiments/benchmarks/norms.py --repeats 21 --json norms.json
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
import optax
from jax import Array

from robustad import stability as st

SIZE, ROWS = 10**7, 10**4
BARS = {"unbatched": 1.1, "vmap": 1.8}


def gradients() -> dict[str, Any]:
    """A pytree like the gradients of a transformer of 12 blocks of width 512, 38 million parameters."""
    keys = iter(jax.random.split(jax.random.key(0), 200))
    width = 512

    def random(*shape: int) -> Array:
        return jax.random.normal(next(keys), shape, jnp.float32) * 1e-3

    def block() -> dict[str, Array]:
        weights = {"qkv": random(width, 3 * width), "out": random(width, width)}
        weights |= {"up": random(width, 4 * width), "down": random(4 * width, width)}
        return weights | {"gain": random(width), "bias": random(width)}

    return {"blocks": [block() for _ in range(12)], "last": random(width)}


def rows(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: jax.vmap(function)(x).sum()


def cases() -> dict[str, tuple[str, Callable, Callable, Any]]:
    """Name -> (kind of bar, plain, ours, argument)."""
    flat = jax.random.normal(jax.random.key(1), (SIZE,), jnp.float32)
    matrix = flat.reshape(ROWS, -1)
    return {
        "norm": ("unbatched", jnp.linalg.norm, st.norm, flat),
        "norm, axis": (
            "unbatched",
            lambda x: jnp.linalg.norm(x, axis=-1).sum(),
            lambda x: st.norm(x, axis=-1).sum(),
            matrix,
        ),
        "norm, vmap": ("vmap", rows(jnp.linalg.norm), rows(st.norm), matrix),
        "global_norm": ("unbatched", optax.global_norm, st.global_norm, gradients()),
        "mean": ("unbatched", jnp.mean, st.mean, flat),
        "var": ("unbatched", jnp.var, st.var, flat),
        "std": ("unbatched", jnp.std, st.std, flat),
        "std, vmap": ("vmap", rows(jnp.std), rows(st.std), matrix),
    }


def seconds(function: Callable, argument: Any) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(function(argument))
    return time.perf_counter() - begin


def measure(plain: Callable, ours: Callable, argument: Any, repeats: int) -> dict[str, float]:
    """Median milliseconds of each, and the median of the ratios of neighbouring calls."""
    functions = jax.jit(plain), jax.jit(ours)
    for function in functions * 2:
        seconds(function, argument)
    pairs = [tuple(seconds(function, argument) for function in functions) for _ in range(repeats)]
    first, second = zip(*pairs)
    return {
        "plain_ms": 1e3 * statistics.median(first),
        "ours_ms": 1e3 * statistics.median(second),
        "ratio": statistics.median(b / a for a, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=21, help="timed calls of each (default 21)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    options = parser.parse_args()
    setting = {"cpus": os.cpu_count(), "jax": jax.__version__, "python": platform.python_version()}
    setting |= {"platform": jax.devices()[0].platform, "repeats": options.repeats, "size": SIZE}
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(f"{'':14}{'forward':>26}{'gradient':>26}")
    results: dict[str, Any] = {}
    for name, (kind, plain, ours, argument) in cases().items():
        figures = {
            "forward": measure(plain, ours, argument, options.repeats),
            "gradient": measure(jax.grad(plain), jax.grad(ours), argument, options.repeats),
        }
        met = all(f["ratio"] <= BARS[kind] for f in figures.values())
        cells = "".join(f"{f['plain_ms']:9.1f}{f['ours_ms']:8.1f} ms{f['ratio']:5.2f}x" for f in figures.values())
        print(f"{name:14}{cells}  bar {BARS[kind]}x {'met' if met else 'MISSED'}")
        results[name] = {"bar": BARS[kind], "met": met, **figures}
    if options.json:
        options.json.write_text(json.dumps({**setting, "bars": BARS, "cases": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
