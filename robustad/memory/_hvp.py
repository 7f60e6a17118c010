"""Products of a Hessian with a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from robustad import _jaxpr
from robustad.memory._arguments import shown

Mode = Literal["forward over reverse", "reverse over forward", "reverse over reverse"]


def hvp(
    f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any], *, mode: Mode = "forward over reverse"
) -> tuple[Any, Any]:
    r"""The gradient of a scalar function and its Hessian's product with a vector: \(\nabla f(x)\) and \(\nabla^2 f(x)\, v\).

    Args:
        f: a function of pytrees of floating arrays that returns a real scalar.
        primals: its arguments x, a tuple or list.
        tangents: the vector v, of the structure, shapes and dtypes of `primals`.
        mode: how. "forward over reverse": the tangent of the gradient; it keeps what one gradient keeps, with tangents, and
            is the cheapest in general. "reverse over forward": the gradient of the derivative along v; it keeps the
            intermediate values of a forward pass with tangents. "reverse over reverse": the gradient of the gradient's
            product with v; it keeps the intermediate values of a whole gradient, and is needed only where something in
            the gradient has no forward mode.

    Returns:
        (gradient, product), tuples of the structure of `primals`.

    Raises:
        TypeError: `primals` or `tangents` is no tuple or list; they differ in structure or shape; f does not return a
            scalar (from JAX).
        ValueError: `mode` is none of the three; `primals` is empty.

    Source: B. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6 (1994) 147-160.

    >>> import jax.numpy as jnp
    >>> from robustad.memory import hvp
    >>> gradient, product = hvp(lambda x: jnp.sum(x**3), (jnp.array([1.0, 2.0]),), (jnp.array([1.0, 0.0]),))
    >>> gradient[0].tolist(), product[0].tolist()
    ([3.0, 12.0], [6.0, 0.0])
    """
    for name, given in (("primals", primals), ("tangents", tangents)):
        if not isinstance(given, tuple | list):
            raise TypeError(
                f"`{name}` must be a tuple or list, one for each argument; got {shown(given)}. Write `(x,)`."
            )
    if not primals:
        raise ValueError("`primals` is empty: there is nothing to differentiate.")
    primals, tangents = tuple(primals), tuple(tangents)
    shapes, given = (jax.tree.map(jnp.shape, tree) for tree in (primals, tangents))
    if shapes != given:
        raise TypeError(f"`tangents` must have the structure and shapes of `primals`, {shapes}; got {given}.")
    tangents = jax.tree.map(lambda x, v: _jaxpr.varying_over(v, _jaxpr.varies_over(x)), primals, tangents)
    gradient = jax.grad(f, tuple(range(len(primals))))
    if mode == "forward over reverse":
        return jax.jvp(gradient, primals, tangents)
    if mode == "reverse over forward":
        # The derivative along v is linear in v; its slope there is the gradient.
        slope = jax.grad(lambda x, v: jax.jvp(f, x, v)[1], (0, 1))
        product, value = slope(primals, tangents)
        return value, product
    if mode == "reverse over reverse":
        value, back = jax.vjp(lambda x: gradient(*x), primals)
        return value, back(tangents)[0]
    raise ValueError(
        f'`mode` must be "forward over reverse", "reverse over forward" or "reverse over reverse"; got {mode!r}.'
    )
