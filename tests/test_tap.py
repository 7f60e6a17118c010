"""`tap`: the identity it is, and what it records under each of JAX's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import robustad as rad
from robustad.diagnosis import CotangentRecord, tap

ZERO = CotangentRecord.zeros()


@jax.jit
def pulled(cotangent, record=ZERO):
    """The record of a cotangent."""
    return jax.vjp(tap, jnp.zeros_like(cotangent), record)[1](cotangent)[1]


def norm(*cotangents):
    return np.sqrt(sum(np.sum(np.asarray(c, np.float64) ** 2) for c in cotangents))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64", "int8", "bool"])
def test_forward_it_is_the_identity_to_the_bit(dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, 64, np.uint8)).view("uint8" if dtype == "bool" else dtype)
    x = x > 100 if dtype == "bool" else x
    for y in (tap(x, ZERO), jax.jit(tap)(x, ZERO)):
        assert y.dtype == x.dtype and np.asarray(y).tobytes() == np.asarray(x).tobytes()


def test_integers_and_keys_pass():
    key = jax.random.key(1)
    assert (tap(key, ZERO) == key).all()

    def loss(x, record):
        return x * tap(jnp.arange(3), record)[2]

    slope, found = jax.grad(loss, argnums=(0, 1))(1.0, ZERO)
    assert slope == 2 and found.passes == 0 and found.count == 0
    moved = jax.grad(lambda k: tap(k, ZERO).astype(jnp.float32).sum(), allow_int=True)(jnp.arange(3))
    assert moved.dtype == jax.dtypes.float0


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-13, 1.0, 1e13, 1e30, 3e37])
def test_norms_neither_overflow_nor_underflow(scale):
    c = jnp.asarray(np.random.default_rng(1).uniform(0.3, 1, 50) * scale, jnp.float32)
    found = pulled(c)
    assert found.norm == pytest.approx(norm(c), rel=1e-6, abs=0)
    assert found.rms == pytest.approx(norm(c) / np.sqrt(50), rel=1e-6, abs=0)
    assert found.largest == jnp.max(jnp.abs(c))
    if abs(np.log10(scale)) > 25:  # the plain form
        assert jnp.sqrt(jnp.sum(c * c)) in (0, jnp.inf)


def test_records_of_different_scales_add_up():
    for scales in [(1e-30, 1e-37), (1e30, 1.0), (1e-20, 1e-12), (1e12, 1e13), (1e-30, 1e30)]:
        parts = [jnp.asarray(np.random.default_rng(2).normal(size=7) * s, jnp.float32) for s in scales]
        total = jax.tree.map(jnp.add, pulled(parts[0]), pulled(parts[1]))
        assert total.norm == pytest.approx(norm(*parts), rel=1e-6, abs=0)
        assert norm(*parts) > total.largest * 0.99 and total.largest >= max(float(jnp.abs(p).max()) for p in parts)
        assert total.passes == 2 and total.count == 14


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_zeros_nonfinite_and_small_entries_are_counted(dtype):
    entries = [0, -0.0, np.inf, np.nan, 2, -3, 2.0**-15, 2.0**-24]
    found = pulled(jnp.asarray(entries, dtype))
    n = 16 if dtype == "complex64" else 8  # imaginary parts are entries
    assert found.count == n and found.nonfinite == 2 and found.largest == 3
    assert found.zero_fraction == (2 + n - 8) / n
    assert found.norm == pytest.approx(np.sqrt(4 + 9 + 2.0**-30 + 2.0**-48), rel=1e-6)
    assert found.below("float16") == 2 / n and found.lost_in_float16 == 0 and found.below("float32") == 0
    assert found.sums.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_subnormal_entries_are_no_zeros(dtype):
    """Where the machine reads them as zeros too, as XLA's programs for CPUs do."""
    with jax.enable_x64(dtype == "float64"):
        least = float(jnp.finfo(dtype).smallest_subnormal)
        c = jnp.asarray(np.array([0, 1, -1, 8, 50, 100]) * least, dtype)
        wide = jnp.float64 if dtype == "float64" else jnp.float32
        found = pulled(c, CotangentRecord.zeros(dtype=wide))
        if dtype in ("bfloat16", "float32"):  # a comparison on this machine
            assert jax.jit(lambda c: jnp.sum(jnp.abs(c) > 0))(c) == found.norm == 0
        assert found.zero_fraction == pytest.approx(1 / 6) and found.below(dtype if least > 1e-50 else "float32") > 0.8
        both = pulled(jnp.append(c, 2 * jnp.finfo(dtype).smallest_normal), CotangentRecord.zeros(dtype=wide))
        units = np.array([1, 1, 8, 50, 100, 2 * float(jnp.finfo(dtype).smallest_normal) / least])
        assert both.norm == pytest.approx(np.linalg.norm(units) * least, rel=1e-6, abs=0)


