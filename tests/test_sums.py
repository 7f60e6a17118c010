"""Sums, dot products and cumulative sums against exact rational arithmetic."""

import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from robustad import stability
from robustad.stability import _compensated_cumsum, _compensated_dot, _compensated_sum
from tests._ill_conditioned import (
    condition_of_dot,
    condition_of_sum,
    exact_dot,
    exact_sum,
    ill_conditioned_dot,
    ill_conditioned_sum,
)
from tests._subset import thinned

SUMS = {
    "pairwise_sum": stability.pairwise_sum,
    "kahan_sum": stability.kahan_sum,
    "compensated_sum": stability.compensated_sum,
    "compensated_mean": stability.compensated_mean,
}
PLAIN = {name: jnp.mean if name == "compensated_mean" else jnp.sum for name in SUMS}
U = {np.float32: 2.0**-24, np.float64: 2.0**-53}


def as_in_twice_the_precision(got, exact: Fraction, condition: float, n: int, dtype) -> float:
    """The relative error over Ogita, Rump and Oishi's bound u + (n u)² condition; one more u for the rounding of e."""
    u = U[dtype]
    return float(abs(Fraction(float(got)) - exact) / abs(exact)) / (2 * u + (n * u) ** 2 * condition)


# ---- values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_generators_give_the_condition_number_that_was_asked_for(dtype):
    random = np.random.default_rng(0)
    for condition in (1e4, 1e8, 1 / U[dtype] ** 2):
        assert 0.01 < condition_of_sum(ill_conditioned_sum(200, condition, dtype, random)) / condition < 100
        assert 0.01 < condition_of_dot(*ill_conditioned_dot(200, condition, dtype, random)) / condition < 100


