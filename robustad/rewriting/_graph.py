"""A program as a graph of terms: what is matched, rewritten and evaluated.

A `Step` computes arrays from arrays, a `Term` is one of its outputs. Calls that only group equations (`jit`) are opened, so
that a shape of equations is seen through them, and equal steps are one. A graph is evaluated from its outputs: what nothing
needs is not computed, and no derivative can come from it. Steps with effects are kept, in their order.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Equation
from robustad.rewriting._report import Rewrite, Untouched

Run = Callable[..., Sequence[Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """A computation: `run(*operands)` gives its outputs.

    name: the primitive's, or "input", "constant", or that of a twin.
    equation: the equation that it evaluates as it stands; None for inputs, constants and what has been rewritten.
    origin: the equation that has the user's file and line: its own, or that of a call around it.
    rewrite: what is told of it, where it is a replacement.
    elementwise: each output's element depends on the same element of the operands alone.
    safe: where a replacement that is elementwise may be computed if nothing demands it.
    inside, untouched: what was replaced in its bodies, or with it, and what was left alone there.
    masked: what makes it of operands and a mask: the same where the mask holds, without derivative elsewhere.
    reads: for each operand, the cases in which an element of it matters, conjunctions of boolean terms with their values;
        None: in all. Empty where that is not known.
    """

    name: str
    operands: tuple["Term", ...]
    run: Run
    equation: Equation | None = None
    origin: Equation | None = None
    rewrite: Rewrite | None = None
    elementwise: bool = False
    safe: float | None = None
    inside: tuple[Rewrite, ...] = ()
    untouched: tuple[Untouched, ...] = ()
    masked: "Callable[[Sequence[Term], Term], Term] | None" = None
    reads: "tuple[frozenset[frozenset[tuple[Term, bool]]] | None, ...]" = ()
    outputs: "tuple[Term, ...]" = ()

    @staticmethod
    def of(name: str, run: Run, operands: "Sequence[Term]", aval: Any, **told: Any) -> "Term":
        """The output of a new step that has one."""
        return Step.several(name, run, operands, [aval], **told)[0]

    @staticmethod
    def several(
        name: str, run: Run, operands: "Sequence[Term]", avals: Sequence[Any], **told: Any
    ) -> "tuple[Term, ...]":
        """The outputs of a new step."""
        step = Step(name, tuple(operands), run, **told)
        outputs = tuple(Term(step, i, aval) for i, aval in enumerate(avals))
        object.__setattr__(step, "outputs", outputs)  # the two know each other
        return outputs

    def on(self, operands: "Sequence[Term]", **changed: Any) -> "Step":
        """The same computation on other operands, or with something `changed`."""
        told = {
            f: getattr(self, f)
            for f in ("equation", "origin", "rewrite", "elementwise", "safe", "inside", "untouched", "masked", "reads")
        } | changed
        run = told.pop("run", self.run)
        step = Step(self.name, tuple(operands), run, **told)
        object.__setattr__(step, "outputs", tuple(Term(step, i, t.aval) for i, t in enumerate(self.outputs)))
        return step

    @property
    def params(self) -> dict[str, Any]:
        return {} if self.equation is None else self.equation.params


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """An output of a step, of known shape and dtype. `value` is that of a constant."""

    step: Step
    index: int
    aval: Any
    value: Any = None

    @property
    def name(self) -> str:
        """The primitive that made it."""
        return self.step.name

    @property
    def operands(self) -> tuple["Term", ...]:
        return self.step.operands

    @property
    def params(self) -> dict[str, Any]:
        return self.step.params

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.aval.shape)

    @property
    def dtype(self) -> Any:
        return self.aval.dtype

    @property
    def floating(self) -> bool:
        return _jaxpr.is_inexact(self.aval)


def input_term(aval: Any) -> Term:
    return Step.of("input", _nothing, (), aval)


def constant(value: Any, aval: Any) -> Term:
    return dataclasses.replace(Step.of("constant", _nothing, (), aval), value=value)


def _nothing() -> list[Array]:
    return []


_SMALL = 1024  # entries of a constant that is compared with others by value


class Graph:
    """The terms of a program, in its order."""

    def __init__(self) -> None:
        self.terms: list[Term] = []
        self.effects: list[Step] = []
        self._equal: dict[Any, tuple[Term, ...]] = {}
        self._literals: dict[Any, Term] = {}

    def read(
        self,
        program: Body,
        operands: Sequence[Term],
        opened: Callable[[Equation, Call], bool],
        outer: Equation | None = None,
    ) -> list[Term]:
        """The outputs of `program` on `operands`; calls are opened where `opened` says so."""
        env: dict[Any, Term] = {}
        for var, value in program.constants:
            env[var] = self._constant(value, _jaxpr.aval(var))
        env.update(zip(program.inputs, operands, strict=True))

        def atom(a: Any) -> Term:
            if (value := _jaxpr.literal_value(a)) is None:
                return env[a]
            return self._literal(value, _jaxpr.aval(a))

        for eqn in program.equations:
            ins = tuple(atom(a) for a in eqn.invars)
            origin = eqn if _jaxpr.location(eqn) or outer is None else outer
            inner = _jaxpr.control(eqn)
            if isinstance(inner, Call) and not _jaxpr.has_effects(eqn) and opened(eqn, inner):
                outs: Sequence[Term] = self.read(inner.body, inner.of(ins), opened, origin)
            else:
                outs = self._equation(eqn, ins, origin)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [atom(a) for a in program.outputs]

    def _constant(self, value: Any, aval: Any) -> Term:
        key: Any = ("constant", id(value))
        if (
            not _jaxpr.is_traced(value)
            and 0 < aval.size <= _SMALL
            and not jnp.issubdtype(aval.dtype, jax.dtypes.extended)
        ):
            key = ("constant", aval.shape, aval.dtype, np.asarray(value).tobytes())
        return self._equal.setdefault(key, (constant(value, aval),))[0]

    def _literal(self, value: Any, aval: Any) -> Term:
        key = (aval.dtype, aval.shape, getattr(aval, "weak_type", False), np.asarray(value).tobytes())
        return self._literals.setdefault(key, constant(value, aval))

    def _equation(self, eqn: Equation, ins: tuple[Term, ...], origin: Equation) -> tuple[Term, ...]:
        effects = _jaxpr.has_effects(eqn)
        key = None if effects else _key(eqn, ins)
        if key is not None and key in self._equal:
            return self._equal[key]

        def run(*arrays: Array) -> Sequence[Array]:
            return _jaxpr.bind(eqn, arrays)

        told = {"equation": eqn, "origin": origin, "elementwise": is_elementwise(eqn)}
        outs = Step.several(_jaxpr.name(eqn), run, ins, [_jaxpr.aval(var) for var in eqn.outvars], **told)
        self.terms.extend(outs)
        if effects:
            self.effects.append(outs[0].step if outs else Step(eqn.primitive.name, ins, run, **told))
        if key is not None:
            self._equal[key] = outs
        return outs


def _key(eqn: Equation, ins: tuple[Term, ...]) -> Any:
    """Equal for equations that compute the same; None where that cannot be told."""
    if _jaxpr.control(eqn) is not None and eqn.primitive.name != "jit":  # whose programs JAX shares between calls
        return None
    if eqn.primitive.name == "rng_uniform":  # another draw each time
        return None
    params = tuple(sorted(eqn.params.items(), key=lambda item: item[0]))
    key = (eqn.primitive, tuple(map(id, ins)), params, _jaxpr.context(eqn))
    try:
        hash(key)
    except TypeError:
        return None
    return key


# ------------------------------------------------------------------------------------------------- evaluation


def evaluate(outputs: Sequence[Term], effects: Sequence[Step], inputs: dict[Term, Any]) -> list[Any]:
    """The arrays of `outputs`, where those of the input terms are given."""
    known: dict[Step, Sequence[Any]] = {}

    def read(term: Term) -> Any:
        if term.name == "constant":
            return term.value
        return inputs[term] if term.name == "input" else known[term.step][term.index]

    for step in in_order([*effects, *(t.step for t in outputs)]):
        if step.name not in ("input", "constant"):
            with _jaxpr.at(step.origin), _wide(step):
                arrays = [read(t) for t in step.operands]
                if _is_plain(step):
                    known[step] = step.run(*arrays)
                else:  # a function of arrays, which Python's and JAX's numbers are not
                    made = step.run(*(as_array(x, t) for x, t in zip(arrays, step.operands)))
                    known[step] = [_jaxpr.as_weak(x, t.aval) for x, t in zip(made, step.outputs)]
    return [as_array(read(t), t) for t in outputs]


def _is_plain(step: Step) -> bool:
    """Whether a step is its equation as it stands."""
    return step.equation is not None and step.rewrite is None and not step.inside


WIDE = tuple(map(np.dtype, (np.float64, np.complex128, np.int64, np.uint64)))


def _wide(step: Step) -> contextlib.AbstractContextManager[Any]:
    """64-bit arrays may be made inside of `jax.enable_x64(True)` alone; a step is evaluated outside of the user's."""
    terms = (*step.operands, *step.outputs)
    if jax.config.jax_enable_x64 or not any(t.dtype in WIDE for t in terms):  # pyright: ignore[reportAttributeAccessIssue]
        return contextlib.nullcontext()
    return jax.enable_x64(True)  # pyright: ignore[reportAttributeAccessIssue]


