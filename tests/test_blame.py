"""Who is blamed, and for what, in the cases that are easy to get wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import robustad as rad
from robustad.arithmetic._origin import OriginArithmetic
from robustad.diagnosis import AuditError
from robustad.diagnosis._program import derivative_program
from tests._lines import line
from tests._subset import thinned


@pytest.mark.whole
def test_one_statement_of_an_unrolled_loop_is_one_cause():
    def loss(x):
        s = 0.0
        for i in range(12):
            s = s + (1 - jnp.cos(x[i])) / x[i] ** 2
        return s

    (finding,) = rad.audit(loss)(jnp.full(12, 1.5e-4)).findings
    assert finding.kind == "cancellation"
    assert finding.line == loss.__code__.co_firstlineno + 3
    assert set(finding.reaches) == {"x", "value"}


@pytest.mark.whole
def test_slices_are_those_of_the_outermost_scan():
    """The gradient of a shift before a centring is zero, for every slice of a leaf that two nested scans run over."""

    def loss(w):
        def outer(c, row):
            def inner(c, b):
                x = jnp.arange(1.0, 5.0) * 0.37 + b
                x -= x.mean()
                return c + jnp.sum(x**2 * jnp.sin(x)), None

            return lax.scan(inner, c, row)[0], None

        return lax.scan(outer, 0.0, w)[0]

    report = rad.audit(loss)(jnp.ones((5, 2)))
    assert report.bits_lost.shape == (5,)
    assert report.ok, str(report)


def test_an_exact_mask_in_a_narrow_dtype_hides_nothing():
    def loss(x):
        mask = (x > 0).astype(jnp.bfloat16).astype(jnp.float32)
        return jnp.sum((1 - jnp.cos(x * mask)) ** 2)

    report = rad.audit(loss)(jnp.full(3, 1e-3))
    assert report.dtype == "f32"
    assert not report.ok


def test_two_callbacks_that_look_alike_are_two():
    class Times:
        def __init__(self, factor):
            self.factor = factor

        def __repr__(self):
            return "Times"

        def __call__(self, x):
            return np.asarray(self.factor * x, np.float32)

    def loss(w, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        a, b = (jax.pure_callback(Times(k), shape, x) for k in (1.0, 5.0))
        return jnp.sum(w * (b - a))

    audited = derivative_program(loss, 0, False, (jnp.ones(2), jnp.ones(2)), {})
    numbers = {path: k + 1 for k, path in enumerate(audited.flow.sites)}
    with jax.enable_x64(True):
        (value, _), _ = audited.walked(OriginArithmetic(numbers, 24))(*audited.operands)
    assert float(value.working) == 8.0  # 0 where the second runs as the first


def test_a_taken_branch_is_not_called_untaken():
    def loss(x):
        return jnp.sum(jnp.where(x >= 0, jnp.sqrt(x) * x, 0.0))

    (finding,) = rad.audit(loss)(jnp.array([0.0, 4.0])).findings
    assert finding.kind == "zero-times-inf"
    assert "untaken" not in finding.cause


def test_arithmetic_beside_a_users_rule_is_not_the_rules():
    @jax.custom_vjp
    def h(x):
        return jnp.sin(x)

    def backward(x, ct):
        return (ct * jnp.cos(x),)

    h.defvjp(lambda x: (jnp.sin(x), x), backward)

    def loss(x):
        return jnp.sum(h(x) * 1e-30 * 1e-30)

    (finding,) = rad.audit(loss)(jnp.ones(3)).findings
    assert finding.line == loss.__code__.co_firstlineno + 1


def test_a_nan_in_a_constant_table_is_not_out_of_bounds():
    table = jnp.array([1.0, jnp.nan, 3.0])
    (finding,) = rad.audit(lambda x: jnp.sum(x * table[jnp.array([0, 1])]))(jnp.ones(2)).findings
    assert "constant or input" in finding.cause
    (finding,) = rad.audit(lambda x: jnp.sum(jnp.take(x, jnp.array([0, 7]))))(jnp.ones(2)).findings
    assert "out of bounds" in finding.cause


def test_a_masked_nan_input_does_not_hide_another_fault():
    def loss(w, x):
        return jnp.sum(w * jnp.where(jnp.isnan(x), 0.0, x)) + jnp.sum(jnp.sqrt(w - w))

    (finding,) = rad.audit(loss)(jnp.ones(2), jnp.array([1.0, jnp.nan])).findings
    assert finding.primitive == "sqrt"


def test_the_remainder_by_infinity_keeps_its_reference():
    report = rad.audit(lambda x: jnp.sum(jnp.fmod(x, jnp.inf) ** 2))(jnp.ones(3))
    assert report.ok
    assert report.reference is not None


def test_integer_operands_of_contractions():
    def loss(w, x):
        sizes = jnp.array([2, 1], jnp.int32)
        return jnp.sum(lax.ragged_dot(x, w, sizes) ** 2)

    assert rad.audit(loss)(jnp.ones((2, 4, 5)), jnp.ones((3, 4))).ok


def test_the_users_own_switches_do_not_stop_the_audit():
    def loss(x):
        return jnp.sum(jnp.where(x > 0, jnp.log(x), 0.0))

    for switch in (jax.debug_nans(True), jax.debug_infs(True), jax.disable_jit(True)):
        with switch:
            assert not rad.audit(loss)(jnp.array([0.0, 1.0])).ok


def test_mutable_arrays_are_refused_by_name():
    def loss(x):
        ref = jax.new_ref(x)
        ref[...] = ref[...] * 2
        return jnp.sum(ref[...])

    with pytest.raises(AuditError, match="mutable array"):
        rad.audit(loss)(jnp.ones(3))


def test_shards_are_audited():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def local(w, x):
        p = jax.nn.softmax(x @ w)
        return lax.pmean(-jnp.mean(jnp.log(p[:, 0])), "d")

    loss = jax.shard_map(local, mesh=mesh, in_specs=(spec(), spec("d")), out_specs=spec())
    w, x = jax.random.normal(jax.random.key(0), (3, 4)), jax.random.normal(jax.random.key(1), (16, 3))
    assert rad.audit(loss)(w, x).ok
    (finding,) = rad.audit(loss)(200 * w, x).findings
    assert (finding.kind, finding.line) == ("underflow", local.__code__.co_firstlineno + 1)


def test_nothing_is_said_of_code_that_is_right_before_it_compensates():
    """A Kahan sum beside a fault: its compensation is all rounding, and nobody's fault."""

    def loss(w, xs):
        def add(state, x):
            total, low = state
            y = w * x - low
            new = total + y
            return (new, (new - total) - y), None

        (total, _), _ = lax.scan(add, (jnp.float32(0), jnp.float32(0)), xs)
        return total + ((1 - jnp.cos(w * 1e-4)) * 1e9) ** 2

    (finding,) = rad.audit(loss)(jnp.float32(1), jnp.full(100, 0.1)).findings
    assert finding.kind == "cancellation"
    assert finding.line == loss.__code__.co_firstlineno + 8