SUM_KERNELS = {
    "public": jax.jit(stability.compensated_sum),
    "two words": jax.jit(lambda x: _compensated_sum.two_word_sum_kernel(x, axes=(0,), dtype=x.dtype)),
    "mean": jax.jit(lambda x: stability.compensated_mean(x) * x.size),
    "cumsum": jax.jit(lambda x: stability.compensated_cumsum(x)[-1]),
    "cumsum in two words": jax.jit(lambda x: _compensated_cumsum.two_word_cumsum_kernel(x, axis=0, reverse=False)[-1]),
}
DOT_KERNELS = {
    "public": stability.compensated_dot,
    "two words": lambda a, b: _compensated_dot.two_word_matmul_kernel(a[None, None], b[None, :, None])[0, 0, 0],
    "updates": lambda a, b: sum(
        w[0, 0, 0] for w in _compensated_dot._words_by_updates(a[None, None], b[None, :, None])
    ),
}
DOT_KERNELS = {name: jax.jit(kernel) for name, kernel in DOT_KERNELS.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", SUM_KERNELS)
def test_sums_as_if_in_twice_the_precision(kernel, dtype):
    random = np.random.default_rng(1)
    plain_worst = 0.0
    with jax.enable_x64(True):
        for condition in np.geomspace(10, 1 / U[dtype] ** 2, 8):
            x = ill_conditioned_sum(256, condition, dtype, random)
            exact, actual = exact_sum(x), condition_of_sum(x)
            assert as_in_twice_the_precision(SUM_KERNELS[kernel](x), exact, actual, 256, dtype) <= 1
            plain_worst = max(plain_worst, as_in_twice_the_precision(jnp.sum(x), exact, actual, 256, dtype))
    assert plain_worst > 50


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", DOT_KERNELS)
def test_dots_as_if_in_twice_the_precision(kernel, dtype):
    random = np.random.default_rng(2)
    plain_worst = 0.0
    with jax.enable_x64(True):
        for condition in np.geomspace(10, 1 / U[dtype] ** 2, 8):
            a, b = ill_conditioned_dot(256, condition, dtype, random)
            exact, actual = exact_dot(a, b), condition_of_dot(a, b)
            assert as_in_twice_the_precision(DOT_KERNELS[kernel](a, b), exact, actual, 256, dtype) <= 1
            plain_worst = max(plain_worst, as_in_twice_the_precision(jnp.dot(a, b), exact, actual, 256, dtype))
    assert plain_worst > 50


def test_the_classics():
    with jax.enable_x64(True):
        x = jnp.array([1, 1e100, 1, -1e100])
        assert stability.compensated_sum(x) == 2 and stability.compensated_cumsum(x)[-1] == 2 and jnp.sum(x) == 0
        assert stability.kahan_sum(x) == 0
        assert stability.compensated_dot(x, jnp.ones(4)) == 2
    x = ill_conditioned_sum(1000, 1e10, np.float32, np.random.default_rng(3))
    exact = exact_sum(x)
    assert abs(Fraction(float(stability.compensated_sum(x))) - exact) <= abs(exact) / 10**5
    assert abs(Fraction(float(jnp.sum(x))) - exact) > abs(exact)


def exact_products(a, b):
    """Terms whose exact sum is that of a * b (float64), by Dekker's product."""

    def halves(x):
        c = x * (2.0**27 + 1)
        high = c - (c - x)
        return high, x - high

    p, (ah, al), (bh, bl) = a * b, halves(a), halves(b)
    return np.concatenate([p, ((ah * bh - p) + ah * bl + al * bh) + al * bl])


def test_long_sums_are_folded_right():
    """Lengths that are folded once and twice, with tails, in float64 (two words) and float32, against math.fsum."""
    random = np.random.default_rng(4)
    with jax.enable_x64(True):
        for n in (2**16 + 129, 2**20 + 1037):
            x = random.standard_normal(n) * 2.0 ** random.integers(0, 40, n)
            y = random.standard_normal(n)
            for dtype in (np.float64, np.float32):
                v, w = x.astype(dtype), y.astype(dtype)
                exact, size = math.fsum(v), math.fsum(np.abs(v))
                assert abs(stability.compensated_sum(v) - exact) <= 2 * U[dtype] * abs(exact)
                assert abs(stability.pairwise_sum(v) - exact) <= 21 * U[dtype] * size
                exact = math.fsum(exact_products(np.float64(v), np.float64(w)))
                assert abs(stability.compensated_dot(v, w) - exact) <= 2 * U[dtype] * abs(exact)
        # The other layouts: rows, columns, two axes that are no neighbours.
        x = draw(30, 70, 40) * 2.0 ** random.integers(0, 40, (30, 70, 40))
        for axis in (0, 1, 2, (0, 2)):
            np.testing.assert_allclose(
                stability.compensated_sum(x, axis), np.longdouble(x).sum(axis).astype(float), rtol=1e-15
            )


def test_narrow_dtypes_are_rounded_once():
    random = np.random.default_rng(5)
    for dtype in (jnp.bfloat16, jnp.float16):
        x, y = (jnp.asarray(random.uniform(0, 1, 3000), dtype) for _ in range(2))
        a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
        for got, exact in (
            (stability.compensated_sum(x), a.sum()),
            (stability.compensated_mean(x), a.mean()),
            (stability.compensated_dot(x, y), (a * b).sum()),
            (stability.pairwise_sum(x), a.sum()),
        ):
            assert got.dtype == dtype and got == jnp.asarray(np.float32(exact), dtype)


# ---- arguments

SHAPE = (3, 4, 5)
MASKS = [np.arange(5) % 2 == 0, np.random.default_rng(6).random(SHAPE) < 0.5]


@pytest.mark.parametrize("name", thinned(list(SUMS), 3))
def test_arguments_as_in_jnp(name):
    x = jnp.asarray(np.random.default_rng(7).standard_normal(SHAPE), jnp.float32)
    for axis in (None, 0, -1, (0, 2), (-1, -2), ()):
        for options in ({}, {"where": MASKS[axis == -1], "keepdims": True}):
            got, expected = SUMS[name](x, axis, **options), PLAIN[name](x, axis, **options)
            assert got.shape == expected.shape and got.dtype == expected.dtype
            close(got, expected)
    z = x + 1j * x[::-1]
    close(SUMS[name](z, 1), PLAIN[name](z, 1))
    close(jax.vmap(partial(SUMS[name], axis=-1, where=MASKS[0]), 1)(x), PLAIN[name](x, -1, where=MASKS[0]).T)
    assert SUMS[name](x, dtype=jnp.float16).dtype == jnp.float16
    assert SUMS[name](np.arange(6), axis=0) == PLAIN[name](np.arange(6.0))
    assert SUMS[name](3.0) == 3 and SUMS[name](np.array([True, True])) == (1 if "mean" in name else 2)
    with jax.numpy_dtype_promotion("strict"):
        assert SUMS[name](jnp.ones(3, jnp.float16), dtype=jnp.float32).dtype == jnp.float32
    with jax.disable_jit():
        close(SUMS[name](x), PLAIN[name](x))
    for axis in (3, -4, (0, 5)):
        with pytest.raises(ValueError, match=f"{name}: `axis` .* is out of range"):
            SUMS[name](x, axis)
    with pytest.raises(ValueError, match="names an axis twice"):
        SUMS[name](x, (0, -3))
    with pytest.raises(TypeError, match="`dtype` is int32; expected a float"):
        SUMS[name](x, dtype=jnp.int32)
    with pytest.raises(TypeError, match="`x` has complex64"):
        SUMS[name](z, dtype=jnp.float32)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", SUMS)
def test_special_values(name, x64):
    function, inf, nan = SUMS[name], np.inf, np.nan
    with jax.enable_x64(x64):
        dtype = np.float64 if x64 else np.float32
        big = np.finfo(dtype).max
        call = jax.jit(lambda x: function(x, 1))
        rows = [[inf, 1, 2], [-inf, big, big], [inf, -inf, 1], [nan, inf, 1], [1, nan, 1], [inf, inf, big], [0, 0, 0]]
        got = call(np.array(rows, dtype))
        np.testing.assert_array_equal(got, [inf, -inf, nan, nan, nan, inf, 0])
        assert SUMS[name](jnp.zeros((0, 2)), 0).tolist() == ([nan] * 2 if "mean" in name else [0] * 2) or "mean" in name
        if "compensated" in name:  # nothing overflows in the middle
            x = np.array([[big, big, -big], [big, -big / 2, big / 4], [-big, big, big]], dtype)
            exact = [exact_sum(row) / (3 if "mean" in name else 1) for row in x]
            np.testing.assert_allclose(call(x), np.array([float(e) for e in exact], dtype), rtol=4 * U[dtype])
            assert function(np.full(1000, big if "mean" in name else big / 1000, dtype)) == pytest.approx(big, rel=1e-6)
    assert np.isnan(stability.compensated_mean(jnp.zeros(0)))


# ---- derivatives


@pytest.mark.parametrize("name, x64", thinned([("compensated_sum", False), *((name, True) for name in SUMS)], 3))
def test_derivatives_of_sums(name, x64):
    with jax.enable_x64(x64):
        function, plain = partial(SUMS[name], axis=0), partial(PLAIN[name], axis=0)
        x = jnp.asarray(np.random.default_rng(8).standard_normal((4, 2)))
        n = 4 if "mean" in name else 1
        np.testing.assert_array_equal(jax.jacrev(function)(x), jax.jacrev(plain)(x))
        np.testing.assert_array_equal(jax.jacfwd(function)(x), jax.jacfwd(plain)(x))
        mask = jnp.array([[True], [False], [True], [True]])
        gradient = jax.grad(lambda v: function(v, where=mask).sum())(x.at[1].set(jnp.nan))
        np.testing.assert_array_equal(gradient, jnp.broadcast_to(mask, x.shape) / (3 if n > 1 else 1))
        cubes, plain_cubes = (lambda f: lambda v: f(v**3).sum())(function), (lambda f: lambda v: f(v**3).sum())(plain)
        expected = jax.hessian(plain_cubes)(x)
        for second in (jax.hessian, lambda f: jax.jacrev(jax.grad(f)), lambda f: jax.jacfwd(jax.jacfwd(f))):
            np.testing.assert_allclose(jax.jit(second(cubes))(x), expected, rtol=1e-5, atol=1e-6)
        per_row = jax.vmap(jax.grad(lambda row: SUMS[name](row)))(x)
        np.testing.assert_array_equal(per_row, np.full_like(x, 1 / 2 if n > 1 else 1))
        scanned = jax.grad(lambda v: lax.scan(lambda c, r: (c + SUMS[name](r), None), 0.0, v)[0])(x)
        np.testing.assert_array_equal(scanned, per_row)
        if "compensated" in name:
            dx = jnp.array([1e8, 1, -1e8, 0], x.dtype)
            assert jax.jvp(SUMS[name], (x[:, 0],), (dx,))[1] == 1 / n
            assert jax.linearize(SUMS[name], x[:, 0])[1](dx) == 1 / n


SHAPES = {
    jnp.matmul: [((5,), (5,)), ((3, 5), (5,)), ((5,), (2, 5, 4)), ((2, 3, 5), (5, 4)), ((6, 1, 2, 5), (2, 5, 3))],
    jnp.dot: [((5,), (5,)), ((2, 3, 5), (5,)), ((5,), (5, 4)), ((2, 3, 5), (7, 5, 4)), ((0,), (0,)), ((3, 0), (0, 2))],
}
OURS = {jnp.matmul: stability.compensated_matmul, jnp.dot: stability.compensated_dot}


def close(got, expected, tolerance=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=10 * tolerance, atol=tolerance), got, expected)


