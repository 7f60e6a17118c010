"""Margins of planted decisions, in ulps; decisions that float64 takes otherwise; where they stand in program and code."""

import inspect
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from robustad import stability
from robustad.diagnosis import _predicates, branch_margin

DTYPES = ["bfloat16", "float16", "float32", "float64"]


def away(x, ulps: int, dtype):
    """The float that is so many floats from x."""
    x = np.asarray(x, jnp.dtype(dtype))
    bits = np.dtype(f"int{8 * x.itemsize}")
    return (x.view(bits) + bits.type(ulps)).view(x.dtype)


def line_of(f, text: str) -> int:
    source, first = inspect.getsourcelines(f)
    return first + next(i for i, row in enumerate(source) if text in row)


# ---- planted margins

PREDICATES = [  # the program, the primitive that decides, its threshold
    (lambda x: jnp.where(x > 1.5, x, 0 * x), "gt", 1.5),
    (lambda x: jnp.where(x < 1.0, x, 0 * x), "lt", 1.0),  # where the spacing changes
    (lambda x: jnp.where(x >= -0.75, x, 0 * x), "ge", -0.75),
    (lambda x: jnp.where(x <= 4.0, x, 0 * x), "le", 4.0),
    (lambda x: jnp.where(x == 3.0, x, 0 * x), "eq", 3.0),
    (lambda x: jnp.where(x != 3.0, x, 0 * x), "ne", 3.0),
    (lambda x: jnp.maximum(x, 0.3), "max", 0.3),
    (lambda x: jnp.minimum(0.3, x), "min", 0.3),
    (lambda x: lax.clamp(jnp.asarray(-8, x.dtype), x, jnp.asarray(0.3, x.dtype)), "clamp", 0.3),
    (lambda x: lax.clamp(jnp.asarray(0.3, x.dtype), x, jnp.asarray(8, x.dtype)), "clamp", 0.3),
    (jnp.floor, "floor", 3.0),
    (jnp.ceil, "ceil", -2.0),
    (jnp.round, "round", 2.5),
    (jnp.round, "round", -0.5),
    (lambda x: x.astype(jnp.int32), "convert_element_type", 5.0),
    (lambda x: x.astype(jnp.int32), "convert_element_type", -1.0),
    (lambda x: lax.rem(x, jnp.asarray(0.5, x.dtype)), "rem", 1.5),
    (lambda x: jnp.max(jnp.stack([0 * x - 3, x, 0 * x + 0.3])), "reduce_max", 0.3),
    (lambda x: jnp.min(jnp.stack([0 * x + 9, x, 0 * x + 0.3])), "reduce_min", 0.3),
    (lambda x: jnp.argmax(jnp.stack([0 * x - 3, 0 * x + 0.3, x])), "argmax", 0.3),
    (lambda x: jnp.argmin(jnp.stack([0 * x + 9, x, 0 * x + 0.3])), "argmin", 0.3),
    (lambda x: jnp.argsort(jnp.stack([0 * x + 9, x, 0 * x + 0.3])), "sort", 0.3),
    (lambda x: jnp.sort(jnp.stack([0 * x + 9, x, 0 * x + 0.3])), "sort", 0.3),
    (lambda x: lax.top_k(jnp.stack([0 * x + 9, x, 0 * x + 0.3, 0 * x]), 2)[1], "top_k", 0.3),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_margins_in_ulps(dtype):
    """Half of the predicates in one program; by turns they miss their thresholds by 0, 1, -1 or 5 floats."""
    turn = DTYPES.index(dtype)
    predicates = PREDICATES[turn % 2 :: 2]
    offsets = [(0, 1, -1, 5)[(i + turn) % 4] for i in range(len(predicates))]
    with jax.enable_x64(dtype == "float64"):
        at = jnp.asarray([away(t, k, dtype) for (_, _, t), k in zip(predicates, offsets)])
        assert at.dtype == dtype
        found = branch_margin(lambda at: [f(x) for (f, _, _), x in zip(predicates, at)])(at)
    expected = sorted((primitive, abs(k)) for (_, primitive, _), k in zip(predicates, offsets))
    assert sorted((m.primitive, m.margin) for m in found.margins) == expected
    assert all(m.dtype == dtype for m in found.margins)
    assert found.ok and found.smallest.margin == 0
    assert found.margins == tuple(sorted(found.margins, key=lambda m: m.margin))


def test_steps_count_floats():
    for dtype in (jnp.bfloat16, jnp.float16):
        bits = np.arange(2**16, dtype=np.uint16)
        finite = bits.view(jnp.dtype(dtype))
        with np.errstate(invalid="ignore"):
            numbers = finite.astype(np.float64)
        order = np.unique(numbers[np.isfinite(numbers)]).astype(jnp.dtype(dtype))  # 0 and -0 are one
        with jax.enable_x64(True):
            np.testing.assert_array_equal(_predicates.steps(jnp.asarray(order[1:]), jnp.asarray(order[:-1])), 1)
            total = _predicates.steps(jnp.asarray(order[0]), jnp.asarray(order[-1]))
            assert float(total) == len(order) - 1
            assert float(_predicates.steps(jnp.asarray(-0.0, dtype), jnp.asarray(0.0, dtype))) == 0
    with jax.enable_x64(True):
        huge = jnp.asarray(np.finfo(np.float64).max)
        assert float(_predicates.steps(-huge, huge)) == 2.0 * 0x7FEFFFFFFFFFFFFF


def test_sign_abs_and_relu_at_zero():
    x = jnp.asarray([0.0, 2.0, -3.0])
    for f, primitive in (
        (jnp.sign, "sign"),
        (jnp.abs, "abs"),
        (jax.nn.relu, "max"),
        (jnp.bool_, "convert_element_type"),
    ):
        (m,) = [m for m in branch_margin(lambda x, f=f: f(x))(x).margins if m.primitive in (primitive, "ne")]
        assert (m.margin, m.index, m.decisions) == (0, (0,), 3)


def test_where_there_is_no_threshold():
    x = jnp.asarray([2.0**24, -jnp.inf])
    for f in (jnp.floor, jnp.round, lambda x: x.astype(jnp.int32)):
        (m,) = branch_margin(f)(x).margins
        assert m.margin == np.inf and m.closest is None and m.index is None
    masked = branch_margin(jnp.argmax)(jnp.full(3, -jnp.inf)).smallest
    assert masked.margin == np.inf
    assert not branch_margin(lambda x: 2 * x)(x).margins
    assert branch_margin(lambda x: 2 * x)(x).smallest is None
    assert "0 predicates" in str(branch_margin(lambda x: 2 * x)(x))
    assert branch_margin(lambda x: x > 1)(jnp.zeros((0, 3))).margins == ()
    (single,) = branch_margin(jnp.argmax)(jnp.ones(1)).margins
    assert single.margin == np.inf


def test_nans_are_counted_and_left_out():
    x = jnp.asarray([jnp.nan, 3.0, 1 + 2**-22, jnp.nan])
    (m,) = branch_margin(lambda x: x > 1)(x).margins
    assert (m.margin, m.index, m.unknown, m.decisions, m.otherwise) == (2, (2,), 2, 4, 0)
    both = branch_margin(lambda x: (jnp.sort(x), x > 1, jnp.argmax(x)))(jnp.full(3, jnp.nan))
    assert all(np.isnan(m.margin) and m.closest is None for m in both.margins)
    assert "on NaN" in str(both)
    assert json.loads(both.to_json())["margins"][0]["margin"] == "nan"
    mixed = branch_margin(lambda x: (x[:2] > 1, x[2:] > 7))(jnp.asarray([jnp.nan, jnp.nan, 1.0, 2.0]))
    assert np.isnan(mixed.margins[-1].margin) and mixed.smallest.margin > 0


# ---- where float64 decides otherwise


def absorbed(x):
    """0 for |x| < 4 in float32, x in float64. The sum is not one that XLA simplifies."""
    return (x + lax.optimization_barrier(jnp.full_like(x, 1e8))) - 1e8


@pytest.mark.parametrize(
    ("f", "otherwise"),
    [
        (lambda y: y > 0, 2),
        (lambda y: y == 0, 4),
        (lambda y: jnp.maximum(y, 0), 4),
        (lambda y: jnp.clip(y, -9, 0), 4),
        (jnp.sign, 4),
        (lambda y: jnp.floor(y + 0.25), 3),  # 1, 2, -1 and -2 against 0
        (lambda y: (y + 0.25).astype(jnp.int32), 2),
        (lambda y: jnp.argmax(y), 1),
        (lambda y: jnp.argsort(y), 1),
        (lambda y: lax.top_k(y, 1)[1], 1),
        (lambda y: y > -100, 0),
    ],
)
def test_float64_decides_otherwise(f, otherwise):
    x = jnp.asarray([0.5, 1.25, -1.25, -0.5])

    def program(x):
        return f(absorbed(x))

    found = branch_margin(jax.jit(program))(x)
    worst = max(found.margins, key=lambda m: m.otherwise)
    assert worst.otherwise == otherwise
    assert found.ok == (otherwise == 0)
    if otherwise:
        assert worst.diverges and found.diverging
        assert worst.diverging.exact != worst.diverging.values
        assert worst.diverging.rounding >= 1
        assert "OTHERWISE" in str(found) and "NOT OK" in str(found)
    # Nothing of this is so in the same program on numbers that it does not lose.
    assert branch_margin(jax.jit(lambda x: f(1.0 * x)))(x + 9.0).ok


def test_the_difference_and_its_rounding_error():
    (m,) = branch_margin(lambda x: absorbed(x) > 0)(jnp.asarray([12.0])).margins  # 16 in float32
    assert m.values == (16, 0) and m.exact == (12, 0)
    assert m.closest.rounding == 0.25
    (m,) = branch_margin(lambda x: absorbed(x) > 0)(jnp.asarray([1.0])).margins
    assert m.margin == 0 and m.closest.rounding == np.inf


# ---- where it stands


def loop(x, xs):
    def step(total, y):
        total = total + y
        return jnp.where(total > 2.0, total, total), None

    return lax.scan(step, x, xs)[0]


def test_a_margin_inside_a_scan_names_its_step():
    xs = jnp.asarray([0.25, 0.5, 1.0, 2**-22, 1.0])  # 2 after the third, one ulp more after the fourth
    (m,) = branch_margin(loop)(jnp.float32(0.25), xs).margins
    assert (m.margin, m.iteration, m.values, m.decisions) == (0, (2,), (2, 2), 5)
    (m,) = branch_margin(loop)(jnp.float32(0.25), xs.at[2].add(2**-22)).margins
    assert (m.margin, m.iteration) == (1, (2,))
    assert (m.file, m.line, m.function) == (__file__, line_of(loop, "jnp.where"), "step")
    assert m.source == "return jnp.where(total > 2.0, total, total), None"
    reverse = branch_margin(lambda x: lax.scan(lambda c, y: (c, y > 2), 0, x, reverse=True)[1])
    (m,) = reverse(jnp.asarray([9.0, 2.0, 8.0])).margins
    assert m.iteration == (1,)


def test_nested_loops_and_examples():
    def f(x):
        def outer(c, i):
            def inner(c, j):
                return c + (x + 10.0 * i + j > 21.0), None

            return lax.scan(inner, c, jnp.arange(3.0))[0], None

        return lax.scan(outer, jnp.zeros(x.shape, int), jnp.arange(4.0))[0]

    (m,) = branch_margin(f)(jnp.asarray([-100.0, 0.0])).margins
    assert (m.margin, m.iteration, m.index, m.decisions) == (0, (2, 1), (1,), 24)
    (m,) = branch_margin(jax.vmap(f))(jnp.asarray([[-100.0], [0.0]])).margins
    assert (m.margin, m.iteration, m.index) == (0, (2, 1), (1, 0))


def test_in_a_while_loop():
    def f(x):
        return lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, jnp.where(s[1] > 8, s[1], 2 * s[1])), (0, x))[1]

    (m,) = branch_margin(f)(jnp.float32(1)).margins
    assert (m.margin, m.iteration, m.values) == (0, (3,), (8, 8))