def test_a_users_derivative_rule_is_code_like_any():
    @jax.custom_jvp
    def log_cosh(x):
        return jnp.abs(x) + jnp.log1p(jnp.exp(-2 * jnp.abs(x))) - jnp.log(2.0)

    @log_cosh.defjvp
    def rule(primals, tangents):
        (x,), (t,) = primals, tangents
        up, down = jnp.exp(x), jnp.exp(-x)
        return log_cosh(x), t * (up - down) / (up + down)

    (finding,) = rad.audit(lambda x: jnp.sum(log_cosh(x)))(jnp.full(3, 300.0)).findings
    assert (finding.kind, finding.phase, finding.primitive) == ("overflow", "backward", "exp")
    assert finding.line == rule.__code__.co_firstlineno + 3


def test_a_users_backward_rule_under_vmap():
    @jax.custom_vjp
    def unit(x):
        return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)

    def backward(x, ct):
        n = jnp.sqrt(jnp.sum(x * x))
        return (ct / n,)

    unit.defvjp(lambda x: (unit(x), x), backward)
    (finding,) = rad.audit(lambda x: jnp.sum(jax.vmap(unit)(x)))(jnp.array([[0.0, 0.0], [3.0, 4.0]])).findings
    assert finding.line == backward.__code__.co_firstlineno + 2
    assert finding.kind == "nan"


