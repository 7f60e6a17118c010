r"""How much a function, by itself, amplifies relative errors of its arguments: no program can do better.

References: Rice, A theory of condition (SIAM J. Numer. Anal. 3, 1966); Gohberg and Koltracht, Mixed, componentwise, and
structured condition numbers (SIAM J. Matrix Anal. Appl. 14, 1993).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import _jaxpr
from robustad.diagnosis import _amplification
from robustad.diagnosis._amplification import Amplification
from robustad.diagnosis._arguments import AuditError, arguments
from robustad.diagnosis._condition_report import ConditionNumber, LeafCondition
from robustad.diagnosis._linearization import DerivativeError, Linearization, linearize
from robustad.diagnosis._options import name_of, refuse_no_function
from robustad.diagnosis._program import without_aux
from robustad.diagnosis._tracing import refuse_tracers, traced


def condition_number(
    f: Callable[..., Any], *, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., ConditionNumber]:
    r"""How much does `f` itself amplify relative errors of its arguments?

    With the Jacobian \(J = \partial f_i / \partial x_j\) at x, over all components of all floating leaves:

    - normwise \(\lVert J \rVert_2 \lVert x \rVert_2 / \lVert f \rVert_2\): for errors measured by the norms of x and f
    - mixed \(\max_i \sum_j |J_{ij}| |x_j| / \max_i |f_i|\): for each \(x_j\) rounded by itself; the largest \(f_i\) counts
    - componentwise \(\max_i \left(\sum_j |J_{ij}| |x_j| / |f_i|\right)\): the same, and each \(f_i\) counts

    A relative error u of the arguments becomes one of up to the condition number times u, in any program: a condition of
    10^k takes k digits. What a program loses beyond that is its own instability. 0/0 counts as 0: a component that does not
    change loses nothing, and a zero argument has no relative error. A zero value that does change, by more than rounding of
    the largest ones (2^-40), has condition inf. Where the derivative is not finite the numbers are nan.

    f and its derivative are evaluated in float64 beside the working program and along its branches, whatever the dtypes in
    it: casts to narrower dtypes do not count, and custom derivative rules are used. What float64 itself loses does count, so
    conditions beyond 10^15 are no more than large. Where x and f both have more than 512 components, or J more than 2^25
    elements, the numbers are estimates from below: norms by subspace iteration; maxima over the components that Cauchy
    sketches (Indyk, J. ACM 53, 2006) find to have the largest sums.

    Args:
        f: a function of arrays or pytrees to arrays or pytrees; a gradient function too, as `jax.grad(loss)`.
        argnums: the positional arguments whose floating leaves are x (flax nnx: the `Param`s). A complex leaf counts as two
            real ones.
        has_aux: whether `f` returns (value, aux); aux does not count.

    Returns:
        A function of `f`'s arguments that returns a `ConditionNumber`. It cannot be called under `jax.jit`. It compiles f
        and its derivative, and evaluates up to 512 directions, 32 at a time.

    Raises:
        ValueError: on calling: `f` does not trace, cannot be differentiated, or returns no floating array; `argnums` is
            wrong or holds no floating array; the program uses mutable arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> found = condition_number(lambda x: x[0] - x[1])(jnp.array([1.0, 1.0 - 2.0**-20]))
        >>> round(found.componentwise / 2**21, 5), round(found.digits_left("float32"), 1)
        (1.0, 0.9)
    """
    refuse_no_function(f, "condition_number")

    @functools.wraps(f, updated=())
    def conditioned(*args: Any, **kwargs: Any) -> ConditionNumber:
        with jax.debug_nans(False), jax.debug_infs(False), jax.disable_jit(False):
            return _run(f, argnums, has_aux, args, kwargs)

    return conditioned


def _run(f: Any, argnums: Any, has_aux: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ConditionNumber:
    refuse_tracers("condition_number", (args, kwargs))
    taken = arguments(f, argnums, args, kwargs)
    leaves, names = _real(taken.leaves, taken.names)
    results: list[str] = []
    name = name_of(f)

    def real(leaves: list[Array], others: list[Array]) -> list[Array]:
        given = iter(leaves)
        whole = [lax.complex(next(given), next(given)) if jnp.iscomplexobj(x) else next(given) for x in taken.leaves]
        out = without_aux(taken.call(whole, others), has_aux)
        kinds = jax.Array | np.ndarray | np.generic | float | complex
        named = [(p, jnp.asarray(x)) for p, x in jax.tree_util.tree_flatten_with_path(out)[0] if isinstance(x, kinds)]
        named = [(path, x) for path, x in named if _jaxpr.is_inexact(x)]
        if not named:
            raise AuditError(f"`{name}` must return floating arrays, which have a condition; it returned none.")
        titles = [jax.tree_util.keystr(path, simple=True, separator="/") or "value" for path, _ in named]
        outs, results[:] = _real([x for _, x in named], titles)
        return outs

    program, shapes = traced(real, name, "condition_number", leaves, taken.others)
    line = linearize(real, program, leaves, taken.others, shapes)
    try:
        whole, inputs, outputs, exact = _amplification.measured(line)
    except DerivativeError as error:
        raise AuditError(
            f"`{name}` has no derivative that JAX can make: {error}\nMost likely (a) a custom rule that is not "
            "differentiable; (b) a while loop in reverse mode: use lax.scan, or lax.fori_loop of a static length; "
            "(c) a callback."
        ) from error.__cause__
    return ConditionNumber(
        whole.normwise,
        whole.mixed,
        whole.componentwise,
        tuple(_leaf(n, a) for n, a in zip(names, inputs)),
        tuple(_leaf(n, a) for n, a in zip(results, outputs)),
        None if whole.worst is None else _component(whole.worst, line, results),
        exact,
        name,
        (len(line.x), len(line.y)),
    )


def _leaf(name: str, found: Amplification) -> LeafCondition:
    return LeafCondition(name, found.normwise, found.mixed, found.componentwise)


def _real(leaves: Sequence[Array], names: Sequence[str]) -> tuple[list[Array], list[str]]:
    """Complex leaves as two real ones."""
    parts: list[tuple[Array, str]] = []
    for x, name in zip(leaves, names):
        is_complex = jnp.iscomplexobj(x)
        parts += [(lax.real(x), f"{name}.real"), (lax.imag(x), f"{name}.imag")] if is_complex else [(x, name)]
    return [x for x, _ in parts], [name for _, name in parts]


def _component(number: int, line: Linearization, names: Sequence[str]) -> str:
    """The name of an output component, as leaf[index]."""
    k = next(k for k, place in enumerate(line.outputs) if place.start <= number < place.stop)
    index = np.unravel_index(number - line.outputs[k].start, line.shapes[k].shape)
    return names[k] + (f"[{', '.join(str(int(i)) for i in index)}]" if index else "")
