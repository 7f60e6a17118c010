"""Correct models in plain JAX whose code looks as if it had a fault."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.zoo._entry import healthy


def _wide(dtype):
    """float32, or float64 in the float64 twin."""
    return jnp.promote_types(dtype, jnp.float32)


def _normal(seed, shapes, dtype, scale=1.0):
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(scale * rng.normal(size=s), dtype) for n, s in shapes.items()}


def _data(seed, *shapes, dtype):
    rng = np.random.default_rng(1000 + seed)
    return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in shapes)


@healthy("attention")
def make_causal_mask_with_minus_inf(dtype=jnp.float32):
    def loss(params, x):
        q, k, v = x @ params["q"], x @ params["k"], x @ params["v"]
        scores = jnp.where(jnp.tri(len(x), dtype=bool), q @ k.T / 2.0, -jnp.inf)
        return jnp.mean((jax.nn.softmax(scores) @ v) ** 2)  # every row sees itself, so no row is all -inf

    return loss, (_normal(0, {n: (4, 4) for n in "qkv"}, dtype), *_data(0, (5, 4), dtype=dtype))


@healthy("attention")
def make_padding_mask_with_finfo_min(dtype=jnp.float32):
    def loss(params, x, lengths):
        q, k, v = x @ params["q"], x @ params["k"], x @ params["v"]
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        scores = jnp.einsum("bid,bjd->bij", q, k) / 2.0
        scores = jnp.where(valid[:, None, :], scores, jnp.finfo(scores.dtype).min)
        out = jax.nn.softmax(scores) @ v  # an empty sequence attends uniformly and is then left out of the mean
        return jnp.sum(out**2 * valid[..., None]) / jnp.maximum(valid.sum(), 1)

    args = _normal(1, {n: (4, 4) for n in "qkv"}, dtype), *_data(1, (3, 5, 4), dtype=dtype)
    return loss, (*args, jnp.array([5, 2, 0]))


@healthy("attention", zero_leaves=("bk",))
def make_attention_with_key_bias(dtype=jnp.float32):
    def loss(params, x):
        q = x @ params["wq"] + params["bq"]
        k = x @ params["wk"] + params["bk"]  # shifts every score of a row alike: softmax does not see it
        v = x @ params["wv"] + params["bv"]
        return jnp.mean((jax.nn.softmax(q @ k.T / 2.0) @ v) ** 2)

    shapes = {"wq": (4, 4), "wk": (4, 4), "wv": (4, 4), "bq": (4,), "bk": (4,), "bv": (4,)}
    return loss, (_normal(2, shapes, dtype), *_data(2, (6, 4), dtype=dtype))


@healthy("metric-learning")
def make_double_where_around_sqrt(dtype=jnp.float32):
    def loss(w, x):
        z = x @ w
        sq = jnp.sum((z[:, None] - z[None, :]) ** 2, axis=-1)
        apart = sq > 0
        dist = jnp.where(apart, jnp.sqrt(jnp.where(apart, sq, 1.0)), 0.0)
        return jnp.mean(jax.nn.relu(1.0 - dist) + 0.1 * dist)

    return loss, (_normal(3, {"w": (4, 2)}, dtype)["w"], *_data(3, (6, 4), dtype=dtype))


@healthy("poisson")
def make_double_where_around_log(dtype=jnp.float32):
    def loss(w, x):
        rate = jnp.maximum(x @ w, 0.0)
        xlogx = jnp.where(rate > 0, rate * jnp.log(jnp.where(rate > 0, rate, 1.0)), 0.0)
        return jnp.mean(xlogx - rate)

    return loss, (_normal(4, {"w": (3,)}, dtype)["w"], *_data(4, (9, 3), dtype=dtype))


@healthy("mixture")
def make_logsumexp_mixture(dtype=jnp.float32):
    def loss(params, x):
        z = (x[:, None] - params["mean"]) * jnp.exp(-params["log_scale"])
        logp = jax.nn.log_softmax(params["logit"]) - 0.5 * z**2 - params["log_scale"]
        return -jnp.sum(jax.nn.logsumexp(logp, axis=-1))  # far points: every density underflows, no logsumexp does

    params = _normal(5, {"mean": (3,), "log_scale": (3,), "logit": (3,)}, dtype)
    return loss, (params, 10 * _data(5, (64,), dtype=dtype)[0])


@healthy("norm-layer")
def make_layer_norm(dtype=jnp.float32):
    def loss(params, x, y):
        h = x @ params["w"] + params["b"]
        mean = h.mean(axis=-1, keepdims=True)
        var = jnp.mean((h - mean) ** 2, axis=-1, keepdims=True)
        out = params["gain"] * (h - mean) * jax.lax.rsqrt(var + 1e-5)
        return jnp.mean((out - y) ** 2)

    params = _normal(6, {"w": (4, 8), "b": (8,), "gain": (8,)}, dtype)
    return loss, (params, *_data(6, (5, 4), (5, 8), dtype=dtype))


@healthy("norm-layer", zero_leaves=("b1",))
def make_bias_before_batch_norm(dtype=jnp.float32):
    def loss(params, x, y):
        h = x @ params["w1"] + params["b1"]  # the batch mean takes the bias away again
        h = (h - h.mean(axis=0)) / jnp.sqrt(h.var(axis=0) + 1e-5)
        return jnp.mean((jax.nn.relu(h * params["gain"]) @ params["w2"] - y) ** 2)

    params = _normal(7, {"w1": (4, 6), "b1": (6,), "gain": (6,), "w2": (6,)}, dtype)
    return loss, (params, *_data(7, (16, 4), (16,), dtype=dtype))


@healthy("mixed-precision")
def make_bf16_compute_f32_params(dtype=jnp.bfloat16):
    def loss(params, x, y):
        low = jax.tree.map(lambda p: p.astype(dtype), params)
        h = jax.nn.gelu(x.astype(dtype) @ low["w1"] + low["b1"])
        pred = (h @ low["w2"]).astype(_wide(dtype))
        return jnp.mean((pred - y) ** 2)

    params = _normal(8, {"w1": (4, 16), "b1": (16,), "w2": (16, 2)}, _wide(dtype), scale=0.5)
    return loss, (params, *_data(8, (12, 4), (12, 2), dtype=_wide(dtype)))


@healthy("mixed-precision")
def make_f16_with_loss_scale(dtype=jnp.float16):
    def loss(params, x):
        h = jax.nn.gelu(x @ params["enc"])
        error = (h @ params["dec"]).astype(_wide(dtype)) - x.astype(_wide(dtype))
        return 1e-5 * jnp.mean(error**2) * 2.0**24  # the scale lifts cotangents of 1e-8 into float16's range

    params = _normal(9, {"enc": (32, 4), "dec": (4, 32)}, dtype, scale=0.3)
    return loss, (params, *_data(9, (16, 32), dtype=dtype))


@healthy("rate-model")
def make_kahan_sum_in_bf16(dtype=jnp.bfloat16):
    def loss(params, xs):
        def add(carry, term):
            total, rest = carry
            y = term - rest
            new = total + y
            return (new, (new - total) - y), None  # a difference of near equals, on purpose

        zero = jnp.zeros((), dtype)
        (total, _), _ = jax.lax.scan(add, (zero, zero), params["rates"] * xs)
        return (total / len(xs) - 0.25) ** 2

    rng = np.random.default_rng(10)
    rates = {"rates": jnp.asarray(rng.uniform(0.6, 1.0, size=600), dtype)}
    return loss, (rates, jnp.asarray(rng.uniform(0.6, 1.0, size=600), dtype))


@healthy("mlp")
def make_relu_and_max_ties(dtype=jnp.float32):
    def loss(params, x):
        h = jax.nn.relu(x @ params["w"])  # rows of zeros give exact ties at 0
        m = jnp.max(jnp.concatenate([h, h], axis=-1), axis=-1)
        return jnp.mean((m - jnp.maximum(h, 0.0) @ params["v"]) ** 2)

    x = _data(11, (8, 4), dtype=dtype)[0].at[::3].set(0.0)
    return loss, (_normal(11, {"w": (4, 6), "v": (6,)}, dtype), x)


@healthy("mlp")
def make_dropout_with_keys(dtype=jnp.float32):
    def loss(params, x, y, key):
        h = x
        for w, k in zip(params["ws"], jax.random.split(key, 2), strict=True):
            h = jax.nn.relu(h @ w)
            h = jnp.where(jax.random.bernoulli(k, 0.8, h.shape), h / 0.8, 0.0)
        return jnp.mean((h @ params["v"] - y) ** 2)

    p = _normal(12, {"w1": (4, 8), "w2": (8, 8), "v": (8,)}, dtype)
    return loss, ({"ws": [p["w1"], p["w2"]], "v": p["v"]}, *_data(12, (6, 4), (6,), dtype=dtype), jax.random.key(3))


@healthy("language-model")
def make_embedding_with_repeats(dtype=jnp.float32):
    def loss(params, tokens, mask):
        h = params["embed"][tokens]  # some rows are used often, some never
        logp = jax.nn.log_softmax(h @ params["out"])
        nll = -jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]
        return jnp.sum(jnp.where(mask, nll, 0.0)) / jnp.maximum(jnp.sum(mask), 1)

    tokens = jnp.asarray(np.random.default_rng(13).integers(0, 5, size=(3, 7)))
    mask = jnp.arange(7) < jnp.array([7, 4, 0])[:, None]
    return loss, (_normal(13, {"embed": (9, 4), "out": (4, 9)}, dtype), tokens, mask)


@healthy("graph")
def make_message_passing_scatter_add(dtype=jnp.float32):
    def loss(params, x, src, dst, has_edge):
        h = jnp.tanh(x @ params["w"])
        count = jnp.zeros(len(x), int).at[dst].add(1)
        inbox = jnp.zeros_like(h).at[dst].add(h[src]) / jnp.maximum(count, 1)[:, None]
        pooled = jax.ops.segment_max(h, jnp.arange(len(x)) // 2, num_segments=4)  # the empty segment holds -inf
        pooled = jnp.where(jnp.isfinite(pooled), pooled, 0.0)
        return jnp.mean((inbox @ params["v"]) ** 2 * has_edge) + jnp.mean(pooled**2)

    rng = np.random.default_rng(14)
    src, dst = jnp.asarray(rng.integers(0, 6, size=10)), jnp.asarray(rng.integers(0, 5, size=10))
    params = _normal(14, {"w": (3, 4), "v": (4,)}, dtype)
    return loss, (params, *_data(14, (6, 3), dtype=dtype), src, dst, jnp.arange(6) < 5)


@healthy("diffusion")
def make_cumprod_schedule(dtype=jnp.float32):
    def loss(params, x, noise):
        log_keep = jax.nn.log_sigmoid(params["schedule"])
        keep = jnp.exp(jnp.cumsum(log_keep))
        weight = jnp.cumprod(1 - 0.1 * keep)
        noisy = jnp.sqrt(keep)[:, None] * x + jnp.sqrt(1 - keep)[:, None] * noise
        return jnp.mean(weight[:, None] * (noisy @ params["w"] - noise) ** 2)

    params = {"schedule": jnp.linspace(3, 0, 6).astype(dtype), **_normal(15, {"w": (3, 3)}, dtype)}
    return loss, (params, *_data(15, (6, 3), (6, 3), dtype=dtype))


@healthy("mixture-of-experts")
def make_sort_top_k_argmax(dtype=jnp.float32):
    def loss(params, x):
        logits = x @ params["router"]
        top, index = jax.lax.top_k(logits, 2)
        out = jnp.einsum("nd,nkd->nk", x, params["experts"][index])
        best = jnp.take_along_axis(logits, jnp.argmax(logits, axis=-1)[:, None], axis=-1)
        trimmed = jnp.sort(x, axis=-1)[:, 1:-1].mean(axis=-1)
        return jnp.mean((jnp.sum(jax.nn.softmax(top) * out, axis=-1) - trimmed) ** 2) + 1e-2 * jnp.mean(best**2)

    return loss, (_normal(16, {"router": (5, 4), "experts": (4, 5)}, dtype), *_data(16, (7, 5), dtype=dtype))


@healthy("conv")
def make_conv_with_max_pool(dtype=jnp.float32):
    def loss(params, images, labels):
        h = jax.lax.conv_general_dilated(
            images, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = jax.nn.relu(h + params["bias"])
        h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        logp = jax.nn.log_softmax(h.reshape(len(h), -1) @ params["head"])
        return -jnp.mean(logp[jnp.arange(len(labels)), labels])

    params = _normal(17, {"kernel": (3, 3, 1, 4), "bias": (4,), "head": (36, 3)}, dtype, scale=0.5)
    return loss, (params, *_data(17, (4, 6, 6, 1), dtype=dtype), jnp.arange(4) % 3)


@healthy("rnn")
def make_lstm_scan(dtype=jnp.float32):
    def loss(params, xs, y):
        def cell(state, x):
            h, c = state
            i, f, g, o = jnp.split(x @ params["w"] + h @ params["u"] + params["b"], 4, axis=-1)
            c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((xs.shape[1], 5), dtype)
        _, hs = jax.lax.scan(cell, (zero, zero), xs)
        return jnp.mean((hs[-1] @ params["v"] - y) ** 2)

    params = _normal(18, {"w": (3, 20), "u": (5, 20), "b": (20,), "v": (5,)}, dtype, scale=0.5)
    return loss, (params, *_data(18, (12, 4, 3), (4,), dtype=dtype))


@healthy("transformer")
def make_remat_blocks(dtype=jnp.float32):
    @jax.checkpoint
    def block(p, x):
        h = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
        return x + jax.nn.silu(h @ p["gate"]) * (h @ p["up"])

    def loss(params, x):
        x, _ = jax.lax.scan(lambda x, p: (block(p, x), None), x, params)
        return jnp.mean(x**2)

    return loss, (_normal(19, {"gate": (3, 6, 6), "up": (3, 6, 6)}, dtype, scale=0.4), *_data(19, (5, 6), dtype=dtype))


@healthy("mlp")
def make_custom_vjp_gradient_clip(dtype=jnp.float32):
    @jax.custom_vjp
    def clip_gradient(x):
        return x

    def forward(x):
        return x, None

    def backward(_, g):
        norm = jnp.sqrt(jnp.sum(g**2) + 1e-12)
        return (g * jnp.minimum(1.0, 0.1 / norm),)

    clip_gradient.defvjp(forward, backward)

    def loss(params, x, y):
        h = clip_gradient(jnp.tanh(x @ params["w"]))
        return jnp.mean((h @ params["v"] - y) ** 2)

    return loss, (_normal(20, {"w": (3, 6), "v": (6,)}, dtype), *_data(20, (8, 3), (8,), dtype=dtype))


@healthy("vq-vae")
def make_straight_through_rounding(dtype=jnp.float32):
    def loss(params, x):
        z = x @ params["enc"]
        rounded = z + jax.lax.stop_gradient(jnp.round(z) - z)
        return jnp.mean((rounded @ params["dec"] - x) ** 2) + 0.1 * jnp.mean((z - jax.lax.stop_gradient(rounded)) ** 2)

    return loss, (_normal(21, {"enc": (4, 3), "dec": (3, 4)}, dtype), *_data(21, (7, 4), dtype=dtype))


@healthy("gaussian-process")
def make_gp_with_jitter(dtype=jnp.float32):
    def loss(params, x, y):
        sq = ((x[:, None] - x[None, :]) * jnp.exp(-params["log_length"])) ** 2
        kernel = jnp.exp(params["log_amp"] - 0.5 * sq) + 1e-2 * jnp.eye(len(x), dtype=x.dtype)
        chol = jnp.linalg.cholesky(kernel)
        alpha = jax.scipy.linalg.cho_solve((chol, True), y)
        return 0.5 * y @ alpha + jnp.sum(jnp.log(jnp.diag(chol)))

    x = np.linspace(0, 1, 8)
    params = {"log_length": jnp.asarray(-1.5, dtype), "log_amp": jnp.asarray(0.2, dtype)}
    return loss, (params, jnp.asarray(x, dtype), jnp.asarray(np.sin(6 * x), dtype))


@healthy("spectral")
def make_fft_layer(dtype=jnp.float32):
    def loss(params, x, y):
        spectrum = jnp.fft.rfft(x, axis=-1)
        h = jnp.fft.irfft(spectrum * (params["re"] + 1j * params["im"]), n=x.shape[-1], axis=-1)
        return jnp.mean((jax.nn.gelu(h) - y) ** 2) + 1e-3 * jnp.mean(jnp.abs(spectrum * params["re"]) ** 2)

    return loss, (_normal(22, {"re": (5,), "im": (5,)}, dtype), *_data(22, (4, 8), (4, 8), dtype=dtype))


@healthy("regression")
def make_linear_solve(dtype=jnp.float32):
    def loss(params, x, y):
        phi = jnp.tanh(x @ params["w"])
        weights = jnp.linalg.solve(phi.T @ phi + 0.1 * jnp.eye(4, dtype=phi.dtype), phi.T @ y)
        return jnp.mean((phi @ weights - y) ** 2)

    return loss, (_normal(23, {"w": (3, 4)}, dtype), *_data(23, (10, 3), (10,), dtype=dtype))


@healthy("graph")
def make_while_loop_outside_the_gradient(dtype=jnp.float32):
    def loss(w, x):
        gram = jax.lax.stop_gradient(w.T @ w)

        def body(state):
            i, v = state
            v = gram @ v
            return i + 1, v / jnp.linalg.norm(v)

        _, v = jax.lax.while_loop(lambda s: s[0] < 30, body, (0, jnp.ones(w.shape[1], dtype)))
        sigma = jnp.sqrt(v @ gram @ v)
        return jnp.mean((x @ w / sigma) ** 2)

    return loss, (_normal(24, {"w": (4, 3)}, dtype)["w"], *_data(24, (6, 4), dtype=dtype))


@healthy("flow")
def make_affine_coupling_flow(dtype=jnp.float32):
    def loss(params, x):
        log_det = 0.0
        for p in params:
            a, b = jnp.split(x, 2, axis=-1)
            log_scale = jnp.tanh(a @ p["s"])
            x = jnp.concatenate([b * jnp.exp(log_scale) + a @ p["t"], a], axis=-1)
            log_det += log_scale.sum(axis=-1)
        return jnp.mean(0.5 * jnp.sum(x**2, axis=-1) - log_det)

    params = [_normal(25 + i, {"s": (2, 2), "t": (2, 2)}, dtype) for i in range(3)]
    return loss, (params, *_data(25, (8, 4), dtype=dtype))


@healthy("hmm")
def make_hmm_in_log_space(dtype=jnp.float32):
    def loss(params, obs, valid):
        log_trans = jax.nn.log_softmax(params["trans"])
        log_emit = jax.nn.log_softmax(params["emit"])

        def step(alpha, inputs):
            o, ok = inputs
            new = jax.nn.logsumexp(alpha[:, None] + log_trans, axis=0) + log_emit[:, o]
            return jnp.where(ok, new, alpha), None

        start = jnp.array([0.0, -jnp.inf, -jnp.inf], dtype)  # always starts in state 0
        alpha, _ = jax.lax.scan(step, start, (obs, valid))
        return -jax.nn.logsumexp(alpha)

    obs = jnp.asarray(np.random.default_rng(28).integers(0, 6, size=60))
    return loss, (_normal(28, {"trans": (3, 3), "emit": (3, 6)}, dtype), obs, jnp.arange(60) < 50)


@healthy("mlp")
def make_nan_metric_in_dead_code(dtype=jnp.float32):
    def loss(params, x, y):
        pred = jnp.tanh(x @ params["w"]) @ params["v"]
        metrics = {"psnr": -jnp.log(jnp.zeros_like(y)).mean(), "ratio": jnp.mean(pred / jnp.zeros_like(y))}
        big = jnp.exp(1000 * jax.lax.stop_gradient(jnp.abs(pred) + 1))  # inf, compared and nothing else
        err = jnp.where(jnp.isfinite(big), 0.0, pred - y)
        del metrics
        return jnp.mean(err**2)

    return loss, (_normal(29, {"w": (3, 5), "v": (5,)}, dtype), *_data(29, (6, 3), (6,), dtype=dtype))


@healthy("survival")
def make_softplus_by_double_where(dtype=jnp.float32):
    def loss(params, x, time):
        rate = x @ params["w"]
        big = rate > 20
        hazard = jnp.where(big, rate, jnp.log1p(jnp.exp(jnp.where(big, 0.0, rate))))
        rare = -jnp.log(-jnp.expm1(-1e-6 * jnp.exp(params["rarity"])))
        return jnp.mean(hazard * time) + rare

    x = np.random.default_rng(30).normal(size=(10, 3)) * np.array([1.0, 1.0, 90.0])
    params = {"w": jnp.ones(3, dtype), "rarity": jnp.asarray(0.3, dtype)}
    return loss, (params, jnp.asarray(x, dtype), jnp.asarray(np.linspace(0.1, 2, 10), dtype))


@healthy("policy-gradient")
def make_squashed_gaussian_stable(dtype=jnp.float32):
    def loss(params, obs, noise, legal):
        pre = obs @ params["mean"] + jnp.exp(params["log_std"]) * noise
        log_det = 2 * (jnp.log(2.0) - pre - jax.nn.softplus(-2 * pre))
        log_prob = jnp.sum(-0.5 * noise**2 - params["log_std"] - log_det, axis=-1)
        logp = jax.nn.log_softmax(jnp.where(legal, obs @ params["head"], -jnp.inf))
        entropy = -jnp.sum(jnp.where(legal, jnp.exp(logp) * jnp.where(legal, logp, 0.0), 0.0), axis=-1)
        return jnp.mean(log_prob - 0.1 * entropy)

    params = _normal(31, {"mean": (3, 2), "log_std": (2,), "head": (3, 4)}, dtype)
    obs, noise = _data(31, (6, 3), (6, 2), dtype=dtype)
    return loss, (params, 5 * obs, noise, jnp.arange(4) != 1)


@healthy("state-space")
def make_associative_scan(dtype=jnp.float32):
    def loss(params, xs):
        decay = jax.nn.sigmoid(xs @ params["gate"])

        def combine(left, right):
            return left[0] * right[0], right[0] * left[1] + right[1]

        _, h = jax.lax.associative_scan(combine, (decay, (1 - decay) * (xs @ params["w"])))
        return jnp.mean(h**2)

    return loss, (_normal(32, {"gate": (3, 4), "w": (3, 4)}, dtype), *_data(32, (16, 3), dtype=dtype))
