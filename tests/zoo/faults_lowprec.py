"""Faults of bfloat16 and float16 training: absorption, small and large cotangents, short ranges."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.zoo._entry import fault


def _wide(dtype):
    """float32, or float64 in the float64 twin."""
    return jnp.promote_types(dtype, jnp.float32)


@fault("rate-model", "absorption", phase="forward")
def make_bf16_running_sum(dtype=jnp.bfloat16):
    def loss(params, xs):
        def add(total, x):
            total = total + jnp.exp(params["w"]) * x  # FAULT
            return total, None

        total, _ = jax.lax.scan(add, jnp.zeros((), dtype), xs)
        return (total / len(xs) - params["target"]) ** 2  # a bf16 sum of ones stops growing at 256

    xs = np.random.default_rng(0).uniform(0.6, 1.0, size=1500)
    params = {"w": jnp.asarray(0.1, dtype), "target": jnp.asarray(0.25, dtype)}
    return loss, (params, jnp.asarray(xs, dtype))


@fault("ode", "absorption", phase="forward")
def make_bf16_clock_in_fori_loop(dtype=jnp.bfloat16):
    def loss(params, x):
        dt = 1 / 256

        def euler(_, state):
            t, y = state
            y = 0.99 * y + 0.01 * jnp.sin(params["omega"] * t) * x
            t = t + dt  # FAULT
            return t, y  # at t = 1 half a unit in the last place is dt: time stands still

        _, y = jax.lax.fori_loop(0, 700, euler, (jnp.zeros((), dtype), jnp.zeros_like(x)))
        return jnp.mean((y - 1.0) ** 2)

    args = {"omega": jnp.asarray(2.0, dtype)}, jnp.asarray([0.5, 1.0, 1.5], dtype)
    return loss, args


@fault("rnn", "absorption", phase="backward")
def make_bf16_shared_weight_gradient(dtype=jnp.bfloat16):
    def loss(w, xs):
        _, ys = jax.lax.scan(lambda carry, x: (carry, x * w), 0, xs)  # FAULT
        return jnp.sum(ys.astype(_wide(dtype)))  # the backward scan adds 1500 cotangents of w in bfloat16

    xs = np.random.default_rng(2).uniform(0.6, 1.0, size=(1500, 2))
    return loss, (jnp.asarray([0.5, -1.0], dtype), jnp.asarray(xs, dtype))


@fault("actor-critic", "cancellation", phase="forward")
def make_bf16_advantage(dtype=jnp.bfloat16):
    def loss(params, obs, returns):
        value = jnp.tanh(obs @ params["w1"]) @ params["w2"] + params["baseline"]
        advantage = returns - value  # FAULT
        return jnp.mean(advantage**2)  # returns of 200 with spread 1: both sides keep a unit of 1

    rng = np.random.default_rng(3)
    params = {
        "w1": jnp.asarray(rng.normal(size=(3, 4)), dtype),
        "w2": jnp.asarray(rng.normal(size=4), dtype),
        "baseline": jnp.asarray(200.0, dtype),
    }
    args = jnp.asarray(rng.normal(size=(8, 3)), dtype), jnp.asarray(200 + rng.normal(size=8), dtype)
    return loss, (params, *args)


@fault("diffusion", "absorption", "cancellation", phase="forward")
def make_bf16_signal_to_noise(dtype=jnp.bfloat16):
    def loss(params, x, noise):
        beta = jax.nn.sigmoid(params["schedule"])
        snr = 1 / (1 - jnp.cumprod(1 - beta))  # FAULT
        pred = x @ params["w"]
        return jnp.mean(snr[:, None] * (pred - noise) ** 2)  # 1 - 1e-4 is 1 in bfloat16

    rng = np.random.default_rng(4)
    params = {
        "schedule": jnp.asarray(np.linspace(-9, -2, 8), dtype),
        "w": jnp.asarray(rng.normal(size=(3, 3)), dtype),
    }
    return loss, (params, jnp.asarray(rng.normal(size=(8, 3)), dtype), jnp.asarray(rng.normal(size=(8, 3)), dtype))


@fault("gated-mlp", "unstable-derivative", phase="backward")
def make_bf16_saturated_gate(dtype=jnp.bfloat16):
    class Gated(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(4, 6, param_dtype=dtype, dtype=dtype, rngs=rngs)
            self.gate = nnx.Linear(
                4, 6, param_dtype=dtype, dtype=dtype, rngs=rngs, bias_init=nnx.initializers.constant(6.0)
            )

        def __call__(self, x):
            gate = nnx.sigmoid(self.gate(x))  # FAULT
            return self.up(x) * gate  # sigmoid(6) = 0.9975 rounds to 0.996 or 1: its derivative is off or lost

    def loss(model, x):
        return jnp.mean(model(x) ** 2)

    x = jnp.asarray(0.3 * np.random.default_rng(5).normal(size=(8, 4)), dtype)
    return loss, (Gated(nnx.Rngs(0)), x)


@fault("autoencoder", "underflow", phase="backward")
def make_f16_without_loss_scale(dtype=jnp.float16):
    def loss(params, x):
        h = jax.nn.gelu(x @ params["enc"])
        recon = h @ params["dec"]
        error = recon.astype(_wide(dtype)) - x.astype(_wide(dtype))  # FAULT
        return 1e-5 * jnp.mean(error**2)  # cotangents of 1e-8 are 0 once they are cast to float16

    rng = np.random.default_rng(6)
    params = {
        "enc": jnp.asarray(0.3 * rng.normal(size=(32, 4)), dtype),
        "dec": jnp.asarray(0.3 * rng.normal(size=(4, 32)), dtype),
    }
    return loss, (params, jnp.asarray(rng.normal(size=(16, 32)), dtype))


@fault("transformer", "overflow", phase="forward")
def make_f16_attention_scores(dtype=jnp.float16):
    def loss(params, x):
        q, k, v = x @ params["q"], x @ params["k"], x @ params["v"]
        scores = jax.lax.map(lambda row: k @ row, q)  # FAULT
        scores = scores / jnp.sqrt(q.shape[-1]).astype(dtype)  # too late: the sum has passed 65504
        out = jax.nn.softmax(scores, axis=-1) @ v
        return jnp.mean(out.astype(_wide(dtype)) ** 2)

    rng = np.random.default_rng(7)
    params = {n: jnp.asarray(scale * rng.normal(size=(8, 32)), dtype) for n, scale in (("q", 60), ("k", 60), ("v", 1))}
    return loss, (params, jnp.asarray(rng.normal(size=(6, 8)), dtype))


@fault("transformer", "overflow", phase="forward")
def make_f16_rms_norm(dtype=jnp.float16):
    class RMSNorm(nn.Module):
        @nn.compact
        def __call__(self, x):
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), dtype)
            power = jnp.mean(jnp.square(x), axis=-1, keepdims=True)  # FAULT
            return x * jax.lax.rsqrt(power + 1e-3) * scale  # 300**2 = inf: the row becomes 0, all values stay finite

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(6, dtype=dtype, param_dtype=dtype)(x)
            return nn.Dense(1, dtype=dtype, param_dtype=dtype)(RMSNorm()(x))

    def loss(params, x, y):
        return jnp.mean((Model().apply(params, x)[:, 0].astype(_wide(dtype)) - y) ** 2)

    rng = np.random.default_rng(8)
    x = jnp.asarray(300 * rng.normal(size=(5, 4)), dtype)
    return loss, (jax.jit(Model().init)(jax.random.key(0), x), x, jnp.asarray(rng.normal(size=5), dtype))


@fault("deep-mlp", "vanishing", "underflow", phase="backward")
def make_f16_deep_sigmoid(dtype=jnp.float16):
    def loss(params, x, y):
        h = x
        for w in params["hidden"]:
            h = jax.nn.sigmoid(h @ w)  # FAULT
        return jnp.mean((h @ params["head"] - y) ** 2)  # 0.25 * |w| a layer: the first layers get subnormals, then 0

    rng = np.random.default_rng(9)
    params = {
        "hidden": [jnp.asarray(0.3 * rng.normal(size=(6, 6)), dtype) for _ in range(12)],
        "head": jnp.asarray(rng.normal(size=6), dtype),
    }
    return loss, (params, jnp.asarray(rng.normal(size=(4, 6)), dtype), jnp.asarray(rng.normal(size=4), dtype))


@fault("classifier", "underflow", phase="forward")
def make_f16_epsilon(dtype=jnp.float16):
    def loss(params, x, labels):
        probs = jax.nn.softmax(x @ params["w"], axis=-1)  # FAULT
        return -jnp.mean(jnp.log(probs[jnp.arange(len(labels)), labels] + 1e-8))  # 1e-8 is 0 in float16

    rng = np.random.default_rng(10)
    args = {"w": jnp.asarray(6 * rng.normal(size=(4, 5)), dtype)}, jnp.asarray(2 * rng.normal(size=(6, 4)), dtype)
    return loss, (*args, jnp.arange(6) % 5)


@fault("distillation", "overflow", phase="forward")
def make_f16_pseudo_huber_in_vmap(dtype=jnp.float16):
    def loss(params, x, teacher):
        def per_sample(row, target):
            diff = row @ params["w"] + params["b"] - target
            robust = jnp.sqrt(1 + diff**2) - 1  # FAULT
            return jnp.mean(robust)  # made for outliers, but 400**2 has no place in float16

        return jnp.mean(jax.vmap(per_sample)(x, teacher))

    rng = np.random.default_rng(11)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), dtype), "b": jnp.zeros(3, dtype)}
    teacher = rng.normal(size=(5, 3))
    teacher[1, 1] = 400.0
    return loss, (params, jnp.asarray(rng.normal(size=(5, 4)), dtype), jnp.asarray(teacher, dtype))
