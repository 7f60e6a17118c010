"""What an event at an equation means to the user: kind, phase, statement, a cause and a remedy in a sentence each."""

import dataclasses
import functools
import linecache
import os
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr
from robustad._flow import Flow
from robustad._jaxpr import Location, Scan, Site
from robustad.arithmetic import _shadow
from robustad.arithmetic._origin import Event, Invalid
from robustad.diagnosis._blame import DECISIVE, Blamed
from robustad.diagnosis._finding import Finding
from robustad.diagnosis._first_pass import Audited

INVALID = {
    Invalid.ZERO_TIMES_INF: "0*inf",
    Invalid.INF_MINUS_INF: "inf-inf",
    Invalid.ZERO_BY_ZERO: "0/0",
    Invalid.INF_BY_INF: "inf/inf",
    Invalid.LOG_ZERO: "log 0",
    Invalid.NEGATIVE: "sqrt of negative",
}

_LINEAR = (
    _shadow.MOVING
    | _shadow.CONTRACTING
    | {"mul", "div", "add", "add_any", "sub", "neg", "convert_element_type", "reduce_sum"}
)
_KEEPING = _shadow.MOVING | {"neg", "convert_element_type", "reduce_sum", "add_any"}
_SOLVING = frozenset("cholesky triangular_solve lu eigh svd qr geqrf householder_product tridiagonal_solve".split())


def findings(
    audited: Audited,
    blamed: Sequence[Blamed],
    wrong: set[str],
    nonfinite: set[str],
    bits: dict[str, float | None],
) -> tuple[list[Finding], list[Finding]]:
    """(decisive causes, the rest): one finding a statement.

    `wrong`: the outputs behind ok = False; `nonfinite`: those that are not finite; `bits`: the most bits that each output
    has lost.
    """
    reader = _Reader(audited)
    merged: dict[object, Finding] = {}
    decisive: set[object] = set()
    for b in blamed:
        finding = reader.finding(b, nonfinite, bits)
        key = (finding.file, finding.line) if finding.line else b.site.path
        if max((share for name, share in b.shares.items() if name in wrong), default=0.0) >= DECISIVE:
            decisive.add(key)
        merged[key] = _merged(merged[key], finding) if key in merged else finding
    if wrong and not decisive:
        decisive.update(list(merged)[:1])
    if wrong and not merged:
        merged[None] = _nowhere(tuple(name for name in bits if name in nonfinite), audited)
        decisive.add(None)
    return [f for k, f in merged.items() if k in decisive], [f for k, f in merged.items() if k not in decisive]


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


