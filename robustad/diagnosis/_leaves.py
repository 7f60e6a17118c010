"""What the program alone tells of each gradient leaf: its precision, its slices, its last reductions."""

import dataclasses

import jax.numpy as jnp

from robustad import _jaxpr
from robustad._flow import Edge, Flow, Node
from robustad._jaxpr import Path, Scan

# Data moves, changes sign or dtype, or is added up: the sum behind it is still the last reduction.
_SEEN_THROUGH = frozenset(
    """add add_any sub neg convert_element_type reduce_precision copy reshape transpose squeeze expand_dims
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
    """precision: significant bits of the narrowest float dtype that the leaf's computation passes through, or None where
    it is wholly in float64. slices: length of the scan that runs over the leaf's first axis, or None."""

    precision: int | None
    slices: int | None
    terms: tuple[Terms, ...]


def precision_of(dtype: object) -> int:
    """Significant bits of a floating (or complex) dtype, the hidden one included: 24 for float32, 8 for bfloat16."""
    return jnp.finfo(dtype).nmant + 1


def leaf(flow: Flow, parameter: Node | None, gradient: tuple[Node, ...]) -> Leaf:
    """What the program tells of the output `gradient`, the derivative for the input `parameter`."""
    behind = flow.ancestors(gradient)
    dtypes = {_jaxpr.aval(var).dtype for path, var in behind if _jaxpr.is_inexact(var)}
    computed = {
        _jaxpr.aval(out).dtype
        for path in flow.equations(behind)
        for out in flow.sites[path].equation.outvars
        if _jaxpr.is_inexact(out)
    }
    if parameter is not None:  # a derivative that is a constant has no node
        dtypes = dtypes or {_jaxpr.aval(parameter[1]).dtype}
    precision = min((precision_of(d) for d in computed or dtypes), default=None)
    slices = _scanned(flow, parameter) if parameter else None
    found = {term: None for node in gradient for term in _terms(flow, node, slices is not None, set())}
    return Leaf(None if precision == 53 else precision, slices, tuple(found))


def _scanned(flow: Flow, parameter: Node) -> int | None:
    """The length of the first scan that runs over the parameter's leading axis."""
    seen, stack = {parameter}, [parameter]
    while stack:
        for node, edge in flow.uses.get(stack.pop(), ()):
            if edge.kind == "slice":
                inner = _jaxpr.control(flow.sites[edge.path].equation)
                if isinstance(inner, Scan) and inner.length > 1:
                    return inner.length
            cast = edge.kind == "equation" and flow.sites[edge.path].primitive == "convert_element_type"
            if (edge.kind == "alias" or cast) and node not in seen:
                seen.add(node)
                stack.append(node)
    return None


def _terms(flow: Flow, start: Node, sliced: bool, seen: set[Node]) -> list[Terms]:
    """The last reductions behind a node; `seen` collects the nodes on the way to them."""
    found: list[Terms] = []
    stack = [start]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for edge in flow.edges.get(node, ()):
            if edge.kind == "equation":
                primitive = flow.sites[edge.path].primitive
                if primitive in _SEEN_THROUGH:
                    stack.extend(edge.sources)
                elif primitive == "reduce_sum" and (behind := _summed(flow, edge.sources[0], sliced, seen)):
                    found += behind
                elif edge.sources and primitive not in ("cond", "while"):
                    found.append(Terms(edge.path))
            elif edge.carried is None and not (edge.kind == "stack" and sliced):
                stack.extend(edge.sources)
            else:
                inside = set(seen)
                behind = [t for s in edge.sources for t in _terms(flow, s, sliced, inside)]
                if edge.kind == "stack":
                    behind = [dataclasses.replace(t, loop=t.loop or edge.path) for t in behind]
                elif edge.carried not in inside:  # not a running sum
                    behind = [dataclasses.replace(t, last_of=(*t.last_of, edge.path)) for t in behind]
                found += behind
    return found


def _summed(flow: Flow, node: Node, sliced: bool, seen: set[Node]) -> list[Terms]:
    """The sums that a sum adds up again, if it adds up nothing else: a sum of sums is one sum."""
    inside = set(seen)
    behind = _terms(flow, node, sliced, inside)
    if not all(flow.sites[t.path].primitive in _SUMS for t in behind):
        return []
    seen |= inside
    return behind