def halved(x):
    return lax.while_loop(lambda s: s > 0.25, lambda s: s / 2, x)


def test_the_condition_of_a_while_loop():
    (m,) = branch_margin(halved)(jnp.float32(4)).margins
    assert (m.margin, m.iteration, m.values) == (0, (4,), (0.25, 0.25))  # the decision to stop
    assert (m.decisions, m.line) == (5, line_of(halved, "while_loop"))
    just_over = jnp.float32(4 * (1 + 2**-23))
    (m,) = branch_margin(halved)(just_over).margins
    assert (m.margin, m.iteration, m.decisions) == (1, (4,), 6)
    (m,) = branch_margin(halved)(jnp.float32(0.125)).margins  # never entered
    assert (m.iteration, m.decisions) == ((0,), 1)
    (m,) = branch_margin(jax.vmap(halved))(jnp.asarray([4.0, 3.0])).margins
    assert (m.margin, m.iteration, m.index) == (0, (4,), (0,))

    def f(x):
        return lax.scan(lambda c, _: (halved(c) * 3, None), x, length=3)[0]

    (m,) = branch_margin(f)(jnp.float32(4)).margins
    assert (m.margin, m.iteration) == (0, (0, 4))

    def of_a_lossy_value(x):
        return lax.while_loop(lambda s: absorbed(s) > 0, lambda s: s - 8, x)

    (m,) = branch_margin(of_a_lossy_value)(jnp.float32(17)).margins
    assert m.otherwise == 1 and m.diverging.iteration == (2,)


