"""What `rad.audit` promises of its arguments, its report and its errors."""

import json
import os
from functools import partial

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import robustad as rad
from robustad import diagnosis as dg
from robustad.diagnosis import AuditError
from tests._lines import line

X = jnp.array([0.5, 1.0, 2.0])


def square(x):
    return jnp.sum(x**2)


def untaken(x):
    return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))


# ------------------------------------------------------------------------------------------------ the numbers


def test_value_gradient_and_reference():
    report = rad.audit(square)(X)
    chex.assert_trees_all_equal((report.value, report.gradient), jax.value_and_grad(square)(X))
    assert isinstance(report.reference, np.ndarray)
    assert report.reference.dtype == np.float64
    np.testing.assert_array_equal(report.reference, 2 * np.asarray(X, np.float64))
    assert report.ok
    assert report.bits_lost == 0
    assert report.value_bits_lost == 0


def test_bits_lost_of_a_known_error():
    """1 - cos x loses all bits of its gradient's factor at 1e-3: sin(x) is right, so it is the value that is wrong."""

    def loss(x):
        return (1 - jnp.cos(x)) ** 2  # derivative 2 (1 - cos x) sin x

    report = rad.audit(loss)(jnp.float32(1e-3))
    x = float(np.float32(1e-3))
    true = 2 * (2 * np.sin(x / 2) ** 2) * np.sin(x)
    expected = np.clip(24 + np.log2(abs(float(report.gradient) - true) / true), 0, 24)
    assert report.bits_lost == pytest.approx(expected, abs=1e-6)
    assert expected > 12  # the plain form fails here
    assert not report.ok
    assert report.findings[0].kind == "cancellation"


def test_slices_of_a_scanned_leaf():
    """Only the early layers of a chain that shrinks cotangents by 1e-3 a layer are lost: below 1e-38 they are 0."""

    def loss(params, x):
        return jax.lax.scan(lambda h, w: (1e-3 * w * h + 1, None), x, params["w"])[0]

    report = rad.audit(loss)({"w": jnp.ones(20)}, jnp.float32(1))
    assert report.bits_lost["w"].shape == (20,)
    assert (report.bits_lost["w"][:6] == 24).all()
    assert (report.bits_lost["w"][10:] < 6).all()
    assert float(report.gradient["w"][0]) == 0.0  # the plain gradient fails
    assert float(report.reference["w"][0]) > 0.0
    assert not report.ok
    assert [f.kind for f in report.findings] == ["vanishing"]


def test_a_structural_zero_is_measured_against_its_terms():
    """Softmax does not see a shift of all logits: the true gradient is 0, and the computed one is rounding."""
    logits = jax.random.normal(jax.random.key(0), (64, 5))

    def loss(shift):
        return -jnp.mean(jax.nn.log_softmax(logits + shift)[:, 0])

    report = rad.audit(loss)(jnp.float32(0.3))
    assert abs(float(report.gradient)) > 0  # the plain relative error would be total
    assert abs(float(report.reference)) < 1e-15
    assert report.ok
    assert report.bits_lost < 6


def test_precision_is_the_narrowest_on_the_leafs_way():
    def loss(params, x):
        narrow = (params["a"].astype(jnp.bfloat16) * x.astype(jnp.bfloat16)).astype(jnp.float32)
        return jnp.sum(narrow) + jnp.sum(params["b"] * x)

    report = rad.audit(loss)({"a": X, "b": X}, X)
    assert [leaf.precision for leaf in report.leaves] == [8, 24]
    assert report.dtype == "bf16"


