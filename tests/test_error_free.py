"""Error-free transforms against exact rational arithmetic, behind and before everything a compiler could merge them with."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from robustad import stability
from robustad.stability import _backend, _error_free

DTYPES = ["float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
TRANSFORMS = {name: jax.jit(getattr(stability, name)) for name in ("two_sum", "fast_two_sum", "two_prod", "split")}
SIZE = 512


def bit_patterns(dtype, n: int, random: np.random.Generator) -> np.ndarray:
    bits = 8 * np.dtype(dtype).itemsize
    return random.integers(0, 2**bits, n, dtype=f"uint{bits}").view(dtype)


def run(name: str, *arguments: np.ndarray) -> list[np.ndarray]:
    with jax.enable_x64(arguments[0].dtype == np.float64):
        return [np.asarray(x) for x in TRANSFORMS[name](*arguments)]


def in_range(name: str, a: float, b: float, info) -> bool:
    """Whether the docstring promises exactness, apart from overflow of the result."""
    p, smallest = info.nmant + 1, Fraction(float(info.smallest_normal))
    if not (np.isfinite(a) and np.isfinite(b)):
        return False
    sizes = [abs(Fraction(v)) for v in (a, b)]
    if name == "two_prod":
        exact = sizes[0] * sizes[1]
        return (exact == 0 or exact >= smallest * 4**p) and all(v == 0 or v >= smallest for v in sizes)
    if name == "fast_two_sum" and sizes[0] < sizes[1]:
        return False
    return all(v == 0 or v >= smallest * 2 ** (p - 1) for v in (sizes[:1] if name == "split" else sizes))


def check(name: str, a: np.ndarray, b: np.ndarray) -> int:
    """How many pairs were in range; every one of them must be exact."""
    info = ml_dtypes.finfo(a.dtype)
    high, low = run(name, a) if name == "split" else run(name, a, b)
    assert high.dtype == a.dtype and low.dtype == a.dtype
    checked = 0
    with np.errstate(invalid="ignore"):  # signalling NaNs
        rows = list(zip(*(x.astype(np.float64).tolist() for x in (a, b, high, low))))
    for u, v, s, e in rows:
        if not np.isfinite(s):
            assert e == 0
        elif in_range(name, u, v, info):
            x, y = Fraction(u), Fraction(v)
            exact = {"two_prod": x * y, "split": x}.get(name, x + y)
            assert Fraction(s) + Fraction(e) == exact, (name, u, v, s, e)
            checked += 1
    return checked


def pairs(dtype, n: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Bit patterns; for half of them the second is near the first; and the ends of the range."""
    info = ml_dtypes.finfo(dtype)
    a, b = bit_patterns(dtype, n, random), bit_patterns(dtype, n, random)
    near = random.uniform(-2, 2, n // 2) * 2.0 ** random.integers(-info.nmant - 3, 3, n // 2)
    with np.errstate(all="ignore"):
        b[: n // 2] = (a[: n // 2].astype(np.float64) * near).astype(dtype)
    top, one = float(info.max), 1.0
    ulp = top * 2.0 ** -(info.nmant + 1)
    a[:8] = np.array([top, top, -top, top, top, ulp, 0.0, -0.0]).astype(dtype)
    b[:8] = np.array([-top, -ulp / 2, ulp, one, 0.5, top, -0.0, 0.0]).astype(dtype)
    return a, b


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_on_bit_patterns(name, dtype):
    a, b = pairs(np.dtype(getattr(ml_dtypes, dtype, dtype)), 8 * SIZE, np.random.default_rng(0))
    assert check(name, a, b) > SIZE


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(TRANSFORMS)), st.sampled_from(["float32", "float64"]), st.data())
def test_exact_on_drawn_bit_patterns(name, dtype, data):
    bits = 8 * np.dtype(dtype).itemsize
    drawn = data.draw(st.lists(st.tuples(*[st.integers(0, 2**bits - 1)] * 2), min_size=1, max_size=8))
    both = np.zeros((2, 8), f"uint{bits}")  # one shape: compiled once
    both[:, : len(drawn)] = np.array(drawn, f"uint{bits}").T
    check(name, both[0].view(dtype), both[1].view(dtype))


