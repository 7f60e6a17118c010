"""Planted leaks are found, named and counted; clean functions pass."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustad.memory import leak_check
from robustad.memory._holders import holder

X = jnp.ones((100, 3))
KEPT = []


@jax.jit
def step(x):
    return jnp.tanh(x) * 2


def appends(x):
    KEPT.append(step(x))


def test_arrays_in_a_list_of_a_module():
    report = leak_check(appends, calls=5)(X)
    (leak,) = report.findings
    assert not report.ok and report.bytes_per_call == X.nbytes == leak.bytes
    assert (leak.kind, leak.what, leak.per_call) == ("array", "float32[100,3]", 1.0)
    assert f"`KEPT[" in leak.cause and __name__ in leak.cause  # noqa: F541
    assert "array: float32[100,3], 1 a call, 1.17 KiB" in str(report)
    KEPT.clear()


def test_arrays_in_closures_attributes_and_caches():
    history = {}

    def closure(x):
        history.setdefault("losses", []).append(jnp.sum(x) * 2)

    (leak,) = leak_check(closure)(X).findings
    assert leak.what == "float32[]" and "closes over" in leak.cause and "history['losses'][" in leak.cause

    class Trainer:
        def __init__(self):
            self.states = []

        def run(self, x):
            self.states += [step(x), step(x)]

    trainer = Trainer()
    (leak,) = leak_check(trainer.run)(X).findings
    assert leak.per_call == 2 and "states" in leak.cause

    @functools.lru_cache(maxsize=None)  # noqa: UP033
    def cached(i):
        return jnp.full((7,), float(i))

    count = iter(range(1000))
    (leak,) = leak_check(lambda: cached(next(count)))().findings
    assert leak.what == "float32[7]" and leak.per_call == 1


def test_a_bounded_cache_is_no_leak():
    kept = []

    def bounded(x):
        kept.append(step(x))
        del kept[:-2]

    assert leak_check(bounded)(X).ok


def test_arrays_of_changing_shapes():
    history = []

    def appends_more(x):
        history.append(jnp.zeros((10, len(history) + 1)))
        return x

    report = leak_check(appends_more)(X)
    (leak,) = [leak for leak in report.findings if leak.kind == "array"]
    assert (leak.what, leak.per_call) == ("arrays of changing shapes", 1.0)
    assert leak.bytes == report.bytes_per_call == 4 * 10 * (3 + 4 + 5 + 6) // 4
    assert "history[" in leak.cause
    buffer = [jnp.zeros(1)]

    def lengthens(x):
        buffer[0] = jnp.concatenate([buffer[0], x])

    report = leak_check(lengthens)(X[:, 0])
    (leak,) = [leak for leak in report.findings if leak.kind == "array"]
    assert (leak.what, leak.per_call) == ("arrays of changing shapes", 1.0)
    assert leak.bytes == report.bytes_per_call == 400 and "buffer[0]" in leak.cause


def test_typed_and_changing_shapes_together():
    history = []

    def both(x):
        history.append((step(x), jnp.zeros((10, len(history) + 1))))

    report = leak_check(both)(X)
    found = {leak.what: leak.bytes for leak in report.findings if leak.kind == "array"}
    assert found == {"float32[100,3]": 1200, "arrays of changing shapes": 180} and report.bytes_per_call == 1380


def test_a_bounded_cache_of_changing_shapes_is_no_leak():
    kept, sizes = [], iter([3, 5, 4, 6, 2, 9] * 9)

    def bounded(x):
        kept.append(jnp.zeros(next(sizes)))
        del kept[:-2]

    assert [leak.kind for leak in leak_check(bounded)(X).findings if leak.kind == "array"] == []


def test_functions_that_are_traced_each_time():
    def fresh(x):
        return jax.jit(lambda x: x * 2 + 1)(x)

    report = leak_check(fresh)(X)
    (leak,) = report.findings
    assert (leak.kind, leak.per_call) == ("retrace", 1.0)
    assert leak.file == __file__ and leak.line == fresh.__code__.co_firstlineno + 1 and "fresh" in leak.what
    assert "never seen function" in leak.cause
    assert "retrace" in str(report)


def test_shapes_that_change_each_time():
    sizes = iter(range(5, 1000))
    double = jax.jit(lambda x: x * 2)
    leaks = leak_check(lambda: double(np.ones(next(sizes), np.float32)))().findings
    assert [leak.kind for leak in leaks] == ["retrace"]
    assert "different input types" in leaks[0].cause
    leaks = leak_check(lambda: double(np.ones(next(sizes), np.float32)))().findings  # it has been checked before
    assert "for <lambda> different input types: now float32[17] and before float32[16]" in leaks[0].cause


def test_operations_that_are_compiled_each_time():
    """JAX tells no reason of what is not in a `jit` of the user's."""
    sizes = iter(range(5, 1000))
    (leak,) = leak_check(lambda: jnp.full((next(sizes), 77), 2.0))().findings
    assert (leak.kind, leak.what) == ("retrace", "jit(broadcast_in_dim)")
    assert "other shapes, dtypes or parameters" in leak.cause
    devices = iter(jax.devices())
    (leak,) = leak_check(lambda: step(jax.device_put(np.ones(77, np.float32), next(devices))))().findings
    assert "though not traced: other shardings or devices" in leak.cause


def test_a_retained_tracer():
    kept = []

    @jax.jit
    def stores(x):
        kept.append(jnp.sin(x))
        return x * 2

    leaks = leak_check(stores)(X).findings
    assert [leak.kind for leak in leaks] == ["tracer"]
    assert "float32[100,3]" in leaks[0].what and "stores" in leaks[0].what
    assert leaks[0].file == __file__
    kept.clear()


def test_clean_functions_pass():
    optimizer = optax.adam(1e-3)

    @jax.jit
    def train(params, state, x):
        gradient = jax.grad(lambda w: jnp.mean(jnp.tanh(x @ w) ** 2))(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    params = jnp.ones((3, 3))
    assert leak_check(train)(params, optimizer.init(params), X).ok
    report = leak_check(lambda x: np.asarray(jax.grad(lambda x: jnp.sum(jnp.sin(x)))(x)))(x=X)  # without jit
    assert report.ok and str(report) == "nothing is left behind by 4 calls"


def test_nothing_is_left_changed():
    logger = logging.getLogger("jax")
    before = logger.handlers, logger.level, logger.propagate
    listeners = len(KEPT)

    def fails(x):
        if isinstance(x, jax.core.Tracer):
            raise RuntimeError("traced")
        return x

    with pytest.raises(RuntimeError, match="traced"):
        leak_check(jax.jit(fails))(X)
    leak_check(step)(X)
    assert (logger.handlers, logger.level, logger.propagate) == before and len(KEPT) == listeners


def test_what_holds_an_object():
    x = object()
    assert holder(x) is None
    kept = {"a": [1, x]}
    assert (lambda: kept) and "`kept['a'][1]`" in str(holder(x))


def test_refusals():
    with pytest.raises(TypeError, match="`f` of `leak_check` must be a function"):
        leak_check(3)  # pyright: ignore
    with pytest.raises(ValueError, match="`calls` must be an integer from 2 up"):
        leak_check(step, calls=1)
    with pytest.raises(ValueError, match="has deleted one of its arguments"):
        leak_check(jax.jit(lambda x: x + 1, donate_argnums=0))(jnp.ones(3) * 2)
