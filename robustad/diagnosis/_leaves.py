"""What the program alone tells of each gradient leaf: its precision, its slices, its last reductions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr
from robustad._flow import Edge, Flow, Node
from robustad._jaxpr import Equation, Path, Scan

# Data moves, changes sign or dtype, or is added up: the sum behind it is still the last reduction.
_SEEN_THROUGH = frozenset(
    """add add_any sub neg convert_element_type reduce_precision copy reshape transpose squeeze
    broadcast_in_dim concatenate pad slice split rev optimization_barrier psum psum_invariant pvary reduce_scatter
    all_gather stack""".split()
)
_SUMS = frozenset({"reduce_sum", "dot_general", "conv_general_dilated", "scatter-add"})


@dataclasses.dataclass(frozen=True)
class Terms:
    """A last reduction of a leaf.

    `loop`: the scan that stacks its results along the leaf's first axis, or None. `last_of`: the loops of whose
    iterations only the last one counts, since they carry the leaf but do not add it up.
    """

    path: Path
    loop: Path | None = None
    last_of: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Leaf:
    """precision: significant bits of the narrowest float dtype (or `lax.reduce_precision`) that the leaf's computation
    passes through, or None where it is wholly in float64. slices: length of the scan that runs over the leaf's first axis,
    or None."""

    precision: int | None
    slices: int | None
    terms: tuple[Terms, ...]

    def terms_size(self, records: Mapping[Path, Any]) -> np.ndarray:
        """The size of what the leaf's last reductions add up, by the first pass: one number, or one a slice."""
        sizes = [np.asarray(records[term.path]) for term in self.terms]
        return sum((x if x.shape in ((), (self.slices,)) else x.sum() for x in sizes), np.zeros(()))


def precision_of(dtype: object) -> int:
    """Significant bits of a floating (or complex) dtype, the hidden one included: 24 for float32, 8 for bfloat16."""
    return jnp.finfo(dtype).nmant + 1


def rounded_to(eqn: Equation, var: Any) -> int:
    """Significant bits that an equation rounds its floating output `var` to; `lax.reduce_precision` rounds to fewer than its
    dtype holds."""
    bits = precision_of(_jaxpr.aval(var).dtype)
    return min(bits, eqn.params["mantissa_bits"] + 1) if eqn.primitive.name == "reduce_precision" else bits


def format_of(eqn: Equation, var: Any) -> str:
    """The short name of that format: a dtype's, or `e8m7` and its like for a `lax.reduce_precision`."""
    dtype, params = _jaxpr.aval(var).dtype, eqn.params
    if rounded_to(eqn, var) < precision_of(dtype):
        return f"e{params['exponent_bits']}m{params['mantissa_bits']}"
    return jnp.finfo(dtype).dtype.name.replace("float", "f")


def leaves(flow: Flow, parameters: Sequence[Node | None], gradients: Sequence[tuple[Node, ...]]) -> list[Leaf]:
    """What the program tells of its outputs `gradients`, the derivatives for the inputs `parameters`.

    A parameter that is None: its output is no derivative of an input (the value).
    """
    # An equation rounds what it computes of floating operands; a mask or a random draw in a narrow dtype is exact.
    rounded: dict[int, list[Node]] = {}
    for site in flow.sites.values():
        if any(_jaxpr.is_inexact(v) for v in site.equation.invars) and _jaxpr.control(site.equation) is None:
            for var in site.equation.outvars:
                if _jaxpr.is_inexact(var):
                    rounded.setdefault(rounded_to(site.equation, var), []).append((site.path[:-1], var))
    reached = {precision: flow.descendants(nodes) for precision, nodes in sorted(rounded.items())}

    def known(parameter: Node | None, gradient: tuple[Node, ...]) -> Leaf:
        exact = gradient[0] if gradient else parameter  # nothing is rounded on its way, or it is a constant
        own = precision_of(_jaxpr.aval(exact[1]).dtype) if exact else 53
        precision = min((p for p, nodes in reached.items() if nodes.intersection(gradient)), default=own)
        slices = _scanned(flow, parameter) if parameter else None
        terms = tuple(_terms(flow, gradient[0], slices)) if gradient else ()
        return Leaf(None if precision == 53 else precision, slices, terms)

    return [known(parameter, gradient) for parameter, gradient in zip(parameters, gradients, strict=True)]


