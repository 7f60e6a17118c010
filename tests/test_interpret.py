"""Laws of the walk: walked(f)(x) is f(x), through every control flow; records tell of all iterations."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from robustad import _jaxpr
from robustad._interpret import interpret
from robustad._jaxpr import Equation, Path
from robustad.arithmetic._shadow import ShadowArithmetic
from tests._walking import assert_close, assert_typed, in_float64, shadows, walk

FLOAT32 = 1e-6  # the walk fuses otherwise than the plain program: a few ulp
TWIN = 1e-11

x4, x8, m4 = (
    jnp.asarray(np.random.default_rng(k).uniform(-1, 1, s), jnp.float32) for k, s in enumerate((4, 8, (4, 4)))
)


# ------------------------------------------------------------------------------------------------------ the programs


def jitted(x: Any) -> Any:
    return jax.jit(lambda a: jnp.sin(a) * x)(x) + 1


def jitted_twice(x: Any) -> Any:
    inner = jax.jit(lambda a: jnp.tanh(a) * 2)
    outer = jax.jit(lambda a: inner(a) + inner(a * a))
    return outer(x) * inner(x)


def scan_forward(x: Any) -> Any:
    carry, ys = lax.scan(lambda c, v: (c * v + 0.5, jnp.sin(c)), jnp.ones((), x.dtype), x)
    return carry + ys


def scan_reversed(x: Any) -> Any:
    carry, ys = lax.scan(lambda c, v: (c * v + 0.5, c - v), jnp.ones((), x.dtype), x, reverse=True)
    return carry * ys


def scan_unrolled(x: Any) -> Any:
    return lax.scan(lambda c, v: (c * v + 0.5, c - v), jnp.ones((), x.dtype), x, unroll=3)[1]


def scan_without_carry(x: Any) -> Any:
    return lax.scan(lambda _, v: (None, jnp.exp(v) * x), None, x)[1]


def scan_without_xs(x: Any) -> Any:
    return lax.scan(lambda c, _: (jnp.sin(c) * x, None), x, None, length=5)[0]


def scan_of_integers(x: Any) -> Any:
    (_, total), steps = lax.scan(lambda c, v: ((c[0] + 1, c[1] + v * c[0]), c[0]), (0, jnp.zeros((), x.dtype)), x)
    return total * steps


def scans_nested(x: Any) -> Any:
    def outer(c: Any, v: Any) -> Any:
        inner, ys = lax.scan(lambda a, w: (a * w + v, a + c), c, x)
        return inner / 2, jnp.sum(ys)

    return lax.scan(outer, jnp.ones((), x.dtype), x)[1]


def scan_of_length_zero(x: Any) -> Any:
    return lax.scan(lambda c, v: (c * v, c), x, jnp.zeros((0, x.size), x.dtype))[0] * 2


def mapped_sequentially(x: Any) -> Any:
    return lax.map(lambda v: jnp.sin(v) * v, x)


def associative(x: Any) -> Any:
    return lax.associative_scan(lambda a, b: a * b + a, x)


def while_loop(x: Any) -> Any:
    def step(state: Any) -> Any:
        i, v = state
        return i + 1, jnp.sin(v) * 1.5 + x

    return lax.while_loop(lambda s: (s[0] < 6) & (jnp.sum(s[1]) < 100), step, (0, x))[1]


def while_on_a_value(x: Any) -> Any:
    """As many steps as the working values ask for."""
    return lax.while_loop(lambda v: jnp.max(jnp.abs(v)) > 0.125, lambda v: v * 0.75, x)


def fori_static(x: Any) -> Any:
    return lax.fori_loop(0, 5, lambda i, v: v * jnp.cos(v) + i, x)


def fori_dynamic(x: Any) -> Any:
    return lax.fori_loop(0, 1 + (x[0] > -5).astype(jnp.int32) * 4, lambda i, v: v * jnp.cos(v) + i, x)


def cond_of_two(x: Any) -> Any:
    return lax.cond(x[0] > 0, lambda a: jnp.sin(a), lambda a: a * a, x) + lax.cond(x[0] <= 0, jnp.exp, jnp.cos, x)


def switch_of_many(x: Any) -> Any:
    branches = [jnp.sin, jnp.cos, lambda a: a**3, jnp.exp]
    picked = [lax.switch(i, branches, x) for i in (0, 2)]
    return sum(picked) * lax.switch((x[1] > 0).astype(jnp.int32) + 2, branches, x)


def cond_in_scan_in_while(x: Any) -> Any:
    def step(c: Any, v: Any) -> Any:
        return lax.cond(v > 0, lambda a: a * 0.5 + v, lambda a: jnp.sin(a) - v, c), c

    return lax.fori_loop(0, 1 + (x[0] > -5).astype(jnp.int32), lambda i, a: lax.scan(step, a[0], a)[1] + i, x)


@jax.custom_jvp
def straight_through(x: Any) -> Any:
    return jnp.round(x * 4) / 4


@straight_through.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return straight_through(*primals), tangents[0] * 3


@jax.custom_vjp
def reversal(x: Any) -> Any:
    return jnp.sin(x)


reversal.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda cos, t: (-2 * cos * t,))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scaled(k: float, x: Any) -> Any:
    return k * x * x


scaled.defvjp(lambda k, x: (k * x * x, x), lambda k, x, t: (k * x * t,))


def custom_jvp(x: Any) -> Any:
    return straight_through(jnp.sin(x)) * x


def custom_vjp(x: Any) -> Any:
    return reversal(x) * x + scaled(0.5, x)


def checkpointed(x: Any) -> Any:
    return jax.checkpoint(lambda a: jnp.sin(jnp.sin(a) @ m4.astype(a.dtype)))(x) * x


def checkpointed_saving_dots(x: Any) -> Any:
    block = jax.checkpoint(
        lambda a: jnp.sin(jnp.sin(a) @ m4.astype(a.dtype)), policy=jax.checkpoint_policies.dots_saveable
    )
    return lax.scan(lambda c, _: (block(c), None), x, None, length=3)[0]


def solved(x: Any) -> Any:
    return jnp.linalg.solve(m4.astype(x.dtype) + 4 * jnp.eye(4, dtype=x.dtype), jnp.sin(x))


def solved_by_definition(x: Any) -> Any:
    a = jnp.diag(4 + x)
    return lax.custom_linear_solve(
        lambda v: a @ v, x * x, lambda _, b: b / jnp.diag(a), lambda _, b: b / jnp.diag(a), symmetric=True
    )


def conjugate_gradients(x: Any) -> Any:
    a = jnp.eye(4, dtype=x.dtype) * 4 + jnp.outer(x, x)
    return jax.scipy.sparse.linalg.cg(lambda v: a @ v, jnp.sin(x), maxiter=8, tol=1e-10)[0]


def root(x: Any) -> Any:
    def newton(f: Any, v: Any) -> Any:
        return lax.fori_loop(0, 30, lambda _, y: y - f(y) / (3 * y * y + 1), v)

    return lax.custom_root(lambda y: y**3 + y - x, jnp.ones_like(x), newton, lambda g, y: y / g(jnp.ones_like(y)))


def noisy(x: Any) -> Any:
    noise = jax.random.normal(jax.random.key(0), x.shape, jnp.float32).astype(x.dtype)
    kept = jax.random.bernoulli(jax.random.key(1), jnp.float32(0.5), x.shape)
    return jnp.where(kept, x * noise, 0)


def noisy_scan(x: Any) -> Any:
    def step(state: Any, v: Any) -> Any:
        key, c = state
        key, new = jax.random.split(key)
        return (key, c * v + jax.random.uniform(new, (), jnp.float32).astype(v.dtype)), c

    return lax.scan(step, (jax.random.key(0), jnp.zeros((), x.dtype)), x)[1]


def platform(x: Any) -> Any:
    return lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)


@custom_partitioning
def partitioned(x: Any) -> Any:
    return jnp.sin(x) * 2


partitioned.def_partition(partition=lambda mesh, args, result: (mesh, jnp.sin, result, ()), sharding_rule="... -> ...")


@jax.custom_batching.custom_vmap
def batched(x: Any) -> Any:
    return jnp.sin(x)


@batched.def_vmap
def _(size: int, in_batched: Any, x: Any) -> Any:
    return jnp.sin(x), in_batched[0]


MODULAR = [jitted, jitted_twice, scan_forward, scan_reversed, scan_unrolled, scan_without_carry, scan_without_xs]
MODULAR += [scan_of_integers, scans_nested, scan_of_length_zero, mapped_sequentially, associative, fori_static]
MODULAR += [cond_of_two, switch_of_many, custom_jvp, custom_vjp, checkpointed, checkpointed_saving_dots]
MODULAR += [solved, solved_by_definition, noisy_scan, platform]
FORWARD_ONLY = [while_loop, while_on_a_value, fori_dynamic, cond_in_scan_in_while, partitioned, batched]
UNCOMPARABLE = [conjugate_gradients, noisy, root]
"""Stops by a tolerance of the dtype's; draws through a float32 erf_inv; is opaque from jax 0.12 on, and so lost."""


