"""`gradient_flow`: how large the gradient is, layer by layer, on its way back through a program."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from robustad._jaxpr import Body
from robustad.diagnosis import _activations, _cotangent_record
from robustad.diagnosis._arguments import AuditError, arguments
from robustad.diagnosis._cotangent_record import record
from robustad.diagnosis._flow_layers import Plan, Stage, planned
from robustad.diagnosis._flow_report import GradientFlow
from robustad.diagnosis._flow_rows import Measured, rows
from robustad.diagnosis._flow_verdicts import judged
from robustad.diagnosis._options import name_of, refuse_no_function
from robustad.diagnosis._program import checked_scalar, without_aux
from robustad.diagnosis._tapped import Tapped
from robustad.diagnosis._tracing import refuse_tracers, traced


def gradient_flow(
    f: Callable[..., Any], *, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., GradientFlow]:
    r"""Do the gradients of `f` vanish or explode on their way back through its layers, and where?

    A layer is the parameter leaves of one module path: `params["dense_3"]["w"]` belongs to `dense_3`, a bare array is one by
    itself. Its output is where the program uses it last; a `tap` there records the cotangent that comes back. `f` is not
    changed. Where a `lax.scan` runs over stacked leaves each slice is a layer (`blocks[7]`); where it uses the same leaves
    each time the layer has steps, with a norm each. A layer used several times is several: `embed`, `embed (use 2)`.

    Layers are listed in the order of the program, so the gradient flows from the last to the first; `factor` is what its
    norm is multiplied by from one to the one before, fitted to all of them by least squares on logarithms. Verdicts:

    - "non-finite": the cotangent at the layer, or the gradient of its parameters, has inf or NaN
    - "vanishing", "exploding": the norm there is 1e-4, or 1e4, times that at the last layer (for steps: at the last step);
      or most entries have left the dtype's normal range, or all have become 0 where the next ones were near its end
    - "dead": nine tenths of the units behind the layer are 0 for all examples (relu), or nothing comes back through those
    - "saturated": nine tenths of the entries of the nonlinearity behind it (tanh, logistic, erf) are where its derivative is
      below 1 % of its largest; half, where the gradient vanishes too
    - "no gradient": the value has no derivative in the layer (`stop_gradient`, a branch not taken, a factor 0)
    - "healthy"

    The last two are no faults, unless no layer has a gradient. All of it is about one call with one batch: look again
    during training.

    Args:
        f: as for `rad.audit`: a function to a real floating scalar.
        argnums: the positional arguments with the parameters (flax nnx: the `Param`s; equinox: the floating arrays).
        has_aux: whether `f` returns (value, aux).

    Returns:
        A function of `f`'s arguments that returns a `GradientFlow`. It compiles one gradient, whose size does not depend on
        the lengths of loops, and cannot be called under `jax.jit`.

    Raises:
        ValueError: on calling: `f` does not trace, cannot be differentiated or does not return a scalar; `argnums` is wrong
            or holds no floating array.

    Source: Bengio, Simard and Frasconi, Learning long-term dependencies with gradient descent is difficult (IEEE Trans.
    Neural Netw. 5, 1994); Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks (ICML 2013).

    Example:
        >>> import jax.numpy as jnp
        >>> def loss(params, x):
        ...     for layer in params:
        ...         x = jnp.tanh(x * layer["w"])
        ...     return jnp.sum(x)
        >>> flow = gradient_flow(loss)([{"w": jnp.full(3, 0.25)}] * 10, jnp.full((2, 3), 1e-3))
        >>> flow.verdict, round(flow.factor, 3), [layer.name for layer in flow.layers if layer.verdict == "vanishing"]
        ('vanishing', 0.25, ['0', '1', '2'])
    """
    refuse_no_function(f, "gradient_flow")

    @functools.wraps(f, updated=())
    def flow(*args: Any, **kwargs: Any) -> GradientFlow:
        with jax.debug_nans(False), jax.debug_infs(False), jax.disable_jit(False):
            return _run(f, argnums, has_aux, args, kwargs)

    return flow


@dataclasses.dataclass(frozen=True, eq=False)
class Tapping:
    """A function with its taps: `measure(*operands)` gives its value, its gradient and what they record.

    names: of the parameter leaves. modules: of the layer that each of them belongs to. titles: of the layers.
    """

    function: str
    plan: Plan
    names: list[str]
    modules: list[str]
    titles: list[str]
    measure: Callable[..., tuple[Array, list[Array], dict[int, Array]]]
    operands: tuple[Any, ...]


def _run(f: Any, argnums: Any, has_aux: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> GradientFlow:
    refuse_tracers("gradient_flow", (args, kwargs))
    at = tapping(f, argnums, has_aux, args, kwargs)
    try:
        value, gradients, records = jax.jit(at.measure)(*at.operands)
    except (TypeError, ValueError, NotImplementedError) as error:  # what JAX raises where there is no derivative
        raise AuditError(
            f"`{at.function}` has no gradient that JAX can make: {str(error).strip()[:1500]}\nMake `jax.grad` of it work "
            "first. Most likely (a) a while loop: use lax.scan, or lax.fori_loop of a static length; (b) a callback."
        ) from error
    leaves = at.operands[0]
    each = [[_recorded(x, n) for x, n in zip(xs, at.plan.sliced)] for xs in (gradients, leaves)]
    measured = Measured(*jax.device_get((value, records, *each)))
    layers = judged(rows(at.plan, at.titles, at.names, at.modules, measured))
    return GradientFlow(layers, float(measured.value), at.function)


def tapping(f: Any, argnums: Any, has_aux: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tapping:
    """The `Tapping` of a call."""
    taken = arguments(f, argnums, args, kwargs)
    name = name_of(f)

    def scalar(leaves: list[Array], others: list[Array]) -> Array:
        return checked_scalar(without_aux(taken.call(leaves, others), has_aux), has_aux)

    program, _ = traced(scalar, name, "gradient_flow", taken.leaves, taken.others)
    modules = [leaf.rpartition("/")[0] or leaf for leaf in taken.names]
    titles = list(dict.fromkeys(modules))
    plan = planned(program, [titles.index(module) for module in modules])
    operands = (taken.leaves, taken.others, [jnp.asarray(c) for _, c in program.constants], blank(plan.stages))
    return Tapping(name, plan, taken.names, modules, titles, _measurement(program, plan), operands)


def blank(stages: Sequence[Stage]) -> dict[int, Array]:
    """The records of the stages to start from, one for each iteration of the loops around them."""

    def zeros(stage: Stage) -> Array:
        fields = _activations.FIELDS if stage.kind else _cotangent_record.FIELDS
        wide = jnp.finfo(stage.dtype).dtype == jnp.float64 and not stage.kind
        shape = (*(loop.length for loop in stage.loops), len(fields))
        return jnp.zeros(shape, jnp.float64 if wide else jnp.float32)

    return {k: zeros(stage) for k, stage in enumerate(stages)}


def _measurement(program: Body, plan: Plan) -> Callable[..., Any]:
    inputs = (*program.inputs, *(var for var, _ in program.constants))
    tapped = Tapped(dataclasses.replace(program, inputs=inputs, constants=()), plan.stages)

    def run(leaves: list[Array], others: list[Array], constants: list[Array], records: dict[int, Array]) -> Any:
        def value(leaves: list[Array], records: dict[int, Array]) -> Array:
            return tapped([*leaves, *others, *constants], records)[0]

        total, (gradients, found) = jax.value_and_grad(value, (0, 1))(leaves, records)
        return total, gradients, found

    return run


@functools.partial(jax.jit, static_argnums=1)
def _recorded(x: Array, axes: int) -> Array:
    wide = jnp.finfo(x.dtype).dtype == jnp.float64
    return record(x, min(axes, x.ndim), jnp.float64 if wide else jnp.float32)
