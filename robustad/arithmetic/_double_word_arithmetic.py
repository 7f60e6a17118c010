"""The arithmetic of double words that the walk is given."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from robustad import _jaxpr
from robustad._interpret import Arithmetic, interpret
from robustad._jaxpr import Body, Equation, Path, Site
from robustad.arithmetic import _double_word_reductions as reductions
from robustad.arithmetic import _double_word_rules as rules
from robustad.arithmetic._double_word import DoubleWord
from robustad.arithmetic._double_word_rules import RULES, is_real, lift, rounded


def is_plain(eqn: Equation) -> bool:
    """Whether an equation is evaluated plainly though floating values pass through it."""
    passes = any(map(_jaxpr.is_inexact, eqn.invars)) and any(map(_jaxpr.is_inexact, eqn.outvars))
    return passes and not _has_rule(eqn)


def _has_rule(eqn: Equation) -> bool:
    f = RULES.get(eqn.primitive.name)
    if f is None or f is rules.moved:
        return f is not None
    axes = eqn.params.get("axes", ())
    if f is reductions.across_devices and (eqn.params.get("axis_index_groups") or not all(map(is_real, eqn.invars))):
        return False
    if f is reductions.across_devices and not all(isinstance(axis, str) for axis in axes):
        return False
    if f is reductions.argument and len(axes) != 1:
        return False
    return not any(_jaxpr.is_inexact(v) and not is_real(v) for v in (*eqn.invars, *eqn.outvars))


@dataclasses.dataclass(frozen=True)
class DoubleWordArithmetic(Arithmetic[DoubleWord]):
    """The walk in double words. It keeps no records."""

    def lift(self, x: Any) -> DoubleWord:
        return lift(x)

    def plain(self, value: DoubleWord) -> Array:
        return value.hi

    def equation(self, eqn: Equation, operands: Sequence[DoubleWord], path: Path) -> tuple[list[DoubleWord], None]:
        floats = any(v.lo is not None for v in operands)
        casts = eqn.primitive.name == "convert_element_type" and is_real(eqn.outvars[0])
        if (floats or casts) and _has_rule(eqn):
            return RULES[eqn.primitive.name](eqn, operands), None
        plain = [rounded(v, _jaxpr.aval(atom).dtype) for v, atom in zip(operands, eqn.invars)]
        return [lift(out) for out in _jaxpr.evaluate(eqn, plain)], None


def evaluate(program: Body, operands: Sequence[Any]) -> list[DoubleWord]:
    """The outputs of a program on arrays and pairs, in double words.

    Where the program has 64-bit numbers of its own, made under `jax.enable_x64(True)`, so has the walk.
    """
    wide = any(map(_has_64_bits, _jaxpr.sites(program)))
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        lifted = [rules.widened(x) if isinstance(x, DoubleWord) else lift(x) for x in operands]
        return interpret(DoubleWordArithmetic(), program, lifted)[0]


def _has_64_bits(site: Site) -> bool:
    dtypes = (getattr(_jaxpr.aval(v), "dtype", None) for v in site.equation.outvars)
    return any(dtype in (np.int64, np.uint64, np.float64, np.complex128) for dtype in dtypes)
