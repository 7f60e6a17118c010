"""Deep stacks whose gradient keeps their output alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import _jaxpr
from robustad.memory import _couplings, _step
from robustad.memory._couplings import Stack

_NAME = "reversible"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drift:
    """How far the inputs that the backward pass reconstructs are from the true ones, from the first block to the last.

    Attributes:
        relative: (depth,), for the input of each block the largest error, relative to its largest element.
        ulp: the same in units in the last place of the dtype, at 1: relative / ε.
    """

    relative: Array
    ulp: Array

    def __str__(self) -> str:
        k = int(np.argmax(self.relative)) if self.relative.size else 0
        if not self.relative.size:
            return "drift of no blocks"
        return f"drift at most {self.relative[k]:.1e} ({self.ulp[k]:.3g} ulp), at the input of block {k}"


def reversible(f: Callable[..., Any], g: Callable[..., Any], *, quantum: float | None = None) -> Reversible:
    r"""A stack of reversible blocks, \(y_1 = x_1 + f(p, x_2),\; y_2 = x_2 + g(q, y_1)\), in memory of one block.

    The gradient keeps the parameters, the input and the output; the backward pass reconstructs the input of each block from
    its output, \(x_2 = y_2 - g(y_1),\; x_1 = y_1 - f(x_2)\), at the cost of one more evaluation of f and g.

    The reconstruction rounds: its error grows through the blocks as the inverse stack amplifies it, and the gradient has
    errors of that size. `.drift(params, x)` measures it. Well-conditioned blocks (residuals small beside the states) lose a
    few ulp; where f and g are steep, with Lipschitz constants well above 1, it grows geometrically. With a `quantum` the
    states stay on a grid on which additions are exact, and come back bit for bit.

    Forward mode, reverse mode and their combinations, `vmap`, `jit` and `shard_map` work, as do values that f and g close
    over. A second derivative reverse over reverse stores the states of every block; forward over reverse does not. Call it
    under `jax.jit`: without, every call is compiled anew.

    Args:
        f: `f(p, x2)`, of the parameters of one block and a pytree of floating arrays, returns a pytree like x1. No effects.
        g: `g(q, y1)` likewise returns a pytree like x2.
        quantum: round the input and what is added to multiples of this, a power of two, with derivative 1. States up to
            `quantum` / ε in absolute value are exact: with 2⁻¹⁶ in float32, up to 128. It changes the value, by up to
            quantum / 2 for each sum. The states' dtype must hold it: in float16 it is at least 2⁻¹⁴.

    Returns:
        A function `(params, x) -> y` with methods. `params` is a pair (p, q) of pytrees of arrays with a leading axis, the
        depth; x and y are pairs.

    Raises:
        TypeError: f or g is no function, or returns another structure, shape or dtype than the half that it is added to; x
            is no pair of floating arrays; the parameters are no pair.
        ValueError: the leading axes of the parameters differ or there are none; f or g has effects; `quantum` is no power
            of two, or the states' dtype does not hold it as a normal number.

    Source: A. N. Gomez, M. Ren, R. Urtasun, R. B. Grosse, "The reversible residual network", NeurIPS 2017; D. Maclaurin, D.
    Duvenaud, R. Adams, "Gradient-based hyperparameter optimization through reversible learning", ICML 2015, for the grid.

    >>> import jax, jax.numpy as jnp
    >>> from robustad.memory import reversible
    >>> half = lambda w, x: jnp.tanh(x @ w)
    >>> stack = reversible(half, half)
    >>> params = tuple(jax.random.normal(jax.random.key(0), (2, 50, 4, 4)) / 4)  # 50 blocks
    >>> x = jnp.ones((3, 4)), jnp.zeros((3, 4))
    >>> loss = lambda params: jnp.sum(stack(params, x)[0] ** 2)
    >>> [g.shape for g in jax.jit(jax.grad(loss))(params)]
    [(50, 4, 4), (50, 4, 4)]
    >>> bool(stack.drift(params, x).relative.max() < 1e-4)
    True
    """
    for name, function in (("f", f), ("g", g)):
        if not callable(function):
            raise TypeError(f"`{name}` of `{_NAME}` must be a function; got {function!r}.")
    if quantum is not None and not _is_power_of_two(quantum):
        raise ValueError(f"`quantum` of `{_NAME}` must be a power of two, as 2**-16; got {quantum!r}.")
    return Reversible(f, g, None if quantum is None else float(quantum))


def _is_power_of_two(x: Any) -> bool:
    if not isinstance(x, Real) or isinstance(x, bool):
        return False
    try:
        value = float(x)
    except OverflowError:
        return False
    return value == x and 0 < value < math.inf and math.frexp(value)[0] == 0.5


@dataclasses.dataclass(frozen=True)
class Reversible:
    """What `reversible` returns."""

    f: Callable[..., Any]
    g: Callable[..., Any]
    quantum: float | None = None

    def __call__(self, params: Any, x: Any) -> Any:
        """The output of the stack, a pair like x."""
        stack, operands, tree = self._stack(params, x)
        return jax.tree.unflatten(tree, _couplings.run(stack, operands))

    def plain(self, params: Any, x: Any) -> Any:
        """The same value, with JAX's own derivative, which stores the states of every block."""
        stack, operands, tree = self._stack(params, x)
        return jax.tree.unflatten(tree, stack.run(operands))

    def inverse(self, params: Any, y: Any) -> Any:
        """The input, up to rounding, of which y is the output."""
        stack, operands, tree = self._stack(params, y)
        count = sum(stack.groups[:4])
        return jax.tree.unflatten(tree, stack.back(operands[:count], operands[count:]))

    def drift(self, params: Any, x: Any) -> Drift:
        """How far the reconstruction is from the true states; this stores the states of every block."""
        stack, operands, _ = self._stack(params, x)
        output, true = stack.run(operands, keep=True)
        _, found = stack.back(operands[: sum(stack.groups[:4])], output, keep=True)

        def largest(states: list[Array]) -> Array:
            each = [jnp.max(jnp.abs(s.astype(wide)), tuple(range(1, s.ndim)), initial=0) for s in states]
            return jnp.max(jnp.stack(each), 0)

        wide = jnp.result_type(jnp.float32, *true)
        size = largest(true)
        error = largest([a.astype(wide) - b.astype(wide) for a, b in zip(found, true)])
        relative = jnp.where(error == 0, 0, error / jnp.where(size == 0, 1, size))
        return Drift(relative, relative / max(float(jnp.finfo(s.dtype).eps) for s in true))

    def _stack(self, params: Any, x: Any) -> tuple[Stack, list[Any], Any]:
        """The stack, its operands, and the tree of its output."""
        for name, given, meaning in (("params", params, "(p, q), of f and of g"), ("x", x, "(x1, x2)")):
            if not isinstance(given, tuple | list) or len(given) != 2:
                raise TypeError(f"`{name}` of a `{_NAME}` stack must be a pair {meaning}; got {type(given).__name__}.")
        params = _step.as_arrays(_NAME, "params", tuple(params))
        leaves, tree = jax.tree.flatten(_step.as_arrays(_NAME, "x", tuple(x)))
        for leaf in leaves:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(f"`x` of a `{_NAME}` stack must be floating arrays; got {leaf.dtype}.")
            self._refuse_quantum(leaf.dtype)
        length = _length(params)
        leaves = [lax.convert_element_type(v, v.dtype) for v in leaves]  # not weakly typed
        numbers, params_tree = jax.tree.flatten(params)
        alike = _jaxpr.varying_alike(*numbers, *leaves)
        (p, q), (x1, x2) = params_tree.unflatten(alike[: len(numbers)]), tree.unflatten(alike[len(numbers) :])
        f, f_consts = _program("f", self.f, p, x2, x1)
        g, g_consts = _program("g", self.g, q, x1, x2)
        groups = [f_consts, g_consts, *(jax.tree.leaves(part) for part in (p, q, x1, x2))]
        sizes: Any = tuple(map(len, groups))
        return Stack(f, g, sizes, length, self.quantum), [v for group in groups for v in group], tree

    def _refuse_quantum(self, dtype: Any) -> None:
        least = float(jnp.finfo(dtype).tiny)
        most = 1 / least  # the inverse, which is computed, is normal too
        if self.quantum is not None and not least <= self.quantum <= most:
            raise ValueError(
                f"`quantum` of `{_NAME}` must be a normal number of the states' dtype, from {_power(least)} to "
                f"{_power(most)} for {dtype}; got {_power(self.quantum)}. Take one in this range, or wider states."
            )


