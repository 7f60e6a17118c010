"""How far a Jacobian is from a multiple of an isometry."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad.diagnosis._arguments import arguments
from robustad.diagnosis._directions import seed_of
from robustad.diagnosis._jacobian_operator import ROWS, WHOLE, JacobianOperator, columns, jacobian_operator
from robustad.diagnosis._on_host import on_host
from robustad.diagnosis._options import count, name_of, refuse_no_function, refuse_no_key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class IsometryDefect:
    """What `isometry_defect` says; a pytree of arrays, with leading axes under `jax.vmap`.

    Attributes:
        defect: 0 for an isometry times a number; see `isometry_defect`. NaN where the Jacobian is not finite.
        scale: that number: the root mean square of the singular values.
        standard_error: of the defect; 0 where it is not an estimate.
        function: its name.
        shape: of the Jacobian, (outputs, inputs), in real components.
        exact: whether the whole Jacobian was formed.
    """

    defect: Array
    scale: Array
    standard_error: Array
    function: str = dataclasses.field(metadata={"static": True})
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})
    exact: bool = dataclasses.field(metadata={"static": True})

    def __float__(self) -> float:
        return float(self.defect)

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger."""
        return {"isometry_defect": float(self.defect), "scale": float(self.scale)}

    def __str__(self) -> str:
        head = f"isometry defect of {self.function}, {self.shape[0]} x {self.shape[1]}"
        if self.defect.ndim:
            ends = f"{float(self.defect.min()):.3g} to {float(self.defect.max()):.3g}"
            return f"{head}, a batch of {self.defect.shape}: {ends}"
        error = "" if self.exact else f" ± {float(self.standard_error):.2g}"
        return f"{head}: {float(self.defect):.4g}{error}, of {float(self.scale):.4g} times an isometry"


def isometry_defect(
    f: Callable[..., Any],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    samples: int = 32,
    key: Array | None = None,
) -> Callable[..., IsometryDefect]:
    r"""How far the Jacobian of `f` is from an isometry, up to scale: how unequally it treats directions.

    \[ d = \lVert J^\top J / s^2 - I \rVert_F / \sqrt{n}, \quad s^2 = \lVert J \rVert_F^2 / n, \]

    with n the number of inputs; with \(J J^\top\) and the number of outputs, where these are fewer. It is the standard
    deviation of the squared singular values divided by their mean: 0 where all are equal (dynamical isometry is that, with
    s = 1: errors and gradients pass unchanged), about 1 for a square Gaussian matrix, and \(\sqrt{n - 1}\) at rank one.

    Jacobians with up to 64 inputs or outputs are formed; of larger ones it is estimated from random directions z,
    \(n \lVert (J^\top J / s^2 - I) z \rVert^2 / \lVert z \rVert^2\), so that an isometry has no statistical error.

    Args:
        f: a function of arrays or pytrees to arrays or pytrees; its floating results count.
        argnums: the positional arguments whose floating leaves are the inputs.
        has_aux: whether `f` returns (value, aux); aux does not count.
        samples: how many random directions, of large Jacobians.
        key: `jax.random.key` that draws them; by default always the same.

    Returns:
        A function of `f`'s arguments that returns an `IsometryDefect`. It works under `jax.jit` and `jax.vmap`. A zero
        Jacobian has defect inf: no multiple of it is an isometry.

    Raises:
        ValueError: as `singular_values`.

    Sources: Saxe, McClelland, Ganguli, Exact solutions to the nonlinear dynamics of learning in deep linear neural networks
    (ICLR 2014); Pennington, Schoenholz, Ganguli, Resurrecting the sigmoid in deep learning through dynamical isometry
    (NeurIPS 2017).

    Example:
        >>> import jax.numpy as jnp
        >>> turn = jnp.array([[0.0, -3.0], [3.0, 0.0]])
        >>> found = isometry_defect(lambda x: turn @ x)(jnp.ones(2))
        >>> bool(found.defect < 1e-6), float(found.scale)
        (True, 3.0)
    """
    refuse_no_function(f, "isometry_defect")
    count("samples", samples, 2)
    refuse_no_key(key)

    @functools.wraps(f, updated=())
    def measured(*args: Any, **kwargs: Any) -> IsometryDefect:
        taken = arguments(f, argnums, args, kwargs)
        name = name_of(f)
        shape: list[int] = []

        @jax.jit
        def run(leaves: list[Array], others: list[Array], key: Array) -> tuple[Array, Array, Array]:
            operator = jacobian_operator(taken, leaves, others, has_aux, name)
            shape[:] = operator.outputs, operator.inputs
            operator, e = operator.scaled(seed_of(None))
            if operator.outputs < operator.inputs:
                operator = operator.transposed()
            whole = operator.inputs <= max(WHOLE, samples)
            defect, scale, error = _formed(operator) if whole else _estimated(operator, samples, key)
            none = scale == 0
            return jnp.where(none, jnp.inf, defect), jnp.ldexp(scale, e), jnp.where(none, 0, error)

        with jax.debug_nans(False), jax.debug_infs(False):
            found = run(taken.leaves, taken.others, jax.random.key(0) if key is None else key)
        defect, scale, error = on_host(found)
        return IsometryDefect(defect, scale, error, name, (shape[0], shape[1]), exact=min(shape) <= max(WHOLE, samples))

    return measured


def _formed(operator: JacobianOperator) -> tuple[Array, Array, Array]:
    jacobian = columns(operator)
    n = operator.inputs
    square = jnp.sum(jacobian**2) / n
    distance = jacobian.T @ jacobian / jnp.where(square > 0, square, 1) - jnp.eye(n, dtype=operator.dtype)
    return jnp.sqrt(jnp.sum(distance**2) / n), jnp.sqrt(square), jnp.zeros_like(square)


def _estimated(operator: JacobianOperator, samples: int, key: Array) -> tuple[Array, Array, Array]:
    """From as many random unit vectors z: s² is the mean of n ‖J z‖², d² that of ‖JᵀJ z / s² - z‖²."""
    z = jax.random.normal(key, (samples, operator.inputs), operator.dtype)
    z = z / jnp.sqrt(jnp.sum(z**2, axis=1, keepdims=True))

    def products(row: Array) -> tuple[Array, Array]:
        image = operator.push(row[None])
        return jnp.sum(image**2), operator.pull(image)[0]

    squares, back = lax.map(products, z, batch_size=ROWS)
    square = jnp.mean(squares)
    distances = jnp.sum((back / jnp.where(square > 0, square, 1) - z) ** 2, axis=1)
    defect = jnp.sqrt(jnp.mean(distances))
    error = jnp.std(distances, ddof=1) / jnp.sqrt(jnp.asarray(samples, operator.dtype))
    return defect, jnp.sqrt(square), error / jnp.where(defect > 0, 2 * defect, 1)
