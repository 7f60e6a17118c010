"""What an event at an equation means to the user: kind, phase, statement, a cause and a remedy in a sentence each."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from robustad import _jaxpr
from robustad._jaxpr import Location, Site
from robustad.arithmetic._origin import Event, Invalid
from robustad.diagnosis._blame import DECISIVE, NOTED, Blamed
from robustad.diagnosis._finding import Finding
from robustad.diagnosis._program import Audited
from robustad.diagnosis._ranking import Ranked
from robustad.diagnosis._reader import Reader
from robustad.diagnosis._sentences import INVALID, SOLVING, sentences

ADDING = frozenset({"add", "sub", "add_any", "reduce_sum", "cumsum", "dot_general"})

CONDITION = 0.3
"""From this share of the error on, what rounding the inputs once would do explains it: the problem is ill-conditioned."""


def findings(
    reader: Reader,
    blamed: Sequence[Blamed],
    ranked: Mapping[str, Ranked],
    wrong: set[str],
    nonfinite: set[str],
    bits: dict[str, float | None],
) -> tuple[list[Finding], list[Finding]]:
    """(decisive causes, the rest): one finding a statement; and where a finite value is wrong, a note of what makes it so.

    `wrong`: the outputs behind ok = False; `nonfinite`: those that are not finite; `bits`: the most bits that each output
    has lost; `ranked`: what the error of some outputs is made of.
    """
    audited = reader.audited
    merged: dict[object, Finding] = {}
    decisive: set[object] = set()
    shares: dict[object, float] = {}
    of_value: dict[object, Finding] = {}
    for b in blamed:
        finding = _finding(reader, b, ranked, nonfinite, bits)
        key = (finding.file, finding.line) if finding.line else b.site.path
        for name, share in b.shares.items():
            here = key, b.event, name
            shares[here] = shares.get(here, 0.0) + share
            if name in wrong and shares[here] >= DECISIVE:
                decisive.add(key)
        if "value" not in wrong and b.shares.get("value", 0.0) >= DECISIVE:
            alone = dataclasses.replace(finding, reaches=("value",), bits_lost=bits.get("value"))
            of_value[key] = _merged(of_value[key], alone) if key in of_value else alone
            if all(b.shares.get(name, 0.0) < NOTED for name in wrong):
                continue  # what made the value wrong did not make the gradient so, though it may be the same statement
        merged[key] = _merged(merged[key], finding) if key in merged else finding
    if wrong and not decisive:
        decisive.update(list(merged)[:1])
    if wrong and not merged:
        merged[None] = _nowhere(tuple(name for name in bits if name in nonfinite), audited)
        decisive.add(None)
    found = [f for k, f in merged.items() if k in decisive]
    return found, [*of_value.values(), *(f for k, f in merged.items() if k not in decisive)]


def _merged(first: Finding, other: Finding) -> Finding:
    """Two events at one statement are one cause: that of the forward program comes first, then the larger share."""
    leading, second = (other, first) if (other.phase, first.phase) == ("forward", "backward") else (first, other)
    most = max((x for x in (first.bits_lost, other.bits_lost) if x is not None), default=None)
    reaches = tuple(dict.fromkeys([*first.reaches, *other.reaches]))
    return dataclasses.replace(leading, reaches=reaches, bits_lost=most, invalid=leading.invalid or second.invalid)


def _nowhere(reaches: tuple[str, ...], audited: Audited) -> Finding:
    """No equation is to blame: a non-finite value came in from outside, or the error is seen in the first pass alone."""
    outside = bool(reaches)
    infinite = [title for title, x in audited.arguments.inputs if _jaxpr.is_inexact(x) and bool(jnp.isinf(x).any())]
    held = f"input (`{infinite[0]}` holds infinities)" if infinite else "constant or input"
    return Finding(
        kind="nan" if outside else "ill-conditioned",
        phase="forward",
        file="<unknown>",
        line=0,
        function="",
        primitive="",
        bits_lost=None,
        reaches=reaches,
        cause=f"a non-finite {held} reaches the outputs; no equation of the program made it."
        if outside
        else "the error is gone where the program is compiled equation by equation: it depends on how XLA fuses it.",
        remedy="look for inf and nan in the arguments and in constants of the function."
        if outside
        else "treat the result as sensitive to rounding: reformulate, or compute in a wider dtype.",
    )


def _finding(
    reader: Reader,
    b: Blamed,
    ranked: Mapping[str, Ranked],
    nonfinite: set[str],
    bits: dict[str, float | None],
) -> Finding:
    site, forward = b.site, reader.is_primal(b.site)
    most = max((bits.get(name) or 0.0 for name in b.shares), default=0.0)
    kind = _kind(reader, b, forward, bool(nonfinite & b.shares.keys()), most)
    primitive = site.primitive if forward else reader.differentiated(site)
    where = reader.statement(site)
    reaches = tuple(name for name, share in b.shares.items() if share >= 0.02)
    lost = [bits.get(name) for name in reaches]
    known = [float(b.precision) if name in nonfinite else x for name, x in zip(reaches, lost)]
    invalid = b.invalid
    if kind == "zero-times-inf" and invalid in (None, Invalid.LOG_ZERO):
        invalid = Invalid.ZERO_TIMES_INF
    gate = reader.untaken(site) if kind == "zero-times-inf" and not forward else None
    committed, condition = _committed(reader, b, ranked)
    if committed is not None and b.event in _LOSSES and condition >= CONDITION and committed.primitive not in ADDING:
        kind = "ill-conditioned"
    right = "value" not in nonfinite and (bits.get("value") or 0.0) < b.precision / 2
    softmax = kind == "underflow" and forward and reader.normalizes(site)
    cause, remedy = sentences(b, kind, primitive, forward, where, gate, right, softmax)
    made_at = reader.statement(committed) if committed is not None else None
    if where is None or (made_at is not None and (made_at.file, made_at.line) == (where.file, where.line)):
        made_at = None  # at no other place
    return Finding(
        kind=kind,
        phase="forward" if forward else "backward",
        file=where.file if where else "<unknown>",
        line=where.line if where else 0,
        function=where.function if where else "",
        primitive=primitive,
        bits_lost=max((x for x in known if x is not None), default=None),
        reaches=reaches,
        cause=cause,
        remedy=remedy,
        committed_at=made_at.line if made_at else None,
        committed_file=made_at.file if made_at else None,
        invalid=INVALID[invalid] if invalid and kind in ("nan", "zero-times-inf") else None,
        shows_at=_shown(reader, b, where) if nonfinite & b.shares.keys() else None,
    )


_LOSSES = (Event.CANCELLATION, Event.ABSORPTION, Event.AMPLIFICATION)


def _committed(reader: Reader, b: Blamed, ranked: Mapping[str, Ranked]) -> tuple[Site | None, float]:
    """The equation that made the largest part of the error that passes through a blamed one, and how much of the error
    the problem's own condition explains; (None, 0) where no finite output tells."""
    told = [name for name in b.shares if name in ranked]
    if not told or b.event not in (*_LOSSES, Event.UNDERFLOW):
        return None, 0.0
    one = ranked[max(told, key=lambda name: b.shares[name])]
    before = reader.flow.equations(reader.flow.ancestors((b.site.path[:-1], var) for var in b.site.equation.outvars))
    by_statement: dict[object, list[Site]] = {}
    for path in before & one.shares.keys():
        site = reader.flow.sites[path]
        by_statement.setdefault(reader.statement(site) or path, []).append(site)
    if not by_statement:
        return None, one.condition
    most = max(by_statement.values(), key=lambda sites: abs(sum(one.shares[s.path] for s in sites)))
    return max(most, key=lambda s: abs(one.shares[s.path])), one.condition


