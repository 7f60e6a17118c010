"""What the program alone tells: the data flow on programs with known answers, the facts of a leaf, bits lost."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from robustad import _jaxpr
from robustad._flow import Flow
from robustad._jaxpr import Site
from robustad.diagnosis import _accuracy
from robustad.diagnosis._accuracy import STRUCTURAL_ZERO, accuracy, bits_lost, norm
from robustad.diagnosis._leaves import Leaf, Terms, leaves, precision_of

x3 = jnp.asarray([0.5, -1.0, 2.0])
m3 = jnp.eye(3) + 0.25


def flow_of(f: Callable[..., Any], *args: Any) -> Flow:
    return Flow(_jaxpr.trace(f, *args)[0])


def names(sites: Iterable[Site]) -> list[str]:
    return sorted(site.primitive for site in sites)


def one(flow: Flow, primitive: str) -> Site:
    (site,) = [s for s in flow.sites.values() if s.primitive == primitive]
    return site


def behind(flow: Flow, output: int = 0) -> set[str]:
    """The primitives that an output is computed with."""
    return {flow.sites[path].primitive for path in flow.equations(flow.ancestors(flow.outputs[output]))}


def inputs_behind(flow: Flow, output: int = 0) -> list[int]:
    ancestors = flow.ancestors(flow.outputs[output])
    return [k for k, node in enumerate(flow.inputs) if node in ancestors]


# --------------------------------------------------------------------------------------------------------- data flow


def test_ancestors_of_straight_line_code() -> None:
    flow = flow_of(lambda x, y: (jnp.sin(x), jnp.cos(x) * y, 1.0), x3, x3)
    assert behind(flow, 0) == {"sin"} and inputs_behind(flow, 0) == [0]
    assert behind(flow, 1) == {"cos", "mul"} and inputs_behind(flow, 1) == [0, 1]
    assert flow.outputs[2] == () and flow.ancestors(flow.outputs[2]) == set()


def test_jit_keeps_its_outputs_apart() -> None:
    flow = flow_of(jax.jit(lambda x, y: (jnp.sin(x), jnp.cos(y))), x3, x3)
    assert behind(flow, 0) == {"sin"} and inputs_behind(flow, 0) == [0]
    assert behind(flow, 1) == {"cos"} and inputs_behind(flow, 1) == [1]


def test_makers_and_users_see_through_control_flow() -> None:
    inner = jax.jit(lambda a: a)

    def f(x: Any) -> Any:
        def step(c: Any, v: Any) -> Any:
            return c + inner(v), lax.cond(c > 0, jnp.cos, jnp.exp, c)

        total, ys = lax.scan(step, jnp.tanh(x[0]), jnp.sin(x))
        return total * 2, ys

    flow = flow_of(f, x3)
    add = one(flow, "add")
    assert names(flow.operands(add.path)) == ["add", "sin", "tanh"]
    assert names(flow.users(add.path)) == ["add", "cos", "exp", "gt", "mul"]
    assert names(flow.users(one(flow, "sin").path)) == ["add"]
    assert names(flow.makers(flow.outputs[1][0])) == ["cond", "cos", "exp"]  # `cond`: its index
    assert inputs_behind(flow, 1) == [0]


def test_scan_links() -> None:
    """Constants, carry, slices and stacks, each to its own."""

    def f(k: Any, c: Any, xs: Any, ys: Any) -> Any:
        return lax.scan(lambda c, v: ((jnp.sin(c[0]), c[1] * k), (jnp.exp(v[0]), v[1])), (c, c), (xs, ys))

    flow = flow_of(f, x3[0], x3[1], x3, x3)
    assert [inputs_behind(flow, k) for k in range(4)] == [[1], [0, 1], [2], [3]]
    kinds = {edge.kind for edges in flow.edges.values() for edge in edges}
    assert kinds == {"equation", "alias", "slice", "stack"}
    (edge,) = flow.edges[flow.outputs[0][0]]
    assert edge.carried is not None and edge.carried[0] == (*edge.path, 0)


def test_carry_is_an_ancestor_through_the_iterations() -> None:
    """a → b → c, one step an iteration."""

    def f(a: Any, b: Any, c: Any) -> Any:
        return lax.fori_loop(0, 3, lambda i, s: (s[0], jnp.sin(s[0]), jnp.exp(s[1])), (a, b, c))

    flow = flow_of(f, *x3)
    assert behind(flow, 2) >= {"sin", "exp"} and inputs_behind(flow, 2)[:2] == [0, 1]
    assert not {"sin", "exp"} & behind(flow, 0)


def test_while_depends_on_its_condition() -> None:
    flow = flow_of(lambda x, y: lax.while_loop(lambda s: jnp.sum(s) < jnp.exp(y), lambda s: s * 2, x), x3, x3[0])
    assert behind(flow) >= {"mul", "lt", "exp", "reduce_sum"} and inputs_behind(flow) == [0, 1]


def test_linear_solve_takes_its_right_hand_side() -> None:
    flow = flow_of(lambda a, b: jnp.linalg.solve(a, jnp.sin(b)), m3, x3)
    assert behind(flow) >= {"lu", "triangular_solve", "sin"} and inputs_behind(flow) == [0, 1]


def test_shard_map_is_seen_through() -> None:
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))

    def shard(x: Any, y: Any) -> Any:
        return lax.psum(jnp.sin(x), "i"), jnp.cos(y)

    f = jax.shard_map(shard, mesh=mesh, in_specs=(P("i"), P("i")), out_specs=(P(), P("i")))
    flow = flow_of(f, jnp.ones(8), jnp.ones(8))
    assert inputs_behind(flow, 0) == [0] and inputs_behind(flow, 1) == [1]
    assert "sin" in behind(flow, 0) and behind(flow, 1) == {"cos"}


# ------------------------------------------------------------------------------------------------- the facts of a leaf


def leaves_of(loss: Callable[..., Any], *args: Any) -> tuple[Flow, list[Leaf]]:
    """The gradient program of a loss for all its arguments, and what it tells of each leaf."""
    argnums = tuple(range(len(args)))
    flow = flow_of(lambda *args: jax.value_and_grad(loss, argnums)(*args), *args)
    return flow, leaves(flow, flow.inputs, flow.outputs[1:])


def reductions(flow: Flow, known: Leaf) -> list[tuple[str, bool, int]]:
    """(primitive, whether one a slice, how many loops keep the last iteration) of each last reduction."""
    return [(flow.sites[t.path].primitive, t.loop is not None, len(t.last_of)) for t in known.terms]


@pytest.mark.parametrize("dtype,bits", [(jnp.float32, 24), (jnp.float16, 11), (jnp.bfloat16, 8), (jnp.complex64, 24)])
def test_precision_of_a_dtype(dtype: Any, bits: int) -> None:
    assert precision_of(dtype) == bits


@pytest.mark.parametrize("dtype,bits", [(jnp.float32, 24), (jnp.float16, 11), (jnp.bfloat16, 8)])
def test_precision_is_that_of_the_narrowest_dtype_passed_through(dtype: Any, bits: int) -> None:
    def loss(w: Any, b: Any) -> Any:
        return jnp.sum((x3.astype(dtype) @ w.astype(dtype)).astype(jnp.float32) ** 2) + jnp.sum(b**2)

    _, (w, b) = leaves_of(loss, m3, x3)
    assert (w.precision, b.precision) == (bits, 24)


def test_precision_within_loops_and_calls() -> None:
    cell = jax.jit(lambda c, w: jnp.tanh(c.astype(jnp.bfloat16) * w.astype(jnp.bfloat16)).astype(jnp.float32))
    _, (w,) = leaves_of(lambda w: lax.scan(lambda c, v: (cell(c, v), None), jnp.float32(1), w)[0], x3)
    assert w.precision == 8


def test_float64_leaves_have_no_reference() -> None:
    with jax.enable_x64(True):
        _, (w,) = leaves_of(lambda w: jnp.sum(w**2), jnp.ones(3, np.float64))
    assert w.precision is None


def scanned(w: Any) -> Any:
    return jnp.sum(lax.scan(lambda c, v: (jnp.tanh(v @ c), None), x3, w)[0])


stacked = jnp.stack([m3] * 4)


@pytest.mark.parametrize(
    "through",
    [lambda f: f, jax.jit, lambda f: lambda w: f(w.astype(jnp.bfloat16).astype(jnp.float32)), jax.checkpoint],
    ids=["plain", "jit", "cast", "checkpoint"],
)
def test_a_scanned_leaf_is_sliced(through: Any) -> None:
    flow, (w,) = leaves_of(through(scanned), stacked)
    assert w.slices == 4
    assert [kind[:2] for kind in reductions(flow, w)] == [("dot_general", True)] or w.terms[0].loop is not None


def test_a_leaf_that_a_scan_only_reads_is_not_sliced() -> None:
    _, (w,) = leaves_of(lambda w: jnp.sum(lax.scan(lambda c, _: (jnp.tanh(w @ c), None), x3, None, length=4)[0]), m3)
    assert w.slices is None
    _, (w,) = leaves_of(lambda w: jnp.sum(lax.map(jnp.tanh, w[None])), m3)  # one slice is no slice
    assert w.slices is None


def test_last_reductions_of_a_dense_layer() -> None:
    """A weight's is the contraction over the batch, a bias's the sum over it."""
    batch = jnp.ones((5, 3))
    flow, (w, b) = leaves_of(lambda w, b: jnp.sum(jnp.tanh(batch @ w + b)), m3, x3)
    assert reductions(flow, w) == [("dot_general", False, 0)]
    assert reductions(flow, b) == [("reduce_sum", False, 0)]


def test_last_reductions_of_an_embedding_and_a_convolution() -> None:
    flow, (w,) = leaves_of(lambda w: jnp.sum(jnp.sin(w[jnp.array([0, 0, 2])])), m3)
    assert reductions(flow, w) == [("scatter-add", False, 0)]
    image = jnp.ones((2, 1, 5, 5))
    flow, (k,) = leaves_of(lambda k: jnp.sum(jnp.sin(lax.conv(image, k, (1, 1), "SAME"))), jnp.ones((4, 1, 3, 3)))
    assert reductions(flow, k) == [("conv_general_dilated", False, 0)]


def test_last_reductions_of_a_weight_used_twice() -> None:
    flow, (w,) = leaves_of(lambda w: jnp.sum(jnp.tanh(x3 @ w) @ w.T), m3)
    assert reductions(flow, w) == [("dot_general", False, 0)] * 2


def test_last_reductions_of_a_weight_shared_by_the_iterations() -> None:
    """The gradient is added up over the scan: all iterations' terms count."""
    flow, (w,) = leaves_of(lambda w: jnp.sum(lax.scan(lambda c, v: (jnp.tanh(w @ c) + v, None), x3, m3)[0]), m3)
    kinds = reductions(flow, w)
    assert kinds and all(kind != "broadcast_in_dim" and not per and last == 0 for kind, per, last in kinds)


