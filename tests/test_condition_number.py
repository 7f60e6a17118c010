"""Condition numbers against closed forms, and against Jacobians of NumPy in float64."""

import json
import math

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from robustad import stability
from robustad.diagnosis import _amplification, condition_number

DTYPES = ["bfloat16", "float16", "float32", "float64"]


def wide(x) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


# ---- closed forms; each at the number that the dtype holds, so that the bound is float64's

SCALAR = [
    ("exp", jnp.exp, -3.3, lambda x: abs(x)),
    ("log", jnp.log, 1.01, lambda x: 1 / abs(np.log(x))),
    ("x^7", lambda x: x**7, 3.1, lambda x: 7.0),
    ("x^-2.5", lambda x: x**-2.5, 0.7, lambda x: 2.5),
    ("sin near pi", jnp.sin, np.pi, lambda x: abs(x / np.tan(x))),
    ("sin near 40 pi", jnp.sin, 40 * np.pi, lambda x: abs(x / np.tan(x))),
    ("sqrt", jnp.sqrt, 1e-3, lambda x: 0.5),
    ("gradient of a quintic", jax.grad(lambda x: x**5), 1.3, lambda x: 4.0),
    ("gradient of log", jax.grad(jnp.log), 0.2, lambda x: 1.0),
    ("grad of grad of exp(3 x)", jax.grad(jax.grad(lambda x: jnp.exp(3 * x))), 1.5, lambda x: 3 * x),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("f", "at", "formula"), [row[1:] for row in SCALAR], ids=[row[0] for row in SCALAR])
