"""What repeated calls of a function leave behind: arrays, tracers, compiled programs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from robustad.memory._arguments import integer_from
from robustad.memory._bytes import readable
from robustad.memory._holders import holder

_NAME = "leak_check"
WARMUP = 2
"""Calls in which caches may fill."""


@dataclasses.dataclass(frozen=True)
class Leak:
    """One thing that calls leave behind.

    Attributes:
        kind: "array": device arrays that stay alive. "tracer": a traced value that outlives its trace. "retrace": a function
            is traced and compiled again, and the compilation caches grow.
        what: the arrays' dtype and shape, "arrays of changing shapes", the tracer's, or the function.
        per_call: how many for each call.
        bytes: of these, for each call; 0 where unknown.
        file, line: of the function that was traced; None where unknown. (Arrays do not know where they were made.)
        cause: what holds them, or why JAX traces again.
        remedy: what to do.
    """

    kind: Literal["array", "tracer", "retrace"]
    what: str
    per_call: float
    bytes: int
    file: str | None
    line: int | None
    cause: str
    remedy: str

    def __str__(self) -> str:
        size = f", {readable(self.bytes)}" if self.bytes else ""
        place = f" at {self.file}:{self.line}" if self.file else ""
        return f"{self.kind}: {self.what}{place}, {self.per_call:g} a call{size}. {self.cause} {self.remedy}"


@dataclasses.dataclass(frozen=True)
class LeakReport:
    """What `leak_check` found; `ok` is whether nothing."""

    findings: tuple[Leak, ...]
    calls: int
    bytes_per_call: float

    @property
    def ok(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        if self.ok:
            return f"nothing is left behind by {self.calls} calls"
        told = f"{self.calls} calls leave behind {readable(self.bytes_per_call)} of arrays each:"
        return "\n".join([told, *(f"  {leak}" for leak in self.findings)])


def leak_check(f: Callable[..., Any], *, calls: int = 4) -> Callable[..., LeakReport]:
    """Whether calls of a function leave something behind: arrays on a device, tracers, compiled programs.

    f is called twice to fill its caches, then `calls` times, its results dropped and Python's garbage collected after each,
    and once under `jax.checking_leaks`, traced anew. A leak is what grows with at least every second call: the number of
    live arrays of a type; the bytes of all other arrays, if no call makes them fewer; places where JAX traces again, with
    its own reason; and any tracer that outlives its trace.

    Args:
        f: a function to call: a training step, a loss, with `jax.jit` or without. It must accept the same arguments each
            time: no donated ones (wrap it: `lambda state: step(jax.tree.map(jnp.copy, state))`).
        calls: at least 2.

    Returns:
        A function of f's arguments that returns a `LeakReport`: `.ok`, `.findings` (each with `.kind`, `.what`, `.per_call`,
        `.bytes`, `.cause` and `.remedy`), `.bytes_per_call`.

    Raises:
        TypeError: f is no function; `calls` is no integer.
        ValueError: `calls` is below 2; f deletes its arguments.
        Whatever f raises.

    >>> import jax, jax.numpy as jnp
    >>> from robustad.memory import leak_check
    >>> history = []
    >>> @jax.jit
    ... def step(x):
    ...     return x * 2
    >>> def logged(x):
    ...     history.append(step(x))
    >>> leak_check(step)(jnp.ones(3)).ok
    True
    >>> leak = leak_check(logged)(jnp.ones(3)).findings[0]
    >>> leak.kind, leak.what, leak.per_call, leak.bytes
    ('array', 'float32[3]', 1.0, 12)
    """
    if not callable(f):
        raise TypeError(f"`f` of `{_NAME}` must be a function; got {f!r} of type {type(f).__name__}.")
    calls = integer_from("calls", calls, 2)

    @functools.wraps(f)
    def checked(*args: Any, **kwargs: Any) -> LeakReport:
        def call() -> None:
            jax.block_until_ready(f(*args, **kwargs))

        for _ in range(WARMUP):
            call()
            _refuse_deleted((args, kwargs))
        sizes: dict[str, int] = {}
        lives, known = [_live(sizes)], {id(x) for x in jax.live_arrays()}
        with _traces() as traced, _collecting_only_what_is_new():
            for _ in range(calls):
                call()
                lives.append(_live(sizes))
        arrays, size = _arrays(lives, sizes, known)
        return LeakReport((*arrays, *_tracers(call), *_retraces(traced, calls)), calls, size / calls)

    return checked


def _refuse_deleted(tree: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(
                f"The function given to `{_NAME}` has deleted one of its arguments, {jax.tree_util.keystr(path)} of (args, "
                "kwargs): it is donated, and the function cannot be called with it again. Give it copies: "
                "`lambda state: step(jax.tree.map(jnp.copy, state))`."
            )


# --------------------------------------------------------------------------------------------------------- arrays


def _live(sizes: dict[str, int]) -> Counter[str]:
    """How many arrays there are of each type; `sizes` are the bytes of one, and are added to."""
    gc.collect()
    live = jax.live_arrays()
    sizes.update((_type(x), x.nbytes) for x in live)
    return Counter(map(_type, live))


@contextlib.contextmanager
def _collecting_only_what_is_new() -> Iterator[None]:
    """The garbage collector passes over the objects that are there already, which takes its time in large processes."""
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


def _type(x: Any) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def _arrays(lives: list[Counter[str]], sizes: dict[str, int], known: set[int]) -> tuple[list[Leak], int]:
    """What grows, and by how many bytes in all, from what lives before the first call and after each."""
    live = jax.live_arrays()
    calls, more = len(lives) - 1, lives[-1] - lives[0]
    found, total = [], 0

    def add(what: str, count: float, size: int, kept: list[Any]) -> None:
        held = holder(kept[-1], {id(live), id(kept)}) if kept else None
        cause = f"The last is held by {held}." if held else "What holds them was not found among Python's objects."
        remedy = "Let go of them, or keep NumPy copies (`np.asarray`) or Python numbers (`float`)."
        found.append(Leak("array", what, count / calls, size // calls, None, None, cause, remedy))

    others = set().union(*lives)
    for what, count in more.items():
        if 2 * sum(b[what] > a[what] for a, b in itertools.pairwise(lives)) < calls:
            continue
        others.remove(what)
        total += sizes[what] * count
        add(what, count, sizes[what] * count, [x for x in live if _type(x) == what and id(x) not in known])
    steps = [sum((b[what] - a[what]) * sizes[what] for what in others) for a, b in itertools.pairwise(lives)]
    if 2 * sum(step > 0 for step in steps) >= calls and min(steps) >= 0:
        total += sum(steps)
        kept = sorted((x for x in live if _type(x) in others and _type(x) in more), key=lambda x: x.nbytes)
        # One array that grows counts once for each call in which it does.
        count = sum(lives[-1][what] - lives[0][what] for what in others) or sum(step > 0 for step in steps)
        add("arrays of changing shapes", count, sum(steps), kept)
    return sorted(found, key=lambda leak: -leak.bytes), total


# -------------------------------------------------------------------------------------------------------- tracers

_checks = itertools.count()
_TRACED = re.compile(r"tracing the function (\S+) at (.+?):(\d+)")


def _tracers(call: Callable[[], None]) -> list[Leak]:
    """From JAX's own check: every function is traced anew, and must have let go of its values in the end."""
    gc.collect()
    with _collecting_only_what_is_new():
        told = _told_of_tracers(call)
    if told is None:
        return []
    told = _told_of_tracers(call) or told  # who holds them is looked up among all objects
    what = sorted(set(re.findall(r"^\w*Tracer\S*?\((\S+?)\)", told, re.MULTILINE)))
    place = _TRACED.search(told)
    held = [line for line in told.splitlines() if "is referred to by" in line]
    names = [re.sub(r"^.* is referred to by (the )?", "", line).rstrip(".") for line in held]
    # The last hops are the ones with names.
    named = [name for name in names if not name.startswith("<")]
    cause = f"It is held by {named[-1]}." if named else "JAX does not say what holds it."
    return [
        Leak(
            kind="tracer",
            what=f"a value {', '.join(what) or 'of unknown type'}" + (f" of `{place[1]}`" if place else ""),
            per_call=1.0,
            bytes=0,
            file=place[2] if place else None,
            line=int(place[3]) if place else None,
            cause=cause,
            remedy="Return it instead of storing it from inside a traced function; for printing, `jax.debug.callback`.",
        )
    ]


