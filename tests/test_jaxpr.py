"""Where an equation was made: the user's line, whatever library and transformation lie between; forward or backward."""

import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax import lax

import robustad
from robustad import _jaxpr
from robustad._jaxpr import Cond, Location, Scan, Site, While, is_users
from robustad.demo import digits_vae

x3 = jnp.asarray([0.5, -1.0, 2.0])
m3 = jnp.ones((3, 3))


def sites_of(f: Callable[..., Any], *args: Any) -> list[Site]:
    jax.clear_caches()  # a library function that another test has traced may hold the lines of that one
    return list(_jaxpr.sites(_jaxpr.trace(f, *args)[0]))


def line_of(f: Callable[..., Any], marker: str) -> int:
    """The number of the one line of `f` that ends in `# marker`."""
    source, start = inspect.getsourcelines(f)
    (line,) = [start + k for k, text in enumerate(source) if text.rstrip().endswith(f"# {marker}")]
    return line


def lines(sites: Iterable[Site], primitive: str | None = None) -> set[int]:
    """The lines of this file that the equations of a primitive (of all) were made at."""
    places = [s.location for s in sites if primitive in (None, s.primitive)]
    assert places and all(p is not None and p.file == __file__ for p in places)
    return {p.line for p in places if p is not None}


# ---------------------------------------------------------------------------------------------------------- the line


def plain(x: Any) -> Any:
    a = jnp.sin(x)  # sine
    return a * 2 + jnp.cos(  # cosine
        x
    )


def test_plain_operations() -> None:
    found = sites_of(plain, x3)
    assert lines(found, "sin") == {line_of(plain, "sine")}
    assert lines(found, "cos") == {line_of(plain, "cosine")}
    place = next(s.location for s in found if s.primitive == "sin")
    assert place == Location(__file__, line_of(plain, "sine"), "plain")


def library(x: Any) -> Any:
    a = jax.nn.softmax(x)  # softmax
    b = jnp.linalg.norm(x)  # norm
    c = jax.scipy.special.logsumexp(x)  # logsumexp
    return a + b + c + jnp.var(x)  # variance


def test_operations_inside_library_functions_are_the_callers() -> None:
    found = sites_of(library, x3)
    assert lines(found) == {line_of(library, m) for m in ("softmax", "norm", "logsumexp", "variance")}
    assert lines(found, "sqrt") == {line_of(library, "norm")}
    assert lines(found, "log") == {line_of(library, "logsumexp")}


@jax.jit
def helper(x: Any) -> Any:
    return jnp.sin(x) * 3  # helper


def calling_twice(x: Any) -> Any:
    a = helper(x)  # first
    return a + helper(a)  # second


def test_a_jitted_helper_of_the_users_is_its_own_line() -> None:
    found = sites_of(calling_twice, x3)
    assert lines(found, "sin") == {line_of(helper, "helper")}
    assert lines(found, "jit") == {line_of(calling_twice, "first"), line_of(calling_twice, "second")}


def calling_a_jitted_library_function(x: Any) -> Any:
    a = jnp.where(x > 0, x, 0)  # where
    return jnp.linalg.inv(a + m3)  # inverse


def test_a_jitted_library_function_inherits_the_calling_line() -> None:
    found = sites_of(calling_a_jitted_library_function, x3)
    assert lines(found, "lu") == {line_of(calling_a_jitted_library_function, "inverse")}
    assert line_of(calling_a_jitted_library_function, "where") in lines(found, "select_n")


def looping(x: Any) -> Any:
    def step(c: Any, v: Any) -> Any:
        c = c * jnp.exp(v)  # body
        return c, lax.cond(c > 0, jnp.sin, jnp.cos, c)  # branch

    c, ys = lax.scan(step, x[0], x)  # scan
    return lax.while_loop(lambda s: s < 1, lambda s: s * jnp.tanh(s), c) + ys  # while


