"""What compensated sums cost beside `jnp.sum` and `jnp.dot`, as ratios.

python experiments/benchmarks/sums.py --json sums.json
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from ratios import Case, main

from robustad import stability as st

N = 10**7
FLAT, ODD, WIDE, TALL, SQUARE = (N,), (N - 3,), (1000, N // 1000), (N // 1000, 1000), (512, 512)


def random(dtype: str, *shapes: tuple[int, ...]) -> Callable[[], tuple[Array, ...]]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return lambda: tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes))


def along(function: Callable[..., Array], axis: int) -> Callable[[Array], Array]:
    return lambda x: function(x, axis)


def pair(name: str, ours: Callable, plain: Callable, *shapes: tuple[int, ...], f32: float | None, f64: float | None):
    for bar, dtype in ((f32, "float32"), (f64, "float64")):
        yield Case(f"{name}, {dtype}", ours, plain, random(dtype, *shapes), bar, dtype)


def cases():
    total, dot, product = st.compensated_sum, st.compensated_dot, st.compensated_matmul
    rows, columns = (along(total, 1), along(jnp.sum, 1)), (along(total, 0), along(jnp.sum, 0))
    yield from pair("sum", total, jnp.sum, FLAT, f32=1.8, f64=4.0)
    yield from pair("dot", dot, jnp.dot, FLAT, FLAT, f32=2.5, f64=None)
    yield from pair("sum, odd length", total, jnp.sum, ODD, f32=None, f64=None)
    yield from pair("rows of 1000 x 10000", *rows, WIDE, f32=None, f64=None)
    yield from pair("rows of 10000 x 1000", *rows, TALL, f32=None, f64=None)
    yield from pair("columns of 10000 x 1000", *columns, TALL, f32=None, f64=None)
    yield from pair("mean", st.compensated_mean, jnp.mean, FLAT, f32=None, f64=None)
    yield from pair("pairwise", st.pairwise_sum, jnp.sum, FLAT, f32=None, f64=None)
    yield from pair("sum of 1000", total, jnp.sum, (1000,), f32=None, f64=None)
    yield from pair("matmul of 512", product, jnp.matmul, SQUARE, SQUARE, f32=None, f64=None)
    yield from pair("cumsum of 1e6", st.compensated_cumsum, jnp.cumsum, (N // 10,), f32=None, f64=None)


if __name__ == "__main__":
    main(__doc__, cases(), repeats=31)
