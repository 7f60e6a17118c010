r"""Lyapunov exponents: how fast neighbouring orbits part, by Jacobian-vector products of a map.

References: Benettin, Galgani, Giorgilli, Strelcyn, Lyapunov characteristic exponents for smooth dynamical systems (Meccanica
15, 1980); Eckmann and Ruelle, Ergodic theory of chaos and strange attractors (Rev. Mod. Phys. 57, 1985).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import _jaxpr
from robustad.diagnosis._arguments import Arguments, AuditError, arguments
from robustad.diagnosis._coordinates import Coordinates, epsilon, working_dtype
from robustad.diagnosis._directions import directions, seed_of
from robustad.diagnosis._lyapunov_report import LyapunovExponents
from robustad.diagnosis._nan_inputs import refuse_nan_that_reaches
from robustad.diagnosis._on_host import on_host
from robustad.diagnosis._options import count, is_number, name_of, refuse_no_function, refuse_no_key
from robustad.diagnosis._user_errors import told

BLOCKS = 32
ALL = 32  # components: of a state of as many, all exponents by default; of a larger one as many
UNRESOLVED = 8  # a column that is another's multiple but for so many eps has no direction of its own


def lyapunov_exponents(
    step: Callable[..., Any],
    *,
    steps: int = 10_000,
    burn_in: int = 1_000,
    dt: float = 1.0,
    k: int | None = None,
    every: int = 1,
    key: Array | None = None,
) -> Callable[..., LyapunovExponents]:
    r"""The Lyapunov exponents of the map \(x \mapsto \mathrm{step}(x)\) along an orbit.

    k tangent vectors are taken along the orbit by `jax.jvp` and made orthonormal by QR every few steps; the exponents are
    the mean logarithms of R's diagonal per unit of time. The first one says how fast an error grows, hence for how
    long the orbit can be predicted, and how fast reverse mode through many steps overflows or vanishes. All is one
    compiled scan, whatever the number of steps.

    A map in floating point has finitely many states: its orbit ends on a cycle, in float32 sometimes after a few thousand
    steps. (The logistic map with r = 4 often falls onto its unstable fixed point 0.) Exact repetition is looked for by
    Brent's algorithm; where an orbit repeats with a positive exponent, the verdict is "collapsed": the numbers
    are not those of the attractor. Call it on float64 states inside `jax.enable_x64(True)`.

    Args:
        step: x -> x, from a pytree of floating or complex arrays (complex: as two real ones) to one of the same structure,
            shapes and dtypes; as step(x, *args, **kwargs) where there are parameters.
        steps: how many steps are measured.
        burn_in: how many are made before them, in which the tangent vectors turn already.
        dt: the time that a step takes, so that exponents of a flow are per unit of time.
        k: how many exponents, the largest first; by default all, but 32 at most.
        every: make the vectors orthonormal every so many steps; it must divide `steps` and `burn_in`. Vectors that come
            closer than rounding in between are lost (NaN), and tangents that overflow are a divergence: 1 is safe.
        key: `jax.random.key` that draws the first tangent vectors; by default always the same.

    Returns:
        A function of step's arguments that returns `LyapunovExponents`. It works under `jax.jit`, and under `jax.vmap` over
        states or parameters; the verdict's string is for outside. An orbit that overflows raises nothing: it has the
        verdict "diverged", the step, and NaN for exponents.

    Raises:
        ValueError: an option out of range; on calling: `step` does not return what it takes; there is no floating array;
            NaN in the arguments, and nothing else, makes the next state NaN.
        TypeError: on calling: `step` uses a `jax.custom_vjp` function, which has no forward mode.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> with jax.enable_x64(True):
        ...     found = lyapunov_exponents(lambda x: 4 * x * (1 - x))(jnp.float64(0.3))
        >>> found.verdict, f"{found.largest:.2f}"  # ln 2
        ('chaotic', '0.69')
        >>> f"{found.predictability_horizon().steps:.0f}"  # eps doubles with every step
        '52'
    """
    refuse_no_function(step, "lyapunov_exponents", "step")
    count("steps", steps, 1)
    count("burn_in", burn_in, 0)
    count("every", every, 1)
    if steps % every or burn_in % every:
        raise AuditError(f"`every`={every} must divide `steps`={steps} and `burn_in`={burn_in}.")
    if steps == every:
        raise AuditError(f"`steps`={steps} are measured but once, with `every`={every}: take twice as many, or more.")
    if k is not None:
        count("k", k, 1)
    if not is_number(dt) or not 0 < dt < np.inf:
        raise AuditError(f"`dt` must be a positive number, the time of a step; got {dt!r}.")
    refuse_no_key(key)

    @functools.wraps(step, updated=())
    def measured(*args: Any, **kwargs: Any) -> LyapunovExponents:
        with jax.debug_nans(False), jax.debug_infs(False):
            return _run(step, args, kwargs, int(steps), int(burn_in), float(dt), k, int(every), key)

    return measured


class _Orbit(NamedTuple):
    """State, tangent vectors (rows), steps made, when it diverged; Brent's saved state and its step; the cycle;
    whether the last step moved the state by more than rounding."""

    x: list[Array]
    tangents: Array
    t: Array
    diverged_at: Array
    saved: list[Array]
    saved_at: Array
    period: Array
    cycle_from: Array
    at_rest: Array


def _run(
    step: Any, args: Any, kwargs: Any, steps: int, burn_in: int, dt: float, k: int | None, every: int, key: Array | None
) -> LyapunovExponents:
    taken = arguments(step, 0, args, kwargs)
    name = name_of(step)
    _refuse_another_state(taken, args[0], name)
    if not any(map(_jaxpr.is_traced, [*taken.leaves, *taken.others])):
        refuse_nan_that_reaches(taken, taken.call, "the state after a step")
    space = Coordinates.of(taken.leaves, working_dtype(taken.leaves))
    n = space.size
    if k is not None and k > n:
        raise AuditError(f"`k`={k} exponents were asked for, but the state has {n} real components.")
    k = min(n, ALL) if k is None else int(k)
    n_blocks = min(BLOCKS, steps // every)
    measured = np.arange(steps // every) * n_blocks // (steps // every)
    blocks = np.append(
        np.full(burn_in // every, n_blocks), measured
    )  # what is burnt in has a block that is thrown away
    times = np.bincount(measured) * (every * dt)

    @jax.jit
    def run(leaves: list[Array], others: list[Array], seed: Array) -> Any:
        def advance(state: tuple[_Orbit, Array], block: Array) -> tuple[tuple[_Orbit, Array], None]:
            orbit, logs = _advance(taken.call, others, space, every, state[0])
            return (orbit, state[1].at[block].add(logs)), None

        none, zero = jnp.full((), -1, jnp.int32), jnp.zeros((), jnp.int32)
        start = jnp.linalg.qr(directions((n, k), space.dtype, seed))[0].T
        orbit = _Orbit(leaves, start, zero, none, leaves, zero, zero, none, jnp.zeros((), bool))
        sums = jnp.zeros((n_blocks + 1, k), space.dtype)
        (orbit, sums), _ = lax.scan(advance, (orbit, sums), jnp.asarray(blocks, jnp.int32))
        sums = sums[:-1]
        exponents = jnp.sum(sums, 0) / (steps * dt)
        spread = _standard_error(sums, jnp.asarray(times, space.dtype), exponents)
        diverged = orbit.diverged_at >= 0
        order = jnp.argsort(-exponents)  # of equal ones QR may turn the order
        exponents, spread = (jnp.where(diverged, jnp.nan, v[order]) for v in (exponents, spread))
        period, cycle_from = jnp.where(diverged, 0, orbit.period), jnp.where(diverged, -1, orbit.cycle_from)
        return exponents, spread, orbit.diverged_at, period, cycle_from, orbit.at_rest & ~diverged

    try:
        found = run(taken.leaves, taken.others, seed_of(key))
    except TypeError as error:  # what JAX raises of a custom_vjp, when it compiles
        raise AuditError(
            f"`{name}` cannot be differentiated in forward mode: {str(error).strip()[:1500]}\nA function with a "
            "jax.custom_vjp has none: give it a jax.custom_jvp."
        ) from error
    exponents, spread, diverged_at, period, cycle_from, at_rest = on_host(found)
    return LyapunovExponents(
        exponents,
        spread,
        diverged_at,
        period,
        cycle_from,
        at_rest,
        steps,
        burn_in,
        dt,
        n,
        str(min((x.dtype for x in taken.leaves), key=lambda d: jnp.finfo(d).bits)),
        name,
    )


def _standard_error(sums: Array, times: Array, mean: Array) -> Array:
    """Of the mean, from blocks of unequal lengths; 0 for an exponent of -inf; NaN of one block, and of an unknown mean."""
    blocks = len(times)
    if blocks < 2:
        return jnp.full_like(mean, jnp.nan)
    deviations = jnp.where(jnp.isfinite(mean), sums / times[:, None] - mean, 0)
    weights = (times / jnp.sum(times))[:, None]
    return jnp.where(jnp.isnan(mean), jnp.nan, jnp.sqrt(jnp.sum(weights * deviations**2, 0) / (blocks - 1)))


def _advance(
    call: Callable[..., Any], others: list[Array], space: Coordinates, every: int, orbit: _Orbit
) -> tuple[_Orbit, Array]:
    """`every` steps, then the tangents made orthonormal; and the logarithms of what they have grown by."""

    def derivative(x: list[Array], tangents: Array) -> tuple[list[Array], Array]:
        y, push = jax.linearize(lambda x: jax.tree.leaves(call(x, others)), x)
        return y, jax.vmap(lambda v: space.vector(push(space.leaves(v))))(tangents)

    def one(_: Any, o: _Orbit) -> _Orbit:
        x, tangents = derivative(o.x, o.tangents)
        t = o.t + 1
        now, then = space.vector(x), space.vector(o.x)
        finite = jnp.isfinite(now).all() & jnp.isfinite(tangents).all()
        moved = jnp.max(jnp.abs(now - then))
        repeats = functools.reduce(jnp.logical_and, [(a == b).all() for a, b in zip(x, o.saved)])
        found = repeats & (o.period == 0)
        period = jnp.where(found, t - o.saved_at, o.period)
        # Brent's algorithm: the saved state is renewed at powers of two.
        renew = jnp.bitwise_and(t, t - 1) == 0
        saved = [jnp.where(renew, a, b) for a, b in zip(x, o.saved)]
        return _Orbit(
            x,
            tangents,
            t,
            jnp.where((o.diverged_at < 0) & ~finite, t, o.diverged_at),
            saved,
            jnp.where(renew, t, o.saved_at),
            period,
            jnp.where(found, o.saved_at, o.cycle_from),
            moved <= UNRESOLVED * epsilon(space.shapes) * jnp.max(jnp.abs(now)),
        )

    orbit = one(0, orbit) if every == 1 else lax.fori_loop(0, every, one, orbit)
    # By powers of two, so that no square overflows or vanishes.
    _, e = jnp.frexp(jnp.max(jnp.abs(orbit.tangents), axis=1))
    scaled = jnp.ldexp(orbit.tangents, -e[:, None])
    q, r = jnp.linalg.qr(scaled.T)
    grown = jnp.abs(jnp.diagonal(r))
    length = jnp.sqrt(jnp.sum(scaled**2, axis=1))
    unresolved = (grown <= UNRESOLVED * epsilon(space.shapes) * length) & (grown > 0)
    grown = jnp.where(unresolved, jnp.nan, grown)
    return orbit._replace(tangents=q.T), jnp.log(grown) + e.astype(space.dtype) * np.log(2)


def _refuse_another_state(taken: Arguments, state: Any, name: str) -> None:
    if taken_apart := [x for x in jax.tree.leaves(state) if not jnp.issubdtype(jnp.result_type(x), jnp.inexact)]:
        raise AuditError(
            f"the state that `{name}` takes holds {jnp.result_type(taken_apart[0])}; expected floating arrays alone. Pass "
            f"what has no tangent as a further argument: {name}(x, *args)."
        )
    if not sum(x.size for x in taken.leaves):
        raise AuditError(f"the state that `{name}` takes is empty: it has no elements.")

    try:
        out = jax.eval_shape(taken.call, taken.leaves, taken.others)
    except (TypeError, ValueError, IndexError, jax.errors.JAXTypeError) as error:
        raise AuditError(f"`{name}` cannot be traced: {told(error)}") from error
    if jax.tree.structure(out) != jax.tree.structure(state):
        raise AuditError(
            f"`{name}` must return a state like the one it takes: got {jax.tree.structure(out)}, expected "
            f"{jax.tree.structure(state)}."
        )
    for x, y in zip(taken.leaves, jax.tree.leaves(out)):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            raise AuditError(
                f"`{name}` must return a state like the one it takes: got {y.dtype}{list(y.shape)} for "
                f"{x.dtype}{list(x.shape)}. Cast one to the other."
            )
