"""The records of a walk tell of all iterations, branches and shards."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from robustad import _jaxpr
from robustad._interpret import Arithmetic, interpret
from robustad._jaxpr import Equation, Path
from robustad.arithmetic._shadow import ShadowArithmetic
from tests._laws import FLOAT32, mesh8, x4, x8
from tests._walking import assert_close


@dataclasses.dataclass(frozen=True)
class Tally(Arithmetic[Any]):
    """Plain arithmetic that records the sum of an equation's outputs, how often it ran, and in which iteration last."""

    paths: frozenset[Path]

    @property
    def watched(self) -> frozenset[Path]:
        return self.paths

    def lift(self, x: Any) -> Any:
        return jnp.asarray(x)

    def plain(self, value: Any) -> Any:
        return value

    def equation(self, eqn: Equation, operands: Sequence[Any], path: Path) -> tuple[list[Any], Any]:
        outs = _jaxpr.evaluate(eqn, operands)
        one = (jnp.sum(outs[0].astype(jnp.float32)), jnp.int32(1), jnp.int32(-1))
        return outs, one if path in self.watched else None

    def blank(self, path: Path, at: Path) -> Any:
        return jnp.float32(0), jnp.int32(0), jnp.int32(-1)

    def fold(self, path: Path, at: Path, record: Any, new: Any, iteration: Any) -> Any:
        total, count, last = record
        return total + new[0], count + new[1], jnp.where(new[1] > 0, iteration, last).astype(jnp.int32)


def tally(f: Callable[..., Any], *args: Any, primitive: str = "sin") -> list[tuple[float, int, int]]:
    """(total, count, last iteration of the outermost loop) of every equation of `primitive`, in program order."""
    program, _ = _jaxpr.trace(f, *args)
    watched = [s.path for s in _jaxpr.sites(program) if s.primitive == primitive]
    assert watched
    arithmetic = Tally(frozenset(watched))
    with jax.enable_x64(True):
        outs, records = jax.jit(lambda *xs: interpret(arithmetic, program, xs))(*jax.tree.leaves(args))
    for out, expected in zip(outs, jax.tree.leaves(jax.jit(f)(*args)), strict=True):
        assert_close(out, expected, FLOAT32)
    assert set(records) == set(watched)
    return [(float(t), int(c), int(i)) for t, c, i in (records[p] for p in watched)]


def assert_tally(got: tuple[float, int, int], total: Any, count: int, last: int) -> None:
    np.testing.assert_allclose(got[0], float(total), rtol=1e-5, atol=1e-6)
    assert got[1:] == (count, last)


sines = np.sin(np.asarray(x4))


@pytest.mark.parametrize("reverse", [False, True])
def test_records_of_a_scan(reverse: bool) -> None:
    """The position is that of the slice, whichever way the scan runs."""
    (got,) = tally(lambda x: lax.scan(lambda c, v: (c + jnp.sin(v), c), jnp.float32(0), x, reverse=reverse), x4)
    assert_tally(got, sines.sum(), 4, 0 if reverse else 3)


def test_records_of_nested_loops_and_calls() -> None:
    inner = jax.jit(lambda v, w: jnp.sin(v) * w)

    def f(x: Any) -> Any:
        return lax.scan(lambda c, v: (c, lax.map(lambda w: inner(v, w), x)), 0.0, x)[1]

    (got,) = tally(f, x4)
    assert_tally(got, 4 * sines.sum(), 16, 3)


def test_records_outside_loops_and_of_several_equations() -> None:
    def f(x: Any) -> Any:
        return jax.jit(jnp.sin)(x) + lax.fori_loop(0, 3, lambda i, v: jnp.sin(v), x)

    first, second = tally(f, x4)
    assert_tally(first, sines.sum(), 1, -1)
    s = np.asarray(x4)
    total = sum((s := np.sin(s)).sum() for _ in range(3))
    assert_tally(second, total, 3, 2)