def _told_of_tracers(call: Callable[[], None]) -> str | None:
    try:
        # Metadata that no program had before: whatever JAX has traced already is traced again.
        with jax.checking_leaks(), set_xla_metadata(leak_check=next(_checks)):
            call()
    except Exception as error:  # JAX raises no narrower class
        if not str(error).startswith("Leaked"):
            raise
        return str(error)
    return None


# ------------------------------------------------------------------------------------------------------- retraces

_MISS = re.compile(
    r"TRACING CACHE MISS at (?P<file>.+?):(?P<line>\d+)(?::\d+)?(?: \((?P<function>.*)\))?:\n(?P<why>.*)", re.S
)
_TYPES = re.compile(r"Compiling (?P<function>\S+) with global shapes and types (?P<types>.*)\. Argument mapping", re.S)
_OF_EARLIER_CHECKS = re.compile(r"for (?P<function>\S+).*xla_metadata_context_manager differs: now None", re.S)
"""What JAX says of a function that was checked before: the nearest trace that it knows is one of `_told_of_tracers`."""
_LOGGER = "jax"


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


@dataclasses.dataclass
class _Traces:
    """What JAX says of its caches, and the functions that it traced and compiled."""

    told: list[str]
    traced: list[str]
    compiled: list[str]


@contextlib.contextmanager
def _traces() -> Iterator[_Traces]:
    messages, traced, compiled = _Messages(), [], []

    def listen(event: str, duration_secs: float, **about: Any) -> None:
        if event.endswith("jaxpr_trace_duration"):
            traced.append(f"jit({about.get('fun_name')})")
        if event.endswith("backend_compile_duration"):
            compiled.append(str(about.get("fun_name", "a function")))

    logger = logging.getLogger(_LOGGER)
    own = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [messages], False
    logger.setLevel(logging.WARNING)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with jax.explain_cache_misses(True), jax.log_compiles(True):
            yield _Traces(messages.told, traced, compiled)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
        logger.handlers, logger.propagate = own[0], own[2]
        logger.setLevel(own[1])


