"""What order-free reductions of 1e7 float32 cost beside JAX's own, as ratios.

python experiments/benchmarks/reproducible.py --json reproducible.json
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from ratios import Case, main

from robustad import stability as st

N, SEGMENTS, SIDE = 10**7, 1000, 512


def random(*shape: int) -> Array:
    return jax.random.normal(jax.random.key(sum(shape)), shape, jnp.float32)


def cases():
    def flat():
        return (random(N),)

    def rows():
        return (random(100, N // 100),)

    def vectors():
        return random(N), random(N)[::-1]

    def matrices():
        return random(SIDE, SIDE), random(SIDE, SIDE).T

    def segments():
        return random(N), jax.random.randint(jax.random.key(1), (N,), 0, SEGMENTS, jnp.int32)

    def segments_of_rows():
        return random(2**15, 128), jax.random.randint(jax.random.key(1), (2**15,), 0, SEGMENTS, jnp.int32)

    def by_segment(function):
        return lambda x, ids: function(x, ids, SEGMENTS)

    def sliced(slices):
        return functools.partial(st.reproducible_dot, slices=slices)

    yield Case("sum", st.reproducible_sum, jnp.sum, flat, 3.0)
    yield Case("segment_sum", by_segment(st.segment_sum), by_segment(jax.ops.segment_sum), segments, 4.0)
    yield Case("dot, 2 slices", sliced(2), jnp.dot, vectors, 4.0)
    yield Case("dot, exact", sliced(None), jnp.dot, vectors)
    yield Case("mean", st.reproducible_mean, jnp.mean, flat)
    for axis in (0, 1):
        ours, plain = (functools.partial(f, axis=axis) for f in (st.reproducible_sum, jnp.sum))
        yield Case(f"sum of 100 x 100000 over axis {axis}", ours, plain, rows)
    # of 2^k terms XLA would merge the stages of a reduction, if it could
    yield Case("sum of 2^22", st.reproducible_sum, jnp.sum, lambda: (random(2**22),))
    yield Case(
        "segment_sum, rows of 128", by_segment(st.segment_sum), by_segment(jax.ops.segment_sum), segments_of_rows
    )
    yield Case("global norm", st.reproducible_global_norm, jnp.linalg.norm, flat)
    for slices in (2, 3):
        yield Case(f"matmul of 512, {slices} slices", sliced(slices), jnp.matmul, matrices)


if __name__ == "__main__":
    main(__doc__, cases(), repeats=21)
