"""What the walk keeps of the decisions of one equation, over its elements and iterations."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad.diagnosis._predicates import Decisions, steps, widened

CLOSEST, DIVERGING = 0, 1


def record(found: Decisions, depth: int) -> dict[str, Array]:
    """What is kept of the decisions of an equation in `depth` loops.

    counts: of decisions, of those on a NaN, of those that float64 takes otherwise. Then of the closest decision and of the
    one most at odds with float64: its score (higher is closer, or more at odds; -inf where there is none), the pair and its
    twin, its place among the flattened decisions, the iteration of each loop.
    """
    pairs = found.left, found.right, found.true_left, found.true_right, found.otherwise, jnp.asarray(found.far)
    shape = jnp.broadcast_shapes(*(v.shape for v in pairs))
    a, b, x, y, otherwise, far = (jnp.broadcast_to(v, shape).ravel() for v in pairs)
    if not a.size:
        return blank(depth)
    unknown = jnp.isnan(a) | jnp.isnan(b)
    endless = jnp.isinf(a) & (a == b)  # two masked elements: rounding does not part them
    otherwise = otherwise & ~unknown & ~jnp.isnan(x) & ~jnp.isnan(y)
    distance = jnp.where(unknown | endless | far, jnp.inf, steps(a, b))
    apart = jnp.where(otherwise, steps(x.astype(a.dtype), y.astype(a.dtype)), -jnp.inf)
    scores = jnp.stack([-distance, apart])
    at = jnp.argmax(scores, 1)
    counted = jnp.sum(jnp.stack([jnp.ones_like(unknown), unknown, otherwise]), 1, dtype=np.int64)
    return {
        "counts": counted,
        "score": jnp.take_along_axis(scores, at[:, None], 1)[:, 0],
        "values": jnp.stack([widened(a), widened(b), x, y], 1)[at],
        "place": at.astype(np.int64),
        "iteration": jnp.full((2, depth), -1, np.int64),
    }


def blank(depth: int) -> dict[str, Array]:
    """The record of an equation that has not run."""
    return {
        "counts": jnp.zeros(3, np.int64),
        "score": jnp.full(2, -jnp.inf),
        "values": jnp.full((2, 4), jnp.nan),
        "place": jnp.full(2, -1, np.int64),
        "iteration": jnp.full((2, depth), -1, np.int64),
    }


def merged(old: dict[str, Array], new: dict[str, Array]) -> dict[str, Array]:
    """One record of two."""
    better = new["score"] > old["score"]

    def pick(k: str) -> Array:
        return jnp.where(better.reshape(2, *[1] * (new[k].ndim - 1)), new[k], old[k])

    return {"counts": old["counts"] + new["counts"]} | {k: pick(k) for k in ("score", "values", "place", "iteration")}