def _scanned(flow: Flow, parameter: Node) -> int | None:
    """The length of the first scan that runs over the parameter's leading axis."""
    seen, stack = {parameter}, [parameter]
    while stack:
        for node, edge in flow.uses.get(stack.pop(), ()):
            if edge.kind == "slice":
                inner = _jaxpr.control(flow.sites[edge.path].equation)
                length = _jaxpr.aval(parameter[1]).shape[0]
                if isinstance(inner, Scan) and inner.length == length > 1:
                    return length
            cast = edge.kind == "equation" and flow.sites[edge.path].primitive == "convert_element_type"
            if (edge.kind == "alias" or cast) and node not in seen:
                seen.add(node)
                stack.append(node)
    return None


def _terms(flow: Flow, gradient: Node, slices: int | None) -> list[Terms]:
    """The last reductions behind a gradient leaf that a scan of `slices` steps may have stacked."""
    found: dict[Terms, None] = {}
    seen: set[object] = set()
    # (node, what is known on the way to it, whether its first axis is the leaf's)
    stack: list[tuple[Node, Terms, bool]] = [(gradient, Terms(()), slices is not None)]
    while stack:
        node, so_far, first = stack.pop()
        # The loops that count are those around the node.
        so_far = dataclasses.replace(so_far, last_of=tuple(p for p in so_far.last_of if node[0][: len(p)] == p))
        if (node, so_far, first) in seen:
            continue
        seen.add((node, so_far, first))
        for edge in flow.edges.get(node, ()):
            onward, kept = so_far, first and edge.kind != "stack"
            if edge.kind == "equation":
                primitive = flow.sites[edge.path].primitive
                if primitive not in _SEEN_THROUGH and not (primitive == "reduce_sum" and _adds_sums(flow, edge)):
                    if edge.sources and primitive not in ("cond", "while"):
                        found[dataclasses.replace(so_far, path=edge.path)] = None
                    continue
                turned = flow.sites[edge.path].equation.params.get("permutation", (0,))[0] != 0
                kept = kept and not turned and all(_length(s) == slices for s in (node, *edge.sources))
            elif edge.kind == "stack" and first:
                inner = _jaxpr.control(flow.sites[edge.path].equation)
                if isinstance(inner, Scan) and inner.length == slices:
                    onward = dataclasses.replace(so_far, loop=edge.path)
            elif edge.carried is not None and not _accumulates(flow, edge):
                onward = dataclasses.replace(so_far, last_of=(*so_far.last_of, edge.path))
            stack.extend((source, onward, kept) for source in edge.sources)
    return list(found)


def _length(node: Node) -> int | None:
    """The length of a node's first axis."""
    shape = _jaxpr.aval(node[1]).shape
    return shape[0] if shape else None


def _adds_sums(flow: Flow, edge: Edge) -> bool:
    """Whether a sum adds up nothing but sums: it is one sum with them."""
    made: list[str] = []
    seen, stack = set(edge.sources), list(edge.sources)
    while stack:
        for back in flow.edges.get(stack.pop(), ()):
            primitive = flow.sites[back.path].primitive if back.kind == "equation" else None
            if primitive is None or primitive in _SEEN_THROUGH:
                stack.extend(s for s in back.sources if s not in seen)
                seen.update(back.sources)
            else:
                made.append(primitive)
    return bool(made) and all(primitive in _SUMS for primitive in made)


def _accumulates(flow: Flow, out: Edge) -> bool:
    """Whether a loop adds to what it carries, rather than replacing it."""
    seen, stack = set(out.sources), list(out.sources)
    while stack:
        node = stack.pop()
        if node == out.carried:
            return True
        for edge in flow.edges.get(node, ()):
            if edge.kind == "equation" and flow.sites[edge.path].primitive not in _SEEN_THROUGH:
                continue
            inside = [s for s in edge.sources if s not in seen and s[0][: len(out.path)] == out.path]
            seen.update(inside)
            stack.extend(inside)
    return False
