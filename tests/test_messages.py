"""What the functions say of arguments that they cannot take: what was got, what is expected, the likely fix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustad
from robustad import stability as st

X = jnp.array([0.5, 1.0, 2.0])
Z = X + 1j
KEY = jax.random.key(0)
MESH = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

SUMS = {
    name: getattr(st, name)
    for name in "compensated_sum compensated_mean pairwise_sum kahan_sum reproducible_sum reproducible_mean "
    "block_scaled_sum mean var std prod scaled_prod logsumexp logmeanexp softmax log_softmax".split()
}
OF_AXES = SUMS | {"norm": lambda x, axis: st.norm(x, axis=axis), "normalize": st.normalize}
OF_ONE_AXIS = {
    "compensated_cumsum": st.compensated_cumsum,
    "logcumsumexp": st.logcumsumexp,
    "softmax_cross_entropy": lambda x, axis: st.softmax_cross_entropy(x, 0, axis=axis),
    "chunked_logsumexp": lambda x, axis: st.chunked_logsumexp(x, 2, axis),
}
OF_ARRAYS = SUMS | {
    "norm": st.norm,
    "normalize": st.normalize,
    "cosine_similarity": lambda x: st.cosine_similarity(x, X),
    "compensated_cumsum": st.compensated_cumsum,
    "compensated_dot": lambda x: st.compensated_dot(x, X),
    "compensated_matmul": lambda x: st.compensated_matmul(x, X),
    "compensated_polyval": lambda x: st.compensated_polyval(x, 1.0),
    "reproducible_dot": lambda x: st.reproducible_dot(x, X),
    "logcumsumexp": st.logcumsumexp,
    "chunked_logsumexp": lambda x: st.chunked_logsumexp(x, 2),
    "softmax_cross_entropy": lambda x: st.softmax_cross_entropy(x, 0),
    "sigmoid_cross_entropy": lambda x: st.sigmoid_cross_entropy(x, 1),
    "LogSumExp.add": lambda x: st.LogSumExp.init().add(x),
    "SignedLog.from_array": st.SignedLog.from_array,
    "Accumulator.add": lambda x: st.Accumulator.init().add(x),
    "segment_sum": lambda x: st.segment_sum(x, jnp.zeros(3, int), 1),
    "gather": lambda x: st.gather(x, 0),
    "scatter_add": lambda x: st.scatter_add(x, 0, 1.0),
    "sum_error_bound": lambda x: st.sum_error_bound(x, "pairwise"),
    "saturating_cast": lambda x: st.saturating_cast(x, jnp.float16),
    "two_sum": lambda x: st.two_sum(x, X),
    "eigh": st.eigh,
    "elu": st.elu,
}
OF_REAL_ARRAYS = {  # what is said of complex ones
    "softmax": "give `x.real`",
    "log_softmax": "give `x.real`",
    "logsumexp": "`jax.scipy.special.logsumexp`",
    "logmeanexp": "`jax.scipy.special.logsumexp`",
    "logcumsumexp": "`jax.scipy.special.logsumexp`",
    "chunked_logsumexp": "`jax.scipy.special.logsumexp`",
    "LogSumExp.add": "`jax.scipy.special.logsumexp`",
    "softmax_cross_entropy": "`logits.real`",
    "sigmoid_cross_entropy": "`logits.real`",
    "prod": "`jnp.prod`",
    "scaled_prod": "`jnp.prod`",
    "var": "Add the variances of `x.real` and `x.imag`.",
    "std": "Add the variances of `x.real` and `x.imag`, and take",
    "cosine_similarity": "Join the real and the imaginary parts",
    "reproducible_sum": "the imaginary part in turn",
    "reproducible_mean": "the imaginary part in turn",
    "reproducible_dot": "`compensated_dot`",
    "Accumulator.add": "the imaginary part in turn",
    "segment_sum": "the imaginary part in turn",
    "block_scaled_sum": "`x.imag`",
    "compensated_polyval": "`jnp.polyval`",
    "two_sum": "`z.imag`",
    "elu": "`x.real`",
}


def says(kind, text):
    return pytest.raises(kind, match=text)


@pytest.mark.parametrize("name", OF_ARRAYS)
def test_of_what_is_no_array_of_numbers(name):
    f = OF_ARRAYS[name]
    with says(TypeError, rf"{name}: `\w+` has type list; expected an array or a number. Convert it by `jnp.asarray`"):
        f([0.5, 1.0, 2.0])
    with says(TypeError, rf"{name}: `\w+` has type NoneType; expected an array"):
        f(None)
    with says(TypeError, rf"{name}: `\w+` has dtype key<fry>; expected numbers. Draw numbers"):
        f(KEY)
    with says(TypeError, rf"{name}: `\w+` has dtype <U1; expected numbers. Convert it"):
        f(np.array(["a", "b", "c"]))


@pytest.mark.parametrize("name", ["sum", "mean", "prod", "linalg.norm"])
def test_lists_are_refused_as_jnp_refuses_them(name):
    f = jnp.linalg.norm if name == "linalg.norm" else getattr(jnp, name)
    with says(TypeError, "requires ndarray or scalar arguments"):
        f([1.0, 2.0])


@pytest.mark.parametrize("name", OF_REAL_ARRAYS)
def test_of_complex_arrays(name):
    with says(TypeError, rf"{name}: `\w+` has dtype complex64; expected real numbers\. .*{OF_REAL_ARRAYS[name]}"):
        OF_ARRAYS[name](Z)


@pytest.mark.parametrize("name", OF_AXES)
def test_of_axes(name):
    f, x = OF_AXES[name], jnp.ones((2, 3))
    for axis in (1.5, (0, 1.5)):
        with says(
            TypeError, rf"{name}: `axis` is .*1\.5.*; expected an integer, integers in a tuple, or None. Give whole"
        ):
            f(x, axis=axis)
    for axis in ("x", ""):
        with says(TypeError, f"{name}: `axis` is '{axis}'; expected an integer.* mesh axis"):
            f(x, axis=axis)
    with says(ValueError, f"{name}: `axis` 2 is out of range for an array of 2 dimensions. Expected -2 to 1"):
        f(x, axis=2)
    with says(TypeError, f"{name}: `axis` is traced; expected an integer.* static"):
        jax.jit(lambda axis: f(x, axis=axis))(0)
    with says(TypeError, f"{name}: `axis` is traced; expected an integer.* static"):
        jax.jit(lambda axis: f(x, axis=(0, axis)))(1)


@pytest.mark.parametrize("name", OF_ONE_AXIS)
def test_of_more_axes_than_one(name):
    f = OF_ONE_AXIS[name]
    for axis in ((0,), (), (0, 1)):
        with says(TypeError, rf"{name}: `axis` is \(.*\); expected one integer. Give one axis; several"):
            f(jnp.ones((2, 3)), axis)
    for axis in (1.5, "x", *([None] if name != "compensated_cumsum" else [])):  # None: flattened, as in jnp.cumsum
        with says(TypeError, f"{name}: `axis` is {axis!r}; expected one integer"):
            f(jnp.ones((2, 3)), axis)


@pytest.mark.parametrize("name", [*SUMS, "softmax_cross_entropy", "Accumulator.add"])
def test_of_masks(name):
    others = {
        "softmax_cross_entropy": lambda x, where: st.softmax_cross_entropy(x, 0, where=where),
        "Accumulator.add": lambda x, where: st.Accumulator.init().add(x, where=where),
    }
    f = others.get(name) or SUMS[name]
    for dtype in (jnp.int32, jnp.float32):
        with says(TypeError, rf"{name}: `where` has dtype {dtype.dtype}; expected bool, as in `jnp.sum`"):
            f(X, where=jnp.ones(3, dtype))
        with says(ValueError, "where must be None or a boolean array"):
            jnp.sum(X, where=jnp.ones(3, dtype))
    with says(TypeError, f"{name}: `where` has type list"):
        f(X, where=[True, False, True])
    with says(ValueError, rf"{name}: the shapes of `\w+` \(3,\), `where` \(4,\) do not fit"):
        f(X, where=jnp.ones(4, bool))


@pytest.mark.parametrize("name", ["compensated_sum", "reproducible_mean", "mean", "std", "prod"])
def test_of_masks_with_more_axes(name):
    with says(ValueError, rf"{name}: `where` has shape \(2, 3\); expected one that broadcasts to \(3,\)"):
        SUMS[name](X, where=jnp.ones((2, 3), bool))


def test_of_shapes_that_do_not_fit():
    with says(ValueError, r"cosine_similarity: the shapes of `x` \(3,\), `y` \(2,\) do not fit"):
        st.cosine_similarity(X, X[:2])
    with says(ValueError, r"logsumexp: the shapes of `a` \(3,\), `b` \(2,\) do not fit"):
        st.logsumexp(X, b=X[:2])
    with says(ValueError, r"sigmoid_cross_entropy: the shapes of `logits` \(3,\), `labels` \(2,\) do not fit"):
        st.sigmoid_cross_entropy(X, X[:2])
    with says(ValueError, r"scatter_add: `updates` has shape \(2, 1\); expected one that broadcasts to \(1,\)"):
        st.scatter_add(X, jnp.array([0]), jnp.ones((2, 1)))


def test_of_traced_numbers_that_are_static():
    with says(TypeError, "norm: `ord` is traced; expected None, 'fro', or a number .*static_argnames='ord'"):
        jax.jit(st.norm)(X, 3)
    with says(TypeError, "var: `ddof` is traced"):
        jax.jit(lambda d: st.var(X, ddof=d))(1)
    with says(TypeError, "chunked_logsumexp: `chunk_size` is traced"):
        jax.jit(st.chunked_logsumexp)(X, 2)
    with says(TypeError, r"norm: `ord` is \[1\]; expected"):
        st.norm(X, [1])


def test_of_a_report_on_traced_numbers():
    with says(TypeError, "range_report: `tree` is traced; expected arrays whose numbers are known"):
        jax.jit(lambda x: st.range_report(x, jnp.float16).scale)(X)
    with says(TypeError, "range_report: `tree` is traced"):
        jax.vmap(lambda x: st.range_report(x, jnp.float16).scale)(X)
    # in a gradient without jit the numbers are known
    scale = st.range_report(1e-8 * X, jnp.float16).scale
    slope = jax.grad(lambda x: x.sum() * st.range_report(1e-8 * x, jnp.float16).scale)(X)
    np.testing.assert_array_equal(slope, np.full(3, scale))


ON_A_MESH = {
    "reproducible_psum": st.reproducible_psum,
    "LogSumExp.psum": lambda x, name: st.LogSumExp.init().add(x).psum(name).finalize(),
    "Accumulator.psum": lambda x, name: st.Accumulator.init().add(x).psum(name).finalize(),
    "sharded_logsumexp": st.sharded_logsumexp,
    "sharded_softmax_cross_entropy": lambda x, name: st.sharded_softmax_cross_entropy(x, 0, name),
}


@pytest.mark.parametrize("name", ON_A_MESH)
def test_of_axes_of_a_mesh(name):
    with says(ValueError, f"{name}: `axis_name` 'data' is no axis of a mesh here; expected .*shard_map"):
        ON_A_MESH[name](X, "data")
    with says(ValueError, f"{name}: `axis_name` 'model' is no axis of a mesh here"):
        everywhere = jax.P()
        jax.shard_map(lambda x: ON_A_MESH[name](x, "model"), mesh=MESH, in_specs=everywhere, out_specs=everywhere)(X)


def test_of_what_is_no_function():
    with says(TypeError, "compensated: `f` has type int; expected a function"):
        robustad.compensated(3)


def test_of_dtypes():
    for f in (st.mean, st.var, st.std, st.prod):
        with says(TypeError, rf"{f.__name__}: `dtype` is int32; expected a float"):
            f(X, dtype=jnp.int32)
    with says(TypeError, "mean: `dtype` is float32; expected a complex one, as `x` has complex64"):
        st.mean(Z, dtype=jnp.float32)
    for f in (st.var, st.std, st.prod):
        with says(TypeError, f"{f.__name__}: `dtype` has dtype complex64; expected real numbers. The .* is real"):
            f(X, dtype=jnp.complex64)


def test_of_the_arguments_of_several():
    with says(TypeError, "quadratic_roots: `b` has type list; expected an array or a number"):
        st.quadratic_roots(1.0, [2.0], 3.0)
    with says(TypeError, "quadratic_roots: `c` has dtype complex64; expected real numbers"):
        st.quadratic_roots(1.0, 2.0, 1j)
    with says(TypeError, "log_matmul: `b` has dtype complex64; expected real numbers. The sum of complex exponentials"):
        st.log_matmul(jnp.ones((2, 2)), 1j * jnp.ones((2, 2)))


def test_of_missing_and_misshapen_arguments():
    with says(TypeError, r"log takes 1 arrays \(x\), got 0"):
        st.log()
    with says(TypeError, "beta_logpdf: missing a required argument: 'b'; it takes x, a, b, loc, scale"):
        st.beta_logpdf(0.5, 2.0)
    with says(TypeError, "`label_smoothing` is traced"):
        jax.jit(lambda s: st.softmax_cross_entropy(jnp.zeros(3), 1, label_smoothing=s))(0.1)
    with says(ValueError, r"the state has \(\)"):
        st.LogSumExp.init().add(jnp.zeros((3, 4)))
    with says(ValueError, r"`cov` has shape \(\)"):
        st.multivariate_normal_logpdf(0.0, 0.0, 1.0)
    with says(TypeError, "segment_sum: `num_segments` is 2.0; expected an integer"):
        st.segment_sum(jnp.zeros(3), jnp.zeros(3, jnp.int32), 2.0)
    assert st.segment_sum(jnp.ones(3), jnp.zeros(3, jnp.int32), 2)[0] == 3
