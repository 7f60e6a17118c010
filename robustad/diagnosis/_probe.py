"""`probe`: what the arithmetic of a device really does, measured."""

import dataclasses
import json
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from robustad.diagnosis import _on_device, _probe_compiler, _probe_functions, _probe_sums
from robustad.diagnosis._measurement import Measurement, told
from robustad.diagnosis._on_device import Device
from robustad.diagnosis._strict_json import strict_json
from robustad.stability import BackendFinding, BackendReport, verify_backend

_WIDE, _NARROW = ("float64", "float32"), ("bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Change:
    """A measurement that differs between two probes; None: not made, or unknown there."""

    name: str
    before: float | bool | None
    after: float | bool | None
    unit: str

    def __str__(self) -> str:
        return f"{self.name}: {told(self.before, self.unit)} -> {told(self.after, self.unit)}"


@dataclasses.dataclass(frozen=True)
class Probe:
    """What `probe` measured.

    Attributes:
        platform, kind, jax_version, flags: of what: the device, JAX, and XLA_FLAGS.
        backend: the `BackendReport` of `verify_backend`.
        measurements: every `Measurement`, in a fixed order.
        seconds: how long it took.
    """

    platform: str
    kind: str
    jax_version: str
    backend: BackendReport
    measurements: tuple[Measurement, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing dangerous was found: error-free arithmetic holds, NaN and infinity are honoured."""
        honoured = all(m.value is not False for m in self.measurements if m.kind == "NaN and infinity honoured")
        return self.backend.ok and honoured

    def value(self, kind: str, dtype: str = "", case: str = "") -> float | bool | None:
        """One measured value.

        Raises:
            KeyError: there is no such measurement; `scalars` lists them.
        """
        return {(m.kind, m.dtype, m.case): m for m in self.measurements}[kind, dtype, case].value

    def scalars(self) -> dict[str, float]:
        """Every known value as a number (yes is 1), by kind/dtype/case."""
        return {m.name: float(m.value) for m in self.measurements if m.value is not None}

    def to_json(self, **options: Any) -> str:
        """As strict JSON (infinity is the string "inf"), which `Probe.from_json` reads; `options` go to `json.dumps`."""
        return strict_json(dataclasses.asdict(self) | {"ok": self.ok}, **options)

    @classmethod
    def from_json(cls, text: str) -> "Probe":
        """The probe that `to_json` wrote, perhaps on another machine.

        Raises:
            ValueError: the text is not a probe's JSON.
        """
        try:
            held = json.loads(text)
            held = held.get("probe", held)  # what `robustad doctor --json` writes
            held.pop("ok")
            findings = tuple(BackendFinding(**f) for f in held["backend"].pop("findings"))
            backend = BackendReport(**held.pop("backend"), findings=findings)
            made = tuple(_measurement(m) for m in held.pop("measurements"))
            return cls(**held, backend=backend, measurements=made)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"`text` is not the JSON of a probe ({type(error).__name__}: {error}); expected what `Probe.to_json` or "
                "`robustad doctor --json` wrote."
            ) from error

    def changes(self, other: "Probe") -> tuple[Change, ...]:
        """What is different in another probe: of another device, JAX version, or set of flags."""
        before, after = ({m.name: m for m in p.measurements} for p in (self, other))
        found = []
        for name in dict.fromkeys([*before, *after]):
            m, n = before.get(name), after.get(name)
            values = m.value if m else None, n.value if n else None
            if values[0] != values[1]:
                found.append(Change(name, *values, (m or n or _NONE).unit))
        return tuple(found)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


_NONE = Measurement("", "", "", None)


def _measurement(held: dict[str, Any]) -> Measurement:
    value = held.pop("value")
    return Measurement(**held, value=float(value) if isinstance(value, str) else value)


def probe(device: Device | str | None = None) -> Probe:
    """Measures the arithmetic of a device, by small programs whose exact results are known.

    Beside what `robustad.stability.verify_backend` proves (error-free transforms; what the compiler does to plain code), per
    dtype: whether x * y + z is rounded once, whether intermediates keep excess precision, subnormals, NaN and infinity,
    rounding of casts; the bits that matrix products use under each precision preset; the worst error of the elementary
    functions, in ulps, over wide ranges; accuracy, order dependence and repeatability of sums; and sums over devices, where
    there are three or more.

    Exact results are rational, or NumPy's: in float64 for narrower dtypes, in `longdouble` for float64, where that is wider.
    Arguments are the same in every probe, so that two of them can be compared: store `to_json`, and read it elsewhere by
    `Probe.from_json`.

    Args:
        device: one of `jax.local_devices()`, or a platform ("cpu", "gpu", "tpu"); default: where computations run.

    Returns:
        The `Probe`, frozen. It prints well. On a CPU it takes about 5 seconds, most of them for compilation.

    Raises:
        ValueError: no such device, or one of another process.
        TypeError: `device` is something else.

    Example:
        >>> probe("cpu").value("matmul: operands", "float32", "default")
        24.0
    """
    found = _on_device.find(device)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the probe itself tells
        backend = verify_backend(found.platform)
    made = _on_device.apart(found, lambda: tuple(_measurements(found, backend)))
    seconds = time.perf_counter() - started
    return Probe(found.platform, found.device_kind, jax.__version__, backend, made, seconds)


def _measurements(device: Device, backend: BackendReport) -> Iterator[Measurement]:
    for finding in backend.findings:
        yield Measurement(finding.name, "", "plain code", finding.present)
    for dtype in (*_WIDE, *_NARROW):
        yield from _probe_compiler.special_values(dtype)
        yield from _probe_compiler.subnormals(dtype)
        yield from _probe_compiler.roundings(dtype)
    for dtype in _NARROW:
        yield from _probe_compiler.casts(dtype)
    for dtype in (*_WIDE, *_NARROW):
        yield from _probe_compiler.matmuls(dtype)
    for dtype in (*_WIDE, *_NARROW):
        yield from _probe_functions.functions(dtype)
    for dtype in (*_WIDE, *_NARROW):
        yield from _probe_sums.sums(dtype)
    yield from _probe_sums.contractions()
    yield from _probe_sums.all_reduces(device)


def _lines(probe: Probe) -> Iterator[str]:
    yield f"{probe.platform}: {probe.kind}, jax {probe.jax_version}, probed in {probe.seconds:.1f} s"
    yield str(probe.backend)
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for m in probe.measurements:
        if m.case != "plain code":
            groups.setdefault((m.kind, m.case), []).append(m)
    for (kind, case), made in groups.items():
        yield f"{kind}{f', {case}' if case else ''}: " + "; ".join(f"{m.dtype} {m}" for m in made)
