"""The first pass: the user's value and gradient and, beside them, the same program in float64. The verdict needs no more."""

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
from robustad.arithmetic._shadow import DECIDING, Shadow, ShadowArithmetic
from robustad.diagnosis._arguments import Arguments, AuditError, arguments
from robustad.diagnosis._leaves import Leaf, leaves


@dataclasses.dataclass(frozen=True, eq=False)
class Audited:
    """The gradient program of a call. Its outputs are the value, then one gradient a leaf."""

    arguments: Arguments
    program: Body
    flow: Flow
    leaves: list[Leaf]
    value: Leaf
    decisions: frozenset[Path]
    """The equations at which the value's program decides something by floating values."""
    function: Callable[..., Array]
    """The scalar function of (leaves, others) that was differentiated."""

    @property
    def outputs(self) -> list[Leaf]:
        """The value and the gradient leaves."""
        return [self.value, *self.leaves]

    @property
    def operands(self) -> tuple[list[Array], list[Array]]:
        """What every pass is run on: the constants that the program closes over, and its inputs."""
        constants = [jnp.asarray(c) for _, c in self.program.constants]
        return constants, [*self.arguments.leaves, *self.arguments.others]

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


def gradient_program(
    f: Callable[..., Any], argnums: int | Sequence[int], has_aux: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Audited:
    """Traces value and gradient of `f(*args, **kwargs)`.

    Raises:
        AuditError: what `arguments` refuses; `f` does not trace; its value is not a floating scalar.
    """
    taken = arguments(f, argnums, args, kwargs)

    def scalar(leaves: Sequence[Array], others: Sequence[Array]) -> Array:
        out = taken.call(leaves, others)
        if has_aux:
            if not isinstance(out, tuple) or len(out) != 2:
                raise AuditError(f"has_aux=True expects `f` to return (value, aux); it returned {_kind(out)}.")
            out = out[0]
        return _checked(out, has_aux)

    value_and_grad = jax.value_and_grad(scalar)
    try:
        program, _ = _jaxpr.trace(value_and_grad, taken.leaves, taken.others)
    except AuditError:
        raise
    except Exception as e:  # whatever the user's code raises
        name = getattr(f, "__name__", "the function")
        raise AuditError(
            f"`{name}` cannot be traced and differentiated: {type(e).__name__}: {_message(e)}\n"
            "The audit traces it as `jax.jit(jax.value_and_grad(f))` would; make that call work first. Likely causes: "
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
    value, *gradients = leaves(flow, [None, *flow.inputs[: len(taken.leaves)]], flow.outputs)
    return Audited(taken, program, flow, gradients, value, _decisions(flow), scalar)


def _message(e: Exception) -> str:
    return str(e).strip()[:1500] or "(no message)"


def _kind(out: Any) -> str:
    return f"{out.dtype}{list(out.shape)}" if hasattr(out, "dtype") else type(out).__name__


def _checked(out: Any, has_aux: bool) -> Array:
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


def shadow_program(audited: Audited) -> Callable[..., tuple[list[Shadow], Any]]:
    """The first pass as a jitted function of `audited.operands`, to be run inside `jax.enable_x64(True)`."""
    terms = [(term, one.slices) for one in audited.leaves for term in one.terms]
    arithmetic = ShadowArithmetic(
        terms=frozenset(term.path for term, _ in terms),
        decisions=audited.decisions,
        per_iteration=frozenset((term.path, term.loop, n) for term, n in terms if term.loop is not None and n),
        last_only=frozenset((term.path, loop) for term, _ in terms for loop in term.last_of),
    )
    return jax.jit(audited.walked(arithmetic))


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


def first_pass(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """`first_pass(f)(*args)`: (jitted program, its operands), what the audit runs first, for timing it."""

    def prepare(*args: Any, **kwargs: Any) -> tuple[Callable[..., Any], Any]:
        audited = gradient_program(f, argnums, has_aux, args, kwargs)
        return shadow_program(audited), audited.operands

    return prepare
