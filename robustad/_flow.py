"""Where values come from: the data flow of a whole program, through its nested bodies, without running it."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Cond, Path, Scan, ShardMap, Site, While

Node: TypeAlias = tuple[Path, Any]
"""A variable of one body of the program: (path of the body, variable)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Edge:
    """One way in which a node gets its value.

    kind: "equation" (computed from the sources), "alias" (the same value), "slice" (one iteration's part of the source)
    or "stack" (the source of every iteration, stacked).
    """

    kind: str
    sources: tuple[Node, ...]
    path: Path
    """Of the equation, or of the control flow that the value passes into or out of."""
    carried: Node | None = None
    """Where the value leaves a loop that carries it: the node that holds it when an iteration begins."""


_ONE_TO_ONE = frozenset({"optimization_barrier", "psum", "psum_invariant", "pvary"})
"""Primitives whose k-th output depends on the k-th operand alone."""


class Flow:
    """The data flow of a program: `edges[node]` are the ways in which a node gets its value, `uses[node]` the nodes that
    get theirs from it."""

    def __init__(self, program: Body):
        self.sites: dict[Path, Site] = {site.path: site for site in _jaxpr.sites(program)}
        self.edges: dict[Node, list[Edge]] = {}
        self.uses: dict[Node, list[tuple[Node, Edge]]] = {}
        self.outputs = self._body(program, ())
        self.inputs: list[Node] = [((), var) for var in program.inputs]

    def _node(self, path: Path, atom: Any) -> tuple[Node, ...]:
        return () if _jaxpr.literal(atom) is not None else ((path, atom),)

    def _link(
        self,
        kind: str,
        targets: Sequence[Node],
        sources: Sequence[tuple[Node, ...]],
        path: Path,
        carried: Sequence[Node] | None = None,
    ) -> None:
        for k, (target, source) in enumerate(zip(targets, sources, strict=True)):
            edge = Edge(kind, source, path, carried[k] if carried else None)
            self.edges.setdefault(target, []).append(edge)
            for node in source:
                self.uses.setdefault(node, []).append((target, edge))

    def _body(self, program: Body, path: Path) -> list[tuple[Node, ...]]:
        for i, eqn in enumerate(program.equations):
            here = (*path, i)
            ins = [self._node(path, atom) for atom in eqn.invars]
            outs: list[Node] = [(path, var) for var in eqn.outvars]
            inner = _jaxpr.control(eqn)
            if inner is None:
                sources = tuple(node for group in ins for node in group)
                apart = eqn.primitive.name in _ONE_TO_ONE and len(ins) == len(outs)
                self._link("equation", outs, ins if apart else [sources] * len(outs), here)
                continue
            nested = _jaxpr.bodies(inner)
            results = [self._body(b, (*here, k)) for k, b in enumerate(nested)]
            entries: list[list[Node]] = [[((*here, k), var) for var in b.inputs] for k, b in enumerate(nested)]
            match inner:
                case Call() | ShardMap():
                    self._link("alias", entries[0], inner.of(ins) if isinstance(inner, Call) else ins, here)
                    self._link("alias", outs, results[0], here)
                case Cond():
                    for entry, result in zip(entries, results):
                        self._link("alias", entry, ins[1:], here)
                        self._link("alias", outs, result, here)
                    self._link("equation", outs, [ins[0]] * len(outs), here)
                case Scan():
                    held, n = inner.consts + inner.carry, inner.carry
                    self._link("alias", entries[0][:held], ins[:held], here)
                    self._link("slice", entries[0][held:], ins[held:], here)
                    self._link("alias", entries[0][inner.consts : held], results[0][:n], here)
                    self._link("alias", outs[:n], results[0][:n], here, entries[0][inner.consts : held])
                    self._link("stack", outs[n:], results[0][n:], here)
                case While():
                    both = inner.cond_consts + inner.body_consts
                    self._link("alias", entries[0], ins[: inner.cond_consts] + ins[both:], here)
                    self._link("alias", entries[1], ins[inner.cond_consts :], here)
                    self._link("alias", entries[1][inner.body_consts :], results[1], here)
                    self._link("alias", outs, results[1], here, entries[1][inner.body_consts :])
                    self._link("equation", outs, [results[0][0]] * len(outs), here)
        return [self._node(path, atom) for atom in program.outputs]

    def mark_tangents(self, directions: Iterable[Node]) -> None:
        """In forward mode: what is computed from the directions carries a derivative, as transposed equations do in reverse
        mode."""
        moved = self.equations(self.descendants(directions))
        for path in moved:
            self.sites[path] = dataclasses.replace(self.sites[path], transposed=True)

    def ancestors(self, nodes: Iterable[Node]) -> set[Node]:
        """Every node that the given ones are computed from, themselves included."""
        stack = list(nodes)
        seen = set(stack)
        while stack:
            for edge in self.edges.get(stack.pop(), ()):
                new = [source for source in edge.sources if source not in seen]
                seen.update(new)
                stack.extend(new)
        return seen

    def descendants(self, nodes: Iterable[Node]) -> set[Node]:
        """Every floating node that is computed from the given ones through floating nodes, themselves included."""
        stack = list(nodes)
        seen = set(stack)
        while stack:
            for target, _ in self.uses.get(stack.pop(), ()):
                if target not in seen and _jaxpr.is_inexact(target[1]):
                    seen.add(target)
                    stack.append(target)
        return seen

    def equations(self, nodes: Iterable[Node]) -> set[Path]:
        """The plain equations that compute the given nodes."""
        return {e.path for node in nodes for e in self.edges.get(node, ()) if e.kind == "equation"}

    def operands(self, path: Path) -> list[Site]:
        """The equations that made the operands of the equation at `path`, seen through control flow."""
        atoms = self.sites[path].equation.invars
        return [site for atom in atoms for node in self._node(path[:-1], atom) for site in self.makers(node)]

    def makers(self, node: Node) -> list[Site]:
        """The equations that made a node, seen through control flow."""
        made: dict[Path, Site] = {}
        seen, stack = {node}, [node]
        while stack:
            for edge in self.edges.get(stack.pop(), ()):
                if edge.kind == "equation":
                    made[edge.path] = self.sites[edge.path]
                else:
                    stack.extend(s for s in edge.sources if s not in seen)
                    seen.update(edge.sources)
        return list(made.values())

    def users(self, path: Path) -> list[Site]:
        """The equations that use an output of the equation at `path`, seen through control flow."""
        stack: list[Node] = [(path[:-1], var) for var in self.sites[path].equation.outvars]
        used: dict[Path, Site] = {}
        seen = set(stack)
        while stack:
            for target, edge in self.uses.get(stack.pop(), ()):
                if edge.kind == "equation":
                    used[edge.path] = self.sites[edge.path]
                elif target not in seen:
                    seen.add(target)
                    stack.append(target)
        return list(used.values())
