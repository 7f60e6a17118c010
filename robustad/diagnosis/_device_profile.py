"""What a device is: its kind and memory, the dtypes that it computes in, and the settings that change its numbers."""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jax import Array, lax

from robustad.diagnosis import _on_device
from robustad.diagnosis._on_device import Device

FLOATS = ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")

_SETTINGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
_NUMERIC = re.compile(
    "fast_m|ftz|excess_precision|disable_hlo_passes|determin|tf32|reduced_precision|nans|infs|accurate"
)


@dataclasses.dataclass(frozen=True)
class DtypeSupport:
    """How a device computes in one floating dtype. None: not known.

    Attributes:
        name: the dtype.
        arithmetic: of x * y + y: "native", "emulated" (in a wider dtype, rounded to this one), or "unsupported".
        matmul: the same of a matrix product with operands of this dtype, accumulated in float32 or wider.
        flushes_inputs: whether a subnormal operand counts as 0.
        flushes_outputs: whether a subnormal result becomes 0.
    """

    name: str
    arithmetic: str | None
    matmul: str | None
    flushes_inputs: bool | None
    flushes_outputs: bool | None


@dataclasses.dataclass(frozen=True)
class DeviceProfile:
    """What `device_profile` found. None: not known.

    Attributes:
        platform, kind: "cpu", "gpu" or "tpu", and the model of the device.
        count, local_count, processes: devices in all, those of this process, and how many processes there are.
        memory_kinds: what the `memory_kind` of a sharding may be, the default first.
        memory_bytes: what JAX may use of the device's memory; on a CPU all that the machine has.
        dtypes: a `DtypeSupport` of each floating dtype.
        x64: whether float64 is on (`jax_enable_x64`) where the profile was asked for.
        matmul_precision: the setting `jax_default_matmul_precision`; None leaves it to the platform: full precision on a
            CPU, TF32 on recent GPUs, bfloat16 passes on a TPU. What it amounts to is measured by `probe`.
        settings: XLA's flags and the environment variables that change numbers, as they were given.
        jax_version, jaxlib_version: what runs.
    """

    platform: str
    kind: str
    count: int
    local_count: int
    processes: int
    memory_kinds: tuple[str, ...]
    memory_bytes: int | None
    dtypes: tuple[DtypeSupport, ...]
    x64: bool
    matmul_precision: str | None
    settings: tuple[str, ...]
    jax_version: str
    jaxlib_version: str

    def dtype(self, name: Any) -> DtypeSupport:
        """The support of one dtype.

        Raises:
            KeyError: it is not in the profile.
        """
        return {d.name: d for d in self.dtypes}[jnp.dtype(name).name]

    def to_json(self, **options: Any) -> str:
        """As JSON; `options` are passed to `json.dumps`."""
        return json.dumps(dataclasses.asdict(self), **options)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def device_profile(device: Device | str | None = None) -> DeviceProfile:
    """What a device is, as far as numbers depend on it.

    Which dtypes are native is read from small programs that are compiled for the device; that subnormals are flushed is
    measured. What is not known is None. The first call for a device takes about a second.

    Args:
        device: one of `jax.local_devices()`, or a platform ("cpu", "gpu", "tpu"); default: where computations run.

    Returns:
        The profile, frozen. It prints well.

    Raises:
        ValueError: no such device, or one of another process.
        TypeError: `device` is something else.

    Example:
        >>> profile = device_profile("cpu")
        >>> profile.platform, profile.dtype("float32").arithmetic, profile.dtype("float8_e5m2").arithmetic
        ('cpu', 'native', 'emulated')
    """
    found = _on_device.find(device)
    default = _known(lambda: found.default_memory().kind)
    kinds = _known(lambda: [m.kind for m in found.addressable_memories()]) or []
    return DeviceProfile(
        platform=found.platform,
        kind=found.device_kind,
        count=jax.device_count(found.platform),
        local_count=jax.local_device_count(found.platform),
        processes=jax.process_count(found.platform),
        memory_kinds=tuple(sorted(kinds, key=lambda kind: (kind != default, kind))),
        memory_bytes=_memory_bytes(found),
        dtypes=_dtypes(found, os.environ.get("XLA_FLAGS", "")),
        x64=_on_device.setting("jax_enable_x64"),
        matmul_precision=_on_device.setting("jax_default_matmul_precision"),
        settings=_settings(),
        jax_version=jax.__version__,
        jaxlib_version=jaxlib.version.__version__,
    )


