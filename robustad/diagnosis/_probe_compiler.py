"""What compiled code does to single operations: roundings merged or left out, subnormals, NaNs, matrix products, casts."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad.diagnosis import _device_profile
from robustad.diagnosis._measurement import Measurement, asked, bits, precision, wider

PRESETS = ("default", "high", "highest")
_SIZE = 64  # more than one vector register


def roundings(dtype: Any) -> Iterator[Measurement]:
    """Whether x * y + z is rounded once, and whether a sum in the dtype is rounded at all before its next use."""
    dtype, p = jnp.dtype(dtype), precision(dtype)
    one, ulp = np.ones(_SIZE, dtype), 2.0 ** (1 - p)
    x = one * dtype.type(1 + ulp * 2.0 ** (p // 2 - 1))
    z = -(x * x)  # NumPy rounds it

    def work() -> list[Any]:
        program = jax.jit(lambda x, z, one, small: (x * x + z, (one + small) - one))
        fused, kept = jax.device_get(program(x, z, one, one * dtype.type(ulp / 4)))
        inexact = np.any((x.astype(np.longdouble) ** 2 + z.astype(np.longdouble)) != 0)
        return [bool(np.any(fused != 0)) if inexact else None, bool(np.any(kept != 0))]

    return asked([("x * y + z rounded once", dtype.name, "", ""), ("excess precision", dtype.name, "", "")], work)


def subnormals(dtype: Any) -> Iterator[Measurement]:
    dtype = jnp.dtype(dtype)
    questions = [(f"subnormal {which} flushed", dtype.name, "", "") for which in ("operands", "results")]
    return asked(questions, lambda: _device_profile.subnormals(dtype))


def special_values(dtype: Any) -> Iterator[Measurement]:
    """Whether NaN and infinity are kept, and seen by the tests for them."""
    dtype = jnp.dtype(dtype)
    inf, zero = np.full(_SIZE, np.inf, dtype), np.zeros(_SIZE, dtype)

    def program(inf: Array, zero: Array) -> list[Array]:
        nan = inf - inf
        seen = [jnp.isnan(nan), nan != nan, ~jnp.isfinite(inf), ~(zero * inf == 0), jnp.isnan(zero / zero)]
        return [*seen, nan]

    def work() -> list[bool]:
        *seen, nan = jax.device_get(jax.jit(program)(inf, zero))
        return [all(np.all(s) for s in seen) and bool(np.all(np.isnan(nan.astype(np.float64))))]

    return asked([("NaN and infinity honoured", dtype.name, "", "")], work)


def casts(dtype: Any) -> Iterator[Measurement]:
    """Whether a cast of float32 to a narrower dtype rounds to nearest, ties to even, every time."""
    dtype = jnp.dtype(dtype)
    random = np.random.default_rng(0)
    x = random.uniform(1, 2, 4096).astype(np.float32)
    ties = (1 + (np.arange(64) + 0.5) * float(jnp.finfo(dtype).eps)).astype(np.float32)
    x = np.concatenate([x, ties, -ties])

    def work() -> list[bool]:
        run = jax.jit(lambda x: x.astype(dtype))
        return [all(np.asarray(run(x)).tobytes() == x.astype(dtype).tobytes() for _ in range(3))]

    return asked([("cast from float32 to nearest, ties to even", dtype.name, "", "")], work)


def matmuls(dtype: Any) -> Iterator[Measurement]:
    r"""Bits of the operands that a product of matrices uses, and right bits of long ones, under each precision preset.

    The first: one matrix is diagonal, so that each element of the result is one product, and its error that of rounding the
    operands. The second: 4096 positive terms an element, where accumulation counts too. Both give float32 or wider.
    """
    dtype = jnp.dtype(dtype)
    out = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    random = np.random.default_rng(0)
    b = random.uniform(1, 2, (128, 128)).astype(dtype)
    diagonal = np.diag(random.uniform(1, 2, 128)).astype(dtype)
    long = random.uniform(0, 1, (8, 4096)).astype(dtype), random.uniform(0, 1, (4096, 8)).astype(dtype)

    def product(preset: str, a: Array, b: Array) -> Array:
        return lax.dot(a, b, precision=preset, preferred_element_type=out)

    def work() -> list[float]:
        wide = wider(dtype)
        exact = np.diag(diagonal).astype(wide)[:, None] * b.astype(wide), long[0].astype(wide) @ long[1].astype(wide)
        program = jax.jit(lambda pairs: [product(preset, *pair) for preset in PRESETS for pair in pairs])
        got = jax.device_get(program([(diagonal, b), long]))
        return [bits(g, exact[k % 2], out) for k, g in enumerate(got)]

    kinds = "matmul: operands", "matmul: 4096 terms"
    return asked([(kind, dtype.name, preset, "bits") for preset in PRESETS for kind in kinds], work)