class _Reader:
    """Reads the program around a blamed equation."""

    def __init__(self, audited: Audited):
        self.audited = audited
        self.flow: Flow = audited.flow
        self.primal = self.flow.equations(self.flow.ancestors(audited.flow.outputs[0]))
        self.at: dict[object, list[Site]] = {}
        for site in self.flow.sites.values():
            self.at.setdefault(site.location, []).append(site)

    # ------------------------------------------------------------------------------ the equation's role

    def is_primal(self, site: Site) -> bool:
        """Whether it computes the value: it, or the equation that a `jax.checkpoint` recomputes with it."""
        if site.path in self.primal:
            return True
        if site.transposed and not self._recomputed(site):
            return False
        return self._recomputed(site) and any(
            s.path in self.primal and s.primitive == site.primitive for s in self.at.get(site.location, ())
        )

    def _recomputed(self, site: Site) -> bool:
        return any(
            self.flow.sites[site.path[:n]].primitive in ("remat2", "checkpoint") for n in range(1, len(site.path), 2)
        ) and not _jaxpr.is_transposed(site.equation)

    def differentiated(self, site: Site) -> str:
        """The primitive whose derivative rule made an equation of the backward program."""
        if (rule := self.rule_of(site)) is not None:
            return rule.primitive
        here = {s.primitive for s in self.at.get(site.location, ()) if self.is_primal(s)} - _LINEAR
        return here.pop() if len(here) == 1 else site.primitive

    def rule_of(self, site: Site) -> Site | None:
        """The one nonlinear equation of the value, at the same statement, of which all that is not a cotangent comes."""
        sources: dict[object, Site] = {}
        seen, stack = {site.path}, [site]
        while stack:
            for s in self.flow.operands(stack.pop().path):
                if s.path in seen:
                    continue
                seen.add(s.path)
                if s.location != site.location:
                    if not s.transposed:
                        return None
                elif self.is_primal(s):
                    sources[s.path] = s
                else:
                    stack.append(s)
        nonlinear = [s for s in sources.values() if s.primitive not in _LINEAR]
        return nonlinear[0] if len(nonlinear) == 1 and len(sources) == 1 else None

    def untaken(self, site: Site) -> Site | None:
        """The select whose untaken branch sends a zero cotangent into an equation."""
        for user in (site, *self.flow.users(site.path)):
            frontier, seen = self.flow.operands(user.path), set()
            for _ in range(12):
                for s in frontier:
                    if s.primitive == "select_n" and s.transposed:
                        return s
                seen |= {s.path for s in frontier}
                # A product may be zero by itself, and then no branch is to blame: only what keeps zeros is seen through.
                passing = [s for s in frontier if s.transposed and s.primitive in _KEEPING]
                frontier = [o for s in passing for o in self.flow.operands(s.path) if o.path not in seen]
        return None

    def absorbed(self, site: Site) -> Site | None:
        """The sum just before an equation, whose small term was rounded away."""
        frontier = self.flow.operands(site.path)
        for _ in range(3):
            for s in frontier:
                if s.primitive in ("add", "sub", "add_any", "reduce_sum"):
                    return s
            frontier = [o for s in frontier if s.primitive in _shadow.MOVING for o in self.flow.operands(s.path)]
        return None

    def compounds(self, b: Blamed) -> bool:
        """Whether many factors of the backward program, not this one, carried the cotangent out of range."""
        if b.site.loops:
            loop = _jaxpr.control(self.flow.sites[b.site.loops[-1]].equation)
            steps = int(b.sample["iteration"])
            if isinstance(loop, Scan) and loop.reverse:
                steps = loop.length - 1 - steps
            return steps >= 3
        alike = [s for s in self.at.get(b.site.location, ()) if s.transposed and s.primitive == b.site.primitive]
        return b.site.location is not None and len(alike) >= 6

    @functools.cached_property
    def backward_rules(self) -> list[tuple[Location | None, list[Site]]]:
        """(the statement that calls it, its equations) of every backward rule of the user's."""
        taken = self.audited.arguments
        forward, _ = _jaxpr.trace(self.audited.function, taken.leaves, taken.others)
        return [(where, list(_jaxpr.sites(rule))) for where, rule in _jaxpr.backward_rules(forward)]

    def statement(self, site: Site) -> Location | None:
        """The user's statement of an equation; inside a backward rule of the user's, the rule's own."""
        if self.is_primal(site) or site.location is None:
            return site.location
        # Batching adds what moves data.
        here = [s for s in self.at[site.location] if s.transposed and s.primitive not in _shadow.MOVING]
        names, at = [s.primitive for s in here], here.index(site) if site in here else -1
        for where, equations in self.backward_rules:
            rule = [s for s in equations if s.primitive not in _shadow.MOVING]
            if where == site.location and at >= 0:  # the rule's equations stand there one after the other
                for start in range(max(0, at - len(rule) + 1), at + 1):
                    if names[start : start + len(rule)] == [s.primitive for s in rule]:
                        return rule[at - start].location or site.location
        return site.location

    # ------------------------------------------------------------------------------------- the finding

    def finding(self, b: Blamed, nonfinite: set[str], bits: dict[str, float | None]) -> Finding:
        site, forward = b.site, self.is_primal(b.site)
        most = max((bits.get(name) or 0.0 for name in b.shares), default=0.0)
        kind = self.kind(b, forward, bool(nonfinite & b.shares.keys()), most)
        primitive = site.primitive if forward else self.differentiated(site)
        where = self.statement(site)
        reaches = tuple(name for name, share in b.shares.items() if share >= 0.02)
        lost = [bits.get(name) for name in reaches]
        known = [float(b.precision) if name in nonfinite else x for name, x in zip(reaches, lost)]
        invalid = b.invalid
        if kind == "zero-times-inf" and invalid in (None, Invalid.LOG_ZERO):
            invalid = Invalid.ZERO_TIMES_INF
        gate = self.untaken(site) if kind == "zero-times-inf" and not forward else None
        cause, remedy = self.sentences(b, kind, primitive, forward, gate)
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
            invalid=INVALID[invalid] if invalid and kind in ("nan", "zero-times-inf") else None,
            shows_at=self.shown(b, where) if nonfinite & b.shares.keys() else None,
        )

    def shown(self, b: Blamed, blamed: Location | None) -> str | None:
        at = self.statement(b.shows) if b.shows else None
        if b.shows is None or at is None or at == blamed:
            return None
        return f"{os.path.basename(at.file)}:{at.line} ({b.shows.primitive})"

    def kind(self, b: Blamed, forward: bool, nonfinite: bool, lost: float) -> str:
        # An equation of a derivative rule stands where its function does; in a rule of the user's it is code like any.
        own_rule = not forward and (
            self.statement(b.site) != b.site.location
            or (not b.site.transposed and not any(self.is_primal(s) for s in self.at[b.site.location]))
        )
        partial = not forward and not b.site.transposed and not own_rule
        match b.event:
            case Event.OVERFLOW | Event.UNDERFLOW:
                over = b.event == Event.OVERFLOW
                if partial:
                    return "unstable-derivative"
                if not forward and self.compounds(b):
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
            case _ if partial or (not forward and self.rule_of(b.site) is not None):
                return "unstable-derivative"
            case Event.ABSORPTION:
                return "absorption"
            case _ if self.accumulates(b, lost):
                return "ill-conditioned"
            case Event.CANCELLATION:
                return "cancellation"
            case _:
                if b.site.primitive not in _SOLVING and self.absorbed(b.site) is not None:
                    return "absorption"
                return "ill-conditioned"

    def accumulates(self, b: Blamed, lost: float) -> bool:
        """Whether a loop amplifies a little at each step: no step by itself loses a third of what is lost in the end."""
        return bool(b.site.loops) and 3 * float(b.sample["score"]) < lost

    # ------------------------------------------------------------------------------------- the sentences

    def sentences(self, b: Blamed, kind: str, primitive: str, forward: bool, gate: Site | None) -> tuple[str, str]:
        got, true = (float(x) for x in b.sample["out"])
        name = b.site.primitive
        info = jnp.finfo(next(_jaxpr.aval(v).dtype for v in b.site.equation.outvars if _jaxpr.is_inexact(v)))
        dtype = str(info.dtype)
        inputs = [tuple(float(x) for x in pair) for pair in b.sample["operands"] if np.isfinite(pair[0])]
        shown = f"{_number(got)}, truly {_number(true)}"
        step = f" at step {int(b.sample['iteration'])} of the loop" if int(b.sample["iteration"]) >= 0 else ""
        where = self.statement(b.site)
        text = linecache.getline(where.file, where.line) if where else ""
        match kind:
            case "overflow":
                cause = f"`{name}` gives {shown}{step}: above the largest {dtype} ({_number(float(info.max))})."
                return cause, _overflow_remedy(text, name, dtype)
            case "underflow":
                cause = (
                    f"`{name}` gives {shown}{step}: below the smallest normal {dtype} ({_number(float(info.tiny))})."
                )
                return cause, _underflow_remedy(text, name, dtype, forward)
            case "cancellation":
                pair = f" ({_number(inputs[0][0])} and {_number(inputs[1][0])})" if len(inputs) == 2 else ""
                cause = f"`{name}` cancels nearly equal terms{pair}{step}: what is left, {shown}, is their rounding."
                return cause, _cancellation_remedy(text)
            case "absorption":
                cause = f"terms too small beside the sum are rounded away{step}: `{name}` gives {shown}."
                return cause, (
                    "accumulate in float32 or wider (dtype=, preferred_element_type=), or use the form that keeps the small "
                    "term, such as jnp.log1p or jnp.expm1."
                )
            case "unstable-derivative":
                cause = f"the derivative rule of `{primitive}` computes {shown} by `{name}`{step}; the value is right."
                return cause, (
                    f"give `{primitive}` here a derivative that does not cancel or leave the range (jax.custom_jvp), or "
                    "rewrite the statement in log-space or in terms of what does not saturate."
                )
            case "zero-times-inf":
                if gate is not None:
                    line = f" at line {gate.location.line}" if gate.location else ""
                    return (
                        f"the untaken branch of the `where`{line} sends a zero cotangent into `{primitive}`, whose "
                        "derivative there is infinite: 0 * inf is NaN.",
                        "make the argument safe before the function too (double where): "
                        "y = f(jnp.where(ok, x, 1.)); jnp.where(ok, y, other).",
                    )
                at = " at 0" if not forward and any(x == 0 for x, _ in inputs) else ""
                return (
                    f"`{primitive}` has an infinite {'value' if forward else 'derivative'}{at}, which meets a zero: "
                    "0 * inf is NaN.",
                    "keep the argument away from the singular point (a double where, or an eps inside the sqrt or log), "
                    "or use a function that knows the limit (jax.scipy.special.xlogy, entr).",
                )
            case "vanishing" | "exploding":
                grows = kind == "exploding"
                return (
                    f"the cotangent {'grows' if grows else 'shrinks'} from step to step through `{name}` until it leaves "
                    f"the range of {dtype}{step} ({shown}).",
                    "clip the cotangent inside the loop or rescale the recurrence (orthogonal initialisation, gating, "
                    "normalisation), or truncate the backward pass."
                    if grows
                    else "scale the loss (dynamic loss scaling), use residual connections, gating or normalisation, or a "
                    "wider dtype for the cotangent.",
                )
            case "nan" if b.event == Event.OUT_OF_BOUNDS:
                return (
                    "an index is out of bounds, and the gather fills with NaN there.",
                    "keep the indices inside the axis, or choose another mode (jnp.take(..., mode='clip')).",
                )
            case "nan":
                outside = b.invalid in (None, Invalid.LOG_ZERO, Invalid.NEGATIVE)
                klass = "outside its domain" if outside or b.invalid is None else f"undefined ({INVALID[b.invalid]})"
                values = f" of {', '.join(_number(x) for x, _ in inputs)}" if inputs else ""
                return (
                    f"`{name}`{values} is {klass}{step}: it gives {_number(got)}, truly {_number(true)}.",
                    "add jitter to the diagonal, or factor in float64."
                    if name in _SOLVING
                    else "keep the argument inside the domain before the function, or mask the row out (double where).",
                )
            case _:
                cause = f"`{name}` amplifies the rounding of its operands{step}: it gives {shown}."
                return cause, "reformulate the statement, regularise the problem, or compute this part in float64."


