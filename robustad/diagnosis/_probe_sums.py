"""How a device adds up: accuracy, dependence on order, equality of repeated runs, and sums over devices."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, PartitionSpec

from robustad.diagnosis._measurement import Measurement, asked, bits, precision
from robustad.diagnosis._on_device import Device

TERMS = 2**16
RUNS = 4


def sums(dtype: Any) -> Iterator[Measurement]:
    """Right bits of sums of 2¹⁶ random positive terms made in four ways, and what their order and repetition change."""
    dtype = jnp.dtype(dtype)
    random = np.random.default_rng(0)
    x = (random.uniform(1, 2, TERMS) / 4096).astype(dtype)  # float16 holds their sum
    exact = math.fsum(x.astype(np.float64))
    zeros = np.zeros(TERMS, np.int32)

    def program(x: Array, ones: Array, index: Array) -> list[Array]:
        total = jnp.zeros((8,), dtype).at[index].add(x)[0]
        return [jnp.sum(x), jnp.cumsum(x)[-1], jnp.dot(x, ones), total]

    kinds = "sum", "cumsum", "dot", "scatter-add"
    questions = [("sum of 65536 terms", dtype.name, kind, "bits") for kind in kinds]
    questions += [("sum: spread over 8 orders", dtype.name, "", "ulp")]
    questions += [("same bits in every run", dtype.name, kind, "") for kind in kinds]

    def work() -> list[Any]:
        run = jax.jit(program)
        runs = [jax.device_get(run(x, np.ones(TERMS, dtype), zeros)) for _ in range(RUNS)]
        orders = [x, *(random.permutation(x) for _ in range(7))]
        totals = [float(jax.device_get(run(y, np.ones(TERMS, dtype), zeros))[0]) for y in orders]
        ulp = 2.0 ** (math.frexp(exact)[1] - precision(dtype))
        same = [all(r[k].tobytes() == runs[0][k].tobytes() for r in runs) for k in range(len(kinds))]
        return [*(bits(r, exact, dtype) for r in runs[0]), (max(totals) - min(totals)) / ulp, *same]

    return asked(questions, work)


def contractions() -> Iterator[Measurement]:
    """Whether a product of matrices has the same bits in every run."""
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 512, 512)).astype(np.float32)

    def work() -> list[bool]:
        run = jax.jit(jnp.dot)
        return [len({np.asarray(run(a, b)).tobytes() for _ in range(RUNS)}) == 1]

    return asked([("same bits in every run", "float32", "matmul", "")], work)


def all_reduces(device: Device) -> Iterator[Measurement]:
    """Right bits of a sum over the devices of this process; with fewer than three, one rounding hides the difference."""
    devices = [d for d in jax.local_devices(backend=device.platform) if d.platform == device.platform]
    random = np.random.default_rng(0)
    terms = random.uniform(1, 2, (len(devices), 1024))
    names = "float32", "bfloat16", "float16"

    def work() -> list[float | None]:
        if len(devices) < 3:
            return [None] * len(names)
        mesh = jax.make_mesh((len(devices),), ("i",), axis_types=(AxisType.Auto,), devices=devices)
        data = [terms.astype(jnp.dtype(name)) for name in names]
        run = jax.shard_map(
            lambda xs: [lax.psum(x, "i") for x in xs], mesh=mesh, in_specs=PartitionSpec("i"), out_specs=PartitionSpec()
        )
        return [bits(got, x.astype(np.float64).sum(0), x.dtype) for got, x in zip(jax.jit(run)(data), data)]

    return asked([("all-reduce", name, f"{len(devices)} devices", "bits") for name in names], work)
