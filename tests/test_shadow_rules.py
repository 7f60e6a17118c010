"""Every shadow rule against two oracles: the plain program, and the same program run in float64."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from robustad import _jaxpr
from robustad.arithmetic import _shadow
from robustad.arithmetic._shadow import RULES, Shadow
from robustad.diagnosis import CotangentRecord, tap
from tests._operands import cast, numbers, positive_definite, square, x, y
from tests._subset import thinned
from tests._walking import assert_close, assert_same_bits, assert_typed, in_float64, shadows, walk


@dataclasses.dataclass(frozen=True)
class Row:
    """`f` on `args`, whose floating arrays are cast to each of `dtypes` ("f32", "f16", "bf16", "c64") in turn.

    high: whether the twin must be `f` in float64 (False for outputs that are decisions or not unique).
    """

    name: str
    f: Callable[..., Any]
    args: tuple[Any, ...]
    dtypes: str = "f32"
    high: bool = True


REAL = "f32 bf16"
ALL = "f32 bf16 c64"
EVERY = "f32 f16 bf16 c64"


positive = numbers(3, 8, low=0.125, high=4.0)
unit = numbers(3, 8, low=-0.9, high=0.9)
above_one = numbers(3, 8, low=1.125, high=4.0)
image, kernel = numbers(2, 3, 6, 6), numbers(4, 3, 3, 3, seed=1)
index = np.array([2, 0, 1], np.int32)
spread = np.random.default_rng(3).permutation(24).reshape(3, 8) / 8 - 1.0  # no two are near


SHARDED = P("i")


def on_devices(f: Callable[..., Any], out: P = SHARDED, check_vma: bool = False) -> Callable[..., Any]:
    """`f` on the shards of 8 devices."""
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    return jax.shard_map(f, mesh=mesh, in_specs=P("i"), out_specs=out, check_vma=check_vma)


def constrained(x: Any) -> Any:
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    return lax.with_sharding_constraint(x, NamedSharding(mesh, P("i")))


def grad(f: Callable[..., Any]) -> Callable[..., Any]:
    """The derivative of the sum of `f`, weighted so that no cotangent is like another."""

    def total(*args: Any) -> Any:
        out = f(*args)
        return jnp.sum(out * jnp.linspace(0.5, 1.0, out.size, dtype=out.dtype).reshape(out.shape))

    return jax.grad(total)


def tangent(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: jax.jvp(f, (x,), (x * x,))[1]


def gathered(x: Any) -> Any:
    return lax.all_gather(x, "i", to="invarying")


def polynomial(x: Any, y: Any) -> Any:
    """By the primitive where this version of JAX has it."""
    coefficients = [y[0, 0], y[0, 1], y[0, 2]]
    return lax.polynomial(x, coefficients) if hasattr(lax, "polynomial") else jnp.polyval(jnp.stack(coefficients), x)


def max_pool(x: Any) -> Any:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID")


def sum_pool(x: Any) -> Any:
    return lax.reduce_window(x, 0.0, lax.add, (2, 2), (1, 2), "SAME")


def softplus_sum(a: Any, b: Any) -> Any:
    return jnp.logaddexp(a, b)


UNARY = [  # lax function, domain, dtypes
    (lax.abs, x, ALL),
    (lax.acos, unit, REAL),
    (lax.acosh, above_one, REAL),
    (lax.asin, unit, REAL),
    (lax.asinh, x, REAL),
    (lax.atan, x, REAL),
    (lax.atanh, unit, REAL),
    (lax.bessel_i0e, x, REAL),
    (lax.bessel_i1e, x, REAL),
    (lax.cbrt, x, REAL),
    (lax.ceil, x, REAL),
    (lax.conj, x, "c64"),
    (lax.cos, x, ALL),
    (lax.cosh, x, ALL),
    (lax.digamma, positive, REAL),
    (lax.erf, x, REAL),
    (lax.erf_inv, unit, REAL),
    (lax.erfc, x, REAL),
    (lax.exp, x, EVERY),
    (lax.exp2, x, ALL),
    (lax.expm1, x, ALL),
    (lax.floor, x, REAL),
    (lax.imag, x, "c64"),
    (lax.lgamma, positive, REAL),
    (lax.log, positive, ALL),
    (lax.log1p, positive, EVERY),
    (lax.logistic, x, ALL),
    (lax.neg, x, ALL),
    (lax.real, x, "c64"),
    (lax.round, x, REAL),
    (lax.rsqrt, positive, ALL),
    (lax.sign, x, REAL),
    (lax.sin, x, ALL),
    (lax.sinh, x, ALL),
    (lax.sqrt, positive, ALL),
    (lax.square, x, ALL),
    (lax.tan, x, ALL),
    (lax.tanh, x, EVERY),
]
NEW = ("log2", "one_minus_square")  # where this version of JAX has them
UNARY += [(getattr(lax, name), positive, REAL) for name in NEW if hasattr(lax, name)]

ROWS = [Row(f.__name__, f, (domain,), dtypes) for f, domain, dtypes in UNARY] + [
    # of several operands
    Row("add", lax.add, (x, y), ALL),
    Row("add_any", grad(lambda x: x * x + jnp.sin(x)), (x,)),
    Row("atan2", lax.atan2, (x, y), REAL),
    Row("betainc", lax.betainc, (positive, above_one, numbers(3, 8, low=0.1, high=0.9)), "f32"),
    Row("clamp", lax.clamp, (np.asarray(-0.5), x, np.asarray(0.75)), REAL),
    Row("complex", lax.complex, (x, y)),
    Row("div", lax.div, (x, positive), ALL),
    Row("igamma", lax.igamma, (positive, above_one)),
    Row("igamma_grad_a", lax.igamma_grad_a, (positive, above_one)),
    Row("igammac", lax.igammac, (positive, above_one)),
    Row("integer_pow", lambda x: x**3 + 1 / x**2, (positive,), ALL),
    Row("max", lax.max, (x, y), EVERY),
    Row("min", lax.min, (x, y), ALL),
    Row("mul", lax.mul, (x, y), EVERY),
    Row("nextafter", lax.nextafter, (x, y), high=False),
    Row("polygamma", lax.polygamma, (np.full((3, 8), 2.0), positive)),
    Row("polynomial", polynomial, (x, y)),
    Row("pow", lax.pow, (positive, y), ALL),
    Row("pow of integers", lambda x: lax.pow(x, jnp.int32(3)), (x,), REAL),
    Row("rem", lax.rem, (above_one, positive), REAL),
    Row("select_n", lambda x, y: lax.select(x > y, x, y), (x, y), ALL),
    Row("sub", lax.sub, (x, y), ALL),
    Row("zeta", lax.zeta, (above_one, positive)),
    # data moves
    Row("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (2, 3, 8), (1, 2)), (x,)),
    Row("concatenate", lambda x, y: lax.concatenate([x, y], 0), (x, y)),
    Row("copy", jnp.copy, (x,)),
    Row("device_put", jax.device_put, (x,)),
    Row("dynamic_slice", lambda x, i: lax.dynamic_slice(x, (i[0], i[1]), (1, 4)), (x, index)),
    Row("dynamic_update_slice", lambda x, i: lax.dynamic_update_slice(x, x[:1, :3], (i[0], i[2])), (x, index)),
    Row("gather", lambda x, i: x[i, i], (x, index)),
    Row("gather, filling", lambda x: x.at[jnp.array([0, 9])].get(mode="fill"), (x,)),
    Row("layout", lambda x: with_layout_constraint(x, Layout((1, 0))), (x,)),
    Row("name", lambda x: checkpoint_name(jnp.sin(x), "sines"), (x,)),
    Row("optimization_barrier", lax.optimization_barrier, (x,)),
    Row("pad", lambda x: lax.pad(x, jnp.zeros((), x.dtype), ((1, 0, 0), (0, 2, 1))), (x,)),
    Row("reshape", lambda x: jnp.reshape(x, (4, 6)), (x,)),
    Row("rev", lambda x: x[::-1], (x,)),
    Row("sharding_constraint", constrained, (numbers(8),)),
    Row("slice", lambda x: x[1:, ::2], (x,)),
    Row("split", lambda x: jnp.split(x, 2, axis=1), (x,)),
    Row("squeeze", lambda x: x[:1].squeeze(0), (x,)),
    Row("stack", lambda x, y: jnp.stack([x, y]), (x, y)),
    Row("stop_gradient", lax.stop_gradient, (x,)),
    Row("tap", lambda a: tap(a, CotangentRecord.zeros(dtype=jnp.promote_types(a.dtype, "float32"))), (x,)),
    Row("tile", lambda x: jnp.tile(x, (2, 1)), (x,)),
    Row("transpose", jnp.transpose, (x,), EVERY),
    Row("unstack", jnp.unstack, (x,)),
    # sums, products, extrema
    Row("reduce_sum", lambda x: lax.reduce_sum(x, (1,)), (x,), "f32 c64"),
    Row("sum", lambda x: jnp.sum(x, 0), (x,), EVERY),
    Row("reduce_prod", lambda x: jnp.prod(x, 1), (x,), "f32 c64"),
    Row("reduce_max", lambda x: jnp.max(x, 1), (spread,), REAL),
    Row("reduce_min", lambda x: jnp.min(x, 1), (spread,), REAL),
    Row("max's derivative", grad(lambda x: jnp.max(x, 1)), (spread,), REAL),
    Row("reduce", lambda x: lax.reduce(x, jnp.zeros((), x.dtype), softplus_sum, (1,)), (x,)),
    Row("reduce_window_sum", sum_pool, (x,), "f32"),
    Row("reduce_window_max", max_pool, (spread,), REAL),
    Row("reduce_window_min", lambda x: lax.reduce_window(x, jnp.inf, lax.min, (1, 2), (1, 2), "VALID"), (spread,)),
    Row("reduce_window", lambda x: lax.reduce_window(x, 1.0, lax.mul, (1, 2), (1, 1), "VALID"), (x,)),
    Row("select_and_scatter_add", grad(max_pool), (spread,), "f32"),
    Row("select_and_gather_add", tangent(max_pool), (spread,)),
    Row("cumsum", lambda x: jnp.cumsum(x, 1), (x,), "f32 c64"),
    Row("cumprod", lambda x: jnp.cumprod(x, 1), (x,), "f32 c64"),
    Row("cummax", lambda x: lax.cummax(x, 1), (spread,), REAL),
    Row("cummin", lambda x: lax.cummin(x, 1, reverse=True), (spread,), REAL),
    Row("cumlogsumexp", lambda x: lax.cumlogsumexp(x, 1), (x,), "f32"),
    Row("argmax", lambda x: jnp.take_along_axis(x, jnp.argmax(x, 1)[:, None], 1), (spread,), REAL),
    Row("sort", lambda x: jnp.sort(x, axis=0), (spread,), "f32 f16 bf16"),
    Row("sort, two keys", lambda x, y: lax.sort((x, y, x * y), dimension=1, num_keys=2), (spread, y), "f32"),
    Row("argsort", lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1), (spread,), REAL),
    Row("top_k", lambda x: lax.top_k(x, 3), (spread,), REAL),
    Row("approx_top_k", lambda x: lax.approx_max_k(x, 3), (spread,), "f32"),
    # scatters
    Row("scatter", lambda x, i: x.at[i].set(2 * x[i]), (x, index), ALL),
    Row("scatter-add", lambda x, i: x.at[i % 2].add(x[i]), (x, index), "f32 c64"),
    Row("scatter-add, as a derivative", grad(lambda x: x[jnp.array([0, 0, 2])] ** 2), (x,)),
    Row("scatter-sub", lambda x, i: x.at[i % 2].subtract(x[i]), (x, index), "f32"),
    Row("scatter-mul", lambda x, i: x.at[i % 2].multiply(x[i]), (x, index), "f32"),
    Row("scatter-min", lambda x, i: x.at[i].min(-x[i]), (x, index), REAL),
    Row("scatter-max", lambda x, i: x.at[i].max(-x[i]), (x, index), REAL),
    Row("scatter, applying", lambda x, i: x.at[i].apply(jnp.sin), (x, index)),
    # contractions
    Row("dot_general", lambda x, y: x @ y.T, (x, y), "f32 c64"),
    Row("dot_general, low precision", lambda x, y: x[:1] @ y[:1].T, (x, y), "f16 bf16"),
    Row("dot_general, preset", lambda x, y: jnp.dot(x, y.T, precision="highest"), (x, y)),
    Row("conv_general_dilated", lambda a, k: lax.conv(a, k, (1, 1), "SAME"), (image, kernel)),
    Row(
        "convolution's derivative", jax.grad(lambda k, a: jnp.sum(lax.conv(a, k, (2, 2), "SAME") ** 2)), (kernel, image)
    ),
    Row("ragged_dot", lax.ragged_dot, (numbers(6, 4), numbers(3, 4, 5), np.array([2, 0, 4], np.int32))),
    # casts
    Row("convert_element_type", lambda x: x.astype(jnp.float32), (x,), "f16 bf16"),
    Row("to integers and back", lambda x: (8 * x).astype(jnp.int32) * x, (x,), REAL),
    Row("from booleans", lambda x: (x > 0) * x + (x > 0.5).astype(x.dtype), (x,), REAL),
    Row("reduce_precision", lambda x: lax.reduce_precision(x, 5, 3), (x,), high=False),
    Row(
        "bitcast",
        lambda x: lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.int32), jnp.float32),
        (x,),
        high=False,
    ),
    Row("iota", lambda x: x * jnp.arange(8, dtype=x.dtype), (x,), REAL),
    # factorizations
    Row("cholesky", jnp.linalg.cholesky, (positive_definite(),), "f32 c64"),
    Row(
        "cholesky_update", lambda a: lax.linalg.cholesky_update(jnp.linalg.cholesky(a).T, a[0]), (positive_definite(),)
    ),
    Row("fft", jnp.fft.fft, (x,), "f32 c64"),
    Row("rfft, irfft", lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * 2), (x,)),
    Row("qr", lambda a: jnp.abs(jnp.linalg.qr(a)[1]), (square,), "f32 c64"),
    Row("qr, tall", jnp.linalg.qr, (numbers(6, 3),), "f32"),
    Row("qr, whole", lambda a: jnp.linalg.qr(a, mode="complete"), (numbers(6, 3),), "f32"),
    Row("qr's derivative", grad(lambda a: jnp.linalg.qr(a)[0]), (square,)),
    Row("qr, pivoting", lambda a: lax.linalg.qr(a, pivoting=True), (square,)),
    Row("householder_product", lambda a: lax.linalg.householder_product(a / 4, a[0]), (square,), "f32 c64"),
    Row("ormqr", lambda a: lax.linalg.ormqr(a / 4, a[0], a), (square,), "f32"),
    Row("symmetric_product", lambda a: lax.linalg.symmetric_product(a, a, symmetrize_output=True), (square,)),
    Row("triangular_solve", lambda a: jax.scipy.linalg.solve_triangular(a, a[0], lower=True), (square,), "f32 c64"),
    Row("tridiagonal_solve", lambda a: lax.linalg.tridiagonal_solve(a[0] / 4, a[1] + 4, a[2] / 4, a[3:].T), (square,)),
    Row("lu", lambda a: lax.linalg.lu(a)[0], (square,), "f32 c64"),
    Row("lu, wide", lambda a: lax.linalg.lu(a)[0], (numbers(3, 5),), "f32"),
    Row("lu, tall and batched", lambda a: lax.linalg.lu(a)[0], (numbers(2, 5, 3),), "f32"),
    Row("solve", jnp.linalg.solve, (square, numbers(4)), "f32 c64"),
    Row("determinant's derivative", jax.grad(jnp.linalg.det), (square,)),
    Row("eigvalsh", jnp.linalg.eigvalsh, (positive_definite(),), "f32 c64"),
    Row("eigh", lambda a: jnp.abs(jnp.linalg.eigh(a)[1]), (positive_definite(),), "f32 c64"),
    Row("eigh's derivative", jax.grad(lambda a: jnp.sum(jnp.linalg.eigh(a)[1] ** 4)), (positive_definite(),)),
    Row("eig", lambda a: jnp.sort(jnp.real(jnp.linalg.eig(a)[0])), (positive_definite(),), "f32"),
    Row("eigvals' derivative", jax.grad(lambda a: jnp.sum(jnp.abs(jnp.linalg.eigvals(a)) ** 3)), (square,)),
    Row("hessenberg", jax.scipy.linalg.hessenberg, (square,), "f32"),
    Row("tridiagonal", lax.linalg.tridiagonal, (positive_definite(),), "f32"),
    Row("singular values", lambda a: jnp.linalg.svd(a, compute_uv=False), (square,), "f32 c64"),
    Row("svd", lambda a: [jnp.abs(b) for b in jnp.linalg.svd(a, full_matrices=False)], (numbers(5, 3),), "f32 c64"),
    Row("svd's derivative", grad(lambda a: jnp.linalg.svd(a, full_matrices=False)[0] ** 2), (numbers(5, 3),)),
    # collectives, each on 8 devices
    Row("psum", on_devices(lambda x: lax.psum(x, "i"), P()), (numbers(8, 3),), "f32 c64"),
    Row("psum_invariant", on_devices(lambda x: lax.psum(x, "i"), P(), True), (numbers(8, 3),)),
    Row("pvary", on_devices(lambda x: x * lax.psum(x, "i"), P("i"), True), (numbers(8, 3),)),
    Row("pmax", on_devices(lambda x: lax.pmax(x, "i"), P()), (numbers(8, 3),)),
    Row("pmin", on_devices(lambda x: lax.pmin(x, "i"), P()), (numbers(8, 3),)),
    Row("all_gather_invariant", on_devices(gathered, P(), True), (numbers(8, 3),)),
    Row("all_gather", on_devices(lambda x: lax.all_gather(x, "i", tiled=True)), (numbers(8, 3),)),
    Row("all_to_all", on_devices(lambda x: lax.all_to_all(x, "i", 1, 0, tiled=True)), (numbers(8, 8),)),
    Row("ppermute", on_devices(lambda x: lax.ppermute(x, "i", [(k, (k + 1) % 8) for k in range(8)])), (numbers(8, 3),)),
    Row("reduce_scatter", on_devices(lambda x: lax.psum_scatter(x, "i", scatter_dimension=1)), (numbers(8, 8),)),
    Row("pmean's derivative", on_devices(grad(lambda x: lax.pmean(x * x, "i")), P("i"), True), (numbers(8, 3),)),
    # random numbers
    Row("random_gamma", lambda a: jax.random.gamma(jax.random.key(0), a), (positive,), high=False),
    Row("normal", lambda a: a * jax.random.normal(jax.random.key(0), a.shape, jnp.float32), (x,), high=False),
]

CASES = [(row, dtype) for row in ROWS for dtype in row.dtypes.split()]

UNREACHED = {
    "geqrf": "made in the lowering of `qr`; has no public function",
    "pbroadcast": "cannot be run on CPU",
    "reshard": "tested below, inside its mesh",
    "rng_uniform": "draws from the backend's own stream: no two runs agree",
}
OTHER_VERSION = {name for name in (*NEW, "polynomial") if not hasattr(lax, name)}


FIRST = [case for case in CASES if case[1] == case[0].dtypes.split()[0]]


@pytest.mark.parametrize("row,dtype", thinned(CASES, 8, FIRST), ids=lambda v: getattr(v, "name", v))
def test_twin_is_the_program_in_float64(row: Row, dtype: str) -> None:
    args = [cast(a, dtype) for a in row.args]
    walked = walk(row.f, *args)
    plain = jax.jit(row.f)(*args)
    assert jax.tree.structure(plain) == jax.tree.structure(walked, is_leaf=lambda v: isinstance(v, Shadow))
    values, working = shadows(walked), jax.tree.leaves(plain)
    for value, w in zip(values, working, strict=True):
        assert_typed(value)
        assert_same_bits(value.working, w)
    if row.high:
        for value, expected in zip(values, jax.tree.leaves(in_float64(row.f, *args)), strict=True):
            if value.high is not None:
                assert_close(value.high, expected)


def exercised() -> set[str]:
    """The primitives that the table's programs consist of."""
    found = set[str]()
    for row, dtype in CASES:
        program, _ = _jaxpr.trace(row.f, *[cast(a, dtype) for a in row.args])
        found |= {site.primitive for site in _jaxpr.sites(program)}
    return found


