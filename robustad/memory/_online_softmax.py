r"""Softmax attention over blocks of keys: the value, and its derivative of any order, without the matrix of weights.

Of logits \(s_j\), in blocks, with the maximum m so far: \(l = \sum_j e^{s_j - m}\) and \(o = \sum_j e^{s_j - m} v_j\) are
rescaled whenever m grows. The derivative needs m, l and the result o / l only: a block of weights is
\(p_j = e^{s_j - m} / l\) again, and with the tangents of logits and values

\[\dot l / l = \sum_j p_j \dot s_j, \qquad \dot o = \sum_j p_j (\dot s_j v_j + \dot v_j) - o\, \dot l / l.\]

Each block of that is a checkpoint in a scan: its transpose, JAX's own, computes the weights again block by block. That is
the backward pass of FlashAttention. As m and l are the same two numbers in value and derivative, the weights add up to 1
in both, which \(\log l + m\) rounded to one number would spoil for large logits.

m is the logits' level, with no derivative of its own: l takes it all. A row that attends to nothing has m = l = 0.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from robustad import _jaxpr
from robustad.stability._custom_jvp import custom_jvp


@dataclasses.dataclass(frozen=True)
class Form:
    """What is known of an attention when it is traced. window: keys to the left and to the right of a query's own."""

    scale: float
    keys: int
    block: int
    causal: bool = False
    window: tuple[int, int] | None = None


class Operands(NamedTuple):
    """B examples, K heads of keys, each for G heads of queries; bias and mask broadcast to (B, K, G, T, S)."""

    query: Any  # (B, K, G, T, H)
    key: Any  # (B, K, S, H)
    value: Any  # (B, K, S, D)
    bias: Any = None
    mask: Any = None
    query_lengths: Any = None  # (B,)
    key_lengths: Any = None  # (B,)


class Attended(NamedTuple):
    """Of every query, in float32 or wider."""

    out: Any  # (B, K, G, T, D)
    level: Any  # (B, K, G, T): the largest logit
    total: Any  # (B, K, G, T): Σ exp(s - level)


_AXES = {"key": -2, "value": -2, "bias": -1, "mask": -1}
"""Where the keys are."""


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def attend(form: Form, given: Operands) -> Attended:
    """The attention of the queries to the keys."""
    work = _wide(given.query)
    query = given.query.astype(work)
    blocks, start = _blocks(form, given)

    def body(carry: Attended, x: Any) -> tuple[Attended, None]:
        block, first = x
        part = given._replace(query=query, **block)
        s = _logits(form, part, first)
        top = jnp.maximum(carry.level, jnp.max(s, -1))
        level = jnp.where(top == -jnp.inf, 0, top)
        shrink = jnp.exp(carry.level - level)
        weights = jnp.exp(s - level[..., None])
        out = shrink[..., None] * carry.out + _over_keys(weights, part.value)
        return Attended(out, top, shrink * carry.total + jnp.sum(weights, -1)), None

    out = _zeros(query, given.value.shape[-1])
    none = _zeros(query)
    found, _ = lax.scan(body, Attended(out, none - jnp.inf, none), (blocks, start))
    sees = found.total > 0
    out = found.out / jnp.where(sees, found.total, 1)[..., None]
    return Attended(out, jnp.where(found.level == -jnp.inf, 0, found.level), found.total)


def _attend_jvp(form: Form, primals: tuple[Operands], tangents: tuple[Operands]) -> tuple[Attended, Attended]:
    (given,), (steps,) = primals, tangents
    found = attend(form, given)
    moving = {
        name: step for name, step in steps._asdict().items() if not (step is None or isinstance(step, SymbolicZero))
    }
    level = SymbolicZero(jax.typeof(found.level).to_tangent_aval())
    # Nothing is kept but the operands as they came, and what was found.
    of_out, of_total = jax.checkpoint(functools.partial(_tangents, form))(given, found, moving)  # pyright: ignore
    return found, Attended(of_out, level, of_total)


