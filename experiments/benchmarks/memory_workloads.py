"""Losses whose gradients need memory: each made with a wrapper for its blocks, so that policies can be tried on them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class Workload:
    """make(wrap): the loss with its blocks wrapped; arguments(size): size 1 for tests, larger for figures."""

    name: str
    make: Callable[[Wrap], Callable[..., Any]]
    arguments: Callable[[int], tuple[Any, ...]]


def _normal(seed: int, *shape: int) -> Any:
    scale = np.sqrt(np.prod(shape[:-1]))
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / scale, jnp.float32)


def _normalized(x: Any) -> Any:
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)


# -------------------------------------------------------------------------------------------- transformers


def _attention(p: Any, x: Any, heads: int = 4) -> Any:
    batch, length, width = x.shape
    q, k, v = ((x @ p[name]).reshape(batch, length, heads, width // heads) for name in "qkv")
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(width // heads)
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, -1), v).reshape(x.shape) @ p["o"]


def _transformer_block(p: Any, x: Any) -> Any:
    x = x + _attention(p, _normalized(x))
    return x + jax.nn.gelu(_normalized(x) @ p["up"]) @ p["down"]


def _likelihood(p: Any, x: Any, tokens: Any) -> Any:
    logits = jax.nn.log_softmax(_normalized(x) @ p["out"])
    return -jnp.mean(jnp.take_along_axis(logits, tokens[:, 1:, None], -1))


def transformer(wrap: Wrap) -> Callable[..., Any]:
    block = wrap(_transformer_block)

    def loss(p: Any, tokens: Any) -> Any:
        x = p["embedding"][tokens[:, :-1]]
        for layer in p["blocks"]:
            x = block(layer, x)
        return _likelihood(p, x, tokens)

    return loss


def scanned_transformer(wrap: Wrap) -> Callable[..., Any]:
    block = wrap(_transformer_block)

    def loss(p: Any, tokens: Any) -> Any:
        x = p["embedding"][tokens[:, :-1]]
        x, _ = lax.scan(lambda x, layer: (block(layer, x), None), x, p["blocks"])
        return _likelihood(p, x, tokens)

    return loss


def block_shapes(width: int) -> dict[str, tuple[int, int]]:
    return {name: (width, width) for name in "qkvo"} | {"up": (width, 4 * width), "down": (4 * width, width)}


def transformer_arguments(size: int) -> tuple[Any, Any]:
    layers, width, vocabulary, length = 4 * size, 32 * size, 64, 32 * size
    shapes = block_shapes(width)
    blocks = [{k: _normal(hash_of(i, k), *s) for k, s in shapes.items()} for i in range(layers)]
    tokens = np.random.default_rng(0).integers(0, vocabulary, (4, length + 1))
    p = {"embedding": _normal(1, vocabulary, width), "blocks": blocks, "out": _normal(2, width, vocabulary)}
    return p, jnp.asarray(tokens, jnp.int32)


def transformer_shapes(layers: int, width: int = 32, vocabulary: int = 64, length: int = 32) -> tuple[Any, Any]:
    """The shapes of the arguments of one with many layers."""
    shapes = block_shapes(width)
    blocks = [{k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()} for _ in range(layers)]
    ends = {"embedding": (vocabulary, width), "out": (width, vocabulary)}
    p = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in ends.items()} | {"blocks": blocks}
    return p, jax.ShapeDtypeStruct((4, length + 1), jnp.int32)


def hash_of(i: int, name: str) -> int:
    return 1000 * i + sum(map(ord, name))


def scanned_arguments(size: int) -> tuple[Any, Any]:
    p, tokens = transformer_arguments(size)
    return p | {"blocks": jax.tree.map(lambda *ws: jnp.stack(ws), *p["blocks"])}, tokens


# -------------------------------------------------------------------------------------------- convolutions


def _convolution(x: Any, w: Any) -> Any:
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _pair(p: Any, x: Any) -> Any:
    x = jax.nn.relu(_normalized(_convolution(x, p["a"])))
    return jax.nn.relu(_normalized(_convolution(x, p["b"])))


def _residual_block(p: Any, x: Any) -> Any:
    h = jax.nn.relu(_normalized(_convolution(x, p["a"])))
    return jax.nn.relu(x + _normalized(_convolution(h, p["b"])))


def unet(wrap: Wrap) -> Callable[..., Any]:
    pair = wrap(_pair)

    def loss(p: Any, x: Any) -> Any:
        y, skips = x, []
        for layer in p["down"]:
            x = pair(layer, x)
            skips.append(x)
            x = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        x = pair(p["middle"], x)
        for layer, skip in zip(p["up"], reversed(skips)):
            x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
            x = pair(layer, jnp.concatenate([x, skip], -1))
        return jnp.mean((_convolution(x, p["out"]) - y) ** 2)

    return loss


def unet_arguments(size: int) -> tuple[Any, Any]:
    channels = [3, 8, 16, 16 * size]
    pairs = list(itertools.pairwise(channels))
    down = [{"a": _normal(i, 3, 3, a, b), "b": _normal(i + 9, 3, 3, b, b)} for i, (a, b) in enumerate(pairs)]
    wide = channels[-1]
    middle = {"a": _normal(20, 3, 3, wide, wide), "b": _normal(21, 3, 3, wide, wide)}
    up, x = [], wide
    for i, c in enumerate(reversed(channels[1:])):
        up.append({"a": _normal(30 + i, 3, 3, x + c, c), "b": _normal(40 + i, 3, 3, c, c)})
        x = c
    p = {"down": down, "middle": middle, "up": up, "out": _normal(50, 3, 3, x, 3)}
    return p, _normal(60, 2 * size, 32, 32, 3)


def resnet(wrap: Wrap) -> Callable[..., Any]:
    block = wrap(_residual_block)

    def loss(p: Any, x: Any, labels: Any) -> Any:
        x = _convolution(x, p["in"])
        for layer in p["blocks"]:
            x = block(layer, x)
        logits = jax.nn.log_softmax(jnp.mean(x, (1, 2)) @ p["out"])
        return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))

    return loss


def resnet_arguments(size: int) -> tuple[Any, ...]:
    c = 16
    blocks = [{"a": _normal(i, 3, 3, c, c), "b": _normal(i + 50, 3, 3, c, c)} for i in range(5 * size)]
    p = {"in": _normal(99, 3, 3, 3, c), "blocks": blocks, "out": _normal(98, c, 10)}
    return p, _normal(97, 8, 16, 16, 3), jnp.arange(8) % 10


# -------------------------------------------------------------------------------------------------- others


def dropout_net(wrap: Wrap) -> Callable[..., Any]:
    def layer(w: Any, x: Any, key: Any) -> Any:
        h = jax.nn.gelu(x @ w)
        return x + jnp.where(jax.random.bernoulli(key, 0.9, h.shape), h / 0.9, 0)

    wrapped = wrap(layer)

    def loss(ws: Any, x: Any, key: Any) -> Any:
        for w, k in zip(ws, jax.random.split(key, len(ws))):
            x = wrapped(w, x, k)
        return jnp.mean(x**2)

    return loss


def dropout_arguments(size: int) -> tuple[Any, ...]:
    return [_normal(i, 64, 64) for i in range(8 * size)], _normal(90, 512, 64), jax.random.key(0)


def rnn(wrap: Wrap) -> Callable[..., Any]:
    def loss(p: Any, xs: Any) -> Any:
        cell = wrap(lambda h, x: (jnp.tanh(h @ p["h"] + x @ p["x"]), None))
        h, _ = lax.scan(cell, jnp.zeros((xs.shape[1], p["h"].shape[0])), xs)
        return jnp.mean(h**2)

    return loss


def rnn_arguments(size: int) -> tuple[Any, Any]:
    return {"h": _normal(0, 64, 64), "x": _normal(1, 16, 64)}, _normal(2, 100 * size, 32, 16)


def dense_net(wrap: Wrap) -> Callable[..., Any]:
    layer = wrap(lambda w, x: jax.nn.relu(_normalized(x) @ w))

    def loss(ws: Any, x: Any) -> Any:
        for w in ws:
            x = jnp.concatenate([x, layer(w, x)], -1)
        return jnp.mean(x**2)

    return loss


def dense_arguments(size: int) -> tuple[Any, Any]:
    return [_normal(i, 32 + 32 * i, 32) for i in range(6 * size)], _normal(90, 512, 32)


WORKLOADS = [
    Workload("transformer", transformer, transformer_arguments),
    Workload("scanned", scanned_transformer, scanned_arguments),
    Workload("unet", unet, unet_arguments),
    Workload("resnet", resnet, resnet_arguments),
    Workload("dropout", dropout_net, dropout_arguments),
    Workload("rnn", rnn, rnn_arguments),
    Workload("dense", dense_net, dense_arguments),
]