def _known(ask: Callable[[], Any]) -> Any:
    """What a backend says, or None where it does not implement the question."""
    try:
        return ask()
    except Exception:  # each backend has its own words for it
        return None


def _memory_bytes(device: Device) -> int | None:
    stats = _known(device.memory_stats) or {}
    if device.platform == "cpu" and "bytes_limit" not in stats:
        return _known(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return stats.get("bytes_limit")


def _settings() -> tuple[str, ...]:
    """NAME=value for every flag and variable that is set and may change numbers."""
    found = []
    for variable in _SETTINGS:
        for flag in os.environ.get(variable, "").split():
            if not flag.startswith("--") or _NUMERIC.search(flag):
                found.append(flag if flag.startswith("--") else f"{variable}={flag}")
    return tuple(found)


# ------------------------------------------------------------------------------------------------------ dtypes


@functools.cache
def _dtypes(device: Device, flags: str) -> tuple[DtypeSupport, ...]:
    return _on_device.apart(device, lambda: tuple(_support(name) for name in FLOATS))


def _support(name: str) -> DtypeSupport:
    dtype = jnp.dtype(name)
    wide = np.promote_types(dtype, np.float32) if name in ("float64", "float32") else np.dtype(np.float32)
    x = np.ones((8, 8), dtype)
    arithmetic = _executed(lambda x, y: x * y + y, x)
    matmul = _executed(lambda x, y: lax.dot(x, y, preferred_element_type=wide), x)
    flushed = _known(lambda: subnormals(dtype)) if arithmetic != "unsupported" else None
    return DtypeSupport(name, arithmetic, matmul, *(flushed or (None, None)))


def _executed(f: Callable[[Array, Array], Array], x: np.ndarray) -> str | None:
    """Whether the compiled program computes in the operands' dtype (TPUs split float64 into pairs of float32: X64)."""
    try:
        compiled = jax.jit(f).lower(x, x).compile()
        jax.block_until_ready(compiled(x, x))
    except Exception:  # whatever a backend says of a dtype that it does not have
        return "unsupported"
    text = _known(compiled.as_text)
    if not text:
        return None
    return "emulated" if "convert(" in text or "X64" in text else "native"


def subnormals(dtype: np.dtype) -> tuple[bool, bool]:
    """Whether a device takes subnormal operands for 0, and whether it makes subnormal results 0."""
    info = jnp.finfo(dtype)
    size = 64  # more than one vector register
    smallest, normal = np.full(size, info.smallest_subnormal, dtype), np.full(size, info.smallest_normal, dtype)
    large, half = np.full(size, 2.0 ** (info.nmant + 2), dtype), np.full(size, 0.5, dtype)
    up, down = jax.device_get(jax.jit(lambda a, b, c, d: (a * b, c * d))(smallest, large, normal, half))
    return bool(np.any(up.astype(np.float64) == 0)), bool(np.any(down.astype(np.float64) == 0))


# ------------------------------------------------------------------------------------------------ presentation


def _lines(profile: DeviceProfile) -> Iterator[str]:
    here = "" if profile.local_count == profile.count else f", {profile.local_count} of them in this process"
    count = f"{profile.count} device{'s' * (profile.count != 1)}{here}"
    yield f"{profile.platform}: {profile.kind}, {count}, {profile.processes} process{'es' * (profile.processes != 1)}"
    memory = "unknown" if profile.memory_bytes is None else f"{profile.memory_bytes / 2**30:.1f} GiB"
    yield f"memory  {memory}; kinds: {', '.join(profile.memory_kinds) or 'unknown'}"
    precision = profile.matmul_precision or "the platform's"
    x64 = "on" if profile.x64 else "off"
    yield f"jax {profile.jax_version}, jaxlib {profile.jaxlib_version}; x64 {x64}; matmul precision {precision}"
    yield f"flags that change numbers: {' '.join(profile.settings) or 'none'}"
    yield f"{'dtype':<16}{'arithmetic':<14}{'matmul':<14}subnormals"
    for d in profile.dtypes:
        yield f"{d.name:<16}{d.arithmetic or 'unknown':<14}{d.matmul or 'unknown':<14}{flushing(d)}"


def flushing(d: DtypeSupport) -> str:
    """What becomes of the subnormals of a dtype, in words."""
    if d.flushes_inputs is None or d.flushes_outputs is None:
        return "unknown"
    flushed = ["operands"] * d.flushes_inputs + ["results"] * d.flushes_outputs
    return f"{' and '.join(flushed)} flushed to 0" if flushed else "kept"