attend.defjvp(_attend_jvp, symbolic_zeros=True)


def _tangents(form: Form, given: Operands, found: Attended, moving: dict[str, Array]) -> tuple[Array, Array]:
    """Of `out` and `total`."""
    work = _wide(given.query)
    query = given.query.astype(work)
    steps = Operands(**{name: moving[name].astype(work) if name in moving else None for name in Operands._fields})
    blocks, start = _blocks(form, given)
    step_blocks, _ = _blocks(form, steps)
    level, divisor = found.level[..., None], jnp.where(found.total > 0, found.total, 1)[..., None]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(carry: tuple[Array, Array], x: Any) -> tuple[tuple[Array, Array], None]:
        block, step_block, first = x
        part, step = given._replace(query=query, **block), steps._replace(**step_block)
        p = jnp.exp(_logits(form, part, first) - level) / divisor
        out, share = carry
        ds = None
        if step.query is not None:
            ds = _plus(ds, form.scale * _of_pairs(step.query, part.key))
        if step.key is not None:
            ds = _plus(ds, form.scale * _of_pairs(query, step.key))
        if step.bias is not None:
            ds = _plus(ds, step.bias)
        if ds is not None:
            ds = p * ds
            share = share + jnp.sum(ds, -1)
            out = out + _over_keys(ds, part.value)
        if step.value is not None:
            out = out + _over_keys(p, step.value)
        return (out, share), None

    none = _zeros(query, given.value.shape[-1]), _zeros(query)
    (out, share), _ = lax.scan(body, none, (blocks, step_blocks, start))
    return out - found.out * share[..., None], found.total * share


def _logits(form: Form, given: Operands, first: Array) -> Array:
    """(B, K, G, T, block), -inf where a query does not see a key; `first` is the number of the block's first key."""
    s = form.scale * _of_pairs(given.query, given.key)
    if given.bias is not None:
        s = s + given.bias.astype(s.dtype)
    rows, columns = (lax.broadcasted_iota(jnp.int32, s.shape[-2:], axis) for axis in (0, 1))
    columns = columns + first
    seen = columns < form.keys
    if form.causal:
        seen &= columns <= rows
    if form.window is not None:
        seen &= (rows <= columns + form.window[0]) & (rows >= columns - form.window[1])
    if given.mask is not None:
        seen = seen & given.mask
    for lengths, places in ((given.query_lengths, rows), (given.key_lengths, columns)):
        if lengths is not None:
            seen = seen & (places < lengths[:, None, None, None, None])
    return jnp.where(seen, s, -jnp.inf)


def _of_pairs(query: Array, key: Array) -> Array:
    return jnp.einsum("bkgth,bksh->bkgts", query, key.astype(query.dtype))


def _over_keys(weights: Array, value: Array) -> Array:
    return jnp.einsum("bkgts,bksd->bkgtd", weights, value.astype(weights.dtype))


def _plus(x: Array | None, y: Array) -> Array:
    return y if x is None else x + y


def _wide(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _zeros(query: Array, *axes: int) -> Array:
    """For every query, varying over the mesh axes over which the queries do."""
    return _jaxpr.varying_over(jnp.zeros((*query.shape[:-1], *axes), query.dtype), _jaxpr.varies_over(query))


def _blocks(form: Form, given: Operands) -> tuple[dict[str, Array], Array]:
    """What runs over the keys, in blocks along a new first axis, and the first key of each. The last is filled up."""
    count = -(-form.keys // form.block)
    blocks = {}
    for name, axis in _AXES.items():
        x = getattr(given, name)
        if x is None or (axis == -1 and x.shape[axis] == 1):  # the same for all keys
            continue
        axis += x.ndim
        fill = [(0, count * form.block - form.keys) if i == axis else (0, 0) for i in range(x.ndim)]
        x = jnp.pad(x, fill).reshape(*x.shape[:axis], count, form.block, *x.shape[axis + 1 :])
        blocks[name] = jnp.moveaxis(x, axis, 0)
    return blocks, form.block * jnp.arange(count)
