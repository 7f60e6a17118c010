"""Whether the backend's arithmetic rounds each operation once, as error-free transforms need."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


class BackendError(RuntimeError):
    """The backend's arithmetic breaks error-free transforms; the message names the cause and the remedy."""


@dataclass(frozen=True)
class BackendFinding:
    """One way in which compiled arithmetic may differ from rounding each operation once.

    Attributes:
        name: "fast-math", "contraction", "flush-to-zero", "excess-precision" or "constant-folding".
        present: whether plain code, without guards, was seen to suffer from it.
        harmful: whether it breaks the error-free transforms of this module, behind their guards.
        detail: what was computed, and what it should have been.
        remedy: what to do.
    """

    name: str
    present: bool
    harmful: bool
    detail: str
    remedy: str


@dataclass(frozen=True)
class BackendReport:
    """What `verify_backend` found. `ok`: error-free transforms hold."""

    ok: bool
    platform: str
    flags: str
    findings: tuple[BackendFinding, ...]

    def __str__(self) -> str:
        head = f"error-free arithmetic {'holds' if self.ok else 'DOES NOT HOLD'} on {self.platform}"
        lines = [head + (f" with XLA_FLAGS={self.flags}" if self.flags else "")]
        for finding in self.findings:
            state = "HARMFUL" if finding.harmful else "present, harmless here" if finding.present else "absent"
            lines.append(f"  {finding.name}: {state}. {finding.detail}")
            if finding.harmful:
                lines.append(f"    {finding.remedy}")
        return "\n".join(lines)


def verify_backend(platform: str | None = None) -> BackendReport:
    """Proves on this machine that error-free transforms are exact, or says what breaks them.

    Compiles small programs and compares what they compute with exact rational arithmetic: the transforms on random data, in
    float32 and (but on TPU) float64, alone and between neighbours with which a compiler could merge them; and what the
    compiler does to unguarded code. The result is kept per platform and XLA_FLAGS; the functions that need error-free
    arithmetic ask for it at their first use and raise `BackendError` where it does not hold, also while they are traced.

    Args:
        platform: "cpu", "gpu", "tpu"; default: that of the default backend.

    Returns:
        The report, frozen. It prints well.

    Warns:
        RuntimeWarning: with the report, where error-free arithmetic does not hold.

    >>> verify_backend().ok
    True
    """
    report = _report(platform)
    if not report.ok:
        warnings.warn(str(report), RuntimeWarning, stacklevel=2)
    return report


def require_error_free() -> None:
    """Raises `BackendError` where `verify_backend` finds that error-free transforms do not hold."""
    report = _report(None)
    if not report.ok:
        raise BackendError(str(report))


def _report(platform: str | None) -> BackendReport:
    return _proven(platform or jax.default_backend(), os.environ.get("XLA_FLAGS", ""))


@functools.cache
def _proven(platform: str, flags: str) -> BackendReport:
    """In a thread of its own, which has none of the caller's contexts: no trace, mesh, default device or dtype setting."""
    results: list[BackendReport | BaseException] = []

    def work() -> None:
        try:
            with jax.default_device(jax.devices(platform)[0]), jax.disable_jit(False):
                results.append(_examine(platform, flags))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=work, name="robustad-verify-backend")
    thread.start()
    thread.join()
    (result,) = results
    if isinstance(result, BaseException):
        raise result
    return result


# ---- what is examined


def _examine(platform: str, flags: str) -> BackendReport:
    dtypes = [np.float32] if platform == "tpu" else [np.float32, np.float64]
    wrong = [text for dtype in dtypes for text in _wrong_transforms(np.dtype(dtype))]
    fast = _fast_math(flags, wrong)
    return BackendReport(not fast.harmful, platform, flags, (fast, *_unguarded()))


