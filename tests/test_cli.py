"""The command line: exit codes, where the arguments come from, and what it says to bad input."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import robustad
from robustad.cli import main

MODEL = """\
import jax.numpy as jnp
from model_layers import soft

print("the model speaks")
POINT = (jnp.array([1.0, 2.0, 3.0]), jnp.ones(3))
NUMBER = 3


def loss(params, batch):
    return -jnp.sum(soft(params) * batch)


def faulty(params, batch):
    return -jnp.log(jnp.sum(jnp.exp(-100 * params) * batch))


def nested(params, scale=2.0):
    return scale * jnp.sum(params["enc"]["W"] ** 2)


def keywords(params, /, *, batch):
    return jnp.sum(params * batch)


def with_aux(params, batch):
    return jnp.sum(params * batch), "aux"


def vector(params, batch):
    return params * batch


def counts(params, batch):
    return jnp.argmax(params)


def untraceable(params, batch):
    raise ValueError("no such [bold]luck[/bold]")


def example_args():
    return POINT


def single():
    return {"enc": {"W": jnp.ones(2)}}


def raising():
    return 1 / 0


def nothing():
    return None


def poisoned():
    return jnp.array([1.0, jnp.nan, 3.0]), jnp.ones(3)
"""
LAYERS = """\
import jax


def soft(z):
    return jax.nn.log_softmax(z)
