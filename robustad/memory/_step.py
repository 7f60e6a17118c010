"""A user's loop body as the step of a `Loop`, and what its derivative keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

from robustad import _jaxpr
from robustad.memory._arguments import shown
from robustad.memory._checkpoint import is_data


def trace_step(name: str, body: Callable[..., Any], init: Any, x: Any) -> tuple[Any, list[Any], list[Any], Any]:
    """The program of one step of `body(carry, x) -> (carry, y)`.

    Args:
        name: the function that the user called, for messages.
        init: a pytree of arrays.
        x: a pytree of array types.

    Returns:
        The closed program (constants, carry, x) -> (carry, y) on flat lists, the constants that the body closes over, the
        initial carry in the types that the body returns, and the tree of y.
    """
    leaves, tree = jax.tree.flatten(init)
    x_leaves, x_tree = jax.tree.flatten(x)

    def flat(*operands: Any) -> Any:
        carry = jax.tree.unflatten(tree, operands[: len(leaves)])
        out = body(carry, jax.tree.unflatten(x_tree, operands[len(leaves) :]))
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(f"The body of `{name}` must return a pair (carry, y); got {shown(out)}.")
        for argument, returned in zip(("carry", "y"), out):
            _refuse_what_is_no_array(name, argument, returned)
        return out

    while True:
        closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*(jax.typeof(c) for c in leaves), *x_leaves)
        refuse_effects(name, closed.effects)
        after, y_tree = jax.tree.structure(shapes[0]), jax.tree.structure(shapes[1])
        if after != tree:
            raise TypeError(
                f"The body of `{name}` must return a carry of the structure that it takes; it takes {tree} and returns "
                f"{after}."
            )
        avals = closed.out_avals[: len(leaves)]
        promoted = [_promoted(c, aval) for c, aval in zip(leaves, avals)]
        if all(new is old for new, old in zip(promoted, leaves)):
            break
        leaves = promoted
    _refuse_other_types(name, init, leaves, avals)
    consts = [c if _jaxpr.is_traced(c) or hasattr(c, "aval") else jnp.asarray(c) for c in closed.consts]

    def step(*operands: Any) -> list[Any]:
        given = [_jaxpr.as_weak(o, aval) for o, aval in zip(operands[len(consts) :], closed.in_avals, strict=True)]
        out = _jaxpr.run(closed, operands[: len(consts)], given)
        return [_strong(o) for o in out]

    types = [*(jax.typeof(v) for v in (*consts, *leaves)), *x_leaves]
    program = jax.make_jaxpr(step)(*map(_jaxpr.strong, types))
    return program, consts, [_strong(c) for c in leaves], y_tree


def tape(step: Any, consts: int) -> int:
    """The bytes that differentiating a step keeps of it: all that depends on its carry and x, but x itself."""
    moved = [_jaxpr.is_inexact(aval) for aval in step.in_avals]

    def kept(*operands: Any) -> list[Any]:
        def of_moved(*given: Any) -> list[Any]:
            left = iter(given)
            full = [next(left) if m else o for o, m in zip(operands, moved)]
            out = jax.extend.core.jaxpr_as_fun(step)(*full)
            return [o for o in out if _jaxpr.is_inexact(o)]

        return jax.tree.leaves(jax.vjp(of_moved, *(o for o, m in zip(operands, moved) if m))[1])

    program = _jaxpr.body(jax.make_jaxpr(kept)(*step.in_avals))
    reached = _jaxpr.reached(program, [i >= consts for i in range(len(moved))])
    outputs = {id(v): _jaxpr.aval(v) for v, r in zip(program.outputs, reached) if r}
    return sum(map(_jaxpr.nbytes, outputs.values()))


def _strong(x: Any) -> Any:
    return jax.lax.convert_element_type(x, x.dtype) if getattr(jax.typeof(x), "weak_type", False) else x


def _promoted(x: Any, aval: Any) -> Any:
    """A weakly typed initial value in the dtype that the body returns, as `jax.lax.scan` has it."""
    own = jax.typeof(x)
    if getattr(own, "weak_type", False) and own.dtype != aval.dtype:
        return jax.lax.convert_element_type(x, jnp.result_type(x, aval.dtype))
    return x


def refuse_effects(name: str, effects: Any) -> None:
    effects = _jaxpr.visible(effects)
    if effects:
        raise ValueError(
            f"The body of `{name}` has effects: {', '.join(effects)}. Its steps are computed more than "
            "once in reverse mode, so they would be seen more than once. Take out of the body what prints, calls back or "
            "writes to a reference (return it as a y), or use `jax.lax.scan`."
        )


def _refuse_other_types(name: str, init: Any, leaves: Sequence[Any], avals: Sequence[Any]) -> None:
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(init)[0]]
    differing = [
        f"carry{path}: takes {jax.typeof(c).str_short()}, returns {aval.str_short()}"
        for path, c, aval in zip(paths, leaves, avals)
        if (c.shape, c.dtype) != (aval.shape, aval.dtype)
    ]
    if differing:
        raise TypeError(
            f"The body of `{name}` must return a carry of the shapes and dtypes that it takes. "
            + "; ".join(differing)
            + ". "
            "Most likely: convert the initial value, or the result (`.astype(carry.dtype)`), so that they agree."
        )


def as_arrays(name: str, argument: str, tree: Any) -> Any:
    """The pytree with arrays for its leaves."""
    _refuse_what_is_no_array(name, argument, tree)
    return jax.tree.map(jnp.asarray, tree)


def _refuse_what_is_no_array(name: str, argument: str, tree: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_data(leaf):
            raise TypeError(
                f"`{argument}` of `{name}` must be a pytree of arrays; {argument}{jax.tree_util.keystr(path)} is of type "
                f"{type(leaf).__name__}. Close over what is no array (equinox: `eqx.partition` the module; flax: "
                "`nnx.split`)."
            )
