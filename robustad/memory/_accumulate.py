"""Gradients of a large batch, of a few examples at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad import _jaxpr
from robustad.memory._arguments import bound, positions, positive_integer, refuse_what_is_no_function, shown
from robustad.stability import two_sum

_NAME = "accumulate_gradients"


def accumulate_gradients(
    f: Callable[..., Any],
    microbatch: int,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    reduction: Literal["mean", "sum"] = "mean",
    weight: Callable[..., Any] | None = None,
    accumulate: Literal["compensated", "plain"] = "compensated",
) -> Callable[..., Any]:
    r"""`jax.value_and_grad(f, argnums, has_aux)` with the memory of a microbatch.

    The batch is cut along its leading axis into microbatches, the last of which may be smaller; values and gradients of
    them are added up in a loop. With \(w_k\) the weight of microbatch k the result is
    \(\sum_k w_k f_k / \sum_k w_k\) and its gradient: of the whole batch, not the mean of the microbatches' means.

    Args:
        f: a function of parameters and a batch that returns a scalar: the mean over its examples, or their sum (see
            `reduction`); with `has_aux`, a pair of that and a pytree of arrays that are means or sums likewise: floating,
            or for a sum also integer, and of shapes that do not depend on the number of examples.
        microbatch: examples per microbatch, at least 1; the whole batch where that is smaller.
        argnums: the positions of the arguments to differentiate, pytrees. All other positional arguments are the
            batch: pytrees of arrays with one leading axis of examples (random keys: one for each example). Close
            over anything else.
        has_aux: whether f returns a pair.
        reduction: "mean" or "sum", what f does over its examples.
        weight: for a mean, `weight(*batch)` is what f divides by: for a mean over tokens, the number of tokens
            (`lambda tokens, mask: mask.sum()`). None: the number of examples. A microbatch of weight 0 counts for nothing,
            even where f is 0/0 there.
        accumulate: "compensated": sums carry their rounding errors along, in a second array of each gradient's size, and
            are right to the last bits. "plain": sums as they are. Both are in float32 for narrower gradients.

    Returns:
        A function of f's arguments that returns what `jax.value_and_grad(f, argnums, has_aux)` returns, in the same dtypes.
        For float32 it equals the gradient of the whole batch up to the rounding of that and of the microbatches.

    Raises:
        TypeError: f is no function, or does not return a scalar; `microbatch` or `argnums` is not of integers; an argument
            can be given by keyword alone; an auxiliary output can be no mean, or sum.
        ValueError: `microbatch` is below 1, `reduction` or `accumulate` is none of the words above, `weight` is given for a
            sum, `argnums` do not fit the call, there is no batch, it is empty, or its arrays differ in their leading axes;
            the shape of an auxiliary output depends on the number of examples.

    Source: the weights are those of a mean of means; compensated summation is that of Neumaier, ZAMM 54 (1974) 39-51.

    >>> import jax, jax.numpy as jnp
    >>> from robustad.memory import accumulate_gradients
    >>> def loss(w, x, y):
    ...     return jnp.mean((x @ w - y) ** 2)
    >>> x, y = jnp.arange(10.0).reshape(5, 2), jnp.ones(5)
    >>> value, gradient = jax.jit(accumulate_gradients(loss, 2))(jnp.ones(2), x, y)  # 2, 2 and 1 examples
    >>> float(value), gradient.tolist()
    (96.0, [96.0, 112.0])
    """
    refuse_what_is_no_function("f", f)
    microbatch = positive_integer("microbatch", microbatch)
    for name, value, allowed in (
        ("reduction", reduction, ("mean", "sum")),
        ("accumulate", accumulate, ("compensated", "plain")),
    ):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
    if weight is not None and reduction == "sum":
        raise ValueError('`weight` is what a mean is divided by; give it with `reduction="mean"`, or leave it out.')

    @functools.wraps(f)
    def accumulated(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = bound(f, args, kwargs)
        if kwargs:
            raise TypeError(
                f"`{_NAME}` takes arguments by position; got {', '.join(f'`{name}`' for name in kwargs)}. Close over what "
                "is no part of the batch: `functools.partial(f, ...)`."
            )
        own = positions(argnums, len(args))
        places = [i for i in range(len(args)) if i not in own]
        batch = [args[i] for i in places]
        size = _size(batch)

        scalar = _scalar(f, has_aux)

        def full(batch: Sequence[Any]) -> list[Any]:
            given = dict(zip(places, batch))
            return [given.get(i, x) for i, x in enumerate(args)]

        def plain(batch: Sequence[Any]) -> Any:
            return jax.value_and_grad(scalar, argnums, has_aux=has_aux)(*full(batch))

        def weighted(batch: Sequence[Any]) -> tuple[Any, Array]:
            """What value_and_grad returns for a microbatch, times its weight, and the weight."""
            result = jax.tree.map(_wide, plain(batch))
            if reduction == "sum":
                return result, jnp.float32(1)
            count = jax.tree.leaves(batch)[0].shape[0] if weight is None else weight(*batch)
            w = jnp.asarray(count)
            w = w.astype(jnp.promote_types(w.dtype, jnp.float32))
            return jax.tree.map(lambda x: _times(x, w), result), w

        def part(start: Any, length: int) -> Sequence[Any]:
            return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, length), batch)

        def add(total: Any, terms: Any) -> Any:
            return jax.tree.map(_Sum.plus, total, terms, is_leaf=_is_sum)

        step = min(microbatch, size)
        count = size // step
        if has_aux:
            aux, whole = (jax.eval_shape(lambda b: scalar(*full(b))[1], b) for b in (part(0, step), batch))
            _refuse_other_aux(aux, whole, step, size, reduction)
        program, shapes = _jaxpr.trace(weighted, part(0, step))
        zeros = [_Sum.zero(_jaxpr.aval(v), accumulate) for v in program.outputs]
        total = jax.tree.unflatten(jax.tree.structure(shapes), zeros)
        total = lax.fori_loop(0, count, lambda k, total: add(total, weighted(part(k * step, step))), total)
        if size % step:
            total = add(total, weighted(part(count * step, size % step)))
        result, w = jax.tree.map(_Sum.value, total, is_leaf=_is_sum)
        if reduction == "mean":
            result = jax.tree.map(lambda x: x / w.astype(jnp.finfo(x.dtype).dtype), result)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), result, jax.eval_shape(plain, part(0, step)))

    return accumulated


@jax.tree_util.register_pytree_node_class
class _Sum:
    """A sum on the way; `low` are the rounding errors so far, or None."""

    def __init__(self, high: Array, low: Array | None):
        self.high, self.low = high, low

    def tree_flatten(self) -> Any:
        return (self.high, self.low), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> _Sum:
        return cls(*children)

    @classmethod
    def zero(cls, aval: Any, accumulate: str) -> _Sum:
        rounded = accumulate == "compensated" and _jaxpr.is_inexact(aval)
        return cls(_jaxpr.zeros(aval), _jaxpr.zeros(aval) if rounded else None)

    def plus(self, x: Array) -> _Sum:
        if self.low is None:
            return _Sum(self.high + x, None)
        high, error = two_sum(self.high, x)
        return _Sum(high, self.low + error)

    def value(self) -> Array:
        return self.high if self.low is None else self.high + self.low


def _is_sum(x: Any) -> bool:
    return isinstance(x, _Sum)


def _wide(x: Any) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if _jaxpr.is_inexact(x) else x


def _times(x: Array, w: Array) -> Array:
    return jnp.where(w == 0, 0, x * w.astype(jnp.finfo(x.dtype).dtype))


def _scalar(f: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    @functools.wraps(f)
    def checked(*args: Any) -> Any:
        out = f(*args)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(f"With `has_aux`, the function given to `{_NAME}` must return a pair; got {shown(out)}.")
        value: Any = out[0] if has_aux else out
        if jnp.shape(value) != ():
            raise TypeError(
                f"The function given to `{_NAME}` must return a scalar, the mean or the sum over its examples; got shape "
                f"{jnp.shape(value)}."
            )
        return out

    return checked


def _refuse_other_aux(aux: Any, whole: Any, step: int, size: int, reduction: str) -> None:
    """aux, whole: the shapes of the auxiliary output for a microbatch of `step` examples and for all of them, `size`."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(aux)
    if tree != jax.tree.structure(whole):
        raise ValueError(
            f"The auxiliary output of `{_NAME}` must have one structure for any number of examples; it is {tree} for "
            f"{step} and {jax.tree.structure(whole)} for {size}. Return a {reduction} over the examples."
        )
    for (path, leaf), other in zip(leaves, jax.tree.leaves(whole)):
        name = f"aux{jax.tree_util.keystr(path)}"
        if leaf.shape != other.shape:
            raise ValueError(
                f"The auxiliary output of `{_NAME}` must be a {reduction} over the examples; {name} has shape {leaf.shape} "
                f"for {step} examples and {other.shape} for {size}. Return its {reduction}, or compute it by itself."
            )
        if not _jaxpr.is_inexact(leaf) and (reduction == "mean" or not jnp.issubdtype(leaf.dtype, jnp.integer)):
            remedy = 'its mean in a floating dtype, or a sum of everything with `reduction="sum"`'
            raise TypeError(
                f"The auxiliary output of `{_NAME}` must be a {reduction} over the examples; {name} is {leaf.dtype}. Return "
                f"{remedy if reduction == 'mean' else 'a number of examples, as an integer'}."
            )


def _size(batch: Sequence[Any]) -> int:
    """The number of examples, on which all arrays of the batch agree."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tuple(batch))[0]:
        if jnp.ndim(leaf) == 0:
            raise ValueError(
                f"Every array of the batch has a leading axis of examples; batch{jax.tree_util.keystr(path)} is a scalar. "
                "Close over what is no part of the batch."
            )
        found[f"batch{jax.tree_util.keystr(path)}"] = jnp.shape(leaf)[0]
    if not found:
        raise ValueError(f"`{_NAME}` needs a batch: arguments besides those in `argnums`. There is none.")
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in found.items())
        raise ValueError(f"The arrays of the batch differ in their number of examples: {told}.")
    size = next(iter(found.values()))
    if size == 0:
        raise ValueError("The batch has no examples.")
    return size
