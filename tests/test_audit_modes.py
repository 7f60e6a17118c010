"""Forward mode, vector outputs, second order, and branches that rounding takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import robustad as rad
from robustad.diagnosis import AuditError
from tests._lines import line


def close_roots(x):
    upper = jnp.sqrt(x + 1)
    return {"gap": upper - jnp.sqrt(x), "sine": jnp.sin(x), "count": jnp.int32(3)}


def test_tangents_that_cancel_are_found():
    x = jnp.array([1e6, 2e7], jnp.float32)
    report = rad.audit(close_roots, mode="jvp")(x)
    assert not report.ok
    assert report.bits_lost["gap"] > 12 > report.bits_lost["sine"]
    assert report.bits_lost["count"] is None
    assert set(report.gradient) == {"gap", "sine", "count"}
    (finding,) = report.findings
    assert (finding.kind, finding.phase, finding.reaches) == ("cancellation", "backward", ("gap",))
    assert finding.line == line(close_roots, 2)
    true = 0.5 / np.sqrt(np.asarray(x, np.float64) + 1) - 0.5 / np.sqrt(np.asarray(x, np.float64))
    np.testing.assert_allclose(report.reference["gap"], true, rtol=1e-6)
    tangent = jax.jvp(close_roots, (x,), (jnp.ones_like(x),))[1]["gap"]
    np.testing.assert_allclose(report.gradient["gap"], tangent, rtol=1e-3, atol=1e-10)


def test_tangents_that_are_right_are_ok():
    def f(p, x):
        return jnp.tanh(x @ p["w"]) + p["b"], x.sum()

    p = {"w": jnp.ones((3, 2)) * 0.3, "b": jnp.zeros(2)}
    report = rad.audit(f, mode="jvp")(p, jnp.arange(6.0).reshape(2, 3))
    assert report.ok
    assert report.value.shape == (5,)
    assert report.gradient[0].shape == (2, 2)
    assert "audit f" in str(report)
    assert report.to_json()
    assert report.scalars()["ok"] == 1.0


def test_the_direction_is_the_users():

    def f(x):
        return x * jnp.array([1.0, 10.0])

    report = rad.audit(f, mode="jvp", tangents=jnp.array([0.0, 2.0]))(jnp.ones(2))
    np.testing.assert_array_equal(report.gradient, [0.0, 20.0])


def test_derivatives_of_gradients():
    """The second derivative of (1 - cos x)/x² is lost earlier than the first."""

    def f(x):
        return jnp.sum((1 - jnp.cos(x)) / x**2)

    x = jnp.array([0.05], jnp.float32)
    first, second = rad.audit(f)(x), rad.audit(f, order=2)(x)
    assert not second.ok
    assert second.bits_lost > first.bits_lost
    assert second.findings[0].line == line(f, 1)
    np.testing.assert_allclose(second.reference, -1 / 12 + np.asarray(x, float) ** 2 / 60, rtol=1e-3)
    assert not rad.audit(jax.grad(f), mode="jvp")(x).ok


def test_a_wrong_branch_is_found():
    def f(x, c):
        d = (x + c) - c
        return jnp.sum(jnp.where(d > 0.5, x**2, 3 * x))

    x, c = jnp.array([0.8, 20.0]), jnp.float32(1e8)
    report = rad.audit(f)(x, c)
    (finding,) = report.findings
    assert (finding.kind, finding.phase, finding.primitive) == ("branch-divergence", "forward", "gt")
    assert finding.line == line(f, 2)
    assert finding.reaches == ("x",)
    np.testing.assert_allclose(report.reference, [1.6, 40.0], rtol=1e-6)
    parts = [c for c in report.ranking if c.leaf == "x"]
    assert (parts[0].primitive, parts[0].line) == ("gt", line(f, 2))
    gap = np.linalg.norm(np.asarray(report.gradient, np.float64) - report.reference)
    assert sum(c.error for c in parts) == pytest.approx(gap, rel=1e-3)
    assert rad.audit(f)(x, jnp.float32(1.0)).ok


def test_a_wrong_branch_of_cond_in_a_scan_is_found():
    def f(p, c):
        def step(total, a):
            near = lax.cond((a + c) - c > 0.25, lambda: p * 3.0, lambda: p**3)
            return total + near, None

        return lax.scan(step, jnp.float32(0.0), jnp.array([0.3, 5.0, 300.0], jnp.float32))[0]

    report = rad.audit(f)(jnp.float32(2.0), jnp.float32(1e7))
    (finding,) = report.findings
    assert (finding.kind, finding.line) == ("branch-divergence", line(f, 2))
    assert float(report.reference) == 9.0


def test_a_kink_that_rounding_crosses_is_no_finding():
    """The value is the same on both sides of it."""

    def f(x, c):
        return jnp.sum(jax.nn.relu((x + c) - c) * 2.0 + jnp.abs(x) * 100.0)

    report = rad.audit(f)(jnp.array([1e-3, 3.0]), jnp.float32(1e5))
    assert all(finding.kind != "branch-divergence" for finding in report.findings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "forward"}, "`mode` must be"),
        ({"ranking": "all"}, "`ranking` must be True, False or None"),
        ({"order": 3}, "`order` must be"),
        ({"order": 2, "mode": "jvp"}, "audit `jax.grad"),
        ({"tangents": jnp.ones(3)}, "`tangents` belong to"),
        ({"mode": "jvp", "tangents": jnp.ones(4)}, "`tangents` must be like"),
        ({"order": 2, "tangents": (jnp.ones(3), 1.0)}, "`tangents` must be like"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(AuditError, match=message):
        rad.audit(lambda x: jnp.sum(x**2), **options)(jnp.ones(3))


def test_forward_mode_needs_floating_outputs():
    with pytest.raises(AuditError, match="floating arrays"):
        rad.audit(lambda x: jnp.argmax(x), mode="jvp")(jnp.ones(3))


def test_outputs_of_two_dtypes_in_forward_mode():
    with jax.numpy_dtype_promotion("strict"):
        report = rad.audit(lambda x: {"a": x.astype(jnp.bfloat16), "b": x**2}, mode="jvp")(jnp.ones(3))
    assert report.ok