def draw(*shape, seed=9):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def sum_of_cubes(f):
    return lambda a, b: (f(a, b) ** 3).sum()


@pytest.mark.parametrize("plain", thinned(list(SHAPES), 3), ids=lambda f: f.__name__)
def test_products_as_in_jnp_with_gradients(plain):
    for left, right in SHAPES[plain]:
        a, b = draw(*left), draw(*right, seed=10)
        got, expected = OURS[plain](a, b), plain(a, b)
        assert got.shape == expected.shape and got.dtype == expected.dtype
        close(got, expected)
        gradients = [jax.jit(jax.grad(sum_of_cubes(f), (0, 1)))(a, b) for f in (OURS[plain], plain)]
        close(*gradients)
    a, b = draw(3, 5), draw(5, 4, seed=10)
    close(OURS[plain](a + 1j * a**2, b - 1j), plain(a + 1j * a**2, b - 1j))


@pytest.mark.parametrize("x64", thinned([False, True], 2))
def test_second_derivatives_and_batches_of_products(x64):
    with jax.enable_x64(x64):
        a, ones = draw(4), jnp.ones(3)

        def of(f):
            return lambda a: jnp.sin(f(a, a * a))

        expected = jax.hessian(of(jnp.dot))(a)
        for second in (jax.hessian, lambda f: jax.jacrev(jax.grad(f)), lambda f: jax.jacfwd(jax.jacfwd(f))):
            close(jax.jit(second(of(stability.compensated_dot)))(a), expected)
        a, b = draw(6, 4, 3), draw(6, 3, 5)
        for axes in ((0, 0), (0, None), (None, 0)):
            u, v = (x if axis == 0 else x[0] for x, axis in zip((a, b), axes))
            close(jax.vmap(stability.compensated_matmul, axes)(u, v), jax.vmap(jnp.matmul, axes)(u, v))
        # The tangent is compensated too.
        dx = jnp.array([1e8, 1, -1e8])
        assert jax.jvp(lambda a: stability.compensated_dot(a, ones), (ones,), (dx,))[1] == 1


