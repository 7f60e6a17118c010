"""How a reduction is spread over the array that it was made of: the axes of broadcasts and reshapes, seen through."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from robustad.rewriting._graph import Term, scalar, unwrapped, widens


@dataclasses.dataclass(frozen=True)
class Spread:
    """`term` repeats `source`: axis i of the source is axis `dims[i]` of the term, of the same size."""

    source: Term
    dims: tuple[int, ...]


def spread(term: Term, through_stop_gradient: bool = False) -> Spread:
    """What a term repeats, seen through broadcasts, axes of size 1, copies and widening conversions."""
    dims = tuple(range(len(term.shape)))
    while True:
        widened = term.name == "convert_element_type" and widens(term)
        if term.name in ("copy", "pvary") or widened or (term.name == "stop_gradient" and through_stop_gradient):
            (term,) = term.operands
        elif term.name == "broadcast_in_dim" and len(term.operands) == 1:
            (before,) = term.operands
            held = term.params["broadcast_dimensions"]
            if any(before.shape[i] != term.shape[d] and before.shape[i] != 1 for i, d in enumerate(held)):
                return Spread(term, dims)
            dims = tuple(dims[d] for d in held)
            term = before
        elif term.name in ("reshape", "squeeze", "expand_dims") and (kept := _size_one_axes(term)) is not None:
            dims = tuple(dims[k] if k is not None else -1 for k in kept)
            (term,) = term.operands
        else:
            return Spread(term, dims)


def through(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[int, ...]:
    """Where axes are that lie at `inner` of what lies at `outer`; -1 for axes of size 1 that are not there."""
    return tuple(outer[d] if d >= 0 else -1 for d in inner)


def _size_one_axes(term: Term) -> tuple[int | None, ...] | None:
    """Of a reshape that adds or drops axes of size 1 alone: where each axis of its operand is; None of another one."""
    (before,) = term.operands
    if [n for n in before.shape if n != 1] != [n for n in term.shape if n != 1]:
        return None
    if term.params.get("dimensions") is not None and term.name == "reshape":
        return None
    kept: list[int | None] = []
    left = iter(i for i, n in enumerate(term.shape) if n != 1)
    for n in before.shape:
        kept.append(next(left) if n != 1 else None)
    return tuple(kept)


def reduced_axes(term: Term, *names: str) -> tuple[int, ...] | None:
    """The axes over which a term reduces its operand by one of these primitives."""
    return tuple(term.params["axes"]) if term.name in names else None


def is_spread_of(term: Term, reduction: Term, axes: tuple[int, ...], rank: int, detached: bool = False) -> bool:
    """Whether a term of an array's rank is `reduction`, made over `axes` of such an array, put back along them."""
    seen = spread(term, detached)
    if seen.source is not spread(reduction).source and unwrapped(seen.source) is not unwrapped(reduction):
        return False
    source = seen.source
    remaining = [a for a in range(rank) if a not in axes]
    if len(term.shape) != rank:  # a scalar beside an array
        return not source.shape and len(axes) == rank and not term.shape
    if len(source.shape) == len(remaining):
        return all(d == a or source.shape[i] == 1 for i, (d, a) in enumerate(zip(seen.dims, remaining)))
    if len(source.shape) == rank:  # keepdims: the reduction was seen through to where it kept its axes
        return all(d == a or source.shape[i] == 1 for i, (d, a) in enumerate(zip(seen.dims, range(rank))))
    return False


def mean_of(term: Term) -> tuple[Term, tuple[int, ...]] | None:
    """(x, axes) where a term is the mean of x over axes."""
    if term.name not in ("div", "mul"):
        return None
    for total, factor in (term.operands, term.operands[::-1])[: 1 if term.name == "div" else 2]:
        source = spread(total).source
        if (axes := reduced_axes(source, "reduce_sum")) is None or (n := scalar(factor)) is None or not n:
            continue
        (x,) = source.operands
        size = 1
        for a in axes:
            size *= x.shape[a]
        rounded = np.asarray(size if term.name == "div" else 1 / size, term.dtype).astype(float)
        if abs(float(n) - rounded) <= float(jnp.finfo(term.dtype).eps) * (term.name == "mul") * rounded:
            return x, axes
    return None
