"""What an audit finds in the zoo of models, beside what jax_debug_nans and checkify's float checks raise.

    python experiments/benchmarks/zoo.py --json zoo.json

A fault is found where something is said of it; it is named where the one finding has its line and its kind. On a healthy
model everything that is said is a false alarm.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import checkify

import robustad as rad
from robustad.diagnosis._arguments import take_apart

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.zoo import FAULTS, HEALTHY, Fault, Healthy, fault_lines

Loss = Callable[..., Any]


def gradient(loss: Loss, args: tuple[Any, ...]) -> tuple[Callable[..., Any], Any]:
    """value_and_grad of a zoo model, of whichever library, as a jittable function of arrays."""
    parts = [take_apart(arg, differentiated=i == 0) for i, arg in enumerate(args)]

    def flat(leaves: Any, others: Any) -> Any:
        return loss(
            *(p.rebuild(mine if i == 0 else [], o) for i, (p, mine, o) in enumerate(zip(parts, leaves, others)))
        )

    return jax.value_and_grad(flat), ([p.leaves for p in parts], [p.others for p in parts])


def debug_nans(loss: Loss, args: tuple[Any, ...]) -> bool:
    f, operands = gradient(loss, args)
    with jax.debug_nans(True):
        try:
            jax.block_until_ready(jax.jit(f)(*operands))
        except FloatingPointError:
            return True
    return False


def checks(loss: Loss, args: tuple[Any, ...]) -> bool:
    f, operands = gradient(loss, args)
    error, _ = jax.jit(checkify.checkify(f, errors=checkify.float_checks))(*operands)
    return error.get() is not None


def named(fault: Fault, report: rad.diagnosis.Report) -> bool:
    file, lines = fault_lines(fault)
    found = report.findings
    return len(found) == 1 and found[0].file == file and found[0].line in lines and found[0].kind in fault.kinds


def predicted(report: rad.diagnosis.Report) -> float | None:
    """What the listed contributions to the worst finite leaf add up to, over its measured error.

    0 where nothing is listed though every leaf is finite; None where there is no such leaf.
    """
    leaves = {leaf.name: leaf for leaf in report.leaves if leaf.bits_lost is not None and not leaf.nonfinite}
    ranked = [c for c in report.ranking if c.leaf in leaves]
    if not ranked:
        return None if any(leaf.nonfinite for leaf in report.leaves) else 0.0
    worst = ranked[0].leaf
    k = [leaf.name for leaf in report.leaves].index(worst)
    gradient, reference = (
        jax.tree.leaves(x, is_leaf=lambda x: x is None)[k] for x in (report.gradient, report.reference)
    )
    gap = np.asarray(gradient).astype(np.float64) - reference
    return abs(sum(c.error for c in ranked if c.leaf == worst)) / float(np.linalg.norm(gap))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    options = parser.parse_args()
    only = options.only
    warnings.simplefilter("ignore")
    said = {"robustad": [0, 0], "debug_nans": [0, 0], "checkify": [0, 0]}
    right, seconds = 0, 0.0
    ratios: list[float] = []
    rows: list[dict[str, Any]] = []
    faults = [f for f in FAULTS if only in f.name]
    healthy = [h for h in HEALTHY if only in h.name]
    entries: list[Fault | Healthy] = [*faults, *healthy]
    for entry in entries:
        is_healthy = isinstance(entry, Healthy)
        started = time.perf_counter()
        loss, args = entry.make()
        report = rad.audit(loss)(*args)
        taken = time.perf_counter() - started
        seconds += taken
        row: dict[str, Any] = {"name": entry.name, "healthy": is_healthy, "ok": report.ok, "seconds": round(taken, 1)}
        rows.append(row)
        if isinstance(entry, Fault):
            right += named(entry, report)
            if (ratio := predicted(report)) is not None:
                ratios.append(ratio)
            row |= {"model": entry.model, "named": named(entry, report), "predicted": ratio}
            if not named(entry, report):
                print(f"not named: {entry.name}: {[(f.kind, f.line) for f in report.findings]}")
        said["robustad"][is_healthy] += not report.ok
        for name, rival in (("debug_nans", debug_nans), ("checkify", checks)):
            said[name][is_healthy] += rival(*entry.make())
    print(f"jax {jax.__version__}: {len(faults)} faults in {len({f.model for f in faults})} kinds of model,")
    print(f"{len(healthy)} healthy models; {seconds / max(len(entries), 1):.1f} s an audit")
    print(f"{'':12}{'found':>8}{'named':>8}{'false alarms':>15}")
    for name, (found, false) in said.items():
        print(f"{name:12}{found:>8}{right if name == 'robustad' else 0:>8}{false:>15}")
    within = sum(1 / 3 <= ratio <= 3 for ratio in ratios)
    print(
        f"finite faults whose listed contributions are within 3x of the measured error: {within} of {len(ratios)} (bar: 90%)"
    )
    print(
        f"line and kind right: {right / max(len(faults), 1):.0%} (bar: 95%); false alarms: {said['robustad'][1]} (bar: 0)"
    )
    if options.json:
        setting = {"jax": jax.__version__, "backend": jax.default_backend()}
        rivals = {name: {"found": found, "false_alarms": false} for name, (found, false) in said.items()}
        found = {"faults": len(faults), "named": right, "predicted_within_3x": [within, len(ratios)]}
        options.json.write_text(json.dumps({**setting, **found, "contenders": rivals, "models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
