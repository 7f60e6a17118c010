"""Order-free sums and means: the exact result rounded once, whatever the order, shape, chunking or device count."""

import functools
from fractions import Fraction

import hypothesis
import hypothesis.extra.numpy as numpy_strategies
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import robustad.stability as rs
from robustad.stability import _digits, _exact
from tests._exact import exact_sum, pattern, rounded
from tests._subset import thinned

RNG = np.random.default_rng(0)
TERMS = (RNG.standard_normal(2560) * 10.0 ** RNG.integers(-6, 7, 2560)).astype(np.float32)
LARGEST = np.finfo(np.float32).max

reproducible_sum = jax.jit(rs.reproducible_sum)


def mesh_of(devices: int):
    return jax.make_mesh((devices,), ("i",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))


def over_devices(function, devices: int, check_vma: bool):
    spec = PartitionSpec("i")
    return jax.shard_map(function, mesh=mesh_of(devices), in_specs=spec, out_specs=PartitionSpec(), check_vma=check_vma)


# ---- one bit pattern


def test_orders_shapes_and_transformations_give_the_same_bits_where_a_plain_sum_does_not():
    want, plain_sum = pattern(exact_sum(TERMS, np.float32)), jax.jit(jnp.sum)
    orders = [RNG.permutation(TERMS) for _ in range(20)]
    assert {pattern(reproducible_sum(x)) for x in orders} == {want}
    assert len({pattern(plain_sum(x)) for x in orders}) > 5
    x = orders[0]
    results = [
        rs.reproducible_sum(x),  # not compiled as a whole
        rs.reproducible_sum(x.reshape(40, 64)),
        rs.reproducible_sum(x.reshape(8, 40, 8), axis=(2, 0))[None].sum() * 0
        + rs.reproducible_sum(x.reshape(8, 320).T),
        *jax.vmap(rs.reproducible_sum)(np.stack(orders[:3])),
        *jax.vmap(rs.reproducible_sum, in_axes=1)(np.stack(orders[:3], 1)),
        *rs.reproducible_sum(np.stack(orders[:3], 1), axis=0),
        rs.reproducible_sum(np.concatenate([x, x]), where=np.arange(5120) < 2560),
        jax.lax.scan(lambda s, x: (s.add(x), None), rs.Accumulator.init(), x.reshape(40, 64))[0].finalize(),
    ]
    assert {pattern(result) for result in results} == {want}


def test_accumulators_merge_associatively_and_commutatively_to_the_bit():
    chunks = np.split(np.concatenate([TERMS, np.float32([3e38, -3e38, 1e-45])]), [1, 40, 1000, 1001, 2000])
    add = jax.jit(lambda x: rs.Accumulator.init().add(x))
    parts, merge = [add(chunk) for chunk in chunks], jax.jit(lambda a, b: a.merge(b))
    states = set()
    for _ in range(20):
        pool = [parts[i] for i in RNG.permutation(len(parts))]
        while len(pool) > 1:  # any tree
            a, b = (pool.pop(RNG.integers(len(pool))) for _ in range(2))
            pool.append(merge(a, b))
        states.add(np.asarray(pool[0].digits).tobytes())
        assert pattern(pool[0].finalize()) == pattern(exact_sum(np.concatenate(chunks), np.float32))
    assert len(states) == 1


def test_device_counts_give_the_same_bits_where_a_plain_psum_does_not():
    x = TERMS.reshape(-1, 2)

    def one_shot(x):
        return rs.reproducible_psum(x, "i", axis=0)

    def accumulated(x):
        return rs.Accumulator.init(2).add(x).psum("i").finalize()

    def plain(x):
        return jax.lax.psum(x.sum(0), "i")

    def bits(way, *meshes):
        return {pattern(jax.jit(over_devices(way, devices, check_vma))(x)) for devices, check_vma in meshes}

    want = {pattern(rs.reproducible_sum(x, 0))}
    assert bits(one_shot, (1, True), (2, False), (4, True), (8, True), (8, False)) == want
    assert bits(accumulated, (1, False), (4, True), (8, False)) == want
    assert len(bits(plain, (1, True), (2, True), (4, True), (8, True))) > 1