@pytest.mark.parametrize(
    "narrow,bits,name",
    [
        (lambda x: lax.reduce_precision(x, 8, 7), 8, "e8m7"),
        (lambda x: lax.reduce_precision(x, 5, 10), 11, "e5m10"),
        (jax.jit(lambda x: lax.reduce_precision(x, 8, 3)), 4, "e8m3"),
        (lambda x: lax.reduce_precision(x, 8, 23), 24, "f32"),
        (lambda x: x.astype(jnp.float8_e4m3fn).astype(jnp.float32), 4, "f8_e4m3fn"),
        (lambda x: x.astype(jnp.float16).astype(jnp.float32), 11, "f16"),
    ],
)
def test_rounding_on_purpose_is_no_loss(narrow, bits, name):
    """Like a cast: what `lax.reduce_precision` rounds away was never promised."""

    def loss(x):
        return jnp.sum(jnp.sin(narrow(x)) * x)

    report = rad.audit(loss)(X / 3)
    assert [leaf.precision for leaf in report.leaves] == [bits]
    assert report.ok, str(report)
    assert report.dtype == name
    assert str(report).splitlines()[0].split() == ["audit", "loss", name, "against", "f64", "OK"]


def test_rounding_of_one_leaf_alone():
    def loss(params):
        return jnp.sum(lax.reduce_precision(params["a"], 8, 7) ** 2) + jnp.sum(params["b"] ** 2)

    assert [leaf.precision for leaf in rad.audit(loss)({"a": X / 3, "b": X}).leaves] == [8, 24]
    assert dg.grad_check(loss)({"a": X / 3, "b": X}).ok
    assert dg.adjoint_test(loss)({"a": X / 3, "b": X}).ok


def test_threshold_decides():
    def loss(x):
        return jnp.sum(jnp.sqrt(x + 1) - jnp.sqrt(x))

    x = jnp.full(3, 30.0)
    lost = float(rad.audit(loss)(x).bits_lost)
    assert rad.audit(loss, threshold=min(1.0, (lost + 1) / 24))(x).ok
    assert not rad.audit(loss, threshold=np.float32((lost - 1) / 24))(x).ok


def test_a_nan_that_reaches_no_output_is_no_finding():
    def loss(x):
        metric = jnp.log(-x)  # noqa: F841  NaN, dropped
        return jnp.sum(jnp.where(x > 0, x, jnp.exp(1000 * jax.lax.stop_gradient(x))))

    assert rad.audit(loss)(X).ok


def test_float64_programs_say_where_they_have_no_reference():
    with jax.enable_x64(True):
        report = rad.audit(square)(jnp.ones(3))
        assert report.ok
        assert report.bits_lost == 0
        assert report.notes == ()
        report = rad.audit(lambda x: jnp.sum(jnp.linalg.eigvalsh(x)))(jnp.eye(3))  # without an exact rule
        assert report.ok
        assert report.bits_lost is None
        assert [note.kind for note in report.notes] == ["reference-untrusted"]
        report = rad.audit(untaken)(jnp.array([0.0, 1.0]))
        assert [f.kind for f in report.findings] == ["zero-times-inf"]


def test_lost_shadows_are_listed():
    def loss(x):
        y = jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), jax.lax.stop_gradient(x))
        return jnp.sum(y * x)

    report = rad.audit(loss)(X)
    (note,) = report.notes
    assert note.kind == "shadow-lost"
    assert note.primitive == "pure_callback"
    assert note.file == __file__
    assert "pure_callback" in note.source


# --------------------------------------------------------------------------------------------- the arguments


def test_argnums_as_in_jax_grad():
    def loss(a, b, c):
        return jnp.sum(a * b["w"] ** 2) + c

    args = (X, {"w": X}, jnp.float32(1))
    for argnums in (0, 1, -1, (0, 1), (2, 0)):
        report = rad.audit(loss, argnums=argnums)(*args)
        chex.assert_trees_all_equal(report.gradient, jax.grad(loss, argnums=argnums)(*args))
        assert jax.tree.structure(report.bits_lost) == jax.tree.structure(report.gradient)


def test_has_aux_keywords_and_static_arguments():
    def loss(x, power, *, mode):
        assert mode == "sum"
        return jnp.sum(x**power), {"aux": x}

    report = rad.audit(loss, has_aux=True)(X, 3, mode="sum")
    chex.assert_trees_all_close(report.gradient, 3 * X**2)
    assert rad.audit(lambda x, name: x.sum() if name == "a" else x.prod())(X, np.str_("a")).ok


def test_python_numbers_are_differentiated_as_in_jax_grad():
    assert rad.audit(lambda p: p["a"] ** 2)({"a": 3.0}).gradient["a"] == 6.0


