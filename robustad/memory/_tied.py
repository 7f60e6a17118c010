"""Arrays whose cotangents wait for one another.

The backward pass of a stretch of a program makes cotangents for all that the stretch reads. Left to itself, XLA computes one
of them as late as it is used, a slice of the cotangent of a concatenation, say, or the gradient of a kernel, and keeps until
then what it is computed from. `tied` is the identity; what passes back through it is there together.
"""

from collections.abc import Sequence
from typing import Any

from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from robustad.memory._after import after

_tied = Primitive("tied")
_tied.multiple_results = True


def tied(arrays: Sequence[Array], waiting: Sequence[bool]) -> list[Array]:
    """The arrays. waiting: those whose cotangents are used only once the cotangents of all of them are there."""
    return _tied.bind(*arrays, waiting=tuple(waiting)) if len(arrays) > 1 and any(waiting) else list(arrays)


def _jvp(operands: Sequence[Any], steps: Sequence[Any], *, waiting: tuple[bool, ...]) -> tuple[list[Any], list[Any]]:
    moving = [i for i, step in enumerate(steps) if type(step) is not ad.Zero]
    moved = dict(zip(moving, tied([steps[i] for i in moving], [waiting[i] for i in moving])))
    return list(operands), [moved.get(i, step) for i, step in enumerate(steps)]


def _transpose(cotangents: Sequence[Any], *_: Any, waiting: tuple[bool, ...]) -> list[Any]:
    there = [i for i, ct in enumerate(cotangents) if type(ct) is not ad.Zero]
    return [
        after(ct, [cotangents[k] for k in there if k != i]) if waiting[i] and i in there else ct
        for i, ct in enumerate(cotangents)
    ]


def _batch(operands: Sequence[Array], axes: Sequence[int | None], *, waiting: tuple[bool, ...]) -> Any:
    return _tied.bind(*operands, waiting=waiting), axes


_tied.def_impl(lambda *operands, waiting: list(operands))
_tied.def_abstract_eval(lambda *avals, waiting: list(avals))
ad.primitive_jvps[_tied] = _jvp
ad.primitive_transposes[_tied] = _transpose
batching.primitive_batchers[_tied] = _batch
mlir.register_lowering(_tied, mlir.lower_fun(lambda *operands, waiting: list(operands), multiple_results=True))
