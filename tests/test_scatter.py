"""Order-free sums by segment, scatter-add, and the gather whose transpose they are."""

import functools

import hypothesis
import hypothesis.extra.numpy as numpy_strategies
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import robustad.stability as rs
from robustad.stability import _digits, _exact_scatter
from tests._exact import exact_sum, pattern
from tests._subset import thinned

RNG = np.random.default_rng(1)
SEGMENTS = 7
IDS = RNG.integers(-1, SEGMENTS + 1, 500).astype(np.int32)
ROWS = (RNG.standard_normal((500, 2)) * 10.0 ** RNG.integers(-4, 5, (500, 2))).astype(np.float32)

segment_sum = jax.jit(functools.partial(rs.segment_sum, num_segments=SEGMENTS))


def exact(rows: np.ndarray, ids: np.ndarray, segments: int = SEGMENTS) -> np.ndarray:
    flat = rows.reshape(len(rows), -1)
    sums = [[exact_sum(column[ids == s], rows.dtype) for column in flat.T] for s in range(segments)]
    return np.array(sums, rows.dtype).reshape(segments, *rows.shape[1:])


def test_orders_give_the_same_bits_where_a_plain_sum_does_not():
    want, plain = pattern(exact(ROWS, IDS)), jax.jit(functools.partial(jax.ops.segment_sum, num_segments=SEGMENTS))
    orders = [RNG.permutation(500) for _ in range(20)]
    assert {pattern(segment_sum(ROWS[order], IDS[order])) for order in orders} == {want}
    assert len({pattern(plain(ROWS[order], IDS[order])) for order in orders}) > 5
    assert pattern(rs.segment_sum(ROWS, IDS, SEGMENTS)) == want  # not compiled as a whole
    assert pattern(rs.segment_sum(ROWS.reshape(500, 2, 1), IDS.astype(np.int8), SEGMENTS)[..., 0]) == want
    columns = [segment_sum(ROWS[:, j], IDS) for j in range(2)]
    assert pattern(np.stack(columns, 1)) == want


def test_batches():
    ids = np.stack([IDS, IDS[::-1]])
    rows = np.stack([ROWS, ROWS * 3])

    def one_by_one(pairs):
        return pattern(np.stack([exact(*pair) for pair in pairs]))

    assert pattern(jax.vmap(segment_sum)(rows, ids)) == one_by_one(zip(rows, ids))
    assert pattern(jax.vmap(segment_sum, (0, None))(rows, IDS)) == one_by_one((r, IDS) for r in rows)
    assert pattern(jax.vmap(segment_sum, (None, 0))(ROWS, ids)) == one_by_one((ROWS, i) for i in ids)
    table = RNG.standard_normal((SEGMENTS, 3)).astype(np.float32)
    looked_up = jax.vmap(rs.gather, (None, 0))(table, ids)
    np.testing.assert_array_equal(looked_up, jax.vmap(lambda at: jnp.take(table, at, axis=0))(ids))


@pytest.mark.parametrize("check_vma", [True, False])
def test_over_devices(check_vma: bool):
    """A replicated table read by sharded indices: its gradient sums by segment on each device, and then over devices."""
    mesh = jax.make_mesh((4,), ("i",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    table, at = RNG.standard_normal((SEGMENTS, 2)).astype(np.float32), RNG.integers(0, SEGMENTS, 64).astype(np.int32)
    sharded, whole = PartitionSpec("i"), PartitionSpec()

    def loss(gather):
        read = jax.shard_map(gather, mesh=mesh, in_specs=(whole, sharded), out_specs=sharded, check_vma=check_vma)
        return lambda table: jnp.sum(jnp.sin(read(table, at)) * np.arange(64, dtype=np.float32)[:, None])

    gradient = jax.jit(jax.grad(loss(rs.gather)))(table)
    np.testing.assert_allclose(gradient, jax.jit(jax.grad(loss(lambda x, at: x[at])))(table), rtol=1e-5, atol=1e-5)


@hypothesis.settings(max_examples=80, deadline=None, derandomize=True)
@hypothesis.given(
    numpy_strategies.arrays(
        np.uint32, 24, elements=st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**31, 0x7F7FFFFF])
    ),
    numpy_strategies.arrays(np.int32, 24, elements=st.integers(-1, SEGMENTS)),
    st.randoms(use_true_random=False),
)
def test_any_bits(bits: np.ndarray, ids: np.ndarray, random):
    x, order = bits.view(np.float32), random.sample(range(24), 24)
    want = pattern(exact(x, ids))
    assert pattern(segment_sum(x, ids)) == pattern(segment_sum(x[order], ids[order])) == want


