"""Examples of a function's arguments, and what its cones compute on them: `stabilize(f, examples=...)`.

Every elementwise cone of the program is measured (`expressions/_measured.py`) on the values that its leaves take when the
program runs on the examples; in the body of a loop or branch, on what comes to it then (`_recorded.py`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr
from robustad._jaxpr import Control
from robustad.rewriting._graph import Step, Term, evaluate, in_order
from robustad.rewriting._recorded import recorded
from robustad.rewriting._traced import Traced
from robustad.rewriting.expressions._expression import Expr
from robustad.rewriting.expressions._measured import Found, best


class Examples:
    """Tuples of arguments, checked: `of(call)` fits them to a call."""

    def __init__(self, examples: Any):
        what = "a list of tuples, each the positional arguments of one call: `examples=[(x, y), ...]`"
        if isinstance(examples, str | bytes | dict) or not isinstance(examples, Sequence):
            raise TypeError(
                f"stabilize: `examples` has type {type(examples).__name__}; expected {what}. "
                "Of an array of points give `[tuple(p) for p in points]`."
            )
        if not examples:
            raise ValueError(f"stabilize: `examples` is empty; expected {what}. Leave it out to go by the rules alone.")
        for i, example in enumerate(examples):
            if not isinstance(example, tuple):
                raise TypeError(
                    f"stabilize: `examples[{i}]` has type {type(example).__name__}; expected a tuple of the positional "
                    "arguments of one call. For a function of one argument write `(x,)`."
                )
            for x in jax.tree.leaves(example):
                if _is_number(x) and not np.all(np.isfinite(np.asarray(x))):
                    raise ValueError(
                        f"stabilize: `examples[{i}]` holds a number that is not finite; expected finite ones, on which an "
                        "error can be measured. Leave that example out."
                    )
        self._examples = list(examples)

    def of(self, call: Traced) -> "Values":
        """The arrays of the examples, stacked in the order of the call's."""
        rows = []
        for i, example in enumerate(self._examples):
            arrays = call.arrays_of(example)
            if arrays is None:
                raise TypeError(
                    f"stabilize: `examples[{i}]` is {_shape(example)}; expected what the function is called with, "
                    f"{_shape(call.given)}. Give every example the structure of the call's positional arguments (and call "
                    "without keywords)."
                )
            for k, (x, like) in enumerate(zip(arrays, call.arrays)):
                own, expected = np.shape(x), np.shape(like)
                if own != expected:
                    raise ValueError(
                        f"stabilize: array {k} of `examples[{i}]` has shape {own}; expected {expected}, as in the call. "
                        "Give examples of the shapes that the function is called with."
                    )
            rows.append([np.asarray(x, jnp.result_type(like)) for x, like in zip(arrays, call.arrays)])
        return Values([np.stack(column) for column in zip(*rows)])


def _is_number(x: Any) -> bool:
    return isinstance(x, float) or (
        isinstance(x, jax.Array | np.ndarray | np.generic) and _jaxpr.is_inexact(jnp.asarray(x))
    )


def _shape(args: Any) -> str:
    return str(jax.tree.structure(args)).removeprefix("PyTreeDef(").removesuffix(")")


class Values:
    """The examples' arrays, for the inputs of one program."""

    def __init__(self, columns: Sequence[Any]):
        self._columns = columns

    def searching(self, inputs: Sequence[Term]) -> "Search":
        """On terms of the inputs' values, perhaps in a wider format."""
        return Search(inputs, [c if c.dtype == t.dtype else c.astype(t.dtype) for c, t in zip(self._columns, inputs)])


class Search:
    """What the forms of a program's cones are measured with."""

    def __init__(self, inputs: Sequence[Term], columns: Sequence[Any]):
        self._inputs, self._columns = inputs, columns

    def __call__(self, term: Term, plain: Expr, stable: Expr | None, leaves: Sequence[Term]) -> Found | None:
        """The best form of the cone that ends at a term; None where the rules' is, or nothing can be measured."""
        dtype = np.dtype(term.dtype)
        if dtype not in (np.float32, np.float64):
            return None
        used = sorted(plain.leaves)
        values = self._values([leaves[i] for i in used], term.shape)
        return None if values is None else best(plain, stable, dict(zip(used, values)), dtype)

    def inside(self, step: Step, inner: Control, operands: Sequence[Term]) -> "list[Values | None]":
        """What the examples are in the bodies of a loop, a branch or a checkpoint; None where they do not come to it."""
        found: list[list[Any] | None] = [None] * len(_jaxpr.bodies(inner))
        if step.equation is not None and not _jaxpr.has_effects(step.equation) and self._is_known(operands):
            with jax.ensure_compile_time_eval():
                found = recorded(inner, self._run(operands))
        return [None if columns is None else Values(columns) for columns in found]

    def _values(self, leaves: Sequence[Term], shape: tuple[int, ...]) -> list[np.ndarray] | None:
        """What the leaves are on the examples, in one row of elements for each."""
        if not self._is_known(leaves):
            return None
        with jax.ensure_compile_time_eval():
            return [np.ravel(np.asarray(x)) for x in self._run(leaves, shape)]

    @staticmethod
    def _is_known(terms: Sequence[Term]) -> bool:
        """Whether terms can be computed from the examples alone."""
        steps = in_order(t.step for t in terms)
        if any(s.equation is not None and _jaxpr.has_effects(s.equation) for s in steps):
            return False
        return not any(
            _jaxpr.is_traced(t.value) for t in (*terms, *(t for s in steps for t in (*s.outputs, *s.operands)))
        )

    def _run(self, terms: Sequence[Term], shape: tuple[int, ...] | None = None) -> list[jax.Array]:
        """Their values, one row for each example, each in the given shape."""

        def run(*arrays: jax.Array) -> list[jax.Array]:
            found = evaluate(terms, [], dict(zip(self._inputs, arrays)))
            return [x if shape is None else jnp.broadcast_to(x, shape) for x in found]

        return jax.jit(jax.vmap(run))(*self._columns)
