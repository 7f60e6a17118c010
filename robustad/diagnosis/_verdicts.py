"""What a probe's numbers mean for gradients, and what to do: one verdict a subject, in words."""

import dataclasses
from collections.abc import Iterable, Iterator

from robustad.diagnosis._device_profile import DeviceProfile
from robustad.diagnosis._measurement import Measurement
from robustad.diagnosis._probe import Probe


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found of one subject.

    Attributes:
        subject: what it is about.
        level: "fine", "note" (worth knowing), "danger" (results are wrong), or "unknown".
        found: the facts.
        meaning: what follows for gradients; "" where nothing does.
        remedy: what to do; "" where there is nothing to do.
    """

    subject: str
    level: str
    found: str
    meaning: str = ""
    remedy: str = ""


def verdicts(profile: DeviceProfile, probe: Probe) -> tuple[Verdict, ...]:
    """A verdict of every subject, the worst first."""
    found = [verdict for judge in _JUDGES for verdict in judge(probe)]
    found += _dtypes(profile)
    order = {"danger": 0, "note": 1, "unknown": 2, "fine": 3}
    return tuple(sorted(found, key=lambda v: order[v.level]))


def _of(probe: Probe, kind: str, dtypes: Iterable[str] | None = None) -> list[Measurement]:
    """The known measurements of a kind."""
    wanted = None if dtypes is None else set(dtypes)
    return [
        m
        for m in probe.measurements
        if m.kind == kind and m.value is not None and (wanted is None or m.dtype in wanted)
    ]


def _named(measurements: Iterable[Measurement]) -> str:
    return ", ".join(dict.fromkeys(m.dtype for m in measurements))


# ---------------------------------------------------------------------------------------------- what is dangerous


def _error_free(probe: Probe) -> Iterator[Verdict]:
    harmful = [f for f in probe.backend.findings if f.harmful]
    for finding in harmful:
        yield Verdict(
            f"error-free arithmetic ({finding.name})",
            "danger",
            finding.detail,
            "Compensated and reproducible sums, and all that computes with its own rounding errors, would be wrong, and "
            "refuses to run. Plain gradients are rounded, reordered and simplified otherwise than the program says.",
            finding.remedy,
        )
    if not harmful:
        yield Verdict(
            "error-free arithmetic", "fine", "Every operation is rounded once: compensated and reproducible sums hold."
        )


def _special(probe: Probe) -> Iterator[Verdict]:
    lost = [m for m in _of(probe, "NaN and infinity honoured") if not m.value]
    if lost:
        yield Verdict(
            "NaN and infinity",
            "danger",
            f"The compiler assumes that there are none, in {_named(lost)}: isnan, isfinite or x != x is answered wrongly.",
            "A gradient that is not finite goes unseen: guards by jnp.where, loss scaling and skipped steps do not work.",
            "Remove the fast-math flags from XLA_FLAGS and start the process again.",
        )
    else:
        yield Verdict("NaN and infinity", "fine", "They are kept, and seen by the tests for them.")


# --------------------------------------------------------------------------------------------- what is inaccurate


def _matmul(probe: Probe) -> Iterator[Verdict]:
    operands = {m.case: float(m.value or 0) for m in _of(probe, "matmul: operands", ["float32"])}
    if "default" not in operands:
        yield Verdict("matmul in float32", "unknown", "It could not be measured.")
    elif (bits := operands["default"]) >= 22:
        yield Verdict("matmul in float32", "fine", f"The default precision uses {bits:.0f} bits of the operands.")
    else:
        best = max(operands, key=lambda preset: operands[preset])
        yield Verdict(
            "matmul in float32",
            "note",
            f"The default precision uses {bits:.0f} of 24 bits of the operands; "
            + ", ".join(f"{preset!r} {b:.0f}" for preset, b in operands.items())
            + ".",
            f"Values and gradients that pass a matrix product have relative errors of about 2^-{bits:.0f} "
            f"({2**-bits:.0e}); differences of them have more.",
            f"Where that matters: jax.default_matmul_precision({best!r}), or `precision=` at the one product.",
        )
    lossy = [m for m in _of(probe, "matmul: 4096 terms") if m.case == "highest" and float(m.value or 0) < 12]
    if lossy:
        yield Verdict(
            "accumulation in matmul",
            "note",
            "4096 terms keep " + ", ".join(f"{m.value:.1f} bits in {m.dtype}" for m in lossy) + ".",
            "Long products of matrices, and the gradients of their weights, lose what a wide accumulator would keep.",
            "Pass preferred_element_type=jnp.float32, or robustad.stability.compensated_dot where it matters.",
        )


def _functions(probe: Probe) -> Iterator[Verdict]:
    known = _of(probe, "function")
    if not known:
        yield Verdict("elementary functions", "unknown", "They could not be measured.")
        return
    wrong = [m for m in known if not float(m.value or 0) <= 4]
    worst = max(known, key=lambda m: float(m.value or 0))
    if wrong:
        named = "; ".join(f"{m.case} in {m.dtype} {m}" for m in wrong[:8])
        yield Verdict(
            "elementary functions",
            "note",
            f"More than 4 ulp off: {named}{' and more' * (len(wrong) > 8)}.",
            "Values, and derivatives that are made of them, are off by as much; cancellation behind them multiplies it.",
            "robustad.stability has accurate ones; the arguments of sin and cos can be reduced before.",
        )
    else:
        yield Verdict(
            "elementary functions",
            "fine",
            f"None is more than {worst.value:.1f} ulp off ({worst.case}, {worst.dtype}).",
        )


def _sums(probe: Probe) -> Iterator[Verdict]:
    made = {m.case: float(m.value or 0) for m in _of(probe, "sum of 65536 terms", ["float32"])}
    spread = _of(probe, "sum: spread over 8 orders", ["float32"])
    if "sum" not in made:
        yield Verdict("sums in float32", "unknown", "They could not be measured.")
        return
    facts = f"65536 positive terms keep {made['sum']:.0f} of 24 bits" + (
        f"; another order of the terms changes the result by {spread[0].value:.0f} ulp." if spread else "."
    )
    if made["sum"] < 18:
        meaning = "Losses and gradients that are sums over many terms lose that many digits, even without cancellation."
        yield Verdict("sums in float32", "note", facts, meaning, "robustad.stability.compensated_sum.")
    elif spread and spread[0].value:
        meaning = "Gradients differ in their last bits between layouts, shardings and batch orders."
        remedy = "Where bits must agree: robustad.stability.reproducible_sum."
        yield Verdict("sums in float32", "note", facts, meaning, remedy)
    else:
        yield Verdict("sums in float32", "fine", facts)


def _scatter(probe: Probe) -> Iterator[Verdict]:
    made = [m for m in _of(probe, "sum of 65536 terms") if m.case == "scatter-add"]
    half = {"bfloat16": 4, "float16": 6, "float32": 12, "float64": 26}
    lossy = [m for m in made if float(m.value or 0) < half[m.dtype]]
    if not made:
        yield Verdict("scatter-add", "unknown", "It could not be measured.")
    elif lossy:
        yield Verdict(
            "scatter-add",
            "note",
            "65536 positive terms on one place keep "
            + ", ".join(f"{m.value:.1f} bits in {m.dtype}" for m in lossy)
            + ".",
            f"It is the gradient of indexing: an embedding or gather in {_named(lossy)} stops growing once a term is below "
            "half an ulp of the total.",
            "Index in float32 and cast what was taken, or use robustad.stability.gather and segment_sum.",
        )
    else:
        yield Verdict("scatter-add", "fine", "65536 positive terms on one place keep more than half of their bits.")


# ------------------------------------------------------------------------------------------------ what varies


def _repeated(probe: Probe) -> Iterator[Verdict]:
    made = _of(probe, "same bits in every run")
    varying = [m for m in made if not m.value]
    if not made:
        yield Verdict("repeated runs", "unknown", "They could not be measured.")
    elif varying:
        named = ", ".join(f"{m.case} in {m.dtype}" for m in varying)
        yield Verdict(
            "repeated runs",
            "note",
            f"The same program on the same data gives other bits: {named}.",
            "Training cannot be repeated bit for bit, and a gradient cannot be bisected.",
            "robustad.stability.reproducible_sum and segment_sum; on a GPU --xla_gpu_deterministic_ops=true.",
        )
    else:
        yield Verdict(
            "repeated runs", "fine", "Sums, scatter-adds and products of matrices gave the same bits each time."
        )


def _all_reduce(probe: Probe) -> Iterator[Verdict]:
    made = _of(probe, "all-reduce", ["bfloat16"])
    if not made:
        yield Verdict(
            "all-reduce", "unknown", "It takes three devices in this process to see how narrow dtypes are added."
        )
    elif float(made[0].value or 0) < 8:
        yield Verdict(
            "all-reduce",
            "note",
            f"A bfloat16 sum over {made[0].case} keeps {made[0].value:.1f} of 8 bits: it is added in bfloat16.",
            "Gradients that are reduced in bfloat16 lose a bit with every doubling of the devices.",
            "Cast gradients to float32 before psum or pmean.",
        )
    else:
        yield Verdict(
            "all-reduce", "fine", f"A bfloat16 sum over {made[0].case} is rounded once: it is added in float32."
        )


# ------------------------------------------------------------------------------------------- what is worth knowing


def _narrow_casts(probe: Probe) -> Iterator[Verdict]:
    made = _of(probe, "cast from float32 to nearest, ties to even")
    wrong = [m for m in made if not m.value]
    if wrong:
        yield Verdict(
            "casts",
            "note",
            f"A cast of float32 to {_named(wrong)} does not round to nearest, ties to even, every time.",
            "Rounding errors have a direction and add up, or differ from run to run.",
            "Keep float32 master weights and accumulate in float32.",
        )
    elif made:
        yield Verdict("casts", "fine", f"float32 is rounded to nearest, ties to even, in {_named(made)}.")


def _subnormals(probe: Probe) -> Iterator[Verdict]:
    lost = [m for which in ("operands", "results") for m in _of(probe, f"subnormal {which} flushed") if m.value]
    normal = {"float64": "2.2e-308", "float32": "1.2e-38", "bfloat16": "1.2e-38", "float16": "6.1e-05"}
    if lost:
        limits = ", ".join(f"{name} below {normal[name]}" for name in dict.fromkeys(m.dtype for m in lost))
        yield Verdict(
            "subnormals",
            "note",
            f"Numbers below the smallest normal become 0: {limits}.",
            "Smaller gradients, and exp of less than -87 in float32, are exactly 0; their log is -inf.",
            "Stay in logs (robustad.stability.logsumexp, log_softmax), or scale the loss.",
        )
    else:
        yield Verdict("subnormals", "fine", "They are kept.")


def _fused(probe: Probe) -> Iterator[Verdict]:
    fused = [m for m in _of(probe, "x * y + z rounded once") if m.value]
    if fused:
        yield Verdict(
            "fused multiply-add",
            "note",
            f"x * y + z is rounded once, in {_named(fused)}.",
            "a * b - c * d of equal products need not be 0, and jit gives other last bits than op-by-op execution.",
            "robustad.stability.diff_of_products where the difference matters.",
        )
    else:
        yield Verdict("fused multiply-add", "fine", "x * y + z is rounded twice, as it is written.")


def _excess(probe: Probe) -> Iterator[Verdict]:
    kept = [m for m in _of(probe, "excess precision", ["bfloat16", "float16"]) if m.value]
    if kept:
        yield Verdict(
            "excess precision",
            "note",
            f"Intermediates are not rounded to {_named(kept)} within a compiled program.",
            "Results depend on what the compiler fuses: more accurate as a rule, and not the same everywhere.",
            "--xla_allow_excess_precision=false in XLA_FLAGS rounds each of them.",
        )
    else:
        yield Verdict("excess precision", "fine", "Every intermediate in a narrow dtype is rounded to it.")


def _folding(probe: Probe) -> Iterator[Verdict]:
    if any(f.name == "constant-folding" and f.present for f in probe.backend.findings):
        yield Verdict(
            "simplified constants",
            "note",
            "(y + c) - c with a constant c is simplified to y.",
            "Rounding by adding and subtracting a large constant silently does nothing.",
            "Pass the constant through jax.lax.optimization_barrier; robustad's own sums do.",
        )


def _dtypes(profile: DeviceProfile) -> Iterator[Verdict]:
    missing = [d.name for d in profile.dtypes if d.arithmetic == "unsupported"]
    emulated = [d for d in profile.dtypes if d.arithmetic == "emulated"]
    if missing:
        yield Verdict("dtypes", "note", f"Not supported: {', '.join(missing)}.", "", "Choose another dtype.")
    if emulated:
        products = [d.name for d in emulated if d.matmul == "native"]
        yield Verdict(
            "dtypes",
            "fine",
            f"Computed in a wider dtype and rounded: {', '.join(d.name for d in emulated)}"
            + (f" (products of matrices are native in {', '.join(products)})." if products else "."),
        )


_JUDGES = (
    _error_free,
    _special,
    _matmul,
    _functions,
    _sums,
    _scatter,
    _repeated,
    _all_reduce,
    _narrow_casts,
    _subnormals,
    _fused,
    _excess,
    _folding,
)
