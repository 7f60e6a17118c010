"""`gradient_flow`: exact chains, faulty and healthy models, and every transformation that a loss may hold."""

import json
import linecache
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from robustad import _jaxpr
from robustad.diagnosis import AuditError, gradient_flow
from robustad.diagnosis._flow_layers import planned
from robustad.diagnosis._flow_report import fitted, power
from robustad.diagnosis._gradient_flow import blank
from robustad.diagnosis._tapped import Tapped


def standard(k, *shape):
    return jnp.asarray(np.random.default_rng(k).standard_normal(shape), jnp.float32)


def normal(k, *shape, gain=1.0):
    return standard(k, *shape) * (gain / shape[-2] ** 0.5)


X = standard(100, 16, 8)


def norms(flow):
    return [layer.cotangent_norm for layer in flow.layers]


def verdicts(flow):
    return {layer.name: layer.verdict for layer in flow.layers}


# ---------------------------------------------------------------------------------------------------------- exactly


def test_a_chain_of_logistics_halves_twice_a_layer():
    def loss(params):
        x = 0.0
        for p in params:
            x = jax.nn.sigmoid(x) + p["shift"]  # 0 again, where the derivative is 1/4
        return x

    n = 20
    flow = gradient_flow(loss)([{"shift": jnp.float32(-0.5)}] * n)
    assert norms(flow) == [0.25 ** (n - 1 - k) for k in range(n)]
    assert flow.factor == pytest.approx(0.25, rel=1e-12) and flow.slope == pytest.approx(math.log10(0.25))
    assert flow.ratio == 0.25 ** (n - 1)
    # 0.25^7 is below 1e-4.
    assert [layer.name for layer in flow.layers if not layer.ok] == [str(k) for k in range(n - 7)]
    assert flow.verdict == "vanishing" and flow.worst is flow.layers[n - 8] and "`19`" in flow.worst.reason
    assert flow.underflow_depth("float16") == 7 and flow.underflow_depth("float32") == 63
    assert [layer.gradient_norm for layer in flow.layers] == norms(flow)
    assert flow.layers[0].parameter_norm == 0.5 and flow.layers[0].ratio == 2 * 0.25 ** (n - 1)


@pytest.mark.parametrize("factor", [1.1, 0.5, 1.5, 2.0**-3, 2.0**3])
def test_a_linear_chain_in_a_scan(factor):
    def loss(params, x):
        return jnp.sum(lax.scan(lambda h, p: (factor * (h + p["b"]), None), x, params["blocks"])[0])

    n = 30
    flow = gradient_flow(loss)({"blocks": {"b": jnp.ones((n, 4))}}, jnp.ones(4))
    expected = [2 * float(factor) ** (n - k) for k in range(n)]
    np.testing.assert_allclose(norms(flow), expected, rtol=1e-5)
    assert flow.factor == pytest.approx(factor, rel=1e-6)
    assert [layer.name for layer in flow.layers[:2]] == ["blocks[0]", "blocks[1]"]
    far = {1.1: "healthy", 0.5: "vanishing", 1.5: "exploding", 0.125: "vanishing", 8.0: "exploding"}
    assert flow.verdict == far[factor]
    assert flow.layers[3].gradient_norm == pytest.approx(expected[3], rel=1e-5)
    assert flow.layers[3].parameter_norm == 2


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_far_from_1(scale):
    def loss(w, x):
        return jnp.sum(x * w) * scale

    (layer,) = gradient_flow(loss)(jnp.full(4, 2.0), jnp.ones(4)).layers
    assert layer.name == "w" and layer.ok
    assert layer.cotangent_norm == pytest.approx(2 * scale, rel=1e-6) == layer.gradient_norm
    assert layer.cotangent_largest == pytest.approx(scale, rel=1e-6) == layer.cotangent_rms
    assert layer.below_float16 == (scale < 1) and layer.below_bfloat16 == 0
    assert layer.ratio == pytest.approx(scale / 2, rel=1e-6)


# ----------------------------------------------------------------------------------------------------------- faulty


def perceptron(params, x, act=jnp.tanh):
    *hidden, last = params.values()
    for p in hidden:
        x = act(x @ p["w"] + p["b"])
    return jnp.mean((x @ last["w"] + last["b"]) ** 2)


