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
from robustad.arithmetic._exact_origin import ExactOriginArithmetic, exact_origins
from robustad.arithmetic._origin import (
    MOST_SITES,
    Event,
    Invalid,
    OriginArithmetic,
    decode,
    without_loss,
)
from robustad.arithmetic._sample import SampleArithmetic
from robustad.arithmetic._shadow import MOVING
from robustad.diagnosis._accuracy import Accuracy, norm, wide
from robustad.diagnosis._arguments import AuditError
from robustad.diagnosis._program import Audited

log = logging.getLogger("robustad")

NOTED, MOST_CAUSES = 0.02, 12
"""From this share of some leaf's error on, a cause is worth a note, if it is among so many largest."""

DECISIVE = 0.25
"""A cause is one of the findings where at least this share of some leaf's squared error (or non-finite elements) is its."""


@dataclasses.dataclass(frozen=True, eq=False)
class Blamed:
    """An equation, what happened there, and the share of each output's error that comes from it.

    sample: the worst element that it hurt (see `robustad.arithmetic._sample.sample`). shows: the first equation behind it
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
    audited: Audited,
    wrong: Sequence[tuple[int, str, Accuracy | None, np.ndarray]],
    nonfinite: bool,
    bits: int | None = None,
) -> list[Blamed]:
    """The equations behind the outputs that are wrong, those with the largest shares first.

    `wrong` has (number of the output, its name, its accuracy or None for the value, its failing slices); `nonfinite`:
    whether one of them is not finite; `bits`: where float64 cannot be trusted, the precision of exact twins.
    """
    flow = audited.flow
    wanted = flow.equations(flow.ancestors(node for k, *_ in wrong for node in flow.outputs[k]))
    sites = [site for site in flow.sites.values() if site.path in wanted and _jaxpr.control(site.equation) is None]
    if len(sites) > MOST_SITES:
        raise AuditError(f"{len(sites)} equations are too many to track origins through: {MOST_SITES} are the most.")
    numbers = {site.path: k + 1 for k, site in enumerate(sites)}
    primal = flow.equations(flow.ancestors(flow.outputs[0]))
    found: list[Blamed] = []
    default = audited.value.precision or 53
    for precision in sorted({(a.precision if a else None) or default for _, _, a, _ in wrong}):
        log.info("tracking the origins of errors through %d equations", len(sites))
        outs = _origins(audited, numbers, precision, bits)
        groups: dict[Any, _Group] = {}
        for k, name, leaf, failing in wrong:
            if ((leaf.precision if leaf else None) or default) == precision:
                for (number, event, invalid), share in _shares(outs[k], failing).items():
                    site = sites[number - 1]
                    place = (site.location or site.path, site.path in primal)
                    group = groups.setdefault((place, event), _Group())
                    group.add(name, share, (number, event, invalid))
        found += _looked_at(audited, precision, _largest(list(groups.values())), sites, nonfinite, bits)
    return sorted(found, key=lambda b: -max(b.shares.values()))


def _origins(audited: Audited, numbers: dict[Path, int], precision: int, bits: int | None) -> list[Any]:
    """The outputs with their tags."""
    if (
        bits is None
    ):  # not one program: equation by equation, each kind of which is compiled once however often it occurs
        return audited.walked(OriginArithmetic(numbers, precision))(*audited.operands)[0]
    constants, inputs = audited.operands
    return exact_origins(audited.closed, [*constants, *inputs], ExactOriginArithmetic(numbers, precision), bits)


def _records(
    audited: Audited, events: Sequence[tuple[Path, int]], suspects: frozenset[Path], precision: int, bits: int | None
) -> dict[Path, Any]:
    """What is to be seen at some equations: see `SampleArithmetic`."""
    if bits is None:
        loops = frozenset(loop for path, _ in events for loop in audited.flow.sites[path].loops)
        looking = SampleArithmetic(tuple(events), suspects, precision, loops)
        return jax.jit(audited.walked(looking))(*audited.operands)[1]
    constants, inputs = audited.operands
    looking = ExactOriginArithmetic({}, precision, events, suspects)
    exact_origins(audited.closed, [*constants, *inputs], looking, bits)
    return looking.records


class _Group:
    """The equations of one statement, in the value's program or behind it, that suffer one event: they are one cause, their
    largest speaks for all."""

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self.keys: dict[tuple[int, int, int], float] = {}

    def add(self, name: str, share: float, key: tuple[int, int, int]) -> None:
        self.shares[name] = self.shares.get(name, 0.0) + share
        self.keys[key] = self.keys.get(key, 0.0) + share

    @property
    def share(self) -> float:
        return max(self.shares.values())

    @property
    def key(self) -> tuple[int, int, int]:
        return max(self.keys, key=lambda key: self.keys[key])


def _largest(groups: list[_Group]) -> list[_Group]:
    """Those that are worth a word: with a share of `NOTED` or more, at the most `MOST_CAUSES`, at the least the largest."""
    groups = sorted(groups, key=lambda group: -group.share)[:MOST_CAUSES]
    return [group for k, group in enumerate(groups) if k == 0 or group.share >= NOTED]


def _looked_at(
    audited: Audited, precision: int, groups: list[_Group], sites: list[Site], nonfinite: bool, bits: int | None
) -> list[Blamed]:
    """The groups, with the worst element of each."""
    if not groups:
        return []
    log.info("looking at what happened there")
    blamed = {(sites[group.key[0] - 1].path, group.key[1]) for group in groups}
    quiet = {path for path, event in blamed if nonfinite and event not in _NONFINITE}
    behind = {path: _behind(audited, path) for path in quiet}
    suspects = frozenset(p for paths in behind.values() for p in paths)
    records = _records(audited, sorted(blamed), suspects, precision, bits)
    found = []
    for group in groups:
        number, event, invalid = group.key
        site = sites[number - 1]
        sample = {k: np.asarray(v) for k, v in records[site.path][str(event)].items()}
        shows = [p for p in behind.get(site.path, ()) if p in records and bool(records[p]["born"])]
        first = audited.flow.sites[shows[0]] if shows else None
        klass = Invalid(invalid) if invalid else None
        found.append(Blamed(site, Event(event), klass, group.shares, precision, sample, first))
    return found


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


def _shares(out: Any, failing: np.ndarray) -> dict[tuple[int, int, int], float]:
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
    tags, which = np.unique(without_loss(tag), return_inverse=True)
    shares = np.bincount(which.ravel(), weight.ravel()) / max(float(weight.sum()), 1e-300)
    numbers, events, classes = decode(tags)
    return {
        (int(n), int(e), int(c)): float(share)
        for n, e, c, share in zip(numbers, events, classes, shares, strict=True)
        if n and share > 0
    }
