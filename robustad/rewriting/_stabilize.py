r"""`stabilize(f)`: the same function, its value and derivatives accurate."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Equation
from robustad.rewriting import _rules as _rules
from robustad.rewriting._accumulators import COMPARISONS, Wide, compared, rounded, wide_in, wide_input, wide_sum
from robustad.rewriting._cones import Cones
from robustad.rewriting._control import is_rebuilt, with_bodies
from robustad.rewriting._demand import Demand
from robustad.rewriting._graph import Graph, Step, Term, evaluate, in_order, input_term, is_constant
from robustad.rewriting._guard import guarded
from robustad.rewriting._report import Rewrite, Rewrites, Untouched
from robustad.rewriting._rewriter import Rewriter, place_of
from robustad.rewriting._search import Examples, Search, Values
from robustad.rewriting._sunk import Sunk, fires_more, sunk
from robustad.rewriting._traced import Traced
from robustad.rewriting.twins._composites import ELEMENTWISE, composite
from robustad.rewriting.twins._primitives import twin

_OPENED = ("jit", "pjit", "closed_call", "core_call", "call", "eval_jaxpr")


class Rewritten:
    """A program after its rewriting: `rewritten(*arrays)` gives its outputs.

    branch: whether the program is a branch, and takes one operand more, before the others: whether it is the one taken.
    wide: what a scan, whose body the program is, keeps in float32.
    examples: values of its inputs, on which forms are measured.
    given: what its inputs are made of, which are further inputs of it then.
    rewrites: what was replaced.
    untouched: what was left alone that might be looked for.
    """

    rewrites: tuple[Rewrite, ...]
    untouched: tuple[Untouched, ...]

    def __init__(
        self,
        program: Body,
        branch: bool = False,
        wide: Wide | None = None,
        consts: int = 0,
        examples: Values | None = None,
        given: Sunk | None = None,
    ):
        graph = Graph()
        self._inputs = [input_term(_jaxpr.aval(v)) for v in program.inputs]
        operands = list(self._inputs)
        if given is not None:
            leaves = [input_term(t.aval) for t in given.leaves]
            operands, made = given.inside(operands, leaves)
            graph.terms.extend(made)
            self._inputs += leaves
        wide = wide or Wide()
        for i in (*wide.consts, *(consts + k for k in wide.carries)):
            self._inputs[i], operands[i] = wide_input(_jaxpr.aval(program.inputs[i]))
        outputs = graph.read(program, operands, _is_opened)
        search = None if examples is None else examples.searching(tuple(self._inputs))
        demanded: Demand = None
        if branch:
            taken = input_term(jax.ShapeDtypeStruct((), np.bool_))
            self._inputs.insert(0, taken)
            demanded = frozenset([frozenset([(taken, True)])])
        plainly = functools.partial(_plainly, search=search)
        rewriter = Rewriter(Cones(graph.terms, outputs, search), plainly, Rewritten)
        sums = {}
        for k in wide.carries:
            sums[k] = _accumulated(outputs[k], self._inputs[consts + k], operands[consts + k], rewriter)
            rewriter.known(outputs[k], rounded(sums[k], outputs[k].aval))
        for term in graph.terms:
            rewriter(term)
        rewritten = [sums.get(k) or rewriter(t) for k, t in enumerate(outputs)]
        self._effects = [rewriter.step(step) for step in graph.effects]
        self._outputs = guarded(rewritten, demanded, self._effects)
        steps = in_order([*self._effects, *(t.step for t in self._outputs)])
        told = (r for s in steps for r in ((s.rewrite, *s.inside) if s.rewrite else s.inside))
        self.rewrites = tuple(dict.fromkeys(told))
        self.untouched = tuple(dict.fromkeys(u for s in steps for u in (*_left_alone(s), *s.untouched)))

    def __call__(self, *arrays: Any) -> list[Array]:
        return evaluate(self._outputs, self._effects, dict(zip(self._inputs, arrays, strict=True)))


def _accumulated(total: Term, carry: Term, narrow: Term, rw: Rewriter) -> Term:
    """The sum that a loop carries, in float32."""
    told = Rewrite(
        *place_of(total.step), "accumulator", f"a running sum in {total.dtype}", "the same, carried in float32",
        "a sum in 16 bits stops growing when its terms are below half a unit in its last place",
    )  # fmt: skip
    return wide_sum(total, carry, narrow, [t if t is narrow else rw(t) for t in total.operands], told)


def _left_alone(step: Step) -> tuple[Untouched, ...]:
    """What is told of a step that no rule may look into."""
    eqn = step.equation
    if eqn is None or step.rewrite is not None:
        return ()
    if step.name in ("custom_jvp_call", "custom_vjp_call"):
        told = _jaxpr.origin(eqn)
        users = told is None or _jaxpr.is_users(told[1])
        name = told[0] if told else step.name
        return (Untouched(*place_of(step), name, "its derivative is the user's own"),) if users else ()
    inner = _jaxpr.control(eqn)
    if isinstance(inner, Call) and not is_rebuilt(eqn, inner) and composite(eqn) is None:
        return (Untouched(*place_of(step), step.name, "it has rules or shardings of its own"),)
    if step.name == "pure_callback" or (_jaxpr.has_effects(eqn) and _jaxpr.control(eqn) is None):
        return (Untouched(*place_of(step), step.name, "it runs outside of the program, or has effects"),)
    return ()


def _is_opened(eqn: Equation, inner: Call) -> bool:
    return eqn.primitive.name in _OPENED and is_rebuilt(eqn, inner) and composite(eqn) is None


def _plainly(step: Step, rw: Rewriter, search: Search | None) -> Step:
    """A step that no rule wants: its own operation on rewritten operands, with rewritten bodies."""
    operands = tuple(rw(t) for t in step.operands)
    eqn = step.equation
    inner = _jaxpr.control(eqn) if eqn is not None else None
    if eqn is not None and inner is not None and (whole := composite(eqn)) is not None:
        told = Rewrite(*place_of(step), "function", whole.name, f"{whole.name}, accurate", whole.reason)
        single = whole.name in ELEMENTWISE
        return step.on(operands, run=whole.function, rewrite=told, elementwise=single, safe=1.0 if single else None)
    if eqn is not None and inner is not None and is_rebuilt(eqn, inner):
        wide = wide_in(inner) if isinstance(inner, _jaxpr.Scan) else Wide()
        programs = _jaxpr.bodies(inner)
        values = [None] * len(programs) if search is None else search.inside(step, inner, step.operands)
        if isinstance(inner, _jaxpr.Scan):
            bodies = [Rewritten(inner.body, wide=wide, consts=inner.consts, examples=values[0])]
        else:
            bodies = [Rewritten(b, isinstance(inner, _jaxpr.Cond), examples=v) for b, v in zip(programs, values)]
        told = tuple(r for b in bodies for r in b.rewrites)
        if (given := sunk(step, inner)) is not None:
            taken = (*step.operands, *given.leaves)
            values = values if search is None else search.inside(step, inner, taken)
            branch = isinstance(inner, _jaxpr.Cond)
            more = [Rewritten(b, branch, examples=v, given=given) for b, v in zip(programs, values)]
            inside = tuple(r for b in more for r in b.rewrites)
            if fires_more(inside, told):
                bodies, told, operands = more, inside, (*operands, *map(rw, given.leaves))
        untouched = tuple(u for b in bodies for u in b.untouched)
        if wide.consts:
            told = (*told, _wide_constants(step))
        if told:
            return step.on(operands, run=with_bodies(eqn, inner, bodies, wide), inside=told, untouched=untouched)
        return step.on(operands, untouched=untouched) if untouched or operands != step.operands else step
    if step.name in COMPARISONS and (wide := compared(operands)) is not None:
        return step.on(wide)
    changed = _twin(step)
    return step.on(operands, **changed) if changed or operands != step.operands else step


def _wide_constants(step: Step) -> Rewrite:
    return Rewrite(
        *place_of(step), "accumulator", "cotangents of 16 bits, added up over the steps of a loop",
        "the same, added up in float32", "a sum in 16 bits stops growing when its terms are small beside it",
    )  # fmt: skip


def _twin(step: Step) -> dict[str, Any]:
    """What changes where a primitive has a twin with a better derivative."""
    if step.equation is None or all(map(is_constant, step.operands)):
        return {}
    if step.name in ("div", "mul") and is_constant(step.operands[1]):
        return {}  # linear
    if (better := twin(step.equation)) is None:
        return {}
    told = Rewrite(
        *place_of(step), "derivative", step.name, f"{step.name}, with another derivative", better.reason
    )  # fmt: skip
    return {"run": better.function, "rewrite": told}


def stabilize(f: Callable[..., Any], *, examples: Sequence[tuple[Any, ...]] | None = None) -> Callable[..., Any]:
    r"""The same function, accurate in value and derivatives.

    `f` is traced and its program rewritten: unstable shapes become their stable twins, value and derivative rule together.
    `jax.grad(stabilize(f))`, `jax.hessian`, `jax.jvp`, `jax.jit`, `jax.vmap`, `lax.scan`, `jax.checkpoint` and `shard_map`
    of it work as of `f`; it is a decorator too. What is replaced:

      - *Cancellation and 0/0* in elementwise expressions: differences of a function at neighbouring points, conjugate roots,
        removable singularities (by exact power series), rational functions, quotients of exponentials. The expression
        becomes one primitive, evaluated in float64 where the hardware has it (float32 and narrower), and so do its
        derivatives, each in a stable form of its own.
      - *Log-space* written by hand: \(\log\) of sums, products, quotients and powers of exponentials, through reductions,
        indexing, sorting, joining and matrix products; softmax, log-softmax, logsumexp; \(x \log x\) at 0.
      - *Squares*: norms, cosines, variances and covariances by raw sums, \(E[x^2] - E[x]^2\), with any normalisation, with
        weights, and in the carry of a loop. Functions of a distance that are smooth at 0 have their Hessian there.
      - Logarithms, softmax, norms and variances whose sums run over a mesh (`psum`).
      - *Derivatives* of primitives and of library functions (jax.nn, jnp, jax.scipy, optax) where JAX's lose digits or are
        NaN; the value keeps its bits.
      - *The branch that is not taken*: it is evaluated at a harmless point, so that it poisons no derivative of any order.
        Only a select, an extremum or a branch makes such a zero; a computed 0 · inf is rewritten to its limit or stays NaN.
      - *Sums in 16 bits*: those that a loop carries, and the cotangents of what it closes over, in float32. (The loop
        then holds float32 copies of what it closes over.)

    What is not: custom derivatives of the user's (`jax.custom_jvp`, `jax.custom_vjp`), calls with shardings or other rules
    of their own, error-free transforms such as Kahan's sum, complex arithmetic, primitives that no rule knows, and
    operations with effects, which run as they stand, once. Where nothing is
    replaced, `f` itself is called, and the bits are its own. A program that is already a derivative cannot be mended:
    `stabilize(jax.grad(f))` is no worse than `jax.grad(f)`, but accurate is `jax.grad(stabilize(f))`.

    Args:
      f: a function of pytrees that JAX can trace. Arrays and floats are traced; other leaves (integers of Python and NumPy,
        strings, functions) stay as they are.
      examples: tuples of positional arguments such as `f` will be called with, of the same structure and shapes. Then every
        elementwise expression is measured on them, value and first derivatives, against a run in as many digits as it
        takes, and among the plain form, the rules' and others the best one is taken, if on no example it is worse than the
        plain form. In the body of a loop or branch it is measured on what comes to it when `f` runs on the examples, at a
        part of the iterations; bodies inside `shard_map` go by the rules alone. It costs about a second for each expression.

    Returns:
      A function of the same signature and pytrees. `stabilize(f).rewrites(*args)` lists what is replaced for these
      arguments: `Rewrites`, a tuple of `Rewrite`s, each with file, line and function of the user's, before, after and the
      reason. Each call traces `f` anew: put it under `jax.jit`.

    Raises:
      TypeError: `f` is no function; `examples` is no sequence of tuples, or at a call of another structure than that.
      ValueError: `examples` is empty, holds numbers that are not finite or, at a call, arrays of other shapes.
      What `f` raises when it is traced, at the user's line.

    >>> import jax, jax.numpy as jnp
    >>> import robustad as rad
    >>> f = lambda x: (1 - jnp.cos(x)) / x**2
    >>> print(jax.grad(f)(1e-4), jax.grad(rad.stabilize(f))(1e-4))  # the truth is -8.3333e-06
    10000.001 -8.333333e-06
    >>> g = lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0)
    >>> print(jax.grad(g)(0.0), jax.grad(rad.stabilize(g))(0.0))
    nan 0.0
    """
    if not callable(f):
        raise TypeError(
            f"stabilize: `f` has type {type(f).__name__}; expected a function. Give the function itself, not its value: "
            "`stabilize(f)(x)`."
        )

    checked = None if examples is None else Examples(examples)

    def rewritten(call: Traced) -> Rewritten:
        return Rewritten(call.program, examples=None if checked is None else checked.of(call))

    @functools.wraps(f)
    def stabilized(*args: Any, **kwargs: Any) -> Any:
        call = Traced(f, args, kwargs)
        program = rewritten(call)
        return call.outputs(program(*call.arrays)) if program.rewrites else f(*args, **kwargs)

    def rewrites(*args: Any, **kwargs: Any) -> Rewrites:
        program = rewritten(Traced(f, args, kwargs))
        return Rewrites.of(program.rewrites, program.untouched)

    stabilized.rewrites = rewrites  # type: ignore[attr-defined]
    return stabilized
