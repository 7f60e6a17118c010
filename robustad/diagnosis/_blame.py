"""Which equations are to blame for a wrong gradient: origins are tracked, then the worst element of each is looked at.

This is the second pass, run only where the first one finds a leaf wrong. It says what happened where; what that means to
the user is `_causes`'.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from robustad import _jaxpr
from robustad._jaxpr import Path, Site
from robustad.arithmetic._origin import Event, Invalid, OriginArithmetic, SampleArithmetic, decode
from robustad.arithmetic._shadow import MOVING
from robustad.diagnosis._accuracy import Accuracy, norm, wide
from robustad.diagnosis._first_pass import Audited

log = logging.getLogger("robustad")

DECISIVE = 0.25
"""A cause is one of the findings where at least this share of some leaf's squared error (or non-finite elements) is its."""


@dataclasses.dataclass(frozen=True, eq=False)
class Blamed:
    """An equation, what happened there, and the share of each output's error that comes from it.

    sample: the worst element that it hurt (see `robustad.arithmetic._origin.sample`). shows: the first equation behind it
    that makes a non-finite value of finite ones, where it makes none itself.
    """

    site: Site
    event: Event
    invalid: Invalid | None
    shares: dict[str, float]
    precision: int
    sample: dict[str, np.ndarray]
    shows: Site | None


def blame(
    audited: Audited, wrong: Sequence[tuple[int, str, Accuracy | None, np.ndarray]], nonfinite: bool
) -> list[Blamed]:
    """The equations behind the outputs that are wrong, those with the largest shares first.

    `wrong` has (number of the output, its name, its accuracy or None for the value, its failing slices); `nonfinite`:
    whether one of them is not finite.
    """
    sites = [site for site in audited.flow.sites.values() if _jaxpr.control(site.equation) is None]
    numbers = {site.path: k + 1 for k, site in enumerate(sites)}
    found: list[Blamed] = []
    default = audited.value.precision or 53
    for precision in sorted({(a.precision if a else None) or default for _, _, a, _ in wrong}):
        arithmetic = OriginArithmetic(numbers, precision)
        log.info("tracking the origins of errors through %d equations", len(audited.flow.sites))
        # Not one program: equation by equation, each kind of which is compiled once however often it occurs.
        outs, _ = audited.walked(arithmetic)(*audited.operands)
        shares: dict[tuple[int, ...], dict[str, float]] = {}
        for k, name, leaf, failing in wrong:
            if ((leaf.precision if leaf else None) or default) == precision:
                for key, share in _shares(outs[k], failing).items():
                    shares.setdefault(key, {})[name] = share
        kept = {key: by for key, by in shares.items() if key[0] > 0 and max(by.values()) >= 0.02}
        blamed = {(sites[number - 1].path, event) for number, event, _ in kept}
        quiet = {path for path, event in blamed if nonfinite and event not in _NONFINITE}
        behind = {path: _behind(audited, path) for path in quiet}
        suspects = frozenset(p for paths in behind.values() for p in paths)
        log.info("looking at %d of them", len(blamed))
        looking = SampleArithmetic(tuple(sorted(blamed)), suspects, precision)
        _, records = jax.jit(audited.walked(looking))(*audited.operands)
        for (number, event, invalid), by in kept.items():
            site = sites[number - 1]
            shows = [p for p in behind.get(site.path, ()) if bool(records[p]["born"])]
            found.append(
                Blamed(
                    site,
                    Event(event),
                    Invalid(invalid) if invalid else None,
                    by,
                    precision,
                    {k: np.asarray(v) for k, v in records[site.path][str(event)].items()},
                    audited.flow.sites[shows[0]] if shows else None,
                )
            )
    return sorted(found, key=lambda b: -max(b.shares.values()))


_NONFINITE = (Event.OVERFLOW, Event.POLE, Event.INVALID)


def _behind(audited: Audited, path: Path, most: int = 24) -> list[Path]:
    """The computing equations nearest behind the one at `path`, in the order in which values reach them."""
    found: dict[Path, None] = {}
    frontier = [path]
    while frontier and len(found) < most:
        users = [site for p in frontier for site in audited.flow.users(p) if site.path not in found]
        found.update(dict.fromkeys(site.path for site in users))
        frontier = [site.path for site in users]
    sites = audited.flow.sites
    return [
        p
        for p in list(found)[:most]
        if sites[p].primitive not in MOVING and any(_jaxpr.is_inexact(v) for v in sites[p].equation.outvars)
    ]


def _shares(out: Any, failing: np.ndarray) -> dict[tuple[int, ...], float]:
    """(equation number, event, invalid class): its share of an output's error."""
    w, s, tag = (np.asarray(x) for x in (out.working, out.high, out.tag))
    w, s = w.astype(wide(w)), s.astype(wide(s))
    rows = len(failing)
    w, s, tag = (x.reshape(rows, -1)[failing] for x in (w, s, tag))
    if not np.isfinite(w).all():
        weight = (~np.isfinite(w)).astype(float)
    else:
        gap = np.abs(w - np.where(np.isfinite(s), s, w))
        sizes = np.array([norm(row) or 1.0 for row in gap])[:, None]
        weight = (gap / sizes) ** 2
    number, event, invalid = decode(tag)
    total: dict[tuple[int, ...], float] = {}
    for key in {tuple(int(x) for x in k) for k in np.stack([number, event, invalid], -1).reshape(-1, 3)}:
        mine = (number == key[0]) & (event == key[1]) & (invalid == key[2])
        total[key] = float(weight[mine].sum() / max(weight.sum(), 1e-300))
    return {key: share for key, share in total.items() if share > 0}
