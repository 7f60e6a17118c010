"""The ranking: errors add up, the statement that made them is named, and the problem's own condition is told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import robustad as rad
from robustad.arithmetic import _exact_contribution
from robustad.diagnosis._audit import audit
from robustad.diagnosis._program import derivative_program
from robustad.diagnosis._ranking import rank
from tests._lines import line
from tests._subset import thinned


def ranked(f, *args):
    """What the errors of f's value and gradient leaves are made of, by name."""
    audited = derivative_program(f, 0, False, args, {})
    wanted = [(k, name, np.ones(1, bool)) for k, name in enumerate(["value", *audited.names])]
    with jax.enable_x64(True):
        return audited, rank(audited, wanted)


def raw_variance(x):
    mean = jnp.mean(x)
    square = jnp.mean(x * x)
    return jnp.sqrt(square - mean**2)


def recurrence(x):
    def step(c, a):
        c = jnp.sin(c * a) + 0.3 * c
        return c, c * a

    c, ys = lax.scan(step, x[0], x)
    return c + jnp.sum(ys**2)


def network(w):
    x = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
    h = jax.nn.softmax(jnp.tanh(x @ w), axis=-1)
    return -jnp.sum(jnp.log(h[:, 0])) + jnp.max(h) + jnp.prod(h[0]) + jnp.linalg.norm(h)


def solved(a):
    m = a @ a.T + jnp.eye(3) * 0.1
    return (
        jnp.sum(jnp.linalg.solve(m, jnp.arange(3.0))) + jnp.linalg.slogdet(m)[1] + jnp.sum(jnp.linalg.eigh(m)[0] ** 2)
    )


X = jax.random.normal(jax.random.key(0), (4, 3), jnp.float32)
PROGRAMS = {
    "scan": (recurrence, X[:, 0]),
    "network": (network, X[:3]),
    "linear algebra": (solved, X[:3]),
    "vmap and cond": (lambda x: jnp.sum(jax.vmap(lambda r: lax.cond(r[0] > 0, jnp.sin, jnp.exp, r[1]) * r[2])(x)), X),
    "remat": (jax.checkpoint(lambda x: jnp.sum(jnp.exp(jnp.sin(x)) / (2 + jnp.cos(x)))), X),
    "complex": (lambda x: jnp.sum(jnp.abs(jnp.fft.fft(x)) ** 2) + jnp.sum(jnp.real(jnp.exp(1j * x))), X),
    "convolution": (lambda w: jnp.sum(jnp.convolve(jnp.arange(9.0) * 0.37, w[:, 0], mode="same") ** 3), X),
    "bfloat16": (lambda x: jnp.sum(jnp.tanh(x.astype(jnp.bfloat16)) ** 2).astype(jnp.float32), X),
}


@pytest.mark.parametrize("name", thinned(list(PROGRAMS), 3))
def test_the_contributions_add_up_to_the_error(name):
    f, x = PROGRAMS[name]
    _, found = ranked(f, x)
    assert found, "nothing was rounded"
    for one in found.values():
        assert sum(one.shares.values()) == pytest.approx(1, abs=1e-6)
        assert one.error > 0


def test_they_add_up_where_the_error_is_larger_than_the_truth():
    """First-order estimates do not: the population is chaotic, and rounding grows until it can grow no more."""

    def population(r):
        def year(x, _):
            return r * x * (1 - x), None

        return lax.scan(year, jnp.float32(0.3), None, length=60)[0]

    _, found = ranked(population, jnp.float32(3.9))
    assert sum(found["value"].shares.values()) == pytest.approx(1, abs=1e-6)
    report = audit(population)(jnp.float32(3.9))
    assert report.findings[0].kind == "ill-conditioned"
    assert report.leaves[0].conditioning > 0.8 * report.leaves[0].worst


def test_the_share_of_a_planted_error_is_all_of_it():
    def planted(x):
        y = jnp.sin(x)
        z = lax.reduce_precision(y, 8, 7)
        return jnp.sum(z**3)

    x = jnp.linspace(0.2, 1.4, 5)
    report = audit(planted, ranking=True, threshold=1.0)(x)
    first = next(c for c in report.ranking if c.leaf == "x")
    assert (first.line, first.primitive) == (line(planted, 2), "reduce_precision")
    assert first.share == pytest.approx(1, abs=1e-2)
    x = np.asarray(x, np.float64)
    truth = 3 * np.sin(x) ** 2 * np.cos(x)
    gap = np.linalg.norm(np.asarray(report.gradient, np.float64) - truth)
    assert first.error == pytest.approx(gap, rel=0.05)


def test_where_the_rounding_was_made_is_another_line():
    def f(x):
        c = jnp.cos(x)
        d = 1 - c
        return jnp.sum(d / x**2)

    (finding,) = audit(f)(jnp.array([2e-3, 1e-3])).findings
    assert (finding.line, finding.committed_at) == (line(f, 2), line(f, 1))
    assert finding.committed_file == finding.file == __file__

    def g(x):
        return jnp.sum((1 - jnp.cos(x)) / x**2)

    (finding,) = audit(g)(jnp.array([2e-3, 1e-3])).findings
    assert (finding.line, finding.committed_at, finding.committed_file) == (line(g, 1), None, None)


