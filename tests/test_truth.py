"""Exact references: float64 shares the program's faults, and float64 programs have none of their own."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import robustad as rad
from robustad.diagnosis import _truth
from tests._lines import line
from tests._subset import thinned


def flat_cosine(x):
    return jnp.sum((1 - jnp.cos(x)) / x**2)


def log_tail(x):
    p = 0.5 * (1 + jax.scipy.special.erf(x))
    return jnp.sum(jnp.log(p))


def test_what_float64_confirms_is_found_out():
    """1 - cos(1e-9) is 0 in float64 as well: the two gradients agree on sin(x)/x², 1e9, and both are wrong."""
    plain = float(jax.grad(flat_cosine)(jnp.float32(1e-9)))
    with jax.enable_x64(True):
        assert plain == pytest.approx(float(jax.grad(flat_cosine)(jnp.float64(np.float32(1e-9)))), rel=1e-6)
    report = rad.audit(flat_cosine)(jnp.float32(1e-9))
    assert not report.ok
    assert report.reference == pytest.approx(-float(np.float32(1e-9)) / 12, rel=1e-12)
    (finding,) = report.findings
    assert (finding.kind, finding.line) == ("cancellation", line(flat_cosine, 1))


def test_the_cancellation_is_blamed_not_the_pole_behind_it():
    report = rad.audit(log_tail)(jnp.array([-9.0, 1.0], jnp.float32))
    (finding,) = report.findings
    assert (finding.kind, finding.line) == ("cancellation", line(log_tail, 1))
    with mpmath.workdps(60):
        true = [mpmath.npdf(x) / mpmath.ncdf(x) for x in (-9 * mpmath.sqrt(2), mpmath.sqrt(2))]
    np.testing.assert_allclose(
        report.reference, [float(t * mpmath.sqrt(2)) for t in true], rtol=1e-7
    )  # JAX's 2/sqrt(pi) is float32's


def test_programs_in_float64_have_a_reference():
    with jax.enable_x64(True):
        good = rad.audit(lambda x: jnp.sum(jnp.sin(x) ** 2))(jnp.array([0.3, 2.0]))
        bad = rad.audit(flat_cosine)(jnp.array([1e-5]))
    assert good.ok
    assert good.bits_lost < 8
    assert not bad.ok
    np.testing.assert_allclose(bad.reference, [-1e-5 / 12], rtol=1e-9)
    assert (bad.findings[0].kind, bad.findings[0].line) == ("cancellation", line(flat_cosine, 1))
    assert not any(note.kind == "reference-untrusted" for note in bad.notes)


def test_beyond_the_range_of_float64():
    """exp(-800) is 0 in float64 too; as its logarithm comes after it, that is the fault."""

    def f(x):
        p = jnp.exp(-x) * 3
        return jnp.sum(jnp.log(p + p * p))

    report = rad.audit(f)(jnp.array([800.0, 1.0]))
    np.testing.assert_allclose(report.reference, [-1.0, -1 - 3 / (3 + np.e)], rtol=1e-7)
    (finding,) = report.findings
    assert (finding.kind, finding.line) == ("underflow", line(f, 1))


def test_a_structural_zero_stays_one():
    """The gradient of a shift before a softmax is 0; exactly so in exact arithmetic."""

    def f(b, x):
        return -jnp.sum(jax.nn.log_softmax(x + b)[0])

    report = rad.audit(f)(jnp.float32(0.3), jnp.array([0.1, 0.7, -0.4]))
    assert report.ok, str(report)


def hypotenuse_less_leg(x):
    return jnp.sqrt(x * x + 1) - x


def surprisal(z):
    return -jax.nn.log_softmax(z)[0]


def certain(x):
    return 1 - jnp.tanh(x)


@pytest.mark.parametrize(
    "f,at,true",
    [
        (hypotenuse_less_leg, 1e6, -5e-13),
        (hypotenuse_less_leg, 1e8, -5e-17),  # 0 in float64 as well
        (surprisal, [30.0, 0.0, 1.0], [-3.479440e-13, 9.357623e-14, 2.543666e-13]),
        (lambda x: jnp.sum(certain(x)), [17.0, 18.0], [-6.8563e-15, -9.2789e-16]),
    ],
)
@pytest.mark.parametrize("mode", thinned(["vjp", "jvp"], 2))
def test_a_gradient_far_below_its_terms_is_no_structural_zero_where_it_is_known(f, at, true, mode):
    at, true = jnp.array(at), np.array(true)
    if mode == "jvp":
        first = jnp.zeros_like(at).at[..., :1].set(1) if at.ndim else jnp.ones(())
        report = rad.audit(f, mode="jvp", tangents=first)(at)
        true = true[0] if true.ndim else true
    else:
        report = rad.audit(f)(at)
    np.testing.assert_allclose(report.reference, true, rtol=2e-4)
    assert not report.ok
    assert report.findings


@pytest.mark.parametrize("x", thinned([8e5, 1e6, 1e7], 3))
def test_in_float64_too(x):
    with jax.enable_x64(True):
        report = rad.audit(hypotenuse_less_leg)(x)
    assert not report.ok
    assert report.bits_lost > 30


def test_float64_alone_knows_it_while_it_is_above_its_rounding(monkeypatch):
    def missing():
        raise ImportError("no python-flint")

    monkeypatch.setattr(_truth, "flint", missing)
    report = rad.audit(hypotenuse_less_leg)(1e6)
    assert not report.ok
    assert report.bits_lost == 24
    test_a_structural_zero_stays_one()


def test_undefined_stays_undefined():
    """0 * inf has no value in exact arithmetic either."""
    report = rad.audit(lambda x: jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0)))(jnp.array([0.0, 4.0]))
    assert report.reference is None
    assert [note.kind for note in report.notes] == ["reference-untrusted"]
    assert report.findings[0].kind == "zero-times-inf"


def test_without_python_flint_float64_is_what_there_is(monkeypatch):
    def missing():
        raise ImportError("no python-flint")

    monkeypatch.setattr(_truth, "flint", missing)
    report = rad.audit(log_tail)(jnp.array([-9.0, 1.0], jnp.float32))
    assert not report.ok
    assert report.reference is None


def test_what_is_too_large_or_has_no_rule_is_left_to_float64():
    def f(x):
        return jnp.sum(jnp.linalg.eigvalsh(x @ x.T)) * 0.0

    assert rad.audit(f)(jnp.eye(3)).ok  # no rule for eigh
    assert rad.audit(lambda x: jnp.sum(x @ x.T) * 0.0)(jnp.ones((200, 200))).ok
