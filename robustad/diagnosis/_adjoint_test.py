"""`adjoint_test`: is the backward mode of a function the transpose of its forward mode?"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr
from robustad.diagnosis._accuracy import norm, wide
from robustad.diagnosis._arguments import Arguments, AuditError, arguments
from robustad.diagnosis._leaves import precision_of, rounded_to
from robustad.diagnosis._nan_inputs import refuse_nan_that_reaches
from robustad.diagnosis._options import count, name_of, numpy_seed, refuse_no_function
from robustad.diagnosis._point import slopes_of
from robustad.diagnosis._program import without_aux
from robustad.diagnosis._tracing import refuse_tracers
from robustad.diagnosis._user_errors import told

_CONSTANT = 8.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class AdjointTest:
    r"""The result of `adjoint_test`; one entry for each pair of directions.

    Attributes:
        forward: \(\langle J v, w \rangle\). backward: \(\langle v, J^T w \rangle\).
        error: by how much they differ. bound: by how much rounding lets them differ.
        ok: every error is within its bound, and finite.
        tangents: how \(J v\) was computed: "jvp", or "exact" or "float64" differences where `f` has no forward mode.
        function: what was tested.
    """

    forward: np.ndarray
    backward: np.ndarray
    error: np.ndarray
    bound: np.ndarray
    ok: bool = dataclasses.field(metadata={"static": True})
    tangents: str = dataclasses.field(metadata={"static": True})
    function: str = dataclasses.field(metadata={"static": True})

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger: ok (0 or 1), and the largest error over its bound."""
        with np.errstate(all="ignore"):
            return {"ok": float(self.ok), "error_over_bound": float(np.max(self.error / self.bound))}

    def __str__(self) -> str:
        by = "jax.jvp" if self.tangents == "jvp" else f"{self.tangents} differences, having no forward mode"
        lines = [f"adjoint_test({self.function}): {'ok' if self.ok else 'NOT ok'}, tangents by {by}"]
        for row in zip(self.forward, self.backward, self.error, self.bound):
            lines.append("  <Jv, w> = {:.9g}  <v, Jᵀw> = {:.9g}  differ by {:.2e}, rounding by {:.2e}".format(*row))
        return "\n".join(lines)

    __repr__ = __str__


def adjoint_test(
    f: Callable[..., Any],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    directions: int = 2,
    key: jax.Array | None = None,
) -> Callable[..., AdjointTest]:
    r"""Whether `jax.vjp` of `f` is the transpose of its derivative: \(\langle J v, w \rangle = \langle v, J^T w \rangle\).

    The dot-product test for random v and w. A wrong `custom_vjp`, or a wrong transpose of a linear primitive, fails. A
    function with a `custom_vjp` has no `jax.jvp`: its \(J v\) is taken from differences of its values (exactly where
    python-flint is installed and the program is small), which no rule can falsify.

    Args:
        f: a function to a pytree of arrays; its floating outputs are tested.
        argnums, has_aux: as for `jax.grad`: the floating leaves of these arguments are differentiated.
        directions: how many pairs (v, w).
        key: `jax.random.key` that draws them.

    Returns:
        A function of `f`'s arguments that returns an `AdjointTest`. With the precision u of the narrowest dtype that is
        computed in and n numbers in and out, the bound is
        \(8 \sqrt{n} u \max(\lVert J v \rVert \lVert w \rVert, \lVert v \rVert \lVert J^T w \rVert)\).

    Raises:
        ValueError: there is nothing to differentiate, no floating output, or an option is out of range.

    Source: Claerbout, Earth Soundings Analysis (1992), chapter 5.

    >>> import jax.numpy as jnp
    >>> from robustad.diagnosis import adjoint_test
    >>> adjoint_test(lambda x: jnp.cumsum(jnp.tanh(x)))(jnp.array([0.5, 2.0])).ok
    True
    """
    refuse_no_function(f, "adjoint_test")
    count("directions", directions, 1)
    seed = numpy_seed(key)

    @functools.wraps(f, updated=())
    def test(*args: Any, **kwargs: Any) -> AdjointTest:
        refuse_tracers("adjoint_test", (args, kwargs))
        with jax.debug_nans(False), jax.debug_infs(False), jax.disable_jit(False):
            taken = arguments(f, argnums, args, kwargs)
            outputs = _floating_outputs(taken, has_aux)
            linear = _Linear(taken, lambda leaves: outputs(leaves, taken.others))

            def with_product(leaves: list[jax.Array], others: list[jax.Array]) -> Any:
                values, pull = jax.vjp(lambda x: outputs(x, others), leaves)
                return values, pull([jnp.ones_like(x) for x in values])

            refuse_nan_that_reaches(taken, with_product, "the value or its derivative")
            random = np.random.default_rng(seed)
            rows = [linear.products(random) for _ in range(directions)]
        forward, backward, error, bound = (np.array(column, float) for column in zip(*rows))
        return AdjointTest(
            forward=forward,
            backward=backward,
            error=error,
            bound=bound,
            ok=bool((np.isfinite(error) & (error <= bound)).all()),
            tangents=linear.tangents,
            function=name_of(f),
        )

    return test


