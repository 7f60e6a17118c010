"""What `spectral_norm`, `singular_values` and `spectral_radius` say."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
    r"""Singular values or eigenvalues of a Jacobian; a pytree of arrays, with leading axes under `jax.vmap`.

    Attributes:
        values: shape (k,), the largest first.
        residuals: shape (k,), of each value's vectors: \(\lVert J^\top u - \sigma v \rVert\) with \(J v = \sigma u\), or
            \(\lVert J v - \lambda v \rVert\), unit vectors. No singular value given is farther from a true one than
            that; it may not be the largest. An eigenvalue of a non-normal matrix may be: see `spectral_radius`.
        converged: whether every residual is at most rtol of the largest value. False where J is not finite.
        products: how many products with J or its transpose were made.
        what: "spectral norm", "singular values" or "spectral radius".
        function: its name.
        shape: of J, (outputs, inputs), in real components.
    """

    values: Array
    residuals: Array
    converged: Array
    products: Array
    what: str = dataclasses.field(metadata={"static": True})
    function: str = dataclasses.field(metadata={"static": True})
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})

    @property
    def value(self) -> Array:
        """The largest: the norm, or the radius."""
        return self.values[..., 0]

    @property
    def residual(self) -> Array:
        """That of `value`."""
        return self.residuals[..., 0]

    def __float__(self) -> float:
        return float(self.value)

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger."""
        return {"value": float(self.value), "residual": float(self.residual), "converged": float(self.converged)}

    @property
    def _lacks(self) -> str:
        if not np.isfinite(np.asarray(self.values)).all():
            return ": the derivative is not finite"
        formed = int(self.products) == min(self.shape)
        return ": rtol is below rounding" if formed else ": more `cycles`"

    def __str__(self) -> str:
        head = f"{self.what} of the Jacobian of {self.function}, {self.shape[0]} x {self.shape[1]}"
        if self.values.ndim > 1:
            return f"{head}, a batch of {self.values.shape[:-1]}: {int(np.sum(self.converged))} converged"
        end = f"{int(self.products)} products"
        end += "" if bool(self.converged) else ", NOT converged" + self._lacks
        return "\n".join([f"{head}: {end}", *rows(self.values, self.residuals)])


def rows(values: Any, residuals: Any) -> list[str]:
    """Values with their residuals, a line each."""
    return [f"  {x:14.7g}   residual {r:.2g}" for x, r in zip(np.asarray(values), np.asarray(residuals))]