def _retraces(traces: _Traces, calls: int) -> list[Leak]:
    misses = [m for m in map(_MISS.match, traces.told) if m]
    places = Counter((m["file"], int(m["line"]), m["function"]) for m in misses)
    remedy = (
        "Make functions and call `jax.jit` once, outside; give arrays, not numbers, that change, and the same shapes."
    )
    found = []
    for (file, line, function), count in places.items():
        if 2 * count < calls:
            continue
        why = next(m["why"] for m in reversed(misses) if (m["file"], int(m["line"])) == (file, line))
        if own := _OF_EARLIER_CHECKS.search(why):
            why = _other_types(traces, own["function"])
        why = re.sub(r" id=\d+", "", " ".join(why.split()))
        found.append(
            Leak("retrace", f"in `{function}`", count / calls, 0, file, line, f"JAX: {why}.".replace("..", "."), remedy)
        )
    if not found:
        for function, count in Counter(traces.compiled).items():
            if 2 * count < calls:
                continue
            if 2 * traces.traced.count(function) >= calls:
                cause = "It is traced and compiled again: other shapes, dtypes or parameters."
            else:
                cause = "It is compiled again, though not traced: other shardings or devices."
            found.append(Leak("retrace", function, count / calls, 0, None, None, cause, remedy))
    return found


def _other_types(traces: _Traces, function: str) -> str:
    """Why a function was traced the last time, from what it was compiled for."""
    told = [m["types"] for m in map(_TYPES.match, traces.told) if m and m["function"] == f"jit({function})"]
    before, now = ([], [], *(re.findall(r"ShapedArray\(([^()]*)\)", types) for types in told))[-2:]
    for a, b in zip(before, now):
        if a != b:
            return f"for {function} different input types: now {b} and before {a}"
    return f"for {function} no reason is told, as an earlier `{_NAME}` has traced it too: see it in a new process"