def test_every_rule_is_exercised() -> None:
    missing = set(RULES) - exercised() - set(UNREACHED) - OTHER_VERSION
    assert not missing


def test_resharding_inside_its_mesh() -> None:
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Explicit,))

    def f(x: Any) -> Any:
        return jax.sharding.reshard(jnp.sin(x), P("i")) * 2

    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.linspace(0, 1, 8), P())
        program, _ = _jaxpr.trace(f, x)
        assert "reshard" in {site.primitive for site in _jaxpr.sites(program)}
        walked = walk(f, x)
        assert_same_bits(walked.working, jax.jit(f)(x))
        assert_close(walked.high, 2 * np.sin(np.asarray(x, np.float64)))


def test_integers_booleans_and_keys_have_no_twin() -> None:
    def f(x: Any, key: Any) -> Any:
        split = jax.random.split(key)
        return jnp.argmax(x), x > 0, split, jax.random.bits(key, (3,)), x

    walked = walk(f, jnp.linspace(-1, 1, 5), jax.random.key(0))
    assert [v.high is None for v in shadows(walked)] == [True, True, True, True, False]
    for value in shadows(walked):
        assert_typed(value)


def test_nothing_of_the_table_is_lost() -> None:
    for row, dtype in CASES:
        if dtype == row.dtypes.split()[0]:
            program, _ = _jaxpr.trace(row.f, *[cast(a, dtype) for a in row.args])
            lost = {
                s.primitive
                for s in _jaxpr.sites(program)
                if not _jaxpr.control(s.equation) and _shadow.is_lost(s.equation)
            }
            assert not lost, row.name
