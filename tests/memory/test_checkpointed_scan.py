"""`checkpointed_scan` beside `jax.lax.scan`: same values and bits, every derivative, a bounded memory."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from robustad.diagnosis import audit
from robustad.memory import _binomial, _step, checkpointed_scan, revolve_schedule
from robustad.memory._loop import Plan
from tests.memory._loops import PLANS, equal_bits, normal, operands, recurrent_loss, with_plan, worst


def smooth(scan, w, h, xs):
    def body(carry, x):
        h, i = carry
        h = jnp.tanh(w @ h + x)
        return (h, i + 1), h * x

    (h, _), ys = scan(body, (h, 0), xs)
    return jnp.sum(h**2) + jnp.sum(ys**3)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_value_gradient_and_results_have_the_bits_of_scan(plan, monkeypatch):
    with_plan(monkeypatch, plan)
    args = operands(11)[:3]
    got, plain = (
        jax.jit(jax.value_and_grad(functools.partial(smooth, scan), (0, 1, 2)))(*args)
        for scan in (checkpointed_scan, lax.scan)
    )
    equal_bits(got, plain)


def test_random_numbers_integers_and_booleans_in_the_carry(monkeypatch):
    with_plan(monkeypatch, Plan(4, 3))
    args = operands(11)
    got, plain = (
        jax.jit(jax.value_and_grad(recurrent_loss(scan), (0, 1, 2), has_aux=True))(*args)
        for scan in (checkpointed_scan, lax.scan)
    )
    equal_bits(got[0][1], plain[0][1])
    equal_bits(got, plain)


@pytest.mark.parametrize("plan", [Plan(1, 3), Plan(4, 3), Plan(3, 2, True)], ids=str)
def test_error_against_float64_is_that_of_scan(plan, monkeypatch):
    with_plan(monkeypatch, plan)

    def loss(scan, weights, h):
        return jnp.sum(scan(lambda c, _: (jnp.sin(weights @ c) + c, None), h, None, 60)[0] ** 2)

    weights, h = normal(0, 6, 6), normal(1, 6)
    got = jax.jit(jax.grad(functools.partial(loss, checkpointed_scan), (0, 1)))(weights, h)
    plain = jax.jit(jax.grad(functools.partial(loss, lax.scan), (0, 1)))(weights, h)
    with jax.enable_x64(True):
        wide = (jnp.asarray(np.asarray(weights), jnp.float64), jnp.asarray(np.asarray(h), jnp.float64))
        truth = jax.tree.map(np.asarray, jax.jit(jax.grad(functools.partial(loss, lax.scan), (0, 1)))(*wide))
        wide_got = jax.jit(jax.grad(functools.partial(loss, checkpointed_scan), (0, 1)))(*wide)
        assert wide_got[0].dtype == jnp.float64 and worst(wide_got, truth) < 1e-9
    assert worst(plain, truth) > 1e-8  # rounding shows
    assert worst(got, truth) <= 2 * worst(plain, truth)


def derivatives(f, w, h, xs):
    """By name, further derivatives of `f(weights, h, xs)`."""

    def total(tree):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(tree))

    gradient = jax.grad(f, (0, 1, 2))
    args = (w, h, xs)
    batch = jnp.stack([xs, xs + 1, -xs])
    return {
        "jvp": lambda: jax.jvp(f, args, args),
        "jvp of some": lambda: jax.jvp(lambda h: f(w, h, xs), (h,), (h,)),
        "forward over reverse": lambda: jax.jvp(gradient, args, args),
        "reverse over reverse": lambda: jax.grad(lambda *a: total(gradient(*a)), (0, 1, 2))(*args),
        "reverse over forward": lambda: jax.grad(lambda *a: jax.jvp(f, a, args)[1], (0, 1, 2))(*args),
        "linearize": lambda: jax.linearize(lambda w: f(w, h, xs), w)[1](w),
        "hessian": lambda: jax.hessian(lambda h: f(w, h, xs))(h),
        "jacobian of gradient": lambda: jax.jacrev(jax.grad(lambda h: f(w, h, xs)))(h),
        "third": lambda: jax.grad(lambda h: total(jax.grad(lambda h: total(jax.grad(f, 1)(w, h, xs)))(h)))(h),
        "gradient of vmap": lambda: jax.grad(lambda w: jnp.sum(jax.vmap(lambda x: f(w, h, x))(batch)))(w),
        "vmap of gradient": lambda: jax.vmap(lambda x: gradient(w, h, x))(batch),
        "vmap of hessian": lambda: jax.vmap(lambda x: jax.hessian(lambda h: f(w, h, x))(h))(batch),
        "gradient of vmap of gradient": lambda: jax.grad(
            lambda w: total(jax.vmap(lambda x: gradient(w, h, x)[0])(batch))
        )(w),
        "under remat": lambda: jax.grad(jax.checkpoint(f), (0, 1, 2))(*args),
        "in a scan": lambda: jax.grad(lambda w: lax.scan(lambda c, x: (c + f(w * c, h, x) / 9, None), 1.0, batch)[0])(
            w
        ),
        "in a cond": lambda: jax.grad(lambda w: lax.cond(w[0, 0] < 9, lambda w: f(w, h, xs), jnp.sum, w))(w),
    }


NAMES = list(derivatives(lambda *a: 0.0, *operands(7)[:3]))


@pytest.mark.parametrize("name", NAMES)
def test_further_derivatives(name, monkeypatch):
    with_plan(monkeypatch, Plan(2, 2))
    args = operands(7, 2)[:3]
    got, plain = (
        jax.jit(derivatives(functools.partial(smooth, scan), *args)[name])() for scan in (checkpointed_scan, lax.scan)
    )
    assert worst(got, plain) < 3e-6


def test_options_of_scan(monkeypatch):
    with_plan(monkeypatch, Plan(3, 2))
    args = operands(7)[:3]
    got, plain = (
        jax.jit(jax.grad(functools.partial(smooth, functools.partial(scan, reverse=True, unroll=2)), (0, 1, 2)))(*args)
        for scan in (checkpointed_scan, lax.scan)
    )
    assert worst(got, plain) < 1e-6


@pytest.mark.parametrize("n", [0, 1])
def test_no_steps_and_one(n):
    args = operands(n)
    got, plain = (
        jax.value_and_grad(recurrent_loss(scan), (0, 1, 2), has_aux=True)(*args)
        for scan in (checkpointed_scan, lax.scan)
    )
    equal_bits(got, plain)


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map(check_vma, monkeypatch):
    with_plan(monkeypatch, Plan(2, 2))
    w, h, xs, _ = operands(5, 2)
    batch = jnp.stack([xs, xs + 1, -xs, 2 * xs])
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def local(scan, w, xs):
        start = lax.pcast(h, ("data",), to="varying") if check_vma else h
        return lax.pmean(smooth(scan, w, start, xs[0]), "data")

    def gradient(scan):
        mapped = jax.shard_map(
            functools.partial(local, scan), mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma
        )
        return jax.jit(jax.value_and_grad(mapped))(w, batch)

    assert worst(gradient(checkpointed_scan), gradient(lax.scan)) < 1e-6


def test_collectives_in_the_body(monkeypatch):
    with_plan(monkeypatch, Plan(2, 2))

    def loss(scan, w, x):
        def body(c, _):
            return jnp.tanh(w @ c + lax.pmean(c, "data") + lax.axis_index("data")), None

        return jnp.sum(scan(body, x, None, 5)[0] ** 2)

    w, x = normal(0, 2, 2), normal(1, 4, 2)

    def gradients(scan):
        one = functools.partial(loss, scan)
        inside = jax.vmap(jax.grad(one, (0, 1)), (None, 0), axis_name="data")
        outside = jax.grad(lambda w: jnp.sum(jax.vmap(one, (None, 0), axis_name="data")(w, x)))
        return inside(w, x), outside(w)

    def sharded(scan):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        local = jax.shard_map(
            lambda w, x: lax.psum(loss(scan, w, x[0]), "data"), mesh=mesh, in_specs=(P(), P("data")), out_specs=P()
        )
        return jax.grad(local, (0, 1))(w, x)

    for case in (gradients, sharded):
        got, plain = (jax.jit(functools.partial(case, scan))() for scan in (checkpointed_scan, lax.scan))
        assert worst(got, plain) < 1e-6


def test_audit_sees_what_it_sees_in_scan():
    def loss(scan, x):
        return scan(lambda c, _: (jnp.sqrt(c * c + x) - c, None), x, None, 6)[0]

    got, plain = (
        audit(functools.partial(loss, functools.partial(scan, **options)))(300.0)
        for scan, options in ((checkpointed_scan, {"checkpoints": 2}), (lax.scan, {}))
    )
    assert got.bits_lost > 0 and abs(got.bits_lost - plain.bits_lost) < 3  # programs round differently
    assert "shadow-lost" not in {note.kind for note in (*got.notes, *got.findings)}


def test_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        start = normal(0, 3), jnp.int32(0)
        loop = functools.partial(checkpointed_scan, checkpoints=2)
        assert jax.grad(
            lambda h: loop(lambda c, x: ((jnp.sin(c[0]), c[1] + 1), x), (h, start[1]), None, 5)[0][0].sum()
        )(start[0]).shape == (3,)


def test_narrow_state_and_types_are_those_of_scan():
    def loss(scan, h):
        def body(carry, x):
            total, h = carry
            h = jnp.tanh(h * x)
            return (total + h.sum(), h), h

        (total, _), ys = scan(body, (0.0, h), jnp.ones(9, jnp.bfloat16))  # a weakly typed initial value
        assert total.dtype == ys.dtype == jnp.bfloat16
        return total

    h = normal(0, 4, dtype=jnp.bfloat16)
    equal_bits(*(jax.jit(jax.grad(functools.partial(loss, scan)))(h) for scan in (checkpointed_scan, lax.scan)))


# ------------------------------------------------------------------------------------------------------------- memory

WIDTH = 4096


def temporaries(n: int, **options) -> float:
    """Of a gradient, in states."""

    def loss(h, rate):
        return jnp.sum(checkpointed_scan(lambda c, _: (jnp.sin(rate * c), None), h, None, n, **options)[0])

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(jnp.ones(WIDTH), 1.1).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (4 * WIDTH)


@pytest.mark.parametrize("checkpoints", [1, 6, 40])
def test_no_more_states_than_checkpoints(checkpoints):
    for n in (1000, 20_000):
        assert temporaries(n, checkpoints=checkpoints) <= 1.15 * checkpoints + 8


def test_budget_in_bytes():
    states = 20
    for budget in (states * 4 * WIDTH, f"{states * 4 * WIDTH / 1024}KiB"):
        assert temporaries(5000, budget=budget) <= 1.15 * states + 8


def test_default_is_far_below_scan():
    assert temporaries(1000) < 60 < 1000 < temporaries(1000, checkpoints=10**6)


def test_program_does_not_grow_with_the_number_of_steps():
    def size(n):
        def loss(h):
            return jnp.sum(checkpointed_scan(lambda c, _: (jnp.sin(c), None), h, None, n, checkpoints=10)[0])

        return len(jax.jit(jax.grad(loss)).lower(jnp.ones(3)).as_text())

    assert size(100_001) < 1.3 * size(101)


@pytest.mark.parametrize("n, checkpoints", [(50, 3), (200, 9)])
def test_steps_are_computed_as_often_as_the_schedule_says(n, checkpoints, monkeypatch):
    """Counted on the way by a callback that the refusal of effects is not told of."""
    with_plan(monkeypatch, Plan(1, checkpoints))
    monkeypatch.setattr(_step, "refuse_effects", lambda *_: None)
    calls = []

    def body(c, _):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sin(c), None

    jax.block_until_ready(jax.jit(jax.grad(lambda c: checkpointed_scan(body, c, None, n)[0]))(0.5))
    jax.effects_barrier()
    # Each reversal computes its step. The forward pass makes the last step too, and does not keep the state before it.
    actions = revolve_schedule(n, checkpoints).actions
    *_, last = (a.step for a in itertools.takewhile(lambda a: a.kind != "reverse", actions) if a.kind == "store")
    assert len(calls) == _binomial.advances(n, checkpoints) + n + 1 + (n - 1 - last)


# ---------------------------------------------------------------------------------------------------------- refusals


def step(c, x):
    return c, x


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((step, 0.0, jnp.ones(3)), {"checkpoints": 0}, ValueError, "`checkpoints` must be an integer from 1 up; got 0"),
        ((step, 0.0, jnp.ones(3)), {"checkpoints": 1.5}, TypeError, "`checkpoints` must be an integer; got 1.5"),
        (
            (step, jnp.ones(9), jnp.ones(3)),
            {"budget": 35},
            ValueError,
            "at least one state of the loop, 36 B; got 35 B",
        ),
        ((step, 0.0, jnp.ones(3)), {"budget": "2GX"}, ValueError, "`GX` is no unit"),
        ((step, 0.0, jnp.ones(3)), {"budget": "-2GB"}, ValueError, "`budget`"),
        ((step, 0.0, jnp.ones(3)), {"budget": 0}, ValueError, "above 0"),
        ((step, 0.0, jnp.ones(3)), {"budget": True}, TypeError, "expected a number of bytes"),
        ((step, 0.0, jnp.ones(3)), {"budget": 9, "checkpoints": 2}, ValueError, "give one of them"),
        ((step, 0.0, None), {}, ValueError, "needs `xs` or `length`"),
        ((step, 0.0, jnp.ones(3)), {"length": 4}, ValueError, "disagree on the number of steps: length 4, xs 3"),
        ((step, 0.0, (jnp.ones(3), jnp.ones(2))), {}, ValueError, r"xs\[0\] 3, xs\[1\] 2"),
        ((step, 0.0, jnp.float32(3)), {}, ValueError, "xs is a scalar"),
        ((step, 0.0, None), {"length": -1}, ValueError, "`length` must be an integer from 0 up"),
        ((step, {"f": jnp.sin}, jnp.ones(3)), {}, TypeError, r"init\['f'\] is of type"),
        ((lambda c, x: c, 0.0, jnp.ones(3)), {}, TypeError, r"must return a pair \(carry, y\)"),
        ((None, 0.0, jnp.ones(3)), {}, TypeError, "`body` is None of type NoneType; expected a function"),
        ((lambda c, x: (c, {"a": "b"}), 0.0, jnp.ones(3)), {}, TypeError, r"`y` of .*; y\['a'\] is of type str"),
        ((step, 0.0, None, 0), {"checkpoints": 0}, ValueError, "from 1 up; got 0"),
        ((step, 0.0, None, 0), {"budget": "x"}, ValueError, "a number and a unit"),
        ((step, 0.0, None, 0), {"tier": "disk"}, TypeError, "must be a DiskTier"),
        ((lambda c, x: ((c, c), x), 0.0, jnp.ones(3)), {}, TypeError, "carry of the structure"),
        (
            (lambda c, x: (c.astype(jnp.int8), x), jnp.ones(2), jnp.ones(3)),
            {},
            TypeError,
            "takes float32.2., returns int8",
        ),
        ((lambda c, x: (c[:1], x), jnp.ones(2), jnp.ones(3)), {}, TypeError, "takes float32.2., returns float32.1."),
    ],
)
def test_refusals(arguments, options, error, message):
    with pytest.raises(error, match=message):
        checkpointed_scan(*arguments, **options)


def test_refuses_effects():
    def body(c, x):
        jax.debug.print("{}", c)
        return c, x

    with pytest.raises(ValueError, match=r"has effects: .*computed more than once"):
        jax.jit(lambda x: checkpointed_scan(body, 0.0, x))(jnp.ones(3))


def test_traced_checkpoints_are_refused():
    with pytest.raises(TypeError, match="known when the program is traced"):
        jax.jit(lambda n: checkpointed_scan(step, 0.0, jnp.ones(3), checkpoints=n))(2)


def test_a_second_call_does_not_trace_again():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def gradient(h):
        return jax.grad(lambda h: checkpointed_scan(lambda c, _: (jnp.sin(c), None), h, None, 30, checkpoints=3)[0])(h)

    chex.clear_trace_counter()
    assert gradient(0.5) == gradient(0.5)


def test_plain_scan_would_not_do():
    """The bound on memory is not met by the plain scan."""

    def loss(h):
        return jnp.sum(lax.scan(lambda c, _: (jnp.sin(c), None), h, None, 1000)[0])

    compiled = jax.jit(jax.grad(loss)).lower(jnp.ones(WIDTH)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes > 900 * 4 * WIDTH


def test_the_wave_of_the_readme():
    """Its temporaries, its budget and its bits, beside the plain scan's."""

    def gradient(scan, **limits):
        def energy(speed):
            def step(state, _):
                u, v = state
                v = v + 0.1 * speed * (jnp.roll(u, 1) + jnp.roll(u, -1) - 2 * u)
                return (u + 0.1 * v, v), None

            start = jnp.exp(-(jnp.linspace(-4, 4, 4096) ** 2)), jnp.zeros(4096)
            (_, v), _ = scan(step, start, None, 10_000, **limits)
            return jnp.mean(v**2)

        return jax.jit(jax.grad(energy)).lower(jnp.ones(4096)).compile()

    ours, plain = gradient(checkpointed_scan, budget="2MiB"), gradient(jax.lax.scan)
    assert ours.memory_analysis().temp_size_in_bytes < 2.2 * 2**20
    assert plain.memory_analysis().temp_size_in_bytes > 150 * 2**20
    np.testing.assert_array_equal(ours(jnp.ones(4096)), plain(jnp.ones(4096)))
