"""Counts of what a narrower dtype loses, against the cast itself (NumPy with ml_dtypes, which keeps subnormals)."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from robustad import stability as st
from tests._subset import thinned

TARGETS = [np.float16, ml_dtypes.bfloat16, np.float32, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn]
SOURCES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def samples(dtype, count=3000):
    """Random bit patterns, and the thresholds of the targets with their neighbours."""
    rng = np.random.default_rng(0)
    unsigned = np.dtype(f"uint{8 * np.dtype(dtype).itemsize}")
    random = rng.integers(0, np.iinfo(unsigned).max, count, unsigned, endpoint=True).view(dtype)
    edges = [0.0, 1e-45, np.inf, np.nan, 448, 464, 465, 480]
    for target in TARGETS:
        info = ml_dtypes.finfo(target)
        least, top = float(info.smallest_subnormal), float(info.max)
        for value in (top, top * (1 + float(info.eps) / 4), least / 2, least, float(info.smallest_normal)):
            edges += [value, value * (1 + 2**-20), value * (1 - 2**-20)]
    with np.errstate(all="ignore"):
        edges = np.array(edges, np.float64).astype(dtype)
        return np.concatenate([random, edges, -edges])


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("source", thinned(SOURCES, 2), ids=lambda t: np.dtype(t).name)
def test_counts_are_those_of_the_cast(source, target):
    x = samples(source)
    if (source, target) == (np.float64, ml_dtypes.bfloat16):  # NumPy rounds twice there, through float32
        with np.errstate(all="ignore"):
            x = samples(np.float32).astype(np.float64)
    with np.errstate(all="ignore"):
        wide, cast = x.astype(np.float64), x.astype(target).astype(np.float64)
    finite = np.isfinite(wide)
    expected = {
        "overflow": (finite & ~np.isfinite(cast)).sum(),
        "flushed": (finite & (wide != 0) & (cast == 0)).sum(),
        "subnormal": (finite & (cast != 0) & (np.abs(cast) < float(ml_dtypes.finfo(target).smallest_normal))).sum(),
    }
    with jax.enable_x64(source == np.float64):
        value, counts = st.saturating_cast(jnp.asarray(x), target)
        report = st.range_report({"a": jnp.asarray(x[:100]), "b": [jnp.asarray(x[100:])]}, target)
    assert value.dtype == target
    for name, count in expected.items():
        assert int(getattr(counts, name)) == getattr(report, name) == count, name
    assert int(counts.infinite) == np.isinf(wide).sum() and int(counts.nan) == np.isnan(wide).sum()
    assert report.size == len(x) and report.nonfinite == (~finite).sum() and report.zero == (wide == 0).sum()
    value = np.asarray(value).astype(np.float32)
    np.testing.assert_array_equal(np.abs(value[np.isinf(wide)]), np.float32(ml_dtypes.finfo(target).max))
    normal = finite & (np.abs(cast) >= float(ml_dtypes.finfo(target).smallest_normal)) & np.isfinite(cast)
    normal &= np.abs(wide) >= 1.2e-38  # XLA on CPU flushes subnormals
    np.testing.assert_array_equal(value[normal], cast[normal])


def test_saturation_and_its_derivative():
    x = jnp.array([7e4, 1.0, -1e9, np.inf, np.nan])
    value, counts = jax.jit(lambda x: st.saturating_cast(x, jnp.float16))(x)
    np.testing.assert_array_equal(value, np.array([65504, 1, -65504, 65504, np.nan], np.float16))
    assert np.isinf(x.astype(jnp.float16)[0])
    assert (int(counts.overflow), int(counts.infinite), int(counts.nan)) == (2, 1, 1)
    slope = jax.grad(lambda x: st.saturating_cast(x, jnp.float16)[0].astype(jnp.float32).sum())(x[:4])
    np.testing.assert_array_equal(slope, [0, 1, 0, 0])
    np.testing.assert_array_equal(jax.vmap(lambda x: st.saturating_cast(x, "float16")[1].overflow)(x), [1, 0, 1, 0, 0])


@pytest.mark.parametrize(
    ("x", "dtype", "scale", "after"),
    [
        ([1.0, 2.0], "float16", 1.0, (0, 0, 0)),
        ([1e5, 1e6], "float16", 2.0**-4, (0, 0, 0)),
        ([1e-8, 1e-3], "float16", 2.0**13, (0, 0, 0)),
        ([1e-9, 3e-6, 0.5], "float16", 2.0**16, (0, 0, 0)),
        ([1e-9, 1e3], "float16", 2.0**6, (0, 1, 0)),
        ([1e-38, 1e38], "bfloat16", 2.0, (0, 0, 0)),
        ([1e-40], "float32", 2.0**7, (0, 0, 0)),
        ([0.0, np.inf], "float16", 1.0, (0, 0, 0)),
    ],
)
def test_the_recommended_scale(x, dtype, scale, after):
    report = st.range_report(np.array(x, np.float32), dtype)
    assert report.scale == scale
    assert (report.scaled_overflow, report.scaled_subnormal, report.scaled_flushed) == after


def test_it_prints_and_refuses():
    report = st.range_report(jnp.array([1e-9, 7e4]), jnp.float16)
    assert not report.ok and "overflow" in str(report) and "x 2**-1" in str(report)
    assert st.range_report([], jnp.float16).ok
    for f in (st.range_report, st.saturating_cast):
        with pytest.raises(TypeError, match="`dtype` must be a real float dtype"):
            f(jnp.ones(2), jnp.int8)
        with pytest.raises(TypeError, match="has dtype complex64; expected real numbers"):
            f(1j * jnp.ones(2), jnp.float16)