def _power(x: float) -> str:
    return f"2**{math.frexp(x)[1] - 1}"


def _program(name: str, function: Any, params: Any, half: Any, other: Any) -> tuple[Any, list[Any]]:
    """(constants, a block's parameters, half) -> a half like `other`, and the constants."""
    one = jax.tree.map(lambda p: _jaxpr.first_of(jax.typeof(p)), params)
    leaves, tree = jax.tree.flatten((one, jax.tree.map(jax.typeof, half)))
    closed, shape = jax.make_jaxpr(lambda *xs: function(*tree.unflatten(xs)), return_shape=True)(*leaves)
    _step.refuse_effects(_NAME, closed.effects)
    got, expected = (jax.tree.map(lambda v: (v.shape, str(v.dtype)), v) for v in (shape, other))
    if got != expected:
        raise TypeError(
            f"`{name}` of `{_NAME}` must return what the half that it is added to is, {expected}; it returns {got}. Most "
            "likely: convert the result (`.astype`), or give both halves one shape."
        )
    return _jaxpr.closed_over_nothing(closed)


def _length(params: Any) -> int:
    shapes = {f"params{jax.tree_util.keystr(k)}": v.shape for k, v in jax.tree_util.tree_leaves_with_path(params)}
    depths = {shape[:1] for shape in shapes.values()}
    if len(depths) != 1 or depths == {()}:
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
        raise ValueError(
            f"The parameters of a `{_NAME}` stack need one leading axis, the depth; got {told}. Stack them: "
            "`jax.tree.map(lambda *p: jnp.stack(p), *blocks)`."
        )
    return depths.pop()[0]
