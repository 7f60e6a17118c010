"""The program that is audited: value and derivatives of the user's function, traced, with what it alone tells of them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from robustad import _jaxpr
from robustad._flow import Flow
from robustad._interpret import interpret
from robustad._jaxpr import Body, Path
from robustad.arithmetic._shadow import DECIDING
from robustad.diagnosis._arguments import Arguments, AuditError, arguments, distinct
from robustad.diagnosis._leaves import Leaf, leaves
from robustad.diagnosis._user_errors import told


@dataclasses.dataclass(frozen=True, eq=False)
class Audited:
    """The derivative program of a call. Its outputs are the value, then the leaves: a gradient for each differentiated
    array, or in forward mode a tangent for each output.

    names, like: of the leaves, and their pytree from one thing a leaf. directions: the tangents that forward mode takes.
    """

    arguments: Arguments
    names: list[str]
    like: Callable[[Sequence[Any]], Any]
    directions: list[Array]
    program: Body
    flow: Flow
    leaves: list[Leaf]
    value: Leaf
    decisions: frozenset[Path]
    """The equations at which the value's program decides something by floating values."""
    function: Callable[..., Any]
    """The function of (leaves, others) that was differentiated."""

    @property
    def outputs(self) -> list[Leaf]:
        """The value and the gradient leaves."""
        return [self.value, *self.leaves]

    @property
    def operands(self) -> tuple[list[Array], list[Array]]:
        """What every pass is run on: the constants that the program closes over, and its inputs."""
        constants = [jnp.asarray(c) for _, c in self.program.constants]
        return constants, [*self.arguments.leaves, *self.arguments.others, *self.directions]

    @property
    def closed(self) -> Body:
        """The program as a function of `operands`: constants are operands, not code."""
        inputs = (*(var for var, _ in self.program.constants), *self.program.inputs)
        return dataclasses.replace(self.program, constants=(), inputs=inputs)

    def walked(self, arithmetic: Any) -> Callable[..., Any]:
        """The program under an arithmetic, a function of `operands` to be jitted."""

        def run(constants: Sequence[Array], inputs: Sequence[Array]) -> Any:
            return interpret(arithmetic, self.closed, [arithmetic.lift(x) for x in [*constants, *inputs]])

        return run


def derivative_program(
    f: Callable[..., Any],
    argnums: int | Sequence[int],
    has_aux: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    mode: str = "vjp",
    order: int = 1,
    tangents: Any = None,
) -> Audited:
    """Traces value and gradient of `f(*args, **kwargs)`; in mode "jvp" its outputs and their tangents.

    Raises:
        AuditError: what `arguments` refuses; `f` does not trace; in mode "vjp" its value is not a floating scalar.
    """
    taken = arguments(f, argnums, args, kwargs)
    directions = _directions(taken, tangents) if mode == "jvp" or order == 2 else []

    def outputs(leaves: Sequence[Array], others: Sequence[Array]) -> Any:
        return without_aux(taken.call(leaves, others), has_aux)

    def scalar(leaves: Sequence[Array], others: Sequence[Array]) -> Array:
        return checked_scalar(outputs(leaves, others), has_aux)

    def slope(leaves: Sequence[Array], others: Sequence[Array]) -> Array:
        return jax.jvp(lambda moving: scalar(moving, others), (list(leaves),), (directions,))[1]

    function = outputs if mode == "jvp" else slope if order == 2 else scalar
    names, like = taken.names, taken.like
    try:
        if mode == "jvp":
            shape = jax.eval_shape(outputs, taken.leaves, taken.others)
            names, like, moved = _forward(outputs, shape)
            program, _ = _jaxpr.trace(moved, taken.leaves, taken.others, directions)
        else:
            program, _ = _jaxpr.trace(jax.value_and_grad(function), taken.leaves, taken.others)
    except AuditError:
        raise
    except Exception as e:  # whatever the user's code raises
        name = getattr(f, "__name__", "the function")
        how = "jax.jit(f) under jax.jvp" if mode == "jvp" else "jax.jit(jax.value_and_grad(f))"
        raise AuditError(
            f"`{name}` cannot be traced and differentiated: {told(e)}\n"
            f"The audit traces it as `{how}` would; make that call work first. Likely causes: "
            "(a) Python control flow on an array: use jnp.where or lax.cond; (b) an argument that must be static: bind it "
            "with functools.partial; (c) wrong arguments or shapes."
        ) from e
    flow = Flow(program)
    for site in flow.sites.values():
        if any(_jaxpr.is_mutable(v) for v in (*site.equation.invars, *site.equation.outvars)):
            where = f" at {site.location.file}:{site.location.line}" if site.location else ""
            raise AuditError(
                f"the program uses a mutable array (`{site.primitive}`{where}), which the audit cannot follow; write that "
                "part with values, for example jnp.ndarray.at or a scan's carry."
            )
    if mode == "jvp":
        flow.mark_tangents(flow.inputs[len(flow.inputs) - len(directions) :])
        value, *derivatives = leaves(flow, [None] * len(flow.outputs), flow.outputs)
    else:
        value, *derivatives = leaves(flow, [None, *flow.inputs[: len(taken.leaves)]], flow.outputs)
    return Audited(
        taken,
        names,
        like,
        directions if mode == "jvp" else [],
        program,
        flow,
        derivatives,
        value,
        _decisions(flow),
        function,
    )