def test_a_wrong_value_with_a_right_gradient_is_a_note():
    def loss(w, x):
        return w**2 + 1e3 * jnp.mean((1 - jnp.cos(x)) * 1e6)

    report = rad.audit(loss)(jnp.float32(0.1), jnp.full(3, 1e-4))
    assert report.ok
    assert report.value_bits_lost > 12
    (note,) = report.notes
    assert (note.kind, note.reaches) == ("cancellation", ("value",))
    assert note.line == loss.__code__.co_firstlineno + 1


def hypotenuse_less_leg(x):
    return jnp.sqrt(x * x + 1) - x


def log_cosh_less_itself(x):
    return jnp.log(jnp.cosh(x)) - x


def differences_of_roots(x):
    return jnp.sum(jnp.sqrt(x + jnp.arange(4) * 1e-3) * jnp.array([1, -1, 1, -1.0]))


@pytest.mark.parametrize(
    "f,x,wrong_value",
    thinned(
        [(hypotenuse_less_leg, 1e3, True), (log_cosh_less_itself, 9.0, False), (differences_of_roots, 50.0, True)], 2
    ),
)
def test_the_sum_of_several_uses_is_no_part_of_a_rule(f, x, wrong_value):
    """x is used several times, and what comes back from its uses cancels: no fault of the rule of sqrt or cosh."""
    report = rad.audit(f)(x)
    (finding,) = report.findings
    assert (finding.kind, finding.line, finding.reaches) == ("cancellation", line(f, 1), ("x",))
    assert "the value is right" not in finding.cause
    notes = [(note.kind, note.line, note.reaches) for note in report.notes]
    assert notes == [("cancellation", line(f, 1), ("value",))] * wrong_value


def test_a_rule_that_cancels_is_told_apart_from_a_value_that_does():
    def f(x):
        return jnp.tanh(x) - 1

    report = rad.audit(f)(9.0)
    (finding,), (note,) = report.findings, report.notes
    assert (finding.kind, finding.reaches) == ("unstable-derivative", ("x",))
    assert (note.kind, note.reaches) == ("cancellation", ("value",))
    assert "the value is right" not in finding.cause
    for x in (9.0, -9.0):  # at one the rule's (g + g y) (1 - y) cancels in its difference, at the other in its sum
        (other,) = rad.audit(jnp.tanh)(x).findings
        assert (other.kind, "the value is right" in other.cause) == ("unstable-derivative", True)


def divided(z):
    p = jnp.exp(z) / jnp.sum(jnp.exp(z))
    return -jnp.log(p)[0]


def multiplied(z):
    p = jnp.exp(z) * (1 / jnp.exp(z).sum(-1, keepdims=True))
    return -jnp.log(p[0])


def spelled_out(z):
    p = jnp.exp(z[0]) / (jnp.exp(z[0]) + jnp.exp(z[1]))
    return jnp.log(p)


@pytest.mark.parametrize("f", [divided, multiplied, spelled_out])
def test_a_softmax_is_known_however_it_is_written(f):
    (finding,) = rad.audit(f)(jnp.array([-80.0, 30.0, 3.0])).findings
    assert (finding.kind, finding.line) == ("underflow", line(f, 1))
    assert "jax.nn.log_softmax" in finding.remedy
    assert "jax.nn.logsumexp" in finding.remedy


def test_a_quotient_is_no_softmax():
    (finding,) = rad.audit(lambda z: jnp.log(z[0] / z[1]))(jnp.array([1e-30, 1e20])).findings
    assert finding.kind == "underflow"
    assert "log(a) - log(b)" in finding.remedy


def test_an_infinite_input_is_named():
    (finding,) = rad.audit(lambda x, scale: jnp.sum(x * scale))(jnp.ones(2), jnp.array([1.0, jnp.inf])).findings
    assert "`scale` holds infinities" in finding.cause
