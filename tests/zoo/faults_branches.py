"""Faults of decisions: rounding takes another branch than the mathematics."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo._entry import fault


@fault("renderer", "branch-divergence", phase="forward")
def make_grazing_ray(dtype=jnp.float32):
    def loss(params, directions):
        def shade(d):
            b = jnp.dot(params["eye"], d)
            c = jnp.dot(params["eye"], params["eye"]) - params["radius"] ** 2
            hit = b * b > c  # FAULT
            return lax.cond(
                hit, lambda: params["albedo"] * 0.8, lambda: params["albedo"] ** 3
            )  # b² and c agree to 1e-8

        return sum(shade(d) for d in directions)

    params = {
        "eye": jnp.asarray([0.0, 0.0, 2000.0], dtype),
        "radius": jnp.asarray(1.0, dtype),
        "albedo": jnp.asarray(0.6, dtype),
    }
    angle = 4.99e-4  # just inside the silhouette, asin(1 / 2000)
    directions = np.array([[np.sin(angle), 0.0, np.cos(angle)], [0.0, np.sin(angle), np.cos(angle)]])
    return loss, (params, [jnp.asarray(d, dtype) for d in directions])


@fault("scheduler", "branch-divergence", phase="forward")
def make_bf16_warm_up(dtype=jnp.bfloat16):
    def loss(params, targets):
        def step(count, target):
            count = count + 1
            rate = jnp.where(count > 280, params["low"], params["high"])  # FAULT
            return count, rate * target  # a step counter in bfloat16 stops at 256

        return jnp.sum(lax.scan(step, jnp.zeros((), dtype), targets)[1] ** 2)

    targets = np.array([2.0**-6] * 280 + [2.0] * 20)
    return loss, ({"low": jnp.asarray(0.25, dtype), "high": jnp.asarray(2.0, dtype)}, jnp.asarray(targets, dtype))


@fault("pricing", "branch-divergence", phase="forward")
def make_knocked_out_option(dtype=jnp.float32):
    @jax.jit
    def paths(start, moves):
        return start * jnp.exp(jnp.cumsum(moves))

    def loss(params, moves, barrier):
        path = paths(params["spot"] + params["offset"], moves) - params["offset"]
        alive = jnp.max(path) < barrier  # FAULT
        return jnp.where(alive, (path[-1] - params["strike"]) ** 2, params["rebate"] * params["strike"])

    params = {
        "spot": jnp.asarray(1.0, dtype),
        "offset": jnp.asarray(3e7, dtype),  # prices are kept above a huge offset, whose unit is 2
        "strike": jnp.asarray(0.2, dtype),
        "rebate": jnp.asarray(0.05, dtype),
    }
    return loss, (params, jnp.zeros(4, dtype), jnp.asarray(0.9, dtype))
