"""What `grad_check` finds beside `jax.test_util.check_grads` and `jax_debug_nans`, and how long each takes.

    python experiments/benchmarks/checks.py --json checks.json

Finite but wrong gradients: the twelve of the public cases, and others of their kinds; wrong derivative rules; and right
gradients, on which everything that is said is a false alarm. `check_grads` has its default tolerances, order 1, both modes
(reverse alone where there is a `custom_vjp`).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.test_util import check_grads
from ratios import machine

from robustad.diagnosis import grad_check


@dataclass(frozen=True)
class Case:
    """A scalar function and where it is differentiated; kind: "public", "further", "rule" or "right". derivative: of a
    public case, by mpmath; where this version of JAX has it right, to say so would be a false alarm."""

    name: str
    kind: str
    function: Callable[..., Any]
    at: Any
    wide: bool = False
    derivative: Any = None
    modes: tuple[str, ...] = ("rev", "fwd")

    def is_right_by_now(self, x: Any) -> bool:
        if self.derivative is None:
            return self.kind == "right"
        error = np.abs(np.asarray(jax.jit(jax.grad(self.function))(x), np.float64) - self.derivative)
        return bool(np.max(error) <= (1e-10 if self.wide else 1e-4) * np.max(np.abs(self.derivative)))


def ctc(logits: Any) -> Any:
    return optax.ctc_loss(logits[None], jnp.zeros((1, 2)), jnp.array([[1]]), jnp.zeros((1, 1)))[0]


def vjp(factor: float) -> Callable[..., Any]:
    """The sum of x sin x with a backward rule that is wrong by a factor in one term."""
    f = jax.custom_vjp(lambda x: jnp.sum(jnp.sin(x) * x))
    f.defvjp(lambda x: (jnp.sum(jnp.sin(x) * x), x), lambda x, g: (g * (jnp.cos(x) * x + factor * jnp.sin(x)),))
    return f


def jvp(index: int, factor: float) -> Callable[..., Any]:
    """The sum of tanh x with a rule that is wrong at one element."""
    f = jax.custom_jvp(lambda x: jnp.sum(jnp.tanh(x)))
    f.defjvp(
        lambda p, t: (jnp.sum(jnp.tanh(p[0])), jnp.vdot((1 - jnp.tanh(p[0]) ** 2).at[index].multiply(factor), t[0]))
    )
    return f


def perceptron(x: Any) -> Any:
    w = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6)) / 3, x.dtype)
    return jnp.mean(jax.nn.log_softmax(jax.nn.relu(x @ w[0]) @ w[1])[:, 0])


def ties(x: Any) -> Any:
    return jnp.max(x) + jnp.sum(jnp.abs(x - 1)) + jnp.sum(jax.nn.relu(x - 1)) + x[0] ** 2


TAIL = np.array([5.550825086253719e-17, -5.550825086253719e-17])
CTC = np.array([[1.7139082186778086e-15, -1.7139082186778086e-15]] * 2)
POINTS = np.linspace(0.3, 2.0, 5).astype(np.float32)
CASES = [
    Case("P28 expm1", "public", jnp.expm1, -40.0, True, 4.248354255291589e-18),
    Case("P29 elu", "public", jax.nn.elu, -40.0, True, 4.248354255291589e-18),
    Case("P29 selu", "public", jax.nn.selu, -700.0, True, 1.7334290832552394e-304),
    Case("P30 sigmoid", "public", jax.nn.sigmoid, 37.43, True, 5.550825086253719e-17),
    Case("P31 softplus''", "public", jax.grad(jax.nn.softplus), 37.43, True, 5.550825086253719e-17),
    Case("P31 log_sigmoid''", "public", jax.grad(jax.nn.log_sigmoid), -37.43, True, -5.550825086253719e-17),
    Case("P32 tanh", "public", jnp.tanh, -9.0109, False, 5.960628852911439e-08),
    Case("P33 i0", "public", jax.scipy.special.i0, 1e-300, True, 5e-301),
    Case("P35 silu", "public", jax.nn.silu, -709.0, True, -8.614807714413836e-306),
    Case("P36 log_softmax", "public", lambda x: jax.nn.log_softmax(x)[0], [37.43, 0.0], True, TAIL),
    Case("P42 (1-cos x)/x^2", "public", lambda x: (1 - jnp.cos(x)) / x**2, 1e-4, False, -8.33333311726007e-06),
    Case("P44 ctc_loss", "public", ctc, [[0.0, 17.0], [0.0, 17.0]], True, CTC),
    Case("sigmoid, float32", "further", jax.nn.sigmoid, 17.5),
    Case("softmax", "further", lambda x: jax.nn.softmax(x)[0], [40.0, 0.0], True),
    Case("tanh''", "further", jax.grad(jnp.tanh), 20.0, True),
    Case("x - sin x", "further", lambda x: x - jnp.sin(x), 1e-3),
    Case("log(1 - exp(-x))", "further", lambda x: jnp.log(1 - jnp.exp(-x)), 1e-12, True),
    Case("sqrt(x+1) - sqrt(x)", "further", lambda x: jnp.sqrt(x + 1) - jnp.sqrt(x), 1e14, True),
    Case("raw moments", "further", lambda x: jnp.mean(x**2) - jnp.mean(x) ** 2, [1000.0, 1000.001, 1000.002]),
    Case("norm, tiny", "further", lambda x: jnp.sqrt(jnp.sum(x * x)), [3e-20, 4e-20]),
    Case("custom_vjp, 1e-3 off", "rule", vjp(1.001), POINTS, modes=("rev",)),
    Case("custom_vjp, sign", "rule", vjp(-1.0), POINTS, modes=("rev",)),
    Case("custom_jvp, one of 5", "rule", jvp(3, 1.5), POINTS),
    Case("custom_jvp, one of 200", "rule", jvp(3, 1.5), np.linspace(-1, 1, 200).astype(np.float32)),
    Case("custom_vjp", "right", vjp(1.0), POINTS, modes=("rev",)),
    Case("sums of exponentials", "right", lambda x: jnp.sum(jnp.exp(x) * jnp.tanh(x)), POINTS),
    Case("perceptron", "right", perceptron, np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)),
    Case("ties and kinks", "right", ties, [1.0, 1.0, 0.5]),
    Case("straight through", "right", lambda x: (x + jax.lax.stop_gradient(jnp.round(x) - x)) ** 2, 1.8),
    Case("large arguments", "right", lambda x: jnp.sum(x**2) * 1e6, POINTS * 1e5),
]


def by_check_grads(case: Case, x: Any) -> bool:
    try:
        check_grads(case.function, (x,), 1, modes=list(case.modes))
    except AssertionError:
        return True
    return False


def by_debug_nans(case: Case, x: Any) -> bool:
    with jax.debug_nans(True):
        try:
            jax.block_until_ready(jax.jit(jax.value_and_grad(case.function))(x))
        except FloatingPointError:
            return True
    return False


def by_grad_check(case: Case, x: Any) -> bool:
    return not grad_check(case.function)(x).ok


CONTENDERS = {"check_grads": by_check_grads, "debug_nans": by_debug_nans, "grad_check": by_grad_check}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{'':26}" + "".join(f"{name:>22}" for name in CONTENDERS))
    results: dict[str, Any] = {}
    for case in CASES:
        if options.only not in case.name:
            continue
        with jax.enable_x64(case.wide):
            row: dict[str, Any] = {"kind": "right" if case.is_right_by_now(jnp.asarray(case.at)) else case.kind}
        for name, contender in CONTENDERS.items():
            jax.clear_caches()  # each compiles for itself
            with jax.enable_x64(case.wide):
                x = jnp.asarray(case.at)
                begin = time.perf_counter()
                found = contender(case, x)
                row[name] = {"found": found, "seconds": time.perf_counter() - begin}
        cells = (
            f"{'found' if r['found'] else 'passed':>13}{r['seconds']:7.2f} s" for r in (row[c] for c in CONTENDERS)
        )
        print(f"{row['kind']:8}{case.name:18.18}" + "".join(cells), flush=True)
        results[case.name] = row
    totals = {}
    for kind in ("public", "further", "rule", "right"):
        rows = [row for row in results.values() if row["kind"] == kind]
        totals[kind] = {name: f"{sum(row[name]['found'] for row in rows)} of {len(rows)}" for name in CONTENDERS}
        print(f"{kind:26}" + "".join(f"{total:>22}" for total in totals[kind].values()))
    if options.json:
        text = {**machine(), "found": totals, "cases": results}
        options.json.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