def _directions(taken: Arguments, tangents: Any) -> list[Array]:
    """The tangents, one a differentiated array: the user's, or ones."""
    if tangents is None:
        return [jnp.ones_like(x) for x in taken.leaves]
    given = [jnp.asarray(t) for t in jax.tree.leaves(tangents)]
    got, expected = [x.shape for x in given], [x.shape for x in taken.leaves]
    if got != expected:
        raise AuditError(
            f"`tangents` must be like the differentiated arguments, arrays of shapes {expected}; got {got}. For several "
            "`argnums` give a tuple, one entry an argument."
        )
    return [t.astype(x.dtype) for t, x in zip(given, taken.leaves)]


def _forward(f: Callable[..., Any], shape: Any) -> tuple[list[str], Callable[[Sequence[Any]], Any], Callable[..., Any]]:
    """Names and pytree of the tangents of `f`'s floating outputs, and the function that returns these outputs, as one
    array where they are several, and the tangents."""
    with_paths, structure = jax.tree_util.tree_flatten_with_path(shape)
    kept = [k for k, (_, x) in enumerate(with_paths) if jnp.issubdtype(x.dtype, jnp.inexact)]
    if not kept:
        got = ", ".join(sorted({str(x.dtype) for _, x in with_paths})) or "nothing"
        raise AuditError(f"`f` must return floating arrays, which have tangents; it returned {got}.")
    paths = [with_paths[k][0] for k in kept]
    names = distinct(
        [jax.tree_util.keystr(path, simple=True, separator="/") or "tangent" for path in paths],
        [f"tangent{jax.tree_util.keystr(path)}" for path in paths],
    )

    def like(things: Sequence[Any]) -> Any:
        held = dict(zip(kept, things))
        return structure.unflatten(held.get(k) for k in range(len(with_paths)))

    def moved(leaves: Sequence[Array], others: Sequence[Array], directions: Sequence[Array]) -> list[Array]:
        def floating(leaves: Sequence[Array]) -> list[Array]:
            outs = jax.tree.leaves(f(leaves, others))
            return [jnp.asarray(outs[k]) for k in kept]

        values, made = jax.jvp(floating, (list(leaves),), (list(directions),))
        with jax.numpy_dtype_promotion("standard"):
            whole = values[0] if len(values) == 1 else jnp.concatenate([v.ravel() for v in values])
        return [whole, *made]

    return names, like, moved


def _kind(out: Any) -> str:
    return f"{out.dtype}{list(out.shape)}" if hasattr(out, "dtype") else type(out).__name__


def without_aux(out: Any, has_aux: bool) -> Any:
    """What `f` returned, less its aux.

    Raises:
        AuditError: there should be one, and is none.
    """
    if has_aux and (not isinstance(out, tuple) or len(out) != 2):
        raise AuditError(f"has_aux=True expects `f` to return (value, aux); it returned {_kind(out)}.")
    return out[0] if has_aux else out


def checked_scalar(out: Any, has_aux: bool) -> Array:
    """What `f` returned, as an array.

    Raises:
        AuditError: it is no real floating scalar.
    """
    leaves = jax.tree.leaves(out)
    if len(leaves) != 1 or (leaves[0] is not out and not hasattr(out, "dtype")):
        hint = "" if has_aux else " If it returns (value, aux), pass has_aux=True."
        raise AuditError(f"`f` must return a scalar; it returned {_kind(out)} of {len(leaves)} leaves.{hint}")
    out = jnp.asarray(out)
    if out.shape != ():
        raise AuditError(
            f"`f` must return a scalar; it returned {out.dtype}{list(out.shape)}. Reduce it, for example by jnp.mean, "
            "or index the element whose gradient you want."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise AuditError(f"`f` must return a real floating scalar, which has a gradient; it returned {out.dtype}.")
    return out


def _decisions(flow: Flow) -> frozenset[Path]:
    """The equations of the value's program at which it decides something by floating values."""
    value = flow.equations(flow.ancestors(flow.outputs[0]))
    sites = (site for site in flow.sites.values() if site.path in value and site.primitive in DECIDING)
    return frozenset(
        site.path
        for site in sites
        if _jaxpr.is_inexact(site.equation.invars[0])
        and (site.primitive != "convert_element_type" or not _jaxpr.is_inexact(site.equation.outvars[0]))
    )
