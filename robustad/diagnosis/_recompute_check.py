"""`recompute_check`: does a gradient that recomputes its residuals agree with one that stores them?"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import _jaxpr
from robustad._eager import UnsupportedError
from robustad._jaxpr import Body, Call, Cond, Scan
from robustad.arithmetic._ball_cost import TooLargeError
from robustad.arithmetic._ball_walk import exact_outputs
from robustad.diagnosis._accuracy import norm, wide
from robustad.diagnosis._first_pass import shadow_program
from robustad.diagnosis._nan_inputs import refuse_nan_that_reaches
from robustad.diagnosis._options import name_of, refuse_no_function
from robustad.diagnosis._point import MOST
from robustad.diagnosis._program import Audited, derivative_program
from robustad.diagnosis._tracing import refuse_tracers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecomputedLeaf:
    """One gradient leaf. ulps: the largest difference, in units in the last place of the leaf's largest element; 0 where
    all bits agree. error_stored, error_recomputed: norm-wise, relative to a reference of higher precision; NaN without."""

    name: str = dataclasses.field(metadata={"static": True})
    ok: bool = dataclasses.field(metadata={"static": True})
    ulps: float = dataclasses.field(metadata={"static": True})
    error_stored: float = dataclasses.field(metadata={"static": True})
    error_recomputed: float = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class RecomputeCheck:
    """The result of `recompute_check`.

    Attributes:
        leaves: a `RecomputedLeaf` for each gradient leaf.
        repeatable: two calls give the same bits, with stored and with recomputed residuals. Where they do not, something in
            the function is different each time it is run, and the gradient is that of no function.
        checkpointed: whether the function holds a `jax.checkpoint` of its own; else `jax.checkpoint(f)` was compared.
        ok: repeatable, and no leaf's error is more than twice that with stored residuals (a unit in the last place allowed).
        function: what was checked.
    """

    leaves: tuple[RecomputedLeaf, ...]
    repeatable: bool = dataclasses.field(metadata={"static": True})
    checkpointed: bool = dataclasses.field(metadata={"static": True})
    ok: bool = dataclasses.field(metadata={"static": True})
    function: str = dataclasses.field(metadata={"static": True})

    @property
    def identical(self) -> bool:
        """Whether all bits agree."""
        return all(leaf.ulps == 0 for leaf in self.leaves)

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger."""
        flags = {"ok": float(self.ok), "repeatable": float(self.repeatable)}
        return flags | {f"ulps/{leaf.name}": leaf.ulps for leaf in self.leaves}

    def __str__(self) -> str:
        of = "its own jax.checkpoint" if self.checkpointed else "jax.checkpoint(f)"
        lines = [f"recompute_check({self.function}): {'ok' if self.ok else 'NOT ok'}, {of} against stored residuals"]
        if not self.repeatable:
            lines.append(
                "  not repeatable: two calls give different bits. The function is stochastic or impure (a callback with "
                "a state of its own, a random number without a key): recomputation makes residuals of another run."
            )
        for leaf in self.leaves:
            errors = f"errors {leaf.error_stored:.2e} stored, {leaf.error_recomputed:.2e} recomputed"
            lines.append(
                f"  {leaf.name or 'gradient'}: {'ok' if leaf.ok else 'WORSE'}, {leaf.ulps:g} ulp apart, {errors}"
            )
        return "\n".join(lines)

    __repr__ = __str__


def recompute_check(
    f: Callable[..., Any], *, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., RecomputeCheck]:
    """Whether recomputing residuals (`jax.checkpoint`) changes the gradient of `f`.

    The gradient of `f` as it is, and of `f` with every `jax.checkpoint` in it taken out; where it holds none, of
    `jax.checkpoint(f)` and of `f`. Recomputation may add up in another order: that is fine as long as the errors against a
    run of higher precision stay the same. A function that computes something else when it is run again is not: it is
    run twice to see.

    Args:
        f: as for `rad.audit`: a function to a real floating scalar.
        argnums, has_aux: as for `jax.grad`.

    Returns:
        A function of `f`'s arguments that returns a `RecomputeCheck`. The reference is float64, or for programs in float64
        the exact walk where python-flint is installed and they are small.

    Raises:
        ValueError: what `rad.audit` refuses.

    >>> import jax, jax.numpy as jnp
    >>> from robustad.diagnosis import recompute_check
    >>> check = recompute_check(jax.checkpoint(lambda x: jnp.sum(jnp.sin(x) ** 2)))(jnp.arange(3.0))
    >>> check.ok, check.checkpointed, check.repeatable
    (True, True, True)
    """
    refuse_no_function(f, "recompute_check")

    @functools.wraps(f, updated=())
    def check(*args: Any, **kwargs: Any) -> RecomputeCheck:
        refuse_tracers("recompute_check", (args, kwargs))
        with jax.debug_nans(False), jax.debug_infs(False), jax.disable_jit(False):
            audited = derivative_program(f, argnums, has_aux, args, kwargs)
            refuse_nan_that_reaches(
                audited.arguments, jax.value_and_grad(audited.function), "the value or the gradient"
            )
            return _run(f, audited)

    return check


