"""`jax.custom_jvp` whose rules hold in every order through every loop.

Partial evaluation in jax 0.10.2 forgets the rules of `jax.custom_jvp` functions, anybody's, in the part of a scanned program
that depends on unknown values, and differentiates their bodies instead: second derivatives in reverse mode through
`lax.scan` are then those of the body, or an error. A primitive keeps its rule.

Under `vmap` every output of it is mapped: functions with collectives, whose outputs may not be, stay with `jax.custom_jvp`.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from robustad._jaxpr import check_for_nan, is_traced

from ._width import in_float64

_Rule = Callable[[Sequence[Any], Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]]

_call = Primitive("custom_jvp_primitive")
_call.multiple_results = True


class custom_jvp:  # noqa: N801 (it stands where jax.custom_jvp stood)
    """As `jax.custom_jvp`, for functions of positional arguments; those in `nondiff_argnums` are hashable.

    A function `over_leading_axes` takes any number of leading axes, which broadcast: `vmap` gives it one more, of size 1
    where an operand is not mapped, in place of a batched rule. Its branches on a scalar, in its rule too, remain branches.

    A call that is linear in some operands is transposed by its own program, or by `deftranspose`, whose result may be a
    call of the same kind: the next derivative then has this rule again.
    """

    def __init__(
        self, function: Callable[..., Any], nondiff_argnums: tuple[int, ...] = (), over_leading_axes: bool = False
    ):
        functools.update_wrapper(self, function)
        self._function = function
        self._signature = inspect.signature(function)
        self._static = nondiff_argnums
        self._over_leading_axes = over_leading_axes
        self._compiled = jax.jit(function, static_argnums=nondiff_argnums)
        self._transposed: Callable[..., Any] | None = None

    def deftranspose(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Sets the transpose of a function with one result, `rule(*nondiff, linear, cotangent, *operands)`.

        `linear` holds the positions of the operands that the call is linear in, which are given by their avals; one
        cotangent for each is returned. None instead of them: the program's own transpose.
        """
        self._transposed = rule
        return rule

    def defjvp(self, rule: Callable[..., Any], symbolic_zeros: bool = False) -> Callable[..., Any]:
        """Sets the rule, `rule(*nondiff, primals, tangents) -> (outputs, tangents)`; returns it."""
        self._rule, self._symbolic_zeros = rule, symbolic_zeros
        return rule

    def __call__(self, *given: Any) -> Any:
        bound = self._signature.bind(*given)
        bound.apply_defaults()
        args = bound.args
        operands, tree = jax.tree.flatten(tuple(a for i, a in enumerate(args) if i not in self._static))
        if not any(map(is_traced, operands)):
            return self._function(*args)  # nothing can ask for a derivative
        with in_float64(*operands):
            traced = self._compiled.trace(*args)
        static = tuple(args[i] for i in self._static)
        outputs = _call.bind(
            *operands,
            jaxpr=traced.jaxpr,
            rule=functools.partial(self._on_leaves, static, tree),
            batched_call=functools.partial(self._outputs, static, tree) if self._over_leading_axes else None,
            transposed=functools.partial(self._transposed, *static) if self._transposed else None,
        )
        return jax.tree.unflatten(jax.tree.structure(traced.out_info), outputs)

    def _outputs(self, static: tuple[Any, ...], tree: Any, *operands: Any) -> list[Any]:
        args = list(jax.tree.unflatten(tree, operands))
        for i, value in zip(self._static, static):  # sorted
            args.insert(i, value)
        return jax.tree.leaves(self(*args))

    def _on_leaves(self, static: tuple[Any, ...], tree: Any, primals: Sequence[Any], tangents: Sequence[Any]):
        primals = [_as_array(p) if isinstance(p, int | float) else p for p in primals]
        if not self._symbolic_zeros:
            tangents = [ad.instantiate_zeros(t) for t in tangents]
        tangents = [SymbolicZero(t.aval) if type(t) is ad.Zero else t for t in tangents]
        outputs, steps = self._rule(*static, jax.tree.unflatten(tree, primals), jax.tree.unflatten(tree, tangents))
        return jax.tree.leaves(outputs), [
            ad.Zero(t.aval) if isinstance(t, SymbolicZero) else t for t in jax.tree.leaves(steps)
        ]


def _as_array(number: int | float) -> Array:
    """A user's number, or a literal of a program, which JAX hands over as a Python number that knows its dtype."""
    dtype = None if isinstance(number, np.generic) else getattr(number, "dtype", None)
    if dtype is None:
        return jnp.asarray(number)
    with jax.enable_x64(True):  # pyright: ignore[reportAttributeAccessIssue]
        return jnp.asarray(number, dtype)


