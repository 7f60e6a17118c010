"""The user's arguments taken apart: what is differentiated, what is traced beside it, what stays as it is.

flax nnx modules (their `Param`s), equinox modules (their floating arrays; functions are partitioned off), linen's and
plain pytrees all work, and neither library is imported here.
"""

import collections
import dataclasses
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad import _jaxpr


class AuditError(ValueError):
    """The audit could not run; the message says what was got, what was expected and the likely fix."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument: its differentiated arrays with their names, its other arrays, and the ways back."""

    leaves: list[Array]
    names: list[str]
    paths: list[str]
    others: list[Array]
    rebuild: Callable[[Sequence[Array], Sequence[Array]], Any]
    like: Callable[[Sequence[Any]], Any]
    """The pytree of a gradient, from one thing a leaf."""


def take_apart(argument: Any, differentiated: bool) -> Argument:
    """Takes one argument apart; `differentiated`: whether its floating leaves are."""
    nnx = sys.modules.get("flax.nnx")
    if nnx and _holds(argument, nnx.Module):
        graph, params, rest = nnx.split(argument, nnx.Param, ...)
        held, state = _plain(params, differentiated, False), _plain(rest, False, False)
        n = len(held.others)

        def merge(leaves: Sequence[Array], others: Sequence[Array]) -> Any:
            return nnx.merge(graph, held.rebuild(leaves, others[:n]), state.rebuild([], others[n:]))

        names = [name.removesuffix("/value") for name in held.names]
        return Argument(held.leaves, names, held.paths, held.others + state.others, merge, held.like)
    equinox = sys.modules.get("equinox")
    arrays_only = equinox is not None and _holds(argument, equinox.Module)
    return _plain(argument, differentiated, arrays_only)


def _holds(tree: Any, kind: type) -> bool:
    return any(isinstance(x, kind) for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)))


def _plain(tree: Any, differentiated: bool, arrays_only: bool) -> Argument:
    with_paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves: list[Array] = []
    names: list[str] = []
    paths: list[str] = []
    others: list[Array] = []
    plan: list[tuple[str, Any]] = []
    for path, x in with_paths:
        is_array = isinstance(x, jax.Array | np.ndarray | np.generic)
        is_number = isinstance(x, float | complex) and not is_array and not arrays_only
        if differentiated and ((is_array and _jaxpr.is_inexact(jnp.asarray(x))) or is_number):
            plan.append(("leaf", len(leaves)))
            leaves.append(jnp.asarray(x))
            names.append(jax.tree_util.keystr(path, simple=True, separator="/"))
            paths.append(jax.tree_util.keystr(path))
        elif is_array and (isinstance(x, jax.Array) or x.dtype.kind in "biufcV"):
            plan.append(("other", len(others)))
            others.append(jnp.asarray(x))
        else:
            plan.append(("static", x))

    def rebuild(leaves: Sequence[Array], others: Sequence[Array]) -> Any:
        held = {"leaf": leaves, "other": others}
        return structure.unflatten(x if kind == "static" else held[kind][x] for kind, x in plan)

    def like(things: Sequence[Any]) -> Any:
        return structure.unflatten(things[x] if kind == "leaf" else None for kind, x in plan)

    return Argument(leaves, names, paths, others, rebuild, like)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """All arguments of a call: `f.call(leaves, others)` is the user's function of the arrays alone."""

    call: Callable[[Sequence[Array], Sequence[Array]], Any]
    leaves: list[Array]
    names: list[str]
    others: list[Array]
    like: Callable[[Sequence[Any]], Any]
    inputs: list[tuple[str, Array]]
    """Every array by its full name, for messages."""


