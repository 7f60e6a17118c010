"""Lyapunov exponents beside the literature, spectra beside NumPy, and what they cost beside the plain way.

    python experiments/benchmarks/dynamics.py --json dynamics.json

The plain ways: `lax.scan` over the map alone for the exponents (ours makes the vectors orthonormal every 10 steps);
`jax.jacobian` or `jax.hessian` and a dense decomposition for spectra. Ratios are of compiled calls, taken in turns. Needs
`pip install 'robustad[spectra]'`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ratios import compare, machine

from robustad import diagnosis as dg


def lorenz(x: Any, h: float = 0.01) -> Any:
    def f(s: Any) -> Any:
        return jnp.stack([10 * (s[1] - s[0]), s[0] * (28 - s[2]) - s[1], s[0] * s[1] - 8 / 3 * s[2]])

    k1 = f(x)
    k2 = f(x + h / 2 * k1)
    k3 = f(x + h / 2 * k2)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(x + h * k3))


def logistic(x: Any) -> Any:
    return 4 * x * (1 - x)


def henon(x: Any) -> Any:
    return jnp.stack([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])


def exponents(repeats: int) -> dict[str, Any]:
    """Of maps and a flow, in float64; the bars are relative errors of the largest exponent and of the sum."""
    cases = {
        "logistic map, r = 4": (logistic, 0.3, 1.0, 200_000, math.log(2), 0.01, None),
        "Hénon map": (henon, [0.1, 0.1], 1.0, 200_000, 0.419, 0.02, math.log(0.3)),
        "Lorenz, Runge-Kutta": (lorenz, [1.0, 2.0, 3.0], 0.01, 200_000, 0.906, 0.05, -(11 + 8 / 3)),
    }
    results = {}
    heads = f"{'exponents':24}{'largest':>12}{'error':>10}{'expected':>10}{'off by':>9}{'bar':>6}{'sum off by':>12}"
    print(f"{heads}{'/ loop':>8}")
    for name, (step, start, dt, steps, expected, bar, total) in cases.items():
        with jax.enable_x64(True):
            x = jnp.asarray(start, jnp.float64)
            ours = dg.lyapunov_exponents(step, steps=steps, dt=dt, every=10)
            found = ours(x)

            def plain(x: Any, step: Any = step, steps: int = steps) -> Any:
                return lax.scan(lambda x, _: (step(x), None), x, length=steps + 1000)[0]

            ratio = compare(lambda x, ours=ours: ours(x).exponents, plain, (x,), repeats)
        off = abs(float(found.largest) / expected - 1)
        off_sum = None if total is None else abs(float(found.exponents.sum()) / total - 1)
        verdict = "met" if off <= bar and (off_sum is None or off_sum <= 0.01) else "MISSED"
        print(
            f"{name:24}{float(found.largest):12.5f}{float(found.standard_error[0]):10.1e}{expected:10.4f}{off:9.2%}{bar:6.0%}"
            f"{'' if off_sum is None else f'{off_sum:.2e}':>12}{ratio.ratio:8.1f}  {verdict}",
            flush=True,
        )
        results[name] = {
            "exponents": [float(e) for e in found.exponents],
            "standard_error": [float(e) for e in found.standard_error],
            "expected": expected,
            "off": off,
            "sum_off": off_sum,
            "met": verdict == "met",
            "ratio": ratio.ratio,
        }
    return results


def spectra(repeats: int) -> dict[str, Any]:
    """In float32 beside NumPy in float64; errors are relative to the largest value."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((400, 400)))[0]

    def times(x: Any, a: Any) -> Any:
        return a @ jnp.sin(x)

    def quadratic(x: Any, a: Any) -> Any:
        return x @ (a @ x) / 2

    def svd(a: Any) -> Any:
        return np.linalg.svd(a, compute_uv=False)

    def radius(a: Any) -> Any:
        return np.abs(np.linalg.eigvals(a)).max()

    def outermost(a: Any) -> Any:
        return np.linalg.eigvalsh(a)[[-1, 0]]

    def defect(a: Any) -> Any:
        return np.std(svd(a) ** 2) / np.mean(svd(a) ** 2)

    def ends(x: Any, a: Any) -> Any:
        found = dg.hessian_eigenvalues(quadratic)(x, a)
        return jnp.concatenate([found.top, found.bottom])

    gaussian = rng.standard_normal((400, 400))
    symmetric = (gaussian + gaussian.T) / 2
    decaying = basis @ np.diag(1.0 / np.arange(1, 401)) @ basis.T
    jacobian, hessian = jax.jacobian(times), jax.hessian(quadratic)

    def dense_svd(x: Any, a: Any) -> Any:
        return jnp.linalg.svd(jacobian(x, a), compute_uv=False)

    def dense_eig(x: Any, a: Any) -> Any:
        return jnp.abs(jnp.linalg.eigvals(jacobian(x, a)))

    def dense_eigh(x: Any, a: Any) -> Any:
        return jnp.linalg.eigvalsh(hessian(x, a))

    def dense_trace(x: Any, a: Any) -> Any:
        return jnp.trace(hessian(x, a))

    def norm(x: Any, a: Any) -> Any:
        return dg.spectral_norm(times)(x, a).value

    def six(x: Any, a: Any) -> Any:
        return dg.singular_values(times)(x, a).values

    tools: dict[str, tuple[Callable[..., Any], Callable[..., Any], Any, Any]] = {
        "spectral_norm, 1e25": (norm, dense_svd, 1e25 * gaussian, lambda a: svd(a)[0]),
        "spectral_norm, 1e-25": (norm, dense_svd, 1e-25 * gaussian, lambda a: svd(a)[0]),
        "singular_values, 6": (six, dense_svd, gaussian, lambda a: svd(a)[:6]),
        "spectral_radius": (lambda x, a: dg.spectral_radius(times)(x, a).value, dense_eig, gaussian, radius),
        "isometry_defect": (lambda x, a: dg.isometry_defect(times)(x, a).defect, dense_svd, basis, defect),
        "hessian_eigenvalues": (ends, dense_eigh, symmetric, outermost),
        "hessian_trace": (lambda x, a: dg.hessian_trace(quadratic)(x, a).trace, dense_trace, decaying, np.trace),
    }
    results = {}
    print(f"{'spectra, 400 x 400':24}{'error':>12}{'/ dense':>12}")
    for name, (ours, plain, matrix, truth) in tools.items():
        x, a = jnp.zeros(400), jnp.asarray(matrix, jnp.float32)  # cos 0 = 1: the Jacobian is the matrix
        found, true = np.asarray(jax.jit(ours)(x, a), np.float64), truth(np.asarray(a, np.float64))
        error = float(
            np.max(np.abs(found - true)) / max(np.max(np.abs(true)), 1e-30 if name != "isometry_defect" else 1)
        )
        ratio = compare(ours, plain, (x, a), repeats)
        print(f"{name:24}{error:12.1e}{ratio.ratio:12.2f}", flush=True)
        results[name] = {"error": error, "ratio": ratio.ratio}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed pairs of calls (default 5)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    options = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    text = {**machine(), "exponents": exponents(options.repeats), "spectra": spectra(options.repeats)}
    if options.json:
        options.json.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