def _wrong_transforms(dtype: np.dtype) -> list[str]:
    """For each transform and surrounding in which it is not exact, a sentence."""
    from robustad.stability import _error_free as transforms

    random = np.random.default_rng(0)
    # More than one vector register; the exponents differ by less than the significand's length, so that errors are not 0.
    a, b, c = (random.standard_normal((3, 67)) * 2.0 ** random.integers(-9, 9, (3, 67))).astype(dtype)
    constant = dtype.type(3 * 2.0**10)
    two_sum, two_prod = transforms.two_sum_guarded, transforms.two_prod_kernel
    constants, zero = constant + 0 * a, 0 * a
    surroundings: Sequence[tuple[str, Callable[..., Any], Sequence[np.ndarray], Sequence[Fraction]]] = [
        ("two_sum of loaded data", transforms.two_sum_kernel, (a, c), _exact(a, c)),
        ("two_sum of a product", lambda a, b, c: two_sum(a * b, c), (a, b, c), _exact(a * b, c)),
        ("two_sum of a constant", lambda a: two_sum(constant, a), (a,), _exact(constants, a)),
        ("two_prod of loaded data", two_prod, (a, b), _exact(a, b, product=True)),
        ("two_prod by a constant", lambda a: two_prod(a, constant), (a,), _exact(a, constants, product=True)),
        ("two_prod, then a sum", lambda a, b, c: (two_prod(a, b)[0] + c, 0 * c), (a, b, c), _exact(a * b + c, zero)),
        ("two_prod, then two_sum", lambda a, b, c: two_sum(two_prod(a, b)[0], c), (a, b, c), _exact(a * b, c)),
    ]
    # One program for all: each compilation takes about 0.1 s.
    results = _run(
        lambda groups: [case[1](*arguments) for case, arguments in zip(surroundings, groups)],
        [list(arguments) for _, _, arguments, _ in surroundings],
    )
    sentences = []
    for (name, _, _, exact), (high, low) in zip(surroundings, results):
        bad = sum(not _equal(s, e, value) for s, e, value in zip(high, low, exact))
        if bad:
            sentences.append(f"{name} is wrong for {bad} of {len(exact)} random arguments in {dtype}")
    return sentences


def _exact(a: np.ndarray, b: np.ndarray, product: bool = False) -> list[Fraction]:
    pairs = [(Fraction(float(x)), Fraction(float(y))) for x, y in zip(a, b)]
    return [x * y if product else x + y for x, y in pairs]


def _equal(s: np.ndarray, e: np.ndarray, exact: Fraction) -> bool:
    return bool(np.isfinite(s) and np.isfinite(e)) and Fraction(float(s)) + Fraction(float(e)) == exact


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    with jax.enable_x64(True):
        return jax.device_get(jax.jit(function)(*arguments))


def _fast_math(flags: str, wrong: list[str]) -> BackendFinding:
    flag = next((f for f in flags.split() if "fast_math" in f and not f.endswith(("=false", "=0"))), None)
    likely = flag or "--xla_cpu_enable_fast_math=true (not seen in XLA_FLAGS: a compiler option, or another flag)"
    remedy = f"Remove {likely} from XLA_FLAGS and start the process again: XLA reads its flags once."
    if wrong:
        detail = (
            f"The compiler reassociates or contracts floating-point operations ({likely}): " + "; ".join(wrong) + "."
        )
    else:
        detail = "The transforms are exact on random data, alone and between hostile neighbours."
    return BackendFinding("fast-math", bool(wrong), bool(wrong), detail, remedy)


def _unguarded() -> list[BackendFinding]:
    """What the compiler does to plain code; harmless behind guards."""
    ones = np.ones(67, np.float32)
    tiny = ones * np.finfo(np.float32).tiny
    narrow = np.ones(67, jnp.bfloat16), np.full(67, 2.0**-10, jnp.bfloat16)

    def program(x: Array, z: Array, tiny: Array, one: Array, small: Array, y: Array) -> list[Array]:
        constant = lax.full_like(y, 1.5 * 2.0**23)
        return [x * x + z != 0, tiny * y == 0, (one + small) - one != 0, (y + constant) - constant != 0]

    # x * x = 1 + 2 ** -11 + 2 ** -24, which rounds to -z.
    seen = _run(program, ones * (1 + 2.0**-12), -ones * (1 + 2.0**-11), tiny, *narrow, ones * np.float32(0.25))
    fused, flushed, kept, folded = (bool(np.any(flags)) for flags in seen)
    return [
        BackendFinding(
            "contraction",
            fused,
            False,
            f"x * y + z is rounded {'once: a fused multiply-add' if fused else 'twice'}.",
            "Where it matters, take the product from `two_prod`.",
        ),
        BackendFinding(
            "flush-to-zero",
            flushed,
            False,
            f"A quarter of the smallest normal float32 is {'0' if flushed else 'a subnormal'}.",
            "Scale the data away from the smallest normal.",
        ),
        BackendFinding(
            "excess-precision",
            kept,
            False,
            f"bfloat16 intermediates are {'kept in float32' if kept else 'rounded'}.",
            "Set --xla_allow_excess_precision=false.",
        ),
        BackendFinding(
            "constant-folding",
            folded,
            False,
            f"(y + c) - c with a constant c is {'simplified to y' if folded else 'computed'}.",
            "Pass the constant through lax.optimization_barrier.",
        ),
    ]
