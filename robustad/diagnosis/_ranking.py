"""Whose error is it: what each equation contributes to the error of an output, and what the problem itself amplifies."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad import _jaxpr
from robustad._interpret import interpret
from robustad._jaxpr import Body, Path, Site
from robustad.arithmetic import _shadow
from robustad.arithmetic._contribution import ContributionArithmetic, Shifted
from robustad.arithmetic._shadow import Shadow, ShadowArithmetic
from robustad.diagnosis._leaves import precision_of
from robustad.diagnosis._program import Audited


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
    """What an output's error is made of.

    error: its 2-norm. shares: path of an equation to its part of it (signed; they add up to 1). condition: how large an
    error rounding the inputs once would make in the same direction, as a share of it.
    """

    error: float
    shares: dict[Path, float]
    condition: float


MOST_RANKED = 4
"""Outputs that are looked into, those that have lost most bits."""


def rank(audited: Audited, wanted: Sequence[tuple[int, str, np.ndarray]]) -> dict[str, Ranked]:
    """What the errors of outputs are made of, by name; (number of the output, its name, which of its slices count)."""
    if not wanted:
        return {}
    program, sites = ranking_program(audited)
    run = jax.jit(program)
    ranked = {}
    shapes = [_jaxpr.aval(out).shape for out in audited.program.outputs]
    looked_into = {k for k, *_ in wanted}
    for k, name, failing in wanted:
        weights = [jnp.zeros((1,) * len(shape)) if i in looked_into else None for i, shape in enumerate(shapes)]
        weights[k] = (
            jnp.asarray(failing, np.float64).reshape(-1, *(1 for _ in shapes[k][1:])) if shapes[k] else jnp.ones(())
        )
        shares, condition, error = (np.asarray(x) for x in run(*audited.operands, weights))
        if error > 0 and np.isfinite(shares).all():
            parts = {site.path: float(x) for site, x in zip(sites, shares) if x}
            ranked[name] = Ranked(float(error), parts, float(condition))
    return ranked


def ranking_program(audited: Audited) -> tuple[Callable[..., Any], list[Site]]:
    """(constants, inputs, weights) to (shares of the equations, condition, size) of the weighted outputs' error, to be
    jitted and run inside `jax.enable_x64(True)`; and the equations.

    `weights`: for the value and each gradient leaf an array that broadcasts to it, 0 where its error does not count, or
    None where no element of it does: what it alone is made of is left out, infinite slopes too.
    """
    sites = list(audited.flow.sites.values())
    numbers = {site.path: k for k, site in enumerate(sites)}
    program = audited.closed

    def run(constants: Sequence[Array], inputs: Sequence[Array], weights: Sequence[Array | None]) -> Any:
        pieces = list(_jaxpr.segments(program, SEGMENT, _shadow.CONTRACTING))
        env = dict(zip(program.inputs, map(_shadow.lift, [*constants, *inputs]), strict=True))
        for k, piece in enumerate(pieces):
            outs, _ = interpret(ShadowArithmetic(), piece, [env[var] for var in piece.inputs], (), k * SEGMENT)
            env.update(zip(piece.outputs, outs, strict=True))

        pulled, size = _directions(program, env, weights)  # what the error of a variable counts, where it counts
        shares = jnp.zeros(len(sites), np.float64)
        for k, piece in reversed(list(enumerate(pieces))):
            here = [env[var] for var in piece.inputs]
            above = [pulled.pop(var, None) for var in piece.outputs]
            if all(x is None for x in above):
                continue
            # Computed anew once it is wanted, lest all slopes be held at a time.
            costly = [i for i, eqn in enumerate(piece.equations) if eqn.primitive.name in _shadow.CONTRACTING]
            outs = [[env[var] for var in piece.equations[i].outvars] for i in costly]
            ends = [env[var] for var in piece.outputs]
            here, outs, ends = _after((shares, [x for x in above if x is not None]), (here, outs, ends))
            known = {
                (k * SEGMENT + i,): [Shifted(o.working, o.high, None) for o in out] for i, out in zip(costly, outs)
            }

            def distances(
                moves: Sequence[Array | None],
                shifts: Array,
                k=k,
                piece=piece,
                here=here,
                known=known,
                ends=ends,
                above=above,
            ):
                values = [Shifted(v.working, v.high, move) for v, move in zip(here, moves)]
                arithmetic = ContributionArithmetic(numbers, shifts, known)
                outs, _ = interpret(arithmetic, piece, values, (), k * SEGMENT)
                # What the compiler rounds otherwise the second time is its equation's own error too.
                makers = {
                    var: numbers[k * SEGMENT + i,] for i, eqn in enumerate(piece.equations) for var in eqn.outvars
                }
                return [
                    out.distance + shifts[makers[var]] * (Shifted(end.working, end.high, None).gap - out.gap)
                    for var, end, out, wanted in zip(piece.outputs, ends, outs, above)
                    if wanted is not None
                ]

            start = [None if v.high is None else jnp.zeros_like(v.high) for v in here]
            _, back = jax.vjp(distances, start, jnp.ones(len(sites), np.float64))
            moves, own = back([x for x in above if x is not None])
            shares += own
            for var, move in zip(piece.inputs, moves):
                if move is not None:
                    pulled[var] = pulled[var] + move if var in pulled else move
        rounded = jnp.zeros((), np.float64)
        for var, x in zip(program.inputs[len(constants) :], inputs):
            slope, high = pulled.get(var), env[var].high
            if slope is not None and high is not None:
                u = 2.0 ** -precision_of(x.dtype)
                rounded += jnp.sum(jnp.abs(slope * high) ** 2) * u**2
        return shares, jnp.sqrt(rounded), size

    return run, sites


def _directions(
    program: Body, env: dict[Any, Shadow], weights: Sequence[Array | None]
) -> tuple[dict[Any, Array], Array]:
    """The weighted error of each output over the square of its size (projected on it, the errors add up to 1); the size."""
    errors: dict[Any, Array] = {}
    for var, weight in zip(program.outputs, weights):
        if weight is not None and _jaxpr.literal(var) is None and env[var].high is not None:
            error = weight * Shifted(env[var].working, env[var].high, None).gap
            errors[var] = errors[var] + error if var in errors else error
    largest = jnp.stack([jnp.max(jnp.abs(e), initial=0.0) for e in errors.values()]).max()
    safe = jnp.where(largest > 0, largest, 1.0)
    size = safe * jnp.sqrt(sum(jnp.sum(jnp.abs(e / safe) ** 2) for e in errors.values()))
    unit = jnp.where(size > 0, size, 1.0)
    return {var: e / unit / unit for var, e in errors.items()}, size


SEGMENT = 16
"""Equations whose slopes are held at a time."""


def _after(known: Any, values: Any) -> Any:
    """`values` once `known` is known: what is computed of them cannot be merged with what was computed of them before.

    XLA on CPU strips `optimization_barrier` before it merges (jax 0.10); that a population count is not negative it does
    not know.
    """
    some = sum(jnp.real(x).ravel()[:1].sum() for x in jax.tree.leaves(known))
    always = jax.lax.population_count(jax.lax.bitcast_convert_type(some, np.int64)) >= 0
    return jax.tree.map(lambda x: jnp.where(always, x, jnp.zeros_like(x)), values)
