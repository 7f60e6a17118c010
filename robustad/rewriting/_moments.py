r"""Second moments by raw sums: variances and covariances, with and without weights, that cancel.

Written as :math:`c_1 \sum \omega x y - c_2 \sum \omega x \sum \omega y` they lose all digits where the means are large
beside the spreads (Chan, Golub, LeVeque 1983). With :math:`W = \sum \omega`, means :math:`\bar x, \bar y` under the
weights, and :math:`r = 1 - W c_2 / c_1` they are

.. math:: c_1 \Bigl(\sum \omega (x - \bar x)(y - \bar y) + r W \bar x \bar y\Bigr),

where r is 0 for weights that are divided by their sum, and small for those that should add up to 1.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from robustad import stability as st
from robustad._jaxpr import is_symbolic
from robustad.rewriting._contraction import Contraction
from robustad.rewriting._graph import Term
from robustad.rewriting._mesh_sums import MeshSum
from robustad.rewriting._rewriter import Rewriter, replaced, rule
from robustad.rewriting._softmax import softmax_of
from robustad.rewriting._totals import Factor, Product, Total, product_of

_SAME = 4.0  # units in the last place up to which two factors are equal
_NEAR = 1e-3  # what may be left of a moment that does not quite cancel


class Moment(NamedTuple):
    """scale · (Σ weights · xs ys - ratio Σ weights · xs Σ weights · ys) / ∏ below."""

    scale: float
    ratio: float | None  # None: 1 / Σ weights
    xs: tuple[Factor, ...]
    ys: tuple[Factor, ...]
    weights: tuple[Factor, ...]
    sizes: tuple[int, ...]
    below: tuple[Total, ...]
    across: MeshSum | None


@rule("sub")
def moment(term: Term, rw: Rewriter) -> Term | None:
    """E[x²] - E[x]² and E[xy] - E[x]E[y], of sums or means, with any normalisation."""
    first = product_of(term.operands[0], rw.loops)
    second = product_of(term.operands[1], rw.loops) if first and len(first.above) in (1, 2) else None
    if first is None or second is None:
        return None
    if len(first.above) == 1:
        found, sign = _moment(first, second), 1.0
    else:
        found, sign = _moment(second, first), -1.0
    if found is None:
        return None
    eps = float(jnp.finfo(term.dtype).eps)
    if not found.weights and (found.ratio is None or not _is_mean(found)):
        return None
    factors = list(dict.fromkeys((*found.xs, *found.ys, *found.weights, *(f for t in found.below for f in t.factors))))

    def run(*arrays: Array) -> Array:
        return sign * _centred(found, dict(zip(factors, arrays)), term.shape, eps)

    names = ("variance", "x²", "x") if found.xs == found.ys else ("covariance", "x y", "y")
    before = f"sum({names[1]}) - sum(x) sum({names[2]})"
    after = f"sum((x - mean(x)) ({names[2]} - mean({names[2]})))"
    return replaced(
        term, "variance", run, [rw(f.term) for f in factors],
        before=f"w ({before})" if found.weights else before, after=f"w {after}" if found.weights else after,
        reason="two numbers of the size of the squared mean cancel to one of the size of the variance",
    )  # fmt: skip


def _moment(product: Product, of_means: Product) -> Moment | None:
    """The moment that the difference of a product of one sum and one of two is."""
    if len(product.above) != 1 or len(of_means.above) != 2:
        return None
    (whole,), (a, b) = product.above, of_means.above
    if not a.sizes == b.sizes == whole.sizes or not a.mesh == b.mesh == whole.mesh:
        return None
    both = a.counts + b.counts
    weights = both - whole.counts
    if whole.counts + weights != both or weights - a.counts or weights - b.counts:
        return None
    xs, ys = a.counts - weights, b.counts - weights
    extra = Counter(of_means.below) - Counter(product.below)
    if Counter(product.below) - Counter(of_means.below) or extra.total() > 1:
        return None
    if any(all(k is None or k >= 0 for f in held for k in f.labels) for held in (xs, ys)):
        return None
    ratio: float | None = of_means.coefficient / product.coefficient
    if extra:
        (own,) = extra
        if (
            not weights
            or own.counts != weights
            or own.sizes != whole.sizes
            or own.mesh != whole.mesh
            or abs(ratio - 1) > 1e-6
        ):
            return None
        ratio = None
    x, y, w = (tuple(counts.elements()) for counts in (xs, ys, weights))
    if weights and whole.mesh and ratio is not None:
        return None
    return Moment(product.coefficient, ratio, x, y, w, whole.sizes, product.below, whole.across)


def _is_mean(m: Moment) -> bool:
    """Whether the ratio is one over the number of terms; of devices there may be any number."""
    assert m.ratio is not None
    count = math.prod(m.sizes) * m.ratio
    devices = round(1 / count) if m.across and count > 0 else 1
    return devices >= 1 and abs(1 - count * devices) <= _NEAR


def _centred(m: Moment, arrays: dict[Factor, Array], shape: Sequence[int], eps: float) -> Array:
    axes = Contraction(len(shape), m.sizes)

    def product(factors: Sequence[Factor]) -> Array:
        placed = [axes.placed(arrays[f], f.labels) for f in factors]
        return math.prod(placed[1:], start=placed[0])

    def total(*x: Array) -> Array:
        return m.across.sum(axes.sum(*x)) if m.across else axes.sum(*x)

    x, y = product(m.xs), product(m.ys)
    w = (product(m.weights),) if m.weights else ()
    weight = total(*w) if w or is_symbolic(m.sizes) else jnp.full((1,) * x.ndim, _count(m), x.dtype)
    divisor = jnp.where(weight == 0, jnp.ones_like(weight), weight)
    u, v = x - _start(m, x, w, axes), y - _start(m, y, w, axes)
    u, v = u - total(*w, u) / divisor, v - total(*w, v) / divisor
    # The means are rounded: the corrected two-pass form.
    spread = total(*w, u, v) - total(*w, u) * (total(*w, v) / divisor)
    if (rest := _rest(m, w, axes, eps)) is not None:
        spread = spread + rest * (total(*w, x) / divisor) * total(*w, y)
    value = m.scale * spread
    for t in m.below:
        value = value / total(*(axes.placed(arrays[f], f.labels) for f in t.factors))
    return axes.result(value, shape)


def _count(m: Moment) -> int:
    """How many terms the sums have, on all devices."""
    return math.prod(m.sizes) * (lax.psum(1, m.across.axes) if m.across else 1)


def _start(m: Moment, x: Array, w: tuple[Array, ...], axes: Contraction) -> Array:
    """The smallest entry that counts, of which moments do not depend.

    A mean is rounded as XLA orders its terms, in each fused loop perhaps in another way; a minimum is not.
    """
    x, w = lax.stop_gradient((x, w))
    counted = jnp.where(w[0] != 0, x, jnp.full_like(x, jnp.inf)) if w else x
    least = jnp.min(jnp.broadcast_to(counted, axes.shape(counted)), axes.axes, keepdims=True)
    least = -m.across.largest(-least) if m.across else least
    return jnp.where(jnp.isfinite(least), least, jnp.zeros_like(least))


def _rest(m: Moment, w: tuple[Array, ...], axes: Contraction, eps: float) -> Array | float | None:
    """1 - W · ratio; None where it is 0."""
    if m.ratio is None or _adds_up_to_one(m):
        return None
    if not m.weights:
        rest = 1 - _count(m) * m.ratio
        return rest if abs(rest) > _SAME * eps else None
    terms = jnp.broadcast_to(w[0] * m.ratio, axes.shape(w[0]))
    terms = terms.reshape(*terms.shape[: axes.rank], -1)
    minus = jnp.full((*terms.shape[:-1], 1), -1, terms.dtype)
    rest = -st.compensated_sum(jnp.concatenate([terms, minus], -1), -1)
    return rest.reshape(*rest.shape, *(1 for _ in m.sizes))


def _adds_up_to_one(m: Moment) -> bool:
    """Whether the weights are a softmax over the axes of the sums."""
    if len(m.weights) != 1 or m.ratio is None or abs(m.ratio - 1) > 1e-6:
        return False
    ((term, labels),) = ((f.term, f.labels) for f in m.weights)
    soft = softmax_of(term)
    return soft is not None and sorted(labels[i] or 0 for i in soft.axes) == sorted(-1 - k for k in range(len(m.sizes)))