def layers(n, gain, shift=0.0):
    return {f"dense_{k:02}": {"w": normal(k % 16, 8, 8, gain=gain), "b": jnp.full(8, shift)} for k in range(n)}


def test_a_deep_tanh_network_with_small_weights():
    params = layers(16, 0.4)
    flow = gradient_flow(perceptron)(params, X)
    assert flow.verdict == "vanishing" and 0.3 < flow.factor < 0.6
    first = [layer.name for layer in flow.layers if layer.verdict == "vanishing"]
    assert first == [f"dense_{k:02}" for k in range(len(first))] and 2 < len(first) < 12
    worst = flow.worst
    assert worst and worst.name == first[-1] and "residual" in worst.reason
    assert worst.file == __file__ and "x @ p" in linecache.getline(__file__, worst.line)
    # What is reported is what JAX gives.
    gradient = jax.jit(jax.grad(perceptron))(params, X)
    for layer in flow.layers:
        g = np.concatenate([np.asarray(v, np.float64).ravel() for v in gradient[layer.name].values()])
        assert layer.gradient_norm == pytest.approx(np.linalg.norm(g), rel=1e-5)
        assert layer.gradient_largest == pytest.approx(np.abs(g).max(), rel=1e-5)
        assert layer.gradient_rms == pytest.approx(np.sqrt(np.mean(g**2)), rel=1e-5)
        assert layer.parameters == (f"{layer.name}/b", f"{layer.name}/w")


def test_large_weights_saturate():
    flow = gradient_flow(perceptron)(layers(4, 100.0), X)
    assert verdicts(flow)["dense_02"] == flow.verdict == "saturated"
    assert (
        flow.layers[2].saturated > 0.9
        and math.isnan(flow.layers[3].saturated)
        and flow.worst
        and "does not saturate" in flow.worst.reason
    )


def test_a_dead_layer_blocks_those_before_it():
    params = layers(5, 1.4, 0.1)
    params["dense_02"]["b"] = jnp.full(8, -100.0)
    flow = gradient_flow(lambda p, x: perceptron(p, x, jax.nn.relu))(params, X)
    assert list(verdicts(flow).values()) == ["dead"] * 3 + ["healthy"] * 2
    assert flow.worst and flow.worst.name == "dense_02" and flow.worst.dead == 1
    assert "through `dense_02`" in flow.layers[0].reason or "through `dense_01`" in flow.layers[0].reason
    assert flow.layers[0].inactive < 0.8 and flow.layers[0].dead < 0.5 and flow.layers[3].dead == 0


def test_exploding_and_beyond_the_range():
    flow = gradient_flow(lambda p, x: perceptron(p, x, lambda z: z))(layers(16, 4.0), X)
    assert flow.verdict == "exploding" and flow.factor == pytest.approx(4, rel=0.4)
    flow = gradient_flow(lambda p: lax.scan(lambda h, b: (1e6 * (h + b), None), 0.0, p)[0])(jnp.zeros(10))
    assert flow.verdict == "non-finite" and flow.worst and "explodes" in flow.worst.reason
    flow = gradient_flow(lambda p, x: perceptron(p, x).astype(jnp.float32) * jnp.inf)(layers(2, 1.0), X)
    assert flow.verdict == "non-finite" and "robustad.audit" in str(flow)


def rnn(params, xs):
    def cell(h, x):
        return jnp.tanh(h @ params["cell"]["w"] + x @ params["cell"]["u"] + params["cell"]["b"]), None

    h, _ = lax.scan(cell, jnp.zeros((3, 8)), xs)
    return jnp.sum(h @ params["out"]["w"])


def recurrent(radius):
    orthogonal, _ = jnp.linalg.qr(normal(1, 8, 8))
    cell = {"w": radius * orthogonal, "u": jnp.eye(8) * 1e-3, "b": jnp.zeros(8)}
    return {"cell": cell, "out": {"w": jnp.ones((8, 1))}}


