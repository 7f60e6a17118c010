"""`branch_margin`: how close to their thresholds are the decisions of a program, and which are made by rounding."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad import _jaxpr
from robustad._flow import Edge, Flow, Node
from robustad._interpret import interpret
from robustad._jaxpr import Body, Equation, Path, Site
from robustad.arithmetic import _shadow
from robustad.arithmetic._shadow import Shadow, Shadowed
from robustad.diagnosis import _margin_records, _predicates
from robustad.diagnosis._arguments import take_apart
from robustad.diagnosis._margin_report import BranchMargin, BranchMargins, Sample
from robustad.diagnosis._options import name_of, refuse_no_function
from robustad.diagnosis._tracing import refuse_tracers, traced


def branch_margin(f: Callable[..., Any]) -> Callable[..., BranchMargins]:
    """How close to their thresholds are the decisions of `f`, and which of them are made by rounding?

    A program's derivative is that of the branch that ran. Where a comparison is decided by the last bits, value and
    derivative hang on them: another device, batch size or precision takes another branch. For every predicate on floating
    values this finds the decision closest to its threshold, in units of the last place: how many floats of their
    dtype lie between the two values, 0 on the threshold, 1 for neighbours. Beside the program its twin in float64 follows
    the branches that it takes, and tells where it would have decided otherwise. (What is looked at is the program as this
    walk compiles it; the last bits of another compilation, with other fusions, may differ.)

    Predicates are comparisons (the conditions of `jnp.where` and `lax.cond`), kinks (max, min, clip, relu, abs, the maximum
    of an array, a sort of values alone), jumps (floor, ceil, round, casts to integers and booleans, remainders, sign) and
    orders (argmax, argmin, top_k, argsort: the nearest pair of neighbours). Those that do not depend on `f`'s arguments or
    captured arrays, or only through random bits, are left out; so are kinks that only reach the result through
    stop_gradient, such as the maximum in a softmax, and what the functions of `robustad.stability` decide within.

    Not looked at are windowed, running and cross-device extrema.

    Args:
        f: a function of arrays, Python floats (traced too) or pytrees of them to arrays or pytrees. Nothing in it needs to
            change; a gradient function has predicates too, those of its derivative.

    Returns:
        A function of `f`'s arguments that returns `BranchMargins`. It cannot be called under `jax.jit`. It runs `f` once.

    Raises:
        ValueError: on calling: `f` does not trace, or uses mutable arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> def f(x):
        ...     return jnp.where(x > 1, jnp.sqrt(x), x)
        >>> margins = branch_margin(f)(jnp.array([0.0, 1 + 2**-23, 3.0]))
        >>> margins.smallest.margin, margins.smallest.primitive, margins.smallest.index
        (1.0, 'gt', (1,))
    """
    refuse_no_function(f, "branch_margin")

    @functools.wraps(f, updated=())
    def margined(*args: Any, **kwargs: Any) -> BranchMargins:
        with jax.debug_nans(False), jax.debug_infs(False), jax.disable_jit(False):
            return _run(f, args, kwargs)

    return margined


def _run(f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BranchMargins:
    started = time.perf_counter()
    refuse_tracers("branch_margin", (args, kwargs))
    name = name_of(f)
    parts = [take_apart(x, True) for x in (*args, kwargs)]

    def call(leaves: Sequence[Sequence[Array]], others: Sequence[Sequence[Array]]) -> list[Any]:
        *positional, named = (p.rebuild(x, y) for p, x, y in zip(parts, leaves, others))
        return [x for x in jax.tree.leaves(f(*positional, **named)) if isinstance(x, jax.Array)]

    operands = [p.leaves for p in parts], [p.others for p in parts]
    program, _ = traced(call, name, "branch_margin", *operands)
    watched = {site.path: site for site in _watched(program)}
    arithmetic = MarginArithmetic(watched)
    constants = [jnp.asarray(c) for _, c in program.constants]
    variables = (*(var for var, _ in program.constants), *program.inputs)
    whole = dataclasses.replace(program, constants=(), inputs=variables)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        lifted = [_shadow.lift(x) for x in [*constants, *jax.tree.leaves(operands)]]
        records = jax.device_get(jax.jit(lambda values: interpret(arithmetic, whole, values)[1])(lifted))
    found = [_margin(site, records[path]) for path, site in watched.items()]
    reached = sorted((m for m in found if m.decisions), key=lambda m: (math.isnan(m.margin), m.margin))
    unreached = tuple(m for m in found if not m.decisions)
    return BranchMargins(tuple(reached), unreached, name, time.perf_counter() - started)


# ------------------------------------------------------------------------------------------------------- the walk


@dataclasses.dataclass(frozen=True)
class MarginArithmetic(Shadowed):
    """The shadow walk that looks at decisions: at those of the equations in `sites`."""

    sites: dict[Path, Site]

    @property
    def watched(self) -> frozenset[Path]:
        return frozenset(self.sites)

    def equation(self, eqn: Equation, operands: Sequence[Shadow], path: Path) -> tuple[list[Shadow], Any]:
        working, highs = _shadow.shadowed(eqn, operands)
        outs = [Shadow(w, h) for w, h in zip(working, highs)]
        if path not in self.sites:
            return outs, None
        decisions = _predicates.RULES[eqn.primitive.name](eqn, operands)
        return outs, _margin_records.record(decisions, len(self.sites[path].loops))

    def blank(self, path: Path, at: Path) -> Any:
        return _margin_records.blank(len(self.sites[path].loops))

    def fold(self, path: Path, at: Path, record: Any, new: Any, iteration: Array) -> Any:
        loops = self.sites[path].loops
        if at in loops:  # not the shards of a map
            new = dict(new, iteration=new["iteration"].at[:, loops.index(at)].set(iteration))
        return _margin_records.merged(record, new)


# ------------------------------------------------------------------------------------------ which equations to look at


def _watched(program: Body) -> list[Site]:
    """The equations that decide by what the function was given, and on which the result depends."""
    flow = Flow(program)

    def users(node: Node) -> list[Node]:
        return [t for t, e in flow.uses.get(node, ()) if not _primitive(flow, e).startswith(("random_", "threefry"))]

    def makers(node: Node) -> list[Node]:
        return [source for e in flow.edges.get(node, ()) for source in e.sources]

    def differentiable_makers(node: Node) -> list[Node]:
        edges = (e for e in flow.edges.get(node, ()) if _primitive(flow, e) != "stop_gradient")
        return [source for e in edges for source in e.sources]

    given = _reached([((), var) for var in (*program.inputs, *(var for var, _ in program.constants))], users)
    results = [node for group in flow.outputs for node in group]
    wanted, differentiable = _reached(results, makers), _reached(results, differentiable_makers)

    def matters(site: Site) -> bool:
        kind = _predicates.kind(site.equation)
        body, eqn = site.path[:-1], site.equation
        around = (flow.sites[site.path[:k]].primitive for k in range(1, len(site.path), 2))
        if "custom_jvp_primitive" in around:  # the accurate functions of `stability`: their own branches meet
            return False
        decided = any((body, v) in given for v in eqn.invars if _jaxpr.literal(v) is None)
        return (
            kind is not None
            and decided
            and any((body, v) in (differentiable if kind == "kink" else wanted) for v in eqn.outvars)
        )

    return [site for site in flow.sites.values() if matters(site)]


def _primitive(flow: Flow, edge: Edge) -> str:
    return flow.sites[edge.path].primitive if edge.kind == "equation" else ""


def _reached(nodes: Sequence[Node], onward: Callable[[Node], list[Node]]) -> set[Node]:
    seen, stack = set(nodes), list(nodes)
    while stack:
        new = [n for n in onward(stack.pop()) if n not in seen]
        seen.update(new)
        stack.extend(new)
    return seen


# --------------------------------------------------------------------------------------------------------- results


def _margin(site: Site, record: Any) -> BranchMargin:
    where, (decisions, unknown, otherwise) = site.location, (int(n) for n in record["counts"])

    def sample(k: int) -> Sample | None:
        if record["score"][k] == -np.inf:
            return None
        a, b, x, y = (float(v) for v in record["values"][k])
        index = np.unravel_index(record["place"][k], _predicates.shape(site.equation))
        return Sample((a, b), (x, y), tuple(int(i) for i in index), tuple(record["iteration"][k].tolist()))

    closest = sample(_margin_records.CLOSEST)
    none = math.nan if unknown == decisions > 0 else math.inf
    return BranchMargin(
        margin=-float(record["score"][_margin_records.CLOSEST]) if closest else none,
        kind=_predicates.kind(site.equation) or "",
        primitive=site.primitive,
        dtype=str(_jaxpr.aval(site.equation.invars[0]).dtype),
        file=where.file if where else "<unknown>",
        line=where.line if where else 0,
        function=where.function if where else "",
        closest=closest,
        decisions=decisions,
        unknown=unknown,
        otherwise=otherwise,
        diverging=sample(_margin_records.DIVERGING),
    )
