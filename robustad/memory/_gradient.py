"""A call of the user's function as a gradient program: of the floating leaves of `argnums`, the other leaves beside them."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from robustad import _jaxpr
from robustad._jaxpr import Body
from robustad.memory._arguments import bound, positions, refuse_what_is_no_function, shown
from robustad.memory._checkpoint import is_data


class GradientCall:
    """`value_and_grad` of `f(*args, **kwargs)` as a function of the arrays among the arguments.

    Arguments may be arrays, numbers, or `jax.ShapeDtypeStruct`s in their place; what is no data, and Python's booleans and
    integers that are not differentiated, stay as they are.
    """

    def __init__(
        self, f: Callable[..., Any], argnums: int | Sequence[int], has_aux: bool, args: Any, kwargs: dict[str, Any]
    ):
        refuse_what_is_no_function("f", f)
        args, kwargs = bound(f, args, kwargs)
        self.name = getattr(f, "__name__", type(f).__name__)
        self._f, self._has_aux = f, has_aux
        self.count = len(args)
        """Of positional arguments."""
        chosen = positions(argnums, self.count)
        with_paths, self._tree = jax.tree_util.tree_flatten_with_path((args, kwargs))
        self._leaves = [leaf for _, leaf in with_paths]
        # Python's booleans and integers may decide what the function does; where they are differentiated, JAX refuses them.
        self._data = [
            i
            for i, (path, x) in enumerate(with_paths)
            if isinstance(x, jax.ShapeDtypeStruct)
            or (is_data(x) and (not isinstance(x, bool | int) or (path[0].idx == 0 and path[1].idx in chosen)))
        ]
        self.names: list[str] = [_name(f, with_paths[i][0]) for i in self._data]
        self.arrays: list[Any] = [
            None if isinstance(x := self._leaves[i], jax.ShapeDtypeStruct) else x for i in self._data
        ]
        """Those of the call; None for those of which only the shape is known."""
        self.specs: list[Any] = [spec(self._leaves[i]) for i in self._data]
        for i, x in zip(
            self._data, self.specs
        ):  # JAX's caches hold functions of this call, and must not hold its arrays
            self._leaves[i] = x
        self.positions = [with_paths[i][0][1].idx if with_paths[i][0][0].idx == 0 else None for i in self._data]
        self.differentiated: list[int] = [
            k for k, x in enumerate(self.specs) if self.positions[k] in chosen and jnp.issubdtype(x.dtype, jnp.inexact)
        ]
        if not self.differentiated:
            found = ", ".join(sorted({str(x.dtype) for k, x in enumerate(self.specs) if self.positions[k] in chosen}))
            raise ValueError(
                f"the arguments `argnums` = {argnums} of `{self.name}` hold no floating array to differentiate "
                f"(their dtypes: {found or 'none'}). Convert them, or choose others by `argnums`."
            )

    def function(self, *arrays: Any) -> Any:
        """`f` of its arrays: (value, arrays and numbers among the auxiliary output); the others stand in `aux`."""
        leaves = list(self._leaves)
        for i, x in zip(self._data, arrays):
            leaves[i] = x
        args, kwargs = jax.tree.unflatten(self._tree, leaves)
        out = self._f(*args, **kwargs)
        if self._has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise ValueError(f"`{self.name}` with has_aux=True returns {shown(out)}; expected (value, aux).")
        value: Any
        value, aux = out if self._has_aux else (out, None)
        if not is_data(value) or jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            remedy = _remedy(value, self._has_aux)
            raise TypeError(f"`{self.name}` returns {shown(value)}; expected a scalar of a floating dtype. {remedy}")
        leaves, tree = jax.tree.flatten(aux)
        self.aux = (tree, [None if is_data(x) else x for x in leaves])
        return value, [x for x in leaves if is_data(x)]

    def of(self, f: Callable[..., Any]) -> "GradientCall":
        """The same call of another function of its signature."""
        other = object.__new__(GradientCall)
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("program", "traced")})
        other._f = f
        return other

    def value_and_grad(self, *arrays: Any) -> Any:
        """((value, aux), gradients of the differentiated arrays)."""
        return jax.value_and_grad(self.function, tuple(self.differentiated), has_aux=True)(*arrays)

    @functools.cached_property
    def program(self) -> Body:
        """The equations of `value_and_grad`."""
        return _jaxpr.trace(self.value_and_grad, *self.specs)[0]

    @functools.cached_property
    def forward(self) -> Body:
        """The equations of `f`."""
        return _jaxpr.trace(self.function, *self.specs)[0]

    def compiled(self, donated: Sequence[int] = ()) -> Any:
        """`value_and_grad`, compiled for these shapes and shardings; `donated`: numbers of arrays."""
        return jax.jit(self.value_and_grad, donate_argnums=tuple(donated)).lower(*self.specs).compile()

    def residuals(self) -> Body:
        """A program whose outputs are what the backward pass keeps of the forward pass."""

        def kept(*arrays: Any) -> Any:
            moved = [arrays[i] for i in self.differentiated]

            def function(*moved: Any) -> Any:
                given = list(arrays)
                for i, x in zip(self.differentiated, moved):
                    given[i] = x
                return self.function(*given)

            _, pull, _ = jax.vjp(function, *moved, has_aux=True)
            return [x for x in jax.tree.leaves(pull) if is_data(x)]

        return _jaxpr.trace(kept, *self.specs)[0]


def temporaries(compiled: Any) -> int:
    """The bytes that a compiled program needs beside its arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes


def _remedy(value: Any, has_aux: bool) -> str:
    """How what is no floating scalar becomes one."""
    if not is_data(value):
        pair = isinstance(value, tuple) and len(value) == 2 and not has_aux
        return "Give has_aux=True for (value, aux)." if pair else "Return one number."
    if jnp.shape(value) != ():
        return "Reduce it by `jnp.sum` or `jnp.mean`."
    if jnp.issubdtype(jnp.result_type(value), jnp.complexfloating):
        return "Take `jnp.real` or `jnp.abs` of it."
    return "What is no floating number has no gradient: compute it in a floating dtype."


def spec(x: Any) -> Any:
    """The shape, dtype, weak type and, where there is one that matters, sharding of an array or number."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    kind = jax.typeof(x)
    sharding = x.sharding if isinstance(x, jax.Array) and not _jaxpr.is_traced(x) else None
    if sharding is not None and len(sharding.device_set) == 1:
        sharding = None
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=sharding, weak_type=getattr(kind, "weak_type", False))


def _name(f: Callable[..., Any], path: Any) -> str:
    """A leaf's name: the parameter's, then the way into it."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    (where, first, *rest) = path
    name = str(getattr(first, "key", None) or f"args[{first.idx}]" if where.idx == 0 else first.key)
    if (
        where.idx == 0
        and first.idx < len(parameters)
        and parameters[first.idx].kind is not inspect.Parameter.VAR_POSITIONAL
    ):
        name = parameters[first.idx].name
    return "/".join([name, jax.tree_util.keystr(tuple(rest), simple=True, separator="/")]) if rest else name
