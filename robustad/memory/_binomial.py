r"""The optimum of binomial checkpointing (Griewank 1992; Griewank and Walther 2000).

With s stored states, the one before the first step among them, and no step advanced more than r times,
\(\beta(s, r) = \binom{s + r}{s}\) steps can be reversed. To reverse n steps takes at least
\(t(n, s) = r n - \beta(s + 1, r - 1)\) advances, where \(\beta(s, r - 1) < n \le \beta(s, r)\).
"""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


@functools.lru_cache(maxsize=4096)
def repetitions(n: int, s: int) -> int:
    """The least r with n ≤ β(s, r): how often the most repeated step is advanced."""
    if s == 1:
        return max(n - 1, 0)
    r = 0
    while math.comb(s + r, s) < n:
        r += 1
    return r


def advances(n: int, s: int) -> int:
    """t(n, s): the least number of advances that reverses n steps with s stored states."""
    if n <= 1:
        return 0
    r = repetitions(n, s)
    return r * n - math.comb(s + r, s + 1)


def split(n: int, s: int) -> int:
    """How far to advance before the next state is stored: of n steps to reverse, with s states, the first of them stored.

    Both parts stay within their binomial bounds: the first within β(s, r - 1), the second within β(s - 1, r).
    """
    r = repetitions(n, s)
    return min(math.comb(s + r - 1, s), n - math.comb(s + r - 2, s - 1))


def bounds(n: int, s: int, r: int) -> np.ndarray:
    """min(β(i, k), n) for i ≤ s and k ≤ r, int32: what `traced_split` looks up."""
    table = np.ones((s + 1, r + 1), np.int64)
    along = (
        table if s <= r else table.T
    )  # β(i, k) is the sum of β(i - 1, j) over j ≤ k, and the same the other way round
    for i in range(1, len(along)):
        along[i] = np.minimum(np.cumsum(along[i - 1]), n)
    return table.astype(np.int32)


def traced_split(table: np.ndarray, n: Array, s: Array) -> Array:
    """`split` of traced numbers, 2 ≤ s and 2 ≤ n ≤ β(s, r), within the table's."""
    rows = jnp.asarray(table)
    own, fewer = (lax.dynamic_index_in_dim(rows, i, keepdims=False) for i in (s, s - 1))
    r = jnp.sum(own < n, dtype=jnp.int32)
    return jnp.minimum(own[r - 1], n - fewer[r - 1])
