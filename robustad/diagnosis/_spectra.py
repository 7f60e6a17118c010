"""Singular values, spectral norm and spectral radius of a Jacobian, without forming it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad.diagnosis import _block_krylov
from robustad.diagnosis._arguments import AuditError, arguments
from robustad.diagnosis._block_krylov import Found
from robustad.diagnosis._directions import seed_of
from robustad.diagnosis._jacobian_operator import JacobianOperator, jacobian_operator
from robustad.diagnosis._on_host import on_host
from robustad.diagnosis._options import count, name_of, refuse_no_function, refuse_no_key, refuse_no_rtol
from robustad.diagnosis._spectrum_report import Spectrum


def spectral_norm(
    f: Callable[..., Any],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    rtol: float | None = None,
    cycles: int = 30,
    key: Array | None = None,
) -> Callable[..., Spectrum]:
    r"""The largest singular value of the Jacobian of `f`: by how much it can amplify a small change of its arguments.

    By `jax.jvp` and `jax.vjp` alone, as `singular_values`, whose notes hold here.

    Args:
        f, argnums, has_aux, rtol, cycles, key: as for `singular_values`.

    Returns:
        A function of `f`'s arguments that returns a `Spectrum` of one value, whose `.value` is the norm.

    Raises:
        ValueError: as `singular_values`.

    Example:
        >>> import jax.numpy as jnp
        >>> found = spectral_norm(lambda x: {"a": 3 * x, "b": 4 * x})(jnp.ones(5))
        >>> round(float(found.value), 4), bool(found.converged)
        (5.0, True)
    """

    def solve(operator: JacobianOperator, seed: Array, rtol: float) -> Found:
        return _block_krylov.singular(operator, 1, seed, rtol, cycles)

    return _transform("spectral_norm", "spectral norm", f, argnums, has_aux, rtol, cycles, key, solve)


def singular_values(
    f: Callable[..., Any],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    k: int | None = None,
    rtol: float | None = None,
    cycles: int = 30,
    key: Array | None = None,
) -> Callable[..., Spectrum]:
    r"""The k largest singular values of the Jacobian of `f`, with respect to all floating leaves of its arguments together.

    Small Jacobians (64 inputs or outputs) are formed by as many products; of larger ones Rayleigh-Ritz in restarted block
    Krylov spaces gives estimates from below. The products are the program's own, in its dtypes; vectors are kept in
    float32, or float64 where a leaf is that wide, scaled by a power of two, so that entries of 1e25 or 1e-25 do no harm.

    Args:
        f: a function of arrays or pytrees to arrays or pytrees; its floating results count. A complex leaf counts as two
            real ones.
        argnums: the positional arguments whose floating leaves are the inputs (flax nnx: the `Param`s).
        has_aux: whether `f` returns (value, aux); aux does not count.
        k: how many; by default 6, or as many as there are.
        rtol: converged where every residual is at most this share of the largest value. By default the square root of
            the eps of the narrowest dtype among inputs and outputs: values in a gap are then right to about eps.
        cycles: how many restarts at most, of about 100 products each.
        key: `jax.random.key` that draws the first block; by default always the same.

    Returns:
        A function of `f`'s arguments that returns a `Spectrum`. It works under `jax.jit` and `jax.vmap`; called by itself it
        compiles anew with each call, so put `jax.jit` around it where it is called often.

    Raises:
        ValueError: an option out of range; on calling: `f` returns no floating array or has no reverse mode; `argnums` is
            wrong or holds no floating array; k is more than there are.

    Source: Musco and Musco, Randomized block Krylov methods for stronger and faster approximate SVD (NeurIPS 2015).

    Example:
        >>> import jax.numpy as jnp
        >>> found = singular_values(lambda x: 1e25 * jnp.array([3.0, 2.0, 1.0]) * x)(jnp.ones(3))
        >>> print(found.values / 1e25)
        [3. 2. 1.]
    """
    if k is not None:
        count("k", k, 1)

    def solve(operator: JacobianOperator, seed: Array, rtol: float) -> Found:
        most = min(operator.inputs, operator.outputs)
        if k is not None and k > most:
            raise AuditError(f"`k`={k} singular values were asked for, but the Jacobian has {most}.")
        return _block_krylov.singular(operator, min(6, most) if k is None else int(k), seed, rtol, cycles)

    return _transform("singular_values", "singular values", f, argnums, has_aux, rtol, cycles, key, solve)


def spectral_radius(
    f: Callable[..., Any],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    rtol: float | None = None,
    cycles: int = 30,
    key: Array | None = None,
) -> Callable[..., Spectrum]:
    r"""The largest modulus of an eigenvalue of the Jacobian of `f`: how fast repeating its linearization grows, in the end.

    By `jax.jvp` alone: Arnoldi's method in restarted blocks; Jacobians of up to 256 inputs are formed. The residual, which
    `rtol` compares with the norm of J, is the backward error: the eigenvalue is exact for a matrix that is nearer to J than
    that. Of a non-normal J the eigenvalues themselves may be much farther away (a Jordan block of size n turns an error eps
    into its n-th root): compare it with `spectral_norm`, which bounds it, and which is what one application can do. The
    products are on whichever backend, but the eigenvalues of small matrices need one that has `jnp.linalg.eig` (CPU; GPU in
    part; not TPU).

    Args:
        f: a function whose floating results have as many components as the floating leaves of its `argnums`.
        argnums, has_aux, rtol, cycles, key: as for `singular_values`.

    Returns:
        A function of `f`'s arguments that returns a `Spectrum` of one value; it works under `jax.jit` and `jax.vmap`.

    Raises:
        ValueError: as `singular_values`; the Jacobian is not square.

    Source: Saad, Numerical methods for large eigenvalue problems, 2nd ed. (SIAM 2011), chapter 6.

    Example:
        >>> import jax.numpy as jnp
        >>> turn = jnp.array([[0.0, 100.0], [-0.01, 0.0]])  # eigenvalues ±i
        >>> f = lambda x: turn @ x
        >>> f"{spectral_radius(f)(jnp.ones(2)).value:.3f} {spectral_norm(f)(jnp.ones(2)).value:.3f}"
        '1.000 100.000'
    """

    def solve(operator: JacobianOperator, seed: Array, rtol: float) -> Found:
        if operator.inputs != operator.outputs:
            raise AuditError(
                f"the Jacobian must be square to have eigenvalues; it is {operator.outputs} x {operator.inputs}. "
                "`spectral_norm` is for any shape."
            )
        found = _block_krylov.eigen(operator, 1, seed, rtol, cycles)
        return found._replace(values=jnp.abs(found.values))

    return _transform("spectral_radius", "spectral radius", f, argnums, has_aux, rtol, cycles, key, solve)


Solve = Callable[[JacobianOperator, Array, float], Found]


def _transform(
    tool: str,
    what: str,
    f: Any,
    argnums: Any,
    has_aux: bool,
    rtol: Any,
    cycles: Any,
    key: Any,
    solve: Solve,
) -> Callable[..., Spectrum]:
    refuse_no_function(f, tool)
    count("cycles", cycles, 1)
    refuse_no_key(key)
    refuse_no_rtol(rtol)

    @functools.wraps(f, updated=())
    def of(*args: Any, **kwargs: Any) -> Spectrum:
        taken = arguments(f, argnums, args, kwargs)
        name = name_of(f)
        shape: list[int] = []

        @jax.jit
        def run(leaves: list[Array], others: list[Array], seed: Array) -> Found:
            operator = jacobian_operator(taken, leaves, others, has_aux, name)
            shape[:] = operator.outputs, operator.inputs
            operator, e = operator.scaled(seed)
            tolerance = np.sqrt(operator.epsilon) if rtol is None else rtol
            found = solve(operator, seed, tolerance)
            return found._replace(values=jnp.ldexp(found.values, e), residuals=jnp.ldexp(found.residuals, e))

        with jax.debug_nans(False), jax.debug_infs(False):
            found = run(taken.leaves, taken.others, seed_of(key))
        values, residuals, converged, products = on_host(found)
        return Spectrum(values, residuals, converged, products, what, name, (shape[0], shape[1]))

    return of
