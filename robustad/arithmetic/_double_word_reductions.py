"""What primitives do to double words: those that order, reduce, contract or scatter."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad import _jaxpr
from robustad._jaxpr import Equation
from robustad.arithmetic import _double_word as dw
from robustad.arithmetic._double_word import DoubleWord
from robustad.arithmetic._double_word_rules import from_integer, rule, widened, word

# --------------------------------------------------------------------------------------------- order, extrema


@rule("sort")
def _sort(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    """Lexicographic: by the high words, among equals by the low ones."""
    words: list[Array] = []
    keys = 0
    for i, value in enumerate(operands):
        words += [value.hi] if value.lo is None else [value.hi, value.lo]
        keys = len(words) if i < eqn.params["num_keys"] else keys
    outs = iter(lax.sort(words, dimension=eqn.params["dimension"], is_stable=eqn.params["is_stable"], num_keys=keys))
    return [DoubleWord(next(outs), None if v.lo is None else next(outs)) for v in operands]


@rule("top_k")
def _top_k(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    """The first of a stable sort, NaN before all."""
    (value,), k = operands, eqn.params["k"]
    axis = eqn.params.get("axis", -1) % value.hi.ndim
    places = lax.broadcasted_iota(jnp.int32, value.hi.shape, axis)
    keys = [(~jnp.isnan(value.hi)).astype(jnp.int32), -value.hi, -value.lo, places]
    order = lax.slice_in_dim(lax.sort(keys, dimension=axis, num_keys=4)[-1], 0, k, axis=axis)
    taken = jax.tree.map(lambda x: jnp.take_along_axis(x, order, axis), value)
    return [taken, DoubleWord(order.astype(_jaxpr.aval(eqn.outvars[1]).dtype), None)]


@rule("argmax", "argmin")
def argument(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    (value,), (axis,) = operands, eqn.params["axes"]
    value = value if eqn.primitive.name == "argmax" else dw.neg(value)
    best = jnp.max(value.hi, axis, keepdims=True)
    low = jnp.where(value.hi == best, value.lo, -jnp.inf)
    chosen = (value.hi == best) & (low == jnp.max(low, axis, keepdims=True)) | jnp.isnan(value.hi)
    return [DoubleWord(jnp.argmax(chosen, axis).astype(eqn.params["index_dtype"]), None)]


# -------------------------------------------------------------------------------------- reductions, scans


def _extreme(kind: str) -> tuple[Callable[..., DoubleWord], float]:
    return (dw.maximum, -math.inf) if "max" in kind else (dw.minimum, math.inf)


def _reduced(f: Callable[..., DoubleWord], start: float, value: DoubleWord, axes: Sequence[int]) -> DoubleWord:
    dtype = value.hi.dtype.type
    init = dtype(start), dtype(0)
    return DoubleWord(*lax.reduce(tuple(value), init, lambda a, b: tuple(f(DoubleWord(*a), DoubleWord(*b))), axes))


@rule("reduce_sum")
def _reduce_sum(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    return [_reduced(dw.add_words, 0.0, operands[0], eqn.params["axes"])]


@rule("reduce_max", "reduce_min")
def _reduce_extreme(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    return [_reduced(*_extreme(eqn.primitive.name), operands[0], eqn.params["axes"])]


@rule("reduce_prod")
def _reduce_prod(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    """Pairwise, by halves: a product has barriers in it, which the inside of a reduction does not allow."""
    (value,), axes = operands, eqn.params["axes"]
    kept = [i for i in range(value.hi.ndim) if i not in axes]
    shape = [value.hi.shape[i] for i in kept]
    value = jax.tree.map(lambda x: jnp.transpose(x, (*axes, *kept)).reshape(-1, *shape), value)
    if value.hi.shape[0] == 0:
        return [jax.tree.map(lambda x, one: jnp.full(shape, one, x.dtype), value, DoubleWord(1, 0))]
    while (n := value.hi.shape[0]) > 1:
        first, second, odd = (
            jax.tree.map(lambda x, a=a, b=b: x[a:b], value)
            for a, b in ((0, n // 2), (n // 2, n // 2 * 2), (n // 2 * 2, n))
        )
        value = jax.tree.map(lambda *xs: jnp.concatenate(xs), dw.mul(first, second), odd)
    return [jax.tree.map(lambda x: x[0], value)]


_CUMULATIVE = {"cumsum": dw.add, "cumprod": dw.mul, "cummax": dw.maximum, "cummin": dw.minimum}


@rule(*_CUMULATIVE)
def _cumulative(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    f, axis, reverse = _CUMULATIVE[eqn.primitive.name], eqn.params["axis"], eqn.params["reverse"]
    return [lax.associative_scan(f, operands[0], reverse=reverse, axis=axis)]


@rule("reduce_window_sum", "reduce_window_max", "reduce_window_min")
def _window(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    f, start = (dw.add_words, 0.0) if "sum" in eqn.primitive.name else _extreme(eqn.primitive.name)
    dtype = operands[0].hi.dtype.type
    names = "window_dimensions window_strides padding base_dilation window_dilation".split()
    outs = lax.reduce_window(
        tuple(operands[0]),
        (dtype(start), dtype(0)),
        lambda a, b: tuple(f(DoubleWord(*a), DoubleWord(*b))),
        **{name: eqn.params[name] for name in names},
    )
    return [DoubleWord(*outs)]


@rule("psum", "psum_invariant", "pmax", "pmin")
def across_devices(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    """The words of all devices, reduced on each in the same order."""
    name = eqn.primitive.name
    f, start = (dw.add_words, 0.0) if "sum" in name else _extreme(name)
    gathered = [jax.tree.map(lambda x: lax.all_gather(x, eqn.params["axes"]), v) for v in operands]
    return [_reduced(f, start, v, (0,)) for v in gathered]


# ---------------------------------------------------------------------------------------------- contractions

_AT_ONCE = 2**18  # products held at one time


@rule("dot_general")
def _dot_general(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    """Products in two words, summed over the contracted axes piece by piece."""
    (contracted, batched) = eqn.params["dimension_numbers"]
    dtype = word(_jaxpr.aval(eqn.outvars[0]).dtype)
    matrices, shape = [], None
    for value, contract, batch in zip(operands, contracted, batched):
        value = value if value.lo is not None else from_integer(value.hi, dtype)
        if value.hi.dtype != dtype:
            value = widened(DoubleWord(*(lax.convert_element_type(x, dtype) for x in value)))
        free = [i for i in range(value.hi.ndim) if i not in (*contract, *batch)]
        sizes = [[value.hi.shape[i] for i in axes] for axes in (batch, free, contract)]
        shape = [*sizes[0], *sizes[1]] if shape is None else [*shape, *sizes[1]]
        flat = [math.prod(s) for s in sizes]
        matrices.append(
            jax.tree.map(lambda x, a=(*batch, *free, *contract), s=flat: jnp.transpose(x, a).reshape(s), value)
        )
    a, b = matrices
    total = _contract(a, b)
    return [jax.tree.map(lambda x: x.reshape(shape), total)]


def _contract(a: DoubleWord, b: DoubleWord) -> DoubleWord:
    """(batch, m, k) and (batch, n, k) to (batch, m, n)."""
    batch, m, k = a.hi.shape
    n = b.hi.shape[1]
    width = max(1, _AT_ONCE // max(1, batch * m * n))

    def part(a: DoubleWord, b: DoubleWord) -> DoubleWord:
        a, b = jax.tree.map(lambda x: x[:, :, None, :], a), jax.tree.map(lambda x: x[:, None, :, :], b)
        return _reduced(dw.add_words, 0.0, dw.mul(a, b), (3,))

    if k <= width:
        return part(a, b)
    pieces = -(-k // width)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, pieces * width - k)))
        return jnp.moveaxis(x.reshape(*x.shape[:2], pieces, width), 2, 0)

    a, b = jax.tree.map(cut, a), jax.tree.map(cut, b)
    first, rest = (jax.tree.map(lambda x: x[0], (a, b)), jax.tree.map(lambda x: x[1:], (a, b)))
    total, _ = lax.scan(lambda total, ab: (dw.add(total, part(*ab)), None), part(*first), rest)
    return total


# ------------------------------------------------------------------------------------------------ scattering

_SCATTERED = {
    "scatter-add": dw.add,
    "scatter-sub": dw.sub,
    "scatter-mul": dw.mul,
    "scatter-min": dw.minimum,
    "scatter-max": dw.maximum,
}


@rule(*_SCATTERED)
def _scatter(eqn: Equation, operands: Sequence[DoubleWord]) -> list[DoubleWord]:
    """Update by update, since several may meet in one place; all at once where the program says that they do not."""
    target, where, updates = operands
    f, numbers = _SCATTERED[eqn.primitive.name], eqn.params["dimension_numbers"]
    indices, batch = where.hi, numbers.scatter_indices_batching_dims
    window = numbers.update_window_dims
    spread = [i for i in range(updates.hi.ndim) if i not in window]
    # Batch axes as further indices, and one leading axis for all updates.
    further = [lax.broadcasted_iota(indices.dtype, (*indices.shape[:-1], 1), d) for d in batch]
    indices = jnp.concatenate([indices, *further], axis=-1)
    count = math.prod(indices.shape[:-1])
    indices = indices.reshape(count, indices.shape[-1])
    sizes = [updates.hi.shape[i] for i in window]
    updates = jax.tree.map(lambda x: jnp.transpose(x, (*spread, *window)).reshape(count, *sizes), updates)
    inserted = tuple(sorted({*numbers.inserted_window_dims, *numbers.operand_batching_dims}))
    axes = (*numbers.scatter_dims_to_operand_dims, *numbers.operand_batching_dims)
    offsets = tuple(range(1, 1 + len(sizes)))
    put = lax.ScatterDimensionNumbers(offsets, inserted, axes)
    get = lax.GatherDimensionNumbers(offsets, inserted, axes)
    rest = iter(sizes)
    slices = tuple(1 if i in inserted else next(rest) for i in range(target.hi.ndim))
    mode = eqn.params["mode"]

    def step(target: DoubleWord, at: Array, update: DoubleWord) -> DoubleWord:
        old = jax.tree.map(lambda x: lax.gather(x, at, get, slices, mode=mode, fill_value=0), target)
        new = f(old, update)
        return jax.tree.map(lambda x, n: lax.scatter(x, at, n, put, mode=mode), target, new)

    if count <= 1 or eqn.params["unique_indices"]:
        return [step(target, indices, updates)]

    def body(total: DoubleWord, one: tuple[Array, DoubleWord]) -> tuple[DoubleWord, None]:
        return step(total, *jax.tree.map(lambda x: x[None], one)), None

    return [lax.scan(body, target, (indices, updates))[0]]