# ---- hostile neighbours

RANDOM = np.random.default_rng(1)
X, Y, Z = (RANDOM.standard_normal((3, SIZE)) * 2.0 ** RANDOM.integers(-6, 7, (3, SIZE))).astype(np.float32)
CONSTANT = np.float32(3 * 2.0**10)


def plain_two_sum(a, b):
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


def plain_two_prod(a, b):
    def halves(x):
        c = x * np.float32(4097)
        high = c - (c - x)
        return high, x - high

    p, (ah, al), (bh, bl) = a * b, halves(a), halves(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


NEIGHBOURS = {
    "a product into two_sum": (lambda t, x, y, z: t.two_sum(x * y, z), X * Y, Z, "sum"),
    "two_sum of a product, turned": (lambda t, x, y, z: t.two_sum(z, x * y), Z, X * Y, "sum"),
    "a constant first": (lambda t, x, y, z: t.two_sum(CONSTANT, x), CONSTANT + 0 * X, X, "sum"),
    "a constant last": (lambda t, x, y, z: t.two_sum(x, CONSTANT), X, CONSTANT + 0 * X, "sum"),
    "two_prod by a constant": (
        lambda t, x, y, z: t.two_prod(x, np.float32(1.1)),
        X,
        np.float32(1.1) + 0 * X,
        "product",
    ),
    "two_prod, then a plain sum": (lambda t, x, y, z: (t.two_prod(x, y)[0] + z, 0 * z), X * Y + Z, 0 * Z, "sum"),
    "two_prod, then two_sum": (lambda t, x, y, z: t.two_sum(t.two_prod(x, y)[0], z), X * Y, Z, "sum"),
    "only the error": (lambda t, x, y, z: (X * Y + Z, t.two_sum(x * y, z)[1]), X * Y, Z, "sum"),
}
WAYS = {
    "jit": lambda f: f,
    "vmap": jax.vmap,
    "scan": lambda f: lambda *xs: lax.scan(lambda c, x: (c, f(*x)), 0, xs)[1],
    "scan of rows": lambda f: (
        lambda *xs: [o.ravel() for o in lax.scan(lambda c, x: (c, f(*x)), 0, [x.reshape(-1, 16) for x in xs])[1]]
    ),
}


class Plain:
    two_sum, two_prod = staticmethod(plain_two_sum), staticmethod(plain_two_prod)


def wrong(transforms, case: str, way: str) -> int:
    function, a, b, kind = NEIGHBOURS[case]
    if case == "only the error" and way != "jit":
        return 0
    s, e = jax.jit(WAYS[way](lambda x, y, z: function(transforms, x, y, z)))(X, Y, Z)
    words = [(Fraction(float(u)), Fraction(float(v))) for u, v in zip(a, b)]
    exact = [u * v if kind == "product" else u + v for u, v in words]
    return sum(Fraction(float(u)) + Fraction(float(v)) != w for u, v, w in zip(s, e, exact))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", NEIGHBOURS)
def test_exact_among_hostile_neighbours(case, way):
    assert wrong(stability, case, way) == 0


def test_the_plain_transforms_fail_among_hostile_neighbours():
    assert wrong(Plain, "two_prod, then a plain sum", "jit") > SIZE // 20  # contracted to a fused multiply-add
    if stability.verify_backend().findings[-1].present:
        assert wrong(Plain, "a constant first", "scan") > SIZE // 2  # (y + c) - c simplified to y


def test_plain_two_prod_overflows_where_ours_is_exact():
    a, b = np.float32([2.0**120 * (1 + 2.0**-20)]), np.float32([1 + 2.0**-23])
    assert not np.isfinite(jax.jit(plain_two_prod)(a, b)[1])
    assert check("two_prod", a, b) == 1
    # Here the low part of a would be subnormal.
    a, b = np.float32([2.0**-120 * (1 + 2.0**-23)]), np.float32([2.0**100 * (1 + 2.0**-23)])
    assert check("two_prod", a, b) == 1


# ---- derivatives, arguments


@pytest.mark.parametrize("name", ["two_sum", "fast_two_sum", "two_prod"])
def test_the_tangent_of_the_result_is_plain_and_of_the_error_zero(name):
    function, plain = getattr(stability, name), jnp.multiply if name == "two_prod" else jnp.add
    a, b = jnp.float32(3.7), jnp.float32(1e-3)
    for argnum in (0, 1):
        for order in (
            jax.grad,
            lambda f, i: jax.grad(jax.grad(f, i), 1 - i),
            lambda f, i: jax.jacfwd(jax.grad(f, i), 0),
        ):
            assert order(lambda a, b: function(a, b)[0], argnum)(a, b) == order(plain, argnum)(a, b)
            assert order(lambda a, b: function(a, b)[1], argnum)(a, b) == 0
    assert jax.vmap(jax.grad(lambda a, b: sum(function(a, b))))(jnp.ones(3), jnp.ones(3)).tolist() == [1.0] * 3
    high, low = jax.jvp(stability.split, (a,), (jnp.float32(2.0),))[1]
    assert (high, low) == (2, 0)


def test_dtypes_promote_as_in_jnp():
    with jax.numpy_dtype_promotion("strict"):
        assert stability.two_sum(jnp.float16(1), 2.0)[0].dtype == jnp.float16
        assert stability.two_prod(jnp.ones(3, jnp.bfloat16), 2)[1].dtype == jnp.bfloat16
        with pytest.raises(jax.dtypes.TypePromotionError):
            stability.two_sum(jnp.float16(1), jnp.float32(1))
    assert stability.two_sum(1, True)[0].dtype == jnp.float32
    assert stability.two_sum(jnp.ones((2, 1)), jnp.ones(3))[1].shape == (2, 3)
    with pytest.raises(TypeError, match="two_prod: `x` has dtype complex64; expected real numbers"):
        stability.two_prod(1j, 1.0)


def test_opaque_is_the_identity():
    for dtype in DTYPES:
        dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
        x = bit_patterns(dtype, 4096, np.random.default_rng(2))
        with jax.enable_x64(True):
            y = np.asarray(jax.jit(_error_free.opaque)(x))
        same = x.view(f"uint{8 * dtype.itemsize}") == y.view(f"uint{8 * dtype.itemsize}")
        with np.errstate(invalid="ignore"):
            assert np.all(same | (np.isnan(x.astype(np.float64)) & np.isnan(y.astype(np.float64))))


# ---- the backend


def test_the_backend_is_verified_at_first_use_wherever_that_is():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("d")
    calls = [
        lambda x: jax.jit(stability.compensated_sum)(x),
        lambda x: jax.grad(stability.compensated_sum)(x),
        lambda x: lax.scan(lambda c, v: (c + stability.two_sum(v, 1.0)[1], v), 0.0, x)[0],
        lambda x: jax.shard_map(lambda v: stability.two_sum(v, 1.0)[0], mesh=mesh, in_specs=spec, out_specs=spec)(x),
    ]
    for call in calls:
        _backend._proven.cache_clear()
        with jax.check_tracer_leaks():
            call(jnp.ones(8))
        assert _backend._proven.cache_info().misses == 1
    report = stability.verify_backend()
    assert report.ok and report is stability.verify_backend() and report.platform == "cpu"
    assert "error-free arithmetic holds on cpu" in str(report)


def test_fast_math_is_told_loudly_and_exactly():
    program = """
import warnings
from robustad import stability
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    report = stability.verify_backend()
assert not report.ok and len(caught) == 1 and caught[0].category is RuntimeWarning
assert str(caught[0].message) == str(report)
import jax
for function in (stability.compensated_sum, jax.jit(stability.compensated_sum), lambda x: stability.two_sum(x, x)):
    try:
        function(1.0)
    except stability.BackendError as error:
        message = str(error)
    else:
        raise SystemExit("no error")
raise SystemExit(message)
"""
    flag = "--xla_cpu_enable_fast_math=true"
    environment = {**os.environ, "XLA_FLAGS": flag, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    message = done.stderr
    assert "error-free arithmetic DOES NOT HOLD on cpu" in message
    assert "two_sum of loaded data is wrong for" in message
    assert f"Remove {flag} from XLA_FLAGS" in message