def _shown(reader: Reader, b: Blamed, blamed: Location | None) -> str | None:
    at = reader.statement(b.shows) if b.shows else None
    if b.shows is None or at is None or at == blamed:
        return None
    return f"{os.path.basename(at.file)}:{at.line} ({b.shows.primitive})"


def _kind(reader: Reader, b: Blamed, forward: bool, nonfinite: bool, lost: float) -> str:
    # An equation of a derivative rule stands where its function does; in a rule of the user's it is code like any.
    own_rule = not forward and (
        reader.statement(b.site) != b.site.location
        or (not b.site.transposed and not any(reader.is_primal(s) for s in reader.at[b.site.location]))
    )
    partial = not forward and not b.site.transposed and not own_rule
    match b.event:
        case Event.OVERFLOW | Event.UNDERFLOW:
            over = b.event == Event.OVERFLOW
            if partial:
                return "unstable-derivative"
            if not forward and reader.compounds(b):
                return "exploding" if over else "vanishing"
            return "overflow" if over else "underflow"
        case Event.OUT_OF_BOUNDS:
            return "nan"
        case Event.POLE | Event.INVALID:
            if b.invalid == Invalid.ZERO_TIMES_INF:
                return "zero-times-inf"
            if forward or own_rule:
                return "nan"
            return "zero-times-inf" if nonfinite else "unstable-derivative"
        case _ if partial or (not forward and not reader.mirrors(b.site) and reader.rule_of(b.site) is not None):
            return "unstable-derivative"
        case Event.ABSORPTION:
            return "absorption"
        case _ if _accumulates(b, lost):
            return "ill-conditioned"
        case Event.CANCELLATION:
            return "cancellation"
        case _:
            if b.site.primitive not in SOLVING and reader.absorbed(b.site) is not None:
                return "absorption"
            return "ill-conditioned"


def _accumulates(b: Blamed, lost: float) -> bool:
    """Whether a loop amplifies a little at each step: no step by itself loses a third of what is lost in the end."""
    return bool(b.site.loops) and 3 * float(b.sample["score"]) < lost
