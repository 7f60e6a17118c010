"""What an audit's first pass costs, beside the other ways to look for numerical trouble.

Every figure is a ratio to the plain jitted `value_and_grad` of the same loss, measured in the same run:

    python experiments/benchmarks/audit.py --repeats 20 --json audit.json
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import checkify
from ratios import machine

Loss = Callable[..., Array]
Args = tuple[Any, ...]
Program = tuple[Any, Args]  # a jitted function and what it is called with

BARS = {"run": 4.0, "compile": 4.0, "memory": 4.0}
COLUMNS = ("trace", "xla", "compile", "run", "memory", "temp")
PHASES = ("build", "lower", "xla")
COMPILATIONS, WARM_UPS = 3, 2


# ---- the models


def transformer() -> tuple[Loss, Args]:
    """A causal language model: 4 layers of width 256 with 4 heads, 8 texts of 128 bytes."""
    layers, width, heads, vocabulary, texts, length = 4, 256, 4, 256, 8, 128
    keys = iter(jax.random.split(jax.random.key(0), 64))

    def weights(*shape: int) -> Array:
        return jax.random.normal(next(keys), shape, jnp.float32) / shape[0] ** 0.5

    def scales() -> dict[str, Array]:
        return {"gain": jnp.ones(width, jnp.float32), "bias": jnp.zeros(width, jnp.float32)}

    def block() -> dict[str, Any]:
        return {
            "before": scales(),
            "qkv": weights(width, 3 * width),
            "out": weights(width, width),
            "between": scales(),
            "up": weights(width, 4 * width),
            "down": weights(4 * width, width),
        }

    params = {
        "tokens": weights(vocabulary, width),
        "places": weights(length, width),
        "blocks": [block() for _ in range(layers)],
        "after": scales(),
        "head": weights(width, vocabulary),
    }
    tokens = jax.random.randint(next(keys), (texts, length + 1), 0, vocabulary, jnp.int32)

    def norm(p: dict[str, Array], x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["gain"] + p["bias"]

    def attend(p: dict[str, Any], x: Array) -> Array:
        q, k, v = jnp.split((x @ p["qkv"]).reshape(texts, length, heads, -1), 3, axis=-1)
        scores = jnp.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
        causal = jnp.tril(jnp.ones((length, length), bool))
        mix = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        return jnp.einsum("bhij,bjhd->bihd", mix, v).reshape(texts, length, width) @ p["out"]

    def loss(params: dict[str, Any], tokens: Array) -> Array:
        x = params["tokens"][tokens[:, :-1]] + params["places"]
        for p in params["blocks"]:
            x = x + attend(p, norm(p["before"], x))
            x = x + jax.nn.gelu(norm(p["between"], x) @ p["up"]) @ p["down"]
        logs = jax.nn.log_softmax(norm(params["after"], x) @ params["head"])
        return -jnp.take_along_axis(logs, tokens[:, 1:, None], axis=-1).mean()

    return loss, (params, tokens)


def convolution() -> tuple[Loss, Args]:
    """A classifier of 16 colour images of 32 x 32: 4 convolutions, pooling after each second one."""
    channels, images, classes = (3, 32, 32, 64, 64), 16, 10
    keys = iter(jax.random.split(jax.random.key(0), 16))

    def weights(*shape: int) -> Array:
        fan_in = float(jnp.prod(jnp.array(shape[:-1])))
        return jax.random.normal(next(keys), shape, jnp.float32) * (2 / fan_in) ** 0.5

    params = {
        "filters": [weights(3, 3, into, out) for into, out in itertools.pairwise(channels)],
        "biases": [jnp.zeros(out, jnp.float32) for out in channels[1:]],
        "dense": weights(8 * 8 * channels[-1], classes),
    }
    batch = jax.random.normal(next(keys), (images, 32, 32, 3), jnp.float32)
    labels = jax.random.randint(next(keys), (images,), 0, classes, jnp.int32)

    def loss(params: dict[str, Any], batch: Array, labels: Array) -> Array:
        x = batch
        for layer, (filters, bias) in enumerate(zip(params["filters"], params["biases"], strict=True)):
            x = lax.conv_general_dilated(x, filters, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + bias)
            if layer % 2:
                x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        logs = jax.nn.log_softmax(x.reshape(images, -1) @ params["dense"])
        return -jnp.take_along_axis(logs, labels[:, None], axis=-1).mean()

    return loss, (params, batch, labels)


MODELS: dict[str, Callable[[], tuple[Loss, Args]]] = {"transformer": transformer, "convolution": convolution}


# ---- the contenders


def double(args: Args) -> Args:
    def cast(leaf: Array) -> Array:
        return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    with jax.enable_x64(True):
        return jax.tree.map(cast, args)


def plain(loss: Loss, args: Args) -> Program:
    return jax.jit(jax.value_and_grad(loss)), args


def checked(loss: Loss, args: Args) -> Program:
    return jax.jit(checkify.checkify(jax.value_and_grad(loss), errors=checkify.float_checks)), args


def audited(loss: Loss, args: Args) -> Program:
    from robustad.diagnosis._first_pass import first_pass

    program, operands = first_pass(loss)(*args)
    return program, tuple(operands)


def ranked(loss: Loss, args: Args) -> Program:
    from robustad.diagnosis._program import derivative_program
    from robustad.diagnosis._ranking import ranking_program

    audited = derivative_program(loss, 0, False, args, {})
    program, _ = ranking_program(audited)
    with jax.enable_x64(True):
        weights = [jnp.zeros(()), *(jnp.ones(()) for _ in audited.leaves)]
    return jax.jit(program), (*audited.operands, weights)


@dataclass(frozen=True)
class Contender:
    """A way to run a loss with its gradient: how to build it, and where it is lowered, compiled and run."""

    build: Callable[[Loss, Args], Program]
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    prepare: Callable[[Args], Args] = lambda args: args


CONTENDERS = {
    "plain": Contender(plain),
    "robustad": Contender(audited, context=lambda: jax.enable_x64(True)),
    "ranking": Contender(ranked, context=lambda: jax.enable_x64(True)),
    "debug_nans": Contender(plain, context=lambda: jax.debug_nans(True)),
    "checkify": Contender(checked),
    "f64": Contender(plain, context=lambda: jax.enable_x64(True), prepare=double),
}
RIVALS = tuple(name for name in CONTENDERS if name != "plain")


# ---- the measurements


@dataclass
class Figures:
    """Seconds and bytes: `build` and `lower` are Python's part, `xla` is the compiler's."""

    build: float
    lower: float
    xla: float
    memory: int
    temp: int
    run: float = 0.0

    @property
    def trace(self) -> float:
        return self.build + self.lower

    @property
    def compile(self) -> float:
        return self.lower + self.xla

    def ratios(self, base: Figures) -> dict[str, float | None]:
        """To the same figures of the plain program; None where that has none to divide by."""
        pairs = {column: (getattr(self, column), getattr(base, column)) for column in COLUMNS}
        return {column: ours / theirs if theirs else None for column, (ours, theirs) in pairs.items()}


def compilation(contender: Contender, loss: Loss, operands: Args) -> tuple[Figures, Program]:
    """Build, lower and compile once, from nothing."""
    jax.clear_caches()
    begin = time.perf_counter()
    program = contender.build(loss, operands)
    built = time.perf_counter()
    with contender.context():
        lowered = program[0].lower(*program[1])
        lower = time.perf_counter()
        compiled = lowered.compile()
        end = time.perf_counter()
    sizes = compiled.memory_analysis()
    memory = sizes.temp_size_in_bytes + sizes.output_size_in_bytes + sizes.argument_size_in_bytes
    return Figures(built - begin, lower - built, end - lower, memory, sizes.temp_size_in_bytes), program


def call(contender: Contender, program: Program) -> float:
    function, operands = program
    with contender.context():
        begin = time.perf_counter()
        jax.block_until_ready(function(*operands))
        return time.perf_counter() - begin


def measure(model: str, names: Sequence[str], repeats: int) -> dict[str, Figures]:
    """Compile and then run all contenders in turns, so that a busy machine slows them alike."""
    loss, args = MODELS[model]()
    contenders = {name: CONTENDERS[name] for name in names}
    operands = {name: contender.prepare(args) for name, contender in contenders.items()}
    compilations: dict[str, list[Figures]] = {name: [] for name in names}
    programs: dict[str, Program] = {}
    for _ in range(COMPILATIONS):
        for name in list(contenders):
            try:
                sample, programs[name] = compilation(contenders[name], loss, operands[name])
                compilations[name].append(sample)
            except ImportError as error:
                print(f"{name} is left out of {model}: {error}")
                del contenders[name]
    runs: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(WARM_UPS + repeats):
        for name, contender in contenders.items():
            seconds = call(contender, programs[name])
            if turn >= WARM_UPS:
                runs[name].append(seconds)
    figures = {}
    for name in contenders:
        median = {phase: statistics.median(getattr(s, phase) for s in compilations[name]) for phase in PHASES}
        figures[name] = replace(compilations[name][-1], run=statistics.median(runs[name]), **median)
    return figures


def verdict(ratios: dict[str, float | None]) -> dict[str, bool]:
    return {bar: ratio is not None and ratio <= BARS[bar] for bar in BARS for ratio in [ratios[bar]]}


def show(model: str, figures: dict[str, Figures]) -> None:
    base = figures["plain"]
    print(f"\n{model}: plain traces in {base.trace:.2f} s, compiles in {base.compile:.2f} s, ", end="")
    print(f"runs in {1e3 * base.run:.1f} ms, takes {base.memory / 2**20:.0f} MiB ({base.temp / 2**20:.0f} temporary)")
    print(f"{'':12}" + "".join(f"{column:>9}" for column in COLUMNS))
    for name, row in figures.items():
        ratios = row.ratios(base)
        cells = ("-" if ratios[column] is None else f"{ratios[column]:.2f}x" for column in COLUMNS)
        print(f"{name:12}" + "".join(f"{cell:>9}" for cell in cells))
    marks = (f"{BARS[column]:.0f}x" if column in BARS else "" for column in COLUMNS)
    print(f"{'bar':12}" + "".join(f"{mark:>9}" for mark in marks))
    if "robustad" in figures:
        met = verdict(figures["robustad"].ratios(base))
        marks = (("" if column not in met else "met" if met[column] else "MISSED") for column in COLUMNS)
        print(f"{'':12}" + "".join(f"{mark:>9}" for mark in marks))


def names_from(known: Sequence[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := sorted(set(chosen) - set(known)):
            raise argparse.ArgumentTypeError(f"no such name: {', '.join(unknown)}; there are {', '.join(known)}")
        return chosen

    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each contender (default 10)")
    parser.add_argument("--models", type=names_from(tuple(MODELS)), default=list(MODELS), help=",".join(MODELS))
    parser.add_argument("--rivals", type=names_from(RIVALS), default=list(RIVALS), help=",".join(RIVALS))
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    options = parser.parse_args()

    jax.config.update("jax_enable_compilation_cache", False)
    setting = {**machine(), "repeats": options.repeats}
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    results: dict[str, dict[str, Any]] = {}
    for model in options.models:
        figures = measure(model, ["plain", *options.rivals], options.repeats)
        show(model, figures)
        results[model] = {
            name: {"figures": asdict(row), "ratios": row.ratios(figures["plain"])} for name, row in figures.items()
        }
        if "robustad" in figures:
            results[model]["robustad"]["meets"] = verdict(results[model]["robustad"]["ratios"])
    print("\ntrace: build and lower; xla: the compiler alone; compile: lower and compile;")
    print("memory: arguments, outputs and temporaries; temp: temporaries alone")
    if options.json:
        options.json.write_text(json.dumps({**setting, "bars": BARS, "models": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