@pytest.mark.parametrize("radius", [0.5, 1.0, 1.5])
def test_through_time(radius):
    # Inputs so small that tanh is the identity: the cotangent is multiplied by an orthogonal matrix times the radius.
    xs = jnp.zeros((200, 3, 8)) if radius > 1 else X[:3] * jnp.ones((200, 1, 1)) * 1e-2
    flow = gradient_flow(rnn)(recurrent(radius), xs)
    cell, out = flow.layers
    assert (cell.name, out.name, out.steps) == ("cell", "out", ())
    expected = [math.sqrt(24) * radius ** (199 - t) for t in range(200)]
    survivors = [k for k, e in enumerate(expected) if e > 1e-30]
    np.testing.assert_allclose([cell.steps[k] for k in survivors], [expected[k] for k in survivors], rtol=1e-3)
    assert cell.factor == pytest.approx(radius, rel=2e-2)
    assert flow.verdict == {0.5: "vanishing", 1.0: "healthy", 1.5: "exploding"}[radius]
    if radius < 1:
        assert "gated" in cell.reason and cell.underflow_steps("float16") == pytest.approx(14, abs=1)
    assert str(flow).count("step ") < 20


def test_float16_underflows_half_way():
    params = jax.tree.map(lambda p: p.astype(jnp.float16), layers(16, 0.3))

    def loss(params, x):
        for p in params.values():
            x = x.astype(p["w"].dtype) @ p["w"] + p["b"]
        return jnp.sum(x) * p["w"].dtype.type(1e-2)

    flow = gradient_flow(loss)(params, X)
    assert flow.verdict == "vanishing" and "loss scaling" in str(flow)
    assert flow.layers[0].cotangent_norm == 0 and flow.layers[0].cotangents == 1
    assert "underflowed to 0 in float16" in " ".join(layer.reason for layer in flow.layers)
    assert {layer.dtype for layer in flow.layers} == {"float16"}
    wide = gradient_flow(loss)(jax.tree.map(lambda p: p.astype(jnp.float32), params), X)
    assert wide.layers[0].cotangent_norm > 0 and wide.layers[0].below_float16 > 0.5


def test_no_gradient_is_not_a_vanishing_one():
    def loss(params, x):
        frozen = lax.stop_gradient(jnp.tanh(x @ params["a"]["w"]))
        return jnp.mean((frozen @ params["b"]["w"]) ** 2) + 0.0 * jnp.sum(params["c"]["w"])

    params = {k: {"w": normal(i, 8, 8)} for i, k in enumerate("abc")}
    flow = gradient_flow(loss)(params, X)
    assert verdicts(flow) == {"a": "no gradient", "b": "healthy", "c": "no gradient"} and flow.ok
    assert flow.verdict == "healthy" and flow.layers[0].name == "a"
    assert (
        nothing := gradient_flow(lambda w: jnp.sum(lax.stop_gradient(w)))(X)
    ).verdict == "no gradient" and not nothing.ok


# ---------------------------------------------------------------------------------------------------------- healthy