def test_nnx_params_alone_are_differentiated():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 2, rngs=rngs)
            self.norm = nnx.BatchNorm(2, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.drop(self.norm(self.dense(x)))

    x = jax.random.normal(jax.random.key(0), (8, 3))
    report = rad.audit(lambda model, x: jnp.mean((model(x) - x[:, :2]) ** 2))(Model(nnx.Rngs(0)), x)
    assert [leaf.name for leaf in report.leaves] == ["dense/bias", "dense/kernel", "norm/bias", "norm/scale"]
    assert report.ok
    assert isinstance(report.gradient, nnx.State)


def test_equinox_functions_are_partitioned_off():
    model = eqx.nn.MLP(3, "scalar", 4, 1, key=jax.random.key(0))
    report = rad.audit(lambda model, x: jnp.mean(jax.vmap(model)(x) ** 2))(model, jnp.ones((2, 3)))
    assert report.ok
    assert len(report.leaves) == 4
    expected = eqx.filter_grad(lambda model, x: jnp.mean(jax.vmap(model)(x) ** 2))(model, jnp.ones((2, 3)))
    chex.assert_trees_all_close(jax.tree.leaves(report.gradient), jax.tree.leaves(expected), rtol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        jax.jit,
        jax.checkpoint,
        lambda f: lambda x: jnp.sum(jax.vmap(lambda v: f(v[None]))(x)),
        lambda f: lambda x: jax.lax.scan(lambda c, v: (c + f(v[None]), None), 0.0, x)[0],
        lambda f: lambda x: jax.lax.cond(x[0] < 1, f, jnp.sum, x),
        lambda f: lambda x: f(jax.grad(square)(x)),
    ],
    ids=["jit", "checkpoint", "vmap", "scan", "cond", "grad"],
)
def test_the_fault_is_named_through_transformations(wrap):
    report = rad.audit(wrap(untaken))(jnp.array([0.0, 4.0]))
    (finding,) = report.findings
    assert (finding.kind, finding.primitive, finding.invalid) == ("zero-times-inf", "sqrt", "0*inf")
    assert finding.line == untaken.__code__.co_firstlineno + 1
    assert finding.function == "untaken"
    assert "untaken branch" in finding.cause


def test_a_users_custom_rule_is_respected():
    @jax.custom_vjp
    def safe(x):
        return jnp.sqrt(x)

    safe.defvjp(
        lambda x: (jnp.sqrt(x), x), lambda x, g: (jnp.where(x > 0, g / (2 * jnp.sqrt(jnp.maximum(x, 1e-9))), 0),)
    )
    assert rad.audit(lambda x: jnp.sum(jnp.where(x > 0, safe(x), 0.0)))(jnp.array([0.0, 4.0])).ok


# ------------------------------------------------------------------------------------------------ the output


def test_json_is_strict_and_scalars_are_flat():
    report = rad.audit(untaken)(jnp.array([0.0, 4.0]))
    held = json.loads(report.to_json(), parse_constant=lambda s: pytest.fail(f"{s} is not JSON"))
    assert held["ok"] is False
    assert held["findings"][0]["kind"] == "zero-times-inf"
    assert held["findings"][0]["source"].startswith("return jnp.sum(jnp.where")
    scalars = report.scalars()
    assert scalars["ok"] == 0
    assert all(isinstance(v, float) for v in scalars.values())
    assert scalars["nonfinite/x"] == 1


def test_it_prints_the_verdict_the_line_and_the_remedy():
    text = str(rad.audit(untaken)(jnp.array([0.0, 4.0])))
    assert "NOT OK   1 cause" in text
    assert "1 ZERO-TIMES-INF   backward   test_report.py:" in text
    assert "fix: make the argument safe" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_report_is_a_pytree():
    report = rad.audit(square)(X)
    doubled = jax.tree.map(lambda x: 2 * x, report)
    assert doubled.value == 2 * report.value
    assert doubled.findings == report.findings