def derivative(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return jax.value_and_grad(lambda x: jnp.sum(f(x) * jnp.cos(f(x))))


def over_rows(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: jax.vmap(f)(jnp.stack([x, x * x, -x]))


TRANSFORMS: dict[str, Callable[[Callable[[Any], Any]], Callable[[Any], Any]]] = {
    "plain": lambda f: f,
    "grad": derivative,
    "vmap": over_rows,
    "vmap of grad": lambda f: over_rows(derivative(f)),
}
CASES = [(f, t) for f in MODULAR + UNCOMPARABLE for t in ("grad", "vmap")]
CASES += [(f, t) for f in FORWARD_ONLY for t in ("plain", "vmap") if (f, t) != (partitioned, "vmap")]
CASES += [(f, "vmap of grad") for f in (scan_forward, cond_of_two, custom_vjp, checkpointed_saving_dots, solved)]


def check(f: Callable[..., Any], *args: Any, float64: bool = True, tolerance: float = FLOAT32) -> None:
    """Working values are the plain program's, twins the float64 program's (or near the working values)."""
    walked, plain = walk(f, *args), jax.jit(f)(*args)
    for value, expected in zip(shadows(walked), jax.tree.leaves(plain), strict=True):
        assert_typed(value)
        assert value.working.dtype == expected.dtype
        assert_close(value.working, expected, tolerance)
    twins = [v for v in shadows(walked) if v.high is not None]
    if float64:
        exact = [e for e in jax.tree.leaves(in_float64(f, *args)) if jnp.issubdtype(e.dtype, jnp.inexact)]
        for value, expected in zip(twins, exact, strict=True):
            assert_close(value.high, expected, TWIN)
    working, high = (np.concatenate([getattr(v, part).ravel() for v in twins]) for part in ("working", "high"))
    assert_close(high, working, 1e-4)


@pytest.mark.parametrize("f,transform", CASES, ids=lambda v: getattr(v, "__name__", v))
def test_walk_computes_the_program(f: Callable[[Any], Any], transform: str) -> None:
    check(TRANSFORMS[transform](f), x4, float64=f not in UNCOMPARABLE)


def test_custom_rules_are_respected() -> None:
    """The derivatives are the rules', not those of the bodies."""
    x = jnp.float32(0.3)
    assert float(walk(jax.grad(straight_through), x).high) == 3.0
    np.testing.assert_allclose(walk(jax.grad(reversal), x).high, -2 * np.cos(np.float64(x)), rtol=1e-14)
    np.testing.assert_allclose(walk(jax.grad(partial(scaled, 0.5)), x).high, 0.5 * np.float64(x), rtol=1e-14)


def test_twin_takes_as_many_steps_as_the_working_program() -> None:
    """In bfloat16 the loop steps over the bound that the twin steps up to."""

    def f(x: Any) -> Any:
        def step(state: Any) -> Any:
            v, n = state
            return (v + 0.75).astype(jnp.bfloat16), n + 1

        return lax.while_loop(lambda s: s[0] < 4, step, (x.astype(jnp.bfloat16), 0))

    value, n = walk(f, jnp.float32(0.001))
    assert float(value.high) == np.float64(np.float32(0.001)) + 0.75 * int(n.working)


def test_optimized_remat_of_a_custom_vjp() -> None:
    @partial(jax.custom_vjp)
    def f(x: Any) -> Any:
        return jnp.sin(x)

    f.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda cos, t: (3 * cos * t,), optimize_remat=True)
    check(jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda a: f(a) * a)(x))), x4)
    check(lambda x: jax.vjp(f, x)[0], x4)