def test_every_way_to_multiply_matrices():
    with jax.enable_x64(True):
        a, b = draw(1, 130, 90), draw(1, 90, 110)
        close(jax.jit(lambda a, b: sum(_compensated_dot._words_by_updates(a, b)))(a, b), a @ b, 1e-14)
        close(jax.jit(_compensated_dot.two_word_matmul_kernel)(a, b), a @ b, 1e-14)
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        exact = np.float64(a) @ np.float64(b)
        for kernel in (_compensated_dot.matmul_kernel, _compensated_dot.two_word_matmul_kernel):
            np.testing.assert_allclose(jax.jit(kernel)(a, b), exact, rtol=2.0**-23)


def test_dot_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"got shapes \(3,\) and \(4,\)"):
        stability.compensated_dot(jnp.ones(3), jnp.ones(4))
    with pytest.raises(ValueError, match="got a scalar"):
        stability.compensated_matmul(jnp.ones(3), 1.0)
    with pytest.raises(jax.dtypes.TypePromotionError), jax.numpy_dtype_promotion("strict"):
        stability.compensated_dot(jnp.ones(3, jnp.float16), jnp.ones(3, jnp.float32))


@pytest.mark.parametrize("x64", [False, True])
def test_dot_at_special_values(x64):
    with jax.enable_x64(x64):
        dtype = np.float64 if x64 else np.float32
        big, inf = np.finfo(dtype).max, np.inf
        dot = jax.jit(jax.vmap(stability.compensated_dot))
        a = np.array([[big, -big, 3], [inf, 1, 1], [inf, 1, 1], [big, big, 0], [big, big, 1], [inf, inf, 1]], dtype)
        b = np.array([[2, 2, 1], [1, 1, 1], [0, 1, 1], [big, -big, 1], [1, 1, 1], [1, -1, 1]], dtype)
        np.testing.assert_array_equal(dot(a, b), [3, inf, np.nan, 0, inf, np.nan])


