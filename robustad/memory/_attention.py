"""Softmax attention whose memory is linear in the length."""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from robustad import _jaxpr
from robustad.memory._arguments import integer_from, positive_integer
from robustad.memory._online_softmax import Form, Operands, attend

_NAME = "attention"


def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    return_residual: bool = False,
    block_size: int = 128,
) -> Any:
    r"""`jax.nn.dot_product_attention` in memory that grows with the length, not with its square.

    \(\operatorname{softmax}(\text{scale} \cdot Q K^T + \text{bias})\, V\), exactly, over one block of keys at a time. The
    gradient keeps the operands, the result and two numbers for each query (the largest logit and the sum of the
    exponentials below it), and computes the weights again block by block. A gradient takes about 5/4 of the usual
    operations for it; with `is_causal` no blocks are left out.

    Forward mode, reverse mode, all their combinations, `vmap`, `jit`, `scan` and `shard_map` work. Second
    derivatives forward over reverse are linear in the length too; reverse over reverse keeps one array of the result's size
    for each block of keys besides. A bias or mask with an entry for each pair is itself quadratic, and copied: prefer
    `is_causal`, lengths and windows, which take no memory.

    Logits, weights and sums are in float32 for narrower operands, and in float64 for float64. Against the exact result the
    error is that of the logits, and a few units in the last place of the largest value beside it.

    It differs from JAX's in one thing: a query that sees no key gets 0, with gradients 0, not the mean of the values.

    Args:
        query: (B, T, N, H) or (T, N, H), of a floating dtype: N heads of T queries.
        key: (B, S, K, H) or (S, K, H), of the dtype of `query`. N is a multiple of K: each head of keys serves N / K heads
            of queries.
        value: (B, S, K, D) or (S, K, D).
        bias: what is added to the logits, floating, and broadcasts to (B, N, T, S) or (N, T, S); differentiable.
        mask: of booleans, likewise: True where a query sees a key.
        scale: of the products; None: \(1 / \sqrt{H}\).
        is_causal: query t sees keys 0 to t alone.
        query_seq_lengths: (B,) integers; queries from there on get 0.
        key_value_seq_lengths: (B,) integers; keys from there on are not seen.
        local_window_size: (left, right), or one number for both: query t sees keys t - left to t + right.
        return_residual: whether to return the logsumexp of the logits too, (B, T, N) or (T, N), differentiable; -inf where
            nothing is seen. In float32 or wider.
        block_size: keys at a time, at least 1. Temporaries are a few arrays of (B, N, T, block_size).

    Returns:
        (B, T, N, D) or (T, N, D), of the dtype of `query`; with `return_residual`, a pair.

    Raises:
        TypeError: dtypes differ or are of no kind that is expected; `scale`, `block_size` or a window is no number;
            `is_causal` is no boolean.
        ValueError: shapes do not fit; `block_size` is below 1; a window is negative.

    Source: M. N. Rabe, C. Staats, "Self-attention does not need O(n²) memory", arXiv:2112.05682; T. Dao et al.,
    "FlashAttention", NeurIPS 2022; M. Milakov, N. Gimelshein, arXiv:1805.02867, for the running maximum.

    >>> import jax, jax.numpy as jnp
    >>> from robustad.memory import attention
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 1000, 2, 8))  # 1 example, 1000 tokens, 2 heads of 8
    >>> out = attention(q, k, v, is_causal=True)
    >>> bool(jnp.allclose(out, jax.nn.dot_product_attention(q, k, v, is_causal=True), atol=1e-5))
    True
    """
    given = {"query": jnp.asarray(query), "key": jnp.asarray(key), "value": jnp.asarray(value)}
    q, k, v = given.values()
    _check_heads(given)
    single, examples = q.ndim == 3, q.shape[0] if q.ndim == 4 else 1
    q, k, v = (x[None] if single else x for x in (q, k, v))
    (_, T, N, H), (_, S, K, _) = q.shape, k.shape

    lengths = [
        _lengths(name, x, examples)
        for name, x in (("query_seq_lengths", query_seq_lengths), ("key_value_seq_lengths", key_value_seq_lengths))
    ]
    pairs = (examples, K, N // K, T, S)
    form = Form(
        scale=_scale(scale, H),
        keys=S,
        block=min(positive_integer("block_size", block_size), max(S, 1)),
        causal=_causal(is_causal),
        window=_window(local_window_size),
    )
    operands = Operands(
        query=q.reshape(examples, T, K, N // K, H).transpose(0, 2, 3, 1, 4),
        key=k.transpose(0, 2, 1, 3),
        value=v.transpose(0, 2, 1, 3),
        bias=_of_pairs("bias", bias, jnp.floating, pairs),
        mask=_of_pairs("mask", mask, jnp.bool_, pairs),
        query_lengths=lengths[0],
        key_lengths=lengths[1],
    )
    leaves, tree = jax.tree.flatten(operands)
    found = attend(form, tree.unflatten(_jaxpr.varying_alike(*leaves)))

    def as_given(x: Array) -> Array:
        """(B, K, G, T, ...) as (B, T, N, ...), or without B."""
        x = jnp.moveaxis(x, 3, 1).reshape(examples, T, N, *x.shape[4:])
        return x[0] if single else x

    out = as_given(found.out).astype(q.dtype)
    if not return_residual:
        return out
    sees = found.total > 0
    logsumexp = jnp.where(sees, found.level + jnp.log(jnp.where(sees, found.total, 1)), -jnp.inf)
    return out, as_given(logsumexp)


def _check_heads(given: dict[str, Array]) -> None:
    q, k, v = given.values()
    for name, x in given.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"`{name}` of `{_NAME}` must be of a floating dtype; got {x.dtype}. Convert it with `.astype`."
            )
        if x.dtype != q.dtype:
            raise TypeError(
                f"`query`, `key` and `value` of `{_NAME}` must be of one floating dtype; `query` is {q.dtype}, `{name}` "
                f"{x.dtype}. Convert them with `.astype`."
            )
        if x.ndim not in (3, 4) or x.ndim != q.ndim:
            raise ValueError(
                f"`query`, `key` and `value` of `{_NAME}` must all be (B, T, N, H) or all (T, N, H); `query` has shape "
                f"{q.shape}, `{name}` {x.shape}."
            )
    told = f"got query {q.shape}, key {k.shape}, value {v.shape}"
    if k.shape[:-1] != v.shape[:-1] or q.shape[:-3] != k.shape[:-3] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"`{_NAME}` expects a query (B, T, N, H), key (B, S, K, H) and value (B, S, K, D), with or without B; {told}."
        )
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(
            f"`{_NAME}` expects heads of queries that are a multiple of the heads of keys (the last axis but one); {told}."
        )


