"""The role of an equation in a gradient program: whose derivative it is, what it follows, where the user wrote it."""

import functools

from robustad import _jaxpr
from robustad._flow import Flow
from robustad._jaxpr import Location, Path, Scan, Site
from robustad.arithmetic import _shadow
from robustad.diagnosis._blame import Blamed
from robustad.diagnosis._program import Audited

_LINEAR = (
    _shadow.MOVING
    | _shadow.CONTRACTING
    | {"mul", "div", "add", "add_any", "sub", "neg", "convert_element_type", "reduce_sum"}
)
_SUMS = frozenset({"add", "sub", "reduce_sum", "cumsum", "dot_general"})
_KEEPING = _shadow.MOVING | {"neg", "convert_element_type", "reduce_sum", "add_any"}


_NORMALIZING = _shadow.MOVING | _SUMS | {"div", "convert_element_type", "integer_pow"}
"""What makes a softmax of exponentials."""


class Reader:
    """Reads the program around a blamed equation."""

    def __init__(self, audited: Audited):
        self.audited = audited
        self.flow: Flow = audited.flow
        self.primal = self.flow.equations(self.flow.ancestors(audited.flow.outputs[0]))
        self.at: dict[object, list[Site]] = {}
        for site in self.flow.sites.values():
            self.at.setdefault(site.location, []).append(site)

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
        """The one nonlinear equation of the value, at the same statement, of which all that is not a cotangent comes.

        The sum of the cotangents of several uses of a value is no part of the rule that made one of them.
        """
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
        if len(nonlinear) != 1 or len(sources) != 1:
            return None
        return None if self._adds_uses(site, nonlinear[0]) else nonlinear[0]

    def _adds_uses(self, site: Site, function: Site) -> bool:
        """Whether it adds up what comes back from several uses of a value, of which an elementwise function is one.

        The rule of such a function multiplies; where it adds (tanh's, (g + g y) (1 - y)), it adds to a cotangent that it has
        already multiplied the same times a factor.
        """
        if not site.transposed or function.primitive not in _shadow.ELEMENTWISE:
            return False
        if site.primitive != "add_any":
            return site.primitive in ("reduce_sum", "scatter-add", "dot_general")
        made = [self.flow.makers((site.path[:-1], v)) for v in site.equation.invars if _jaxpr.literal(v) is None]
        behind = [self._behind(sites, function) for sites in made]
        if len(behind) < 2 or not all(function.path in paths for paths in behind):
            return True
        return not any(s.path in behind[1 - k] for k, sites in enumerate(made[:2]) for s in sites)

    def _behind(self, sites: list[Site], function: Site) -> set[Path]:
        """The equations at the statement of a function from which those of `sites` come, back to the function."""
        stack = [s for s in sites if s.location == function.location]
        seen = {s.path for s in stack}
        while stack:
            site = stack.pop()
            if site.path != function.path:
                before = [s for s in self.flow.operands(site.path) if s.location == function.location]
                stack += [s for s in before if s.path not in seen]
                seen.update(s.path for s in before)
        return seen

    def mirrors(self, site: Site) -> bool:
        """Whether it does to tangents what the same statement does to values: forward mode repeats every sum."""
        if not self.audited.directions or not site.transposed or site.primitive not in _SUMS:
            return False
        return any(s.primitive == site.primitive and self.is_primal(s) for s in self.at.get(site.location, ()))

    def normalizes(self, site: Site) -> bool:
        """Whether it divides exponentials by a sum of exponentials: a softmax, whoever wrote it."""
        if site.primitive not in ("div", "mul"):
            return False
        summed, stack, seen = False, [site], {site.path}
        while stack:
            for s in self.flow.operands(stack.pop().path):
                if s.path in seen or s.primitive == "exp":
                    continue
                if s.primitive not in _NORMALIZING:
                    return False
                summed |= s.primitive in _SUMS
                seen.add(s.path)
                stack.append(s)
        return summed

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