@pytest.mark.parametrize("shape", [(0,), (), (3, 0), (5000,), (3, 4096), (2, 5000)])
def test_any_number_of_entries(shape):
    c = jnp.asarray(np.random.default_rng(3).integers(-1, 5, shape), jnp.float32)
    found = pulled(c)
    assert found.count == c.size and found.largest == jnp.max(jnp.abs(c), initial=0)
    assert found.zero_fraction * c.size == pytest.approx(np.sum(np.asarray(c) == 0))
    assert found.norm == pytest.approx(norm(c), rel=1e-6)


def test_no_record_of_a_scan_of_no_steps():
    def loss(x, records):
        return jnp.sum(tap(x, records))

    found = jax.grad(loss, 1)(jnp.zeros((0, 3)), CotangentRecord.zeros((0,)))
    assert found.sums.shape == (0, 11)


def test_float64_has_its_own_range():
    with jax.enable_x64(True):
        record = CotangentRecord.zeros(dtype=jnp.float64)
        for scale in (1e-300, 1e-40, 1.0, 1e300):
            found = pulled(jnp.array([3.0, 4.0, 0.0]) * scale, record)
            assert found.norm == pytest.approx(5 * scale, rel=1e-15, abs=0)
        assert pulled(jnp.array([1e-40, 1e-8, 1.0]), record).below("bfloat16") == pytest.approx(1 / 3)
        assert pulled(jnp.array([1e-40, 1e-8, 1.0]), record).lost_in_float16 == pytest.approx(2 / 3)
        with pytest.raises(ValueError, match=r"zeros\(dtype=jnp\.float64\)"):
            tap(jnp.ones(3), CotangentRecord.zeros(dtype=jnp.float32))


def test_it_is_what_vjp_gives_and_changes_no_gradient():
    w, x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32), jnp.arange(12.0).reshape(3, 4) / 10

    def loss(w, record):
        return jnp.sum(jnp.sin(tap(jnp.tanh(x @ w), record)))

    plain = jax.jit(jax.grad(lambda w: jnp.sum(jnp.sin(jnp.tanh(x @ w)))))(w)
    gradient, found = jax.jit(jax.grad(loss, argnums=(0, 1)))(w, ZERO)
    np.testing.assert_array_equal(gradient, plain)
    (cotangent,) = jax.vjp(lambda y: jnp.sum(jnp.sin(y)), jnp.tanh(x @ w))[1](1.0)
    assert found.norm == pytest.approx(norm(cotangent), rel=1e-6)
    assert found.largest == pytest.approx(np.abs(cotangent).max(), rel=1e-6) and found.passes == 1


def steps(x, records, shared=None, remat=False):
    """Five times x <- 2 sin(x), tapped by a record a step or by a shared one."""

    def step(h, record):
        return 2 * jnp.sin(tap(h, record if shared is None else shared)), None

    step = jax.checkpoint(step) if remat else step
    return jnp.sum(lax.scan(step, x, records, length=5)[0])


def test_a_scan_has_a_record_of_all_steps_or_one_a_step():
    x = jnp.array([0.1, 0.7, 2.0])
    each = jax.grad(steps, argnums=1)(x, CotangentRecord.zeros((5,)))
    assert each.passes.tolist() == [1] * 5 and each[1].norm.shape == ()
    states = [x]
    for _ in range(5):
        states.append(2 * jnp.sin(states[-1]))
    c = jnp.ones(3)
    for k in reversed(range(5)):
        c = c * 2 * jnp.cos(states[k])
        assert each.norm[k] == pytest.approx(norm(c), rel=1e-5)
    again = jax.grad(lambda x, r: steps(x, r, remat=True), argnums=1)(x, CotangentRecord.zeros((5,)))
    np.testing.assert_allclose(again.sums, each.sums, rtol=1e-6)
    whole = jax.grad(lambda x, r: steps(x, None, r), argnums=1)(x, ZERO)
    assert whole.passes == 5 and whole.count == 15
    assert whole.norm == pytest.approx(np.sqrt(np.sum(np.asarray(each.norm) ** 2)), rel=1e-6)
    assert each.largest.max() <= whole.largest <= whole.norm


def test_a_tap_used_twice_records_both():
    def loss(x, record):
        return jnp.sum(tap(x, record) * 3.0) + jnp.sum(tap(x * 2, record) * 4.0)

    found = jax.grad(loss, argnums=1)(jnp.ones(5), ZERO)
    assert found.passes == 2 and found.count == 10
    assert found.norm == pytest.approx(np.sqrt(5 * 9 + 5 * 16), rel=1e-6)
    assert found.largest == 7  # a bound on 4


