"""`stage_gains`: how much each stage of a computation amplifies errors, and how much the stages up to it do together.

The product of the stages' Jacobians is taken as it is, not bounded by the product of their norms, and carried as
rows times a power of two, so that chains of any length neither overflow nor vanish.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad.diagnosis._arguments import AuditError, arguments
from robustad.diagnosis._coordinates import Coordinates, epsilon, working_dtype
from robustad.diagnosis._directions import directions, orthonormal_rows, seed_of
from robustad.diagnosis._jacobian_operator import WHOLE, JacobianOperator, jacobian_operator
from robustad.diagnosis._options import count, name_of, refuse_no_key
from robustad.diagnosis._stage_gains_report import StageGains
from robustad.diagnosis._tracing import refuse_tracers

WIDTH = 8  # directions that are followed where the state is large
ITERATIONS = 50
RESIDUAL = 5e-3  # of the value, where it has converged: the value is then right to about its square


def stage_gains(
    stages: Sequence[Callable[..., Any]] | Callable[..., Any], *, length: int | None = None, key: Array | None = None
) -> Callable[..., StageGains]:
    r"""How much each stage of a computation amplifies an error, and how much all stages up to it do.

    With \(J_k\) the Jacobian of stage k where the computation meets it: \(\lVert J_k \rVert_2\), and \(\lVert J_k \cdots J_1
    \rVert_2\). Backward through the chain, gradients grow by the same factors: it is where they explode or vanish.

    For x of up to 64 components (real ones; a complex one is two) the product is carried along whole. For larger ones its
    norm is estimated from below by subspace iteration through the stages, to about four digits, for each k: the time
    grows with the square of the number of stages.

    Args:
        stages: functions that are applied one after the other, `stages[1](stages[0](x))`; each takes and returns a pytree of
            arrays, of which the floating ones count. Or one function, the body of a `lax.scan`: (carry, x) -> (carry, y).
        length: of the scan, where it has no `xs`.
        key: `jax.random.key` that draws directions; by default always the same.

    Returns:
        A function of x, or for a scan's body of (init, xs=None), that returns `StageGains`, which prints as a table. It
        cannot be called under `jax.jit`; every stage is compiled once, and a scan's body once for all.

    Raises:
        ValueError: there is no stage; a stage is no function, returns no floating array or has no reverse mode; `length` is
            missing, or is not that of `xs`; called under `jax.jit`.

    Source: Higham, Accuracy and stability of numerical algorithms, 2nd ed. (SIAM 2002), section 3.8; Saad, Numerical
    methods for large eigenvalue problems, 2nd ed. (SIAM 2011), chapter 5.

    Example:
        >>> import jax.numpy as jnp
        >>> shear, back = jnp.array([[1.0, 8.0], [0.0, 1.0]]), jnp.array([[1.0, -8.0], [0.0, 1.0]])
        >>> gains = stage_gains([lambda x: shear @ x, lambda x: back @ x, lambda x: 4 * x])(jnp.ones(2))
        >>> gains.stage.round(2).tolist(), gains.cumulative.round(2).tolist()
        ([8.12, 8.12, 4.0], [8.12, 1.0, 4.0])
    """
    refuse_no_key(key)
    if length is not None:
        count("length", length, 1)
    if callable(stages) and not isinstance(stages, Sequence):
        return _of_scan(stages, length, key)
    if not isinstance(stages, Sequence) or not stages or not all(callable(f) for f in stages):
        held = ", ".join(sorted({type(f).__name__ for f in stages})) if isinstance(stages, Sequence) else ""
        got = f"an empty {type(stages).__name__}" if held == "" and not stages else type(stages).__name__
        raise AuditError(
            "`stages` must be a non-empty sequence of functions, or the body of a scan; got "
            + (f"{got} of {held}." if held else f"{got}.")
        )
    if length is not None:
        raise AuditError(f"`length`={length} is for the body of a scan; there are {len(stages)} stages. Leave it out.")
    compiled = {id(f): _Stage(f, name_of(f)) for f in stages}
    chain = [compiled[id(f)] for f in stages]

    def measured(x: Any) -> StageGains:
        return _run(chain, [stage.name for stage in chain], x, [()] * len(chain), key)

    return measured


def _of_scan(body: Callable[..., Any], length: int | None, key: Array | None) -> Callable[..., StageGains]:
    @functools.wraps(body, updated=())
    def carried(carry: Any, x: Any) -> Any:
        out = body(carry, x)
        if not isinstance(out, tuple) or len(out) != 2:
            raise AuditError(f"the body of a scan must return (carry, y); it returned {type(out).__name__}.")
        return out[0]

    stage = _Stage(carried, name_of(body))

    @functools.wraps(body, updated=())
    def measured(init: Any, xs: Any = None) -> StageGains:
        shapes = [np.shape(x) for x in jax.tree.leaves(xs)]
        lengths = {shape[:1] for shape in shapes} | (set() if length is None else {(length,)})
        if len(lengths) != 1 or not (n := sum(lengths.pop())):
            raise AuditError(
                "the scan's length must be given once, and not be 0: by the first axis of the arrays in `xs`, or by "
                f"`length`; got length={length} and xs of shapes {shapes}."
            )
        further = [(jax.tree.map(lambda x, k=k: x[k], xs),) for k in range(n)]
        return _run([stage] * n, [f"{stage.name}[{k}]" for k in range(n)], init, further, key)

    return measured


class _Stage:
    """A stage's compiled programs, each a function of its arguments `at`, of which the first is the state."""

    def __init__(self, f: Callable[..., Any], name: str) -> None:
        self.name = name
        self.advance = jax.jit(lambda *at: f(*at))
        self.arguments = lambda at: arguments(f, 0, at, {})

        def operator(at: tuple[Any, ...]) -> JacobianOperator:
            taken = self.arguments(at)
            return jacobian_operator(taken, taken.leaves, taken.others, False, name)

        @jax.jit
        def push(rows: Array, *at: Any) -> tuple[Array, Array]:
            of = operator(at)
            return _scaled(of.push(rows.astype(of.dtype)))

        @jax.jit
        def pull(rows: Array, *at: Any) -> tuple[Array, Array]:
            of = operator(at)
            return _scaled(of.pull(rows.astype(of.dtype)))

        self.push, self.pull = push, pull

    def start(self, key: Array | None, at: tuple[Any, ...]) -> Array:
        """All directions of the state as unit rows, or some where they are many."""
        leaves = self.arguments(at).leaves
        space = Coordinates.of(leaves, working_dtype(leaves))
        if space.size <= WHOLE:
            return jnp.eye(space.size, dtype=space.dtype)
        return orthonormal_rows(directions((WIDTH, space.size), space.dtype, seed_of(key)))


