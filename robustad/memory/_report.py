"""`report`: what the gradient of a function needs in memory, and which of the user's lines hold it."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Cond, Path, Scan, ShardMap, Site, While
from robustad.memory._arguments import positions, refuse_what_is_no_function
from robustad.memory._bytes import in_bytes
from robustad.memory._checkpoint import checkpoint
from robustad.memory._flat import flat
from robustad.memory._flops import equation_flops, program_flops, recomputed_flops
from robustad.memory._gradient import GradientCall
from robustad.memory._liveness import live
from robustad.memory._policies import Policy, checked

log = logging.getLogger("robustad")


@dataclasses.dataclass(frozen=True)
class ArgumentBytes:
    """One array among the arguments. per_device: of `bytes`, what the fullest device holds. donation: "given" (it is donated
    and its buffer is taken for a result), "possible" (a result of its shape and dtype exists), "unusable" (it is donated
    though there is none) or ""."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    per_device: int
    differentiated: bool
    donation: str


@dataclasses.dataclass(frozen=True)
class Residual:
    """What one line of the user's keeps for the backward pass: `count` arrays of a shape, `bytes` in all, and the operations
    that would compute them again. line: 0 where a library made it by itself."""

    file: str
    line: int
    function: str
    primitive: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    bytes: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Moment:
    """The bytes alive, beside arguments and results, while a statement of the user's runs forward or backward."""

    bytes: int
    file: str
    line: int
    backward: bool


@dataclasses.dataclass(frozen=True)
class PolicyEffect:
    """What `checkpoint(f, policy=...)` of the whole function would come to, predicted: bytes of temporaries and residuals,
    and the operations of the gradient against those without (1.0: none are added)."""

    name: str
    temporaries: int
    residuals: int
    flop_ratio: float


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """What `jax.value_and_grad` of a function needs. All sizes are bytes, on the fullest device where there are several.

    Attributes:
        arguments: each array among the arguments, largest first.
        argument_bytes, output_bytes: of all of them on a device; outputs are value, auxiliary output and gradients.
        residuals: what is kept from the forward for the backward pass, by user line and shape, largest first. Arguments that
            are kept count as arguments.
        predicted, measured: the largest temporaries, by liveness before compiling and as XLA has laid them out; measured is
            None where nothing was compiled.
        aliased: bytes of results that take the buffers of donated arguments.
        optimizer_state: of the optimizer that was given; 0 without one.
        forward_flops, gradient_flops, recomputed_flops: operations of the function, of its gradient, and of what a
            checkpoint in it computes a second time.
        devices: over how many the arguments are sharded.
        policies: what a policy would change.
        timeline: the bytes alive along the program, as predicted.
        peak_lines: what is alive at the peak, by line, largest first, as predicted.
    """

    function: str
    arguments: tuple[ArgumentBytes, ...]
    argument_bytes: int
    output_bytes: int
    residuals: tuple[Residual, ...]
    predicted: int
    measured: int | None
    aliased: int
    optimizer_state: int
    forward_flops: int
    gradient_flops: int
    recomputed_flops: int
    devices: int
    policies: tuple[PolicyEffect, ...]
    timeline: tuple[Moment, ...]
    peak_lines: tuple[Residual, ...]

    @property
    def temporaries(self) -> int:
        """Measured where it was, else predicted."""
        return self.predicted if self.measured is None else self.measured

    @property
    def residual_bytes(self) -> int:
        return sum(r.bytes for r in self.residuals)

    @property
    def donatable(self) -> int:
        """Bytes of arguments whose buffers a result could take, and that are not donated."""
        return sum(a.per_device for a in self.arguments if a.donation == "possible")

    @property
    def total(self) -> int:
        """Arguments, results, optimizer state and temporaries together."""
        return self.argument_bytes + self.output_bytes - self.aliased + self.optimizer_state + self.temporaries

    def fits(self, size: int | str) -> bool:
        """Whether `total` is at most a number of bytes, or a string as "2GiB"."""
        return self.total <= in_bytes(size)

    def to_json(self, indent: int | None = None) -> str:
        """All of it but the timeline, as JSON."""
        told = {k: v for k, v in dataclasses.asdict(self).items() if k != "timeline"}
        told |= {"temporaries": self.temporaries, "total": self.total, "donatable": self.donatable}
        return json.dumps(told, indent=indent)

    def to_html(self) -> str:
        """A page of HTML that holds all that it needs, with a picture of the bytes alive along the program."""
        from robustad.memory._report_html import page

        return page(self)

    def _repr_html_(self) -> str:
        from robustad.memory._report_html import fragment

        return fragment(self)

    def __str__(self) -> str:
        from robustad.memory._report_text import lines

        return "\n".join(lines(self))