def test_bodies_of_loops_and_branches() -> None:
    found = sites_of(looping, x3)
    assert lines(found, "exp") == {line_of(looping, "body")}
    assert lines(found, "cond") == lines(found, "sin") == lines(found, "cos") == {line_of(looping, "branch")}
    assert lines(found, "tanh") == {line_of(looping, "while")}
    assert lines(found, "scan") == {line_of(looping, "scan")}


def summed_gradient(f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.grad(lambda x: jnp.sum(f(x)))


@pytest.mark.parametrize(
    "transform", [jax.jit, jax.vmap, jax.checkpoint, summed_gradient, lambda f: lambda x: lax.map(f, x)]
)
def test_transformations_keep_the_line(transform: Callable[..., Any]) -> None:
    found = sites_of(transform(plain), x3)
    assert lines(found, "sin") == {line_of(plain, "sine")} or transform is summed_gradient
    assert lines(found, "cos") >= {line_of(plain, "cosine" if transform is not summed_gradient else "sine")}


@pytest.mark.parametrize("f", [plain, library, calling_twice, calling_a_jitted_library_function, looping])
def test_every_equation_has_a_line_of_its_function(f: Callable[..., Any]) -> None:
    owned = set[int]()
    for owner in (f, helper):
        source, start = inspect.getsourcelines(owner)
        owned |= set(range(start, start + len(source)))
    assert lines(sites_of(f, x3)) <= owned


# ------------------------------------------------------------------------------------------------ libraries of layers


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.LayerNorm()(x)  # layer norm
        x = linen.Dense(3)(x)  # dense
        return linen.softmax(x)  # softmax


def test_linen() -> None:
    model = LinenModel()
    params = model.init(jax.random.key(0), m3)
    found = sites_of(lambda p: model.apply(p, m3), params)
    here = LinenModel.__call__
    assert lines(found, "dot_general") == {line_of(here, "dense")}
    assert lines(found, "rsqrt") == {line_of(here, "layer norm")}
    assert lines(found, "exp") == {line_of(here, "softmax")}
    assert next(s.location for s in found if s.primitive == "exp").function == "__call__"


class NnxModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm, self.dense = nnx.LayerNorm(3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.norm(x)  # layer norm
        return self.dense(nnx.gelu(x))  # dense


def test_nnx() -> None:
    graph, params = nnx.split(NnxModel(nnx.Rngs(0)))
    found = sites_of(lambda p: nnx.merge(graph, p)(m3), params)
    here = NnxModel.__call__
    assert lines(found, "dot_general") == lines(found, "tanh") == {line_of(here, "dense")}
    assert lines(found, "rsqrt") == {line_of(here, "layer norm")}


class EquinoxModel(eqx.Module):
    norm: eqx.nn.LayerNorm
    dense: eqx.nn.Linear

    def __call__(self, x: Any) -> Any:
        x = self.norm(x)  # layer norm
        return jnp.tanh(self.dense(x))  # dense


def test_equinox() -> None:
    model = EquinoxModel(eqx.nn.LayerNorm(3), eqx.nn.Linear(3, 3, key=jax.random.key(0)))
    params, static = eqx.partition(model, eqx.is_array)
    found = sites_of(lambda p: jax.vmap(eqx.combine(p, static))(m3), params)
    here = inspect.unwrap(EquinoxModel.__call__)
    assert lines(found, "dot_general") == lines(found, "tanh") == {line_of(here, "dense")}
    assert lines(found, "rsqrt") == {line_of(here, "layer norm")}


def optax_loss(x: Any) -> Any:
    labels = jnp.array([0, 1, 2])
    a = optax.softmax_cross_entropy_with_integer_labels(x * m3, labels)  # cross entropy
    return jnp.sum(a) + optax.huber_loss(x[0])  # huber


def test_optax_losses() -> None:
    found = sites_of(jax.grad(optax_loss), x3)
    assert lines(found, "log") == lines(found, "exp") == {line_of(optax_loss, "cross entropy")}
    assert line_of(optax_loss, "huber") in lines(found, "abs")


# ------------------------------------------------------------------------------------------------------ whose a file is


def test_whose_a_file_is() -> None:
    assert is_users(__file__) and is_users("/home/someone/model.py") and is_users("<ipython-input-3>")
    assert is_users(digits_vae.__file__)  # the demo stands for a user's program
    for module in (jax, jnp, optax, linen, nnx, eqx, os, inspect, robustad, _jaxpr, pytest):
        assert not is_users(str(module.__file__))
    assert not is_users("<frozen importlib._bootstrap>")


# ------------------------------------------------------------------------------------------------------------ phases


def test_the_backward_pass_is_transposed() -> None:
    found = sites_of(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(x) @ m3)), x3)
    forward = [s.primitive for s in found if not s.transposed]
    backward = [s.primitive for s in found if s.transposed]
    assert {"sin", "cos"} <= set(forward) and "sin" not in backward
    assert forward.count("dot_general") == backward.count("dot_general") == 1


