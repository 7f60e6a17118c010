"""`report`: what it counts is what XLA has laid out, each residual stands at its line, and the command line tells it."""

import json
import math
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.experimental import io_callback
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from robustad import _jaxpr
from robustad.cli import main
from robustad.memory import DiskTier, checkpoint, checkpointed_scan, fit, report, save_names
from robustad.memory._flops import program_flops

N, WIDTH, LAYERS = 256, 64, 5


def loss(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)  # THE LINE
    return jnp.mean(x**2)


def line_of(mark):
    return next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if f"# {mark}" in text)


LINE = line_of("THE LINE")
WS = [jnp.asarray(np.random.default_rng(i).normal(size=(WIDTH, WIDTH)) / 8, jnp.float32) for i in range(LAYERS)]
X = jnp.ones((N, WIDTH))
NEEDS = report(loss, optimizer=optax.adam(1e-3))(WS, X)


def test_sizes_are_those_of_the_compiled_program():
    analysis = jax.jit(jax.value_and_grad(loss)).lower(WS, X).compile().memory_analysis()
    assert NEEDS.argument_bytes == analysis.argument_size_in_bytes == 4 * (LAYERS * WIDTH**2 + N * WIDTH)
    assert NEEDS.output_bytes == 4 * (LAYERS * WIDTH**2 + 1)
    assert NEEDS.measured == NEEDS.temporaries == analysis.temp_size_in_bytes
    assert NEEDS.optimizer_state == 4 * (2 * LAYERS * WIDTH**2 + 1)
    parts = NEEDS.argument_bytes + NEEDS.output_bytes + NEEDS.optimizer_state + NEEDS.temporaries
    assert NEEDS.total == parts and NEEDS.fits(parts) and not NEEDS.fits(parts - 1)
    assert NEEDS.fits("1 GiB") and not NEEDS.fits("1 kB")


def test_the_prediction_is_near():
    assert 0.7 < NEEDS.predicted / NEEDS.measured < 1.4
    assert report(loss, compile=False)(WS, X).measured is None
    assert report(loss, compile=False)(WS, X).temporaries == NEEDS.predicted


def test_residuals_stand_at_their_line():
    first = NEEDS.residuals[0]
    assert (first.line, first.shape, first.dtype, first.function) == (LINE, (N, WIDTH), "float32", "loss")
    assert first.bytes == first.count * N * WIDTH * 4 and LAYERS <= first.count <= 2 * LAYERS
    assert NEEDS.residuals == tuple(sorted(NEEDS.residuals, key=lambda r: -r.bytes))
    assert NEEDS.residual_bytes == sum(r.bytes for r in NEEDS.residuals)
    assert NEEDS.peak_lines[0].line == LINE


def test_residuals_of_a_loop_stand_at_the_line_of_its_body():
    def scanned(w, x):
        def body(h, row):
            h = jnp.sin(h @ w + row)  # IN THE LOOP
            return h, None

        return jnp.sum(lax.scan(body, jnp.zeros(WIDTH), x)[0])

    stacked = [r for r in report(scanned)(WS[0], X).residuals if r.shape == (N, WIDTH)]
    assert stacked and {r.line for r in stacked} == {line_of("IN THE LOOP")}


def test_the_timeline_has_its_peak_in_the_middle():
    sizes = [m.bytes for m in NEEDS.timeline]
    assert max(sizes) == NEEDS.predicted
    assert 0.2 < sizes.index(max(sizes)) / len(sizes) < 0.8
    assert not NEEDS.timeline[0].backward and NEEDS.timeline[-1].backward


def test_recomputation_is_counted():
    assert NEEDS.recomputed_flops == 0
    layer = checkpoint(lambda w, x: jnp.tanh(x @ w))

    def recomputed(ws, x):
        for w in ws:
            x = layer(w, x)
        return jnp.mean(x**2)

    needs = report(recomputed, policies={})(WS, X)
    assert needs.policies == ()
    assert math.isclose(needs.recomputed_flops, LAYERS * (2 * N * WIDTH**2 + N * WIDTH), rel_tol=0.1)
    assert needs.residual_bytes < 0.7 * NEEDS.residual_bytes
    stacked = report(lambda ws, x: jnp.mean(lax.scan(lambda x, w: (layer(w, x), None), x, ws)[0] ** 2), policies={})
    assert math.isclose(stacked(jnp.stack(WS), X).recomputed_flops, needs.recomputed_flops, rel_tol=0.01)


def test_policies_are_predicted():
    needs = report(loss, policies={"all": jax.checkpoint_policies.everything_saveable, "none": save_names("no")})(WS, X)
    everything, nothing = needs.policies
    assert (everything.name, nothing.name) == ("all", "none")
    assert nothing.residuals == 0 < everything.residuals
    assert everything.flop_ratio < 1.05 < nothing.flop_ratio < 1.5
    assert [p.name for p in NEEDS.policies] == ["nothing", "dots", "dots_with_no_batch_dims"]