"""


def line(text: str) -> int:
    """The line of the model that holds a text."""
    return 1 + MODEL[: MODEL.index(text)].count("\n")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model that imports a sibling, and with broken files."""
    contents = {
        "model.py": MODEL,
        "model_layers.py": LAYERS,
        "no_args.py": "def loss(weights, images):\n    return weights\n",
        "syntax.py": "x = 1\ndef loss(:\n",
        "imports.py": "import os\nimport robustad_has_no_such_module\n",
        "raises.py": "def inner():\n    raise RuntimeError('broken')\n\n\ninner()\n",
        "exits.py": "raise SystemExit(0)\n",
        "notes.txt": "",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "package.py").mkdir()
    (tmp_path / "package.py" / "json.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "model_layers", raising=False)
    return tmp_path


def strictly(text: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def run(*argv: str, module: str = "robustad.cli") -> subprocess.CompletedProcess[str]:
    root = str(Path(robustad.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-m", module, *argv], capture_output=True, text=True, env=environment)


# ---- verdicts


def test_a_good_gradient_exits_with_0(capsys: pytest.CaptureFixture[str]):
    assert main(["audit", "model.py:loss"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("audit loss   f32 against f64")
    assert "OK" in out and "NOT OK" not in out
    assert err == "the model speaks\n"  # standard output holds the report alone


def test_a_bad_gradient_exits_with_1_and_its_json_is_strict(capsys: pytest.CaptureFixture[str], files: Path):
    assert main(["audit", "model.py:faulty", "--json"]) == 1
    report = strictly(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["value"] == "inf"
    (finding,) = report["findings"]
    assert finding["file"] == str(files / "model.py")
    assert finding["line"] == line("jnp.log(")
    assert finding["kind"] == "underflow"


def test_the_threshold_and_the_notes_reach_the_audit(capsys: pytest.CaptureFixture[str]):
    assert main(["audit", "model.py:loss", "--threshold", "0.25", "--all", "--json"]) == 0
    assert strictly(capsys.readouterr().out)["threshold"] == 0.25


def test_a_file_by_its_whole_path_imports_its_siblings(files: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir("/")
    before = list(sys.path)
    assert main(["audit", f"{files / 'model.py'}:loss"]) == 0
    assert sys.path == before
    assert "model" not in sys.modules


# ---- where the arguments come from


@pytest.mark.parametrize(
    ("options", "leaves"),
    [
        (["model.py:loss", "--args", "POINT"], ["params"]),
        (["model.py:loss", "--args", "example_args", "--argnums", "1"], ["batch"]),
        (["model.py:loss", "--argnums", "0", "1"], ["params", "batch"]),
        (["--argnums", "-2", "--json", "model.py:loss"], ["params"]),
        (["model.py:nested", "--args", "single"], ["enc/W"]),
        (["model.py:with_aux", "--has-aux"], ["params"]),
    ],
)
def test_arguments_from_the_file(capsys: pytest.CaptureFixture[str], options: list[str], leaves: list[str]):
    assert main(["audit", *options, *([] if "--json" in options else ["--json"])]) == 0
    assert list(strictly(capsys.readouterr().out)["leaves"]) == leaves


def test_arguments_from_an_npz_are_those_of_the_file(capsys: pytest.CaptureFixture[str]):
    np.savez("point.npz", batch=np.ones(3, np.float32), params=np.array([1, 2, 3], np.float32))
    assert main(["audit", "model.py:loss", "--json"]) == 0
    expected = strictly(capsys.readouterr().out)
    assert main(["audit", "model.py:loss", "--npz", "point.npz", "--json"]) == 0
    got = strictly(capsys.readouterr().out)
    assert got | {"seconds": 0} == expected | {"seconds": 0}


@pytest.mark.parametrize(
    ("name", "arrays", "value"),
    [
        ("nested", {"params/enc/W": np.ones(2, np.float32)}, 4.0),
        ("nested", {"params/enc/W": np.ones(2, np.float32), "scale": np.float32(5)}, 10.0),
        ("keywords", {"batch": np.ones(3, np.float32), "params": np.ones(3, np.float32)}, 3.0),
    ],
)
def test_arguments_from_an_npz(capsys: pytest.CaptureFixture[str], name: str, arrays: dict, value: float):
    np.savez("point.npz", **arrays)
    assert main(["audit", f"model.py:{name}", "--npz", "point.npz", "--json"]) == 0
    assert strictly(capsys.readouterr().out)["value"] == value


# ---- bad input: what was got, what to do, exit code 2, and nothing on standard output


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("model.py", ["`model.py`", "FILE.py:function"]),
        ("model.py:", ["`model.py:`", "FILE.py:function"]),
        ("modell.py:loss", ["modell.py does not exist", "Did you mean model.py?"]),
        ("notes.txt:loss", ["notes.txt is not a .py file"]),
        ("package.py:loss", ["package.py is a directory"]),
        ("model.py:los", ["has no `los`", "Did you mean `loss`?", "`faulty`"]),
        ("model.py:NUMBER", ["`NUMBER`", "cannot be called", "int"]),
        ("no_args.py:loss", ["no `example_args`", "def example_args():", "return weights, images", "--npz"]),
        ("model.py:loss --args nowhere", ["no `nowhere`", "--args"]),
        (
            "model.py:loss --args raising",
            ["`raising()`", "ZeroDivisionError", f"model.py:{line('1 / 0')}: return 1 / 0"],
        ),
        ("model.py:loss --args nothing", ["`nothing`", "None", "params, batch"]),
        ("model.py:loss --args single", ["missing 1 required positional argument: 'batch'"]),
        ("model.py:loss --args NUMBER", ["nothing to differentiate"]),
        ("model.py:loss --args poisoned", ["the inputs hold NaN", "`params`"]),
        ("model.py:vector", ["must return a scalar", "float32[3]"]),
        ("model.py:counts", ["real floating scalar", "int32"]),
        ("model.py:with_aux", ["has_aux=True"]),
        ("model.py:untraceable", ["no such [bold]luck[/bold]", f"model.py:{line('raise')}: raise ValueError"]),
        ("model.py:loss --argnums 7", ["`argnums`=7", "2 positional arguments"]),
        ("model.py:loss --argnums", ["`argnums`", "non-empty"]),
        ("model.py:loss --threshold 2", ["`threshold`", "2.0"]),
        ("model.py:loss --args POINT --npz a.npz", ["--args POINT", "--npz a.npz"]),
        ("syntax.py:loss", ["SyntaxError", "syntax.py:2: def loss(:"]),
        ("imports.py:loss", ["ModuleNotFoundError", "imports.py:2: import robustad_has_no_such_module"]),
        ("raises.py:loss", ["RuntimeError: broken", "raises.py:2: raise"]),
        ("exits.py:loss", ["SystemExit", "exits.py:1"]),
        ("package.py/json.py:loss", ["name of a module in use", "rename"]),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], argv: str, said: list[str]):
    refused(capsys, argv.split(), said)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"parms": np.ones(3), "batch": np.ones(3)}, ["`parms`", "does not take", "`params`, `batch`"]),
        ({"params": np.ones(3)}, ["lacks `batch`", "holds `params`"]),
        ({"params": np.ones(3), "params/W": np.ones(3)}, ["clashes"]),
        ({"params/W": np.ones(3), "params": np.ones(3)}, ["clashes"]),
        ({"params": np.array([{}], object)}, ["plain arrays"]),
        ({"params": np.array(["text"])}, ["`params`", "<U4", "not numbers"]),
    ],
)
def test_bad_arrays(capsys: pytest.CaptureFixture[str], arrays: dict, said: list[str]):
    np.savez("bad.npz", **arrays)
    refused(capsys, ["model.py:loss", "--npz", "bad.npz"], ["bad.npz", *said])


@pytest.mark.parametrize(
    ("name", "said"), [("none.npz", "does not exist"), ("a.npy", "not an .npz"), ("notes.txt", "not an .npz")]
)
def test_bad_archives(capsys: pytest.CaptureFixture[str], name: str, said: str):
    np.save("a.npy", np.ones(3))
    refused(capsys, ["model.py:loss", "--npz", name], [f"{name}", said])


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], said: list[str]) -> None:
    assert main(["audit", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "robustad: " in err
    assert "Traceback" not in err
    for words in said:
        assert words in err


@pytest.mark.parametrize(
    "argv", [[], ["no-such-command"], ["audit"], ["audit", "model.py:loss", "--threshold", "much"]]
)
def test_a_command_line_that_does_not_parse(capsys: pytest.CaptureFixture[str], argv: list[str]):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err


def test_the_traceback_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]):
    assert main(["audit", "model.py:loss", "--args", "raising", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    assert "audit" in capsys.readouterr().out


# ---- around the commands


def test_verbose_tells_the_steps_and_leaves_the_log_as_it_was(capsys: pytest.CaptureFixture[str]):
    log = logging.getLogger("robustad")
    before = log.level, list(log.handlers)
    assert main(["audit", "model.py:loss", "--verbose"]) == 0
    err = capsys.readouterr().err
    assert "importing model.py" in err
    assert "tracing the gradient" in err
    assert (log.level, log.handlers) == before


@pytest.mark.parametrize("absent", ["tyro", "rich"])
def test_without_its_extra_it_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, absent: str
):
    monkeypatch.setitem(sys.modules, absent, None)
    assert main(["demo"]) == 2
    assert "pip install 'robustad[cli]'" in capsys.readouterr().err


def test_as_a_process():
    done = run("audit", "model.py:faulty")
    assert done.returncode == 1, done.stderr
    assert f"UNDERFLOW   forward   model.py:{line('jnp.log(')} in faulty" in done.stdout
    assert "\x1b" not in done.stdout  # no colours in a pipe
    assert "Traceback" not in done.stderr


def test_as_a_module():
    done = run("--help", module="robustad")
    assert done.returncode == 0
    assert "usage: robustad" in done.stdout


@pytest.mark.timeout(240)
def test_the_demo_shows_both_reports():
    done = run("demo")
    assert done.returncode == 0, done.stderr
    faulty, mended = done.stdout.split("audit mended")
    assert "audit loss" in faulty
    assert "NOT OK" in faulty
    assert "digits_vae.py:81 in decode" in faulty
    assert "NOT OK" not in mended
    assert done.stderr == ""