def test_functions_of_one_number(f, at, formula, dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(at, dtype)
        found = condition_number(f)(x)
    expected = formula(float(x))
    for measure in (found.normwise, found.mixed, found.componentwise):
        assert measure == pytest.approx(expected, rel=1e-9)
    assert found.exact and found.worst == "value" and found.size == (1, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_subtraction(dtype):
    with jax.enable_x64(dtype == "float64"):
        x, y = jnp.asarray(1.0, dtype), jnp.asarray(1 + jnp.finfo(dtype).eps, dtype)
        found = condition_number(lambda x, y: x - y, argnums=(0, 1))(x, y)
    a, b = float(x), float(y)
    assert found.componentwise == pytest.approx((a + b) / abs(a - b), rel=1e-12)
    assert found.normwise == pytest.approx(math.sqrt(2) * math.hypot(a, b) / abs(a - b), rel=1e-12)
    assert [leaf.name for leaf in found.inputs] == ["x", "y"]
    assert found.inputs[1].componentwise == pytest.approx(b / abs(a - b), rel=1e-12)
    assert found.digits_left(dtype) < 0.5  # nothing is left of two neighbouring numbers
    assert found.digits_left("bfloat16") == 0


def test_sum_and_dot():
    x = jnp.asarray([1e4, -1e4, 3.0, -1.0, 0.5], jnp.float32)
    y = jnp.asarray([1.0, 1.0, 2.0, -3.0, 7.0], jnp.float32)
    found = condition_number(jnp.sum)(x)
    assert found.componentwise == pytest.approx(np.abs(wide(x)).sum() / 2.5, rel=1e-12)
    assert condition_number(stability.reproducible_sum)(x).componentwise == pytest.approx(
        found.componentwise, rel=1e-6
    )  # its integers have no twin in float64
    found = condition_number(jnp.dot, argnums=(0, 1))(x, y)
    assert found.componentwise == pytest.approx(2 * np.abs(wide(x) * wide(y)).sum() / 12.5, rel=1e-12)
    assert condition_number(jnp.dot, argnums=1)(x, y).mixed == pytest.approx(found.componentwise / 2, rel=1e-12)


def test_linear_solve():
    a = jnp.asarray(np.vander(np.linspace(0.5, 1, 5)), jnp.float32)
    inverse = np.linalg.inv(wide(a))
    left, _, _ = np.linalg.svd(wide(a))
    b = jnp.asarray(left[:, 0], jnp.float32)  # the right-hand side for which the bound ‖A‖‖A⁻¹‖ is attained
    found = condition_number(jnp.linalg.solve, argnums=(0, 1))(a, b)
    of_a, of_b = found.inputs
    norm = np.linalg.norm(inverse, 2)
    x = inverse @ wide(b)
    assert of_b.normwise == pytest.approx(norm * np.linalg.norm(wide(b)) / np.linalg.norm(x), rel=1e-9)
    assert of_b.normwise == pytest.approx(norm * np.linalg.norm(wide(a), 2), rel=0.01)  # b has been rounded
    assert of_a.normwise == pytest.approx(norm * np.linalg.norm(wide(a)), rel=1e-9)  # the norm of A is Frobenius'
    skeel = np.abs(inverse) @ np.abs(wide(a)) @ np.abs(x)
    assert of_a.mixed == pytest.approx(skeel.max() / np.abs(x).max(), rel=1e-9)
    assert of_a.componentwise == pytest.approx((skeel / np.abs(x)).max(), rel=1e-9)


def test_the_problem_is_not_the_program():
    """√(x+1) - √x loses everything in float32, and is well conditioned."""

    def f(x):
        return jnp.sqrt(x + 1) - jnp.sqrt(x)

    x = jnp.float32(1e8)
    plain = abs(x * jax.grad(f)(x) / f(x))
    assert not np.isfinite(plain) or plain == 0
    assert condition_number(f)(x).componentwise == pytest.approx(0.5, rel=1e-6)

    def through_bfloat16(x):
        return jnp.sin(x.astype(jnp.bfloat16)).astype(jnp.float32)

    x = jnp.float32(3.14)
    expected = abs(float(x) / np.tan(float(x)))
    assert abs(x * jax.grad(through_bfloat16)(x) / through_bfloat16(x)) > 1.5 * expected
    assert condition_number(through_bfloat16)(x).componentwise == pytest.approx(expected, rel=1e-9)


# ---- leaves, conventions


def test_leaves_by_name():
    def f(p, scale):
        return {"difference": p["a"] - p["b"], "product": scale * p["a"] * p["b"]}, "aux"

    p = {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray([1.0 + 2.0**-10, 5.0])}
    found = condition_number(f, has_aux=True)(p, scale=2.0)
    inputs, outputs = ({leaf.name: leaf for leaf in side} for side in (found.inputs, found.outputs))
    assert set(inputs) == {"a", "b"} and set(outputs) == {"difference", "product"}
    assert outputs["product"].componentwise == pytest.approx(2, rel=1e-12)
    assert outputs["difference"].componentwise == pytest.approx(2**11 + 1, rel=1e-12)
    assert outputs["difference"].mixed == pytest.approx(7 / 3, rel=1e-12)
    assert found.worst == "difference[0]"
    assert found.scalars()["outputs/product/componentwise"] == outputs["product"].componentwise
    assert jax.tree.map(lambda x: x, found) == found
    text = str(found)
    assert "output product" in text and "difference[0]" in text and "4 inputs, 4 outputs" in text


def test_normwise_is_the_jacobians_of_numpy():
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((6, 4)), rng.standard_normal(4)
    found = condition_number(lambda x, w: jnp.tanh(w @ x))(jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32))
    w, x = wide(w.astype(np.float32)), wide(x.astype(np.float32))
    y = np.tanh(w @ x)
    jacobian = (1 - y**2)[:, None] * w
    assert found.normwise == pytest.approx(
        np.linalg.norm(jacobian, 2) * np.linalg.norm(x) / np.linalg.norm(y), rel=1e-9
    )
    assert found.mixed == pytest.approx((np.abs(jacobian) @ np.abs(x)).max() / np.abs(y).max(), rel=1e-9)
    assert found.componentwise == pytest.approx((np.abs(jacobian) @ np.abs(x) / np.abs(y)).max(), rel=1e-9)


def test_zeros_infinities_and_nans():
    def all_three(found):
        return found.normwise, found.mixed, found.componentwise

    x = jnp.asarray([0.0, 2.0])
    assert all_three(condition_number(lambda x: 0 * x)(x)) == (0, 0, 0)  # it does not change
    assert condition_number(lambda x: x[0] ** 2)(x).componentwise == 0  # a zero argument has no relative error
    assert all_three(condition_number(lambda x: x[1] - 2)(x)) == (np.inf,) * 3
    noise = condition_number(lambda x: jnp.stack([x[1], 1e-20 * (x[1] - 2)]))(x)
    assert noise.componentwise == 1  # the second one is taken for rounding of the first
    assert condition_number(lambda x: jnp.stack([x[1], 1e-3 * (x[1] - 2)]))(x).componentwise == np.inf
    assert np.isnan(condition_number(jnp.sqrt)(x).componentwise)  # the derivative is not finite at 0
    assert condition_number(lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0))(x).componentwise == pytest.approx(0.5)
    assert np.isnan(condition_number(jnp.exp)(jnp.asarray([jnp.nan])).normwise)
    huge = condition_number(lambda x: 1e30 * x)(jnp.asarray([1e30, 2e30]))
    assert huge.normwise == pytest.approx(1, rel=1e-6)
    empty = condition_number(jnp.exp)(jnp.zeros((0,)))
    assert all_three(empty) == (0, 0, 0) and empty.worst is None
    assert str(empty)
    assert json.loads(condition_number(lambda x: x[1] - 2)(x).to_json())["normwise"] == "inf"


