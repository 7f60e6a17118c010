"""`checkpointed_while` beside a scan over masked steps: values, derivatives, batches of different lengths, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from robustad.memory import _binomial, _online, checkpointed_while
from tests.memory._loops import normal, worst

MOST = 40


def ours(weights, h, steps, checkpoints=3):
    def body(carry):
        h, i, key = carry
        return jnp.sin(weights @ h) + h, i + 1, jax.random.split(key)[0]

    start = h, 0, jax.random.key(0)
    h, _, _ = checkpointed_while(lambda c: c[1] < steps, body, start, max_steps=MOST, checkpoints=checkpoints)
    return jnp.sum(h**2)


def oracle(weights, h, steps):
    def body(h, i):
        return jnp.where(i < steps, jnp.sin(weights @ h) + h, h), None

    return jnp.sum(lax.scan(body, h, jnp.arange(MOST))[0] ** 2)


WEIGHTS, START = normal(0, 3, 3) / 3, normal(1, 3)


@pytest.mark.parametrize("checkpoints", [1, 2, 5, MOST])
def test_gradients_of_any_number_of_steps(checkpoints):
    got = jax.jit(jax.value_and_grad(functools.partial(ours, checkpoints=checkpoints), (0, 1)))
    expected = jax.jit(jax.value_and_grad(oracle, (0, 1)))
    for steps in (0, 1, 2, 7, 23, MOST, MOST + 9):  # the last is cut off at max_steps
        assert worst(got(WEIGHTS, START, steps), expected(WEIGHTS, START, steps)) < 2e-5


LENGTHS = jnp.array([0, 3, 17])
DERIVATIVES = {
    "jvp": lambda f: jax.jvp(lambda w: f(w, START, 9), (WEIGHTS,), (WEIGHTS,)),
    "hessian": lambda f: jax.hessian(lambda h: f(WEIGHTS, h, 9))(START),
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(lambda h: f(WEIGHTS, h, 9)))(START),
    "gradient of vmap": lambda f: jax.grad(lambda w: jnp.sum(jax.vmap(f, (None, None, 0))(w, START, LENGTHS)))(WEIGHTS),
    "vmap of gradient": lambda f: jax.vmap(jax.grad(f, (0, 1)), (None, None, 0))(WEIGHTS, START, LENGTHS),
    "vmap of one length": lambda f: jax.vmap(jax.grad(lambda h: f(WEIGHTS, h, 5)))(jnp.stack([START, -START])),
    "vmap of hessian": lambda f: jax.vmap(lambda n: jax.hessian(lambda h: f(WEIGHTS, h, n))(START))(LENGTHS),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_further_derivatives(name):
    got, expected = (jax.jit(functools.partial(DERIVATIVES[name], f))() for f in (ours, oracle))
    assert worst(got, expected) < 1e-5


def test_steps_past_the_end_of_another_do_no_harm():
    """sqrt at 0 has an infinite derivative; one of the batch gets there long before the other."""

    def root(x):
        return checkpointed_while(lambda x: x > 0.5, lambda x: jnp.sqrt(x - 0.5), x, max_steps=9, checkpoints=2)

    def masked(x):
        def body(x, _):
            on = x > 0.5
            return jnp.where(on, jnp.sqrt(jnp.where(on, x, 1.0) - 0.5), x), None

        return lax.scan(body, x, None, 9)[0]

    x = jnp.array([0.5, 0.6, 1.9, 9.0])
    got = jax.jit(jax.vmap(jax.value_and_grad(root)))(x)
    assert np.all(np.isfinite(got[1]))
    assert worst(got, jax.vmap(jax.value_and_grad(masked))(x)) < 1e-6
    assert worst(jax.jit(jax.grad(lambda x: jnp.sum(jax.vmap(root)(x))))(x), got[1]) < 1e-6


@pytest.mark.parametrize("check_vma", [True, False])
def test_lengths_that_differ_between_devices(check_vma):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x = jnp.array([0.1, 0.5, 0.9, 9.0])

    def loop(w, x):
        return checkpointed_while(lambda c: c < 5, lambda c: c * w + 0.1, x, max_steps=15, checkpoints=3)

    def local(w, x):
        return lax.pmean(loop(lax.pcast(w, ("data",), to="varying") if check_vma else w, x[0]), "data")

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma)
    got = jax.jit(jax.grad(mapped, (0, 1)))(1.3, x)
    assert worst(got, jax.jit(jax.grad(lambda w, x: sum(loop(w, each) for each in x) / 4, (0, 1)))(1.3, x)) < 1e-6


def test_newton():
    def root(a):
        return checkpointed_while(lambda x: jnp.abs(x * x - a) > 1e-6 * a, lambda x: (x + a / x) / 2, a, max_steps=50)

    assert abs(jax.grad(root)(4.0) - 0.25) < 1e-6


def test_no_more_states_than_checkpoints():
    width = 4096

    def temporaries(checkpoints):
        def loss(h, n):
            out = checkpointed_while(
                lambda c: c[1] < n,
                lambda c: (jnp.sin(c[0]), c[1] + 1),
                (h, 0),
                max_steps=100_000,
                checkpoints=checkpoints,
            )
            return jnp.sum(out[0])

        compiled = jax.jit(jax.grad(loss)).lower(jnp.ones(width), 7).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4 * width)

    for checkpoints in (4, 50):
        assert temporaries(checkpoints) <= 1.15 * checkpoints + 10


def advances_after(positions, n: int, slots: int) -> int:
    """What reversing n steps takes from these stored states."""
    stack, total = sorted(positions), 0
    for step in reversed(range(n)):
        at = stack[-1]
        while at < step and len(stack) < slots:
            ahead = _binomial.split(step + 1 - at, slots - len(stack) + 1)
            total, at = total + ahead, at + ahead
            stack.append(at)
        total += step - at
        if stack[-1] == step:
            stack.pop()
    return total


@pytest.mark.parametrize("slots", [2, 5, 20])
def test_online_schedule_against_the_optimum_for_known_lengths(slots):
    most = 400

    def store(stored, step):
        _, stored = _online.place(stored, step)
        return stored, stored.positions

    _, positions = lax.scan(store, _online.nothing_stored(slots), jnp.arange(1, most))
    for n in [*range(3, 60, 4), 100, 250, most]:
        kept = [int(p) for p in np.asarray(positions)[n - 2] if p != _online.UNUSED]
        assert len(kept) == min(n, slots) and kept[0] == 0 and max(kept) < n
        total = n - 1 + advances_after(kept, n, slots)
        assert _binomial.advances(n, slots) <= total <= 1.5 * _binomial.advances(n, slots)


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        (
            (lambda c: c < 1, lambda c: c + 1, 0.0),
            {"max_steps": 0},
            ValueError,
            "`max_steps` must be an integer from 1",
        ),
        ((lambda c: c, lambda c: c + 1, 0.0), {"max_steps": 3}, TypeError, "must return one boolean"),
        ((lambda c: c < 1, None, 0.0), {"max_steps": 3}, TypeError, "`body` is None of type NoneType"),
        ((lambda c: c < 1, lambda c: c + 1, jnp.ones(2)), {"max_steps": 3}, TypeError, "jnp.any"),
        ((lambda c: c < 1, lambda c: c[None], 0.0), {"max_steps": 3}, TypeError, "takes float32.., returns float32.1."),
        ((lambda c: c < 1, lambda c: c + 1, 0.0), {"max_steps": 3, "budget": 3}, ValueError, "at least one state"),
        ((lambda c: c < 1, lambda c: c + 1, 0.0), {"max_steps": 3, "checkpoints": 0}, ValueError, "from 1 up; got 0"),
    ],
)
def test_refusals(arguments, options, error, message):
    with pytest.raises(error, match=message):
        checkpointed_while(*arguments, **options)
