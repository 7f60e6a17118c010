"""Gradients within budgets: measured bytes and operations of `fit`, beside `jax.checkpoint` of every block with each policy.

    python experiments/benchmarks/memory.py --json memory.json --svg memory.svg

A budget is a fraction of the unplanned temporaries, as XLA has laid them out. The rivals are compiled twice, as they are and
with the barriers that XLA for CPU strips (`xla_disable_hlo_passes=cse_barrier_expander`), and the smaller figure counts. A
budget counts as violated if the measured bytes are above it. `--rss` runs the gradients of three workloads, each in a fresh
process, and compares what the process grows by with the bytes that were laid out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import jax
from memory_workloads import WORKLOADS, Workload, transformer, transformer_shapes
from ratios import machine

from robustad import _jaxpr
from robustad.memory import InfeasibleBudget, fit
from robustad.memory._bytes import readable
from robustad.memory._fit import Call
from robustad.memory._flops import program_flops
from robustad.memory._plan import Planner
from robustad.memory._segments import Plan

FRACTIONS = tuple(k / 20 for k in range(19, 1, -1))
POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_with_no_batch_dims": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
KEPT = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def measured(f: Any, arguments: Any, options: Any = None) -> int:
    compiled = jax.jit(jax.value_and_grad(f), compiler_options=options).lower(*arguments).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def operations(f: Any, arguments: Any) -> int:
    return program_flops(_jaxpr.trace(jax.value_and_grad(f), *arguments)[0])


def rivals(workload: Workload, arguments: Any) -> dict[str, dict[str, float]]:
    """Each policy on every block: bytes and operations against the gradient as it is."""
    plain = workload.make(lambda f: f)
    bytes_, flops = measured(plain, arguments), operations(plain, arguments)
    rows = {}
    for name, policy in POLICIES.items():
        f = workload.make(lambda f, policy=policy: jax.checkpoint(f, policy=policy))
        least = min(measured(f, arguments), measured(f, arguments, KEPT))
        rows[name] = {"bytes": least / bytes_, "operations": operations(f, arguments) / flops}
    return rows


def fitted(workload: Workload, arguments: Any, fraction: float) -> dict[str, Any]:
    begin = time.perf_counter()
    try:
        certificate = fit(workload.make(lambda f: f), fraction).certificate(*arguments)
    except InfeasibleBudget as refusal:
        return {"refused": True, "least": refusal.least}
    return {
        "bytes": certificate.measured / certificate.unplanned,
        "operations": certificate.flop_ratio,
        "predicted": certificate.predicted / certificate.measured,
        "plans": certificate.compiled,
        "violated": not certificate.holds,
        "seconds": time.perf_counter() - begin,
    }


def beaten(budget_rows: dict[str, dict[str, Any]], rival: dict[str, float]) -> bool:
    """Whether a plan, or the function as it is, needs no more bytes, and no more operations, than a rival."""
    as_it_is = {"bytes": 1.0, "operations": 1.0}
    return any(
        row["bytes"] <= rival["bytes"] and row["operations"] <= rival["operations"] + 1e-3
        for row in (as_it_is, *budget_rows.values())
        if "bytes" in row
    )


def rises(case: dict[str, Any]) -> int:
    """How often a smaller budget took more memory than the one before it."""
    taken = [row["bytes"] for row in case["budgets"].values() if "bytes" in row]
    return sum(b > a for a, b in itertools.pairwise(taken))


def planning() -> dict[str, float]:
    """Seconds for the plan of half the memory, of transformers of many layers; without tracing and compiling."""
    taken = {}
    for layers in (15, 150):
        call = Call(transformer(lambda f: f), 0, False, transformer_shapes(layers), {})
        begin = time.perf_counter()
        planner = Planner(call.flat, call.moved)
        budget = 0.5 * cast(Plan, planner.cut(math.inf)).peak
        planner.plan(budget)
        name = f"{len(call.flat.steps)} equations"
        taken[name] = time.perf_counter() - begin
        print(f"planning {name}: {taken[name]:.1f} s", flush=True)
    return taken


def run_once(name: str, fraction: float, size: int) -> None:
    """The gradient in this process: what it grows by, and what was laid out."""
    workload = next(w for w in WORKLOADS if w.name == name)
    arguments = workload.arguments(size)
    f = workload.make(lambda f: f)
    f = f if fraction == 1 else fit(f, fraction)
    compiled = jax.jit(jax.value_and_grad(f)).lower(*arguments).compile()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jax.block_until_ready(compiled(*arguments))
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    analysis = compiled.memory_analysis()
    assert analysis is not None
    laid_out = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    print(json.dumps({"grown": grown, "laid out": laid_out}))


def fresh_processes(size: int) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name in ("transformer", "scanned", "dropout"):
        for fraction in (1.0, 0.4):
            command = [sys.executable, __file__, "--once", name, str(fraction), "--size", str(size)]
            run = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
            rows[f"{name} {fraction:g}"] = row = json.loads(run.stdout.splitlines()[-1])
            told = f"grown {readable(row['grown'])}, laid out {readable(row['laid out'])}"
            print(f"{name:12} {fraction:4g} of the peak: {told}", flush=True)
        whole, small = rows[f"{name} 1"], rows[f"{name} 0.4"]
        saved = (whole["grown"] - small["grown"]) / (whole["laid out"] - small["laid out"])
        small["saved"] = saved
        print(f"{name:12} saved in the process, of what was saved in the layout: {saved:.2f}", flush=True)
    return rows


def picture(cases: dict[str, Any]) -> str:
    """Small multiples, a workload each: bytes to the right, operations added upwards; crosses are the rivals."""
    width, height, low = 240, 190, 34
    parts = []
    for k, (name, case) in enumerate(cases.items()):
        left, top = 20 + width * (k % 4), 10 + height * (k // 4)

        def at(row: dict[str, float], left: int = left, top: int = top) -> tuple[float, float]:
            added = min(0.8, max(0.0, row["operations"] - 1))
            return left + 30 + 180 * min(1.1, row["bytes"]), top + height - low - (height - 70) * added / 0.8

        parts.append(f'<text x="{left + 30}" y="{top + 18}" font-weight="bold">{name}</text>')
        bottom = top + height - low
        parts.append(f'<path d="M{left + 30},{top + 30}V{bottom}H{left + 225}" fill="none" stroke="#667080"/>')
        parts.append(f'<text x="{left + 26}" y="{top + 40}" text-anchor="end">+80%</text>')
        parts.append(f'<text x="{left + 210}" y="{bottom + 14}" text-anchor="middle">peak</text>')
        rows = sorted((r for r in case["budgets"].values() if "bytes" in r), key=lambda r: r["bytes"])
        line = " ".join("{:.1f},{:.1f}".format(*at(r)) for r in rows)
        parts.append(f'<polyline points="{line}" fill="none" stroke="#3567b5" stroke-width="2"/>')
        parts += ['<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="#3567b5"/>'.format(*at(r)) for r in rows]
        parts += [
            '<text x="{:.1f}" y="{:.1f}" fill="#c62828" text-anchor="middle">×<title>{}</title></text>'.format(
                *at(r), n
            )
            for n, r in case["rivals"].items()
        ]
    tall = 20 + height * ((len(cases) + 3) // 4)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="1000" height="{tall}" viewBox="0 0 1000 {tall}" '
        f'font-family="system-ui,sans-serif" font-size="11"><rect width="1000" height="{tall}" fill="#fff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--size", type=int, default=2, help="of the workloads (default 2; the tests have 1)")
    parser.add_argument("--fractions", type=float, nargs="*", default=FRACTIONS, help="budgets, of the unplanned peak")
    parser.add_argument("--rss", action="store_true", help="compare with the growth of fresh processes")
    parser.add_argument("--planning", action="store_true", help="time the plans of 1,000 and of 10,000 equations")
    parser.add_argument("--once", nargs=2, metavar=("NAME", "FRACTION"), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    parser.add_argument("--svg", type=Path, metavar="PATH", help="draw the curves there")
    options = parser.parse_args()
    if options.once:
        run_once(options.once[0], float(options.once[1]), options.size)
        return
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    cases: dict[str, Any] = {}
    for workload in WORKLOADS:
        if options.only not in workload.name:
            continue
        arguments = workload.arguments(options.size)
        rows: dict[str, Any] = {}
        for fraction in options.fractions:
            rows[f"{fraction:g}"] = row = fitted(workload, arguments, fraction)
            if "refused" in row:
                print(f"{workload.name:12} {fraction:4g}: refused, least {readable(row['least'])}", flush=True)
                break
            print(
                f"{workload.name:12} {fraction:4g}: measured {row['bytes']:.3f}, operations {row['operations'] - 1:+.1%}, "
                f"predicted/measured {row['predicted']:.2f}, {row['plans']} plans{', VIOLATED' if row['violated'] else ''}",
                flush=True,
            )
        others = rivals(workload, arguments)
        for name, row in others.items():
            row["beaten"] = beaten(rows, row)
            text = f"{row['bytes']:.3f} {row['operations'] - 1:+.1%}{'' if row['beaten'] else '  NOT BEATEN'}"
            print(f"{workload.name:12} rival {name}: {text}", flush=True)
        cases[workload.name] = {"budgets": rows, "rivals": others}
    pairs = [row for case in cases.values() for row in case["budgets"].values() if "bytes" in row]
    rising = sum(map(rises, cases.values()))
    print(
        f"{len(pairs)} budgets, {sum(row['violated'] for row in pairs)} violated; {rising} times a smaller budget took more "
        f"memory; predictions within 5 % of what was measured: {sum(abs(p['predicted'] - 1) <= 0.05 for p in pairs)}"
    )
    planned = planning() if options.planning else {}
    rss = fresh_processes(options.size) if options.rss else {}
    if options.json:
        told = {**machine(), "cases": cases, "rss": rss, "planning": planned}
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    if options.svg:
        options.svg.write_text(picture(cases))


if __name__ == "__main__":
    main()
