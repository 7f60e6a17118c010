"""Whether an audit's time grows with the length of the loops in a model: it should not, but for running them.

    python experiments/benchmarks/audit_loops.py

A two-layer LSTM and a scanned transformer, healthy and with a fault (a logarithm of a softmax that underflows), at two
lengths each; the time of the whole audit, tracing and compiling included, as a ratio to the shorter one's.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from ratios import machine

import robustad as rad

Model = tuple[Callable[..., Array], tuple[Any, ...]]


def lstm(steps: int, scale: float) -> Model:
    """Two layers of width 32 over `steps` steps; the loss takes the logarithm of a softmax of logits times `scale`."""
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def weights(*shape: int) -> Array:
        return jax.random.normal(next(keys), shape) / shape[0] ** 0.5

    params = {"layers": [weights(64, 128), weights(64, 128)], "head": weights(32, 8)}

    def loss(params: Any, xs: Array) -> Array:
        def step(states: Any, x: Array) -> tuple[Any, Array]:
            new = []
            for w, (h, c) in zip(params["layers"], states):
                i, f, o, g = jnp.split(jnp.concatenate([x, h]) @ w, 4)
                c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                x = jax.nn.sigmoid(o) * jnp.tanh(c)
                new.append((x, c))
            return new, x

        zero = jnp.zeros(32)
        _, ys = lax.scan(step, [(zero, zero)] * 2, xs)
        p = jax.nn.softmax(ys @ params["head"] * scale)
        return -jnp.mean(jnp.log(p[:, 0]))

    return loss, (params, jax.random.normal(next(keys), (steps, 32)))


def transformer(layers: int, scale: float) -> Model:
    """`layers` layers of width 64, scanned, 4 texts of 32 tokens; the loss as above."""
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def weights(*shape: int) -> Array:
        return jax.random.normal(next(keys), shape) / shape[-2] ** 0.5

    blocks = {"qkv": weights(layers, 64, 192), "out": weights(layers, 64, 64)}
    blocks |= {"up": weights(layers, 64, 256), "down": weights(layers, 256, 64)}
    params = {"blocks": blocks, "head": weights(64, 16)}

    def norm(x: Array) -> Array:
        x = x - x.mean(-1, keepdims=True)
        return x * lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5)

    def loss(params: Any, x: Array) -> Array:
        def block(x: Array, p: Any) -> tuple[Array, None]:
            q, k, v = jnp.split(norm(x) @ p["qkv"], 3, axis=-1)
            x = x + jax.nn.softmax(q @ k.swapaxes(-1, -2) / 8) @ v @ p["out"]
            return x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"], None

        x, _ = lax.scan(block, x, params["blocks"])
        p = jax.nn.softmax(norm(x) @ params["head"] * scale)
        return -jnp.mean(jnp.log(p[..., 0]))

    return loss, (params, jax.random.normal(next(keys), (4, 32, 64)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    for name, model, lengths in (("LSTM", lstm, (100, 1000)), ("transformer", transformer, (3, 12))):
        for kind, scale in (("healthy", 1.0), ("faulty", 1e3)):
            seconds = []
            for length in lengths:
                loss, args = model(length, scale)
                jax.clear_caches()
                started = time.perf_counter()
                report = rad.audit(loss)(*args)
                seconds.append(time.perf_counter() - started)
            told = "ok" if report.ok else ", ".join(f"{f.kind} at line {f.line}" for f in report.findings)
            ratio = f"{seconds[1] / seconds[0]:.2f}x"
            short, long = (f"{length:>5}: {took:5.1f} s" for length, took in zip(lengths, seconds))
            print(f"{name:12}{kind:9}{short} {long}  {ratio}   {told}")


if __name__ == "__main__":
    main()
