"""What `hessian_eigenvalues` and `hessian_trace` say."""

import dataclasses

import jax
import numpy as np
from jax import Array

from robustad.diagnosis._spectrum_report import rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class HessianEigenvalues:
    r"""What `hessian_eigenvalues` says; a pytree of arrays, with leading axes under `jax.vmap`.

    Attributes:
        top: shape (k,), the largest eigenvalues, the largest first.
        bottom: shape (k,), the smallest ones, the smallest first.
        top_residuals, bottom_residuals: shape (k,): \(\lVert H v - \lambda v \rVert\) with unit vectors v. A true eigenvalue
            is that near to each one given; it may not be the outermost.
        converged: whether every residual is at most rtol of the largest modulus. False where H is not finite.
        function: the loss's name.
        size: how many parameters there are.
    """

    top: Array
    bottom: Array
    top_residuals: Array
    bottom_residuals: Array
    converged: Array
    function: str = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(metadata={"static": True})

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger."""
        return {
            "top": float(self.top[0]),
            "bottom": float(self.bottom[0]),
            "converged": float(self.converged),
        }

    def __str__(self) -> str:
        head = f"eigenvalues of the Hessian of {self.function}, {self.size} parameters"
        if self.top.ndim > 1:
            return f"{head}, a batch of {self.top.shape[:-1]}: {int(np.sum(self.converged))} converged"
        if not bool(self.converged):
            finite = np.isfinite(np.asarray(self.top)).all()
            head += ", NOT converged: " + ("more `iterations`" if finite else "the derivative is not finite")
        smallest = rows(self.bottom, self.bottom_residuals)[::-1]
        return "\n".join([head, *rows(self.top, self.top_residuals), "  ...", *smallest])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class HessianTrace:
    """What `hessian_trace` says; a pytree of arrays, with leading axes under `jax.vmap`.

    Attributes:
        trace: the sum of the eigenvalues.
        standard_error: of it; 0 where it is not an estimate.
        function: the loss's name.
        size: how many parameters there are.
        exact: whether the whole diagonal was computed.
    """

    trace: Array
    standard_error: Array
    function: str = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(metadata={"static": True})
    exact: bool = dataclasses.field(metadata={"static": True})

    def __float__(self) -> float:
        return float(self.trace)

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger."""
        return {"trace": float(self.trace), "standard_error": float(self.standard_error)}

    def __str__(self) -> str:
        head = f"trace of the Hessian of {self.function}, {self.size} parameters"
        if self.trace.ndim:
            return f"{head}, a batch of {self.trace.shape}"
        error = "" if self.exact else f" ± {float(self.standard_error):.2g}"
        return f"{head}: {float(self.trace):.6g}{error}"
