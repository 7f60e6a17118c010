"""Policies: what each keeps, and how they combine."""

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

from robustad.memory import (
    all_of,
    any_of,
    checkpoint,
    not_,
    save_bytes,
    save_flops_per_byte,
    save_names,
    save_primitives,
)

JAXS = jax.checkpoint_policies


def loss(w, x):
    h = checkpoint_name(jnp.sin(x @ w), "sine")  # 8 x 16 each: 512 bytes
    s = jnp.sum(jnp.exp(h), 1)  # 32 bytes
    return jnp.sum(jnp.sin(s) * jnp.cos(s))


W, X = jnp.ones((4, 16)), jnp.ones((8, 4))


def shapes(policy):
    """Of what is kept, the arguments apart."""
    _, pull = jax.vjp(jax.checkpoint(loss, policy=policy), W, X)
    return sorted(x.shape for x in jax.tree.leaves(pull) if x is not W and x is not X)


def test_each_keeps_what_it_says():
    assert shapes(JAXS.nothing_saveable) == []
    assert shapes(save_names("sine")) == [(8, 16)]
    assert shapes(save_names("other")) == []
    assert shapes(save_primitives("dot_general")) == [(8, 16)]
    assert shapes(save_primitives(jax.lax.exp_p)) == [(8, 16)]
    assert set(shapes(save_bytes(at_most=32))) == {(8,)}
    assert set(shapes(save_bytes(at_least=33))) == {(8, 16)}
    assert shapes(save_flops_per_byte(2.0)) == [(8,), (8, 16)]  # the product: 2 · 4 / 4; the sum of 16 terms: 16 / 4
    assert shapes(save_flops_per_byte(2.1)) == [(8,)]


def test_combinations():
    names, dots, small = save_names("sine"), save_primitives("dot_general"), save_bytes(at_most=32)
    assert shapes(any_of(dots, save_primitives("reduce_sum"))) == [(8,), (8, 16)]
    assert shapes(all_of(names, dots)) == []
    assert shapes(all_of(dots, JAXS.dots_saveable)) == shapes(dots)
    assert shapes(any_of()) == []
    assert shapes(not_(not_(small))) == shapes(small)
    assert shapes(not_(JAXS.everything_saveable)) == []
    assert set(shapes(not_(small))) == {(8, 16)}
    assert len(shapes(all_of(not_(small), not_(dots)))) <= len(shapes(not_(small)))


def test_policies_compare_by_value():
    assert any_of(save_names("a"), not_(save_bytes(at_most=3))) == any_of(save_names("a"), not_(save_bytes(at_most=3)))
    assert hash(save_names("a", "b")) == hash(save_names("a", "b")) != hash(save_names("b"))


def test_jaxs_own_answers_pass_through():
    offload = JAXS.offload_dot_with_no_batch_dims("device", "pinned_host")
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    params = dict(
        dimension_numbers=(((1,), (0,)), ((), ())), precision=None, preferred_element_type=None, out_sharding=None
    )

    def ask(policy):
        return policy(jax.lax.dot_general_p, x, x, **params)

    assert type(ask(any_of(save_names("a"), offload))).__name__ == "Offloadable"
    assert type(ask(all_of(save_primitives("dot_general"), offload))).__name__ == "Offloadable"
    assert ask(not_(offload)) is False
    assert (
        ask(
            any_of(
                JAXS.save_and_offload_only_these_names(
                    names_which_can_be_saved=[],
                    names_which_can_be_offloaded=[],
                    offload_src="device",
                    offload_dst="pinned_host",
                )
            )
        )
        is False
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: save_bytes(at_most=-1), ValueError, "`at_most` is -1; expected a number of bytes"),
        (lambda: save_bytes(at_least=4, at_most=2), ValueError, "no size is in between"),
        (lambda: save_bytes(at_most="1MiB"), ValueError, "`at_most` is '1MiB'"),  # type: ignore
        (lambda: save_flops_per_byte(-1), ValueError, "`at_least` is -1"),
        (lambda: save_flops_per_byte(float("nan")), ValueError, "`at_least` is nan"),
        (lambda: save_names(3), TypeError, "`names` holds 3 of type int"),  # type: ignore
        (lambda: save_primitives(3), TypeError, "`primitives` holds 3"),
        (lambda: any_of("sine"), TypeError, r"`policies\[0\]` is 'sine'"),  # type: ignore
        (lambda: not_(None), TypeError, "`policy` is None"),  # type: ignore
        (lambda: checkpoint(jnp.sin, policy=save_names), TypeError, "`policy` is `save_names`, which makes policies"),
        (lambda: any_of(save_bytes), TypeError, r"`policies\[0\]` is `save_bytes`.*Call it: `save_bytes\(...\)`"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
