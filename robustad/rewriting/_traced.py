"""A call of the user's function, traced: its program, and the way back to what it returns."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from robustad import _jaxpr


class Traced:
    """`f(*args, **kwargs)` as a program of its arrays and floats; other leaves stay as they are.

    State that `f` changes in a flax nnx module of its arguments is a further output, written back by `outputs`.
    """

    def __init__(self, f: Callable[..., Any], args: Any, kwargs: Any):
        self._given = (args, kwargs)
        leaves, self._structure = jax.tree.flatten(self._given)
        dynamic = [isinstance(x, jax.Array | np.ndarray | np.inexact | float | complex) for x in leaves]
        self._fixed = [None if d else x for x, d in zip(leaves, dynamic)]
        self._dynamic = [i for i, d in enumerate(dynamic) if d]
        self._changed: list[int] = []

        @functools.wraps(f)
        def called(*arrays: Any) -> Any:
            inner = self._with(self._dynamic, arrays)
            out = f(*inner[0], **inner[1])
            after = jax.tree.leaves(inner)
            held = dict(zip(self._dynamic, arrays))
            self._changed = [
                i
                for i in self._dynamic
                if len(after) == len(leaves) and after[i] is not held[i] and _is_array(after[i])
            ]
            return out, [after[i] for i in self._changed]

        self.arrays = [leaves[i] for i in self._dynamic]
        self.program, shapes = _jaxpr.trace(called, *self.arrays)
        self._returned = jax.tree.structure(shapes)

    @property
    def given(self) -> Any:
        """The positional arguments."""
        return self._given[0]

    def arrays_of(self, args: Any) -> list[Any] | None:
        """The arrays of another call; None where its structure, or what is no array in it, is another one."""
        leaves, structure = jax.tree.flatten((args, {}))
        if structure != self._structure:
            return None
        fixed = [None if i in self._dynamic else x for i, x in enumerate(leaves)]
        return [leaves[i] for i in self._dynamic] if fixed == self._fixed else None

    def _with(self, where: Sequence[int], values: Sequence[Any]) -> Any:
        leaves = list(self._fixed)
        for i, value in zip(where, values):
            leaves[i] = value
        return self._structure.unflatten(leaves)

    def outputs(self, arrays: Sequence[Any]) -> Any:
        """What `f` returns, from the outputs of the program."""
        out, state = jax.tree.unflatten(self._returned, arrays)
        if state and (nnx := sys.modules.get("flax.nnx")) is not None:
            new = self._with([*self._dynamic, *self._changed], [*self.arrays, *state])
            for old, changed in zip(*(_modules(tree, nnx.Module) for tree in (self._given, new))):
                nnx.update(old, nnx.state(changed))
        return out


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray)


def _modules(tree: Any, kind: type) -> list[Any]:
    return [x for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)) if isinstance(x, kind)]