def _scaled(rows: Array) -> tuple[Array, Array]:
    """Rows of which the largest element is about 1, and the exponent that they lack."""
    _, e = jnp.frexp(jnp.max(jnp.abs(rows), initial=0))
    e = jnp.where(jnp.isfinite(rows).all(), e, 0)
    return jnp.ldexp(rows, -e), e


@jax.jit
def _norm(rows: Array) -> Array:
    return jnp.linalg.svd(rows, compute_uv=False)[0]


def _run(
    chain: list[_Stage], names: list[str], x: Any, further: list[tuple[Any, ...]], key: Array | None
) -> StageGains:
    refuse_tracers("stage_gains", (x, further))
    numbers = jax.Array | np.ndarray | np.number | np.bool_ | int | float | complex
    if wrong := [y for y in jax.tree.leaves((x, further)) if not isinstance(y, numbers)]:
        raise AuditError(f"the state of `stage_gains` must hold arrays and numbers alone; got {wrong[0]!r}.")
    alone, together, converged = [], [], []
    at: list[tuple[Any, ...]] = []
    with jax.debug_nans(False), jax.debug_infs(False), np.errstate(divide="ignore"):
        rows = chain[0].start(key, (x, *further[0]))
        whole, lacking = _is_whole(rows), 0
        for k, (stage, more) in enumerate(zip(chain, further)):
            at.append((x, *more))
            gain, known = _gain([stage], at[k:], stage.start(key, at[k]))
            alone.append(gain)
            if whole:
                rows, e = stage.push(rows, *at[k])
                lacking += int(e)
                together.append(np.log2(float(_norm(rows))) + lacking)
            else:
                # Not from the rows of the stages before: they may be stationary here without being what grows most.
                gain, also = _gain(chain[: k + 1], at, rows)
                together.append(gain)
                known = known and also
            converged.append(known and not np.isnan(together[-1]))
            x = stage.advance(*at[k])
    return StageGains(np.array(alone), np.array(together), np.array(converged), tuple(names))


def _is_whole(rows: Array) -> bool:
    return rows.shape[0] == rows.shape[1]


def _gain(chain: list[_Stage], at: list[tuple[Any, ...]], rows: Array) -> tuple[float, bool]:
    """log2 of the norm of the chain's Jacobian by subspace iteration from `rows`, and whether it is known: the residual of
    its singular vectors is small."""
    leaves = [leaf for stage, where in zip(chain, at) for leaf in stage.arguments(where).leaves]
    gain, tolerance = np.nan, RESIDUAL + 4 * epsilon(leaves)
    for _ in range(ITERATIONS):
        image, lacking = rows, 0
        for stage, where in zip(chain, at):
            image, e = stage.push(image, *where)
            lacking += int(e)
        right, values, left = _values(image, rows)
        gain = float(np.log2(float(values[0]))) + lacking
        if _is_whole(rows) or not np.isfinite(gain):
            return gain, not np.isnan(gain)
        back, lacked = left, -lacking
        for stage, where in zip(chain[::-1], at[::-1]):
            back, e = stage.pull(back, *where)
            lacked += int(e)
        if float(_distance(jnp.ldexp(back[0], lacked), values[0], right[0])) <= tolerance * float(values[0]):
            return gain, True
        rows = orthonormal_rows(back)
    return gain, False


@jax.jit
def _values(image: Array, rows: Array) -> tuple[Array, Array, Array]:
    """Of J with J rowsᵀ = imageᵀ, in the span of the rows: right singular vectors, singular values, left vectors."""
    turned, values, left = jnp.linalg.svd(image, full_matrices=False)
    return turned.T @ rows, values, left


@jax.jit
def _distance(back: Array, value: Array, right: Array) -> Array:
    return jnp.linalg.norm(back - value * right)
