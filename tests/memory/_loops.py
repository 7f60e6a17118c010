"""Loops to differentiate: as `scan` bodies, with their float64 oracle."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustad.memory import _scan
from robustad.memory._loop import Plan


def normal(seed: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def with_plan(monkeypatch: Any, plan: Plan | None) -> None:
    """Every `checkpointed_scan` follows this plan, as far as it is long enough."""

    def choose(step: Any, consts: int, length: int, state: int, limit: Any) -> Plan | None:
        if length == 0 or plan is None:
            return None
        block = min(plan.block, length)
        return Plan(block, min(plan.slots, length // block), plan.recompute)

    monkeypatch.setattr(_scan, "_choose", choose)


PLANS = [Plan(1, 1), Plan(1, 3), Plan(1, 1000), Plan(3, 1), Plan(4, 3), Plan(3, 2, True), Plan(1000, 1)]
"""Single steps and blocks, with too few states, some, and one for each."""


def recurrent(weights: jax.Array):
    """A body with a float, an integer, a boolean and a random key in its carry, dropout, and ys of three dtypes."""

    def body(carry: Any, x: jax.Array) -> Any:
        h, i, flag, key = carry
        key, own = jax.random.split(key)
        kept = jax.random.bernoulli(own, 0.8, h.shape)
        h = jnp.where(kept & ~(flag & (i % 3 == 0)), jnp.tanh(weights @ h + x), h / 2)
        return (h, i + 1, ~flag, key), (h * 2, i, kept)

    return body


def recurrent_loss(scan: Any, **options: Any):
    def loss(weights: jax.Array, h: jax.Array, xs: jax.Array, key: jax.Array) -> Any:
        (h, i, _, _), (ys, counts, kept) = scan(recurrent(weights), (h, 0, False, key), xs, **options)
        return jnp.sum(h**2) + jnp.sum(ys**3), (i, counts, kept)

    return loss


def operands(n: int, width: int = 3) -> tuple[Any, ...]:
    return normal(0, width, width) / 2, normal(1, width), normal(2, n, width), jax.random.key(3)


def worst(got: Any, expected: Any) -> float:
    """The largest error of a leaf, relative to its largest element."""
    errors = [0.0]
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        g, e = np.asarray(g, np.float64), np.asarray(e, np.float64)
        assert g.shape == e.shape
        if g.size:
            errors.append(float(np.max(np.abs(g - e)) / max(np.max(np.abs(e)), 1e-30)))
    return max(errors)


def equal_bits(got: Any, expected: Any) -> None:
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert g.dtype == e.dtype
        np.testing.assert_array_equal(np.asarray(g), np.asarray(e))
