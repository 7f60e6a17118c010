"""Twins of primitives: the same value with an accurate derivative, where JAX's own is not."""

from robustad._jaxpr import Equation

from . import (
    _arithmetic,
    _choices,
    _complex,
    _elementwise,
    _linalg,
    _products,
    _special,
)
from ._twin import Entry, Twin

TABLE: dict[str, Entry] = {}
for _family in (
    _elementwise,
    _arithmetic,
    _choices,
    _special,
    _complex,
    _products,
    _linalg,
):
    _again = TABLE.keys() & _family.TABLE.keys()
    if _again:
        raise ValueError(f"two twins of {sorted(_again)}")
    TABLE |= _family.TABLE


def twin(eqn: Equation) -> Twin | None:
    """The twin of an equation; None where JAX's derivative is accurate."""
    entry = TABLE.get(eqn.primitive.name)
    function = entry.make(eqn) if entry else None
    if entry is None or function is None:
        return None

    def within(*operands):
        with eqn.ctx.manager:
            return function(*operands)

    return Twin(eqn.primitive.name, within, entry.reason)