def _scale(scale: Any, width: int) -> float:
    if scale is None:
        return 1 / math.sqrt(max(width, 1))
    if not isinstance(scale, numbers.Real) or isinstance(scale, bool):
        raise TypeError(
            f"`scale` of `{_NAME}` must be a number that is known when the program is traced; got {scale!r}. Multiply "
            "`query` by one that is not, and give `scale=1.0`."
        )
    return float(scale)


def _causal(is_causal: Any) -> bool:
    if isinstance(is_causal, bool | np.bool_):
        return bool(is_causal)
    hint = " Where it is not known when the program is traced, give a `mask`." if _jaxpr.is_traced(is_causal) else ""
    raise TypeError(f"`is_causal` of `{_NAME}` must be True or False; got {is_causal!r}.{hint}")


def _window(window: Any) -> tuple[int, int] | None:
    if window is None:
        return None
    both = window if isinstance(window, tuple | list) else (window, window)
    if len(both) != 2:
        raise ValueError(f"`local_window_size` of `{_NAME}` must be a number or (left, right); got {window!r}.")
    left, right = (integer_from("local_window_size", w, 0) for w in both)
    return left, right


def _lengths(name: str, lengths: Any, examples: int) -> Array | None:
    if lengths is None:
        return None
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"`{name}` of `{_NAME}` must be integers; got {lengths.dtype}.")
    if lengths.shape != (examples,):
        raise ValueError(
            f"`{name}` of `{_NAME}` must have shape {(examples,)}, one for each example; got {lengths.shape}."
        )
    return lengths.astype(jnp.int32)


def _of_pairs(name: str, x: Any, kind: Any, pairs: tuple[int, ...]) -> Array | None:
    """A bias or mask (B, N, T, S), each axis of its own length or 1, as (B, K, G, T, S)."""
    if x is None:
        return None
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, kind):
        hint = " What is added to the logits is `bias`." if name == "mask" else " What hides keys is `mask`."
        raise TypeError(f"`{name}` of `{_NAME}` must be {kind.__name__}; got {x.dtype}.{hint}")
    examples, K, G, T, S = pairs
    full = (examples, K * G, T, S)
    shape = (1,) * (4 - x.ndim) + x.shape
    if len(shape) > 4 or any(n not in (1, m) for n, m in zip(shape, full)):
        raise ValueError(f"`{name}` of `{_NAME}` must broadcast to (B, N, T, S), {full}; got shape {x.shape}.")
    heads = (K, G) if shape[1] == K * G else (1, 1)
    return x.reshape(shape[0], *heads, *shape[2:])
