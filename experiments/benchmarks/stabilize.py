"""What `stabilize` gains and costs, beside plain JAX in the same run.

    python experiments/benchmarks/stabilize.py time      healthy models: run time, tracing, compiling, as ratios
    python experiments/benchmarks/stabilize.py zoo       faulty models: audit(f) and audit(stabilize(f))
    python experiments/benchmarks/stabilize.py score SCORE.py FILE.fpcore...
                                                         mean bits of error on FPCore problems, by a scorer of that interface

`--json FILE` writes the figures.
"""

import argparse
import json
import runpy
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

import robustad as rad
from robustad.diagnosis._arguments import arguments

sys.path.insert(0, str(Path(__file__).parents[2]))

ROUNDS, CALLS = 60, 5


def healthy_times() -> list[dict[str, Any]]:
    """Each healthy model of the zoo: `value_and_grad`, plain and stabilized, interleaved."""
    from tests.zoo import HEALTHY

    rows = []
    for model in HEALTHY:
        loss, args = model.make()
        held = arguments(loss, 0, args, {})

        def f(leaves, others, call=held.call):
            return call(leaves, others)

        given = held.leaves, held.others
        traced, compiled, runs = [], [], []
        for form in (f, rad.stabilize(f)):
            jax.make_jaxpr(form)(*given)  # imports, tables
            jax.clear_caches()
            start = time.perf_counter()
            jax.make_jaxpr(form)(*given)
            traced.append(time.perf_counter() - start)
            lowered = jax.jit(jax.value_and_grad(form)).lower(*given)
            start = time.perf_counter()
            runs.append(lowered.compile())
            compiled.append(time.perf_counter() - start)
        times: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for run, taken in zip(runs, times):
                start = time.perf_counter()
                for _ in range(CALLS):
                    out = run(*given)
                jax.block_until_ready(out)
                taken.append((time.perf_counter() - start) / CALLS)
        ratio = statistics.median(b / a for a, b in zip(*times))
        row = {
            "model": model.name,
            "microseconds": 1e6 * statistics.median(times[0]),
            "run": ratio,
            "trace": traced[1] / traced[0],
            "compile": compiled[1] / compiled[0],
        }
        rows.append(row)
        print(
            f"{model.name:42s} {row['microseconds']:8.0f} us   run {ratio:5.2f}x   trace {row['trace']:5.1f}x   "
            f"compile {row['compile']:5.1f}x",
            flush=True,
        )
    for key, bar in (("run", 1.05), ("trace", 3.0)):
        ratios = [row[key] for row in rows]
        print(
            f"{key}: median {statistics.median(ratios):.2f}x, geometric mean {np.exp(np.mean(np.log(ratios))):.2f}x, "
            f"within {bar}x: {sum(r <= bar for r in ratios)} of {len(ratios)}"
        )
    return rows


def zoo_closes() -> list[dict[str, Any]]:
    """Each faulty model: the audit's verdict before and after."""
    from tests.zoo import FAULTS

    rows = []
    for fault in FAULTS:
        loss, args = fault.make()
        before = rad.audit(loss, ranking=False)(*args)
        try:
            after = rad.audit(rad.stabilize(loss), ranking=False)(*args)
        except Exception as error:  # told, and counted as not mended
            rows.append({"fault": fault.name, "ok": False, "new": [], "error": f"{type(error).__name__}: {error}"})
            print(f"{fault.name:42s} {rows[-1]['error'][:100]}", flush=True)
            continue
        places = {(f.file, f.line) for f in before.findings}
        new = sorted({f.kind for f in after.findings if (f.file, f.line) not in places})
        rows.append({"fault": fault.name, "ok": after.ok, "kinds": sorted(fault.kinds), "new": new})
        print(f"{fault.name:42s} {'ok' if after.ok else 'not ok':8s} {', '.join(new)}", flush=True)
    good = sum(row["ok"] for row in rows)
    print(f"ok after stabilize: {good} of {len(rows)} ({100 * good / len(rows):.0f} %)")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "zoo", "score"])
    parser.add_argument("files", nargs="*")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--points", default="64")
    parser.add_argument("--examples", default="0")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.what == "score":
        scorer, *problems = given.files
        sys.argv = [scorer, "--points", given.points, "--transform", "robustad:stabilize", *problems]
        if given.examples != "0":
            sys.argv += ["--examples", given.examples]
        if given.json:
            sys.argv += ["--json", str(given.json)]
        runpy.run_path(scorer, run_name="__main__")
        return
    rows = healthy_times() if given.what == "time" else zoo_closes()
    if given.json:
        given.json.write_text(json.dumps({"jax": jax.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