def test_side_effects_run_with_every_pass():
    seen = []

    def loss(x):
        jax.debug.callback(lambda v: seen.append(float(v)), x[0])
        return untaken(x)

    rad.audit(loss)(jnp.array([1.0, 4.0]))
    jax.effects_barrier()
    assert len(seen) == 1
    rad.audit(loss)(jnp.array([0.0, 4.0]))
    jax.effects_barrier()
    assert len(seen) == 5


def test_a_second_call_is_independent():
    audited = rad.audit(untaken)
    assert not audited(jnp.array([0.0, 4.0])).ok
    assert audited(jnp.array([1.0, 4.0])).ok


# ------------------------------------------------------------------------------------------------ bad input

BAD = {
    "non-scalar": (lambda: rad.audit(lambda x: x)(X), "must return a scalar; it returned float32[3]"),
    "integer value": (lambda: rad.audit(lambda x: (x > 0).sum())(X), "it returned int32"),
    "complex value": (lambda: rad.audit(lambda x: x.sum() + 1j)(X), "it returned complex64"),
    "nothing returned": (lambda: rad.audit(lambda x: None)(X), "it returned NoneType"),
    "aux unasked": (lambda: rad.audit(lambda x: (x.sum(), 1))(X), "pass has_aux=True"),
    "aux missing": (lambda: rad.audit(square, has_aux=True)(X), "expects `f` to return (value, aux)"),
    "integers": (lambda: rad.audit(square)(jnp.arange(3)), "nothing to differentiate"),
    "integers among others": (
        lambda: rad.audit(lambda x, n: (x * n).sum(), argnums=(0, 1))(X, np.arange(3)),
        "int64[3]",
    ),
    "no argument": (lambda: rad.audit(lambda: 1.0)(), "no positional argument"),
    "argnums too large": (lambda: rad.audit(square, argnums=3)(X), "names argument 3, but the call has 1"),
    "argnums no index": (lambda: rad.audit(square, argnums="x")(X), "must be an int"),  # type: ignore[arg-type]
    "argnums twice": (lambda: rad.audit(square, argnums=(0, 0))(X), "twice"),
    "threshold": (lambda: rad.audit(square, threshold=2.0), "must be a share"),
    "threshold no number": (lambda: rad.audit(square, threshold=True), "must be a share"),
    "not a function": (lambda: rad.audit(3), "must be a function; got int"),  # type: ignore[arg-type]
    "untraceable": (lambda: rad.audit(lambda x: 1.0 if x.sum() > 0 else 0.0)(X), "cannot be traced"),
    "wrong call": (lambda: rad.audit(square)(X, X), "takes 1 positional argument but 2 were given"),
    "NaN inputs": (lambda: rad.audit(square)(X.at[1].set(jnp.nan)), "the inputs hold NaN: 1 of 3 elements"),
    "under jit": (lambda: jax.jit(lambda x: rad.audit(square)(x).value)(X), "called on traced arrays"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input_gets_a_clear_error(call, message):
    with pytest.raises(AuditError) as e:
        call()
    assert message in str(e.value)


def branching(x):
    y = jnp.sum(x)
    if y > 0:
        return y
    return -y


def converting(x):
    return jnp.sum(x) * float(x[0])


TRACING = [rad.audit, *(getattr(dg, name) for name in "grad_check adjoint_test condition_number branch_margin".split())]


@pytest.mark.parametrize("f,offset", [(branching, 2), (converting, 1)])
@pytest.mark.parametrize("tool", [*TRACING, dg.gradient_flow], ids=lambda tool: tool.__name__)
def test_the_users_line_is_named_where_it_cannot_be_traced(tool, f, offset):
    with pytest.raises(AuditError, match="cannot be traced") as e:
        tool(f)(X)
    assert f"at {__file__}:{line(f, offset)}: " in str(e.value)
    assert f"robustad{os.sep}diagnosis" not in str(e.value)


def test_the_error_of_the_users_code_is_the_cause():
    def loss(x):
        raise RuntimeError("mine")

    with pytest.raises(AuditError, match="RuntimeError: mine") as e:
        rad.audit(loss)(X)
    assert isinstance(e.value.__cause__, RuntimeError)


def test_nan_in_an_input_that_is_masked_is_no_error():
    data = jnp.array([1.0, jnp.nan, 3.0])

    def loss(w, data):
        return jnp.sum(w * jnp.where(jnp.isnan(data), 0.0, data))

    assert rad.audit(loss)(jnp.float32(2), data).ok


CHECKS = [rad.audit, dg.grad_check, dg.taylor_test, dg.adjoint_test, dg.recompute_check]
LINEAR = {  # NaN where they are NaN, with a derivative that is finite
    "sum": lambda x: jnp.sum(3 * x),
    "relu": lambda x: jnp.sum(jax.nn.relu(x)),
    "square": square,
}


@pytest.mark.parametrize("f", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("tool", CHECKS, ids=lambda tool: tool.__name__)
def test_nan_in_the_inputs_is_no_fault_of_the_program_and_nothing_can_be_checked(tool, f):
    with pytest.raises(AuditError, match="the inputs hold NaN: 1 of 3 elements of a float32"):
        tool(f)(X.at[1].set(jnp.nan))
    with pytest.raises(AuditError, match="in `batch`, and it reaches"):
        tool(lambda w, batch: jnp.sum(w * 2) + f(batch))(X, X.at[1].set(jnp.nan))


@pytest.mark.parametrize("tool", CHECKS[1:], ids=lambda tool: tool.__name__)
def test_nan_that_a_mask_keeps_out_can_be_checked(tool):
    data = jnp.array([1.0, jnp.nan, 3.0])
    assert tool(lambda w, data: jnp.sum(w**2 * jnp.where(jnp.isnan(data), 0.0, data)))(X, data).ok


def test_nan_of_the_programs_own_is_no_input():
    data = jnp.array([1.0, jnp.nan, 3.0])

    def loss(w, data):
        return jnp.sum(w * jnp.where(jnp.isnan(data), 0.0, data)) + jnp.log(-1 - jnp.sum(jnp.zeros(2)))

    check = dg.grad_check(loss)(X, data)
    assert not check.ok
    assert "the value is NaN" in check.notes[0]
    assert not rad.audit(loss)(X, data).ok


def test_nan_in_a_state():
    with pytest.raises(AuditError, match="it reaches the state after a step"):
        dg.lyapunov_exponents(lambda x: 2 * x)(jnp.float32(jnp.nan))


def test_partial_and_callable_objects():
    assert rad.audit(partial(lambda power, x: jnp.sum(x**power), 2))(X).ok

    class Loss:
        def __call__(self, x):
            return jnp.sum(x**2)

    assert rad.audit(Loss())(X).function == "Loss"


def test_names_of_leaves_are_their_own():
    """Neither a leaf that is called "value" nor two of one name hide the function's value, or one another."""

    def plain(x):
        return jnp.sum((1 - jnp.cos(x)) / x**2)

    def called(value):
        return plain(value)

    one, other = (rad.audit(f, ranking=True)(jnp.float32(1e-3)) for f in (plain, called))
    assert len(one.scalars()) == len(other.scalars())
    assert [(c.line, c.share) for c in one.ranking] == [(c.line, c.share) for c in other.ranking]
    assert other.leaves[0].name == "args[0]" and other.value_bits_lost == one.value_bits_lost
    params = {"a": {"b": jnp.float32(2.0)}, "a/b": jnp.float32(1e-3), "value": jnp.float32(1.0)}
    report = rad.audit(lambda params: params["a"]["b"] + plain(params["a/b"]) + params["value"])(params)
    names = ["params['a']['b']", "params['a/b']", "params['value']"]
    assert [leaf.name for leaf in report.leaves] == names
    assert list(json.loads(report.to_json())["leaves"]) == names


TOOLS = "gradient_flow grad_check taylor_test adjoint_test recompute_check condition_number branch_margin".split()


@pytest.mark.parametrize("tool", [rad.audit, *(getattr(rad.diagnosis, name) for name in TOOLS)])
def test_python_numbers_are_refused_under_jit_too(tool):
    with pytest.raises(AuditError, match="Call it outside"):
        jax.jit(lambda y: (tool(lambda x: x**2)(2.0), y)[1])(1.0)