def test_digits_and_bits():
    found = condition_number(jnp.exp)(jnp.float32(-64.0))
    for dtype, p in (("bfloat16", 8), ("float16", 11), ("float32", 24), ("float64", 53)):
        assert found.bits_lost(dtype) == pytest.approx(6)
        assert found.digits_left(dtype) == pytest.approx((p - 6) * math.log10(2))
    assert condition_number(lambda x: x[0] - x[0])(jnp.ones(1)).bits_lost("float32") == 0
    assert condition_number(lambda x: x - 1)(jnp.float32(1)).bits_lost("bfloat16", "normwise") == 8
    with pytest.raises(ValueError, match="`measure` must be one of"):
        found.bits_lost("float32", "worst")
    with pytest.raises(TypeError, match="floating dtype; got int32"):
        found.bits_lost("int32")


# ---- kinds of programs


def test_complex_leaves_are_two_real_ones():
    z = jnp.asarray([1 + 2j, -0.5j], jnp.complex64)
    found = condition_number(lambda z: z * (3 + 4j))(z)
    assert found.normwise == pytest.approx(1, rel=1e-6)
    assert [leaf.name for leaf in found.outputs] == ["value.real", "value.imag"]
    x = wide(z.real), wide(z.imag)
    real = np.abs(3 * x[0] - 4 * x[1])
    assert found.outputs[0].componentwise == pytest.approx(((3 * abs(x[0]) + 4 * abs(x[1])) / real).max(), rel=1e-6)
    through = condition_number(lambda x: jnp.abs(jnp.fft.fft(x))[0])(jnp.asarray([1.0, 2.0, -2.5]))
    assert through.componentwise == pytest.approx(11, rel=1e-6)


@jax.custom_vjp
def cubed(x):
    return x**3


cubed.defvjp(lambda x: (x**3, x), lambda x, u: (3 * x**2 * u,))


@pytest.mark.parametrize(
    ("f", "condition"),
    [
        (cubed, 3),  # no forward mode
        (jax.grad(lambda x: cubed(x).sum()), 2),
        (lambda x: lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] * x), (0, x))[1], 6),  # no reverse mode
        (lambda x: lax.scan(lambda c, _: (c * x, None), x, length=3)[0], 4),
        (lambda x: lax.cond(x.sum() > 0, lambda x: x**2, lambda x: x**9, x), 2),
        (jax.checkpoint(lambda x: x**3), 3),
        (jax.vmap(lambda x: x**3), 3),
        (jax.jit(lambda x: x**3), 3),
    ],
)
@pytest.mark.parametrize("limit", [512, 1])
def test_through_rules_and_control_flow(f, condition, limit, monkeypatch):
    monkeypatch.setattr(_amplification, "DIRECTIONS", limit)  # 1: products instead of the matrix
    x = jnp.asarray([1.5, 2.0, 0.3])
    if limit == 1 and "while" in str(jax.make_jaxpr(f)(x)):
        with pytest.raises(ValueError, match=r"(?s)no derivative that JAX can make.*while loop in reverse mode"):
            condition_number(f)(x)
        return
    found = condition_number(f)(x)
    assert found.exact == (limit == 512)
    assert found.componentwise == pytest.approx(condition, rel=1e-6)


