"""The walk on the host: one program, equation by equation, with concrete values and Python's own loops.

For arithmetics whose values JAX cannot trace, such as numbers of arbitrary precision: the leaves of a value may be NumPy
arrays, of dtype object too. It keeps no records, and is meant for small programs: every equation is dispatched by itself,
every iteration of a loop anew.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustad import _jaxpr
from robustad._interpret import Arithmetic
from robustad._jaxpr import Body, Call, Cond, Control, Path, Scan, ShardMap, While

Value = TypeVar("Value")


class UnsupportedError(Exception):
    """A program cannot be walked on the host; the message names the primitive."""


def interpret_eagerly(
    arithmetic: Arithmetic[Value], program: Body, operands: Sequence[Value], path: Path = ()
) -> list[Value]:
    """The outputs of `program` on `operands` under `arithmetic`; paths are those of `_interpret.interpret`.

    Raises:
        UnsupportedError: the program holds a `shard_map` or mutable arrays.
    """
    return _Walk(arithmetic).body(program, operands, path)


class _Walk:
    def __init__(self, arithmetic: Arithmetic[Any]):
        self.arithmetic = arithmetic
        self.inner: dict[int, Control | None] = {}  # an equation's control flow is read once, not at every iteration

    def body(self, program: Body, operands: Sequence[Any], path: Path) -> list[Any]:
        lift = self.arithmetic.lift
        env: dict[Any, Any] = {var: lift(c) for var, c in program.constants}
        env.update(zip(program.inputs, operands, strict=True))

        def read(atom: Any) -> Any:
            constant = _jaxpr.literal(atom)
            return env[atom] if constant is None else lift(constant)

        for i, eqn in enumerate(program.equations):
            ins, here = [read(atom) for atom in eqn.invars], (*path, i)
            if id(eqn) not in self.inner:
                if any(_jaxpr.is_mutable(v) for v in (*eqn.invars, *eqn.outvars)):
                    raise UnsupportedError(f"`{eqn.primitive.name}` of a mutable array cannot be walked on the host.")
                self.inner[id(eqn)] = _jaxpr.control(eqn)
            if inner := self.inner[id(eqn)]:
                outs = _RULES[type(inner)](self, inner, ins, here)
            else:
                outs, _ = self.arithmetic.equation(eqn, ins, here)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in program.outputs]


def _call(walk: _Walk, call: Call, operands: list[Any], path: Path) -> list[Any]:
    return walk.body(call.body, call.of(operands), (*path, 0))


def _scan(walk: _Walk, scan: Scan, operands: list[Any], path: Path) -> list[Any]:
    consts, carry = operands[: scan.consts], operands[scan.consts : scan.consts + scan.carry]
    xs = jax.tree.map(_on_host, operands[scan.consts + scan.carry :])
    made: list[list[Any]] = []
    for i in reversed(range(scan.length)) if scan.reverse else range(scan.length):
        x = jax.tree.map(lambda leaf, i=i: leaf[i, ...], xs)
        outs = walk.body(scan.body, [*consts, *carry, *x], (*path, 0))
        carry = outs[: scan.carry]
        made.append(outs[scan.carry :])
    if scan.reverse:
        made.reverse()
    if not made:
        avals = [_jaxpr.aval(v) for v in scan.body.outputs[scan.carry :]]
        return [*carry, *(walk.arithmetic.lift(np.zeros((0, *a.shape), a.dtype)) for a in avals)]
    return [*carry, *jax.tree.map(lambda *leaves: _stacked(leaves), *made)]


def _on_host(leaf: Any) -> Any:
    """A JAX array as NumPy's, whose elements need no compiled program; keys and what is traced stay."""
    return leaf if _stays(leaf) else np.asarray(leaf)


def _stays(leaf: Any) -> bool:
    return _jaxpr.is_traced(leaf) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def _stacked(leaves: Sequence[Any]) -> Any:
    if any(map(_stays, leaves)):
        return jnp.stack(leaves)
    return np.stack([np.asarray(leaf) for leaf in leaves])


def _while(walk: _Walk, loop: While, operands: list[Any], path: Path) -> list[Any]:
    both = loop.cond_consts + loop.body_consts
    cond_consts, body_consts = operands[: loop.cond_consts], operands[loop.cond_consts : both]
    carry = operands[both:]

    def proceeds() -> np.ndarray:
        (predicate,) = walk.body(loop.cond, [*cond_consts, *carry], (*path, 0))
        return np.asarray(walk.arithmetic.plain(predicate))

    while (predicate := proceeds()).any():
        outs = walk.body(loop.body, [*body_consts, *carry], (*path, 1))
        if (
            not predicate.all()
        ):  # under vmap the loop runs on until the last example is done; the others keep their values
            outs = jax.tree.map(lambda new, old, p=predicate: _where(p, new, old), outs, carry)
        carry = outs
    return carry


def _where(predicate: np.ndarray, new: Any, old: Any) -> Any:
    """The new leaf where the predicate (its first axes) holds, the old one elsewhere."""
    which = predicate.reshape(predicate.shape + (1,) * (np.ndim(new) - predicate.ndim))
    if _stays(new) or _stays(old):
        return lax.select(np.broadcast_to(which, new.shape), new, old)
    return np.where(which, np.asarray(new), np.asarray(old))


def _cond(walk: _Walk, cond: Cond, operands: list[Any], path: Path) -> list[Any]:
    k = int(np.clip(np.asarray(walk.arithmetic.plain(operands[0])).astype(int), 0, len(cond.branches) - 1))
    return walk.body(cond.branches[k], operands[1:], (*path, k))


def _shard_map(walk: _Walk, mapped: ShardMap, operands: list[Any], path: Path) -> list[Any]:
    raise UnsupportedError("`shard_map` cannot be walked on the host.")


_RULES: dict[type[Control], Callable[..., list[Any]]] = {
    Call: _call,
    Scan: _scan,
    While: _while,
    Cond: _cond,
    ShardMap: _shard_map,
}
