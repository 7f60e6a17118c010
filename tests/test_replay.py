"""Arguments on disk: they come back as they were, and a replayed audit says the same."""

import json
from collections import OrderedDict, namedtuple
from pathlib import Path

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad import _target
from robustad.cli import main
from robustad.diagnosis import save_arguments

MODEL = """\
import jax
import jax.numpy as jnp


def loss(params, key, *, layers):
    noise = 1 + jax.random.uniform(key).astype(jnp.bfloat16)
    shift = layers[0]["w"] * layers[1][0]
    return jnp.sum(params["enc"]["W"] * noise) + jnp.log(1 + jnp.float32(1e-4) * shift * params["c"]).sum()


def first(params, other=None):
    return loss(params, jax.random.key(3, impl="rbg"), layers=[{"w": jnp.float32(1)}, (2.0, None, "text")])


def example_args():
    return ({"enc": {"W": jnp.array([1.5, 2], jnp.bfloat16)}, "c": jnp.array([1e-3, 1], jnp.float32)},)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "replayed.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def anything(params, *more, option=1, file=None, **rest):
    return params, more, option, file, rest


def again(*args, **kwargs):
    save_arguments("call.npz", anything, *args, **kwargs)
    given, named = _target.from_npz(Path("call.npz"), anything)
    return anything(*given, **named)


KEYS = jax.random.split(jax.random.key(7), 3)


@pytest.mark.parametrize(
    "x",
    [
        jnp.array([1.5, -0.0, jnp.nan, jnp.inf], jnp.bfloat16),
        jnp.array([[1, 2]], jnp.float8_e4m3fn),
        jnp.array([1, -2], jnp.int4),
        jnp.float16(3),
        jnp.array([1 + 2j]),
        np.arange(3, dtype=np.float64),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.float64(0.1),
        np.zeros((0, 2), np.int8),
        jnp.array([True, False]),
    ],
    ids=lambda x: f"{x.dtype}-{x.shape}",
)
def test_arrays_come_back_bit_for_bit(x):
    back = again({"a": [x, (x,)]})[0]["a"]
    for y in (back[0], back[1][0]):
        assert isinstance(y, jax.Array) == isinstance(x, jax.Array)
        assert (y.dtype, y.shape) == (x.dtype, x.shape)
        assert np.asarray(y).tobytes() == np.asarray(x).tobytes()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys(impl: str):
    key = jax.random.split(jax.random.key(7, impl=impl), 3)
    back = again(key, option=jax.random.PRNGKey(1))
    assert back[0].dtype == key.dtype
    chex.assert_trees_all_equal(jax.random.uniform(back[0][1]), jax.random.uniform(key[1]))
    assert back[2].dtype == jnp.uint32


def test_python_values_and_nesting():
    x = {"l": [1, 2.5, True, None, "é"], "t": ((), [], {}), 3: 1 + 2j, "nan": float("inf"), "a/b": 1}
    back = again(x, x["l"], (1,), option=[{}], file="f", further=2)
    assert back == (x, (x["l"], (1,)), [{}], "f", {"further": 2})
    assert [type(v) for v in back[0]["l"]] == [int, float, bool, type(None), str]
    assert again(OrderedDict(a=1))[0] == {"a": 1}
    assert again(jnp.asarray(2.0))[0].weak_type  # bf16 times it stays bf16
    assert not again(jnp.float32(2.0))[0].weak_type


def test_the_layout_is_that_of_plain_npz():
    save_arguments("call.npz", anything, {"enc": {"W": jnp.ones(2)}, "l": [jnp.zeros(1)]})
    with np.load("call.npz") as held:
        assert {"params/enc/W", "params/l/0"} < set(held)
        np.savez("plain.npz", **{k: held[k] for k in ("params/enc/W",)})
    given, _ = _target.from_npz(Path("plain.npz"), anything)
    np.testing.assert_array_equal(given[0]["enc"]["W"], np.ones(2))


def test_a_replayed_audit_says_the_same(capsys: pytest.CaptureFixture[str]):
    code = main(["audit", "replayed.py:first", "--json", "--save", "call.npz"])
    out, err = capsys.readouterr()
    assert "wrote call.npz" in err
    assert code in (0, 1)
    assert main(["audit", "replayed.py:first", "--json", "--npz", "call.npz", "--save", "twice.npz"]) == code
    replayed = json.loads(capsys.readouterr().out)
    assert replayed | {"seconds": 0} == json.loads(out) | {"seconds": 0}
    assert replayed["leaves"]["enc/W"]["dtype"] == "bfloat16"
    assert Path("call.npz").read_bytes()[:4] == Path("twice.npz").read_bytes()[:4] == b"PK\x03\x04"


Point = namedtuple("Point", "x y")


class Stage(eqx.Module):
    w: jax.Array


@pytest.mark.parametrize(
    ("x", "said"),
    [
        ({"a": [Point(1, 2)]}, ["`params/a/0`", "Point", "dict of its arrays"]),
        (Stage(jnp.ones(2)), ["`params`", "Stage"]),
        ({"f": jnp.sin}, ["`params/f`"]),
        (np.array(["text"]), ["`params`", "<U4", "not of numbers"]),
        (np.array([{}], object), ["`params`", "object"]),
        ({(1, 2): 1}, ["`params`", "(1, 2)", "tuple"]),
        ({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, ["`params/a/b`", "two leaves"]),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(x, said: list[str]):
    with pytest.raises(ValueError) as error:
        save_arguments("call.npz", anything, x)
    assert all(words in str(error.value) for words in said)
    assert not Path("call.npz").exists()


def test_other_refusals(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="do not fit `anything`: missing a required argument: 'params'"):
        save_arguments("call.npz", anything)
    with pytest.raises(ValueError, match=r"`params` is a tracer"):
        jax.jit(lambda x: save_arguments("call.npz", anything, x))(1.0)
    for option in ("--save", "--html"):
        assert main(["audit", "replayed.py:first", option, "nowhere/x"]) == 2
        assert "no directory nowhere" in capsys.readouterr().err
    save_arguments("call.npz", anything, jnp.ones(2))
    with np.load("call.npz") as held:
        np.savez("cut.npz", __robustad__=held["__robustad__"])
    with pytest.raises(_target.CommandError, match="changed since"):
        _target.from_npz(Path("cut.npz"), anything)