# ---- cumulative sums, block-scaled sums


@pytest.mark.parametrize("x64", [False, True])
def test_cumsum(x64):
    with jax.enable_x64(x64):
        x = draw(6, 5)
        ours = jax.jit(stability.compensated_cumsum, static_argnames=("axis", "reverse"))
        if not x64:  # the same code
            for axis in (None, -1):
                close(ours(x, axis), jnp.cumsum(x, axis))
            close(ours(x, 0, reverse=True), jnp.cumsum(x[::-1], 0)[::-1])
            close(ours(x[0] + 1j), jnp.cumsum(x[0] + 1j))
        close(jax.vmap(ours, 1)(x), jnp.cumsum(x, 0).T)

        def of(f):
            return lambda v: (f(v) ** 3).sum()

        close(*(jax.jit(jax.grad(of(f)))(x[0]) for f in (ours, jnp.cumsum)))
        close(*(jax.jit(jax.hessian(of(f)))(x[0]) for f in (ours, jnp.cumsum)))
        big = np.finfo(x.dtype).max
        got = ours(np.array([1, np.inf, 2, -np.inf, 3], x.dtype), 0)
        np.testing.assert_array_equal(got, [1, np.inf, np.inf, np.nan, np.nan])
        got = ours(np.array([big, big, -big, 0, 0], x.dtype), 0)
        np.testing.assert_array_equal(got, [big, np.inf, big, big, big])


def test_every_cumulative_sum_as_if_in_twice_the_precision():
    x = ill_conditioned_sum(300, 1e12, np.float32, np.random.default_rng(11))
    exact = [exact_sum(x[: i + 1]) for i in range(len(x))]
    total = [exact_sum(np.abs(x[: i + 1])) for i in range(len(x))]
    for got, value, size in zip(np.asarray(stability.compensated_cumsum(x)), exact, total):
        assert abs(Fraction(float(got)) - value) <= abs(value) * Fraction(2) ** -23 + size * Fraction(300) ** 2 / 2**48