def with_a_callback(x):
    io_callback(lambda: None, None)
    return jnp.sum(jnp.sin(x))


def with_a_reference(x):
    ref = jax.new_ref(jnp.zeros(3))
    ref[...] = jnp.tanh(x)
    return jnp.sum(ref[...] ** 2)


def with_states_on_disk(x):
    return jnp.sum(checkpointed_scan(lambda c, _: (jnp.sin(c), None), x, None, 9, tier=DiskTier())[0])


@pytest.mark.parametrize("f", [with_a_callback, with_a_reference, with_states_on_disk])
def test_policies_that_cannot_be_applied_are_left_out(f):
    needs = report(f)(jnp.ones(3))
    assert needs.policies == () and needs.measured is not None and "policy" not in str(needs)
    if f is not with_states_on_disk:  # its effects are those of its gradient
        with pytest.raises(NotImplementedError, match=r"effects, (IO|InternalMutableArray)Effect, which"):
            fit(f, 0.5)(jnp.ones(3))


def test_donation():
    assert NEEDS.donatable == 4 * LAYERS * WIDTH**2 and NEEDS.aliased == 0
    given = report(loss, donate_argnums=(0, 1), policies={})(WS, X)
    assert given.aliased == 4 * LAYERS * WIDTH**2 and given.donatable == 0
    assert given.total == given.argument_bytes + given.output_bytes - given.aliased + given.temporaries
    assert [a.name for a in given.arguments if a.donation == "unusable"] == ["x"]
    assert "donated in vain (no result of that shape and dtype): x" in str(given)


def test_bytes_per_device():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
    ws = jax.device_put(WS, NamedSharding(mesh, PartitionSpec(None, "data")))
    needs = report(loss, optimizer=optax.sgd(0.1, momentum=0.9))(ws, x)
    measured = sum(a.addressable_shards[0].data.nbytes for a in (*ws, x))
    assert needs.devices == 4 and needs.argument_bytes == measured == NEEDS.argument_bytes // 4
    assert needs.optimizer_state == LAYERS * WIDTH**2
    specs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), (ws, x))
    assert report(loss, compile=False)(*specs).argument_bytes == needs.argument_bytes
    assert "on each of 4 devices" in str(needs)


def test_shapes_alone_will_do():
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (WS, X))
    assert report(loss, optimizer=optax.adam(1e-3))(*shapes).total == NEEDS.total


def test_auxiliary_outputs_argnums_keywords_and_integers():
    def f(x, n, *, scale, mode, times):
        return jnp.sum(x**2) * scale * n * times, {"big": jnp.outer(x, x), "mode": mode}

    n = jnp.int32(3)
    needs = report(f, has_aux=True, policies={})(jnp.ones(64), n, scale=jnp.float32(2), mode="sum", times=4)
    assert needs.output_bytes == 4 + 64 * 64 * 4 + 64 * 4
    # `times`, an integer of Python, may decide what is run: it is part of the program, as `mode` is.
    assert {a.name: a.differentiated for a in needs.arguments} == {"x": True, "n": False, "scale": False}
    both = report(loss, argnums=(0, 1), policies={})(WS, X)
    assert sum(a.bytes for a in both.arguments if a.differentiated) == both.argument_bytes
    named = report(loss, argnums=np.int64(1), donate_argnums=[0], policies={}, compile=False)(x=X, ws=WS)
    assert {a.name: a.donation for a in named.arguments if not a.differentiated} == {
        f"ws/{i}": "unusable" for i in range(LAYERS)
    }


def test_equinox_and_nnx():
    model = eqx.nn.MLP(4, 4, 8, 2, key=jax.random.key(0))
    needs = report(lambda model, x: jnp.sum(jax.vmap(model)(x) ** 2))(model, jnp.ones((5, 4)))
    assert needs.argument_bytes == 4 * (4 * 8 + 8 + 64 + 8 + 32 + 4 + 20)
    linear = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    assert report(lambda m, x: jnp.sum(m(x) ** 2))(linear, jnp.ones((5, 4))).argument_bytes == 4 * (16 + 4 + 20)


def test_flops():
    cases = [
        (lambda a: a @ a, 2 * 8**3),
        (lambda a: jnp.sin(a) + 1, 128),
        (lambda a: jnp.sum(a), 64),
        (lambda a: a.T.reshape(-1)[None], 0),
        (lambda a: lax.scan(lambda c, r: (c + r, None), a[0], a)[0], 64),
        (lambda a: lax.cond(a[0, 0] > 0, lambda a: a @ a, lambda a: a + a, a)[0], 2 * 8**3 + 1),
        (lambda a: lax.conv(a[None, None], jnp.ones((3, 1, 2, 2)), (1, 1), "SAME"), 2 * 4 * 64 * 3),
        (jnp.linalg.cholesky, None),
        (lambda a: jnp.sort(a), 64 * 3),
    ]
    for f, expected in cases:
        found = program_flops(_jaxpr.trace(f, jnp.ones((8, 8)))[0])
        assert expected is None or abs(found - expected) <= 2


