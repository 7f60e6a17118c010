"""A policy that moves what is kept to the host's memory until the backward pass."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import jax

from robustad import _jaxpr
from robustad.memory._policies import Policy, checked, keeps

HOST = "pinned_host"
"""The one kind of memory besides the device's that JAX's checkpoints move values to."""


def offload(policy: Policy | None = None, *, force: bool = False) -> Policy:
    """Keeps what `policy` keeps, in the memory of the host: copied there in the forward pass and back in the backward pass.

    For `checkpoint` and `jax.checkpoint`. It combines: `any_of(save_names("small"), offload(save_names("large")))` keeps
    one on the device and the other on the host. It is worth its copies for values that are large and dear to compute, as the
    results of attention or of a block, and that are used much later.

    On devices without the memory "pinned_host", and on CPU, where the host's memory is the device's, the values are kept
    where they are: the gradients are the same, nothing is saved, and a warning says so once.

    Args:
        policy: which results; None: all.
        force: ask for the copies in any case: for a program that is exported to another platform.

    Raises:
        TypeError: `policy` cannot be one.

    Source: `jax.checkpoint_policies.save_and_offload_only_these_names`, of which this is the form for any policy.

    >>> import warnings
    >>> import jax, jax.numpy as jnp
    >>> from jax.ad_checkpoint import checkpoint_name
    >>> from robustad.memory import checkpoint, offload, save_names
    >>> block = lambda w, x: x + checkpoint_name(jnp.tanh(x @ w), "hidden")
    >>> loss = lambda w, x: jnp.sum(checkpoint(block, policy=offload(save_names("hidden")))(w, x) ** 2)
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # on CPU nothing is moved
    ...     gradient = jax.grad(loss)(jnp.eye(3), jnp.ones((2, 3)))
    >>> gradient.shape
    (3, 3)
    """
    return _Offload(None if policy is None else checked(policy), bool(force))


@dataclasses.dataclass(frozen=True)
class _Offload:
    policy: Policy | None
    force: bool

    def __call__(self, primitive: Any, *avals: Any, **params: Any) -> Any:
        if self.policy is not None and not keeps(self.policy(primitive, *avals, **params)):
            return False
        return _jaxpr.offloaded(HOST) if self.force or _moves() else True


@functools.cache
def _moves() -> bool:
    """Whether the devices have that memory apart from their own; a warning, once, where they have not."""
    device = jax.devices()[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if device.platform == "cpu":
        reason = "the devices are CPUs, whose memory is the host's"
    elif HOST not in kinds:
        reason = f"the devices ({device.platform}) have no memory {HOST!r}, only {', '.join(map(repr, kinds))}"
    else:
        return True
    warnings.warn(
        f"`offload` moves nothing: {reason}. What it would move is kept where it is; the gradients are the same.",
        stacklevel=2,
    )
    return False
