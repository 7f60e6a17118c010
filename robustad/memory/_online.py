"""Which states to store while a loop of unknown length runs (Wang, Moin and Iaccarino 2009).

Every state is stored as it comes. Where no slot is free it takes the place of the latest stored state that is
dispensable, that is, of lower level than a later one; where none is, of the latest stored state, and its level is
one higher. By their result the stored states then allow, at any time, a reversal with the least possible number of
repetitions of the most repeated step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

UNUSED = jnp.iinfo(jnp.int32).max


class Stored(NamedTuple):
    """For each slot, the step before which its state stands, its level, and whether it is dispensable. Slot 0 holds the
    initial state for good."""

    positions: Array
    levels: Array
    dispensable: Array


def nothing_stored(slots: int) -> Stored:
    first = jnp.arange(slots) == 0
    return Stored(jnp.where(first, 0, UNUSED), jnp.zeros(slots, jnp.int32), jnp.zeros(slots, bool))


def place(stored: Stored, position: Any) -> tuple[Array, Stored]:
    """The slot for the state before step `position`, and what is stored then. There are two slots or more."""
    positions, levels, dispensable = stored
    unused = positions == UNUSED
    # The first unused slot; or else the latest dispensable one; or else the latest.
    rank = jnp.where(dispensable, positions, -1)
    slot = jnp.where(
        jnp.any(unused),
        jnp.argmax(unused),
        jnp.where(jnp.any(dispensable), jnp.argmax(rank), jnp.argmax(positions)),
    ).astype(jnp.int32)
    fresh = unused[slot] | dispensable[slot]
    level = jnp.where(fresh, 0, levels[slot] + 1)
    later = jnp.arange(len(positions)) > 0
    dispensable = (dispensable | (later & ~unused & (levels < level))).at[slot].set(False)
    return slot, Stored(positions.at[slot].set(position), levels.at[slot].set(level), dispensable)


def in_order(stored: Stored) -> tuple[Array, Array, Array]:
    """The positions in order, the slots that they lie in, and the index of the last."""
    slots = jnp.argsort(stored.positions).astype(jnp.int32)
    return stored.positions[slots], slots, jnp.sum(stored.positions != UNUSED, dtype=jnp.int32) - 1
