"""Ours against what it replaces, forward and with the gradient: called in turns, so that a busy machine slows them alike."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

WARM_UPS = 2


@dataclass(frozen=True)
class Case:
    """Two functions of the same operands, which are made when they are needed.

    `bar`: the largest ratio allowed, None where there is none. `dtype` float64 needs x64.
    """

    name: str
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    operands: Callable[[], tuple[Any, ...]]
    bar: float | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios of neighbouring calls with its quartiles, and median seconds of each."""

    ratio: float
    quartiles: tuple[float, float]
    ours: float
    plain: float


def gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Value and gradient in the floating operands: of the value, or of its squares' sum."""

    def scalar(*operands: Any) -> Any:
        value = function(*operands)
        return value if value.ndim == 0 else jnp.sum(value * value)

    def both(*operands: Any) -> Any:
        floats = [all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(operand)) for operand in operands]
        return jax.value_and_grad(scalar, tuple(i for i, f in enumerate(floats) if f))(*operands)

    return both


def compare(ours: Callable[..., Any], plain: Callable[..., Any], operands: tuple[Any, ...], repeats: int) -> Ratio:
    programs = [jax.jit(f).lower(*operands).compile() for f in (plain, ours)]

    def seconds(program: Callable[..., Any]) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(program(*operands))
        return time.perf_counter() - begin

    for _ in range(WARM_UPS):
        for program in programs:
            seconds(program)
    pairs = [tuple(seconds(program) for program in programs) for _ in range(repeats)]
    low, middle, high = statistics.quantiles([b / a for a, b in pairs])
    base, mine = (statistics.median(column) for column in zip(*pairs))
    return Ratio(middle, (low, high), mine, base)


def machine() -> dict[str, Any]:
    """What figures depend on."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def main(description: str | None, cases: Iterable[Case], repeats: int) -> None:
    """The command line of a benchmark: measure the cases, print them, keep them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help=f"timed pairs of calls (default {repeats})")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    options = parser.parse_args()
    setting = {**machine(), "repeats": options.repeats, "load before": os.getloadavg()[0]}
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    heads = (f"{f'{part}: plain':>15}{'ratio':>7}{'quartiles':>12}" for part in ("forward", "gradient"))
    print(f"{'':34}{'   '.join(heads)}  bar")
    results: dict[str, Any] = {}
    for case in cases:
        if options.only not in case.name:
            continue
        with jax.enable_x64(case.dtype == "float64"):
            operands = case.operands()
            measured = {
                "forward": compare(case.ours, case.plain, operands, options.repeats),
                "gradient": compare(gradient(case.ours), gradient(case.plain), operands, options.repeats),
            }
        cells = [
            f"{1e3 * r.plain:12.3f} ms{r.ratio:7.2f}{f'{r.quartiles[0]:.2f}-{r.quartiles[1]:.2f}':>12}"
            for r in measured.values()
        ]
        met = {} if case.bar is None else {part: r.ratio <= case.bar for part, r in measured.items()}
        missed = " and ".join(part for part in met if not met[part])
        verdict = "" if case.bar is None else f"{case.bar:g} {f'MISSED {missed}' if missed else 'met'}"
        print(f"{case.name:34}{'   '.join(cells)}  {verdict}", flush=True)
        results[case.name] = {"bar": case.bar, "met": met, **{part: asdict(r) for part, r in measured.items()}}
    if options.json:
        text = {**setting, "load after": os.getloadavg()[0], "cases": results}
        options.json.write_text(json.dumps(text, indent=1) + "\n")