def test_last_reductions_of_a_state_that_is_carried() -> None:
    """The initial state's gradient is what the last backward iteration leaves."""
    flow, (c,) = leaves_of(lambda c: jnp.sum(lax.scan(lambda c, v: (jnp.tanh(m3 @ c) + v, None), c, m3)[0]), x3)
    kinds = [kind for kind in reductions(flow, c) if kind[0] == "dot_general"]
    assert kinds == [("dot_general", False, 1)]


def test_a_sum_added_up_inside_a_call_in_a_scan() -> None:
    """Gradient accumulation as users write it: the carry passes through the call, and all iterations count."""

    def accumulate(w: Any, batches: Any) -> Any:
        step = jax.jit(lambda total, b: total + jax.grad(lambda w: jnp.sum(jnp.tanh(b @ w)))(w))
        return lax.scan(lambda total, b: (step(total, b), None), jnp.zeros_like(w), batches)[0]

    flow = flow_of(accumulate, m3, jnp.ones((4, 5, 3)))
    (known,) = leaves(flow, flow.inputs[:1], flow.outputs[:1])
    assert [kind for kind in reductions(flow, known) if kind[0] == "dot_general"] == [("dot_general", False, 0)]


def test_last_reductions_of_a_stacked_leaf() -> None:
    flow, (w,) = leaves_of(scanned, stacked)
    (terms,) = {t for t in w.terms if flow.sites[t.path].primitive in ("dot_general", "mul")}
    assert terms.loop is not None and flow.sites[terms.loop].primitive == "scan"
    assert terms.path[: len(terms.loop)] == terms.loop


