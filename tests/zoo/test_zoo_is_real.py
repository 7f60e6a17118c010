"""Every fault of the zoo is real and every healthy model healthy, judged against float64 without robustad."""

import ast
import functools
import inspect
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests._subset import thinned
from tests.zoo import FAULTS, HEALTHY, Fault, Healthy, fault_lines

BITS = {"float32": 24, "float16": 11, "bfloat16": 8}
KINDS = {
    "nan",
    "overflow",
    "underflow",
    "cancellation",
    "absorption",
    "unstable-derivative",
    "zero-times-inf",
    "vanishing",
    "exploding",
    "ill-conditioned",
    "branch-divergence",
}


def is_float(leaf):
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def value_and_grad(loss, leaves, treedef, arg0_leaves):
    """Value and gradient, under jit, with respect to the float leaves of argument 0."""
    arrays = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")]
    wrt = [i for i in arrays[: len(arrays)] if i < arg0_leaves and is_float(leaves[i])]
    rest = [i for i in arrays if i not in wrt]

    def flat_loss(wrt_leaves, rest_leaves):
        full = list(leaves)
        for i, leaf in zip(wrt + rest, list(wrt_leaves) + list(rest_leaves), strict=True):
            full[i] = leaf
        return loss(*jax.tree.unflatten(treedef, full))

    value, grads = jax.jit(jax.value_and_grad(flat_loss))([leaves[i] for i in wrt], [leaves[i] for i in rest])
    return np.asarray(value, np.float64), [np.asarray(g, np.float64) for g in grads], wrt


def both(make):
    """(value, grads) in the working dtype and in float64, and the key paths of the gradient leaves."""
    loss, args = make()
    leaves, treedef = jax.tree.flatten(args)
    arg0_leaves = len(jax.tree.leaves(args[0]))
    value, grads, wrt = value_and_grad(loss, leaves, treedef, arg0_leaves)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(args)[0]]
    with jax.enable_x64(True), mock.patch("jax.random.bernoulli", f32_bernoulli):
        loss64, args64 = make(dtype=jnp.float64)
        leaves64 = [leaf.astype(jnp.float64) if is_float(leaf) else leaf for leaf in leaves]
        treedef64 = jax.tree.structure(args64)  # its own: a module's static fields may hold dtypes
        value64, grads64, _ = value_and_grad(loss64, leaves64, treedef64, arg0_leaves)
    return value, grads, value64, grads64, [paths[i] for i in wrt]


_bernoulli = jax.random.bernoulli


def f32_bernoulli(key, p=0.5, shape=None, **kw):
    """Draw from float32 bits whatever the default float, so that both precisions drop the same units."""
    return _bernoulli(key, jnp.float32(p), shape, **kw)


def bits_lost(grad, grad64, p):
    error, size = np.linalg.norm(grad - grad64), np.linalg.norm(grad64)
    if error == 0:
        return 0.0
    if size == 0:
        return float(p)
    return float(np.clip(p + np.log2(error / size), 0, p))


@pytest.mark.parametrize("fault", thinned(FAULTS, 16), ids=lambda f: f.name)
def test_fault_is_real(fault: Fault):
    p = BITS[fault.dtype]
    value, grads, _, grads64, _ = both(fault.make)
    finite = np.isfinite(value) and all(np.isfinite(g).all() for g in grads)
    if finite:
        assert all(np.isfinite(g).all() for g in grads64), "float64 breaks where the working dtype does not"
        lost = [bits_lost(g, g64, p) for g, g64 in zip(grads, grads64, strict=True)]
        assert max(lost) > p / 2, lost


@pytest.mark.parametrize("healthy", thinned(HEALTHY, 16), ids=lambda h: h.name)
def test_healthy_is_healthy(healthy: Healthy):
    p = BITS[healthy.dtype]
    value, grads, value64, grads64, paths = both(healthy.make)
    assert np.isfinite(value) and np.isfinite(value64)
    spared = set()
    largest = max(np.linalg.norm(g64) for g64 in grads64)
    for g, g64, path in zip(grads, grads64, paths, strict=True):
        assert np.isfinite(g).all() and np.isfinite(g64).all(), path
        zero = [pattern for pattern in healthy.zero_leaves if pattern in path]
        if zero:
            spared.update(zero)
            # Noise in float64 too; 1e-6 since flax computes attention scores in float32 whatever the inputs.
            assert np.linalg.norm(g64) < 1e-6 * largest, (path, g64)
        else:
            assert bits_lost(g, g64, p) <= p / 2, (path, bits_lost(g, g64, p))
    assert spared == set(healthy.zero_leaves)
    assert largest > 0


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_fault_marks_one_statement(fault: Fault):
    filename, lines = fault_lines(fault)
    assert lines and filename.endswith(".py")
    assert fault.kinds and fault.kinds <= KINDS
    holding = [node for node in statements(filename) if node.lineno <= min(lines) and max(lines) <= node.end_lineno]
    innermost = min(holding, key=lambda node: node.end_lineno - node.lineno)
    assert set(range(innermost.lineno, innermost.end_lineno + 1)) == lines


@functools.cache
def statements(filename):
    with open(filename) as source:
        return [node for node in ast.walk(ast.parse(source.read())) if isinstance(node, ast.stmt)]


def test_names_are_unique():
    for entries in (FAULTS, HEALTHY):
        assert len({e.name for e in entries}) == len(entries)
        assert all(inspect.isfunction(e.make) for e in entries)
    assert set().union(*(f.kinds for f in FAULTS)) == KINDS