POLICIES: dict[str, Policy] = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_with_no_batch_dims": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def report(
    f: Callable[..., Any],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    donate_argnums: int | Sequence[int] = (),
    optimizer: Any = None,
    policies: Mapping[str, Policy] | None = None,
    compile: bool = True,
) -> Callable[..., MemoryReport]:
    """What the gradient of a function needs in memory, and which lines of the user's code hold it.

    Before compiling, the bytes are predicted from the program: what each step makes, how long it is needed, what XLA will
    fuse. Then the program is compiled, not run, and what XLA has laid out is read (`compiled.memory_analysis()`).

    Args:
        f: a scalar function, or with `has_aux` a function that returns (value, aux).
        argnums: the positions of the arguments whose floating leaves are differentiated.
        donate_argnums: positions of arguments that the caller would donate (`jax.jit(..., donate_argnums=...)`).
        optimizer: an optax transformation, whose state is counted too.
        policies: by name, checkpoint policies whose effect is predicted; by default JAX's `nothing_saveable`,
            `dots_saveable` and `dots_with_no_batch_dims_saveable`. Those that cannot be applied to f are left out: all,
            where it calls back or writes to references.
        compile: False leaves out what only compiling tells: `measured` and `aliased`.

    Returns:
        A function of f's arguments that returns a `MemoryReport`. The arguments may be `jax.ShapeDtypeStruct`s, with
        shardings too: nothing is computed.

    Raises:
        TypeError: f is no function, or its value no floating scalar; a policy is none; `argnums` are no integers.
        ValueError: `argnums` do not fit the call, or name nothing that can be differentiated.

    Example:
        >>> import jax.numpy as jnp
        >>> from robustad.memory import report
        >>> def loss(w, x):
        ...     return jnp.sum(jnp.tanh(x @ w) ** 2)
        >>> needs = report(loss)(jnp.ones((64, 64)), jnp.ones((1024, 64)))
        >>> needs.argument_bytes, needs.output_bytes, needs.fits("2 MiB")
        (278528, 16388, True)
    """
    refuse_what_is_no_function("f", f)
    chosen = POLICIES if policies is None else policies
    for name, policy in chosen.items():
        checked(policy, f"policies[{name!r}]")

    def measured(*args: Any, **kwargs: Any) -> MemoryReport:
        call = GradientCall(f, argnums, has_aux, args, kwargs)
        donated = [
            k for k, i in enumerate(call.positions) if i in positions(donate_argnums, call.count, "donate_argnums")
        ]
        log.info("tracing %s", call.name)
        sites = {site.path: site for site in _jaxpr.sites(call.program)}
        steps = flat(call.program, sites)
        alive = live(steps, sites)
        gradient_flops = program_flops(call.program)
        split = max((_shards(spec) for spec in call.specs), default=1)
        effects = [_effect(call, f, name, policy, gradient_flops, split) for name, policy in chosen.items()]
        outputs = [_jaxpr.aval(v) for v in call.program.outputs]
        donations = _donations(call, outputs, donated)
        arguments = _arguments(call, donations)
        analysis = None
        if compile:
            log.info("compiling the gradient of %s", call.name)
            usable = [k for k in donated if donations[k] == "given"]
            analysis = call.compiled(usable).memory_analysis()
        output_bytes = _output_bytes(call, outputs)
        return MemoryReport(
            function=call.name,
            arguments=arguments,
            argument_bytes=sum(a.per_device for a in arguments),
            output_bytes=output_bytes,
            residuals=_residuals(call),
            predicted=alive.peak // split,
            measured=None if analysis is None else analysis.temp_size_in_bytes,
            aliased=0 if analysis is None else analysis.alias_size_in_bytes,
            optimizer_state=_state_bytes(call, optimizer),
            forward_flops=program_flops(call.forward),
            gradient_flops=gradient_flops,
            recomputed_flops=recomputed_flops(call.program),
            devices=max((len(s.sharding.device_set) for s in call.specs if s.sharding is not None), default=1),
            policies=tuple(effect for effect in effects if effect is not None),
            timeline=tuple(_moment(size, step.site) for size, step in zip(alive.bytes, steps.steps)),
            peak_lines=_at_peak(steps, alive),
        )

    return measured


# ----------------------------------------------------------------------------------------------- arguments


def _per_device(spec: Any) -> int:
    shape = spec.shape if spec.sharding is None else spec.sharding.shard_shape(spec.shape)
    return math.prod(shape) * spec.dtype.itemsize