def test_estimates_agree_with_the_matrix(monkeypatch):
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.standard_normal((200, 150)) * np.exp(rng.standard_normal((200, 1))), jnp.float32)
    p = {
        "a": jnp.asarray(rng.standard_normal(100), jnp.float32),
        "b": jnp.asarray(rng.standard_normal(50), jnp.float32),
    }

    def f(p):
        y = jnp.sin(w @ jnp.concatenate([p["a"], p["b"]]))
        return y[:120], y[120:]

    exact = condition_number(f)(p)
    monkeypatch.setattr(_amplification, "DIRECTIONS", 100)
    estimate = condition_number(f)(p)
    assert exact.exact and not estimate.exact
    pairs = [(exact, estimate), *zip(exact.inputs, estimate.inputs), *zip(exact.outputs, estimate.outputs)]
    for e, s in pairs:
        assert 0.97 * e.normwise <= s.normwise <= e.normwise * (1 + 1e-9)
        assert s.componentwise == pytest.approx(e.componentwise, rel=1e-9)
        assert 0.9 * e.mixed <= s.mixed <= e.mixed * (1 + 1e-9)
    assert estimate.worst == exact.worst
    assert "(estimates)" in str(estimate)


def test_modules():
    x = jnp.asarray([[0.3, -1.2, 0.7]])
    layer = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    found = condition_number(lambda m, x: jax.vmap(m)(x))(layer, x)
    assert np.isfinite(found.normwise) and "layers/0/weight" in [leaf.name for leaf in found.inputs]

    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    found = condition_number(lambda m, x: m(x))(model, x)
    y = wide(x @ model.kernel[...] + model.bias[...])
    sums = np.abs(wide(x)) @ np.abs(wide(model.kernel[...]))
    assert found.mixed == pytest.approx(sums.max() / np.abs(y).max(), rel=1e-5)

    dense = nn.Dense(2)
    params = dense.init(jax.random.key(0), x)
    found = condition_number(jax.grad(lambda p: jnp.sum(dense.apply(p, x) ** 2)))(params)
    assert {leaf.name for leaf in found.outputs} == {"params/bias", "params/kernel"}
    assert np.isfinite(found.normwise)


def test_integer_arguments_and_keys_stay_as_they_are():
    def f(x, i, key):
        return x[i] * jax.random.normal(key)

    assert condition_number(f)(jnp.ones(3), jnp.asarray([1, 1]), jax.random.key(0)).componentwise == 1
    assert condition_number(lambda x: x * 3)(2.5).componentwise == 1
    found = condition_number(lambda x, name: {"x": x, "name": name, "n": 3, "i": jnp.arange(2)})(jnp.ones(2), name="a")
    assert [leaf.name for leaf in found.outputs] == ["x"]


def test_the_mode_of_the_caller_is_kept():
    before = jax.config.jax_enable_x64
    condition_number(jnp.exp)(jnp.float32(1))
    assert jax.config.jax_enable_x64 == before
    with jax.enable_x64(True), jax.debug_nans(True):
        assert condition_number(jnp.exp)(jnp.float64(2)).componentwise == 2
        assert jax.config.jax_enable_x64


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: condition_number(3), "`f` must be a function; got int"),
        (lambda: condition_number(jnp.exp)(3), "nothing to differentiate"),
        (lambda: condition_number(jnp.exp)(jnp.arange(3)), "nothing to differentiate"),
        (lambda: condition_number(jnp.exp, argnums=2)(1.0), "`argnums`=2"),
        (lambda: condition_number(jnp.argmax)(jnp.ones(3)), "`argmax` must return floating arrays"),
        (lambda: condition_number(lambda x: x if x > 0 else -x)(1.0), "cannot be traced"),
        (lambda: condition_number(lambda x: x, has_aux=True)(1.0), r"has_aux=True expects .*value, aux"),
        (lambda: jax.jit(condition_number(jnp.exp))(1.0), "called on traced arrays"),
        (
            lambda: condition_number(lambda x: jax.pure_callback(np.exp, x, x))(jnp.ones(2)),
            "no derivative that JAX can make",
        ),
        (lambda: condition_number(lambda x: jax.new_ref(x)[...])(jnp.ones(2)), "uses a mutable array"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
