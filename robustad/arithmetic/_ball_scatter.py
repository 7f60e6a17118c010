"""Rules of the exact twins for scatters: by the position that each update goes to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from robustad._eager import UnsupportedError
from robustad._jaxpr import Equation, body
from robustad.arithmetic._ball import Ball, exact
from robustad.arithmetic._ball_rules import extreme, rule


@rule("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
def _scatter(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> list[np.ndarray | None]:
    name, (base, indices, updates) = eqn.primitive.name, operands
    update = eqn.params["update_jaxpr"]
    if name == "scatter" and update is not None and body(update).equations:
        raise UnsupportedError("a scatter of a function of one's own has no exact rule.")
    at = _destinations(eqn, base, indices, updates).ravel()
    x, out = exact(updates).ravel()[at >= 0], exact(base).flatten()
    at = at[at >= 0]
    if name == "scatter":
        out[at] = x  # the last of several, as XLA does
    elif name in ("scatter-min", "scatter-max"):
        for k, new in zip(at, x):
            out[k] = extreme(name)(out[k], new)
    else:
        {"scatter-add": np.add, "scatter-sub": np.subtract, "scatter-mul": np.multiply}[name].at(out, at, x)
    return [out.reshape(np.shape(base.working))]


def _destinations(eqn: Equation, base: Ball, indices: Ball, updates: Ball) -> np.ndarray:
    """For each element of the updates its flat position in the base, -1 where it is dropped: the transposed gather."""
    to, shape = eqn.params["dimension_numbers"], np.shape(base.working)
    collapsed = (*to.inserted_window_dims, *to.operand_batching_dims)
    sizes = iter(np.shape(updates.working)[d] for d in to.update_window_dims)
    places = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
    gathered = lax.gather(
        places,
        indices.working,
        lax.GatherDimensionNumbers(
            offset_dims=to.update_window_dims,
            collapsed_slice_dims=to.inserted_window_dims,
            start_index_map=to.scatter_dims_to_operand_dims,
            operand_batching_dims=to.operand_batching_dims,
            start_indices_batching_dims=to.scatter_indices_batching_dims,
        ),
        slice_sizes=tuple(1 if d in collapsed else next(sizes) for d in range(len(shape))),
        mode=eqn.params["mode"],
        fill_value=-1,
    )
    return np.asarray(gathered)
