"""Branches that rounding took: where the exact program decides otherwise, and its value is another for that."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from robustad._jaxpr import Path, Site
from robustad.arithmetic._free import FreeArithmetic
from robustad.arithmetic._shadow import Shadow
from robustad.diagnosis._accuracy import bits_lost, norm, wide
from robustad.diagnosis._finding import Finding
from robustad.diagnosis._program import Audited
from robustad.diagnosis._ranking import Ranked
from robustad.diagnosis._reader import Reader

log = logging.getLogger("robustad")


@dataclasses.dataclass(frozen=True, eq=False)
class Divergence:
    """outputs: value and gradient leaves of the float64 program with decisions of its own. sites: the equations that decide
    otherwise, and for how many elements, in the order of the program. decides: whether the value is another one, not only
    a kink's other side.
    """

    outputs: list[np.ndarray]
    sites: list[tuple[Site, int]]
    decides: bool


def divergence(
    audited: Audited, outputs: Sequence[Shadow], records: Mapping[Path, jax.Array], threshold: float
) -> Divergence | None:
    """None where every decision is the exact program's, or those that are not change nothing that counts."""
    counts = [(s, int(records[path][0])) for path, s in audited.flow.sites.items() if path in audited.decisions]
    sites = [(site, n) for site, n in counts if n]
    if not sites:
        return None
    log.info("the program in float64 with decisions of its own: %d of the working ones differ", len(sites))
    free, _ = jax.jit(audited.walked(FreeArithmetic()))(*audited.operands)
    free = [np.asarray(x) for x in free]
    lost = [
        bits_lost(_wide(out.high), x, known.precision or 53) > threshold * (known.precision or 53)
        for out, x, known in zip(outputs, free, audited.outputs)
        if np.isfinite(x).all()
    ]
    if len(lost) < len(free) or not any(lost):
        return None
    return Divergence(free, sites, lost[0])


def with_decision(
    ranked: Mapping[str, Ranked], numbers: Mapping[str, int], found: Divergence, followed: Sequence[Shadow]
) -> dict[str, Ranked]:
    """What the wrong decision contributes to errors of outputs, beside the errors of the branch that was taken.

    ranked: what makes the outputs differ from `followed`, their twins along the program's own decisions. numbers: of the
    outputs, by name. The first wrong decision stands for all.
    """
    first = found.sites[0][0].path
    made = dict(ranked)
    for name, k in numbers.items():
        out, x = followed[k], found.outputs[k]
        working = _wide(out.working)
        error, along = (working - x).ravel(), (working - _wide(out.high)).ravel()
        size, rounding = norm(error), norm(along)
        if not (np.isfinite(size) and np.isfinite(rounding) and size > 0):
            continue
        rest = float(np.vdot(error / size, along / size).real)
        own = ranked.get(name, Ranked(rounding, {}, 0.0))
        shares = {path: share * rest for path, share in own.shares.items()}
        shares[first] = shares.get(first, 0.0) + 1 - rest
        made[name] = Ranked(size, shares, own.condition * rounding / size)
    return made


def _wide(x: object) -> np.ndarray:
    return np.asarray(x).astype(wide(np.asarray(x)))


def divergences(reader: Reader, found: Divergence, reaches: Sequence[str], most: float | None) -> list[Finding]:
    """One for each statement that decides otherwise, the first first."""
    made: dict[object, Finding] = {}
    for site, n in found.sites:
        where = reader.statement(site)
        key = (where.file, where.line) if where else site.path
        if key in made:
            continue
        elements = f"{n} element{'s' * (n != 1)}"
        made[key] = Finding(
            kind="branch-divergence",
            phase="forward",
            file=where.file if where else "<unknown>",
            line=where.line if where else 0,
            function=where.function if where else "",
            primitive=site.primitive,
            bits_lost=most,
            reaches=tuple(reaches),
            cause=f"`{site.primitive}` decides otherwise than in exact arithmetic for {elements}: what it decides by is "
            "nearer to its threshold than its own error, and the program goes on along another branch.",
            remedy="compute what is compared without cancellation or in a wider dtype, or make the branches agree where "
            "they meet.",
        )
    return list(made.values())
