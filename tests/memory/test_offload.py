"""Offloading: the same gradients everywhere, a warning where nothing moves, and copies to the host where something does."""

import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

from robustad.memory import _offload, all_of, any_of, checkpoint, not_, offload, save_names, save_primitives
from tests.memory._loops import normal, worst

W, X = normal(0, 16, 16) / 4, normal(1, 64, 16)


def block(w, x):
    h = checkpoint_name(jnp.tanh(x @ w), "large")
    return x + checkpoint_name(jnp.sin(h), "small")


def loss(wrapped, w=W, x=X):
    for _ in range(3):
        x = wrapped(w, x)
    return jnp.mean(x**2)


def gradient(wrapped):
    return jax.jit(jax.grad(lambda w: loss(wrapped, w)))(W)


@pytest.fixture(autouse=True)
def _says_so_again():
    _offload._moves.cache_clear()
    yield
    _offload._moves.cache_clear()


def kept(policy):
    """(shape, kind of memory) of what is kept of a block, the arguments apart."""
    _, pull = jax.vjp(jax.checkpoint(block, policy=policy), W, X)
    return [(x.shape, x.sharding.memory_kind) for x in jax.tree.leaves(pull) if x is not W and x is not X]


POLICIES = {
    "names": lambda **o: offload(save_names("large"), **o),
    "all": lambda **o: offload(**o),
    "primitives": lambda **o: offload(save_primitives("dot_general"), **o),
    "mixed": lambda **o: any_of(save_names("small"), offload(save_names("large"), **o)),
}


@pytest.mark.parametrize(
    ("name", "force"), [("names", False), ("all", False), ("primitives", True), ("mixed", False), ("mixed", True)]
)
def test_same_gradients(name, force):
    policy = POLICIES[name](force=force)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for wrap in (checkpoint, jax.checkpoint) if name == "mixed" else (checkpoint,):
            assert worst(gradient(wrap(block, policy=policy)), gradient(block)) < 1e-6
    assert [str(w.message)[:27] for w in said] == ([] if force else ["`offload` moves nothing: th"])  # once


def test_in_scan_and_under_vmap():
    policy = offload(save_names("large"), force=True)

    def scanned(wrapped):
        return lambda w, x: jnp.mean(jax.lax.scan(lambda c, _: (wrapped(w, c), None), x, None, 4)[0] ** 2)

    xs = jnp.stack([X, -X])
    ours, plain = (
        jax.jit(jax.vmap(jax.grad(scanned(f)), (None, 0)))(W, xs) for f in (checkpoint(block, policy=policy), block)
    )
    assert worst(ours, plain) < 1e-6


def test_what_is_kept_and_where():
    assert kept(offload(save_names("large"), force=True)) == [((64, 16), "pinned_host")]
    mixed = any_of(save_names("small"), offload(save_names("large"), force=True))
    assert set(kept(mixed)) <= {((64, 16), "pinned_host"), ((64, 16), "device")} and len(kept(mixed)) >= 1
    both = all_of(save_names("large", "small"), offload(save_names("large"), force=True))
    assert kept(both) == [((64, 16), "pinned_host")]
    assert kept(not_(offload(force=True))) == []
    with pytest.warns(UserWarning, match="the devices are CPUs, whose memory is the host's"):
        assert kept(offload(save_names("large", "unheard of"))) == [((64, 16), "device")]  # traced anew


def test_a_device_without_that_memory(monkeypatch):
    class Device:
        platform = "gpu"

        def addressable_memories(self):
            return [type("Memory", (), {"kind": "device"})]

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    with pytest.warns(UserWarning, match=r"\(gpu\) have no memory 'pinned_host', only 'device'"):
        assert not _offload._moves()
    _offload._moves.cache_clear()
    Device.addressable_memories = lambda self: [type("Memory", (), {"kind": k}) for k in ("device", "pinned_host")]
    assert _offload._moves()


def test_exported_to_accelerators_it_copies():
    wrapped = checkpoint(block, policy=offload(save_names("large"), force=True))
    for platform in ("tpu", "cuda"):
        program = jax.export.export(jax.jit(jax.grad(lambda w: loss(wrapped, w))), platforms=[platform])(
            W
        ).mlir_module()
        assert program.count("pinned_host") >= 3  # for each block


def test_policies_compare_by_value():
    assert offload(save_names("a")) == offload(save_names("a")) != offload(save_names("b"))
    assert hash(offload(save_names("a"))) == hash(offload(save_names("a")))


def test_refusals():
    with pytest.raises(TypeError, match="`policy` is 'large'"):
        offload("large")  # pyright: ignore
