"""Leading singular values and eigenvalues by products alone: Rayleigh-Ritz in block Krylov spaces, restarted.

Blocks find values of any multiplicity. Where a product adds no direction, a random one starts anew. (Golub-Kahan and
Lanczos with single vectors, matfree's for example, divide by zero there.)

References: Musco and Musco, Randomized block Krylov methods (NeurIPS 2015); Saad, Numerical methods for large eigenvalue
problems, 2nd ed. (SIAM 2011), sections 6.6 and 6.7.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad.diagnosis._directions import directions, orthonormal_rows
from robustad.diagnosis._jacobian_operator import WHOLE, JacobianOperator, columns

WHOLE_SQUARE = 256  # the same for eigenvalues, which take more products to find without
BASIS = 48  # vectors in a cycle's space
EXTRA = 3  # vectors of a block beyond the wanted ones


class Found(NamedTuple):
    """Values with their residuals, scaled; whether they converged, and the products made."""

    values: Array
    residuals: Array
    converged: Array
    products: Array


Cycle = Callable[[Array], tuple[Array, Array, Array, Array]]
"""From a block's rows: values, residuals, the norm of the matrix as far as it is known, the rows of a better block."""


def singular(operator: JacobianOperator, k: int, seed: Array, rtol: float, cycles: int) -> Found:
    """The k largest singular values."""
    if operator.outputs < operator.inputs:
        operator = operator.transposed()
    n, width = operator.inputs, k + EXTRA
    if n <= max(WHOLE, 3 * width):
        u, s, vt = jnp.linalg.svd(columns(operator), full_matrices=False)
        return _whole(s[:k], operator, _residuals(operator.pull(u.T[:k]) - s[:k, None] * vt[:k]), rtol * s[0])

    def cycle(block: Array) -> tuple[Array, Array, Array, Array]:
        space, images = _krylov(operator, block, seed, lambda image: operator.pull(orthonormal_rows(image)))
        u, r = jnp.linalg.qr(images.T)  # J spaceᵀ = u r
        a, s, b = jnp.linalg.svd(r)
        v = b[:width] @ space
        residual = operator.pull((u @ a[:, :width]).T) - s[:width, None] * v
        return s[:k], _residuals(residual[:k]), s[0], v

    return _restarted(cycle, operator, width, k, seed, rtol, cycles, _depth(width) * 2 * width + width)


def eigen(operator: JacobianOperator, k: int, seed: Array, rtol: float, cycles: int) -> Found:
    """The k eigenvalues of largest modulus of a square matrix, complex; residuals are compared with the matrix's norm."""
    n, width = operator.inputs, k + EXTRA
    if n <= max(WHOLE_SQUARE, 3 * width):
        matrix = columns(operator)
        values, vectors = _eig(matrix, k)
        images = matrix.astype(vectors.dtype) @ vectors
        return _whole(values, operator, _residuals((images - values * vectors).T), rtol * _norm(matrix))

    def cycle(block: Array) -> tuple[Array, Array, Array, Array]:
        space, images = _krylov(operator, block, seed, lambda image: image)
        values, vectors = _eig(space @ images.T, width)
        residual = images.T.astype(vectors.dtype) @ vectors - space.T.astype(vectors.dtype) @ (values * vectors)
        # Of a complex pair, the real part of one vector and the imaginary part of the other: they span the same plane.
        coefficients = jnp.where(values.imag < 0, vectors.imag, vectors.real)
        return values[:k], _residuals(residual.T[:k]), _norm(images), orthonormal_rows(coefficients.T @ space)

    return _restarted(cycle, operator, width, k, seed, rtol, cycles, _depth(width) * width)


def _eig(matrix: Array, k: int) -> tuple[Array, Array]:
    """The k eigenvalues of largest modulus, with unit vectors (columns); NaN where the matrix is not finite."""
    finite = jnp.isfinite(matrix).all()
    values, vectors = jnp.linalg.eig(jnp.where(finite, matrix, 0))
    order = jnp.argsort(-jnp.abs(values))[:k]
    return jnp.where(finite, values[order], jnp.nan), vectors[:, order]


def _whole(values: Array, operator: JacobianOperator, residuals: Array, tolerance: Array) -> Found:
    products = jnp.full((), operator.inputs, jnp.int32)
    return Found(values, residuals, jnp.all(residuals <= tolerance), products)


def _norm(matrix: Array) -> Array:
    finite = jnp.isfinite(matrix).all()
    return jnp.where(finite, jnp.linalg.svd(jnp.where(finite, matrix, 0), compute_uv=False)[0], jnp.nan)


def _residuals(rows: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.abs(rows) ** 2, axis=1))


def _depth(width: int) -> int:
    return max(2, BASIS // width)


def _krylov(
    operator: JacobianOperator, block: Array, seed: Array, onward: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """Orthonormal rows, block after block, each made of what is `onward` of the last one's image; and their images."""
    width, depth = len(block), _depth(len(block))
    noise = 32 * jnp.finfo(operator.dtype).eps

    def more(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        space, images, block = state
        image = operator.push(block)
        space = lax.dynamic_update_slice(space, block, (i * width, jnp.zeros_like(i)))
        images = lax.dynamic_update_slice(images, image, (i * width, jnp.zeros_like(i)))
        block = onward(image)
        largest = jnp.max(jnp.abs(block))
        fresh = directions(block.shape, block.dtype, seed + i.astype(jnp.uint32) + 2)
        block = block + jnp.where(largest == 0, 1, largest * noise) * fresh  # a direction where the image has none
        return space, images, _orthonormal(block, space)

    space = jnp.zeros((depth * width, operator.inputs), operator.dtype)
    images = jnp.zeros((depth * width, operator.outputs), operator.dtype)
    space, images, _ = lax.fori_loop(0, depth, more, (space, images, block))
    return space, images


def _orthonormal(rows: Array, space: Array) -> Array:
    """Orthonormal rows, orthogonal to a space. Thrice: where only rounding is left, QR makes it as large as the rest."""
    return lax.fori_loop(0, 3, lambda _, rows: orthonormal_rows(rows - (rows @ space.T) @ space), rows)


def _restarted(
    cycle: Cycle, operator: JacobianOperator, width: int, k: int, seed: Array, rtol: float, cycles: int, products: int
) -> Found:
    def going(state: tuple[Array, Array, Array, Array, Array]) -> Array:
        made, _, _, residuals, norm = state
        # NaN compares false: a Jacobian that is not finite ends it.
        return (made == 0) | ((made < cycles) & jnp.any(residuals > rtol * norm))

    def again(state: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array, Array]:
        made, block, *_ = state
        values, residuals, norm, block = cycle(block)
        return made + 1, block, values, residuals, norm

    block = orthonormal_rows(directions((width, operator.inputs), operator.dtype, seed + jnp.uint32(1)))
    values, residuals, norm, _ = (jnp.zeros(x.shape, x.dtype) for x in jax.eval_shape(cycle, block))
    made = jnp.zeros((), jnp.int32)
    made, _, values, residuals, norm = lax.while_loop(going, again, (made, block, values, residuals, norm))
    return Found(values, residuals, jnp.all(residuals <= rtol * norm), made * products)