@_call.def_impl
def _evaluate(*operands: Array, jaxpr: Any, **_: Any) -> list[Array]:
    with in_float64(*operands):
        return jaxpr_as_fun(jaxpr)(*operands)


@_call.def_abstract_eval
def _abstract(*avals: Any, jaxpr: Any, **_: Any) -> list[Any]:
    return jaxpr.out_avals


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, rule: _Rule, **_: Any):
    with in_float64(*primals):
        return rule(primals, tangents)


def _transpose(cotangents: Sequence[Any], *operands: Any, **params: Any) -> list[Any]:
    with in_float64(*operands, *cotangents):
        return _transposed(cotangents, *operands, **params)


def _transposed(
    cotangents: Sequence[Any], *operands: Any, jaxpr: Any, transposed: Callable[..., Any] | None = None, **_: Any
) -> list[Any]:
    """Of a call that is linear in some operands: its own program is, and has the transpose."""
    linear = [i for i, operand in enumerate(operands) if ad.is_undefined_primal(operand)]
    if transposed:
        known = [o.aval if i in linear else o for i, o in enumerate(operands)]
        results = transposed(tuple(linear), ad.instantiate_zeros(cotangents[0]), *known)
        if results is not None:
            results = dict(zip(linear, results))
            return [results.get(i) for i in range(len(operands))]

    def function(*steps: Array) -> list[Array]:
        filled = dict(zip(linear, steps))
        return jaxpr_as_fun(jaxpr)(*(filled.get(i, operand) for i, operand in enumerate(operands)))

    of_program = jax.linear_transpose(function, *(operands[i].aval for i in linear))
    results = dict(zip(linear, of_program([ad.instantiate_zeros(c) for c in cotangents])))
    return [results.get(i) for i in range(len(operands))]


def _batch(axis: Any, operands: Sequence[Array], batch_axes: Sequence[int | None], **params: Any):
    with in_float64(*operands):
        return _batched(axis, operands, batch_axes, **params)


def _batched(
    axis: Any,
    operands: Sequence[Array],
    batch_axes: Sequence[int | None],
    *,
    jaxpr: Any,
    rule: _Rule,
    batched_call: Callable[..., list[Array]] | None,
    transposed: Callable[..., Any] | None = None,
):
    if all(i is None for i in batch_axes):
        outputs = _call.bind(*operands, jaxpr=jaxpr, rule=rule, batched_call=batched_call, transposed=transposed)
        return outputs, [None] * len(outputs)
    if batched_call:
        outputs = batched_call(*(x[None] if i is None else jnp.moveaxis(x, i, 0) for x, i in zip(operands, batch_axes)))
        return outputs, [0] * len(outputs)
    over = functools.partial(jax.vmap, axis_size=axis.size, axis_name=axis.name, spmd_axis_name=axis.spmd_name)

    def batched_rule(primals: Sequence[Any], tangents: Sequence[Any]):
        given = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]
        zeros: list[bool] = []

        def one(primals: Sequence[Any], steps: Sequence[Any]):
            filled = [ad.Zero(jax.typeof(p).to_tangent_aval()) for p in primals]
            for i, step in zip(given, steps):
                filled[i] = step
            outputs, steps = rule(primals, filled)
            zeros[:] = [type(t) is ad.Zero for t in steps]
            return outputs, [t for t in steps if type(t) is not ad.Zero]

        axes = (list(batch_axes), [batch_axes[i] for i in given])
        outputs, steps = over(one, in_axes=axes)(list(primals), [tangents[i] for i in given])
        left = iter(steps)
        return outputs, [
            ad.Zero(jax.typeof(output).to_tangent_aval()) if zero else next(left)
            for output, zero in zip(outputs, zeros)
        ]

    function = over(jaxpr_as_fun(jaxpr), in_axes=tuple(batch_axes))
    if any(map(is_traced, operands)):
        program = jax.make_jaxpr(function)(*operands)
        outputs = _call.bind(*operands, jaxpr=program, rule=batched_rule, batched_call=None, transposed=None)
    else:
        outputs = function(*operands)
    return outputs, [0] * len(outputs)


def _lower(ctx: Any, *operands: Any, jaxpr: Any, **_: Any) -> Any:
    with in_float64(*ctx.avals_in):
        return mlir.lower_fun(jaxpr_as_fun(jaxpr), multiple_results=True)(ctx, *operands)


ad.primitive_jvps[_call] = _jvp
ad.primitive_transposes[_call] = _transpose
batching.fancy_primitive_batchers[_call] = _batch
mlir.register_lowering(_call, _lower)
check_for_nan(_call)
