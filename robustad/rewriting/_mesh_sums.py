"""Sums over the axes of a mesh, or of a `vmap` with a name: logarithms, softmax and norms that take one of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from robustad import _jaxpr
from robustad import stability as st
from robustad.rewriting._graph import Term, unwrapped
from robustad.rewriting._layout import is_spread_of, reduced_axes, spread
from robustad.rewriting._log_space import Parts, filled, parts, parts_of
from robustad.rewriting._norms import sum_of_squares
from robustad.rewriting._rewriter import Rewriter, derived, replaced, rule
from robustad.rewriting._softmax import placed

NAMES = ("psum", "psum_invariant")


class MeshSum(NamedTuple):
    """A sum over named axes: what is summed, the axes, the sum as a function and that of the largest."""

    operand: Term
    axes: tuple[str, ...]
    sum: Callable[[Array], Array]
    largest: Callable[[Array], Array]


def mesh_sum(term: Term) -> MeshSum | None:
    """What a term is the sum of over named axes."""
    eqn = term.step.equation
    if term.name not in NAMES or eqn is None or len(term.operands) != 1 or term.params.get("axis_index_groups"):
        return None
    axes = term.params["axes"]
    if not all(isinstance(a, str) for a in axes):
        return None

    def varying(x: Array) -> Array:
        return _jaxpr.varying_over(x, axes) if term.name == "psum_invariant" else x

    return MeshSum(
        term.operands[0],
        tuple(axes),
        lambda x: _jaxpr.bind(eqn, [varying(x)])[0],
        lambda x: lax.pmax(varying(lax.stop_gradient(x)), axes),
    )


@parts_of(*NAMES)
def _log_of_sum(term: Term, rw: Rewriter) -> Parts | None:
    if (found := mesh_sum(term)) is None or (got := parts(found.operand, rw)) is None or got.rest is not None:
        return None

    def run(a: Array) -> Array:
        m = _finite(found.largest(a))
        total = found.sum(jnp.exp(a - m))
        empty = total == 0
        return jnp.where(empty, -jnp.inf, m + jnp.log(jnp.where(empty, 1, total)))

    return Parts(derived(term, "logsumexp", run, [filled(got.log, found.operand)], elementwise=False), None)


def _finite(m: Array) -> Array:
    return jnp.where(jnp.isfinite(m), m, jnp.zeros_like(m))


@rule("div")
def softmax(term: Term, rw: Rewriter) -> Term | None:
    """exp(u) / Σ exp(u) with a part of the sum on every device: inf / inf from 88.7 (float32)."""
    top, bottom = (unwrapped(t) for t in term.operands)
    found = mesh_sum(spread(bottom).source) if top.name == "exp" else None
    if found is None:
        return None
    total = spread(found.operand).source
    axes = reduced_axes(total, "reduce_sum")
    if axes is None or unwrapped(total.operands[0]) is not top or spread(bottom).source.shape != total.shape:
        return None
    if not is_spread_of(bottom, spread(bottom).source, axes, len(top.shape)):
        return None

    def run(u: Array) -> Array:
        m = _finite(found.largest(jnp.max(u, axes)))
        shares = jnp.exp(u - jnp.expand_dims(m, axes))
        return shares / jnp.expand_dims(found.sum(jnp.sum(shares, axes)), axes)

    return replaced(
        term, "softmax", run, [rw(top.operands[0])],
        before="exp(x) / psum(sum(exp(x)))", after="the same, shifted by the largest x of all devices",
        reason="exp(x) overflows from 88.7 (float32)",
    )  # fmt: skip


@rule("sqrt")
def norm(term: Term, rw: Rewriter) -> Term | None:
    """√(Σ x²) with a part of the sum on every device: squares leave the range, and the derivative at 0 is 0 · inf."""
    seen = spread(term.operands[0])
    found = mesh_sum(seen.source)
    squares = sum_of_squares(found.operand) if found else None
    if found is None or squares is None or len(squares[2]) != len(found.operand.shape):
        return None
    x, axes, _ = squares

    def run(a: Array) -> Array:
        own = st.norm(a, axis=axes)
        largest = found.largest(own)
        scale = jnp.exp2(jnp.frexp(jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1))[1].astype(own.dtype))
        total = found.sum(jnp.square(own / scale))
        none = total == 0
        size = jnp.where(none, 0, jnp.sqrt(jnp.where(none, 1, total))) * scale
        return placed(size, seen.dims, term.shape)

    return replaced(
        term, "norm", run, [rw(x)], before="sqrt(psum(sum(x²)))", after="the norm of the devices' norms",
        reason="the squares overflow from 1.8e19 and vanish below 1.1e-19 (float32); the derivative at 0 is 0 · inf",
    )  # fmt: skip