def test_block_scaled_sum():
    ours = jax.jit(stability.block_scaled_sum, static_argnames=("axis", "keepdims"))
    for term in (1e38, 1e30):  # 1e9 terms of 1e30: a thousand such sums
        m, k = ours(jnp.full(10**6, term, jnp.float32))
        assert m.dtype == jnp.float32 and k.dtype == jnp.int32
        assert float(m) * 2.0 ** int(k) * 1e3 == pytest.approx(1e9 * float(np.float32(term)), rel=1e-7)
    assert np.isinf(jnp.sum(jnp.full(1000, 1e38, jnp.float32)))
    x = draw(3, 4).astype(jnp.float32)
    for axis, where in ((None, None), (0, MASKS[0][:4]), (-1, None)):
        m, k = ours(x, axis, where=where)
        np.testing.assert_allclose(np.ldexp(m, k), jnp.sum(x, axis, where=where), rtol=1e-6)
        assert np.all((m == 0) | ((np.abs(m) >= 0.5) & (np.abs(m) < 1)))
    rows = np.array([[0, 0], [np.inf, 1], [np.inf, -np.inf], [2e-38, 2e-38], [3e38, -3e38]], np.float32)
    m, k = ours(rows, 1, keepdims=True)
    assert m.shape == (5, 1)
    np.testing.assert_array_equal(m[:3, 0], [0, jnp.inf, jnp.nan])
    np.testing.assert_allclose(np.ldexp(np.float64(m[3:, 0]), k[3:, 0]), [4e-38, 0], rtol=1e-6)

    def recovered(x):
        m, k = stability.block_scaled_sum(x)
        return m * jnp.exp2(k.astype(jnp.float32))

    np.testing.assert_allclose(jax.jit(jax.grad(recovered))(x), np.ones_like(x), rtol=1e-6)
    with jax.enable_x64(True):
        m, k = ours(np.full(100, 1e308))
        assert float(m) * 2.0 ** (int(k) - 100) == pytest.approx(1e308 * (100 * 2.0**-100), rel=1e-15)
    with pytest.raises(TypeError, match="`x` has dtype complex64; expected real numbers"):
        stability.block_scaled_sum(1j)


# ---- where they run


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map(check_vma):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    shard, whole = PartitionSpec("d"), PartitionSpec()
    x, w = jnp.arange(24.0).reshape(24, 1), jnp.array([2.0])
    local = jax.shard_map(
        lambda v: stability.compensated_sum(v, 0), mesh=mesh, in_specs=shard, out_specs=shard, check_vma=check_vma
    )
    np.testing.assert_array_equal(jax.jit(local)(x), x.reshape(8, 3).sum(1))
    np.testing.assert_array_equal(jax.grad(lambda v: local(v).sum())(x), np.ones_like(x))
    loss = jax.shard_map(
        lambda w, v: lax.psum(stability.compensated_dot(v, w).sum(), "d"),
        mesh=mesh,
        in_specs=(whole, shard),
        out_specs=whole,
        check_vma=check_vma,
    )
    np.testing.assert_array_equal(jax.grad(jax.jit(loss))(w, x), [x.sum()])


def test_programs_export_to_other_platforms_with_both_kernels():
    def program(x):
        total = stability.compensated_sum(x) + stability.compensated_dot(x, x) + stability.compensated_cumsum(x)[-1]
        return total + stability.compensated_polyval(x[:3], x[0])

    text = {}
    for platform in ("cpu", "cuda", "tpu"):
        exported = jax.export.export(jax.jit(jax.value_and_grad(program)), platforms=[platform])(jnp.ones(50))
        text[platform] = exported.mlir_module()
    assert "f64" in text["cpu"] and "f64" in text["cuda"]
    assert "f64" not in text["tpu"]


@pytest.mark.parametrize(
    "f", [stability.compensated_sum, lambda x: stability.compensated_cumsum(x)[-1], stability.reproducible_sum]
)
def test_narrow_sums_are_rounded_once(f):
    """A tie in bfloat16 once the sum is rounded to float32."""
    x = jnp.array([1.0, 2.0**-8, 2.0**-40], jnp.bfloat16)
    assert jnp.sum(x.astype(jnp.float32)).astype(jnp.bfloat16) == 1
    assert f(x) == 1.0078125


def test_narrow_dot_products_are_rounded_once():
    x = jnp.array([1.0, 2.0**-8, 2.0**-40], jnp.bfloat16)
    assert jnp.dot(x, jnp.ones_like(x)) == 1
    assert stability.compensated_dot(x, jnp.ones_like(x)) == 1.0078125


def test_the_mantissa_of_a_sum_of_zero():
    np.testing.assert_array_equal(
        jax.grad(lambda x: stability.block_scaled_sum(x)[0])(jnp.array([1e30, -1e30])), [1, 1]
    )
    m, k = stability.block_scaled_sum(jnp.array([1.0, -0.001], jnp.bfloat16))
    assert 0.5 <= m < 1 and k == 0