def norm(p, x):
    x = (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * p["scale"] + p["bias"]


def block(x, p):
    h = norm(p["ln"], x)
    q, k, v = jnp.split(h @ p["attention"]["qkv"], 3, -1)
    x = x + jax.nn.softmax(q @ k.swapaxes(-1, -2) / 3) @ v @ p["attention"]["out"]
    return x + jax.nn.gelu(norm(p["ln"], x) @ p["mlp"]["w1"]) @ p["mlp"]["w2"], None


def transformer(params, tokens):
    x = params["embed"]["table"][tokens]
    x, _ = lax.scan(jax.checkpoint(block), x, params["blocks"])
    logits = x @ params["embed"]["table"].T
    penalty = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean() + 1e-4 * penalty


def stacked(n):
    return {
        "embed": {"table": normal(0, 11, 8)},
        "blocks": {
            "ln": {"scale": jnp.ones((n, 8)), "bias": jnp.zeros((n, 8))},
            "attention": {"qkv": normal(1, n, 8, 24), "out": normal(2, n, 8, 8)},
            "mlp": {"w1": normal(3, n, 8, 32), "w2": normal(4, n, 32, 8)},
        },
    }


@pytest.mark.whole
def test_a_transformer_in_a_scan_with_a_tied_embedding():
    tokens = jnp.asarray(np.random.default_rng(5).integers(0, 11, (4, 6)))
    flow = gradient_flow(transformer)(stacked(2), tokens)
    assert flow.ok and flow.verdict == "healthy"
    names = [layer.name for layer in flow.layers]
    order = ["blocks/ln[{}]", "blocks/attention[{}]", "blocks/ln[{}] (use 2)", "blocks/mlp[{}]"]
    assert names == ["embed", *(name.format(k) for k in range(2) for name in order), "embed (use 2)"]
    params = stacked(2)

    def unrolled(params, shifts):  # and a shift at each block's output, whose gradient is the cotangent there
        x = params["embed"]["table"][tokens]
        for k in range(2):
            x, _ = block(x, jax.tree.map(lambda p, k=k: p[k], params["blocks"]))
            x = x + shifts[k]
        logits = x @ params["embed"]["table"].T
        penalty = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean() + 1e-4 * penalty

    gradient, cotangents = jax.jit(jax.grad(unrolled, (0, 1)))(params, jnp.zeros((2, 4, 6, 8)))
    mlp = next(layer for layer in flow.layers if layer.name == "blocks/mlp[1]")
    expected = [gradient["blocks"]["mlp"][k][1] for k in ("w1", "w2")]
    assert mlp.gradient_norm == pytest.approx(float(optax.tree.norm(expected)), rel=1e-5)
    assert 0 <= mlp.saturated < 0.1 and math.isnan(mlp.dead)
    found = [layer.cotangent_norm for layer in flow.layers if layer.name.startswith("blocks/mlp")]
    np.testing.assert_allclose(found, jnp.linalg.norm(cotangents.reshape(2, -1), axis=1), rtol=1e-4)


def test_a_residual_network():
    def loss(params, x):
        for p in params:
            x = x + 0.5 * jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"]
        return jnp.mean(x**2)

    params = [{"w": normal(k, 8, 8), "b": jnp.zeros(8), "v": normal(k + 8, 8, 8)} for k in range(8)]
    flow = gradient_flow(loss)(params, X)
    assert flow.ok and 0.7 < flow.factor < 1.5 and len(flow.layers) == 8


class Lstm(eqx.Module):
    cell: eqx.nn.LSTMCell
    out: eqx.nn.Linear

    def __call__(self, xs):
        def step(state, x):
            state = self.cell(x, state)
            return state, self.out(state[0])

        return lax.scan(step, (jnp.zeros(8), jnp.zeros(8)), xs)[1]


def test_an_equinox_lstm():
    model = Lstm(eqx.nn.LSTMCell(3, 8, key=jax.random.key(0)), eqx.nn.Linear(8, 2, key=jax.random.key(1)))
    flow = gradient_flow(lambda m, xs: jnp.mean((jax.vmap(m)(xs) - 1) ** 2))(model, standard(2, 4, 30, 3))
    assert flow.ok and [(layer.name, len(layer.steps)) for layer in flow.layers] == [("cell", 30), ("out", 30)]
    assert flow.layers[0].parameters == ("cell/weight_ih", "cell/weight_hh", "cell/bias")


class Cnn(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dense = nnx.Linear(6 * 16, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.dense(x.reshape(len(x), -1))


@pytest.mark.whole
def test_a_flax_convolutional_network():
    def loss(model, x):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), jnp.arange(16) % 10).mean()

    flow = gradient_flow(loss)(Cnn(nnx.Rngs(0)), standard(3, 16, 8, 8, 1))
    assert flow.ok and [layer.name for layer in flow.layers] == ["conv", "norm", "dense"]
    assert 0.2 < flow.layers[1].inactive < 0.8 and flow.layers[1].dead == 0


# ------------------------------------------------------------------------------------------------ the program as it is


@jax.custom_vjp
def doubled(x, w):
    return x * w


doubled.defvjp(lambda x, w: (x * w, (x, w)), lambda r, g: (2 * g * r[1], 2 * jnp.sum(g * r[0])))


@jax.custom_jvp
def tripled(x):
    return x


tripled.defjvp(lambda p, t: (p[0], 3 * t[0]))


def test_rules_branches_recomputation_and_loops_stay_as_they_are():
    def loss(p, x, flag):
        x = tripled(jax.jit(lambda x: x * p["a"]["w"])(x))
        x = doubled(x, p["b"]["w"])
        x = lax.cond(flag, lambda x: x * p["c"]["w"], lambda x: x + p["d"]["w"], x)
        x = jax.checkpoint(lambda x: jnp.sin(x * p["e"]["w"]))(x)
        return jnp.sum(lax.scan(lambda h, v: (h * v, None), x, p["f"]["w"], reverse=True)[0]), x

    params = {k: {"w": jnp.float32(1.1)} for k in "abcde"} | {"f": {"w": jnp.array([2.0, 3.0, 5.0])}}
    args = params, jnp.array([0.5, 0.25]), True
    flow = gradient_flow(loss, has_aux=True)(*args)
    gradient = jax.grad(loss, has_aux=True)(*args)[0]
    for layer in flow.layers:
        expected = gradient[layer.name[0]]["w"]
        expected = expected[int(layer.name[2])] if "[" in layer.name else expected
        assert layer.gradient_norm == pytest.approx(abs(float(expected)), rel=1e-5, abs=1e-12)
    assert [layer.name for layer in flow.layers] == ["a", "b", "d", "c", "e", "f[2]", "f[1]", "f[0]"]
    assert [layer.verdict for layer in flow.layers if not layer.cotangents] == ["no gradient"]
    a, b = flow.layers[:2]
    assert a.cotangent_norm == pytest.approx(b.cotangent_norm * 1.1 * 2 * 3, rel=1e-5)
    np.testing.assert_allclose([x.cotangent_norm for x in flow.layers[5:]], np.sqrt(2) * np.array([6, 2, 1]), rtol=1e-6)
    assert flow.value == pytest.approx(float(loss(*args)[0]), rel=1e-6)


def test_over_a_mesh():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    data, whole = PartitionSpec("data"), PartitionSpec()

    def plain(params, x):
        return perceptron(params, x)

    def local(params, x):
        return lax.pmean(perceptron(params, x), "data")

    params = layers(3, 1.0)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(whole, data), out_specs=whole)
    one, four = gradient_flow(plain)(params, X), gradient_flow(mapped)(params, X)
    np.testing.assert_allclose(norms(four), norms(one), rtol=1e-5)
    assert [x.gradient_norm for x in four.layers] == pytest.approx([x.gradient_norm for x in one.layers], rel=1e-5)
    assert [x.cotangents for x in four.layers] == [4] * 3 and verdicts(four) == verdicts(one)


