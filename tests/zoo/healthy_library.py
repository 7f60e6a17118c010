"""Correct models built from flax, equinox and optax."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tests.zoo._entry import healthy


def _data(seed, *shapes, dtype):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in shapes)


@healthy("mlp", zero_leaves=(".lin1.bias",))
def make_nnx_mlp_with_batch_norm_and_dropout(dtype=jnp.float32):
    class MLP(nnx.Module):
        def __init__(self, rngs):
            self.lin1 = nnx.Linear(4, 8, param_dtype=dtype, rngs=rngs)
            self.norm = nnx.BatchNorm(8, param_dtype=dtype, rngs=rngs)
            self.drop = nnx.Dropout(0.3, rngs=rngs)
            self.lin2 = nnx.Linear(8, 1, param_dtype=dtype, rngs=rngs)

        def __call__(self, x):
            return self.lin2(self.drop(nnx.gelu(self.norm(self.lin1(x)))))

    def loss(model, x, y):
        return jnp.mean((model(x)[:, 0] - y) ** 2)

    return loss, (MLP(nnx.Rngs(0, dropout=1)), *_data(0, (16, 4), (16,), dtype=dtype))


@healthy("transformer", zero_leaves=(".key.bias",))
def make_nnx_multi_head_attention(dtype=jnp.float32):
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(8, param_dtype=dtype, rngs=rngs)
            self.attn = nnx.MultiHeadAttention(2, 8, param_dtype=dtype, decode=False, rngs=rngs)

        def __call__(self, x):
            return x + self.attn(self.norm(x), mask=nnx.make_causal_mask(x[..., 0]))

    def loss(model, x):
        return jnp.mean(model(x) ** 4)

    return loss, (Block(nnx.Rngs(1)), *_data(1, (2, 5, 8), dtype=dtype))


@healthy("conv")
def make_linen_conv_net(dtype=jnp.float32):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.relu(nn.Conv(4, (3, 3), param_dtype=dtype)(x))
            h = nn.max_pool(h, (2, 2), strides=(2, 2))
            h = nn.GroupNorm(2, param_dtype=dtype)(h)
            return nn.Dense(3, param_dtype=dtype)(h.reshape(len(h), -1))

    def loss(params, x, labels):
        return optax.softmax_cross_entropy_with_integer_labels(Net().apply(params, x), labels).mean()

    (x,) = _data(2, (3, 6, 6, 1), dtype=dtype)
    return loss, (jax.jit(Net().init)(jax.random.key(0), x), x, jnp.arange(3))


@healthy("mlp")
def make_equinox_mlp(dtype=jnp.float32):
    def loss(model, x, y):
        logits = jax.vmap(model)(x)  # the module's activation functions are leaves too
        return jnp.mean(optax.sigmoid_binary_cross_entropy(30 * logits, y))

    model = eqx.nn.MLP(4, "scalar", 8, 2, jax.nn.tanh, dtype=dtype, key=jax.random.key(2))
    return loss, (model, *_data(3, (8, 4), dtype=dtype), jnp.arange(8) % 2 == 0)


@healthy("speech")
def make_optax_ctc(dtype=jnp.float32):
    def loss(params, x, labels, label_pad, logit_pad):
        logits = jnp.tanh(x @ params["w"]) @ params["v"]
        return jnp.mean(optax.ctc_loss(logits, logit_pad, labels, label_pad))

    w, v, x = _data(4, (3, 6), (6, 5), (2, 8, 3), dtype=dtype)
    labels = jnp.array([[1, 2, 2], [3, 0, 0]])
    logit_pad = jnp.asarray(np.arange(8) >= np.array([8, 6])[:, None], dtype)
    label_pad = jnp.asarray(np.arange(3) >= np.array([3, 1])[:, None], dtype)
    return loss, ({"w": w, "v": v}, x, labels, label_pad, logit_pad)


@healthy("mixed-precision")
def make_linen_bf16_dense(dtype=jnp.bfloat16):
    wide = jnp.promote_types(dtype, jnp.float32)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.LayerNorm(dtype=dtype, param_dtype=wide)(nn.Dense(8, dtype=dtype, param_dtype=wide)(x))
            return nn.Dense(4, dtype=dtype, param_dtype=wide)(nn.silu(h)).astype(wide)

    def loss(params, x, targets):
        return jnp.mean(optax.softmax_cross_entropy(Net().apply(params, x), targets))

    (x,) = _data(5, (12, 6), dtype=wide)
    return loss, (jax.jit(Net().init)(jax.random.key(4), x), x, jax.nn.one_hot(jnp.arange(12) % 4, 4, dtype=wide))


@healthy("contrastive")
def make_equinox_cosine_embedding(dtype=jnp.float32):
    def loss(encoder, a, b):
        za, zb = jax.vmap(encoder)(a), jax.vmap(encoder)(b)
        za, zb = (z * jax.lax.rsqrt(jnp.sum(z**2, axis=-1, keepdims=True) + 1e-8) for z in (za, zb))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(za @ zb.T / 0.1, jnp.arange(len(a))))

    encoder = eqx.nn.Linear(4, 3, key=jax.random.key(5), dtype=dtype, use_bias=False)
    a, noise = _data(6, (6, 4), (6, 4), dtype=dtype)
    a = a.at[2].set(0.0)  # a blank image
    return loss, (encoder, a, a + 0.3 * noise)
