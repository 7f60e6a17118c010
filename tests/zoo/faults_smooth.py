"""Float32 faults without an infinity in sight: cancellation, absorption, lost derivatives, conditioning, long products."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.zoo._entry import fault


@fault("norm-layer", "cancellation")
def make_variance_from_raw_moments(dtype=jnp.float32):
    def loss(params, x, y):
        h = x @ params["w"] + params["b"]
        mean = jnp.mean(h, axis=-1, keepdims=True)
        var = jnp.mean(h**2, axis=-1, keepdims=True) - mean**2  # FAULT
        out = (h - mean) * jax.lax.rsqrt(jnp.abs(var) + 1e-5)
        return jnp.mean((out - y) ** 2)

    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(4, 8)), dtype),
        "b": jnp.asarray(1000 + rng.normal(size=8), dtype),  # a common offset far larger than the spread
    }
    return loss, (params, jnp.asarray(rng.normal(size=(6, 4)), dtype), jnp.asarray(rng.normal(size=(6, 8)), dtype))


@fault("norm-layer", "cancellation", phase="forward")
def make_negative_variance_under_sqrt(dtype=jnp.float32):
    def loss(params, x):
        h = params["gain"] * x + params["shift"]
        var = jnp.mean(h * h, axis=-1) - jnp.square(jnp.mean(h, axis=-1))  # FAULT
        std = jnp.sqrt(var)  # the nan shows here: rounding made the variance negative
        return jnp.mean(jax.nn.relu(1.0 - std))

    x = np.random.default_rng(1).normal(size=(32, 16)) * 1e-2
    params = {"gain": jnp.ones((), dtype), "shift": jnp.asarray(500.0, dtype)}
    return loss, (params, jnp.asarray(x, dtype))


@fault("policy-gradient", "cancellation", "unstable-derivative")
def make_squashed_gaussian_log_prob(dtype=jnp.float32):
    def loss(params, obs, noise):
        mean, log_std = obs @ params["mean"], params["log_std"]
        pre = mean + jnp.exp(log_std) * noise
        log_prob = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
        log_prob -= jnp.log(1 - jnp.tanh(pre) ** 2 + 1e-6)  # FAULT
        return jnp.mean(jnp.sum(log_prob, axis=-1))  # saturated actions: tanh(pre)^2 keeps few bits of 1 - tanh^2

    rng = np.random.default_rng(2)
    params = {"mean": jnp.asarray(2.5 + 0.1 * rng.normal(size=(3, 2)), dtype), "log_std": jnp.full(2, -1.0, dtype)}
    return loss, (params, jnp.ones((5, 3), dtype), jnp.asarray(0.5 * rng.normal(size=(5, 2)), dtype))


@fault("mlp", "unstable-derivative", phase="backward")
def make_saturated_tanh(dtype=jnp.float32):
    def loss(params, x, y):
        h = jnp.tanh(x @ params["w1"] + params["b1"])  # FAULT
        return jnp.mean((h @ params["w2"] - y) ** 2)  # the values are right to the last bit, 1 - tanh^2 is not

    rng = np.random.default_rng(3)
    params = {
        "w1": jnp.asarray(0.3 * rng.normal(size=(3, 8)), dtype),
        "b1": jnp.asarray(7.5 * np.sign(rng.normal(size=8)), dtype),
        "w2": jnp.asarray(rng.normal(size=8), dtype),
    }
    return loss, (params, jnp.asarray(rng.normal(size=(10, 3)), dtype), jnp.asarray(rng.normal(size=10), dtype))


@fault("gated-recurrent", "unstable-derivative", phase="backward")
def make_open_gate(dtype=jnp.float32):
    def loss(params, xs):
        def cell(h, x):
            gate = jax.nn.sigmoid(x @ params["gate"] + params["bias"])  # FAULT
            h = gate * h + (1 - gate) * 0.5
            return h, h

        _, hs = jax.lax.scan(cell, params["h0"], xs)
        return jnp.mean((hs - 2.0) ** 2)  # a forget bias of 14 asks for 1 - sigmoid(14) = 8e-7

    rng = np.random.default_rng(4)
    params = {
        "gate": jnp.asarray(0.3 * rng.normal(size=(3, 4)), dtype),
        "bias": jnp.full(4, 14.0, dtype),
        "h0": jnp.ones(4, dtype),
    }
    return loss, (params, jnp.asarray(rng.normal(size=(6, 3)), dtype))


@fault("pose", "cancellation")
def make_exponential_map_of_small_twist(dtype=jnp.float32):
    def loss(twist, points, target):
        w, rho = twist[:3], twist[3:]
        theta2 = jnp.sum(w**2)
        theta = jnp.sqrt(theta2)
        b = (1 - jnp.cos(theta)) / theta2  # FAULT
        translation = rho + b * jnp.cross(w, rho)
        moved = points + jnp.cross(w, points) + translation
        return jnp.sum((moved - target) ** 2)

    rng = np.random.default_rng(5)
    twist = np.concatenate([5e-4 * rng.normal(size=3), 3 * rng.normal(size=3)])
    points = rng.normal(size=(5, 3))
    return loss, tuple(jnp.asarray(a, dtype) for a in (twist, points, points + rng.normal(size=(5, 3))))


@fault("renderer", "cancellation")
def make_ray_quadratic_root(dtype=jnp.float32):
    def loss(params, origins):
        def hit(origin):
            b = params["slope"] @ origin + 300.0
            c = params["radius"] ** 2 - 0.1
            return (b - jnp.sqrt(b * b - 4 * c)) / 2  # FAULT

        return jnp.mean((jax.vmap(hit)(origins) - 0.004) ** 2)  # b and the root agree in their first five digits

    rng = np.random.default_rng(6)
    params = {"slope": jnp.asarray(rng.normal(size=3), dtype), "radius": jnp.asarray(1.1, dtype)}
    return loss, (params, jnp.asarray(rng.normal(size=(7, 3)), dtype))


@fault("ode", "cancellation")
def make_force_by_finite_difference(dtype=jnp.float32):
    def loss(params, q0, p0):
        k, h, dt = params["k"], 2e-5, 0.05

        def leapfrog(state, _):
            q, p = state
            force = (10 * jnp.cos(k * q) - 10 * jnp.cos(k * (q + h))) / h  # FAULT
            p = p - dt * force
            q = q + dt * p
            return (q, p), q

        _, path = jax.lax.scan(leapfrog, (q0, p0), None, length=40)
        return jnp.mean(path**2)

    return loss, ({"k": jnp.asarray(0.7, dtype)}, jnp.asarray([1.0, 0.4], dtype), jnp.asarray([0.0, 0.1], dtype))


@fault("survival", "cancellation")
def make_discrete_hazard_in_jitted_helper(dtype=jnp.float32):
    @jax.jit
    def log1mexp(x):
        return jnp.log(1 - jnp.exp(-x))  # FAULT

    def loss(params, x):
        cumulative = jnp.exp(x @ params["w"])
        common = log1mexp(cumulative)
        rare = log1mexp(1e-6 * cumulative * params["rarity"])  # the second caller comes with a tiny hazard
        return -jnp.mean(common) - jnp.mean(rare**2)

    rng = np.random.default_rng(7)
    params = {"w": jnp.asarray(rng.normal(size=3), dtype), "rarity": jnp.asarray(0.8, dtype)}
    return loss, (params, jnp.asarray(rng.normal(size=(8, 3)), dtype))


@fault("survival", "absorption")
def make_complementary_log_log(dtype=jnp.float32):
    def loss(params, x, y):
        risk = jax.nn.sigmoid(x @ params["w"] + params["b"])
        eta = jnp.log(-jnp.log(1 - risk))  # FAULT
        return jnp.mean((eta - y) ** 2)  # 1 - 1e-9 is 1

    rng = np.random.default_rng(8)
    params = {"w": jnp.asarray(rng.normal(size=3), dtype), "b": jnp.asarray(-21.0, dtype)}
    return loss, (params, jnp.asarray(rng.normal(size=(8, 3)), dtype), jnp.asarray(-20 + rng.normal(size=8), dtype))


@fault("contrastive", "ill-conditioned", "unstable-derivative")
def make_angle_by_arccos(dtype=jnp.float32):
    class Angle(nn.Module):
        @nn.compact
        def __call__(self, a, b):
            project = nn.Dense(6, param_dtype=dtype)
            za, zb = project(a), project(b)
            cos = jnp.sum(za * zb, axis=-1) / jnp.linalg.norm(za, axis=-1) / jnp.linalg.norm(zb, axis=-1)
            cos = jnp.clip(cos, -1 + 1e-7, 1 - 1e-7)
            return jnp.arccos(cos)  # FAULT

    def loss(params, a, b):
        return jnp.mean(Angle().apply(params, a, b))

    rng = np.random.default_rng(9)
    a = rng.normal(size=(6, 4))
    b = a + 2e-3 * rng.normal(size=a.shape)  # two views that hardly differ: 1 - cos is about 1e-6
    a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    return loss, (jax.jit(Angle().init)(jax.random.key(0), a, b), a, b)


@fault("attention", "unstable-derivative", "overflow", phase="backward")
def make_quotient_of_tiny_numbers(dtype=jnp.float32):
    def loss(params, q, k, v):
        feature_q, feature_k = jnp.exp(q @ params["wq"] - 30), jnp.exp(k @ params["wk"] - 30)
        kv, ksum = feature_k.T @ v, feature_k.sum(axis=0)
        denom = (feature_q @ ksum)[:, None]
        out = (feature_q @ kv) / denom  # FAULT
        return jnp.mean(out**2)  # denom is about 1e-26: fine to divide by, but the derivative divides by its square

    rng = np.random.default_rng(10)
    params = {n: jnp.asarray(rng.normal(size=(4, 4)), dtype) for n in ("wq", "wk")}
    return loss, (params, *(jnp.asarray(rng.normal(size=(5, 4)), dtype) for _ in "qkv"))


@fault("phase-estimation", "underflow", "unstable-derivative", phase="backward")
def make_arctan2_near_origin(dtype=jnp.float32):
    def loss(params, x):
        re, im = x @ params["re"], x @ params["im"]
        phase = jnp.arctan2(im, re)  # FAULT
        return jnp.mean((phase - 0.3) ** 2)  # the phase of 1e-30 is fine, its derivative's re^2 + im^2 is 0

    rng = np.random.default_rng(11)
    params = {n: jnp.asarray(1e-30 * rng.normal(size=3), dtype) for n in ("re", "im")}
    return loss, (params, jnp.asarray(rng.normal(size=(6, 3)), dtype))


@fault("conv", "overflow", phase="forward")
def make_generalised_mean_pooling(dtype=jnp.float32):
    def loss(params, image, y):
        h = jax.nn.softplus(jax.lax.conv(image[:, None], params["kernel"], (1, 1), "SAME"))
        power = jnp.mean(h**8, axis=(2, 3))  # FAULT
        pooled = power ** (1 / 8)
        return jnp.mean((pooled @ params["head"] * 1e-5 - y) ** 2)  # raw 16-bit pixels: (6e4)**8 = 2e38 and more

    rng = np.random.default_rng(12)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(2, 1, 3, 3)), dtype),
        "head": jnp.asarray(rng.normal(size=2), dtype),
    }
    image = jnp.asarray(rng.uniform(0, 65535, size=(3, 6, 6)), dtype)
    return loss, (params, image, jnp.asarray(rng.normal(size=3), dtype))


@fault("gaussian-process", "ill-conditioned", "nan", phase="forward")
def make_gp_without_jitter(dtype=jnp.float32):
    def loss(params, x, y):
        sq = ((x[:, None] - x[None, :]) / params["length"]) ** 2
        kernel = params["amp"] * jnp.exp(-0.5 * sq)
        chol = jnp.linalg.cholesky(kernel)  # FAULT
        alpha = jax.scipy.linalg.solve_triangular(chol, y, lower=True)
        return 0.5 * jnp.sum(alpha**2) + jnp.sum(jnp.log(jnp.diag(chol)))

    x = np.linspace(0, 1, 8)
    params = {"length": jnp.asarray(0.9, dtype), "amp": jnp.asarray(1.0, dtype)}
    return loss, (params, jnp.asarray(x, dtype), jnp.asarray(np.sin(6 * x), dtype))


@fault("regression", "ill-conditioned", phase="forward")
def make_normal_equations(dtype=jnp.float32):
    def loss(params, t, y):
        u = t * params["rate"]
        basis = jnp.stack([u**i for i in range(6)], axis=-1)
        gram, moment = basis.T @ basis, basis.T @ y
        weights = jnp.linalg.solve(gram, moment)  # FAULT
        return jnp.mean((basis @ weights - y) ** 2) + 1e-3 * jnp.sum(weights**2)

    t = np.linspace(0, 1, 20)
    return loss, ({"rate": jnp.asarray(1.1, dtype)}, jnp.asarray(t, dtype), jnp.asarray(np.sin(9 * t), dtype))


@fault("state-space", "ill-conditioned")
def make_inverse_of_nearly_singular_covariance(dtype=jnp.float32):
    def loss(params, x):
        factor = params["factor"]
        cov = factor @ factor.T + 3e-6 * jnp.eye(len(factor), dtype=factor.dtype)
        precision = jnp.linalg.inv(cov)  # FAULT
        gain = cov @ params["obs"].T @ precision  # rank 2 plus almost nothing: the condition number is about 1e7
        return jnp.mean((x @ gain.T) ** 2)

    rng = np.random.default_rng(13)
    params = {"factor": jnp.asarray(rng.normal(size=(4, 2)), dtype), "obs": jnp.asarray(rng.normal(size=(4, 4)), dtype)}
    return loss, (params, jnp.asarray(rng.normal(size=(5, 4)), dtype))


@fault("rnn", "exploding", phase="backward")
def make_rnn_exploding(dtype=jnp.float32):
    def loss(params, xs):
        def cell(h, x):
            h = jnp.tanh(h @ params["w"] + x @ params["u"])  # FAULT
            return h, None

        h, _ = jax.lax.scan(cell, params["h0"], xs)
        return jnp.sum(h)  # padding keeps the state at 0 where tanh' = 1: the backward product is 1.5**250

    rng = np.random.default_rng(14)
    w = np.linalg.qr(rng.normal(size=(4, 4)))[0] * 1.5
    params = {"w": w, "u": rng.normal(size=(2, 4)), "h0": np.zeros(4)}
    return loss, ({n: jnp.asarray(v, dtype) for n, v in params.items()}, jnp.zeros((250, 2), dtype))


@fault("rnn", "vanishing", phase="backward")
def make_rnn_vanishing(dtype=jnp.float32):
    def loss(params, xs):
        def cell(h, x):
            h = jnp.tanh(h @ params["w"] + x @ params["u"])  # FAULT
            return h, None

        h, _ = jax.lax.scan(cell, params["h0"], xs)
        return jnp.sum(h**2)  # the initial state's gradient is about 0.5**200

    rng = np.random.default_rng(15)
    w = np.linalg.qr(rng.normal(size=(4, 4)))[0] * 0.5
    params = {"w": w, "u": rng.normal(size=(2, 4)), "h0": rng.normal(size=4)}
    return loss, (
        {n: jnp.asarray(v, dtype) for n, v in params.items()},
        jnp.asarray(rng.normal(size=(200, 2)), dtype),
    )


@fault("dynamics", "exploding", "ill-conditioned")
def make_chaotic_population(dtype=jnp.float32):
    def loss(params, observed):
        def year(x, _):
            x = params["rate"] * x * (1 - x)  # FAULT
            return x, x

        _, path = jax.lax.scan(year, params["x0"], None, length=60)
        return jnp.mean((path - observed) ** 2)  # doubles an error every other year; so does the backward pass

    params = {"rate": jnp.asarray(3.9, dtype), "x0": jnp.asarray(0.37, dtype)}
    return loss, (params, jnp.full(60, 0.6, dtype))


@fault("deep-mlp", "vanishing", phase="backward")
def make_deep_sigmoid_stack_vanishing(dtype=jnp.float32):
    def loss(params, x, y):
        def layer(h, w):
            h = jax.nn.sigmoid(h @ w)  # FAULT
            return h, None

        h = x @ params["embed"]
        h, _ = jax.lax.scan(layer, h, params["layers"])
        return jnp.mean((h @ params["head"] - y) ** 2)  # each layer takes a factor 0.1: the embedding gets 0

    rng = np.random.default_rng(16)
    params = {
        "embed": jnp.asarray(rng.normal(size=(3, 6)), dtype),
        "layers": jnp.asarray(0.2 * rng.normal(size=(60, 6, 6)), dtype),
        "head": jnp.asarray(rng.normal(size=6), dtype),
    }
    return loss, (params, jnp.asarray(rng.normal(size=(5, 3)), dtype), jnp.asarray(rng.normal(size=5), dtype))