def _shards(spec: Any) -> int:
    """Into how many different parts an array is split."""
    return max(1, _jaxpr.nbytes(spec) // max(1, _per_device(spec)))


def _donations(call: GradientCall, outputs: Sequence[Any], donated: Sequence[int]) -> dict[int, str]:
    free = [(x.shape, x.dtype) for x in outputs]
    donations = {}
    for k in sorted(range(len(call.specs)), key=lambda k: k not in donated):
        kind = (call.specs[k].shape, call.specs[k].dtype)
        if found := kind in free:
            free.remove(kind)
        donations[k] = ("given" if found else "unusable") if k in donated else ("possible" if found else "")
    return donations


def _arguments(call: GradientCall, donations: Mapping[int, str]) -> tuple[ArgumentBytes, ...]:
    made = [
        ArgumentBytes(
            call.names[k],
            tuple(spec.shape),
            str(spec.dtype),
            _jaxpr.nbytes(spec),
            _per_device(spec),
            k in call.differentiated,
            donations[k],
        )
        for k, spec in enumerate(call.specs)
    ]
    return tuple(sorted(made, key=lambda a: -a.per_device))


def _output_bytes(call: GradientCall, outputs: Sequence[Any]) -> int:
    """Gradients lie as their parameters do; the value and auxiliary outputs are whole."""
    gradients = [_per_device(call.specs[k]) for k in call.differentiated]
    return sum(map(_jaxpr.nbytes, outputs[: len(outputs) - len(gradients)])) + sum(gradients)


def _state_bytes(call: GradientCall, optimizer: Any) -> int:
    if optimizer is None:
        return 0
    if not callable(getattr(optimizer, "init", None)):
        raise TypeError(
            f"`optimizer` is {optimizer!r} of type {type(optimizer).__name__}; expected an optax transformation, as "
            "optax.adam(1e-3)."
        )
    parameters = {str(k): call.specs[k] for k in call.differentiated}
    shapes = jax.eval_shape(optimizer.init, parameters)
    lying = {spec.shape: _per_device(spec) / max(1, _jaxpr.nbytes(spec)) for spec in parameters.values()}
    return int(sum(_jaxpr.nbytes(x) * lying.get(x.shape, 1) for x in jax.tree.leaves(shapes)))


# ----------------------------------------------------------------------------------------------- residuals


def _residuals(call: GradientCall) -> tuple[Residual, ...]:
    program = call.residuals()
    sites = {site.path: site for site in _jaxpr.sites(program)}
    inputs = {*program.inputs, *(var for var, _ in program.constants)}
    kept = [v for v in dict.fromkeys(a for a in program.outputs if _jaxpr.literal(a) is None) if v not in inputs]
    made = {var: (i, k) for i, eqn in enumerate(program.equations) for k, var in enumerate(eqn.outvars)}
    rows = []
    for var in kept:
        i, k = made[var]
        rows.append((origin(program.equations[i], (i,), k, sites), _jaxpr.aval(var)))
    return by_line(rows)


def origin(eqn: Any, path: Path, k: int, sites: Mapping[Path, Site]) -> Site:
    """The equation that makes the k-th result of the equation at `path`, within loops, branches and calls."""
    inner = _jaxpr.control(eqn)
    body: Body | None = None
    at = 0
    match inner:
        case Call() | ShardMap() | Scan():
            body = inner.body
        case While():
            body, at = inner.body, 1
        case Cond():
            body = inner.branches[0]
    if body is not None and k < len(body.outputs):
        if (
            isinstance(inner, Scan) and body.outputs[k] in body.inputs
        ):  # a carry is kept as it comes: who makes the next?
            k = max(0, body.inputs.index(body.outputs[k]) - inner.consts)
        for i, nested in enumerate(body.equations):
            for j, var in enumerate(nested.outvars):
                if var is body.outputs[k]:
                    return origin(nested, (*path, at, i), j, sites)
    return sites[path]


def by_line(rows: Sequence[tuple[Site, Any]]) -> tuple[Residual, ...]:
    """Arrays and the equations that make them, by line, shape and dtype, the largest first."""
    groups: dict[Any, list[Site]] = {}
    for site, aval in rows:
        where = (site.location.file, site.location.line, site.location.function) if site.location else ("", 0, "")
        groups.setdefault((*where, tuple(aval.shape), str(aval.dtype), _jaxpr.nbytes(aval)), []).append(site)
    made = [
        Residual(
            file,
            line,
            function,
            made_by[-1].primitive,
            shape,
            dtype,
            len(made_by),
            size * len(made_by),
            sum(equation_flops(site.equation) for site in made_by),
        )
        for (file, line, function, shape, dtype, size), made_by in groups.items()
    ]
    return tuple(sorted(made, key=lambda r: -r.bytes))


def _at_peak(steps: Any, alive: Any) -> tuple[Residual, ...]:
    if not alive.bytes:
        return ()
    peak = alive.bytes.index(alive.peak)
    by = {value: step.site for step in steps.steps for value in step.results}
    held = [v for v, (_, first, last) in alive.buffers.items() if first <= peak <= last]
    return by_line([(by[v], steps.avals[v]) for v in held])


def _moment(size: int, site: Site) -> Moment:
    place = site.location
    return Moment(size, place.file if place else "", place.line if place else 0, site.transposed)


def _effect(
    call: GradientCall, f: Callable[..., Any], name: str, policy: Policy, gradient_flops: int, split: int
) -> PolicyEffect | None:
    other = call.of(checkpoint(f, policy=policy))
    try:
        sites = {site.path: site for site in _jaxpr.sites(other.program)}
    except NotImplementedError:  # a checkpoint would repeat the effects of f
        return None
    peak = live(flat(other.program, sites), sites).peak // split
    kept = sum(r.bytes for r in _residuals(other))
    return PolicyEffect(name, peak, kept, program_flops(other.program) / max(1, gradient_flops))
