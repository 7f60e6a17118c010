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
from robustad._jaxpr import Site
from robustad.arithmetic._origin import Event, Invalid, OriginArithmetic, SampleArithmetic, decode
from robustad.diagnosis._accuracy import Accuracy, norm, wide
from robustad.diagnosis._first_pass import Audited

log = logging.getLogger("robustad")

DECISIVE = 0.25
"""A cause is one of the findings where at least this share of some leaf's squared error (or non-finite elements) is its."""


@dataclasses.dataclass(frozen=True, eq=False)
class Blamed:
    """An equation, what happened there, and the share of each output's error that comes from it.

    sample: the worst element that it hurt (see `robustad.arithmetic._origin.sample`).
    """

    site: Site
    event: Event
    invalid: Invalid | None
    shares: dict[str, float]
    precision: int
    sample: dict[str, np.ndarray]


def blame(audited: Audited, wrong: Sequence[tuple[int, str, Accuracy | None, np.ndarray]]) -> list[Blamed]:
    """The equations behind the outputs that are wrong, those with the largest shares first.

    `wrong` has (number of the output, its name, its accuracy or None for the value, its failing slices).
    """
    sites = [site for site in audited.flow.sites.values() if _jaxpr.control(site.equation) is None]
    numbers = {site.path: k + 1 for k, site in enumerate(sites)}
    found: list[Blamed] = []
    default = audited.value.precision or 53
    for precision in sorted({(a.precision if a else None) or default for _, _, a, _ in wrong}):
        arithmetic = OriginArithmetic(numbers, precision)
        log.info("tracking the origins of errors through %d equations", len(audited.flow.sites))
        outs, _ = _compiled(audited, arithmetic)(*audited.operands)
        shares: dict[tuple[int, int, int], dict[str, float]] = {}
        for k, name, leaf, failing in wrong:
            if ((leaf.precision if leaf else None) or default) == precision:
                for key, share in _shares(outs[k], failing).items():
                    shares.setdefault(key, {})[name] = share
        kept = {key: by for key, by in shares.items() if key[0] > 0 and max(by.values()) >= 0.02}
        events = tuple(sorted({(sites[number - 1].path, event) for number, event, _ in kept}))
        log.info("looking at the %d equations to blame", len(events))
        _, records = _compiled(audited, SampleArithmetic(events, precision))(*audited.operands)
        for (number, event, invalid), by in kept.items():
            site = sites[number - 1]
            record = {k: np.asarray(v) for k, v in records[site.path][event].items()}
            klass = Invalid(invalid) if invalid else None
            found.append(Blamed(site, Event(event), klass, by, precision, record))
    return sorted(found, key=lambda b: -max(b.shares.values()))


def _compiled(audited: Audited, arithmetic: Any) -> Any:
    """The program under an arithmetic, compiled for a single run: quickly rather than well."""
    options: dict[str, bool | int | str] = {"xla_backend_optimization_level": 0}
    return jax.jit(audited.walked(arithmetic), compiler_options=options)


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
    number, event, invalid = decode(tag)
    total: dict[tuple[int, int, int], float] = {}
    for key in {tuple(int(x) for x in k) for k in np.stack([number, event, invalid], -1).reshape(-1, 3)}:
        mine = (number == key[0]) & (event == key[1]) & (invalid == key[2])
        total[key] = float(weight[mine].sum() / max(weight.sum(), 1e-300))
    return {key: share for key, share in total.items() if share > 0}