def test_a_leaf_that_takes_no_part_has_no_terms() -> None:
    _, (w, unused) = leaves_of(lambda w, unused: jnp.sum(w**2), x3, x3)
    assert w.terms and unused.slices is None


def test_a_leaf_used_a_thousand_times() -> None:
    """A chain of additions as long as the unrolled program, and calls of calls of calls."""

    def unrolled(w: Any) -> Any:
        c = jnp.float32(0)
        for _ in range(800):
            c = jnp.sin(c) + w
        return c

    def nested(w: Any) -> Any:
        for _ in range(18):
            w = w + jax.jit(lambda v: -v)(w)
        return jnp.sum(w)

    _, (w,) = leaves_of(unrolled, jnp.float32(0.5))
    assert len(w.terms) >= 1
    _, (w,) = leaves_of(nested, jnp.float32(0.5))


# --------------------------------------------------------------------------------------------------------- bits lost


@pytest.mark.parametrize("lost", [0, 3, 11.5, 24])
def test_bits_lost_of_a_relative_error(lost: float) -> None:
    reference = np.asarray([3.0, -4.0])
    got = bits_lost(reference * (1 + 2.0 ** (lost - 24)), reference, 24)
    np.testing.assert_allclose(got, lost, atol=1e-6)


def test_bits_lost_is_clipped() -> None:
    reference = np.asarray([3.0, -4.0])
    assert bits_lost(reference, reference, 24) == 0
    assert bits_lost(reference * (1 + 1e-12), reference, 24) == 0
    assert bits_lost(reference * -100, reference, 24) == 24


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_bits_lost_knows_no_scale(scale: float) -> None:
    reference = np.asarray([3.0, -4.0, 12.0])
    np.testing.assert_allclose(bits_lost(reference * (1 + 2.0**-14) * scale, reference * scale, 24), 10, atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bits_lost_of_what_is_not_finite(bad: float) -> None:
    assert bits_lost(np.asarray([1.0, bad]), np.asarray([1.0, 2.0]), 11) == 11


def test_a_structural_zero_is_measured_against_its_terms() -> None:
    noise = np.asarray([1e-7, -1e-7])
    zero = np.asarray([1e-17, 0.0])

    def lost(g: np.ndarray, reference: np.ndarray, terms: float, zeros: np.ndarray | None = None) -> float:
        return float(accuracy(jnp.asarray(g, jnp.float32), reference, known(), terms, zeros).bits_lost)

    assert lost(noise, zero, terms=0.0) == 24
    np.testing.assert_allclose(lost(noise, zero, terms=1.0), 24 + np.log2(norm(noise)), atol=1e-6)
    assert lost(noise, np.zeros(2), terms=1.0) < 2
    assert lost(noise, np.zeros(2), terms=0.0) == 24
    small = np.asarray([2 * STRUCTURAL_ZERO])  # a small gradient, but no zero
    assert lost(small * 2, small, terms=1.0) == 24


@pytest.mark.parametrize(
    "gap,size,terms,zero,expected",
    [
        (0.0, 1e-17, 1.0, None, 1.0),  # what float64 leaves of a zero, and float32 by luck does not
        (1e-13, 1e-13, 1.0, None, 1e-13),  # float64 knows it to three digits
        (1e-5, 1e-13, 1.0, None, 1.0),  # of terms that have lost many digits float64 knows fewer
        (1e-13, 1e-13, 1.0, False, 1e-13),
        (1e-30, 1e-30, 1.0, False, 1e-30),
        (1e-30, 1e-30, 1.0, True, 1.0),
        (1e-5, 1e-11, 1.0, True, 1e-11),  # a zero is below 2^-40 of its terms
    ],
)
def test_a_zero_is_structural_where_nothing_excludes_it(gap, size, terms, zero, expected) -> None:
    assert _accuracy.scale(gap, size, terms, 24, zero) == expected


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1.0, 1e200, 1e308])
def test_norm_neither_overflows_nor_underflows(scale: float) -> None:
    np.testing.assert_allclose(norm(np.asarray([0.6, -0.8]) * scale), scale, rtol=1e-3 if scale < 1e-300 else 1e-14)