def test_it_prints_and_makes_a_page():
    text, page = str(NEEDS), NEEDS.to_html()
    assert f"test_report.py:{LINE}" in text and "could be donated" in text and "measured; predicted" in text
    assert max(map(len, text.splitlines())) < 130
    assert page.startswith("<!DOCTYPE html>") and "<svg" in page and "http" not in page and "<script" not in page
    assert "jnp.tanh(x @ w)" in page and NEEDS._repr_html_() in page
    told = json.loads(NEEDS.to_json())
    assert told["total"] == NEEDS.total and told["residuals"][0]["line"] == LINE


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: report(3), TypeError, "`f` is 3 of type int; expected a function"),
        (lambda: report(lambda x: x)(X), TypeError, r"returns float32\[256, 64\]; expected a scalar"),
        (
            lambda: report(lambda x: (jnp.sum(x), 1))(X),
            TypeError,
            "returns tuple of 2; expected a scalar.*has_aux=True",
        ),
        (lambda: report(lambda x: x[0, 0] * 1j)(X), TypeError, r"returns complex64\[\]; expected a scalar.*`jnp.real`"),
        (lambda: report(lambda x: 3)(X), TypeError, r"returns int32\[\]; .* no floating number has no gradient"),
        (lambda: report(lambda x: None)(X), TypeError, r"returns NoneType; .* Return one number\."),
        (lambda: report(lambda x: jnp.sum(x), has_aux=True)(X), ValueError, r"returns float32\[\]; expected \(v"),
        (lambda: report(loss, argnums=2)(WS, X), ValueError, "`argnums` is 2, but the call has 2 positional"),
        (lambda: report(lambda n: n * 1.0)(3), ValueError, "hold no floating array to differentiate .*int32"),
        (lambda: report(loss, donate_argnums=7)(WS, X), ValueError, "`donate_argnums` is 7, but"),
        (lambda: report(loss, argnums="x")(WS, X), TypeError, "`argnums` is 'x'; expected the position"),
        (lambda: report(loss, argnums=0.0)(WS, X), TypeError, r"`argnums` is 0\.0; expected the position"),
        (lambda: report(loss, argnums=True)(WS, X), TypeError, "`argnums` is True; expected the position"),
        (lambda: report(loss, argnums=None)(WS, X), TypeError, "`argnums` is None; expected the position"),
        (lambda: report(loss, argnums=(1, -1))(WS, X), ValueError, "names an argument twice"),
        (lambda: report(loss, optimizer="adam")(WS, X), TypeError, "`optimizer` is 'adam'.*optax"),
        (lambda: report(loss, policies={"x": "dots"})(WS, X), TypeError, r"`policies\['x'\]` is 'dots'"),
        (lambda: NEEDS.fits("3 GX"), ValueError, "`GX` is no unit"),
        (lambda: NEEDS.fits("plenty"), ValueError, "a number and a unit are expected"),
        (lambda: NEEDS.fits(-1), ValueError, "expected a number of bytes above 0"),
        (lambda: NEEDS.fits(None), TypeError, "`size` is None of type NoneType"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


MODEL = """\
import jax.numpy as jnp

def loss(w, x):
    return jnp.sum(jnp.tanh(x @ w) ** 2)

def vector(w, x):
    return x @ w

def example_args():
    return jnp.ones((64, 64)), jnp.ones((256, 64))
"""


def test_command_line(tmp_path, capsys):
    path = tmp_path / "memory_model.py"
    path.write_text(MODEL)
    target = f"{path}:loss"
    assert main(["memory", target, "--html", str(tmp_path / "page.html")]) == 0
    assert "memory of value_and_grad(loss)" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["memory", target, "--fits", "1GiB", "--no-compile"]) == 0
    assert "fits in 1.00 GiB" in capsys.readouterr().out
    assert main(["memory", target, "--fits", "1 KiB", "--json", "--no-compile"]) == 1
    assert json.loads(capsys.readouterr().out)["function"] == "loss"
    for bad, said in (
        ([target, "--fits", "1 XiB"], "`XiB` is no unit"),
        ([target, "--argnums", "9"], "`argnums` is 9"),
        ([f"{path}:vector"], "expected a scalar"),
        ([f"{path}:los"], "Did you mean `loss`"),
    ):
        assert main(["memory", *bad]) == 2
        assert said in capsys.readouterr().err