def test_branches_not_taken_have_no_record():
    def f(x):
        return lax.cond(x > 0, lambda x: jnp.floor(x), lambda x: jnp.ceil(x), x)

    found = branch_margin(f)(jnp.float32(2.0))
    assert [m.primitive for m in found.margins] == ["floor", "gt"]
    assert [m.primitive for m in found.unreached] == ["ceil"]
    assert "1 more did not run: ceil at test_branch_margin.py" in str(found)


def test_over_shards():
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
    f = jax.shard_map(lambda x: x > 3.0, mesh=mesh, in_specs=PartitionSpec("i"), out_specs=PartitionSpec("i"))
    (m,) = branch_margin(f)(jnp.arange(8.0)).margins
    assert (m.margin, m.decisions) == (0, 8)


# ---- what is looked at


def test_what_does_not_decide_is_left_out():
    x, key = jnp.ones(4), jax.random.key(0)
    assert not branch_margin(jax.nn.softmax)(x).margins  # its maximum does not matter
    assert [m.primitive for m in branch_margin(jax.nn.logsumexp)(x).margins] == ["abs"]  # of the sum, far from 0
    assert not branch_margin(lambda x: jnp.where(jnp.isnan(x), 0.0, x))(x).margins
    assert not branch_margin(lambda x, i: x[i])(x, 2).margins
    assert not branch_margin(lambda x, k: x * jax.random.bernoulli(k, 0.5, x.shape))(x, key).margins
    assert not branch_margin(lambda x: x * jnp.floor(jnp.float32(2.0)))(x).margins
    assert not branch_margin(lambda x: stability.log1mexp(-x))(x).margins
    used = branch_margin(lambda x: (jnp.max(x), x > 3)[1])(x)
    assert [m.primitive for m in used.margins] == ["gt"]
    # But these do.
    assert branch_margin(lambda x, k: x > jax.random.uniform(k, x.shape))(x, key).margins
    assert branch_margin(jnp.max)(x).smallest.margin == 0
    captured = jnp.asarray([2.0, 3.0])
    assert branch_margin(lambda: captured > 2)().smallest.margin == 0


