"""The branch that is not taken."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ._arguments import numbers


def safe_where(condition: ArrayLike, true_fun: Callable, false_fun: Callable, *operands: Any) -> Any:
    r"""`jnp.where(condition, true_fun(*operands), false_fun(*operands))`, where the other branch never poisons a derivative.

    In `jnp.where(x > 0, jnp.log(x), 0)` the branch that is not taken gets the cotangent 0 and multiplies it by its
    infinite partial derivative: NaN. Here the operands of each branch pass no derivative where the branch is not taken,
    so that whatever it makes of a zero is dropped, at every order of derivative. Unlike a rule that says 0 · ∞ = 0, this
    hides no indeterminate product of the branch that *is* taken.

    Both branches are evaluated, as by `jnp.where`: `jax_debug_nans` may see what the other one computes.

    Args:
      condition: bool array.
      true_fun, false_fun: functions of the operands, elementwise over the dimensions of `condition` (they may reduce over
        further dimensions of the operands); both return a pytree of the same structure.
      *operands: pytrees of arrays whose leaves broadcast with `condition`; leaves with more dimensions than `condition`
        have them in front, as in NumPy, so give a row's condition a trailing 1.

    Returns:
      A pytree of arrays, of the shapes to which `condition` and the branches broadcast.

    Raises:
      TypeError: `condition` is not boolean, or the branches' structures differ.

    >>> import jax, jax.numpy as jnp
    >>> from robustad import stability as st
    >>> x = jnp.array([0.0, 2.0])
    >>> print(jax.grad(lambda x: jnp.where(x > 0, jnp.sqrt(x), 0).sum())(x))
    [       nan 0.35355338]
    >>> print(jax.grad(lambda x: st.safe_where(x > 0, jnp.sqrt, jnp.zeros_like, x).sum())(x))
    [0.         0.35355338]
    """
    numbers("safe_where", condition=condition)
    condition = jnp.asarray(condition)
    if condition.dtype != bool:
        raise TypeError(
            f"safe_where: `condition` has dtype {condition.dtype}; expected bool. Compare: for instance x > 0, or x != 0."
        )

    def passing(taken: Array) -> tuple:
        return jax.tree.map(lambda x: jnp.where(taken, x, jax.lax.stop_gradient(x)), operands)

    on_true, on_false = true_fun(*passing(condition)), false_fun(*passing(~condition))
    structures = jax.tree.structure(on_true), jax.tree.structure(on_false)
    if structures[0] != structures[1]:
        raise TypeError(
            f"`true_fun` and `false_fun` must return the same structure, got {structures[0]} and {structures[1]}."
        )
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), on_true, on_false)
