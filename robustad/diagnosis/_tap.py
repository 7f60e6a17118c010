"""`tap`: an identity that records the cotangent which comes back through it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import ArrayLike

from robustad import _jaxpr
from robustad.diagnosis._cotangent_record import FIELDS, CotangentRecord, record


def tap(x: ArrayLike, record: CotangentRecord) -> Array:
    r"""x itself; the gradient with respect to `record` says what the cotangent of x was.

    Differentiate with respect to the record too and its gradient is the record: a norm that neither overflows nor
    underflows, largest magnitude, fractions of zeros and of entries below the range of a dtype, non-finite entries. Values
    and gradients keep their bits, in every mode and order of differentiation, and nothing is called back to the host.

    JAX adds gradients, and sums of records are records of all of the cotangents together:

    - a tap, or a record, used twice, and `grad` of a function with a `vmap` in it: one record of all (only
      `CotangentRecord.largest` is a bound then; `passes` says how many were added). `vmap` of `grad`: a record an example.
    - `lax.scan` with the record closed over: one of all steps; with records of shape (steps,) as `xs`: one a step.
    - `shard_map` with the record replicated: one of all shards. A cotangent that is itself the same on all of them counts
      once with `check_vma`.
    - `jax.checkpoint`, `cond`: as without; the branch that is not taken records nothing (`passes` is 0).
    - second derivatives: what is recorded has derivative 0.

    Args:
        x: an array of any shape and dtype. Integers, booleans and keys have no cotangent: they pass, nothing is recorded.
        record: `CotangentRecord.zeros()`; of shape (n, ...) there is one for each index of x's first axes. Its numbers are
            not used.

    Returns:
        x.

    Raises:
        TypeError: x is no array, or `record` no `CotangentRecord` as `CotangentRecord.zeros` makes it.
        ValueError: the record's axes are not x's first ones, or x is float64 and the record float32.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def loss(w, record):
        ...     return jnp.sum(tap(w * jnp.array([3.0, 4.0]), record))
        >>> slope, found = jax.grad(loss, argnums=(0, 1))(2.0, CotangentRecord.zeros())
        >>> float(slope), int(found.count), round(float(found.norm), 4), float(found.largest)
        (7.0, 2, 1.4142, 1.0)
    """
    if not isinstance(record, CotangentRecord) or not _is_record(record.sums):
        got = f" of {getattr(record.sums, 'aval', record.sums)}" if isinstance(record, CotangentRecord) else ""
        raise TypeError(
            f"`record` must be a `CotangentRecord` of {len(FIELDS)} float32 or float64 numbers (last axis); got "
            f"{type(record).__name__}{got}. Make one by CotangentRecord.zeros()."
        )
    if not hasattr(x, "dtype") and not isinstance(x, bool | int | float | complex):
        raise TypeError(f"`x` must be an array; got {type(x).__name__}. Tap the leaves of a pytree one by one.")
    x = jnp.asarray(x)
    if not _jaxpr.is_inexact(x):
        return x
    axes = record.sums.shape[:-1]
    if x.shape[: len(axes)] != axes:
        raise ValueError(
            f"`record` of shape {axes} must have the first axes of `x`, whose shape is {x.shape}. Most likely the record "
            "is one of all steps of a scan: pass it in `xs`, and the body has one of shape ()."
        )
    if jnp.finfo(x.dtype).dtype == jnp.float64 and record.sums.dtype != jnp.float64:
        raise ValueError("`x` is float64 and `record` float32, which has not its range: zeros(dtype=jnp.float64).")
    return _primitive.bind(*_jaxpr.varying_alike(x, record.sums))


def _is_record(sums: Any) -> bool:
    known = str(getattr(sums, "dtype", "")) in ("float32", "float64")
    return known and jnp.shape(sums)[-1:] == (len(FIELDS),)


_primitive = Primitive("tap")
"""Linear in (x, sums): x + 0 sums. A primitive, since what its transpose gives `sums` is not linear in the cotangent."""


@_primitive.def_impl
def _value(x: Array, sums: Array) -> Array:
    return x


@_primitive.def_abstract_eval
def _abstract(x: Any, sums: Any) -> Any:
    return x


def _tangent(operands: Any, steps: Any) -> Any:
    x, sums = operands
    out = _primitive.bind(x, sums)
    if all(type(step) is ad.Zero for step in steps):
        return out, ad.Zero(jax.typeof(out))
    return out, _primitive.bind(*(ad.instantiate_zeros(step) for step in steps))


def _transpose(cotangent: Any, x: Any, sums: Any) -> list[Any]:
    operands = [x, sums]
    if type(cotangent) is ad.Zero:
        return [ad.Zero(o.aval) if ad.is_undefined_primal(o) else None for o in operands]
    found = None
    if ad.is_undefined_primal(sums):
        seen = record(jax.lax.stop_gradient(cotangent), len(sums.aval.shape) - 1, sums.aval.dtype)
        found = _jaxpr.sharded_as(sums.aval, seen)
    return [cotangent if ad.is_undefined_primal(x) else None, found]


def _batched(operands: Any, axes: Any) -> Any:
    (x, sums), (x_axis, sums_axis) = operands, axes
    if sums_axis is None:  # one record of the whole batch
        to = sums.ndim - 1
        return _primitive.bind(jnp.moveaxis(x, x_axis, to), sums), to
    sums = jnp.moveaxis(sums, sums_axis, 0)
    x = jnp.broadcast_to(x, (sums.shape[0], *x.shape)) if x_axis is None else jnp.moveaxis(x, x_axis, 0)
    return _primitive.bind(x, sums), 0


ad.primitive_jvps[_primitive] = _tangent
ad.primitive_transposes[_primitive] = _transpose
batching.primitive_batchers[_primitive] = _batched
mlir.register_lowering(_primitive, lambda ctx, x, sums: [x])
