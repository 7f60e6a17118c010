"""What logsumexp, softmax and the cross-entropies cost beside JAX's and optax's, forward and gradient, in one run.

Every figure is the median of the ratios of interleaved calls. `confident` logits have one entry 25 above the others in each
row (for the cross-entropy: the label), so that every row needs its careful sum:

    python experiments/benchmarks/log_space.py --repeats 21 --json log_space.json
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

SHAPES = ((1024, 1024), (128, 32000), (1, 10**7))
BAR = 1.1


def rows(function: Callable[[Array], Array]) -> Callable[[Array, Array, Array], Array]:
    """A scalar of the logits whose gradient asks for every entry, for functions that reduce a row and those that do not."""

    def weighted(a: Array, weights: Array, labels: Array) -> Array:
        value = function(a)
        return jnp.sum(value * (weights if value.ndim == a.ndim else weights[:, 0]))

    return weighted


def cases() -> dict[str, tuple[Callable, Callable, Callable, Callable]]:
    """Name -> forward of ours and theirs, and the scalars to differentiate."""

    def last(function: Callable) -> Callable[[Array], Array]:
        return lambda a: function(a, axis=-1)

    pairs = {
        "logsumexp": (last(st.logsumexp), last(jax.scipy.special.logsumexp)),
        "softmax": (last(st.softmax), last(jax.nn.softmax)),
        "log_softmax": (last(st.log_softmax), last(jax.nn.log_softmax)),
    }
    made = {
        name: (lambda a, w, y, f=f: f(a), lambda a, w, y, g=g: g(a), rows(f), rows(g)) for name, (f, g) in pairs.items()
    }

    def ours(a: Array, w: Array, y: Array) -> Array:
        return st.softmax_cross_entropy(a, y).mean()

    def theirs(a: Array, w: Array, y: Array) -> Array:
        return optax.losses.softmax_cross_entropy_with_integer_labels(a, y).mean()

    return {**made, "cross_entropy": (ours, theirs, ours, theirs)}


def logits(shape: tuple[int, int], confident: bool) -> tuple[Array, Array, Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    a = jax.random.normal(keys[0], shape, jnp.float32)
    labels = jax.random.randint(keys[1], shape[:1], 0, shape[1], jnp.int32)
    if confident:
        a = a.at[jnp.arange(shape[0]), labels].add(25.0)
    return a, jax.random.normal(keys[2], shape, jnp.float32), labels


def ratio(ours: Callable, theirs: Callable, args: tuple[Array, ...], repeats: int) -> dict[str, float]:
    times: tuple[list[float], list[float]] = [], []
    programs = tuple(jax.jit(f) for f in (ours, theirs))
    for program in programs:
        for _ in range(2):
            jax.block_until_ready(program(*args))
    for _ in range(repeats):
        for program, taken in zip(programs, times):
            start = time.perf_counter()
            jax.block_until_ready(program(*args))
            taken.append(time.perf_counter() - start)
    return {
        "ratio": statistics.median(a / b for a, b in zip(*times)),
        "theirs_ms": 1e3 * statistics.median(times[1]),
    }


def measure(repeats: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for shape in SHAPES:
        for confident in (False, True):
            args = logits(shape, confident)
            for name, (ours, theirs, ours_scalar, theirs_scalar) in cases().items():
                key = f"{name} {shape[0]}x{shape[1]}{' confident' if confident else ''}"
                forward = ratio(ours, theirs, args, repeats)
                gradient = ratio(jax.grad(ours_scalar), jax.grad(theirs_scalar), args, repeats)
                results[key] = {"forward": forward, "gradient": gradient}
                print(
                    f"{key:36s} forward {forward['ratio']:5.2f} ({forward['theirs_ms']:6.2f} ms)   "
                    f"gradient {gradient['ratio']:5.2f} ({gradient['theirs_ms']:6.2f} ms)",
                    flush=True,
                )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()
    results = measure(options.repeats)
    if options.json:
        environment = {
            "jax": jax.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "load_before": load,
            "load_after": os.getloadavg(),
            "repeats": options.repeats,
            "bar": BAR,
        }
        options.json.write_text(json.dumps({"environment": environment, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