def test_gradients_have_the_decisions_of_their_functions():
    def f(x):
        return jnp.sum(jnp.maximum(x, 1.0))

    found = branch_margin(jax.grad(f))(jnp.asarray([1.0, 5.0]))
    assert found.smallest.margin == 0 and found.smallest.line == line_of(f, "jnp.maximum")


def test_modules_and_keywords():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    assert branch_margin(lambda m, x: jax.nn.relu(m(x)))(model, jnp.zeros((1, 2))).smallest.margin == 0
    layer = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    assert len(branch_margin(lambda m, x: m(x))(layer, jnp.ones(2)).margins) == 1
    tree = branch_margin(lambda p, *, limit: {"over": p["a"] > limit, "name": "text"})(
        {"a": 2.0, "b": np.ones(2)}, limit=2.0
    )
    assert tree.smallest.margin == 0


def test_it_prints_and_is_stored():
    found = branch_margin(lambda x: (jnp.floor(x), x > 1))(jnp.asarray([1.0, 2.5]))
    text = str(found)
    assert "2 predicates" in text and "0 ulp   " in text and "1 against 1 at [0]" in text
    assert found.scalars()["smallest"] == 0 and found.scalars()["decisions"] == 4
    assert jax.tree.map(lambda x: x, found) == found
    assert json.loads(found.to_json())["ok"] is True


