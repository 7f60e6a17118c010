"""The time and memory of gradients through long loops: ours, equinox's checkpointed loop, nested scans, nothing recomputed.

    python experiments/benchmarks/memory_loops.py --json memory_loops.json
    python experiments/benchmarks/memory_loops.py --only rnn --steps 10000 --repeats 5

Memory is what XLA allocates for temporaries (`temp_size_in_bytes`), in states; time is the median of calls in turns,
by the clock and, which a busy machine disturbs less, by the processor. "ours, as k levels" has as many states as fit
into the memory that scans nested k deep take. Bars: with its defaults ours takes at most the time of equinox's in at
most a quarter of its memory, and no nested scan of the same memory is faster than ours by more than 5 %.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from ratios import machine

from robustad.memory import checkpointed_scan

Scan = Callable[..., Any]


@dataclass(frozen=True)
class Workload:
    """A loop `scan(step(parameters), state, None, n)` whose final state is squared and summed; `state` in KiB."""

    name: str
    step: Callable[[Any], Callable[[Any], Any]]
    parameters: Callable[[], Any]
    initial: Callable[[], Any]
    state: int


def rnn(weights: Any) -> Callable[[Any], Any]:
    return lambda h: jnp.tanh(h @ weights)


def lorenz96(forcing: Array) -> Callable[[Any], Any]:
    """A step of the classical Runge-Kutta method."""

    def slope(y: Array) -> Array:
        return (jnp.roll(y, -1) - jnp.roll(y, 2)) * jnp.roll(y, 1) - y + forcing

    def step(y: Array) -> Array:
        h = 1e-3
        a = slope(y)
        b = slope(y + h / 2 * a)
        c = slope(y + h / 2 * b)
        return y + h / 6 * (a + 2 * b + 2 * c + slope(y + h * c))

    return step


def wave(speed: Array) -> Callable[[Any], Any]:
    """A step of the leapfrog method on a torus."""

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        u, v = state
        laplacian = jnp.roll(u, 1, 0) + jnp.roll(u, -1, 0) + jnp.roll(u, 1, 1) + jnp.roll(u, -1, 1) - 4 * u
        v = v + 0.1 * speed * laplacian
        return u + 0.1 * v, v

    return step


def normal(seed: int, *shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


WORKLOADS = [
    Workload("rnn", rnn, lambda: normal(0, 128, 128) / 12, lambda: normal(1, 8, 128), 4),
    Workload("ode", lorenz96, lambda: 8 + normal(0, 4096), lambda: normal(1, 4096), 16),
    Workload(
        "wave", wave, lambda: jnp.exp(normal(0, 256, 512) / 4), lambda: (normal(1, 256, 512), normal(2, 256, 512)), 1024
    ),
]
STEPS = (1009, 10_000, 100_000)


def plain(step: Callable, state: Any, n: int) -> Any:
    return lax.scan(lambda c, _: (step(c), None), state, None, n)[0]


def equinox_scan(step: Callable, state: Any, n: int, checkpoints: int | None = None) -> Any:
    return eqxi.scan(lambda c, _: (step(c), None), state, None, n, kind="checkpointed", checkpoints=checkpoints)[0]


def nested(step: Callable, state: Any, n: int, levels: int) -> Any:
    """Scans nested `levels` deep, of equal lengths, whose bodies are recomputed; what is left over likewise."""
    size = round(n ** (1 / levels))
    size -= size**levels > n
    lengths = [n // size ** (levels - 1)] + [size] * (levels - 1)
    left = n - math.prod(lengths)
    body = step
    for length in reversed(lengths):
        inner = functools.partial(plain, body, n=length)
        body = jax.checkpoint(inner)
    state = inner(state)
    return nested(step, state, left, min(levels, max(1, left.bit_length() // 2))) if left else state


def ours(step: Callable, state: Any, n: int, checkpoints: int | None = None) -> Any:
    return checkpointed_scan(lambda c, _: (step(c), None), state, None, n, checkpoints=checkpoints)[0]


@dataclass(frozen=True)
class Program:
    compiled: Any
    states: float

    def seconds(self, operands: Any) -> tuple[float, float]:
        """By the clock, and by the processor."""
        begin = time.perf_counter(), time.process_time()
        jax.block_until_ready(self.compiled(*operands))
        return time.perf_counter() - begin[0], time.process_time() - begin[1]


def program(workload: Workload, scan: Scan, n: int, operands: Any) -> Program:
    def loss(parameters: Any, initial: Any) -> Array:
        last = scan(workload.step(parameters), initial, n)
        return sum(jnp.mean(x * x) for x in jax.tree.leaves(last))  # pyright: ignore[reportReturnType]

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*operands).compile()
    bytes_ = compiled.memory_analysis().temp_size_in_bytes  # pyright: ignore[reportOptionalMemberAccess]
    return Program(compiled, bytes_ / 1024 / workload.state)


def within(workload: Workload, states: float, n: int, operands: Any) -> Program:
    """Ours in at most so many states of temporaries."""
    checkpoints = int(states)
    while True:
        found = program(workload, functools.partial(ours, checkpoints=checkpoints), n, operands)
        over = found.states - states
        if over <= 0 or checkpoints == 1:
            return found
        checkpoints = max(1, checkpoints - math.ceil(over))


def measure(workload: Workload, n: int, repeats: int, levels: list[int], most: float) -> dict[str, Any]:
    operands = workload.parameters(), workload.initial()
    programs: dict[str, Program] = {}
    if 4 * n * workload.state * 1024 < most:
        programs["plain"] = program(workload, plain, n, operands)
    for name, scan in {"equinox": equinox_scan, "ours": ours}.items():
        programs[name] = program(workload, scan, n, operands)
    for k in levels:
        programs[f"{k} levels"] = program(workload, functools.partial(nested, levels=k), n, operands)
        programs[f"ours, as {k} levels"] = within(workload, programs[f"{k} levels"].states, n, operands)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for repeat in range(repeats + 1):
        for name, one in programs.items():
            seconds = one.seconds(operands)
            if repeat:
                times[name].append(seconds)
    rows: dict[str, Any] = {}
    for name, one in programs.items():
        clock, processor = (statistics.median(column) for column in zip(*times[name]))
        rows[name] = {"states": one.states, "seconds": clock, "processor": processor}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS)
    parser.add_argument("--levels", type=int, nargs="*", default=[2, 3, 4, 5])
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each program (default 7)")
    parser.add_argument("--most", type=float, default=4e9, help="bytes that a program may take (default 4e9)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    options = parser.parse_args()
    setting = {**machine(), "repeats": options.repeats, "load before": os.getloadavg()[0]}
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    results: dict[str, Any] = {}
    for workload in WORKLOADS:
        if options.only not in workload.name:
            continue
        for n in options.steps:
            rows = measure(workload, n, options.repeats, options.levels, options.most)
            base = rows["equinox"]
            print(f"{workload.name}, {n} steps, states of {workload.state} KiB")
            for name, row in rows.items():
                print(
                    f"  {name:20}{row['states']:10.1f} states{1e3 * row['seconds']:10.1f} ms, processor"
                    f"{1e3 * row['processor']:10.1f}; of equinox's: memory {row['states'] / base['states']:5.2f}, time"
                    f"{row['seconds'] / base['seconds']:6.2f}, processor {row['processor'] / base['processor']:5.2f}",
                    flush=True,
                )
            rows["bars"] = {
                "memory of equinox": rows["ours"]["states"] / base["states"],
                **{f"{by} of equinox": rows["ours"][by] / base[by] for by in ("seconds", "processor")},
                **{
                    f"{by} of {k} levels": rows[f"ours, as {k} levels"][by] / rows[f"{k} levels"][by]
                    for k in options.levels
                    for by in ("seconds", "processor")
                },
            }
            results[f"{workload.name} {n}"] = rows
    if options.json:
        text = {**setting, "load after": os.getloadavg()[0], "cases": results}
        options.json.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
