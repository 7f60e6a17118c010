"""Twins that leave the range of float64: what underflows in both precisions alike is still blamed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustad as rad
from robustad import _jaxpr
from robustad.arithmetic._edges import LARGEST, TINIEST, within_range
from robustad.diagnosis import _audit
from tests._lines import line
from tests._subset import thinned


@pytest.mark.parametrize(
    ("f", "operands", "expected"),
    [
        (jnp.exp, (-1e4,), TINIEST),
        (jnp.exp, (1e4,), LARGEST),
        (jnp.exp, (-np.inf,), 0.0),
        (jnp.exp, (np.inf,), np.inf),
        (jnp.multiply, (1e-200, -1e-200), -TINIEST),
        (jnp.multiply, (0.0, 3.0), 0.0),
        (jnp.multiply, (0.0, np.inf), np.nan),
        (jnp.multiply, (1e200, -1e200), -LARGEST),
        (jnp.divide, (1.0, 0.0), np.inf),
        (jnp.divide, (1e-200, 1e200), TINIEST),
        (jnp.add, (1.5e308, 1.5e308), LARGEST),
        (jnp.add, (1.0, -1.0), 0.0),
        (jnp.prod, ([1e-200, 1e-200],), TINIEST),
        (jnp.prod, ([1e-200, 0.0],), 0.0),
        (jnp.log, (0.0,), -np.inf),
    ],
)
def test_what_leaves_the_range_stays_at_its_edge(f, operands, expected):
    with jax.enable_x64(True):
        operands = [jnp.asarray(x, jnp.float64) for x in operands]
        eqn = _jaxpr.trace(f, *operands)[0].equations[0]
        (out,) = within_range(eqn, operands, _jaxpr.evaluate(eqn, operands))
        np.testing.assert_array_equal(np.asarray(out), expected)


def probability(w, x):
    p = jax.nn.softmax(2e3 * jnp.tanh(x @ w))
    return -jnp.mean(jnp.log(p[:, 0]))


def product(w, x):
    p = jnp.prod(jax.nn.sigmoid(x @ w) * 1e-30, axis=-1)
    return jnp.sum(jnp.log(p))


def exp(w, x):
    e = jnp.exp(1e3 * (1 + jnp.abs(x @ w)))  # every one: which of them is shown is a question of roundings
    return jnp.mean(jnp.log(jnp.sum(e, -1)))


@pytest.mark.parametrize(
    ("loss", "at", "kind"),
    thinned([(exp, 1, "overflow"), (probability, 1, "underflow"), (product, 1, "underflow")], 3),
)
def test_large_programs_whose_float64_leaves_its_range_too(loss, at, kind, monkeypatch):
    """Without an exact reference: the statement that underflows is blamed, not the logarithm that shows it."""
    monkeypatch.setattr(_audit, "EXACT_LIMIT", 1.0)
    w, x = jax.random.normal(jax.random.key(0), (16, 16)) * 0.3, jax.random.normal(jax.random.key(1), (8, 16)) + 1
    report = rad.audit(loss)(w, x)
    (finding,) = report.findings
    assert (finding.kind, finding.line) == (kind, line(loss, at))
    assert ("more than 1.79769e+308" if kind == "overflow" else "truly") in finding.cause
    assert np.isnan(report.value) or np.isinf(report.value)