def test_records_of_a_branch() -> None:
    """A branch that is not taken leaves a blank."""

    def f(x: Any) -> Any:
        return lax.cond(x[0] > 5, lambda a: jnp.sin(a), lambda a: jnp.sin(-a), x)

    taken, not_taken = tally(f, x4)  # branches stand as (false, true)
    assert_tally(not_taken, 0, 0, -1)
    assert_tally(taken, -sines.sum(), 1, -1)


def test_records_of_a_branch_in_a_loop() -> None:
    def step(c: Any, v: Any) -> Any:
        return c, lax.cond(v > 0, lambda a: jnp.sin(a), lambda a: a, v)

    (got,) = tally(lambda x: lax.scan(step, 0.0, x)[1], x4)
    positive = np.asarray(x4) > 0
    assert 0 < positive.sum() < 4
    assert_tally(got, sines[positive].sum(), positive.sum(), int(np.flatnonzero(positive)[-1]))


def test_records_of_a_while_loop() -> None:
    """Of its condition, the last time too, when it stops the loop."""

    def f(x: Any) -> Any:
        return lax.while_loop(lambda s: jnp.sin(s[0]) < 0.5, lambda s: (s[0] + 1, jnp.sin(s[1])), (jnp.float32(-2), x))[
            1
        ]

    condition, body = tally(f, x4)
    assert_tally(condition, sum(np.sin(np.arange(-2.0, 2.0))), 4, 3)
    s = np.asarray(x4)
    total = sum((s := np.sin(s)).sum() for _ in range(3))
    assert_tally(body, total, 3, 2)


def test_records_of_a_loop_that_does_not_run() -> None:
    (got,) = tally(lambda x: lax.while_loop(lambda v: v[0] > 99, jnp.sin, x), x4)
    assert_tally(got, 0, 0, -1)


@pytest.mark.parametrize("checked", [True, False], ids=["check_vma", "unchecked"])
def test_records_of_shards(checked: bool) -> None:
    """Each device's record counts, those inside a loop of the shard too."""

    def shard(x: Any) -> Any:
        return lax.fori_loop(0, 2, lambda i, v: jnp.sin(v), x) + jnp.sin(2 * lax.psum(x, "i"))

    f = jax.shard_map(shard, mesh=mesh8(), in_specs=P("i"), out_specs=P("i"), check_vma=checked)
    looped, summed = tally(f, x8)
    once = np.sin(np.asarray(x8))
    assert_tally(looped, once.sum() + np.sin(once).sum(), 16, 7)
    assert_tally(summed, 8 * np.sin(2 * np.asarray(x8).sum()), 8, 7)


def test_records_in_a_transposed_scan() -> None:
    """The backward pass runs from the last slice to the first."""

    def f(x: Any) -> Any:
        return lax.scan(lambda c, v: (c * v, jnp.exp(v)), jnp.float32(1), x)[1].sum()

    *_, backward = tally(jax.grad(f), x4, primitive="mul")
    assert backward[1:] == (4, 0)


def test_terms_of_each_slice_and_of_the_last_iteration() -> None:
    """ShadowArithmetic's own records: per iteration of one loop, and of the last iteration only."""

    def f(x: Any) -> Any:
        return lax.scan(lambda c, v: (jnp.sum(jnp.stack([v, -v])), None), jnp.float32(0), x)[0]

    program, _ = _jaxpr.trace(f, x4)
    (path,) = [s.path for s in _jaxpr.sites(program) if s.primitive == "reduce_sum"]
    loop = path[:1]
    size = 2 * np.abs(np.asarray(x4, np.float64))

    def record(**kinds: Any) -> Any:
        arithmetic = ShadowArithmetic(frozenset({path}), **kinds)
        with jax.enable_x64(True):
            records = jax.jit(lambda x: interpret(arithmetic, program, [arithmetic.lift(x)])[1])(x4)
            return np.asarray(records[path])

    np.testing.assert_allclose(record(per_iteration=frozenset({(path, loop, 4)})), size, rtol=1e-12)
    np.testing.assert_allclose(record(last_only=frozenset({(path, loop)})), size[-1], rtol=1e-12)
    np.testing.assert_allclose(record(), size.sum(), rtol=1e-12)