def _floating_outputs(taken: Arguments, has_aux: bool) -> Callable[..., list[jax.Array]]:
    def outputs(leaves: list[jax.Array], others: list[jax.Array]) -> list[jax.Array]:
        out = without_aux(taken.call(leaves, others), has_aux)
        return [x for x in map(jnp.asarray, jax.tree.leaves(out)) if _jaxpr.is_inexact(x)]

    return outputs


class _Linear:
    """The derivative of a function of leaves, in both directions."""

    def __init__(self, taken: Arguments, outputs: Callable[[list[jax.Array]], list[jax.Array]]):
        self.leaves = taken.leaves
        try:
            _, shapes = _jaxpr.trace(outputs, self.leaves)
        except AuditError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise AuditError(f"`f` cannot be traced: {told(error)}") from error
        if not shapes:
            raise AuditError("`f` returns no floating array, so it has no derivative; cast its output to float32.")
        self.shapes = shapes
        self._pull = jax.jit(lambda x, w: jax.vjp(outputs, x)[1](w)[0])
        self.tangents = "jvp"
        push = jax.jit(lambda x, v: jax.jvp(outputs, (x,), (v,))[1])
        zeros = [jnp.zeros_like(x) for x in self.leaves]
        try:
            push(self.leaves, zeros)
            derivative, _ = _jaxpr.trace(push, self.leaves, zeros)
            self._push = lambda v: [(t, t, 0.0) for t in _parts(push(self.leaves, v))]
        except TypeError:  # a custom_vjp has no forward mode
            derivative, _ = _jaxpr.trace(self._pull, self.leaves, [jnp.zeros(s.shape, s.dtype) for s in shapes])
            program, _ = _jaxpr.trace(lambda x: _parts(outputs(x)), self.leaves)
            slopes, _ = slopes_of(program, self.leaves)
            self.tangents = "exact" if slopes.exact else "float64"
            self._push = lambda v: [(s.low, s.high, s.error) for s in slopes.along([_wide(x) for x in v])]
        self.unit = 2.0 ** -_precision(derivative)

    def products(self, random: np.random.Generator) -> tuple[float, float, float, float]:
        """<Jv, w>, <v, Jᵀw>, their difference and its bound."""
        v = [_drawn(x, random) for x in self.leaves]
        w = [_drawn(s, random) for s in self.shapes]
        tangents, cotangents = self._push(v), self._pull(self.leaves, w)
        weights = _parts([jnp.conj(y) for y in w])  # the product of JAX's complex derivatives is real and bilinear
        # Differences at a kink leave an interval open.
        ends = [np.sort([_terms(low, y), _terms(high, y)], 0) for (low, high, _), y in zip(tangents, weights)]
        low, high = (_sum([x[k] for x in ends]) for k in (0, 1))
        doubt = _sum([np.abs(_wide(y)) * error for (_, _, error), y in zip(tangents, weights)])
        back = _sum([_terms(x, y) for x, y in zip(cotangents, v)])
        nearest = min(max(back, low), high)
        sizes = _norm([t for _, t, _ in tangents]) * _norm(w), _norm(v) * _norm(cotangents)
        n = sum(x.size for x in [*self.leaves, *w])
        bound = _CONSTANT * math.sqrt(n) * self.unit * max(sizes) + doubt
        return nearest, back, abs(nearest - back) + 0 * (low + high), bound


def _parts(xs: Sequence[Any]) -> list[jax.Array]:
    """Real numbers and the parts of complex ones."""
    return [p for x in xs for p in ((jnp.real(x), jnp.imag(x)) if jnp.iscomplexobj(x) else (x,))]


def _precision(program: _jaxpr.Body) -> int:
    """Bits of the narrowest dtype that a program computes in."""
    rounded = [
        rounded_to(site.equation, var)
        for site in _jaxpr.sites(program)
        if any(_jaxpr.is_inexact(v) for v in site.equation.invars)
        for var in site.equation.outvars
        if _jaxpr.is_inexact(var)
    ]
    return min([*rounded, *(precision_of(_jaxpr.aval(v).dtype) for v in program.outputs if _jaxpr.is_inexact(v))])


def _drawn(like: Any, random: np.random.Generator) -> jax.Array:
    x = random.standard_normal(like.shape)
    if jnp.issubdtype(like.dtype, jnp.complexfloating):
        x = x + 1j * random.standard_normal(like.shape)
    return jnp.asarray(np.asarray(x).astype(like.dtype))


def _wide(x: Any) -> np.ndarray:
    return np.asarray(x).astype(wide(np.asarray(x)))


def _terms(x: Any, y: Any) -> np.ndarray:
    """Those of the real bilinear product of JAX's complex derivatives."""
    return np.real(_wide(x) * _wide(y))


def _sum(parts: Sequence[np.ndarray]) -> float:
    terms = np.concatenate([np.ravel(p) for p in parts])
    return math.fsum(terms) if np.isfinite(terms).all() else math.nan


def _norm(xs: Sequence[Any]) -> float:
    return math.hypot(*(norm(_wide(x)) for x in xs))
