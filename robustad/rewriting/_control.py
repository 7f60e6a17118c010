"""Control flow whose bodies have been rewritten, as a function of the equation's operands.

Loops stay loops and `jax.checkpoint` stays one, with its policy: the body alone is another.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad import _jaxpr
from robustad._jaxpr import Call, Cond, Control, Equation, Scan, ShardMap, While
from robustad.rewriting._accumulators import Wide

Function = Callable[..., list[Array]]


def with_bodies(eqn: Equation, inner: Control, bodies: Sequence[Function], wide: Wide) -> Function:
    """The control flow of an equation with other bodies, in the order of `_jaxpr.bodies`.

    Branches of a `Cond` take one operand more, before the others: whether they are the one that is taken. The body of a
    `Scan` takes and gives what is `wide` in float32.
    """
    if isinstance(inner, Scan):
        return functools.partial(_scan, wide, inner, bodies)
    return functools.partial(_RULES[type(inner)], eqn, inner, bodies)


def _call(eqn: Equation, call: Call, bodies: Sequence[Function], *operands: Array) -> list[Array]:
    (body,) = bodies
    taken = call.of(operands)
    if eqn.primitive.name not in ("remat2", "checkpoint", "remat"):
        return body(*taken)
    if eqn.params.get("differentiated"):
        return body(*(lax.optimization_barrier(taken) if call.barrier else taken))
    options = {key: eqn.params[key] for key in ("prevent_cse", "policy") if key in eqn.params}
    return jax.checkpoint(body, **options)(*taken)


def _scan(wide: Wide, scan: Scan, bodies: Sequence[Function], *operands: Array) -> list[Array]:
    consts, carry = list(operands[: scan.consts]), list(operands[scan.consts : scan.consts + scan.carry])
    # A body that has been rewritten may return strong types where the user's are weak.
    dtypes = [jnp.result_type(c) for c in carry]
    inside = [jnp.dtype(jnp.float32) if i in wide.carries else d for i, d in enumerate(dtypes)]
    carry = [lax.convert_element_type(c, d) for c, d in zip(carry, inside)]
    for i in wide.consts:
        consts[i] = lax.convert_element_type(consts[i], jnp.float32)

    def step(state: list[Array], x: list[Array]) -> tuple[list[Array], list[Array]]:
        outs = bodies[0](*consts, *state, *x)
        return list(outs[: scan.carry]), list(outs[scan.carry :])

    xs = list(operands[scan.consts + scan.carry :])
    carry, ys = lax.scan(step, carry, xs, scan.length, reverse=scan.reverse, unroll=scan.unroll)
    return [*(lax.convert_element_type(c, d) for c, d in zip(carry, dtypes)), *ys]


def _while(eqn: Equation, loop: While, bodies: Sequence[Function], *operands: Array) -> list[Array]:
    condition, body = bodies
    both = loop.cond_consts + loop.body_consts
    cond_consts, body_consts = operands[: loop.cond_consts], operands[loop.cond_consts : both]
    init = [lax.convert_element_type(c, jnp.result_type(c)) for c in operands[both:]]
    batched = loop.cond.outputs[0].aval.ndim > 0

    def proceeds(carry: list[Array]) -> Array:
        return condition(*cond_consts, *carry)[0]

    def step(carry: list[Array]) -> list[Array]:
        outs = list(body(*body_consts, *carry))
        if not batched:
            return outs
        goes_on = proceeds(carry)  # under vmap the others keep their values
        wide = [lax.broadcast_in_dim(goes_on, c.shape, range(goes_on.ndim)) for c in carry]
        return [lax.select(w, new, old) for w, new, old in zip(wide, outs, carry)]

    return list(lax.while_loop(lambda carry: jnp.any(proceeds(carry)), step, init))


def _cond(eqn: Equation, cond: Cond, bodies: Sequence[Function], *operands: Array) -> list[Array]:
    index, *rest = operands
    index = lax.convert_element_type(index, jnp.int32)

    def branch(k: int) -> Function:
        return lambda taken, *values: list(bodies[k](taken == k, *values))

    return list(lax.switch(index, [branch(k) for k in range(len(bodies))], index, *rest))


def _shard_map(eqn: Equation, mapped: ShardMap, bodies: Sequence[Function], *operands: Array) -> list[Array]:
    run = jax.shard_map(
        lambda *shards: list(bodies[0](*shards)),
        mesh=mapped.mesh,
        in_specs=tuple(mapped.in_specs),
        out_specs=list(mapped.out_specs),
        axis_names=set(mapped.axis_names),
        check_vma=mapped.check_vma,
    )
    return list(run(*operands))


_RULES: dict[type[Control], Callable[..., list[Array]]] = {
    Call: _call,
    While: _while,
    Cond: _cond,
    ShardMap: _shard_map,
}


def is_rebuilt(eqn: Equation, inner: Control) -> bool:
    """Whether the bodies of an equation may be rewritten: not those of custom derivatives, which are the user's word."""
    if isinstance(inner, Call):
        return eqn.primitive.name in ("remat2", "checkpoint", "remat", "jit", "pjit") and not _sharded(eqn)
    return True


def _sharded(eqn: Equation) -> bool:
    """Whether a call says where its arrays lie."""
    given = (*eqn.params.get("in_shardings", ()), *eqn.params.get("out_shardings", ()))
    return any(_jaxpr.is_specified(s) for s in given)
