"""The audit beside `stabilize`: bits before and after, replacements as remedies, by the references of the original."""

import json

import jax
import jax.numpy as jnp

import robustad as rad
from robustad.diagnosis import _mending
from robustad.rewriting import Rewrite


def loss(w: jax.Array, x: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.log(jax.nn.softmax(x @ w)[:, 0]))


ARGS = (jnp.full((4, 3), 60.0).at[:, 0].set(-60.0), jnp.ones((8, 4)))


def test_replacements_are_named_as_remedies() -> None:
    report = rad.audit(loss, stabilized=True, ranking=False)(*ARGS)
    after = report.stabilized
    assert not report.ok and after is not None and after.ok
    assert max(b for b in after.bits_lost.values() if b is not None) < 4
    assert any("rad.stabilize: log(" in f.remedy for f in report.findings)
    assert "with rad.stabilize" in str(report) and "24.0 -> " in str(report)
    assert json.loads(report.to_json())["stabilized"]["ok"]


def test_a_good_gradient_is_not_looked_at_again() -> None:
    assert rad.audit(lambda w: jnp.sum(w**2), stabilized=True)(jnp.ones(3)).stabilized is None


def test_what_does_not_help_is_no_remedy() -> None:
    report = rad.audit(loss, stabilized=True, ranking=False)(*ARGS)
    (finding, *_) = report.findings
    rewrite = Rewrite(finding.file, finding.line, finding.function, "log-space", "a", "b", "c")
    nothing = _mending.Stabilized(False, dict.fromkeys(finding.reaches, 24.0), (rewrite,))
    plain = rad.audit(loss, ranking=False)(*ARGS).findings
    assert _mending.with_remedies(plain, nothing) == plain