def test_norm_of_nothing_zeros_and_not_finite() -> None:
    assert norm(np.zeros(0)) == 0 and norm(np.zeros(3)) == 0
    assert norm(np.asarray([1.0, np.inf])) == np.inf and np.isnan(norm(np.asarray([1.0, np.nan])))
    np.testing.assert_allclose(norm(np.asarray([3.0 + 4.0j])), 5.0)


def known(precision: int | None = 24, slices: int | None = None) -> Leaf:
    return Leaf(precision, slices, (Terms((0,)),))


def test_accuracy_of_each_slice() -> None:
    reference = np.asarray([[3.0, 4.0], [1e-20, 0.0], [1.0, 1.0]])
    gradient = reference.copy()
    gradient[1] *= 1 + 2.0**-4
    gradient[2, 0] = np.nan
    got = accuracy(jnp.asarray(gradient, jnp.float32), reference, known(slices=3), np.zeros(3))
    np.testing.assert_allclose(got.bits_lost[1:], [20, 24], atol=0.01)
    assert got.bits_lost[0] == 0 and got.worst == 24 and got.nonfinite == 1
    np.testing.assert_array_equal(got.failing(0.5), [False, True, True])
    np.testing.assert_array_equal(got.failing(0.99), [False, False, True])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64])
def test_accuracy_of_dtypes(dtype: Any) -> None:
    bits = precision_of(dtype)
    gradient = jnp.asarray([0.5, 1.5], dtype)
    exact = np.asarray(gradient).astype(np.complex128 if dtype is jnp.complex64 else np.float64)
    got = accuracy(gradient, exact * (1 + 2.0 ** (4 - bits)), known(bits), 0.0)
    np.testing.assert_allclose(got.bits_lost, 4, atol=0.2)
    assert not got.failing(0.9).any()


def test_no_reference_no_bits() -> None:
    undefined = accuracy(jnp.ones(2), np.asarray([1.0, np.nan]), known(), 0.0)
    assert undefined.bits_lost is None and undefined.worst is None and not undefined.failing(0.5).any()
    wide = accuracy(jnp.asarray([1.0, np.inf]), np.ones(2), known(precision=None), 0.0)
    assert wide.bits_lost is None and wide.failing(0.5).all() and wide.nonfinite == 1
