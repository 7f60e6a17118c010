"""The walk computes the program: through every control flow, every transformation, and the models of three libraries."""

from collections.abc import Callable
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

from tests._laws import TRANSFORMS, check, m4, x4
from tests._walking import walk

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


CASES = [(f, t) for f in MODULAR + UNCOMPARABLE for t in ("grad", "vmap")]
CASES += [(f, t) for f in FORWARD_ONLY for t in ("plain", "vmap") if (f, t) != (partitioned, "vmap")]
CASES += [(f, "vmap of grad") for f in (scan_forward, cond_of_two, custom_vjp, checkpointed_saving_dots, solved)]


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