# ---------------------------------------------------------------------------------------------------------- shard_map


def mesh8() -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))


COLLECTIVES: dict[str, Callable[[Any], Any]] = {
    "psum": lambda x: x * lax.psum(jnp.sin(x), "i"),
    "pmean": lambda x: x - lax.pmean(x * x, "i"),
    "all_gather": lambda x: jnp.sum(lax.all_gather(jnp.sin(x), "i") * x, 0),
    "ppermute": lambda x: x * lax.ppermute(jnp.sin(x), "i", [(k, (k + 3) % 8) for k in range(8)]),
    "psum_scatter": lambda x: lax.psum_scatter(jnp.outer(jnp.arange(8, dtype=x.dtype), x * x), "i")[:1] * x,
    "all_to_all": lambda x: jnp.sum(lax.all_to_all(jnp.tile(jnp.sin(x), 8), "i", 0, 0, tiled=True)) * x,
    "axis_index": lambda x: x * x * lax.axis_index("i"),
    "loop": lambda x: lax.scan(lambda c, _: (lax.psum(jnp.sin(c), "i") / 8 + x, None), x, None, length=3)[0],
    "branch": lambda x: lax.cond(lax.axis_index("i") % 2 == 0, jnp.sin, jnp.cos, x),
}


@pytest.mark.parametrize("transform", ["grad", "vmap"])
@pytest.mark.parametrize("checked", [True, False], ids=["check_vma", "unchecked"])
@pytest.mark.parametrize("name", COLLECTIVES)
def test_shard_map(name: str, checked: bool, transform: str) -> None:
    def f(x: Any) -> Any:
        return jax.shard_map(COLLECTIVES[name], mesh=mesh8(), in_specs=P("i"), out_specs=P("i"), check_vma=checked)(x)

    check(TRANSFORMS[transform](f), x8)


