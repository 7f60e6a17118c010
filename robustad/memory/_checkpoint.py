"""`checkpoint`: recompute in the backward pass instead of keeping, on every backend and with every version of JAX."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import jax
import numpy as np

from robustad import _jaxpr
from robustad.memory._policies import Policy, checked
from robustad.memory._recomputed import recomputed

F = TypeVar("F", bound=Callable[..., Any])


@overload
def checkpoint(
    f: F, *, policy: Policy | None = None, prevent_cse: bool = True, static_argnums: int | Sequence[int] = ()
) -> F: ...
@overload
def checkpoint(
    *, policy: Policy | None = None, prevent_cse: bool = True, static_argnums: int | Sequence[int] = ()
) -> Callable[[F], F]: ...
def checkpoint(
    f: Any = None,
    *,
    policy: Policy | None = None,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
) -> Any:
    """`jax.checkpoint` that saves memory everywhere: the values inside `f` are computed again in the backward pass.

    XLA for CPU, as jax 0.10 has it, strips the barriers of `jax.checkpoint` from straight-line code and merges the second
    computation with the first: nothing is saved. There, the recomputation takes its inputs through a branch whose predicate
    is made from the incoming cotangent: it is always taken, but no compiler knows. That copies the inputs, a region's at a
    time. With newer versions this is `jax.checkpoint`, unchanged.

    The gradient has the bits of the plain one wherever XLA adds up in the same order: in straight-line code as a rule. In
    loops the order may change, with errors of the same size. Random numbers come from keys, so that the same ones are drawn
    again. Further derivatives, `jax.jvp`, `vmap`, `scan` and `shard_map` are as with `jax.checkpoint`; a second derivative
    recomputes the first.

    Args:
        f: any function of pytrees; leaves that are no arrays or numbers (functions of equinox modules, strings) are
            taken as they are.
        policy: which results are kept instead: one of `jax.checkpoint_policies`, or `save_bytes`, `save_names`,
            `save_primitives`, `save_flops_per_byte`, and `any_of`, `all_of`, `not_` of such. None: nothing is kept.
        prevent_cse: False leaves out the branch (the barrier): where f is the body of a `lax.scan` and the whole scan is
            differentiated, nothing can be merged anyway.
        static_argnums: positions of arguments that are no data, as for `jax.checkpoint`.

    Returns:
        A function with f's signature and values.

    Raises:
        TypeError: `f` or `policy` cannot be called.
        NotImplementedError: `f` has effects, such as callbacks, that would happen twice (on differentiation, by JAX).
            Those of `jax.debug` may stay, and do.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from robustad.memory import checkpoint, save_primitives
        >>> layer = checkpoint(lambda w, x: jnp.tanh(x @ w), policy=save_primitives("dot_general"))
        >>> loss = lambda ws, x: jnp.sum(layer(ws[1], layer(ws[0], x)))
        >>> ws, x = jnp.ones((2, 3, 3)) / 3, jnp.ones((4, 3))
        >>> jax.grad(loss)(ws, x).shape
        (2, 3, 3)
    """
    if f is None:
        return functools.partial(checkpoint, policy=policy, prevent_cse=prevent_cse, static_argnums=static_argnums)
    if not callable(f):
        raise TypeError(f"`f` is {f!r} of type {type(f).__name__}; expected a function.")
    if policy is not None:
        checked(policy)
    ours = prevent_cse and not _jaxpr.XLA_KEEPS_BARRIERS
    static = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    plain = jax.checkpoint(f, policy=policy, prevent_cse=prevent_cse and not ours, static_argnums=static)

    @functools.wraps(f)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        fixed = {i % len(args) for i in static if -len(args) <= i < len(args)}
        dynamic = [x for i, x in enumerate(args) if i not in fixed]
        leaves, tree = jax.tree.flatten((dynamic, kwargs))
        data = [i for i, x in enumerate(leaves) if is_data(x)]
        if not ours and len(data) == len(leaves):
            return plain(*args, **kwargs)

        def function(*arrays: Any) -> Any:
            full = list(leaves)
            for i, x in zip(data, arrays):
                full[i] = x
            rest, named = tree.unflatten(full)
            given = iter(rest)
            return run(*(x if i in fixed else next(given) for i, x in enumerate(args)), **named)

        arrays = [leaves[i] for i in data]
        if ours and len(data) == len(leaves):
            run = plain
            return recomputed(function, *arrays)
        run = f
        whole = jax.checkpoint(function, policy=policy, prevent_cse=prevent_cse and not ours)
        return recomputed(whole, *arrays) if ours else whole(*arrays)

    return checkpointed


def is_data(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic | bool | int | float | complex)