def _number(x: float) -> str:
    return f"{x:.6g}"


def _overflow_remedy(text: str, name: str, dtype: str) -> str:
    if dtype == "float16":
        return "compute this statement in float32 (bfloat16 has the range), or scale its operands down first."
    if name in ("exp", "exp2", "expm1", "cosh", "sinh"):
        return (
            "stay in log-space: jax.nn.logsumexp, jax.nn.log_softmax, jax.nn.softplus, jnp.logaddexp, or subtract the "
            "maximum before the exp."
        )
    return "rescale the operands before this statement, or carry it in log-space."


def _underflow_remedy(text: str, name: str, dtype: str, forward: bool) -> str:
    if not forward:
        return "scale the loss (dynamic loss scaling, optax.contrib or jmp), or keep this cotangent in float32."
    for pattern, remedy in (
        (r"\bsoftmax", "jax.nn.log_softmax in place of softmax and log"),
        (r"\bsigmoid|\blogistic", "jax.nn.log_sigmoid in place of sigmoid and log"),
        (r"\bprod\b|\bcumprod\b", "sum logarithms in place of the product"),
        (r"norm\(|\*\*\s*2|square", "divide by the largest magnitude before squaring"),
    ):
        if re.search(pattern, text):
            return f"{remedy}."
    if name == "exp":
        return "stay in log-space: jax.nn.logsumexp, jax.nn.log_softmax or jax.scipy.stats' logpdf in place of exp and log."
    return "carry the product in log-space, or rescale it at every step."


def _cancellation_remedy(text: str) -> str:
    for pattern, remedy in (
        (r"cos\(", "1 - cos(x) is 2 * sin(x / 2)**2"),
        (r"exp\(", "use jnp.expm1"),
        (r"erf\(", "use the complement: jax.scipy.special.erfc, or log_ndtr for its logarithm"),
        (r"sqrt\(.*-.*sqrt\(", "multiply by the conjugate: sqrt(a) - sqrt(b) is (a - b) / (sqrt(a) + sqrt(b))"),
        (
            r"(\*\*\s*2|square\(|\*).*\)\s*-\s.*(\*\*\s*2|square\(|\*)",
            "subtract the mean before squaring (jnp.var), or use a difference of factors",
        ),
        (r"sigmoid|tanh|softmax", "use the complement by its own formula: 1 - sigmoid(x) is sigmoid(-x)"),
    ):
        if re.search(pattern, text):
            return f"{remedy}."
    return (
        "use a form without the subtraction (jnp.expm1, jnp.log1p, a difference of factors), or centre the data first."
    )