def test_condition_and_program_are_told_apart():
    """E[x²]-E[x]² loses twice the bits that its condition does; the two-pass form is the same problem."""
    x = 2000 + jax.random.normal(jax.random.key(1), (64,), jnp.float32)

    def two_passes(x):
        return jnp.sqrt(jnp.mean((x - jnp.mean(x)) ** 2))

    (leaf,) = audit(raw_variance)(x).leaves
    (same,) = audit(two_passes, ranking=True)(x).leaves
    assert leaf.worst > 12
    assert leaf.conditioning < 0.6 * leaf.worst
    assert same.worst < 8
    assert leaf.conditioning == pytest.approx(same.conditioning, abs=4) or same.worst < leaf.conditioning


def test_a_problem_that_no_rewrite_can_help():
    def distance_to_a_pole(p):
        return 1 / jnp.sin(p * 1e4) ** 2

    report = audit(distance_to_a_pole)(jnp.float32(np.pi * 1.0000001))
    assert not report.ok
    assert report.findings[0].kind == "ill-conditioned"
    assert report.leaves[0].conditioning > 0.5 * report.leaves[0].worst


def test_a_leaf_that_is_not_finite_hides_no_other():
    def loss(p):
        masked = jnp.sum(jnp.where(p["a"] > 0, jnp.sqrt(p["a"]), 0.0))
        return (1 - jnp.cos(p["b"])) / p["b"] ** 2 + masked

    report = rad.audit(loss)({"a": jnp.array([0.0, 4.0]), "b": jnp.float32(1e-3)})
    assert {leaf.name: leaf.nonfinite for leaf in report.leaves} == {"a": 1, "b": 0}
    shares = {one.line: one.share for one in report.ranking if one.leaf == "b"}
    assert shares == {loss.__code__.co_firstlineno + 2: pytest.approx(1.0, abs=1e-3)}


def test_no_ranking_is_made_where_none_is_wanted():
    x = jnp.array([2e-3, 1e-3])
    assert audit(lambda x: jnp.sum(x**3))(x).ranking == ()

    def wrong(x):
        return jnp.sum((1 - jnp.cos(x)) / x**2)

    assert audit(wrong)(x).ranking
    assert audit(wrong, ranking=False)(x).ranking == ()
    assert audit(lambda x: jnp.sum(jnp.sin(x) ** 3), ranking=True)(x).ranking


def test_a_while_loop_is_one_equation():
    """Reverse mode does not pass through it: what it loses counts as its own."""

    def f(x):
        root = lax.stop_gradient(lax.while_loop(lambda y: jnp.abs(y * y - x) > 1e-4, lambda y: 0.5 * (y + x / y), x))
        return jnp.sin(root) * x

    _, found = ranked(f, jnp.float32(2.0))
    assert sum(found["value"].shares.values()) == pytest.approx(1, abs=1e-6)


def test_the_ranking_is_in_the_json():
    report = rad.audit(lambda x: jnp.sum((1 - jnp.cos(x)) / x**2))(jnp.array([2e-3]))
    assert '"share"' in report.to_json()
    assert report.scalars()["ok"] == 0.0


def flat_cosine(x):
    c = jnp.cos(x)
    d = 1 - c
    return jnp.sum(d / x**2)


def adds_up(report, name):
    """The listed contributions to a leaf over its error."""
    gap = np.linalg.norm(np.asarray(report.gradient, np.float64) - report.reference)
    return sum(c.error for c in report.ranking if c.leaf == name) / gap


@pytest.mark.parametrize("dtype", thinned(["float32", "float64"], 2))
def test_where_float64_is_no_reference_exact_twins_are(dtype):
    """float64 loses 1 - cos(1e-9) as float32 does: beside float64 there would be no error to take apart."""
    with jax.enable_x64(dtype == "float64"):
        report = audit(flat_cosine)(jnp.array([1e-9, 2e-9] if dtype == "float32" else [1e-7, 2e-7], dtype))
    (finding,) = report.findings
    assert (finding.line, finding.committed_at) == (line(flat_cosine, 2), line(flat_cosine, 1))
    first = next(c for c in report.ranking if c.leaf == "x")
    assert (first.primitive, first.line) == ("cos", line(flat_cosine, 1))
    assert adds_up(report, "x") == pytest.approx(1, abs=1e-3)


def test_exact_contributions_pass_loops_and_branches():
    def loss(x, n):
        def step(total, a):
            near = lax.cond(a > 0, lambda: 1 - jnp.cos(x * a), lambda: x * 0)
            return total + near, near

        total, parts = lax.scan(step, jnp.float32(0), jnp.array([1.0, -1.0, 2.0], jnp.float32))
        counted = lax.while_loop(lambda k: k < n, lambda k: k + 1.0, jnp.float32(0))
        return (total + parts[2]) / x**2 + lax.stop_gradient(counted)

    report = audit(loss)(jnp.float32(1e-9), 3.0)
    (finding,) = report.findings
    assert (finding.kind, finding.line) == ("cancellation", line(loss, 2))
    assert report.ranking[0].primitive == "cos"
    assert adds_up(report, "x") == pytest.approx(1, abs=1e-3)


def test_beside_exact_twins_only_small_programs_have_a_ranking(monkeypatch):
    monkeypatch.setattr(_exact_contribution, "MOST", 3)
    report = audit(flat_cosine)(jnp.array([1e-9]))
    assert not report.ok and report.findings and not report.ranking