def test_under_vmap():
    def loss(x, record):
        return jnp.sum(tap(x, record) ** 2)

    x = jnp.arange(6.0).reshape(3, 2)
    apart = jax.vmap(jax.grad(loss, argnums=1), (0, None))(x, ZERO)
    np.testing.assert_allclose(apart.norm, np.linalg.norm(2 * x, axis=1), rtol=1e-6)
    for axis in (0, 1):
        together = jax.grad(lambda r, a=axis: jnp.sum(jax.vmap(loss, (a, None))(x, r)))(ZERO)
        assert together.count == 6 and together.largest == 10
        assert together.norm == pytest.approx(norm(2 * x), rel=1e-6)
    mapped = jax.grad(lambda r: jnp.sum(jax.vmap(loss)(x, r)))(CotangentRecord.zeros((3,)))
    np.testing.assert_array_equal(mapped.sums, apart.sums)
    rows = jax.grad(loss, argnums=1)(x, CotangentRecord.zeros((3,)))  # a record for each index of the first axis
    np.testing.assert_array_equal(rows.sums, apart.sums)


def test_branches_and_what_is_cut_off():
    def loss(x, records):
        y = lax.cond(x > 0, lambda: tap(x, records[0]) * 2, lambda: tap(x, records[1]) * 3)
        return y + lax.stop_gradient(tap(x, records[2])) * x

    taken, other, stopped = jax.jit(jax.grad(loss, argnums=1))(1.0, (ZERO, ZERO, ZERO))
    assert (taken.passes, other.passes, stopped.passes) == (1, 0, 0) and taken.largest == 2


@pytest.mark.parametrize("check", [True, False])
def test_over_a_mesh_the_record_is_of_all_shards(check):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    data, whole = PartitionSpec("data"), PartitionSpec()

    def local(x, w, record):
        return lax.psum(jnp.sum(tap(x * w, record) ** 2), "data")

    loss = jax.shard_map(local, mesh=mesh, in_specs=(data, whole, whole), out_specs=whole, check_vma=check)
    x = jnp.arange(8.0)
    slope, found = jax.jit(jax.grad(loss, argnums=(1, 2)))(x, 2.0, ZERO)
    assert slope == pytest.approx(float(jnp.sum(4 * x**2)))
    assert found.count == 8 and found.passes == 4
    assert found.norm == pytest.approx(norm(4 * x), rel=1e-6)


def test_forward_mode_and_second_derivatives():
    x, v, records = jnp.array([0.3, 1.0]), jnp.array([1.0, -2.0]), CotangentRecord.zeros((5,))

    def plain(x):
        for _ in range(5):
            x = 2 * jnp.sin(x)
        return jnp.sum(x)

    np.testing.assert_allclose(jax.jvp(lambda x: steps(x, records), (x,), (v,)), jax.jvp(plain, (x,), (v,)), rtol=1e-5)
    expected = jax.hessian(plain)(x)
    gradient = jax.grad(lambda x: steps(x, records))
    np.testing.assert_allclose(jax.jacrev(gradient)(x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jacfwd(gradient)(x), expected, rtol=1e-4, atol=1e-5)
    # What was recorded is no function of x to JAX.
    sizes = jax.grad(lambda x: jnp.sum(jax.grad(steps, argnums=1)(x, records).sums))(x)
    np.testing.assert_array_equal(sizes, 0)


def test_what_it_refuses():
    with pytest.raises(TypeError, match=r"CotangentRecord\.zeros\(\)"):
        tap(jnp.ones(3), jnp.zeros(()))  # pyright: ignore[reportArgumentType]
    for sums in (jnp.zeros(11, jnp.float16), jnp.zeros(10)):
        with pytest.raises(TypeError, match="11 float32 or float64 numbers"):
            tap(jnp.ones(3), CotangentRecord(sums))
    with pytest.raises(TypeError, match="one by one"):
        tap({"a": jnp.ones(3)}, ZERO)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="pass it in `xs`"):
        tap(jnp.ones(3), CotangentRecord.zeros((5,)))
    with pytest.raises(ValueError, match="float32"):
        CotangentRecord.zeros(dtype=jnp.float16)
    with pytest.raises(ValueError, match="float16, bfloat16 or float32"):
        ZERO.below("float64")


def test_the_walks_see_through_it():
    """Twins, double words and exact numbers pass it as it passes its own; without a rule the shadow would be lost."""

    def loss(x):
        y = tap(jnp.sqrt(x + 1.0), ZERO) - jnp.sqrt(x)
        return jnp.sum(y)

    x = jnp.asarray([2e6, 3e7], jnp.float32)
    report = rad.audit(loss)(x)
    (finding,) = report.findings
    assert finding.kind == "cancellation" and all(note.line == finding.line for note in report.notes)
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(report.reference, 0.5 / np.sqrt(wide + 1) - 0.5 / np.sqrt(wide), rtol=1e-7)
    truth = np.sum(np.sqrt(wide + 1) - np.sqrt(wide))
    assert abs(float(loss(x)) - truth) > 1e-2 * truth
    np.testing.assert_allclose(rad.compensated(loss)(x), truth, rtol=2**-23)
