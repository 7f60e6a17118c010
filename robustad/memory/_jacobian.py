"""Jacobians a few rows or columns at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad import _jaxpr
from robustad.memory._arguments import bound, positions, positive_integer, refuse_what_is_no_function


def jacobian(
    f: Callable[..., Any],
    chunk: int,
    *,
    argnums: int | Sequence[int] = 0,
    mode: Literal["forward", "reverse"] | None = None,
) -> Callable[..., Any]:
    r"""`jax.jacrev` or `jax.jacfwd` with the memory of `chunk` derivatives at a time.

    JAX computes all rows (or columns) of the Jacobian at once, by `vmap`, and keeps the intermediate values of all. Here
    they are computed `chunk` at a time in a loop; only the result is as large as the Jacobian.

    Args:
        f: a function of pytrees of real floating arrays that returns one.
        chunk: rows (reverse) or columns (forward) at a time, at least 1. More take more memory and less time.
        argnums: the positions of the arguments to differentiate. The others, also those given by keyword, are constants.
        mode: "reverse": by rows, one backward pass each, from one forward pass. "forward": by columns. None: the one with
            fewer passes, reverse where f has no more outputs than inputs. A Hessian is
            `jacobian(jax.grad(f), chunk, mode="forward")`.

    Returns:
        A function of f's arguments that returns what `jax.jacrev(f, argnums)` returns: the tree of f's result, of trees of
        the arguments, of arrays of shape `(*result.shape, *argument.shape)`.

    Raises:
        TypeError: f is no function; `chunk` or `argnums` is not of integers; an argument or result is not real floating.
        ValueError: `chunk` is below 1; `mode` is none of the words above; `argnums` do not fit the call.

    Source: A. Griewank, A. Walther, "Evaluating Derivatives", 2nd ed. (2008), chapter 3 (vector modes).

    >>> import jax, jax.numpy as jnp
    >>> from robustad.memory import jacobian
    >>> jax.jit(jacobian(lambda x: x[:2] * x[1], 2))(jnp.array([3.0, 4.0, 5.0])).tolist()
    [[4.0, 3.0, 0.0], [0.0, 8.0, 0.0]]
    """
    refuse_what_is_no_function("f", f)
    chunk = positive_integer("chunk", chunk)
    if mode not in (None, "forward", "reverse"):
        raise ValueError(f'`mode` must be "forward", "reverse" or None; got {mode!r}.')

    @functools.wraps(f)
    def of(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = bound(f, args, kwargs)
        places = positions(argnums, len(args))

        def of_chosen(chosen: Any) -> Any:
            full = list(args)
            for i, value in zip(places, chosen):
                full[i] = value
            return f(*full, **kwargs)

        given = jax.tree.map(jnp.asarray, tuple(args[i] for i in places))
        shapes = jax.eval_shape(of_chosen, given)
        _require_real("argument", given, "Leave it out of `argnums`, or close over it.")
        _require_real("result", shapes, "Return `jnp.real` and `jnp.imag` of what is complex, and convert the others.")
        rows = _size(shapes) <= _size(given) if mode is None else mode == "reverse"
        result = (_by_rows if rows else _by_columns)(of_chosen, given, chunk)
        if isinstance(argnums, Sequence):
            return result
        return jax.tree.map(lambda _, chosen: chosen[0], shapes, result)

    return of


def _by_rows(f: Callable[..., Any], x: Any, chunk: int) -> Any:
    out, back = jax.vjp(f, x)
    found = lax.map(lambda i: back(_unit(out, i))[0], jnp.arange(_size(out)), batch_size=chunk)
    starts = iter(_starts(out))

    def block(leaf: Array) -> Any:
        start, size = next(starts), leaf.size
        return jax.tree.map(lambda r: r[start : start + size].reshape(*leaf.shape, *r.shape[1:]), found)

    return jax.tree.map(block, out)


def _by_columns(f: Callable[..., Any], x: Any, chunk: int) -> Any:
    _, forward = jax.linearize(f, x)
    found = lax.map(lambda i: forward(_unit(x, i)), jnp.arange(_size(x)), batch_size=chunk)

    def block(columns: Array) -> Any:
        starts = iter(_starts(x))

        def of(leaf: Array) -> Array:
            start, size = next(starts), leaf.size
            return jnp.moveaxis(columns[start : start + size], 0, -1).reshape(*columns.shape[1:], *leaf.shape)

        return jax.tree.map(of, x)

    return jax.tree.map(block, found)


def _unit(tree: Any, i: Array) -> Any:
    """Ones at the i-th element of all of a tree's, zeros elsewhere."""
    starts = iter(_starts(tree))

    def one(leaf: Array) -> Array:
        unit = (jnp.arange(leaf.size) == i - next(starts)).astype(leaf.dtype).reshape(leaf.shape)
        return _jaxpr.varying_over(unit, _jaxpr.varies_over(leaf))

    return jax.tree.map(one, tree)


def _starts(tree: Any) -> list[int]:
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)]
    return [sum(sizes[:i]) for i in range(len(sizes))]


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _require_real(kind: str, tree: Any, remedy: str) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"`jacobian` needs real floating arrays; {kind}{jax.tree_util.keystr(path)} is of dtype "
                f"{leaf.dtype}. {remedy}"
            )
