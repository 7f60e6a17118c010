"""What the bodies of loops, branches and checkpoints are given when a program runs on examples.

A loop is run as it stands, and the inputs of its body are kept at some of its iterations: as many as give `_ROWS` rows for
all examples together, spread evenly over the iterations, and starting at another one for each example.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Cond, Control, Scan, While
from robustad.rewriting._graph import WIDE, Graph, evaluate, input_term

_ROWS = 64
_BYTES = 1 << 26  # that the rows of one body may take, unless there is but one for each example
_GOLDEN = (math.sqrt(5) - 1) / 2  # whose multiples are spread evenly in [0, 1)


class _Rows(NamedTuple):
    """Inputs of one body: an array of rows for each, and which rows count."""

    held: Array
    columns: list[Array]


def recorded(inner: Control, columns: Sequence[Any]) -> list[list[Any] | None]:
    """For each body, in the order of `_jaxpr.bodies`, rows of its inputs; None for a body that no example comes to.

    columns: the values of the operands, one row for each example.
    """
    kind = _RULES.get(type(inner))
    if kind is None or any(c.dtype in WIDE for c in columns):
        return [None] * len(_jaxpr.bodies(inner))
    count = len(columns[0])
    size = sum(c.nbytes for c in columns) // count
    slots = max(1, min(_ROWS, _BYTES // max(size, 1)) // count)
    starts = np.arange(1, count + 1) * _GOLDEN % 1

    def one(given: tuple[Array, list[Array]]) -> list[_Rows]:
        start, operands = given
        return kind(inner, slots, start, operands)

    run = jax.jit(lambda *given: lax.map(one, (given[0], list(given[1:]))))
    return [_flat(rows) for rows in run(starts.astype(np.float32), *columns)]


def _flat(rows: _Rows) -> list[Any] | None:
    (which,) = np.nonzero(np.ravel(np.asarray(rows.held)))
    if not len(which):
        return None
    return [c.reshape(rows.held.size, *c.shape[2:])[which] for c in rows.columns]


# ----------------------------------------------------------------------------- one example, by the kind of control


def _call(call: Call, slots: int, start: Array, operands: list[Array]) -> list[_Rows]:
    return [_once(jnp.bool_(True), call.of(operands))]


def _cond(cond: Cond, slots: int, start: Array, operands: list[Array]) -> list[_Rows]:
    index, *rest = operands
    last = len(cond.branches) - 1
    taken = jnp.clip(lax.convert_element_type(index, jnp.int32), 0, last)
    return [_once(taken == k, rest) for k in range(last + 1)]


def _once(held: Array, inputs: Sequence[Array]) -> _Rows:
    return _Rows(held[None], [x[None] for x in inputs])


def _scan(scan: Scan, slots: int, start: Array, operands: list[Array]) -> list[_Rows]:
    consts, rest = operands[: scan.consts], operands[scan.consts :]
    init, xs = rest[: scan.carry], rest[scan.carry :]
    body = _function(scan.body)
    slots = min(slots, scan.length)
    if not slots:
        return [_once(jnp.bool_(False), [jnp.zeros_like(x) for x in operands[: scan.consts + scan.carry]])]

    def at(t: Array) -> list[Array]:
        place = scan.length - 1 - t if scan.reverse else t
        return [lax.dynamic_index_in_dim(x, place, keepdims=False) for x in xs]

    def step(t: Array, carry: list[Array]) -> list[Array]:
        return body(*consts, *carry, *at(t))[: scan.carry]

    iterations, held, carries = _carries(init, step, jnp.int32(scan.length), slots, start)
    return [_Rows(held, [*_repeated(consts, slots), *carries, *jax.vmap(at)(iterations)])]


def _while(loop: While, slots: int, start: Array, operands: list[Array]) -> list[_Rows]:
    both = loop.cond_consts + loop.body_consts
    cond_consts, body_consts = operands[: loop.cond_consts], operands[loop.cond_consts : both]
    init = operands[both:]
    proceeds, body = _function(loop.cond), _function(loop.body)

    def goes_on(carry: list[Array]) -> Array:
        return jnp.any(proceeds(*cond_consts, *carry)[0])

    def step(t: Array, carry: list[Array]) -> list[Array]:
        return body(*body_consts, *carry)

    def counted(state: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
        t, carry = state
        return t + 1, _as(carry, step(t, carry))

    count, _ = lax.while_loop(lambda state: goes_on(state[1]), counted, (jnp.int32(0), _strong(init)))
    _, held, carries = _carries(init, step, count, slots, start)
    return [
        _Rows(held, [*_repeated(cond_consts, slots), *carries]),
        _Rows(held, [*_repeated(body_consts, slots), *carries]),
    ]


_RULES: dict[type[Control], Callable[..., list[_Rows]]] = {Call: _call, Cond: _cond, Scan: _scan, While: _while}


# ------------------------------------------------------------------------------------------------- loops


def _carries(
    init: list[Array], step: Callable[[Array, list[Array]], list[Array]], count: Array, slots: int, start: Array
) -> tuple[Array, Array, list[Array]]:
    """Which iterations are kept, which of these there are, and the carry before each."""
    kept = jnp.minimum(count, slots)
    places = jnp.arange(slots)
    held = places < kept
    spread = ((places + start) * (count / jnp.maximum(kept, 1))).astype(jnp.int32)
    iterations = jnp.where(held, jnp.minimum(spread, count - 1), -1)
    init = _strong(init)
    rows = [jnp.broadcast_to(c, (slots + 1, *c.shape)) for c in init]  # the last one takes what is not kept

    def body(t: Array, state: tuple[list[Array], list[Array]]) -> tuple[list[Array], list[Array]]:
        carry, rows = state
        here = iterations == t
        slot = jnp.where(jnp.any(here), jnp.argmax(here), slots)
        rows = [lax.dynamic_update_index_in_dim(r, c, slot, 0) for r, c in zip(rows, carry)]
        return _as(carry, step(t, carry)), rows

    _, rows = lax.fori_loop(0, count, body, (init, rows))
    return jnp.maximum(iterations, 0), held, [r[:slots] for r in rows]


def _repeated(arrays: Sequence[Array], count: int) -> list[Array]:
    return [jnp.broadcast_to(x, (count, *x.shape)) for x in arrays]


def _strong(arrays: Sequence[Array]) -> list[Array]:
    return [lax.convert_element_type(x, x.dtype) for x in arrays]


def _as(before: Sequence[Array], after: Sequence[Array]) -> list[Array]:
    return [lax.convert_element_type(b, a.dtype) for a, b in zip(before, after)]


def _function(program: Body) -> Callable[..., list[Array]]:
    """The program as it stands."""
    graph = Graph()
    inputs = [input_term(_jaxpr.aval(v)) for v in program.inputs]
    outputs = graph.read(program, inputs, lambda *_: False)
    return lambda *arrays: evaluate(outputs, graph.effects, dict(zip(inputs, arrays, strict=True)))