def _run(f: Any, audited: Audited) -> RecomputeCheck:
    leaves, others = audited.arguments.leaves, audited.arguments.others
    program, _ = _jaxpr.trace(audited.function, leaves, others)
    checkpointed = any(_recomputes(site.equation) for site in _jaxpr.sites(program))

    def stored(leaves: list[Array], others: list[Array]) -> Array:
        (value,) = _without_recomputation(program, [*leaves, *others])
        return value

    given = audited.function if checkpointed else jax.checkpoint(audited.function)
    made = []
    for function in (stored if checkpointed else audited.function, given):
        gradient = jax.jit(jax.value_and_grad(function))
        made.append([jax.tree.leaves(gradient(leaves, others)) for _ in range(2)])
    repeatable = all(_same_bits(a, b) for first, second in made for a, b in zip(first, second))
    reference = _reference(audited)
    found = []
    for k, name in enumerate(audited.arguments.names, 1):
        found.append(_leaf(name, made[0][0][k], made[1][0][k], reference[k]))
    return RecomputeCheck(
        leaves=tuple(found),
        repeatable=repeatable,
        checkpointed=checkpointed,
        ok=repeatable and all(leaf.ok for leaf in found),
        function=name_of(f),
    )


def _reference(audited: Audited) -> list[np.ndarray | None]:
    """Value and gradient in higher precision; None where there is none."""
    with jax.enable_x64(True):
        outs, _ = shadow_program(audited)(*audited.operands)
    high: list[np.ndarray | None] = [np.asarray(out.high) for out in outs]
    known = [audited.value, *audited.leaves]
    if all(k.precision is not None for k in known):
        return high
    try:
        operands = [*audited.arguments.leaves, *audited.arguments.others]
        return [out.value for out in exact_outputs(audited.program, operands, MOST, floor=-1022)]
    except (UnsupportedError, TooLargeError, ImportError):
        return [x if k.precision is not None else None for x, k in zip(high, known)]


def _leaf(name: str, stored: Array, recomputed: Array, reference: np.ndarray | None) -> RecomputedLeaf:
    a, b = (np.asarray(x).astype(wide(np.asarray(x))) for x in (stored, recomputed))
    ulp = float(jnp.finfo(stored.dtype).eps) * 2.0 ** np.floor(np.log2(max(np.max(np.abs(a), initial=0.0), 2.0**-1022)))
    with np.errstate(invalid="ignore"):
        apart = np.where(_equal(a, b), 0.0, np.abs(a - b))
    ulps = float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0)) / ulp
    errors = [np.nan, np.nan]
    if reference is not None and np.isfinite(reference).all():
        size = norm(reference)
        errors = [norm(x - reference) / size if size else norm(x - reference) for x in (a, b)]
    finite = bool(np.isfinite(b).all()) or not np.isfinite(a).all()
    allowed = 2 * errors[0] + float(jnp.finfo(stored.dtype).eps)
    return RecomputedLeaf(name, finite and not errors[1] > allowed, ulps, float(errors[0]), float(errors[1]))


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a == b) | (np.isnan(a) & np.isnan(b))


def _same_bits(a: Array, b: Array) -> bool:
    return bool(_equal(np.asarray(a), np.asarray(b)).all())


# ------------------------------------------------------------------------------------------ stored residuals


def _recomputes(eqn: _jaxpr.Equation) -> bool:
    return eqn.primitive.name in ("remat2", "remat", "checkpoint")


def _without_recomputation(program: Body, operands: Sequence[Array]) -> list[Array]:
    """A program with the bodies of its `jax.checkpoint`s in their place; functions with rules of their own stay."""
    env: dict[Any, Any] = dict(program.constants) | dict(zip(program.inputs, operands))

    def read(atom: Any) -> Any:
        constant = _jaxpr.literal(atom)
        return env[atom] if constant is None else constant

    for eqn in program.equations:
        ins = [read(atom) for atom in eqn.invars]
        inner = _jaxpr.control(eqn)
        held = inner and any(_recomputes(s.equation) for body in _jaxpr.bodies(inner) for s in _jaxpr.sites(body))
        if isinstance(inner, Call) and (_recomputes(eqn) or (held and eqn.primitive.name in ("jit", "pjit"))):
            outs = _without_recomputation(inner.body, inner.of(ins))
        elif isinstance(inner, Scan) and held:
            outs = _scan(inner, ins)
        elif isinstance(inner, Cond) and held:
            branches = [functools.partial(_branch, body) for body in inner.branches]
            outs = lax.switch(jnp.asarray(ins[0]).astype(jnp.int32), branches, *ins[1:])
        else:
            outs = _jaxpr.evaluate(eqn, ins)
        env.update(zip(eqn.outvars, outs))
    return [read(atom) for atom in program.outputs]


def _branch(body: Body, *operands: Array) -> list[Array]:
    return _without_recomputation(body, operands)


def _scan(scan: Scan, operands: list[Array]) -> list[Array]:
    consts, first = operands[: scan.consts], operands[scan.consts : scan.consts + scan.carry]

    def step(carry: list[Array], x: list[Array]) -> tuple[list[Array], list[Array]]:
        outs = _without_recomputation(scan.body, [*consts, *carry, *x])
        return outs[: scan.carry], outs[scan.carry :]

    xs = operands[scan.consts + scan.carry :]
    carry, ys = lax.scan(step, first, xs, scan.length, reverse=scan.reverse, unroll=scan.unroll)
    return [*carry, *ys]