def arguments(f: Callable[..., Any], argnums: int | Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]):
    """The `Arguments` of `f(*args, **kwargs)`, differentiated with respect to `argnums`.

    Raises:
        AuditError: `argnums` is not an index (or indices) of a positional argument, or holds no floating array.
    """
    wanted = _argnums(argnums, len(args))
    parts = [take_apart(a, i in wanted) for i, a in enumerate(args)]
    keywords = take_apart(kwargs, False)
    titles = _titles(f, len(args))
    if not any(p.leaves for p in parts):
        got = ", ".join(f"`{titles[i]}`: {_describe(args[i])}" for i in wanted)
        raise AuditError(
            f"there is nothing to differentiate: argnums={argnums!r} holds no floating array (got {got}). Most likely "
            "the parameters are another argument: pass `argnums=`; or they are integers: cast them to float32."
        )
    for i in wanted:
        if isinstance(args[i], int | jax.Array | np.ndarray | np.generic) and not parts[i].leaves:
            raise AuditError(
                f"argument `{titles[i]}` of argnums={argnums!r} is {_describe(args[i])}, which has no derivative; "
                "expected floating arrays. Leave it out of `argnums`, or cast it to float32."
            )

    def call(leaves: Sequence[Array], others: Sequence[Array]) -> Any:
        leaves, others, built = list(leaves), list(others), []
        for p in parts:
            built.append(p.rebuild(leaves[: len(p.leaves)], others[: len(p.others)]))
            leaves, others = leaves[len(p.leaves) :], others[len(p.others) :]
        return f(*built, **keywords.rebuild([], others))

    def like(things: Sequence[Any]) -> Any:
        things, trees = list(things), []
        for i, p in enumerate(parts):
            if i in wanted:
                trees.append(p.like(things[: len(p.leaves)]))
            things = things[len(p.leaves) :]
        order = sorted(wanted)
        trees = [trees[order.index(i)] for i in wanted]
        return trees[0] if isinstance(argnums, int | np.integer) else tuple(trees)

    names, full = [], []
    for i, p in enumerate(parts):
        for name, path in zip(p.names, p.paths):
            names.append(titles[i] if not name else f"{titles[i]}/{name}" if len(wanted) > 1 else name)
            full.append(f"{titles[i]}{path}" if path else f"args[{i}]")
    names = distinct(names, full)
    leaves = [x for p in parts for x in p.leaves]
    others = [x for p in parts for x in p.others] + keywords.others
    inputs = [(titles[i], x) for i, p in enumerate(parts) for x in [*p.leaves, *p.others]]
    inputs += [("keyword arguments", x) for x in keywords.others]
    return Arguments(call, leaves, names, others, like, inputs)


def distinct(names: Sequence[str], full: Sequence[str]) -> list[str]:
    """The names of leaves: the `full` one of a leaf that shares its name, with another or with the function's value."""
    shared = collections.Counter([*names, "value"])
    return [long if shared[name] > 1 else name for name, long in zip(names, full)]


def _argnums(argnums: Any, n: int) -> tuple[int, ...]:
    given = (argnums,) if isinstance(argnums, int | np.integer) else argnums
    ints = isinstance(given, Sequence) and all(
        isinstance(i, int | np.integer) and not isinstance(i, bool) for i in given
    )
    if not ints or not given:
        raise AuditError(f"`argnums` must be an int or a non-empty sequence of ints; got {argnums!r}.")
    wrong = [i for i in given if not -n <= i < n]
    if wrong:
        raise AuditError(
            f"`argnums`={argnums!r} names argument {wrong[0]}, but the call has {n} positional "
            f"argument{'s' * (n != 1)} (0 to {n - 1}). Keyword arguments are not differentiated: pass it by position."
            if n
            else f"`argnums`={argnums!r}, but the call has no positional argument to differentiate."
        )
    wanted = tuple(int(i) % n for i in given)
    if len(set(wanted)) != len(wanted):
        raise AuditError(f"`argnums`={argnums!r} names an argument twice.")
    return wanted


def _titles(f: Callable[..., Any], n: int) -> list[str]:
    try:
        names = [
            p.name
            for p in inspect.signature(f).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        names = []
    return [names[i] if i < len(names) else f"args[{i}]" for i in range(n)]


def _describe(x: Any) -> str:
    if isinstance(x, jax.Array | np.ndarray | np.generic):
        return f"{x.dtype}{list(x.shape)}"
    leaves = jax.tree.leaves(x)
    if len(leaves) == 1 and leaves[0] is x:
        return type(x).__name__
    return f"{type(x).__name__} of " + (", ".join(sorted({_describe(leaf) for leaf in leaves})[:4]) or "nothing")
