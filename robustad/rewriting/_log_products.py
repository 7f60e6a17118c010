r"""The logarithm of matrix products of what is carried as logarithms: \(\log \sum_k w_k e^{L_k}\) and \(\log \sum_k
e^{L_{ik}} e^{M_{kj}}\).
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad import _jaxpr
from robustad import stability as st
from robustad.rewriting._graph import Term
from robustad.rewriting._log_space import Parts, factor, filled, parts, parts_of, weighted
from robustad.rewriting._rewriter import Rewriter, derived, number

_LARGER = 4  # how much larger than its operands an array of all products may be


@parts_of("dot_general")
def _matrix_product(term: Term, rw: Rewriter) -> Parts | None:
    got = [parts(t, rw) for t in term.operands]
    if not any(got) or not all(jnp.issubdtype(t.dtype, jnp.floating) for t in term.operands):
        return None
    factors = [p or factor(t, rw) for p, t in zip(got, term.operands)]
    logs = [filled(p.log, t) for p, t in zip(factors, term.operands)]
    rests = [p.rest for p in factors]
    matrices = _Matrices(term)
    signs = [_is_never_negative(t) for t, r in zip(term.operands, rests) if r is not None]
    if not all(signs) and not any(p and _may_overflow(t) for p, t in zip(got, term.operands)):
        return None  # weights of any sign, as of a layer of a network: its sums are no smaller than its terms
    if any(rests) and matrices.is_small:
        one = number(term, 1.0)
        weights = [filled(r or one, t) for r, t in zip(rests, term.operands)]
        return weighted(term, [*logs, *weights], matrices.weighted_sum, elementwise=False)
    for k, (operand, rest) in enumerate(zip(term.operands, rests)):
        if rest is not None and not _is_never_negative(operand):
            return None
        if rest is not None:
            logs[k] = derived(operand, "log", jnp.log, [rw(operand)])
    return Parts(derived(term, "log_matmul", matrices.log_product, logs, elementwise=False), None)


_MOVES = ("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "slice", "copy")


def _may_overflow(term: Term) -> bool:
    """Whether a term is an exponential, or a product or quotient of some."""
    while term.name in (*_MOVES, "mul", "div", "neg"):
        term = next((t for t in term.operands if t.name in ("exp", "exp2")), term.operands[0])
    return term.name in ("exp", "exp2")


def _is_never_negative(term: Term) -> bool:
    """Whether a term is made of truth values, as `jax.nn.one_hot` is, or a constant without negative entries."""
    while term.name in _MOVES:
        (term,) = term.operands[:1]
    if term.name == "constant":
        return not _jaxpr.is_traced(term.value) and bool(np.all(np.asarray(term.value) >= 0))
    return term.name == "convert_element_type" and bool(jnp.issubdtype(term.operands[0].dtype, jnp.bool_))


class _Matrices:
    """The operands of a `dot_general` as matrices (..., n, k) and (..., k, m)."""

    def __init__(self, term: Term):
        (a, b), ((left, right), (first, second)) = term.operands, term.params["dimension_numbers"]
        own = tuple(i for i in range(len(a.shape)) if i not in (*left, *first))
        others = tuple(i for i in range(len(b.shape)) if i not in (*right, *second))
        self._orders = [(*first, *own, *left), (*second, *right, *others)]
        self._result = term.shape
        batch = tuple(a.shape[i] for i in first)
        k, n = (math.prod(a.shape[i] for i in axes) for axes in (left, own))
        m = math.prod(b.shape[i] for i in others)
        self._shapes = [(*batch, n, k), (*batch, k, m)]
        known = not _jaxpr.is_symbolic((*a.shape, *b.shape))
        self.is_small = known and math.prod(batch) * n * k * m <= _LARGER * max(math.prod(a.shape), math.prod(b.shape))

    def _arranged(self, *arrays: Array) -> list[Array]:
        return [x.transpose(o).reshape(s) for x, o, s in zip(arrays, self._orders, self._shapes)]

    def log_product(self, a: Array, b: Array) -> Array:
        return st.log_matmul(*self._arranged(a, b)).reshape(self._result)

    def weighted_sum(self, a: Array, b: Array, v: Array, w: Array) -> tuple[Array, Array]:
        (a, b), (v, w) = self._arranged(a, b), self._arranged(v, w)
        logs, weights = a[..., None] + b[..., None, :, :], v[..., None] * w[..., None, :, :]
        value, sign = st.logsumexp(logs, -2, weights, return_sign=True)
        return value.reshape(self._result), sign.reshape(self._result)
