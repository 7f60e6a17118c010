"""Which blocks, and how many stored states, reverse a loop at the least cost within a limit of memory.

A plan has s stored states before blocks of b steps, by the binomial schedule over the blocks, and differentiates a
block as a whole, as the plain scan does, with a tape of what the derivatives of its steps need. b = 1 is the
schedule of Griewank and Walther; s at least the number of blocks is a scan nested in a scan; where the tape of a
step is smaller than a state, or little larger, blocks between them need fewer advances than either in the same memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from robustad.memory import _binomial
from robustad.memory._loop import Plan

BLOCK, TAPE, RECOMPUTE = 0.15, 0.07, 0.4
"""What blocks of more than one step cost besides computing steps, in steps, for each step of the loop: at all, for each
state's size of tape that is written and read, and where states take the place of the tape.

Fitted to recurrent, ODE and wave steps on CPU.
"""


def least_cost(length: int, state: int, tape: int, limit: float) -> Plan | None:
    """The plan of least cost whose states and tapes, but for one step's, take at most `limit` bytes; None: nothing need be
    recomputed.

    state, tape: bytes of a state, and of what the derivative of a step needs.
    """
    if length * tape <= limit + tape:
        return None
    return min(_within(length, state, tape, limit), key=lambda plan: cost(length, plan, tape / state))


def least_memory(length: int, state: int, tape: int, evaluations: float) -> Plan | None:
    """The plan of least memory that costs at most as much as computing every step `evaluations` times; None as above."""
    low, high = 1, length
    while low < high:
        slots = (low + high) // 2
        plan = least_cost(length, state, tape, slots * state)
        if plan is None or cost(length, plan, tape / state) <= evaluations * length:
            high = slots
        else:
            low = slots + 1
    return least_cost(length, state, tape, low * state)


def least_slots(length: int, evaluations: float) -> int:
    """The least number of states with which a step is computed at most `evaluations` times on average, in blocks of one."""
    low, high = 1, length
    while low < high:
        slots = (low + high) // 2
        low, high = (low, slots) if evaluated(length, Plan(1, slots)) <= evaluations * length else (slots + 1, high)
    return low


def evaluated(length: int, plan: Plan) -> int:
    """How many times steps are computed, forward pass and differentiation together."""
    count = length // plan.block
    again = plan.block * (_binomial.advances(count, min(plan.slots, count)) + 1) + length % plan.block
    return again + length * (1 + plan.recompute)


def cost(length: int, plan: Plan, tape: float) -> float:
    """What a plan costs, in steps, but for the differentiation itself; `tape` in states."""
    if plan.block == 1:
        return evaluated(length, plan)
    return evaluated(length, plan) + length * (BLOCK + (RECOMPUTE if plan.recompute else TAPE * tape))


def _within(length: int, state: int, tape: int, limit: float) -> Iterator[Plan]:
    for recompute in (False, True):
        each = state if recompute else tape
        block = 1
        while block <= length:
            slots = int(limit - (block - 1) * each) // max(state, 1)
            if slots < 1:
                break
            yield Plan(block, min(slots, length // block), recompute and block > 1)
            block = max(block + 1, math.floor(block * 1.05))
