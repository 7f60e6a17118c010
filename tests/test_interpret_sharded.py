"""The walk through `shard_map` and its collectives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tests._laws import TRANSFORMS, check, m4, mesh8, x8

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
