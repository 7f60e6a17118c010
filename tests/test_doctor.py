"""Device profile, probe, their verdicts, and `robustad doctor`."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import robustad
from robustad.cli import main
from robustad.diagnosis import Measurement, Probe, _device_profile, _on_device, device_profile, probe
from robustad.diagnosis import _probe_compiler as compiler
from robustad.diagnosis import _probe_functions as functions
from robustad.diagnosis import _probe_sums as sums
from robustad.diagnosis._measurement import asked, bits
from robustad.diagnosis._verdicts import verdicts


@pytest.fixture(scope="module")
def found() -> Probe:
    return probe()


def by_name(measurements) -> dict[str, Measurement]:
    return {m.name: m for m in measurements}


# ---- the profile


def test_the_profile_of_a_cpu():
    profile = device_profile()
    assert (profile.platform, profile.count, profile.local_count, profile.processes) == ("cpu", 8, 8, 1)
    assert profile.memory_kinds[0] == "device" and len(profile.memory_kinds) == len(set(profile.memory_kinds))
    assert profile.memory_bytes is not None and profile.memory_bytes > 2**28
    assert (profile.jax_version, profile.x64, profile.matmul_precision) == (jax.__version__, False, None)
    for name, arithmetic in [("float64", "native"), ("float32", "native"), ("float8_e5m2", "emulated")]:
        assert profile.dtype(name).arithmetic == arithmetic
    single, half = profile.dtype(jnp.float32), profile.dtype(jnp.float16)
    assert (single.flushes_inputs, single.flushes_outputs) == (True, True)
    assert (half.flushes_inputs, half.flushes_outputs) == (False, False)
    held = json.loads(profile.to_json())
    assert held["dtypes"][1]["name"] == "float32"
    assert "float32         native        native        operands and results flushed to 0" in str(profile)


def test_the_profile_tells_the_settings_of_its_caller(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_something=1 --xla_allow_excess_precision=false")
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        profile = device_profile("cpu")
    assert (profile.x64, profile.matmul_precision) == (True, "highest")
    assert profile.settings == ("--xla_allow_excess_precision=false", "NVIDIA_TF32_OVERRIDE=0")


def test_what_a_backend_does_not_say_is_none():
    def refuse(*_):
        raise NotImplementedError

    silent = SimpleNamespace(platform="tpu", memory_stats=refuse)
    assert _device_profile._memory_bytes(silent) is None
    assert _device_profile._memory_bytes(SimpleNamespace(platform="gpu", memory_stats=lambda: None)) is None
    assert _device_profile._memory_bytes(SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 7})) == 7
    assert _device_profile._executed(lambda x, y: lax.dot(x, y[:3]), np.ones((8, 8), np.float32)) == "unsupported"
    unknown = dataclasses.replace(device_profile(), memory_bytes=None, memory_kinds=())
    assert "memory  unknown; kinds: unknown" in str(unknown)


@pytest.mark.parametrize("ask", [device_profile, probe])
@pytest.mark.parametrize(
    ("device", "error", "said"),
    [
        ("quantum", ValueError, "no `quantum` here; JAX has `cpu`"),
        (3, TypeError, "got 3"),
        ([], TypeError, r"got \[\]"),
    ],
)
def test_another_device_is_refused(ask, device, error, said):
    with pytest.raises(error, match=said):
        ask(device)


def test_work_apart_has_none_of_the_callers_settings():
    def settings():
        return jnp.asarray(1.0).dtype, jnp.ones(3) + 1, threading.get_ident()

    @jax.jit
    def traced(x):
        with jax.numpy_dtype_promotion("strict"), jax.disable_jit():
            dtype, array, thread = _on_device.apart(jax.devices()[1], settings)
        assert dtype == np.float64
        assert isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
        assert array.devices() == {jax.devices()[1]}
        assert thread != threading.get_ident()
        return x

    traced(1.0)
    assert not jax.config.jax_enable_x64


# ---- the probe, and that it sees planted faults


def test_the_probe_of_a_cpu(found):
    assert found.ok and found.backend.ok
    assert found.seconds < 60  # about 4 on two cores
    assert found.value("x * y + z rounded once", "float32") is True
    assert found.value("NaN and infinity honoured", "bfloat16") is True
    assert found.value("matmul: operands", "float32", "default") == 24
    assert found.value("matmul: operands", "float64", "highest") == 53
    assert 16 <= found.value("matmul: 4096 terms", "bfloat16", "default") <= 24
    for function in functions.FUNCTIONS:
        for dtype in ("float64", "float32", "bfloat16", "float16"):
            ulp = found.value("function", dtype, function)
            assert ulp is None or 0.3 < ulp < 4, (function, dtype, ulp)
    assert found.value("sum of 65536 terms", "float32", "sum") >= 20
    assert found.value("sum of 65536 terms", "bfloat16", "scatter-add") < 1  # it stagnates at 256 times a term
    assert found.value("same bits in every run", "float32", "matmul") is True
    assert found.value("all-reduce", "bfloat16", "8 devices") == 8  # promoted to float32 on a CPU
    assert "function, exp: float64" in str(found)
    with pytest.raises(KeyError):
        found.value("luck")


def test_a_probe_is_stored_read_and_compared(found):
    text = json.dumps(json.loads(found.to_json()))
    again = Probe.from_json(text)
    assert again == found
    assert not found.changes(again)
    worst = dataclasses.replace(found.measurements[-1], value=np.inf)
    other = dataclasses.replace(found, measurements=(*found.measurements[:-1], worst))
    stored = Probe.from_json(other.to_json())
    (change,) = found.changes(stored)
    assert (change.name, change.after) == (worst.name, np.inf)
    assert str(change).endswith("-> inf bits")
    shorter = dataclasses.replace(found, measurements=found.measurements[:-1])
    (change,) = found.changes(shorter)
    assert change.after is None
    assert set(found.scalars()) == {m.name for m in found.measurements if m.value is not None}
    assert all(isinstance(v, float) for v in found.scalars().values())


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"ok": true, "backend": {"findings": 3}, "measurements": []}'])
def test_what_is_not_a_probe_is_refused(text):
    with pytest.raises(ValueError, match="not the JSON of a probe"):
        Probe.from_json(text)


def test_bits_and_unknowns():
    exact = np.array([1.0, 3.0])
    assert bits(exact.astype(np.float32), exact, np.float32) == 24
    assert bits(exact * (1 + 2.0**-10), exact, np.float32) == 10
    assert bits(exact * np.nan, exact, np.float32) == 0

    def fail():
        raise NotImplementedError("no such dtype")

    (unknown,) = asked([("matmul", "float4", "", "bits")], fail)
    assert unknown.value is None and str(unknown) == "unknown"


def on_cpu(measure, *args):
    return by_name(_on_device.apart(jax.devices()[0], lambda: list(measure(*args))))


def test_rounded_operands_of_a_matmul_are_seen(monkeypatch):
    dot = lax.dot

    def in_bfloat16(a, b, *, precision, preferred_element_type):
        if precision != "highest":
            a, b = (lax.reduce_precision(x, 8, 7) for x in (a, b))
        return dot(a, b, preferred_element_type=preferred_element_type)

    monkeypatch.setattr(lax, "dot", in_bfloat16)
    measured = on_cpu(compiler.matmuls, "float32")
    assert 7 <= measured["matmul: operands/float32/default"].value <= 8
    assert 7 <= measured["matmul: operands/float32/high"].value <= 8
    assert measured["matmul: operands/float32/highest"].value == 24
    # Over many terms the roundings of the operands average out: this alone would not show the fault.
    assert measured["matmul: 4096 terms/float32/default"].value > 10


def test_an_inaccurate_function_is_seen(monkeypatch):
    def crude(x):  # sin with its argument reduced by a rounded 2 pi
        return jnp.sin(x - 2 * jnp.pi * jnp.round(x / (2 * jnp.pi)))

    table = {
        name: dataclasses.replace(functions.FUNCTIONS[name], device=crude)
        for name in ("sin, |x| < 64", "sin of any size")
    }
    monkeypatch.setattr(functions, "FUNCTIONS", table)
    measured = on_cpu(functions.functions, "float32")
    assert measured["function/float32/sin, |x| < 64"].value > 4
    assert measured["function/float32/sin of any size"].value > 1e6


def test_truncating_casts_and_lost_nans_are_seen(monkeypatch):
    monkeypatch.setattr(jax, "jit", lambda f: lambda x: (x.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(dtype))
    dtype = jnp.dtype("bfloat16")
    assert on_cpu(compiler.casts, dtype)["cast from float32 to nearest, ties to even/bfloat16"].value is False
    monkeypatch.undo()
    monkeypatch.setattr(jnp, "isnan", lambda x: jnp.zeros(x.shape, bool))
    assert on_cpu(compiler.special_values, "float32")["NaN and infinity honoured/float32"].value is False


def test_runs_that_differ_are_seen(monkeypatch):
    jit, calls = jax.jit, iter(range(1000))

    def noisy(f):
        run = jit(f)
        return lambda *args: jax.tree.map(lambda y: y * (1 + 1e-6 * (next(calls) % 7)), run(*args))

    monkeypatch.setattr(jax, "jit", noisy)
    measured = on_cpu(sums.sums, "float32")
    assert measured["same bits in every run/float32/sum"].value is False
    assert on_cpu(sums.contractions)["same bits in every run/float32/matmul"].value is False


# ---- verdicts


def test_a_cpus_verdicts(found):
    given = {v.subject: v for v in verdicts(device_profile(), found)}
    assert {v.level for v in given.values()} == {"fine", "note"}
    assert given["error-free arithmetic"].level == "fine"
    assert given["scatter-add"].level == "note" and "bfloat16" in given["scatter-add"].found
    assert given["subnormals"].level == "note" and "float32 below 1.2e-38" in given["subnormals"].found


@pytest.mark.parametrize(
    ("kind", "dtype", "value", "subject", "level", "said"),
    [
        ("NaN and infinity honoured", "float32", False, "NaN and infinity", "danger", "float32"),
        ("matmul: operands", "float32", 8.0, "matmul in float32", "note", "8 of 24 bits"),
        ("matmul: 4096 terms", "bfloat16", 3.0, "accumulation in matmul", "note", "3.0 bits in bfloat16"),
        ("function", "float32", 900.0, "elementary functions", "note", "exp in float32 900 ulp"),
        ("sum of 65536 terms", "float32", 9.0, "sums in float32", "note", "9 of 24 bits"),
        ("same bits in every run", "float32", False, "repeated runs", "note", "sum in float32"),
        ("all-reduce", "bfloat16", 5.0, "all-reduce", "note", "5.0 of 8 bits"),
        ("cast from float32 to nearest, ties to even", "float16", False, "casts", "note", "float16"),
        ("excess precision", "bfloat16", True, "excess precision", "note", "bfloat16"),
        ("function", None, None, "elementary functions", "unknown", "could not"),
        ("sum of 65536 terms", None, None, "sums in float32", "unknown", "could not"),
        ("matmul: operands", None, None, "matmul in float32", "unknown", "could not"),
    ],
)
def test_planted_measurements_are_told(found, kind, dtype, value, subject, level, said):
    def planted(m: Measurement) -> Measurement:
        hit = m.kind == kind and dtype in (None, m.dtype) and (value is None or m.case not in ("highest", "high"))
        return dataclasses.replace(m, value=value, at=None) if hit or (m.kind == kind and "4096" in kind) else m

    changed = dataclasses.replace(found, measurements=tuple(planted(m) for m in found.measurements))
    (verdict,) = [v for v in verdicts(device_profile(), changed) if v.subject == subject]
    assert verdict.level == level
    assert said in verdict.found
    assert changed.ok == (level != "danger")
    if level == "note":
        assert verdict.meaning and verdict.remedy
    plain = next(v for v in [*verdicts(device_profile(), found), verdict] if v.subject == subject)
    assert plain.found != verdict.found or plain is verdict


# ---- the command


def test_doctor_tells_and_exits_with_0(found, capsys, monkeypatch, tmp_path):
    from robustad.diagnosis import _examination

    monkeypatch.setattr(_examination, "probe", lambda device: found)
    assert main(["doctor", "--json"]) == 0
    out = capsys.readouterr().out
    held = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert held["ok"] is True and held["profile"]["platform"] == "cpu"
    assert {v["subject"] for v in held["verdicts"]} >= {"error-free arithmetic", "matmul in float32"}
    stored = tmp_path / "probe.json"
    stored.write_text(out)
    assert main(["doctor", "--device", "cpu", "--against", str(stored)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("cpu: ")
    assert "no measurement differs" in out and "nothing dangerous" in out
    assert "fix: Stay in logs" in out
    assert err == ""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--device", "quantum"], ["no `quantum` here"]),
        (["--against", "nowhere.json"], ["nowhere.json"]),
        (["--against", "pyproject.toml"], ["does not hold a probe", "robustad doctor --json"]),
    ],
)
def test_doctor_cannot_run(argv, said, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    assert main(["doctor", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(words in err for words in said)


def test_a_binary_file_is_no_probe(tmp_path, capsys):
    (tmp_path / "probe.json").write_bytes(b"\xff\xfe\x00")
    assert main(["doctor", "--against", str(tmp_path / "probe.json")]) == 2
    assert "utf-8" in capsys.readouterr().err


def doctor(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(robustad.__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "robustad.cli", "doctor", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment | variables, timeout=200)


@pytest.mark.whole
def test_fast_math_is_told_loudly():
    done = doctor(XLA_FLAGS="--xla_cpu_enable_fast_math=true")
    assert done.returncode == 1, done.stderr
    assert "DANGER   error-free arithmetic (fast-math)" in done.stdout
    assert "DANGER   NaN and infinity" in done.stdout
    assert "fix: Remove --xla_cpu_enable_fast_math=true from XLA_FLAGS" in done.stdout
    assert "DANGEROUS: gradients cannot be trusted here" in done.stdout.splitlines()[-1]
    assert done.stderr == ""


def test_without_a_backend_it_cannot_run():
    done = doctor(JAX_PLATFORMS="tpu")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "tpu" in done.stderr and "Traceback" not in done.stderr