def test_all_paths_agree(monkeypatch):
    monkeypatch.setattr(_exact_scatter, "CHUNK", 64)  # so that the last chunk laps over the one before
    for decades in (2, 30):
        x = (RNG.standard_normal((75, 2)) * 10.0 ** RNG.integers(-decades, decades, (75, 2))).astype(np.float32)
        for float64 in (True, False):
            sums = functools.partial(
                _exact_scatter.rounded_segments, segments=SEGMENTS, dtype=np.dtype(np.float32), float64=float64
            )
            assert pattern(jax.jit(_digits.wide(sums))(x, IDS[:75])) == pattern(exact(x, IDS[:75]))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, np.float64])
def test_other_formats(dtype):
    with jax.enable_x64(dtype == np.float64):
        x = ROWS[:100].astype(dtype)
        sums = rs.segment_sum(x, IDS[:100], SEGMENTS)
        assert sums.dtype == dtype
        assert pattern(sums) == pattern(exact(x, IDS[:100]))


def test_range_special_values_and_empty_segments():
    largest, inf, nan = np.finfo(np.float32).max, np.inf, np.nan
    x = np.array([largest, largest, -largest, inf, -inf, nan, -0.0, inf, 1e-45, 1e-45], np.float32)
    ids = np.array([0, 0, 0, 1, 1, 2, 3, 9, 5, 5], np.int32)
    want = np.array([largest, nan, nan, 0, 0, 3e-45, 0], np.float32)
    assert pattern(segment_sum(x, ids)) == pattern(want)
    assert np.isinf(jax.ops.segment_sum(x, ids, SEGMENTS)[0])
    assert rs.segment_sum(np.zeros((0, 3), np.float32), np.zeros(0, int), 2).shape == (2, 3)
    assert rs.segment_sum(np.zeros((3, 0), np.float32), np.zeros(3, int)).shape == (1, 0)


@pytest.mark.parametrize("order", thinned([jax.hessian, jax.grad, lambda f: jax.jacrev(jax.grad(f))], 3))
def test_derivatives_to_second_order(order):
    x = RNG.standard_normal(20).astype(np.float32)
    ids = np.where(IDS[:20] < 0, SEGMENTS, IDS[:20])

    def loss(total):
        return lambda x: jnp.sum(total(jnp.sin(x), ids, SEGMENTS) ** 3)

    ours, plain = loss(rs.segment_sum), loss(jax.ops.segment_sum)
    np.testing.assert_allclose(jax.jit(order(ours))(x), order(plain)(x), rtol=1e-5, atol=1e-4)


def test_the_gradient_of_a_gather_is_free_of_order():
    table, at = RNG.standard_normal((SEGMENTS, 2)).astype(np.float32), RNG.integers(-SEGMENTS, SEGMENTS, 500)
    np.testing.assert_array_equal(rs.gather(table, at.reshape(50, 10)), table[at.reshape(50, 10)])

    def pulled(gather):
        return jax.jit(lambda at, ct: jax.vjp(lambda table: gather(table, at), table)[1](ct)[0])

    ours, plain = pulled(rs.gather), pulled(lambda table, at: table[at])
    orders = [RNG.permutation(500) for _ in range(20)]
    assert {pattern(ours(at[order], ROWS[order])) for order in orders} == {pattern(exact(ROWS, at % SEGMENTS))}
    assert len({pattern(plain(at[order], ROWS[order])) for order in orders}) > 1
    assert np.isnan(rs.gather(table, SEGMENTS)).all() and np.isnan(rs.gather(table, -SEGMENTS - 1)).all()


def test_scatter_add():
    x, at = ROWS[:SEGMENTS], np.array([[0, -1, 3], [SEGMENTS, 0, 2]])
    updates = ROWS[:6].reshape(2, 3, 2)
    terms, ids = np.concatenate([x, updates.reshape(6, 2)]), np.concatenate([np.arange(SEGMENTS), [0, 6, 3, 7, 0, 2]])
    assert pattern(rs.scatter_add(x, at, updates)) == pattern(exact(terms, ids))
    np.testing.assert_allclose(rs.scatter_add(x, at, 1.0), jnp.asarray(x).at[at].add(1.0), rtol=1e-6)
    gradients = jax.grad(lambda x, u: jnp.sum(rs.scatter_add(x, at, u) ** 2), (0, 1))(x, updates)
    plain = jax.grad(lambda x, u: jnp.sum(x.at[at].add(u) ** 2), (0, 1))(jnp.asarray(x), updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), gradients, plain)


def test_errors_say_what_was_got():
    with pytest.raises(ValueError, match=r"`data` has shape \(3,\) and `segment_ids` \(2,\)"):
        rs.segment_sum(np.ones(3, np.float32), np.zeros(2, int), 1)
    with pytest.raises(TypeError, match="`segment_ids` has dtype float32"):
        rs.segment_sum(np.ones(3, np.float32), np.zeros(3, np.float32), 1)
    with pytest.raises(ValueError, match="`num_segments` is -1"):
        rs.segment_sum(np.ones(3, np.float32), np.zeros(3, int), -1)
    with pytest.raises(ValueError, match="`x` is a scalar"):
        rs.gather(1.0, 0)
