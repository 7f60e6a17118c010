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


def tied(arrays: Sequence[Array]) -> list[Array]:
    """The arrays. The cotangent of each is used only once those of all of them are there."""
    return _tied.bind(*arrays) if len(arrays) > 1 else list(arrays)


def _jvp(operands: Sequence[Any], steps: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    moving = [i for i, step in enumerate(steps) if type(step) is not ad.Zero]
    moved = dict(zip(moving, tied([steps[i] for i in moving])))
    return list(operands), [moved.get(i, step) for i, step in enumerate(steps)]


def _transpose(cotangents: Sequence[Any], *_: Any) -> list[Any]:
    there = [i for i, ct in enumerate(cotangents) if type(ct) is not ad.Zero]
    return [
        after(ct, [cotangents[k] for k in there if k != i]) if i in there else ct for i, ct in enumerate(cotangents)
    ]


_tied.def_impl(lambda *operands: list(operands))
_tied.def_abstract_eval(lambda *avals: list(avals))
ad.primitive_jvps[_tied] = _jvp
ad.primitive_transposes[_tied] = _transpose
batching.primitive_batchers[_tied] = lambda operands, axes: (_tied.bind(*operands), axes)
mlir.register_lowering(_tied, mlir.lower_fun(lambda *operands: list(operands), multiple_results=True))