@pytest.mark.parametrize("checked", [True, False], ids=["check_vma", "unchecked"])
def test_gradient_inside_shard_map(checked: bool) -> None:
    """Data-parallel training: replicated weights, a sharded batch, the gradient taken inside."""

    def local(w: Any, x: Any) -> Any:
        value, g = jax.value_and_grad(lambda w: jnp.mean(jnp.tanh(x @ w) ** 2))(w)
        return lax.pmean(value, "i"), lax.pmean(g, "i") if not checked else g / 8

    def step(w: Any, x: Any) -> Any:
        return jax.shard_map(local, mesh=mesh8(), in_specs=(P(), P("i")), out_specs=P(), check_vma=checked)(w, x)

    check(step, m4, jnp.sin(jnp.arange(64, dtype=jnp.float32)).reshape(16, 4))


def test_shard_map_over_two_axes_one_at_a_time() -> None:
    mesh = jax.make_mesh((2, 4), ("i", "j"), axis_types=(AxisType.Auto,) * 2)

    def inner(x: Any) -> Any:
        return lax.psum(jnp.sin(x), "j") * x

    def outer(x: Any) -> Any:
        nested = jax.shard_map(inner, in_specs=P("j"), out_specs=P("j"), axis_names={"j"})
        return nested(x) + lax.pmean(x, "i")

    f = jax.shard_map(outer, mesh=mesh, in_specs=P("i"), out_specs=P("i"), axis_names={"i"})
    check(jax.jit(f), x8)


# ------------------------------------------------------------------------------------------------------------- models


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    activation: Callable[..., Any]

    def __init__(self, key: Any):
        self.first, self.norm, self.activation = eqx.nn.Linear(4, 4, key=key), eqx.nn.LayerNorm(4), jax.nn.gelu

    def __call__(self, x: Any) -> Any:
        return self.activation(self.norm(self.first(x)))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.LayerNorm()(linen.relu(linen.Dense(4)(x)))
        return linen.Dropout(0.5, deterministic=False)(linen.Dense(2)(x))


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first, self.norm, self.last = (
            nnx.Linear(4, 8, rngs=rngs),
            nnx.BatchNorm(8, rngs=rngs),
            nnx.Linear(8, 2, rngs=rngs),
        )

    def __call__(self, x: Any) -> Any:
        return self.last(nnx.silu(self.norm(self.first(x))))


def equinox_model() -> tuple[Callable[..., Any], Any]:
    params, static = eqx.partition(Equinox(jax.random.key(0)), eqx.is_inexact_array)
    return lambda p, x: jnp.sum(jax.vmap(eqx.combine(p, static))(x) ** 2), params


def linen_model() -> tuple[Callable[..., Any], Any]:
    model = Linen()
    params = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, m4)
    return lambda p, x: jnp.sum(model.apply(p, x, rngs={"dropout": jax.random.key(2)}) ** 2), params


def nnx_model() -> tuple[Callable[..., Any], Any]:
    graph, params, rest = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, ...)
    return lambda p, x: jnp.sum(nnx.merge(graph, *p)(x) ** 2), (params, rest)


@pytest.mark.parametrize("make", [equinox_model, linen_model, nnx_model])
def test_models(make: Callable[[], tuple[Callable[..., Any], Any]]) -> None:
    loss, params = make()
    check(jax.value_and_grad(loss), params, m4, float64=False, tolerance=1e-5)


# ------------------------------------------------------------------------------------------------------------ records


@dataclasses.dataclass(frozen=True)
class Tally:
    """Plain arithmetic that records the sum of an equation's outputs, how often it ran, and in which iteration last."""

    watched: frozenset[Path]

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
    """Its condition leaves a blank: nothing is recorded of it."""

    def f(x: Any) -> Any:
        return lax.while_loop(lambda s: jnp.sin(s[0]) < 0.5, lambda s: (s[0] + 1, jnp.sin(s[1])), (jnp.float32(-2), x))[
            1
        ]

    condition, body = tally(f, x4)
    assert_tally(condition, 0, 0, -1)
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
