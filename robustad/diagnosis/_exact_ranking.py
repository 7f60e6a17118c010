"""The ranking where float64 is no reference: of small programs, beside exact twins."""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad._eager import UnsupportedError
from robustad.arithmetic._ball_cost import TooLargeError
from robustad.arithmetic._exact_contribution import exact_distances
from robustad.diagnosis._accuracy import norm
from robustad.diagnosis._leaves import precision_of
from robustad.diagnosis._program import Audited
from robustad.diagnosis._ranking import Ranked

log = logging.getLogger("robustad")


def exact_rank(audited: Audited, wanted: Sequence[tuple[int, str, np.ndarray]], bits: int) -> dict[str, Ranked]:
    """`_ranking.rank` beside twins of `bits` of precision; empty where the program is too large for it."""
    sites = list(audited.flow.sites.values())
    constants, inputs = audited.operands
    try:
        run = exact_distances(
            audited.closed, [*constants, *inputs], {site.path: k for k, site in enumerate(sites)}, bits
        )
    except (UnsupportedError, TooLargeError) as reason:
        log.debug("no ranking: %s", reason)
        return {}

    def distances(moves: Sequence[Array | None], shifts: Sequence[Array]) -> tuple[list[Any], list[Any]]:
        outs = run(moves, shifts)
        return [outs[k].distance for k, *_ in wanted], [outs[k].gap for k, *_ in wanted]

    twins = [_twin(x) for x in [*constants, *inputs]]
    start = [None if x is None else jnp.zeros_like(x) for x in twins]
    moved, back, gaps = jax.vjp(distances, start, [jnp.ones((), np.float64)] * len(sites), has_aux=True)
    ranked = {}
    for k, (_, name, failing) in enumerate(wanted):
        gap = np.asarray(gaps[k])
        error = gap * failing.reshape(-1, *(1 for _ in gap.shape[1:])) if gap.shape else gap
        size = norm(error)
        if not (size > 0 and np.isfinite(size)):
            continue
        directions = [jnp.zeros_like(d) for d in moved]
        directions[k] = jnp.asarray(error / size / size)
        slopes, shares = back(directions)
        rounded = [
            2.0 ** -precision_of(x.dtype) * norm(np.asarray(slope) * np.asarray(high))
            for x, high, slope in zip(inputs, twins[len(constants) :], slopes[len(constants) :], strict=True)
            if high is not None
        ]
        parts = {site.path: float(x) for site, x in zip(sites, jax.device_get(shares)) if x}
        if np.isfinite(list(parts.values())).all():
            ranked[name] = Ranked(size, parts, norm(np.array(rounded)))
    return ranked


def _twin(x: Array) -> Array | None:
    """An array as its twin, or None."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return None
    return x.astype(np.complex128 if jnp.iscomplexobj(x) else np.float64)
