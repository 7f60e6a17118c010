"""Loops with their states on disk: the plain scan's gradient, few bytes on the device, and no file left behind."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad.memory import DiskTier, checkpointed_scan
from tests.memory._loops import equal_bits, normal, operands, recurrent_loss, worst


@pytest.mark.parametrize("options", [{}, {"checkpoints": 3, "reverse": True}, {"checkpoints": 100, "unroll": 2}])
def test_equals_the_plain_scan(options):
    """Carries and ys of several dtypes, with keys and dropout; constants that are closed over."""
    args = operands(11)
    with DiskTier() as tier:
        got = jax.jit(
            jax.value_and_grad(recurrent_loss(checkpointed_scan, tier=tier, **options), (0, 1, 2), has_aux=True)
        )
        plain_options = {n: v for n, v in options.items() if n != "checkpoints"}
        plain = jax.jit(jax.value_and_grad(recurrent_loss(jax.lax.scan, **plain_options), (0, 1, 2), has_aux=True))
        for _ in range(2):
            (value, aux), gradients = got(*args)
            (expected, plain_aux), plain_gradients = plain(*args)
            equal_bits((value, aux), (expected, plain_aux))
            assert worst(gradients, plain_gradients) < 1e-6
            assert tier.runs == tier.bytes == 0


def wave(scan, **options):
    def energy(speed):
        def step(state, _):
            u, v = state
            v = v + 0.1 * speed * (jnp.roll(u, 1) + jnp.roll(u, -1) - 2 * u)
            return (u + 0.1 * v, v), None

        (_, v), _ = scan(step, (normal(0, 256), jnp.zeros(256)), None, 400, **options)
        return jnp.mean(v**2)

    return energy


def test_less_memory():
    def temporaries(f):
        return jax.jit(jax.grad(f)).lower(jnp.ones(256)).compile().memory_analysis().temp_size_in_bytes

    tier = DiskTier()
    plain, disk = temporaries(wave(jax.lax.scan)), temporaries(wave(checkpointed_scan, tier=tier))
    assert disk < 0.15 * plain
    assert temporaries(wave(checkpointed_scan, tier=tier, checkpoints=400)) < 0.6 * disk


def test_the_bytes_may_be_asked_for_at_any_time():
    with DiskTier() as tier:
        gradient = jax.jit(jax.grad(wave(checkpointed_scan, tier=tier, checkpoints=400)))
        expected = gradient(jnp.ones(256))
        seen, done = set(), threading.Event()

        def ask():
            while not done.is_set():
                seen.add(tier.bytes)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for _ in range(4):
                equal_bits(gradient(jnp.ones(256)), expected)
        finally:
            done.set()
            asking.join()
        assert 0 < max(seen) <= 400 * 2 * 256 * 4 and tier.bytes == 0


def test_what_is_on_disk(tmp_path):
    with DiskTier(str(tmp_path)) as tier:
        f = wave(checkpointed_scan, tier=tier, checkpoints=20)
        jax.jit(f)(jnp.ones(256))
        assert tier.runs == 0  # the value alone stores nothing
        value, pull = jax.vjp(f, jnp.ones(256))
        jax.block_until_ready(value)
        jax.effects_barrier()
        assert (tier.runs, tier.bytes) == (1, 20 * 2 * 256 * 4)
        assert not list(tmp_path.iterdir())  # files without a name
        jax.block_until_ready(pull(jnp.float32(1)))
        jax.effects_barrier()
        assert tier.runs == 0


def test_a_training_loop_in_a_scan():
    xs = normal(1, 3, 4)

    def trained(scan, **options):
        def epoch(w, x):
            loss = lambda w: jnp.sum(scan(lambda c, _: (jnp.sin(c * w), None), x, None, 9, **options)[0] ** 2)  # noqa: E731
            return w - 0.1 * jax.grad(loss)(w), None

        return jax.jit(lambda w: jax.lax.scan(epoch, w, xs)[0])(jnp.ones(4))

    with DiskTier() as tier:
        assert worst(trained(checkpointed_scan, tier=tier), trained(jax.lax.scan)) < 1e-6
        assert tier.runs == 0


@pytest.mark.parametrize("jitted", [False, True])
def test_in_a_scan_that_is_differentiated(jitted):
    """Its operands change with the outer loop's iteration: the carry, or the xs alone."""
    xs, start = normal(2, 3, 4), normal(3, 4)

    def loss(scan, **options):
        def outer(c, w):
            carry = lambda c: scan(lambda c, _: (jnp.sin(c * w), None), c, None, 5, **options)[0]  # noqa: E731
            ys = scan(lambda c, x: (jnp.cos(c), c * x), start, w, **options)[1]
            return (jax.jit(carry) if jitted else carry)(c) + jnp.sum(ys, 0), None

        return jax.jit(jax.grad(lambda c, xs: jnp.sum(jax.lax.scan(outer, c, xs)[0] ** 2), (0, 1)))

    with DiskTier() as tier:
        got = loss(checkpointed_scan, tier=tier)(start, xs)
        assert worst(got, loss(jax.lax.scan)(start, xs)) < 1e-6
        assert tier.runs == 0


def test_directories(tmp_path):
    with pytest.raises(ValueError, match="which is no directory"):
        DiskTier(str(tmp_path / "none"))
    with pytest.raises(TypeError, match="`directory` must be a path or None; got 3 of type int"):
        DiskTier(3)  # pyright: ignore
    DiskTier(tmp_path)


def test_refusals():
    step, x = lambda c, _: (jnp.sin(c), None), jnp.ones(3)
    with pytest.raises(TypeError, match="`tier` of `checkpointed_scan` must be a DiskTier; got 'disk'"):
        checkpointed_scan(step, x, None, 4, tier="disk")  # pyright: ignore
    tier = DiskTier()
    with pytest.raises(ValueError, match="`budget` of `checkpointed_scan` is for states on the device"):
        checkpointed_scan(step, x, None, 4, tier=tier, budget="1MiB")

    def loss(x):
        return jnp.sum(checkpointed_scan(step, x, None, 4, tier=tier)[0])

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data = jax.sharding.PartitionSpec("data")
    for check in (True, False):
        sharded = jax.shard_map(lambda x: x * loss(x), mesh=mesh, in_specs=data, out_specs=data, check_vma=check)
        with pytest.raises(ValueError, match="cannot be used inside `shard_map`"):
            jax.grad(lambda x: jnp.sum(sharded(x)))(jnp.ones(4))  # noqa: B023
    with pytest.raises(ValueError, match="vmap"):
        jax.vmap(jax.grad(loss))(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="JVP"):
        jax.grad(lambda x: jnp.sum(jax.grad(loss)(x)))(x)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (x,), (x,))
    tier.close()
    assert tier.runs == 0
    np.testing.assert_allclose(loss(x), np.sum(jax.lax.scan(step, x, None, 4)[0]), rtol=1e-6)


def test_files_that_are_gone():
    tier = DiskTier()
    number = tier.open_run()
    tier.write(number, 0, np.ones(3, np.float32))
    assert tier.read(number, 0, [jax.ShapeDtypeStruct((3,), jnp.float32)])[0].tolist() == [1, 1, 1]
    tier.close_run(number)
    with pytest.raises(RuntimeError, match="each backward pass reads them once"):
        tier.read(number, 0, [])
    tier.close()
    with pytest.raises(RuntimeError, match="is closed"):
        tier.open_run()
