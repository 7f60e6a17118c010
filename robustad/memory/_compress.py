"""Gradients from rounded residuals: what the backward pass needs, kept in half or a quarter of the bytes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr
from robustad.memory import _packed
from robustad.memory._arguments import positive_integer
from robustad.memory._bytes import readable
from robustad.memory._checkpoint import is_data
from robustad.memory._compressed_program import Program, run
from robustad.memory._packed import BOUNDS, Format

_NAME = "compress_residuals"
Arrays = list[Any]


@dataclasses.dataclass(frozen=True)
class Compression:
    """What compression does to a gradient, measured.

    Attributes:
        gradient: of each differentiable argument's leaf, ‖g - g*‖ / ‖g*‖ against the gradient from exact residuals.
        worst: the largest of these; NaN if one is.
        bound: of the rounding of a residual, relative to the element (bfloat16) or to the largest of its block (int8).
        kept: bytes of all residuals that are not inputs.
        uncompressed: the same from JAX.
        packed: how many residuals are compressed.
    """

    gradient: Any
    worst: float
    bound: float
    kept: int
    uncompressed: int
    packed: int

    def __str__(self) -> str:
        return (
            f"gradient error {self.worst:.1e}, residuals rounded by {self.bound:.1e}; {self.packed} residuals packed, "
            f"{readable(self.kept)} kept instead of {readable(self.uncompressed)}"
        )


def compress_residuals(
    f: Callable[..., Any], to: Format = "bfloat16", *, at_least: int = 1024, block: int = 64
) -> Compressed:
    """The same function, whose gradient keeps its residuals rounded to bfloat16 or to int8 in blocks.

    The value is f's own, computed as it is; only what the backward pass needs of it, the inputs of f apart, is rounded
    while it is kept. The gradient has an error of about the rounding of the residuals, 2⁻⁸ or 1/254, and more where it is a
    difference of large terms: `.error(*args)` measures it. In return the residuals take half or a little over a quarter of
    float32's bytes. What is dear to recompute is compressed; what is cheap is better left to `checkpoint`.

    Compress what is kept for long: a whole network, or the body of a `lax.scan` (a compressed scan first stores all of its
    residuals and then packs them). Forward mode and second derivatives are exact, and keep exact residuals. `vmap`, `jit`,
    `scan` and closed-over values work. Call it under `jax.jit`: without, every call is compiled anew.

    Args:
        f: a function of pytrees. What it makes besides floating arrays of 32 bits or more (masks, indices) is kept as it is.
        to: "bfloat16" or "int8".
        at_least: bytes from which a residual is compressed, at least 1.
        block: elements with one scale, for int8, at least 1. A value that is not finite makes its block NaN.

    Returns:
        A function with f's signature and values, and the method `.error(*args, **kwargs)`.

    Raises:
        TypeError: f is no function; `at_least` or `block` is no integer.
        ValueError: `to` is neither; `at_least` or `block` is below 1; f has effects (on differentiation).

    Source: A. Chakrabarti, B. Moseley, "Backprop with approximate activations for memory-efficient network training",
    NeurIPS 2019; J. Chen et al., "ActNN", ICML 2021. Rounding here is to nearest: repeatable, and not unbiased.

    >>> import jax, jax.numpy as jnp
    >>> from robustad.memory import compress_residuals
    >>> loss = lambda w, x: jnp.mean(jnp.tanh(jnp.sin(x @ w) @ w) ** 2)
    >>> small = compress_residuals(loss, "int8")
    >>> w, x = jax.random.normal(jax.random.key(0), (32, 32)) / 6, jax.random.normal(jax.random.key(1), (64, 32))
    >>> bool(jax.jit(small)(w, x) == jax.jit(loss)(w, x))
    True
    >>> found = small.error(w, x)
    >>> found.worst < 0.02 and found.kept < 0.3 * found.uncompressed
    True
    """
    if not callable(f):
        raise TypeError(f"`f` of `{_NAME}` must be a function; got {f!r} of type {type(f).__name__}.")
    if to not in ("bfloat16", "int8"):
        raise ValueError(f'`to` of `{_NAME}` must be "bfloat16" or "int8"; got {to!r}.')
    compressed = Compressed(f, to, positive_integer("at_least", at_least), positive_integer("block", block))
    functools.update_wrapper(compressed, f, updated=())
    return compressed


class Compressed:
    """What `compress_residuals` returns."""

    def __init__(self, f: Callable[..., Any], to: Any, at_least: int, block: int):
        self._f, self._to, self._at_least, self._block = f, to, at_least, block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        program, operands, _, tree = self._program(*args, **kwargs)
        return jax.tree.unflatten(tree, run(program, operands))

    def error(self, *args: Any, **kwargs: Any) -> Compression:
        """Runs the gradient with and without compression; of a function that returns no scalar, the product of its Jacobian
        with one random cotangent."""
        program, operands, back, _ = self._program(*args, **kwargs)
        outputs, leaves, plan = program.linearized(operands)
        stored = program.packed(leaves, plan)
        rng = np.random.default_rng(0)
        moved = [o for o in map(jnp.asarray, outputs) if _jaxpr.is_inexact(o)]
        cotangents = [jnp.asarray(rng.normal(size=o.shape) if o.ndim else 1.0, o.dtype) for o in moved]
        rough, exact = (program.pull(operands, plan, values, cotangents) for values in (_unpacked(stored), leaves))
        relative = [float(_norm(a - b) / _norm(b)) if _norm(b) else float(_norm(a)) for a, b in zip(rough, exact)]
        kept = [k for k, own in enumerate(plan.inputs) if not own]
        return Compression(
            gradient=back(relative),
            worst=float(np.max(relative, initial=0.0)),  # unlike Python's, it passes NaN on
            bound=BOUNDS[self._to],
            kept=_size([stored[k] for k in kept]),
            uncompressed=_size([leaves[k] for k in kept]),
            packed=sum(plan.packs),
        )

    def _program(self, *args: Any, **kwargs: Any) -> tuple[Program, Arrays, Callable[[list[float]], Any], Any]:
        """f as a program, its operands, how gradients stand in (args, kwargs), and the tree of its outputs."""
        leaves, tree = jax.tree.flatten((args, kwargs))
        data = [i for i, x in enumerate(leaves) if is_data(x)]

        def flat(*arrays: Any) -> Any:
            full = list(leaves)
            for i, x in zip(data, arrays):
                full[i] = x
            args, kwargs = tree.unflatten(full)
            return self._f(*args, **kwargs)

        given = [jnp.asarray(leaves[i]) for i in data]
        closed, shape = jax.make_jaxpr(flat, return_shape=True)(*given)
        if effects := _jaxpr.visible(closed.effects):
            raise ValueError(
                f"The function given to `{_NAME}` has effects: {', '.join(effects)}. Take what prints, "
                "calls back or writes to a reference out of it."
            )
        closed, consts = _jaxpr.closed_over_nothing(closed)

        def back(found: list[float]) -> Any:
            left = iter(found[sum(map(_jaxpr.is_inexact, consts)) :])
            places = {i: next(left) for i, x in zip(data, given) if _jaxpr.is_inexact(x)}
            args, kwargs = tree.unflatten([places.get(i) for i in range(len(leaves))])
            return (args, kwargs) if kwargs else args

        program = Program(closed, self._to, self._at_least, self._block)
        return program, [*consts, *given], back, jax.tree.structure(shape)


def _norm(x: Any) -> float:
    return float(np.linalg.norm(np.asarray(x).astype(np.result_type(np.asarray(x), np.float64)).ravel()))


def _size(tree: Any) -> int:
    return sum(_jaxpr.nbytes(jax.typeof(x)) for x in jax.tree.leaves(tree))


def _unpacked(stored: Arrays) -> Arrays:
    return [_packed.unpack(x) if isinstance(x, _packed.Packed) else x for x in stored]
