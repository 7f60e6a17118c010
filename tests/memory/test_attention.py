"""Attention by blocks: the dense result and gradients in float64, in memory linear in the length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from robustad.memory import attention
from tests.memory._loops import normal, worst

B, T, S, N, K, H = 2, 13, 19, 4, 2, 8


def dense(q, k, v, bias=None, *, scale=None, seen=None):
    """In the dtype of the operands, with the heads of keys repeated; a query that sees nothing gets 0."""
    k, v = (jnp.repeat(x, q.shape[-2] // x.shape[-2], axis=-2) for x in (k, v))
    s = jnp.einsum("btnh,bsnh->bnts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    s = s if bias is None else s + bias
    seen = jnp.ones(s.shape, bool) if seen is None else jnp.broadcast_to(seen, s.shape)
    none = ~jnp.any(seen, -1, keepdims=True)
    p = jnp.where(none, 0, jax.nn.softmax(jnp.where(seen | none, s, -jnp.inf), -1))
    return jnp.einsum("bnts,bsnd->btnd", p, v)


def operands(dtype=jnp.float32):
    q, k, v = normal(0, B, T, N, H), normal(1, B, S, K, H), normal(2, B, S, K, 5)
    return tuple(x.astype(dtype) for x in (q, k, v, normal(3, N, T, S)))


CT = normal(9, B, T, N, 5, dtype=jnp.bfloat16).astype(jnp.float32)  # exact in every dtype


def value_and_gradients(function, **options):
    def loss(*args):
        out = function(*args, **options)
        return jnp.sum(out.astype(CT.dtype) * CT.astype(out.dtype)), out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))


def exact(args, **options):
    with jax.enable_x64(True):
        wide = tuple(jnp.asarray(np.asarray(x), jnp.float64) for x in args)
        (_, out), gradients = value_and_gradients(dense, **options)(*wide)
        return [np.asarray(x) for x in (out, *gradients)]


def causal():
    return np.tril(np.ones((T, S), bool))


def short():
    rows, columns = np.array([13, 5])[:, None, None, None], np.array([7, 19])[:, None, None, None]
    return (np.arange(T)[:, None] < rows) & (np.arange(S) < columns)


def band():
    offset = np.arange(S) - np.arange(T)[:, None]
    return (offset >= -3) & (offset <= 2)


SOME = np.random.default_rng(5).random((B, 1, T, S)) < 0.3
SOME[0, 0, :3] = False  # queries that see nothing

MASKS = {
    "none": ({}, None),
    "causal": ({"is_causal": True}, causal),
    "lengths": ({"query_seq_lengths": np.array([13, 5]), "key_value_seq_lengths": np.array([7, 19])}, short),
    "window": ({"local_window_size": (3, 2)}, band),
    "mask": ({"mask": SOME, "scale": 1.5}, lambda: SOME),
}


@pytest.mark.parametrize("name", MASKS)
def test_equals_the_dense_one_in_float64(name):
    options, seen = MASKS[name]
    args = operands()
    expected = exact(args, seen=None if seen is None else jnp.asarray(seen()), scale=options.get("scale"))
    block = 128 if name == "none" else 5
    (_, out), gradients = value_and_gradients(attention, block_size=block, **options)(*args)
    assert worst([out, *gradients], expected) < 2e-6  # of the largest element


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.bfloat16, 0.5), (jnp.float16, 0.5), (jnp.float64, 16)])
def test_other_dtypes(dtype, bound):
    """Within half a unit in the last place of the largest element, from the last rounding, for the narrow ones."""
    with jax.enable_x64(dtype == jnp.float64):
        args = operands(dtype)
        (_, out), gradients = value_and_gradients(attention, block_size=4)(*args)
        assert all(x.dtype == dtype for x in (out, *gradients))
        got = [np.asarray(x, np.float64) for x in (out, *gradients)]
    assert worst(got, exact(args)) < 1.01 * bound * float(jnp.finfo(dtype).eps)


def test_plain_bfloat16_is_worse(monkeypatch):
    monkeypatch.setitem(globals(), "CT", normal(9, B, T, N, H, dtype=jnp.bfloat16).astype(jnp.float32))
    q, k, _, bias = operands(jnp.bfloat16)
    args = (q, k, normal(2, B, S, K, H, dtype=jnp.bfloat16), bias)
    expected = exact(args)
    ours, plain = (
        worst([out, *gradients], expected)
        for (_, out), gradients in (value_and_gradients(f)(*args) for f in (attention, jax.nn.dot_product_attention))
    )
    assert ours < 0.75 * plain


def test_jaxs_heads_masks_and_logsumexp():
    q, k, v, bias = operands()
    v = normal(2, B, S, K, H)
    options = dict(is_causal=True, local_window_size=4, return_residual=True)
    lengths = np.array([15, 19], np.int32)
    for args, extra in (((q, k, v), {"key_value_seq_lengths": lengths}), ((q[1], k[1], v[1]), {})):
        ours = jax.jit(lambda *a, o=options | extra: attention(*a, bias, block_size=8, **o))(*args)
        theirs = jax.jit(lambda *a, o=options | extra: jax.nn.dot_product_attention(*a, bias, **o))(*args)
        assert worst(ours, theirs) < 1e-6
    slope = jax.jit(jax.grad(lambda b: jnp.sum(attention(q, k, v, b, return_residual=True, block_size=8)[1])))(bias)
    np.testing.assert_allclose(jnp.sum(slope, -1), B, rtol=1e-5)  # the weights add up to 1


def test_large_logits_keep_their_digits():
    """Logits of 1e6 that are exact: weights from one rounded logsumexp are not, those from maximum and sum are."""
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.integers(-1, 2, (1, 8, 1, 4)), jnp.float32).at[..., 0].set(1)
    k = jnp.asarray(rng.integers(-1, 2, (1, 8, 1, 4)), jnp.float32).at[..., 0].set(2.0**20)
    v = normal(1, 1, 8, 1, 5)

    def gradients(f, dtype):
        return jax.jit(jax.grad(lambda *a: jnp.sum(f(*a, scale=1.0)[..., 0]), (0, 1, 2)))(
            *(x.astype(dtype) for x in (q, k, v))
        )

    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, gradients(dense, jnp.float64))
    ours = gradients(lambda *a, **o: attention(*a, block_size=3, **o), jnp.float32)
    assert worst(ours[2], expected[2]) < 1e-6
    assert worst(ours[0][..., 1:], expected[0][..., 1:]) < 1e-6  # the first component is 2²⁰ · (a sum that cancels)

    def by_logsumexp(v):  # what keeping (out, logsumexp) alone amounts to
        s = jnp.einsum("btnh,bsnh->bnts", q, k)
        p = jnp.exp(s - jax.nn.logsumexp(s, -1, keepdims=True))
        return jnp.sum(jnp.einsum("bnts,bsnd->btnd", p, v)[..., 0])

    assert worst(jax.grad(by_logsumexp)(v), expected[2]) > 1e-3


def test_queries_that_see_nothing_get_zero():
    q, k, v, _ = operands()
    for options in (
        {"mask": np.zeros((1, 1, 1, S), bool)},
        {"bias": jnp.full((T, 1), -jnp.inf)},
    ):

        def loss(*args, options=options):
            out = attention(*args, block_size=4, **options)
            return jnp.sum(out * CT) + jnp.sum(jnp.cos(out) - 1)

        value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)
        assert value == 0 and all(not np.any(g) for g in gradients)
    out, lse = attention(q, k, v, mask=jnp.zeros((1, 1, 1, S), bool), return_residual=True)
    assert not np.any(out) and np.all(lse == -np.inf)


def test_no_keys_or_queries():
    q, k, v, _ = operands()
    assert not np.any(attention(q, k[:, :0], v[:, :0]))
    assert attention(q[:, :0], k, v).shape == (B, 0, N, 5)


def test_forward_mode_and_second_derivatives():
    args = operands()
    steps = jax.tree.map(jnp.cos, args)
    with jax.enable_x64(True):
        wide, wide_steps = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), (args, steps))

    def products(function):
        def loss(*args):
            return jnp.sum(jnp.sin(function(*args)))

        gradient = jax.grad(loss, (0, 1, 2, 3))
        along = lambda a, t: jnp.vdot(*(jnp.concatenate([x.ravel() for x in y]) for y in (gradient(*a), t)))  # noqa: E731
        return jax.jit(lambda a, t: (jax.jvp(function, a, t), jax.jvp(gradient, a, t)[1], jax.grad(along)(a, t)))

    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, products(dense)(wide, wide_steps))
    assert worst(products(lambda *a: attention(*a, block_size=8))(args, steps), expected) < 4e-6


def blocked(*args):
    return attention(*args, block_size=8)


def test_vmap_and_scan():
    args = operands()
    many = jax.tree.map(lambda x: jnp.stack([x, jnp.cos(x), -x]), args)

    def gradient(f):
        return jax.jit(jax.vmap(jax.grad(lambda a: jnp.sum(f(*a) * CT))))

    assert worst(gradient(blocked)(many), gradient(dense)(many)) < 3e-6

    def stacked(f, scan):  # differentiated through a scan
        def loss(q, k, v):
            return jnp.sum(scan(lambda c, _: (f(c, k, v), None), q, None, 2)[0] ** 2)

        return jax.jit(jax.grad(lambda *a: jnp.sum(jax.grad(loss)(*a) ** 2)))  # the rule holds in each order

    def unrolled(step, q, xs, length):
        for _ in range(length):
            q, _ = step(q, xs)
        return q, None

    q, k, _, _ = args
    v = normal(2, B, S, K, H)
    assert worst(stacked(blocked, jax.lax.scan)(q, k, v), stacked(dense, unrolled)(q, k, v)) < 1e-5


def test_shard_map():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    q, k, v, bias = operands()
    data = PartitionSpec("data")
    sharded = jax.shard_map(
        lambda q, k, v, b: attention(q, k, v, b, block_size=8),
        mesh=mesh,
        in_specs=(data, data, data, PartitionSpec()),
        out_specs=data,
    )
    got, expected = (value_and_gradients(f)(q, k, v, bias) for f in (sharded, lambda *a: attention(*a, block_size=8)))
    assert worst(got, expected) < 1e-6


def test_what_is_kept():
    q, k, v, bias = operands()
    _, pull = jax.vjp(lambda *a: attention(*a, block_size=4), q, k, v, bias)
    sizes = sorted(x.size for x in jax.tree.leaves(pull))
    rows = B * N * T
    assert sizes == sorted([q.size, k.size, v.size, bias.size, rows * 5, rows, rows])  # operands, result, two numbers


def test_memory_is_linear_in_the_length():
    def temporaries(function, length, transform):
        x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        f = transform(lambda *a: jnp.sum(function(*a, is_causal=True) ** 2))
        return jax.jit(f).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    for transform in (lambda f: f, lambda f: jax.grad(f, (0, 1, 2))):
        small, large = (temporaries(attention, n, transform) for n in (512, 2048))
        assert large < 4.2 * small
        plain = temporaries(jax.nn.dot_product_attention, 2048, transform)
        assert plain > 7 * large
        assert plain > 10 * temporaries(jax.nn.dot_product_attention, 512, transform)


@pytest.mark.whole
def test_memory_of_second_derivatives():
    def loss(*a):
        return jnp.sum(attention(*a, is_causal=True) ** 2)

    def forward(*a):
        return jax.jvp(jax.grad(loss), a, a)[1]

    def reverse(*a):
        return jax.grad(lambda *a: jnp.sum(jax.grad(loss)(*a) ** 2))(*a)

    sizes = {}
    for f in (forward, reverse):
        for length in (256, 1024):
            x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
            sizes[f, length] = jax.jit(f).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes
    assert sizes[forward, 1024] < 4.2 * sizes[forward, 256]
    # One array of the result's size for each block of keys is kept besides.
    assert sizes[reverse, 1024] < 4.2 * sizes[reverse, 256] + 4 * 1024 * 2 * 16 * (1024 // 128)


Q = jnp.ones((1, 3, 2, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: attention(Q, Q, Q.astype(jnp.bfloat16)), TypeError, "`value` bfloat16"),
        (lambda: attention(Q.astype(int), Q, Q), TypeError, "`query` of .* must be of a floating dtype; got int32"),
        (lambda: attention(Q, Q, Q, is_causal="no"), TypeError, "must be True or False; got 'no'"),  # pyright: ignore
        (lambda: jax.jit(attention)(Q, Q, Q, is_causal=True), TypeError, "give a `mask`"),
        (lambda: attention(Q, Q[0], Q[0]), ValueError, r"`key` \(3, 2, 4\)"),
        (lambda: attention(Q, Q[..., :3], Q), ValueError, r"key \(1, 3, 2, 3\)"),
        (lambda: attention(Q[:, :, :1], Q, Q), ValueError, "a multiple of the heads of keys"),
        (lambda: attention(Q, Q, Q, mask=jnp.ones((3, 3))), TypeError, "What is added to the logits is `bias`"),
        (lambda: attention(Q, Q, Q, bias=jnp.ones((2, 3))), ValueError, r"broadcast to \(B, N, T, S\), \(1, 2, 3, 3\)"),
        (lambda: attention(Q, Q, Q, scale=jnp.ones(())), TypeError, "`scale=1.0`"),
        (lambda: attention(Q, Q, Q, block_size=0), ValueError, "`block_size` must be an integer from 1 up"),
        (lambda: attention(Q, Q, Q, local_window_size=(1, -1)), ValueError, "from 0 up; got -1"),
        (lambda: attention(Q, Q, Q, query_seq_lengths=jnp.ones(3, int)), ValueError, r"shape \(1,\)"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