def test_layers_in_layers():
    # A scan over time in one over layers; weights cast, transposed and reparametrized before they are used.
    def loss(p, xs):
        def layer(xs, q):
            w = (q["g"] * q["v"] / jnp.linalg.norm(q["v"])).astype(jnp.float32).T
            return lax.scan(lambda h, x: (h := jnp.tanh(h @ w + x), h), jnp.zeros(8), xs)[1], None

        return jnp.mean(lax.scan(layer, xs, p["rnn"])[0] ** 2) + jnp.sum(p["rnn"]["v"] ** 2)

    params = {"rnn": {"g": jnp.ones(3), "v": normal(1, 3, 8, 8)}}
    flow = gradient_flow(loss)(params, X[:5])
    assert [(x.name, len(x.steps)) for x in flow.layers] == [(f"rnn[{k}]", 5) for k in range(3)] and flow.ok
    assert flow.layers[1].parameters == ("rnn/g", "rnn/v")
    assert flow.layers[1].parameter_norm == pytest.approx(math.hypot(1, float(jnp.linalg.norm(params["rnn"]["v"][1]))))


def test_the_program_does_not_grow_with_the_length_of_a_loop():
    sizes = []
    for n in (5, 500):
        leaves, treedef = jax.tree.flatten(recurrent(1.0))
        xs = jnp.zeros((n, 3, 8))
        program, _ = _jaxpr.trace(lambda leaves, xs, t=treedef: rnn(t.unflatten(leaves), xs), leaves, xs)
        plan = planned(program, [0, 0, 0, 1])
        run = Tapped(program, plan.stages)
        derivative = jax.grad(lambda leaves, records, xs, run=run: run([*leaves, xs], records)[0], (0, 1))
        made, _ = _jaxpr.trace(derivative, leaves, blank(plan.stages), xs)
        sizes.append(len(list(_jaxpr.sites(made))))
    assert sizes[0] == sizes[1] < 400


