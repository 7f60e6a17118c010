"""Faults of likelihoods, masks and densities: overflow, underflow, nan and zero times infinity."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.zoo._entry import fault


@fault("vae", "underflow", phase="forward")
def make_vae_log_of_softmax(dtype=jnp.float32):
    class VAE(nnx.Module):
        def __init__(self, rngs):
            self.enc = nnx.Linear(8, 4, param_dtype=dtype, rngs=rngs)
            self.dec = nnx.Linear(2, 8, param_dtype=dtype, rngs=rngs)

        def __call__(self, x, eps):
            mean, logvar = jnp.split(self.enc(x), 2, axis=-1)
            z = mean + jnp.exp(0.5 * logvar) * eps
            return self.dec(z), mean, logvar

    def loss(model, x, eps):
        logits, mean, logvar = model(x, eps)
        probs = jax.nn.softmax(80.0 * logits)  # FAULT
        recon = -jnp.sum(x * jnp.log(probs), axis=-1)  # peaked logits: some probability is exactly 0
        kl = 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - logvar - 1, axis=-1)
        return jnp.mean(recon + kl)

    x = jax.nn.one_hot(jnp.arange(6) % 8, 8, dtype=dtype)
    eps = jax.random.normal(jax.random.key(1), (6, 2), dtype)
    return loss, (VAE(nnx.Rngs(0)), x, eps)


@fault("attention", "nan", phase="forward")
def make_attention_all_masked_row(dtype=jnp.float32):
    def loss(params, x, lengths):
        q, k, v = x @ params["q"], x @ params["k"], x @ params["v"]
        scores = jnp.einsum("bid,bjd->bij", q, k) / 2.0
        mask = jnp.arange(x.shape[1]) < lengths[:, None, None]
        scores = jnp.where(mask, scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1)  # FAULT
        return jnp.mean((weights @ v) ** 2)  # the sequence of length 0 has nothing to attend to

    rng = np.random.default_rng(0)
    params = {n: jnp.asarray(rng.normal(size=(4, 4)), dtype) for n in "qkv"}
    return loss, (params, jnp.asarray(rng.normal(size=(3, 5, 4)), dtype), jnp.array([5, 2, 0]))


@fault("mlp", "overflow", phase="forward")
def make_mlp_naive_softmax(dtype=jnp.float32):
    def loss(params, x, labels):
        h = jax.nn.relu(x @ params["w1"] + params["b1"])
        logits = h @ params["w2"]
        unnorm = jnp.exp(logits)  # FAULT
        probs = unnorm / unnorm.sum(axis=-1, keepdims=True)
        return -jnp.mean(jnp.log(probs[jnp.arange(len(labels)), labels]))

    rng = np.random.default_rng(1)
    params = {
        "w1": jnp.asarray(rng.normal(size=(6, 16)), dtype),
        "b1": jnp.zeros(16, dtype),
        "w2": jnp.asarray(8.0 * rng.normal(size=(16, 4)), dtype),  # no 1/sqrt(fan_in): logits in the hundreds
    }
    return loss, (params, jnp.asarray(3 * rng.normal(size=(8, 6)), dtype), jnp.arange(8) % 4)


@fault("survival", "overflow", phase="forward")
def make_survival_log1p_exp(dtype=jnp.float32):
    def loss(params, x, time, event):
        rate = x @ params["w"] + params["b"]
        hazard = jnp.log(1 + jnp.exp(rate))  # FAULT
        return jnp.mean(hazard * time - event * jnp.log(hazard + 1e-6))

    rng = np.random.default_rng(2)
    x = rng.normal(size=(10, 3)) * np.array([1.0, 1.0, 60.0])  # one feature left in its raw unit
    args = ({"w": jnp.ones(3, dtype), "b": jnp.zeros((), dtype)}, jnp.asarray(x, dtype))
    return loss, (*args, jnp.asarray(rng.exponential(size=10), dtype), jnp.asarray(rng.random(10) < 0.5))


@fault("regression", "underflow", phase="forward")
def make_heteroscedastic_nll(dtype=jnp.float32):
    def loss(params, x, y):
        mean = x @ params["w"]
        sigma = jnp.exp(params["log_sigma"])
        var = sigma**2  # FAULT
        return jnp.mean(0.5 * (y - mean) ** 2 / var + params["log_sigma"])

    rng = np.random.default_rng(3)  # charges in coulombs: sigma is 4e-25, its square no float32
    params = {"w": jnp.asarray(1e-18 * rng.normal(size=3), dtype), "log_sigma": jnp.asarray(-56.0, dtype)}
    return loss, (params, jnp.asarray(rng.normal(size=(6, 3)), dtype), jnp.asarray(1e-18 * rng.normal(size=6), dtype))


@fault("poisson", "zero-times-inf", phase="backward")
def make_where_after_log(dtype=jnp.float32):
    def loss(w, x, counts):
        rate = jnp.maximum(x @ w, 0.0)
        entropy = jnp.where(rate > 0, rate * jnp.log(rate), 0.0)  # FAULT
        return jnp.mean((rate - counts) ** 2 - 0.1 * entropy)

    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.normal(size=(12, 3)), dtype)
    return loss, (jnp.asarray(rng.normal(size=3), dtype), x, jnp.asarray(rng.poisson(1.0, size=12)))


@fault("contrastive", "zero-times-inf", phase="backward")
def make_contrastive_norm_of_zero_embedding(dtype=jnp.float32):
    class Encoder(eqx.Module):
        layer: eqx.nn.Linear

        def __call__(self, x):
            z = jnp.tanh(self.layer(x))
            norm = jnp.linalg.norm(z)  # FAULT
            return z / (norm + 1e-8)  # a blank input has norm 0; the epsilon comes too late

    def loss(encoder, a, b):
        za, zb = jax.vmap(encoder)(a), jax.vmap(encoder)(b)
        logits = za @ zb.T / 0.1
        return -jnp.mean(jnp.diag(jax.nn.log_softmax(logits)))

    encoder = Encoder(eqx.nn.Linear(4, 3, key=jax.random.key(0), dtype=dtype, use_bias=False))
    rng = np.random.default_rng(5)
    a = rng.normal(size=(6, 4))
    a[2] = 0.0  # a blank image
    return loss, (encoder, jnp.asarray(a, dtype), jnp.asarray(a + 0.1 * rng.normal(size=a.shape), dtype))


@fault("metric-learning", "zero-times-inf", phase="backward")
def make_pairwise_distance_diagonal(dtype=jnp.float32):
    def loss(w, x, same):
        z = x @ w
        sq = jnp.sum((z[:, None, :] - z[None, :, :]) ** 2, axis=-1)
        dist = jnp.sqrt(sq)  # FAULT
        pos = jnp.where(same & ~jnp.eye(len(x), dtype=bool), dist, 0.0)
        neg = jnp.where(same, 0.0, jax.nn.relu(1.0 - dist))
        return jnp.sum(pos + neg)

    rng = np.random.default_rng(6)
    label = np.arange(8) % 3
    args = jnp.asarray(rng.normal(size=(5, 2)), dtype), jnp.asarray(rng.normal(size=(8, 5)), dtype)
    return loss, (*args, jnp.asarray(label[:, None] == label[None, :]))


@fault("policy-gradient", "overflow", phase="forward")
def make_importance_ratio(dtype=jnp.float32):
    def loss(params, obs, action, logq, advantage):
        logits = obs @ params
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], axis=-1)[:, 0]
        ratio = jnp.exp(logp - logq)  # FAULT
        return -jnp.mean(ratio * advantage)

    rng = np.random.default_rng(7)
    logq = rng.uniform(-3, -1, size=8)
    logq[3] = -120.0  # the behaviour policy all but excluded this action
    data = jnp.asarray(rng.integers(0, 4, size=8)), jnp.asarray(logq, dtype), jnp.asarray(rng.normal(size=8), dtype)
    return loss, (jnp.asarray(rng.normal(size=(3, 4)), dtype), jnp.asarray(rng.normal(size=(8, 3)), dtype), *data)


@fault("policy-gradient", "overflow")
def make_ppo_clipped_ratio(dtype=jnp.float32):
    def loss(params, obs, action, logq, advantage):
        logp = jnp.take_along_axis(jax.nn.log_softmax(obs @ params), action[:, None], axis=-1)[:, 0]
        ratio = jnp.exp(logp - logq)  # FAULT
        clipped = jnp.clip(ratio, 0.8, 1.2)  # keeps the value finite, but the backward pass meets 0 * inf
        return -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))

    rng = np.random.default_rng(8)
    logq = rng.uniform(-3, -1, size=8)
    logq[3] = -120.0
    data = jnp.asarray(rng.integers(0, 4, size=8)), jnp.asarray(logq, dtype)
    args = jnp.asarray(rng.normal(size=(3, 4)), dtype), jnp.asarray(rng.normal(size=(8, 3)), dtype)
    return loss, (*args, *data, jnp.asarray(np.abs(rng.normal(size=8)), dtype))


@fault("hmm", "underflow", phase="forward")
def make_hmm_forward_in_probabilities(dtype=jnp.float32):
    def loss(params, obs):
        trans = jax.nn.softmax(params["trans"])
        emit = jax.nn.softmax(params["emit"])

        def step(alpha, o):
            alpha = (alpha @ trans) * emit[:, o]  # FAULT
            return alpha, None

        alpha, _ = jax.lax.scan(step, jnp.full(3, 1 / 3, dtype), obs)
        return -jnp.log(jnp.sum(alpha))

    rng = np.random.default_rng(9)
    params = {
        "trans": jnp.asarray(rng.normal(size=(3, 3)), dtype),
        "emit": jnp.asarray(rng.normal(size=(3, 20)), dtype),
    }
    return loss, (params, jnp.asarray(rng.integers(0, 20, size=80)))


@fault("mixture", "underflow", phase="forward")
def make_mixture_product_of_likelihoods(dtype=jnp.float32):
    def loss(params, x):
        weight = jax.nn.softmax(params["logit"])
        z = (x[:, None] - params["mean"]) / params["scale"]
        pdf = jnp.exp(-0.5 * z**2) / (params["scale"] * jnp.sqrt(2 * jnp.pi))
        density = jnp.sum(weight * pdf, axis=-1)
        likelihood = jnp.prod(density)  # FAULT
        return -jnp.log(likelihood)

    x = np.random.default_rng(10).normal(size=64) * 3
    params = {
        "logit": jnp.zeros(2, dtype),
        "mean": jnp.asarray([-2.0, 2.0], dtype),
        "scale": jnp.asarray([1.5, 2.5], dtype),
    }
    return loss, (params, jnp.asarray(x, dtype))


@fault("flow", "overflow", phase="forward")
def make_flow_log_of_product(dtype=jnp.float32):
    def loss(params, x):
        z, log_det = x, 0.0
        for layer in params:
            scale = jnp.exp(layer["log_scale"])
            z = jnp.tanh(z) * scale + layer["shift"]
            log_det += jnp.log(jnp.prod(scale))  # FAULT
        return jnp.mean(0.5 * jnp.sum(z**2, axis=-1)) - log_det

    rng = np.random.default_rng(11)

    def layer(log_scale):
        return {
            "log_scale": jnp.asarray(log_scale + 0.1 * rng.normal(size=48), dtype),
            "shift": jnp.asarray(rng.normal(size=48), dtype),
        }

    return loss, ([layer(0.1), layer(2.2)], jnp.asarray(rng.normal(size=(2, 48)), dtype))


@fault("optimal-transport", "underflow", phase="forward")
def make_sinkhorn_kernel(dtype=jnp.float32):
    def loss(x, y):
        cost = jnp.sum((x[:, None, :] - y[None, :, :]) ** 2, axis=-1)
        kernel = jnp.exp(-cost / 0.02)  # FAULT
        a = jnp.full(len(x), 1 / len(x), dtype)

        def iterate(_, uv):
            u, v = uv
            u = a / (kernel @ v)  # a point far from every other has a kernel row of zeros
            return u, a / (kernel.T @ u)

        u, v = jax.lax.fori_loop(0, 5, iterate, (jnp.ones_like(a), jnp.ones_like(a)))
        return jnp.sum(u[:, None] * kernel * v * cost)

    rng = np.random.default_rng(12)
    x = rng.normal(size=(5, 2)) * 0.3
    y = x + 0.1 * rng.normal(size=(5, 2))
    x[0] += 2.0
    return loss, (jnp.asarray(x, dtype), jnp.asarray(y, dtype))


@fault("policy-gradient", "zero-times-inf", "nan")
def make_entropy_of_certain_policy_in_cond(dtype=jnp.float32):
    def loss(params, obs, step):
        probs = jax.nn.relu(obs @ params) + jnp.asarray([1.0, 0.0, 0.0], dtype)
        probs = probs / probs.sum(axis=-1, keepdims=True)  # sparse policy: exact zeros are meant

        def bonus(p):
            return -jnp.mean(jnp.sum(p * jnp.log(p), axis=-1))  # FAULT

        entropy = jax.lax.cond(step < 100, bonus, lambda p: jnp.zeros((), p.dtype), probs)
        return -jnp.mean(probs[:, 0]) - 0.01 * entropy

    rng = np.random.default_rng(13)
    args = jnp.asarray(rng.normal(size=(4, 3)), dtype), jnp.asarray(rng.normal(size=(6, 4)), dtype)
    return loss, (*args, jnp.int32(7))


@fault("policy-gradient", "nan", phase="forward")
def make_kl_of_masked_actions(dtype=jnp.float32):
    def loss(params, obs, legal, old_logits):
        logits = jnp.where(legal, obs @ params, -jnp.inf)
        logp = jax.nn.log_softmax(logits)
        logq = jax.nn.log_softmax(jnp.where(legal, old_logits, -jnp.inf))
        kl = jnp.sum(jnp.exp(logp) * (logp - logq), axis=-1)  # FAULT
        return jnp.mean(kl)  # -inf - -inf at the illegal actions

    rng = np.random.default_rng(14)
    args = [jnp.asarray(rng.normal(size=s), dtype) for s in ((3, 5), (6, 3), (6, 5))]
    return loss, (args[0], args[1], jnp.arange(5) != 2, args[2])


@fault("language-model", "nan", phase="forward")
def make_mean_over_empty_mask(dtype=jnp.float32):
    def loss(params, tokens, mask):
        h = params["embed"][tokens]
        logp = jax.nn.log_softmax(h @ params["out"])
        nll = -jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]
        per_sequence = jnp.sum(nll * mask, axis=-1) / jnp.sum(mask, axis=-1)  # FAULT
        return jnp.mean(per_sequence)

    rng = np.random.default_rng(15)
    params = {"embed": jnp.asarray(rng.normal(size=(9, 4)), dtype), "out": jnp.asarray(rng.normal(size=(4, 9)), dtype)}
    mask = np.arange(6) < np.array([6, 3, 0])[:, None]  # the last sequence is all padding
    return loss, (params, jnp.asarray(rng.integers(0, 9, size=(3, 6))), jnp.asarray(mask, dtype))


@fault("mlp", "nan", phase="forward")
def make_log_of_negative_prediction(dtype=jnp.float32):
    def loss(params, x, y):
        pred = jnp.tanh(x @ params["w1"]) @ params["w2"]
        log_pred = jnp.log(pred + 1.0)  # FAULT
        return jnp.mean((log_pred - jnp.log(y + 1.0)) ** 2)  # msle: nothing keeps a prediction above -1

    rng = np.random.default_rng(16)
    params = {"w1": jnp.asarray(rng.normal(size=(3, 8)), dtype), "w2": jnp.asarray(rng.normal(size=8), dtype)}
    return loss, (params, jnp.asarray(rng.normal(size=(9, 3)), dtype), jnp.asarray(rng.exponential(size=9), dtype))


@fault("transformer", "overflow")
def make_swish_by_hand_in_checkpoint(dtype=jnp.float32):
    @jax.checkpoint
    def block(p, x):
        gate = x @ p["gate"]
        act = gate / (1 + jnp.exp(-gate))  # FAULT
        return x + (act * (x @ p["up"])) @ p["down"]  # exp(-gate) = inf gives act = 0, but a derivative 0 * inf

    def loss(params, x):
        for p in params:
            x = block(p, x)
        return jnp.mean(x**2)

    rng = np.random.default_rng(17)

    def layer(gain):
        shapes = {"gate": (6, 8), "up": (6, 8), "down": (8, 6)}
        scale = {"gate": gain, "up": 0.3, "down": 0.3}
        return {n: jnp.asarray(scale[n] * rng.normal(size=s), dtype) for n, s in shapes.items()}

    return loss, ([layer(0.5), layer(60.0)], jnp.asarray(rng.normal(size=(4, 6)), dtype))


@fault("graph", "overflow", phase="forward")
def make_power_iteration_in_while_loop(dtype=jnp.float32):
    def loss(w, adjacency):
        def body(state):
            i, v = state
            return i + 1, adjacency @ v  # FAULT

        start = jnp.ones(len(adjacency), dtype)
        _, v = jax.lax.while_loop(lambda s: s[0] < 120, body, (0, start))
        centrality = v / jnp.linalg.norm(v)  # normalised only once, after the vector has left float32's range
        return jnp.sum((centrality - jnp.tanh(w)) ** 2)

    rng = np.random.default_rng(18)
    upper = np.triu(rng.random((6, 6)) < 0.7, 1)
    return loss, (jnp.asarray(rng.normal(size=6), dtype), jnp.asarray(upper + upper.T, dtype))


@fault("regression", "overflow", phase="backward")
def make_softplus_with_its_own_vjp(dtype=jnp.float32):
    @jax.custom_vjp
    def softplus(x):
        return jnp.logaddexp(x, 0.0)

    def forward(x):
        return softplus(x), x

    def backward(x, g):
        sigmoid = jnp.exp(x) / (1 + jnp.exp(x))  # FAULT
        return (g * sigmoid,)  # the careful forward pass hides inf / inf in the rule

    softplus.defvjp(forward, backward)

    def loss(params, x, y):
        return jnp.mean((softplus(x @ params["w"] + params["b"]) - y) ** 2)

    rng = np.random.default_rng(19)
    params = {"w": jnp.asarray(30 * rng.normal(size=4), dtype), "b": jnp.zeros((), dtype)}
    return loss, (params, jnp.asarray(2 * rng.normal(size=(9, 4)), dtype), jnp.asarray(rng.normal(size=9), dtype))
