"""What `gradient_flow` costs beside the plain gradient: to trace and compile, and to run.

    python experiments/benchmarks/flow.py --json flow.json

A transformer of 12 layers, unrolled and scanned, and a two-layer LSTM over 1000 steps. Ratios to `jax.jit(jax.grad(loss))`.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from ratios import compare, machine

from robustad.diagnosis import gradient_flow
from robustad.diagnosis._gradient_flow import tapping

Model = tuple[Callable[..., Array], tuple[Any, ...]]


def transformer(scanned: bool, layers: int = 12, width: int = 64) -> Model:
    """Pre-norm blocks with a causal attention, 8 texts of 64 tokens."""
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def weights(*shape: int) -> Array:
        return jax.random.normal(next(keys), shape) / shape[-2] ** 0.5

    blocks: Any = {
        "attention": {"qkv": weights(layers, width, 3 * width), "out": weights(layers, width, width)},
        "mlp": {"up": weights(layers, width, 4 * width), "down": weights(layers, 4 * width, width)},
        "norms": {"attention": jnp.ones((layers, width)), "mlp": jnp.ones((layers, width))},
    }
    if not scanned:
        blocks = [jax.tree.map(lambda x, k=k: x[k], blocks) for k in range(layers)]
    params = {"blocks": blocks, "embed": weights(256, width), "head": weights(width, 256)}

    def norm(scale: Array, x: Array) -> Array:
        x = x - jnp.mean(x, -1, keepdims=True)
        return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * scale

    def block(x: Array, p: Any) -> tuple[Array, None]:
        q, k, v = jnp.split(norm(p["norms"]["attention"], x) @ p["attention"]["qkv"], 3, -1)
        scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), q @ k.swapaxes(1, 2) / width**0.5, -1e30)
        x = x + jax.nn.softmax(scores) @ v @ p["attention"]["out"]
        return x + jax.nn.gelu(norm(p["norms"]["mlp"], x) @ p["mlp"]["up"]) @ p["mlp"]["down"], None

    def loss(params: Any, tokens: Array) -> Array:
        x = params["embed"][tokens]
        if scanned:
            x, _ = lax.scan(block, x, params["blocks"])
        else:
            for p in params["blocks"]:
                x, _ = block(x, p)
        logits = jax.nn.log_softmax(x @ params["head"])
        return -jnp.mean(jnp.take_along_axis(logits[:, :-1], tokens[:, 1:, None], 2))

    return loss, (params, jax.random.randint(next(keys), (8, 64), 0, 256))


def lstm(steps: int = 1000, width: int = 64) -> Model:
    """Two layers, 16 sequences, a loss at every step."""
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def weights(*shape: int) -> Array:
        return jax.random.normal(next(keys), shape) / shape[0] ** 0.5

    cells = [{"w": weights(2 * width, 4 * width), "b": jnp.zeros(4 * width)} for _ in range(2)]
    params = {"cells": cells, "head": {"w": weights(width, 8)}}

    def loss(params: Any, xs: Array) -> Array:
        def step(states: Any, x: Array) -> tuple[Any, Array]:
            new = []
            for p, (h, c) in zip(params["cells"], states):
                i, f, o, g = jnp.split(jnp.concatenate([x, h], -1) @ p["w"] + p["b"], 4, -1)
                c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                x = jax.nn.sigmoid(o) * jnp.tanh(c)
                new.append((x, c))
            return new, x @ params["head"]["w"]

        zero = jnp.zeros((16, width))
        return jnp.mean((lax.scan(step, [(zero, zero)] * 2, xs)[1] - 1) ** 2)

    return loss, (params, jax.random.normal(next(keys), (steps, 16, width)))


MODELS: dict[str, Callable[[], Model]] = {
    "transformer, unrolled": lambda: transformer(False),
    "transformer, scanned": lambda: transformer(True),
    "LSTM of 1000 steps": lstm,
}


def compiling(f: Callable[..., Any], operands: tuple[Any, ...]) -> float:
    """Seconds to trace and compile."""
    jax.clear_caches()
    begin = time.perf_counter()
    jax.jit(f).lower(*operands).compile()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="timed pairs of calls (default 20)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    options = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{'':24}{'compile: plain':>16}{'ratio':>7}{'run: plain':>14}{'ratio':>7}{'quartiles':>12}{'whole call':>13}")
    results: dict[str, Any] = {}
    for name, model in MODELS.items():
        loss, args = model()
        plain = compiling(jax.grad(loss), args)
        begin = time.perf_counter()
        jax.clear_caches()
        flow = gradient_flow(loss)(*args)
        whole = time.perf_counter() - begin
        jax.clear_caches()
        begin = time.perf_counter()
        at = tapping(loss, 0, False, args, {})
        jax.jit(at.measure).lower(*at.operands).compile()
        tapped = time.perf_counter() - begin

        both = (args, at.operands)
        ratio = compare(
            lambda _, operands, at=at: at.measure(*operands),
            lambda args, _, loss=loss: jax.grad(loss)(*args),
            both,
            options.repeats,
        )
        print(
            f"{name:24}{plain:14.2f} s{tapped / plain:7.2f}{1e3 * ratio.plain:11.1f} ms{ratio.ratio:7.2f}"
            f"{f'{ratio.quartiles[0]:.2f}-{ratio.quartiles[1]:.2f}':>12}{whole:11.2f} s   {flow.verdict}",
            flush=True,
        )
        compiled = {"plain": plain, "ours": tapped, "ratio": tapped / plain}
        results[name] = {"compile": compiled, "run": asdict(ratio), "whole call": whole, "verdict": flow.verdict}
    if options.json:
        options.json.write_text(
            json.dumps({**machine(), "repeats": options.repeats, "models": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