def test_float64_and_bfloat16():
    with jax.enable_x64(True):
        flow = gradient_flow(lambda w, x: jnp.sum(x * w) * 1e-300)(jnp.ones(4, jnp.float64), jnp.ones(4))
        assert flow.layers[0].dtype == "float64" and flow.layers[0].cotangent_norm == pytest.approx(2e-300, rel=1e-12)
        assert flow.layers[0].below_bfloat16 == 1 and flow.layers[0].subnormal_fraction == 0
    flow = gradient_flow(perceptron)(
        jax.tree.map(lambda p: p.astype(jnp.bfloat16), layers(3, 1.0)), X.astype(jnp.bfloat16)
    )
    assert flow.ok and {x.dtype for x in flow.layers} == {"bfloat16"}


# ------------------------------------------------------------------------------------------------- what it looks like


def test_report():
    flow = gradient_flow(perceptron)(layers(3, 1.0), X)
    text = str(flow)
    assert text.startswith("gradient flow of perceptron   ok   healthy") and "dense_01" in text
    read = json.loads(flow.to_json())
    assert read["ok"] is True and len(read["layers"]) == 3 and read["layers"][2]["dead"] == "nan"
    scalars = flow.scalars()
    assert scalars["dense_00/cotangent_norm"] == flow.layers[0].cotangent_norm and scalars["ok"] == 1
    assert all(isinstance(v, float) for v in scalars.values())
    assert (
        all(isinstance(x, int | float) for x in jax.tree.leaves(flow)) and str(jax.tree.map(lambda x: x, flow)) == text
    )


def test_what_it_refuses():
    with pytest.raises(AuditError, match="must be a function"):
        gradient_flow(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(AuditError, match="scalar"):
        gradient_flow(lambda x: x)(X)
    with pytest.raises(AuditError, match="nothing to differentiate"):
        gradient_flow(lambda n: n * 1.0)({"n": jnp.arange(3)})
    with pytest.raises(AuditError, match="traced arrays"):
        jax.jit(lambda x: gradient_flow(jnp.sum)(x).value)(X)
    with pytest.raises(AuditError, match="has_aux=True"):
        gradient_flow(lambda x: jnp.sum(x), has_aux=True)(X)

    def endless(w):
        return lax.while_loop(lambda s: s[1] < 3, lambda s: (s[0] * w, s[1] + 1), (w, 0))[0]

    with pytest.raises(AuditError, match="while loop"):
        gradient_flow(endless)(2.0)


def test_a_value_that_is_not_finite_is_not_healthy():
    """The gradient of log at a negative number is finite."""
    flow = gradient_flow(lambda w: jnp.sum(jnp.log(w)))(jnp.array([-1.0, 2.0]))
    assert not flow.ok and flow.verdict == "non-finite" and flow.worst is None
    assert "the value is not finite" in str(flow)


def test_norms_of_any_size_have_a_factor():
    """The factor is kept as its logarithm: no norm of float64 makes it fail."""
    assert power(fitted([1.4e165, 1.4e-160])) == math.inf and power(fitted([1.4e-160, 1.4e165])) == 0
    assert fitted([1e-160, 1e165]) == pytest.approx(-325 * math.log(10))

    def loss(p, x, a, b, c):
        return jnp.sum(((x * p["a"]["w"]) * a) * b * p["b"]["w"]) * c

    with jax.enable_x64(True):
        at = [jnp.float64(v) for v in (1e-200, 1e-125, 1e165)]
        flow = gradient_flow(loss)({"a": {"w": jnp.float64(1e200)}, "b": {"w": jnp.float64(1.0)}}, jnp.ones(2), *at)
    assert flow.factor == 0 and flow.slope == pytest.approx(-325, abs=1e-6)
    assert flow.underflow_depth("float32") == pytest.approx((165 + 37.93) / 325, rel=1e-3) and str(flow)