def as_array(x: Any, term: Term) -> Any:
    """The value of a term as an array."""
    return x if isinstance(x, Array | np.ndarray) else _jaxpr.as_weak(jnp.asarray(x, term.dtype), term.aval)


def in_order(roots: Iterable[Step]) -> list[Step]:
    """All steps that the roots need, and they themselves, operands first."""
    done: dict[Step, None] = {}
    for root in roots:
        stack: list[tuple[Step, bool]] = [(root, False)]
        while stack:
            step, ready = stack.pop()
            if ready:
                done[step] = None
            elif step not in done:
                stack.append((step, True))
                stack.extend((t.step, False) for t in reversed(step.operands) if t.step not in done)
    return list(done)


# --------------------------------------------------------------------------------------- what a term looks like

_ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp convert_element_type "
    "copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac integer_pow is_finite "
    "le lgamma log log1p logistic lt max min mul ne neg nextafter not one_minus_square or polygamma pow real imag "
    "reduce_precision regularized_incomplete_beta rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan "
    "tanh xor zeta".split()
)


def is_elementwise(eqn: Equation) -> bool:
    """Whether a primitive works element by element, operands of size 1 along an axis being repeated."""
    return eqn.primitive.name in _ELEMENTWISE


_MOVED = ("broadcast_in_dim", "reshape", "copy", "pvary", "squeeze", "expand_dims")


