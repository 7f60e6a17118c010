"""Eigenvalues and trace of the Hessian of a loss, by Hessian-vector products and the library matfree."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad.diagnosis._arguments import Arguments, AuditError, arguments
from robustad.diagnosis._coordinates import Coordinates, epsilon, working_dtype
from robustad.diagnosis._directions import directions, orthonormal_rows, seed_of
from robustad.diagnosis._hessian_report import HessianEigenvalues, HessianTrace
from robustad.diagnosis._jacobian_operator import ROWS, WHOLE, JacobianOperator, columns, unit
from robustad.diagnosis._on_host import on_host
from robustad.diagnosis._options import count, name_of, refuse_no_function, refuse_no_key, refuse_no_rtol
from robustad.diagnosis._program import checked_scalar, without_aux
from robustad.diagnosis._user_errors import told


def hessian_eigenvalues(
    f: Callable[..., Any],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    k: int = 1,
    iterations: int | None = None,
    rtol: float | None = None,
    key: Array | None = None,
) -> Callable[..., HessianEigenvalues]:
    r"""The k largest and the k smallest eigenvalues of the Hessian of a loss.

    The largest one bounds the learning rate of gradient descent by 2 / λ; a negative one says that the point is no minimum.
    Hessians of up to 64 parameters are formed; of larger ones Lanczos's method with full reorthogonalization, on products
    of `jax.jvp` through `jax.grad`, gives estimates from inside the spectrum. Like every method with one start vector it
    can count an eigenvalue of several dimensions once.

    Args:
        f: a real scalar function, as for `jax.grad`.
        argnums, has_aux: as for `jax.grad`; flax nnx and equinox modules are differentiated in their parameters.
        k: how many at each end.
        iterations: Lanczos steps, each a product and a vector kept; by default 64, or 8 k if that is more. More of them are
            what helps where it has not converged.
        rtol: converged where every residual is at most this share of the largest modulus; by default the square root of
            the eps of the narrowest dtype among the parameters: values in a gap are then right to about eps.
        key: `jax.random.key` that draws the start vector; by default always the same.

    Returns:
        A function of `f`'s arguments that returns `HessianEigenvalues`. It works under `jax.jit` and `jax.vmap`; called by
        itself it compiles anew with each call.

    Raises:
        ValueError: an option out of range; on calling: `f` does not return a real scalar or cannot be differentiated
            twice; k is more than there are parameters; `argnums` is wrong or holds no floating array.
        ImportError: matfree is not installed: `pip install 'robustad[spectra]'`.

    Source: Golub and Van Loan, Matrix computations, 4th ed., section 10.1; Ghorbani, Krishnan, Xiao, An investigation
    into neural net optimization via Hessian eigenvalue density (ICML 2019).

    Example:
        >>> import jax.numpy as jnp
        >>> def loss(p):
        ...     return 2 * p["a"] ** 2 - p["a"] * p["b"] - p["b"] ** 2 / 2
        >>> found = hessian_eigenvalues(loss)({"a": 1.0, "b": 1.0})
        >>> round(float(found.top[0]), 4), round(float(found.bottom[0]), 4)
        (4.1926, -1.1926)
    """
    _check("hessian_eigenvalues", f, key)
    count("k", k, 1)
    if iterations is not None:
        count("iterations", iterations, 2)
    refuse_no_rtol(rtol)

    def solve(operator: JacobianOperator, e: Array, key: Array) -> tuple[Array, ...]:
        n = operator.inputs
        if k > n:
            raise AuditError(f"`k`={k} eigenvalues were asked for at each end, but the Hessian has {n}.")
        steps = min(n, max(64, 8 * k) if iterations is None else iterations)
        if k > steps:
            raise AuditError(f"`iterations`={iterations} cannot find `k`={k} eigenvalues; expected 8 k or more.")
        if n <= max(WHOLE, steps):
            values, residuals = _formed(operator)
        else:
            values, residuals = _lanczos(operator, steps, key)
        pick = np.r_[np.arange(len(values))[::-1][:k], np.arange(k)]
        values, residuals = values[pick], residuals[pick]
        tolerance = math.sqrt(operator.epsilon) if rtol is None else rtol
        settled = jnp.all(residuals <= tolerance * jnp.max(jnp.abs(values)))
        values, residuals = jnp.ldexp(values, e), jnp.ldexp(residuals, e)
        return values[:k], values[k:], residuals[:k], residuals[k:], settled

    @functools.wraps(f, updated=())
    def measured(*args: Any, **kwargs: Any) -> HessianEigenvalues:
        (top, bottom, top_residuals, bottom_residuals, settled), name, n = _run(
            f, argnums, has_aux, args, kwargs, key, solve
        )
        return HessianEigenvalues(top, bottom, top_residuals, bottom_residuals, settled, name, n)

    return measured


def hessian_trace(
    f: Callable[..., Any],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    samples: int = 32,
    key: Array | None = None,
) -> Callable[..., HessianTrace]:
    r"""The trace of the Hessian of a loss, the sum of its eigenvalues, with a standard error.

    XTrace: an orthogonal basis of the Hessian's products with random vectors carries most of the trace, which is then
    exact; what is left is estimated by Hutchinson's method, with every vector in turn left out of the basis. Where the
    eigenvalues fall fast it is right to many digits; where they do not it is as good as Hutchinson's. Of a Hessian of
    up to twice as many parameters as samples, or of a lower rank than samples, it is exact.

    Args:
        f, argnums, has_aux: as for `hessian_eigenvalues`.
        samples: how many random vectors; twice as many products are made, as many at a time.
        key: `jax.random.key` that draws them; by default always the same.

    Returns:
        A function of `f`'s arguments that returns a `HessianTrace`. It works under `jax.jit` and `jax.vmap`.

    Raises:
        ValueError, ImportError: as `hessian_eigenvalues`.

    Source: Epperly, Tropp, Webber, XTrace: making the most of every sample in stochastic trace estimation (SIAM J. Matrix
    Anal. Appl. 45, 2024), section 2.1.

    Example:
        >>> import jax.numpy as jnp
        >>> found = hessian_trace(lambda x: jnp.sum(jnp.arange(5.0) * x**2))(jnp.ones(5))
        >>> float(found.trace)
        20.0
    """
    _check("hessian_trace", f, key)
    count("samples", samples, 2)

    def solve(operator: JacobianOperator, e: Array, key: Array) -> tuple[Array, ...]:
        n = operator.inputs
        if n <= max(WHOLE, 2 * samples):
            trace = jnp.trace(columns(operator))
            error = jnp.zeros_like(trace)
        else:
            stochtrace = _matfree("stochtrace")
            like = jnp.zeros((n,), operator.dtype)
            drawn = stochtrace.sampler_sphere(like, num=samples)(key)
            each = stochtrace.leave_one_out_xtrace()(lambda v: operator.push(v[None])[0], drawn)
            trace = jnp.mean(each)
            error = jnp.std(each, ddof=1) / jnp.sqrt(jnp.asarray(samples, operator.dtype))
        return jnp.ldexp(trace, e), jnp.ldexp(error, e)

    @functools.wraps(f, updated=())
    def measured(*args: Any, **kwargs: Any) -> HessianTrace:
        (trace, error), name, n = _run(f, argnums, has_aux, args, kwargs, key, solve)
        return HessianTrace(trace, error, name, n, exact=n <= max(WHOLE, 2 * samples))

    return measured


def _check(tool: str, f: Any, key: Any) -> None:
    refuse_no_function(f, tool)
    refuse_no_key(key)


def _matfree(module: str) -> Any:
    try:
        import matfree.decomp
        import matfree.stochtrace
    except ImportError as error:
        raise ImportError(
            "the spectrum of a Hessian of more than a few parameters needs matfree: pip install 'robustad[spectra]'."
        ) from error
    return getattr(matfree, module)


def _run(
    f: Any, argnums: Any, has_aux: bool, args: Any, kwargs: Any, key: Any, solve: Callable[..., tuple[Array, ...]]
) -> tuple[tuple[Array, ...], str, int]:
    taken = arguments(f, argnums, args, kwargs)
    name = name_of(f)

    @jax.jit
    def run(leaves: list[Array], others: list[Array], key: Array) -> tuple[Array, ...]:
        operator = _hessian(taken, leaves, others, has_aux, name)
        operator, e = operator.scaled(seed_of(None))
        return solve(operator, e, key)

    with jax.debug_nans(False), jax.debug_infs(False):
        found = run(taken.leaves, taken.others, jax.random.key(0) if key is None else key)
    return on_host(found), name, Coordinates.of(taken.leaves, jnp.float32).size


def _hessian(
    taken: Arguments, leaves: Sequence[Array], others: Sequence[Array], has_aux: bool, name: str
) -> JacobianOperator:
    """v ↦ H v; it is symmetric, so this is `push` and `pull`."""
    if any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in leaves):
        raise AuditError(f"`{name}` has complex parameters; expected real ones. Pass real and imaginary parts.")
    space = Coordinates.of(leaves, working_dtype(leaves))

    def value(leaves: list[Array]) -> Array:
        return checked_scalar(without_aux(taken.call(leaves, others), has_aux), has_aux)

    leaves = list(leaves)
    try:
        _, pushed = jax.linearize(jax.grad(value), leaves)
    except AuditError:
        raise
    except (TypeError, ValueError, NotImplementedError) as error:
        raise AuditError(
            f"`{name}` cannot be differentiated twice: {told(error, 600)}\nMost likely (a) "
            "a while loop: use lax.scan, or lax.fori_loop of a static length; (b) a custom rule that has no derivative."
        ) from error

    push = jax.vmap(lambda row: space.vector(pushed(space.leaves(row))))
    return JacobianOperator(push, push, space.size, space.size, space.dtype, epsilon(leaves))


def _formed(operator: JacobianOperator) -> tuple[Array, Array]:
    """All eigenvalues, ascending, with their residuals."""
    matrix = columns(operator)
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    return values, _lengths((matrix @ vectors - values * vectors).T)


def _lanczos(operator: JacobianOperator, steps: int, key: Array) -> tuple[Array, Array]:
    """Ritz values, ascending, with their residuals."""
    n, eps = operator.inputs, jnp.finfo(operator.dtype).eps
    seed = seed_of(key)
    order = jnp.argsort(directions((n,), operator.dtype, seed + jnp.uint32(1)))
    signs = jnp.sign(directions((n,), operator.dtype, seed + jnp.uint32(2)))

    def product(v: Array) -> Array:
        # Where the vectors found span an invariant space Lanczos divides by zero. A symmetric matrix well above rounding
        # makes the method start anew there, in another direction; Rayleigh quotients below square the error that it makes.
        noise = (signs * v)[order] + signs * jnp.zeros_like(v).at[order].set(v)
        return operator.push(v[None])[0] + 32 * eps * noise

    found = _matfree("decomp").tridiag_sym(steps, custom_vjp=False)(product, unit(operator, seed))
    # Where it has started anew its vectors are orthonormal but roughly; Rayleigh-Ritz in their span asks for no more.
    space = orthonormal_rows(jnp.asarray(found.Q_tall))
    images = lax.map(lambda row: operator.push(row[None])[0], space, batch_size=ROWS)
    small = images @ space.T
    values, vectors = jnp.linalg.eigh((small + small.T) / 2)
    return values, _lengths(vectors.T @ images - values[:, None] * (vectors.T @ space))


def _lengths(rows: Array) -> Array:
    return jnp.sqrt(jnp.sum(rows**2, axis=1))