def test_the_mode_of_the_caller_is_kept():
    with jax.numpy_dtype_promotion("strict"):
        assert branch_margin(lambda x: (jnp.argmax(x), jnp.round(x), lax.rem(x, x)))(jnp.ones(3)).margins
    assert not jax.config.jax_enable_x64
    with jax.enable_x64(True):
        x = jnp.asarray([jnp.nan, 1 + 2**-52])
        with jax.debug_nans(True):
            (m,) = branch_margin(lambda x: x > 1)(x).margins
    assert (m.margin, m.dtype) == (1, "float64")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: branch_margin(3), "`f` must be a function; got int"),
        (lambda: branch_margin(lambda x: 1 if x > 0 else 2)(1.0), "cannot be traced"),
        (lambda: branch_margin(lambda x: x)(), "missing 1 required positional argument"),
        (lambda: jax.jit(branch_margin(jnp.floor))(1.0), "called on traced arrays"),
        (lambda: branch_margin(lambda x: jax.new_ref(x)[...] > 1)(jnp.ones(2)), "uses a mutable array"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_keys_of_a_sort_decide_one_after_the_other():
    ties = branch_margin(lambda i, b: jnp.lexsort((b, i)))(
        jnp.array([1, 1, 2]), jnp.array([1.0, away(1, 2, "float32"), 1.0])
    )
    assert [m.margin for m in ties.margins] == [2]
    apart = branch_margin(lambda a, b: jnp.lexsort((b, a)))(
        jnp.array([1.0, 1.0, away(1, 3, "float32")]), jnp.array([5.0, away(5, 7, "float32"), 1.0])
    )
    assert [(m.margin, m.decisions) for m in apart.margins] == [(3, 2)]
    exact = branch_margin(lambda i, b: jnp.lexsort((b, i)))(jnp.array([1, 3, 2]), jnp.ones(3))
    assert [m.margin for m in exact.margins] == [np.inf]
    narrow = branch_margin(lambda a, b: lax.sort((a, b), num_keys=2))(
        jnp.ones(2, jnp.float16), jnp.array([1.0, away(1, 2, "float32")])
    )
    assert [m.margin for m in narrow.margins] == [2]