def scalar(term: Term) -> Fraction | float | None:
    """The number that a term is, exactly, if it is a real constant of equal entries; inf and nan as floats."""
    dtypes = [term.dtype]
    while term.name in (*_MOVED, "convert_element_type"):
        (term,) = term.operands[:1]
        dtypes.append(term.dtype)
    if term.name != "constant" or _jaxpr.is_traced(term.value) or np.size(term.value) != 1:
        return None
    if not all(jnp.issubdtype(d, jnp.floating) or jnp.issubdtype(d, jnp.integer) for d in dtypes):
        return None
    value = np.asarray(term.value).reshape(())
    for dtype in reversed(dtypes):  # each conversion rounds
        value = value.astype(dtype)
    number = float(value)
    return Fraction(number) if np.isfinite(number) else number


def is_constant(term: Term) -> bool:
    """Whether a term is a constant of the program, perhaps moved or converted."""
    while term.name in (*_MOVED, "convert_element_type"):
        (term,) = term.operands[:1]
    return term.name == "iota" or (term.name == "constant" and not _jaxpr.is_traced(term.value))


def made_by(term: Term, *names: str) -> bool:
    """Whether a term, seen through widening conversions and copies, is the output of one of these primitives."""
    return unwrapped(term).name in names


def unwrapped(term: Term) -> Term:
    """The term before copies and conversions to a wider float."""
    while term.name == "copy" or (term.name == "convert_element_type" and widens(term)):
        (term,) = term.operands
    return term


def widens(term: Term) -> bool:
    """Whether a conversion keeps every value."""
    before, after = term.operands[0].dtype, term.dtype
    if not (_jaxpr.is_inexact(term.operands[0].aval) and term.floating):
        return False
    return bool(np.promote_types(_numpy(before), _numpy(after)) == _numpy(after)) if before != after else True


def _numpy(dtype: Any) -> np.dtype:
    """bfloat16 among NumPy's own types: it fits into float32."""
    return np.dtype(np.float32) if str(dtype) == "bfloat16" else np.dtype(dtype)