def test_a_forward_program_has_no_transposed_equation() -> None:
    assert not any(s.transposed for s in sites_of(looping, x3))
    assert not any(s.transposed for s in sites_of(lambda x: jax.jvp(jnp.sin, (x,), (x,)), x3))


def test_the_backward_body_of_a_loop_is_transposed() -> None:
    """Also where its equations do not say so themselves."""
    found = sites_of(
        jax.grad(lambda x: jnp.sum(lax.scan(lambda c, v: (jnp.sin(c @ m3), None), x, None, length=3)[0])), x3
    )
    scans = [s for s in found if s.primitive == "scan"]
    assert [s.transposed for s in scans] == [False, True]
    inside = [s for s in found if scans[1].path == s.path[:1] and len(s.path) > 1]
    assert inside and all(s.transposed for s in inside)
    assert all(s.loops == (scans[1].path,) for s in inside)


def test_a_recomputation_belongs_to_the_backward_pass() -> None:
    found = sites_of(jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda a: jnp.sin(jnp.sin(a)))(x))), x3)
    assert any(s.primitive == "sin" for s in found)
    assert any(s.transposed for s in found) and not all(s.transposed for s in found)


# -------------------------------------------------------------------------------------------------------- vocabulary


def controls(f: Callable[..., Any], kind: type) -> list[Any]:
    held = [_jaxpr.control(s.equation) for s in sites_of(f, x3)]
    return [c for c in held if isinstance(c, kind)]


def test_control_flow_in_one_vocabulary() -> None:
    (scan,) = controls(looping, Scan)
    assert (scan.consts, scan.carry, scan.length, scan.reverse) == (0, 1, 3, False)
    (loop,) = controls(looping, While)
    assert (loop.cond_consts, loop.body_consts, len(loop.cond.outputs)) == (0, 0, 1)
    (cond,) = controls(looping, Cond)
    assert [b.equations[0].primitive.name for b in cond.branches] == ["cos", "sin"]


def test_paths_lead_to_their_equations() -> None:
    program, _ = _jaxpr.trace(looping, x3)
    for site in _jaxpr.sites(program):
        body, *rest = program, *site.path
        while len(rest) > 1:
            inner = _jaxpr.control(body.equations[rest[0]])
            assert inner is not None
            body, rest = _jaxpr.bodies(inner)[rest[1]], rest[2:]
        assert body.equations[rest[0]] is site.equation


def test_literals() -> None:
    (eqn,) = _jaxpr.trace(lambda x: x * 2, jnp.ones(3, jnp.bfloat16))[0].equations
    variable, constant = eqn.invars
    assert _jaxpr.literal(variable) is None
    value = _jaxpr.literal(constant)
    assert value is not None and value == 2 and value.dtype == jnp.bfloat16


def test_last_uses() -> None:
    program, _ = _jaxpr.trace(lambda x: jnp.sin(x) * x + jnp.cos(x), x3)
    alive = {*program.inputs}
    for eqn, dead in zip(program.equations, _jaxpr.last_uses(program), strict=True):
        assert all(_jaxpr.literal(a) is not None or a in alive for a in eqn.invars)
        alive |= {*eqn.outvars}
        alive -= {*dead}
    assert alive == {*program.outputs}