def test_more_members_than_int32_digits_hold():
    x = RNG.standard_normal((600, 2)).astype(np.float32)
    accumulated = jax.vmap(lambda x: rs.Accumulator.init(2).add(x).psum("i").finalize(), axis_name="i", out_axes=None)
    assert pattern(accumulated(x)) == pattern(rs.reproducible_sum(x, 0))
    assert len(x) > _digits.SUMMANDS


# ---- the exact sum, rounded once


def bit_patterns(word: type, size: int):
    elements = st.integers(0, np.iinfo(word).max) | st.sampled_from([0, 1, 2, np.iinfo(word).max // 2 + 1])
    return numpy_strategies.arrays(word, size, elements=elements)


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(bit_patterns(np.uint32, 24), st.booleans(), st.randoms(use_true_random=False))
def test_any_bits(bits: np.ndarray, finite: bool, random):
    """Infinities, NaN, subnormals and zeros of both signs among them."""
    x = bits.view(np.float32)
    if finite:  # of random patterns, one in 256 is not
        x = np.where(np.isfinite(x), x, np.float32(1e-45)).astype(np.float32)
    order = random.sample(range(24), 24)
    want = pattern(exact_sum(x, np.float32))
    assert pattern(reproducible_sum(x)) == pattern(reproducible_sum(x[order])) == want
    halves = [added(x[order[:12]]), added(x[order[12:]])]
    assert pattern(finalized(halves[0].merge(halves[1]))) == want


added = jax.jit(lambda x: rs.Accumulator.init().add(x))
finalized = jax.jit(lambda accumulator: accumulator.finalize())


@pytest.mark.parametrize("spread", [1, 6, 30])
def test_sums_within_cancellation_are_rounded_exactly(spread: int):
    """Condition numbers from 1e6 to 1e30, where a plain sum has no right digit."""
    x = (RNG.standard_normal(999) * 10.0 ** RNG.integers(-spread, spread // 4 + 1, 999)).astype(np.float32)
    rest = np.float32(-x.astype(np.float64).sum())
    x = RNG.permutation(np.append(x, rest))
    want = exact_sum(x, np.float32)
    condition = np.abs(x.astype(np.float64)).sum() / abs(float(want))
    assert condition > 1e6
    assert pattern(reproducible_sum(x)) == pattern(want)
    assert abs(float(jnp.sum(x)) - float(want)) > 1e3 * np.spacing(abs(want))


@pytest.mark.parametrize("rows", [1, 32, 33, 1100])
def test_all_paths_agree(rows: int, monkeypatch):
    """The one pass in float64, and the digits, which platforms without float64 take; in chunks that lap over each other."""
    monkeypatch.setattr(_exact, "CHUNK", 32 * 3 * 2)
    x = (RNG.standard_normal((2, rows, 3)) * 10.0 ** RNG.integers(-30, 30, (2, rows, 3))).astype(np.float32)
    x[0, : rows // 2] = RNG.integers(-9, 9, (rows // 2, 3)).astype(np.float32) * np.float32(1e-44)
    want = [[exact_sum(x[i, :, j], np.float32) for j in range(3)] for i in range(2)]
    for float64 in (True, False):
        sums = jax.jit(_digits.wide(functools.partial(_exact.rounded_sum, dtype=np.dtype(np.float32), float64=float64)))
        assert pattern(sums(x)) == pattern(np.array(want))


@pytest.mark.parametrize("dtype", thinned([jnp.bfloat16, jnp.float16, np.float64], 3))
def test_other_formats(dtype):
    with jax.enable_x64(dtype == np.float64):
        decades = 4 if dtype == jnp.float16 else 30
        x = np.asarray(RNG.standard_normal(300) * 10.0 ** RNG.integers(-decades, decades - 3, 300)).astype(dtype)
        result = rs.reproducible_sum(x)
        assert result.dtype == dtype
        assert pattern(result) == pattern(exact_sum(x, dtype))
        assert pattern(rs.reproducible_sum(x, dtype=np.float32)) == pattern(exact_sum(x, np.float32))


def test_range_and_special_values():
    inf, nan = np.inf, np.nan
    cases = [
        ([LARGEST, LARGEST, -LARGEST], LARGEST),  # nothing overflows in the middle
        ([3e38, 3e38, -3e38], 3e38),
        ([LARGEST, LARGEST, 0], inf),
        ([inf, 1, inf], inf),
        ([inf, -inf, 1], nan),
        ([-inf, nan, 1], nan),
        ([-0.0, -0.0, -0.0], 0.0),  # the policy: a zero sum is +0
        ([1e-45, 1e-45, 0], 3e-45),  # subnormals count, though XLA's additions flush them
        ([-1e-45, 1.5e-38, -1.5e-38], -1e-45),
    ]
    for terms, want in cases:
        for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
            got = reproducible_sum(np.array(terms, np.float32)[order])
            assert pattern(got) == pattern(np.float32(want)), terms
    assert np.isinf(jnp.sum(jnp.array(cases[0][0], np.float32))) and jnp.sum(jnp.array(cases[7][0], np.float32)) == 0
    assert pattern(rs.reproducible_sum(np.zeros((0, 2), np.float32), 0)) == pattern(np.zeros(2, np.float32))
    assert np.isnan(rs.reproducible_mean(np.zeros(0, np.float32)))


@pytest.mark.whole
def test_arguments_are_those_of_jnp_sum():
    x = RNG.integers(-9, 9, (3, 4, 5)).astype(np.float32)
    cases = [
        {},
        {"axis": -1, "where": np.array([True, False, True, True, False])},
        {"axis": (0, 2), "keepdims": True, "where": x > 0},
        {"axis": ()},
    ]
    for arguments in cases:
        np.testing.assert_array_equal(rs.reproducible_sum(x, **arguments), jnp.sum(x, **arguments))
        np.testing.assert_allclose(rs.reproducible_mean(x, **arguments), jnp.mean(x, **arguments), rtol=1e-6)
    assert rs.reproducible_sum(np.array([1, 2])).dtype == np.float32


def test_bad_input():
    x = np.zeros((3, 4, 5), np.float32)
    with pytest.raises(TypeError, match="`x` has dtype complex64"):
        rs.reproducible_sum(1j)
    with pytest.raises(ValueError, match="`axis` 3 is out of range"):
        rs.reproducible_sum(x, 3)
    with pytest.raises(ValueError, match=r"Give the axes to sum over as `axis`"):
        rs.Accumulator.init(4).add(x)


def test_the_mean_is_rounded_once_and_does_not_overflow():
    x = (RNG.standard_normal((40, 3)) * 1e38).astype(np.float32)
    x[:, 1] = LARGEST
    exact = [rounded(sum(map(Fraction, x[:, j].tolist()), Fraction(0)) / 40, np.float32) for j in range(3)]
    assert pattern(rs.reproducible_mean(x, 0)) == pattern(np.array(exact))
    assert np.isinf(jnp.mean(x, 0)[1])


# ---- derivatives


@pytest.mark.whole
def test_derivatives_to_second_order_in_both_modes():
    x = RNG.standard_normal((5, 3)).astype(np.float32)

    def cube(total):
        return lambda x: total(jnp.sin(x) * x) ** 3

    def accumulate(x):
        return rs.Accumulator.init().add(x).finalize()

    for ours, plain in ((rs.reproducible_sum, jnp.sum), (rs.reproducible_mean, jnp.mean), (accumulate, jnp.sum)):
        with jax.numpy_dtype_promotion("strict"):
            gradient = jax.jit(jax.grad(cube(ours)))(x)
        np.testing.assert_allclose(gradient, jax.grad(cube(plain))(x), rtol=1e-5, atol=1e-5)
    for ours in (rs.reproducible_sum, accumulate):
        for twice in (jax.hessian, lambda f: jax.jacrev(jax.grad(f))):
            np.testing.assert_allclose(jax.jit(twice(cube(ours)))(x), twice(cube(jnp.sum))(x), rtol=1e-5, atol=1e-4)


def test_tangents_are_summed_without_order():
    tangents = [RNG.permutation(TERMS) for _ in range(5)]
    jvp = jax.jit(lambda t: jax.jvp(rs.reproducible_sum, (TERMS,), (t,))[1])
    assert {pattern(jvp(t)) for t in tangents} == {pattern(exact_sum(TERMS, np.float32))}
    transposed_twice = jax.jit(
        jax.linear_transpose(lambda s: jax.vjp(rs.reproducible_sum, TERMS)[1](s)[0], jnp.float32(1))
    )
    assert {pattern(transposed_twice(t)[0]) for t in tangents} == {pattern(exact_sum(TERMS, np.float32))}


@pytest.mark.parametrize("check_vma", thinned([True, False], 2))
def test_derivatives_over_devices_are_those_of_psum(check_vma: bool):
    x = RNG.standard_normal(16).astype(np.float32)
    ways = [
        lambda x: rs.reproducible_psum(x, "i", axis=None),
        lambda x: rs.Accumulator.init().add(x).psum("i").finalize(),
    ]

    def plain(x):
        return jax.lax.psum(x.sum(), "i")

    def inside(f):
        sharded = PartitionSpec("i")
        slope = jax.grad(lambda x: f(x) ** 2)
        return jax.shard_map(slope, mesh=mesh_of(4), in_specs=sharded, out_specs=sharded, check_vma=check_vma)

    def outside(f):
        return jax.grad(lambda x: over_devices(f, 4, check_vma)(x) ** 2)

    for way in ways:
        for place in (inside, outside):
            np.testing.assert_allclose(jax.jit(place(way))(x), jax.jit(place(plain))(x), rtol=1e-5)


def test_mapped_accumulators():
    x = jnp.arange(12.0).reshape(4, 3)
    state = jax.vmap(lambda row: rs.Accumulator.init().add(row))(x)
    np.testing.assert_array_equal(state.finalize(), x.sum(1))
    np.testing.assert_array_equal(jax.tree.map(lambda leaf: leaf[1:], state).finalize(), x[1:].sum(1))


@pytest.mark.whole
def test_second_derivatives_through_a_scan_of_accumulators():
    def square(x):
        state, _ = jax.lax.scan(lambda s, row: (s.add(row), None), rs.Accumulator.init(), x.reshape(2, 2))
        return state.finalize() ** 2

    x = jnp.arange(4.0)
    for hessian in (jax.hessian(square)(x), jax.jacrev(jax.grad(square))(x), jax.jacfwd(jax.jacfwd(square))(x)):
        np.testing.assert_array_equal(hessian, np.full((4, 4), 2))


def _sharded_operands():
    rng = np.random.default_rng(5)
    x = (rng.normal(size=(16, 8)) * 10.0 ** rng.uniform(-12, 12, (16, 8))).astype(np.float32)
    return x, jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))


SHARDED = {
    "sum": rs.reproducible_sum,
    "mean": lambda x: rs.reproducible_mean(x, 0),
    "global_norm": rs.reproducible_global_norm,
    "dot": lambda x: rs.reproducible_dot(x.reshape(-1), x.reshape(-1)[::-1]),
    "segment_sum": lambda x: rs.segment_sum(x, jnp.arange(16) % 3, 3),
    "Accumulator": lambda x: rs.Accumulator.init().add(x).finalize(),
}


@pytest.mark.parametrize("name", thinned(list(SHARDED), 3))
def test_a_sharded_array_gives_the_bits_of_the_whole_one(name):
    x, mesh = _sharded_operands()
    f = jax.jit(SHARDED[name])
    sharded = jax.device_put(x, jax.NamedSharding(mesh, PartitionSpec("d")))
    np.testing.assert_array_equal(f(sharded), f(x))
    if name == "sum":
        assert len({float(jnp.sum(y)) for y in (sharded, x, x[::-1], x.T)}) > 1


@pytest.mark.parametrize("f", [rs.reproducible_sum, rs.compensated_sum, rs.pairwise_sum], ids=lambda f: f.__name__)
def test_gradients_on_a_mesh_with_explicit_axes(f):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((16, 8)), PartitionSpec("d"))
        gradient = jax.grad(lambda x: f(x) ** 2)(x)
        assert jax.typeof(gradient).sharding.spec == PartitionSpec("d", None)
    np.testing.assert_array_equal(gradient, 256)
