"""How a `GradientFlow` prints."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from robustad.diagnosis._flow_report import GradientFlow, LayerFlow

_X = TypeVar("_X")
_ROWS, _STEPS = 24, 6
_HEAD = ("cotangent", "rms", "zero", "gradient", "/param", "largest", "flat")


def lines(flow: GradientFlow) -> Iterator[str]:
    """The report, a line each: the verdict, a row a layer, what is wrong first, where other dtypes end."""
    yield f"gradient flow of {flow.function}   {'ok' if flow.ok else 'NOT OK'}   {flow.verdict}   value {flow.value:.6g}"
    yield f"{'layer':<26}" + "".join(f"{title:>11}" for title in _HEAD)
    for k, layer in thinned(flow.layers, _ROWS, [not x.ok for x in flow.layers]):
        if layer is None:
            yield f"  ... {k} more"
            continue
        yield _row(layer)
        for i, step in thinned(layer.steps, _STEPS):
            yield f"  ... {i} more" if step is None else f"  {f'step {i}':<24}{_number(step)}"
    if math.isfinite(flow.factor):
        yield f"from a layer to the one before, the norm is multiplied by {flow.factor:.3g}; first to last: {flow.ratio:.3g}"
        yield _ends("layers", flow)
    for layer in flow.layers:
        if layer.steps and math.isfinite(layer.factor):
            yield f"{layer.name}: from a step to the one before, the norm is multiplied by {layer.factor:.3g}"
    if worst := flow.worst:
        where = f" ({worst.file.rpartition('/')[2]}:{worst.line})" if worst.line else ""
        yield textwrap.fill(f"{worst.verdict} at `{worst.name}`{where}: {worst.reason}", 120, subsequent_indent="  ")
        if others := [x.name for x in flow.layers if not x.ok and x is not worst]:
            yield textwrap.shorten(f"also: {', '.join(others)}", 120, placeholder=" ...")
    elif not math.isfinite(flow.value):
        yield "the value is not finite, though the gradients are: robustad.audit tells where that begins"


def thinned(xs: Sequence[_X], most: int, keep: Sequence[bool] | None = None) -> Iterator[tuple[int, _X | None]]:
    """At most about `most` of the things with their numbers, evenly; (how many, None) for those left out."""
    n = len(xs)
    chosen = set(range(n)) if n <= most else {round(i * (n - 1) / (most - 1)) for i in range(most)}
    if keep is not None and n > most:
        chosen |= {k for k in range(n) if keep[k] and not (k and keep[k - 1])}
    before = -1
    for k in sorted(chosen):
        if k - before == 2:
            yield k - 1, xs[k - 1]
        elif k - before > 2:
            yield k - before - 1, None
        yield k, xs[k]
        before = k


def _row(layer: LayerFlow) -> str:
    flat = max((x for x in (layer.saturated, layer.dead) if not math.isnan(x)), default=math.nan)
    numbers = (
        _number(layer.cotangent_norm),
        _number(layer.cotangent_rms),
        _share(layer.zero_fraction),
        _number(layer.gradient_norm),
        _number(layer.ratio),
        _number(layer.gradient_largest),
        _share(flat),
    )
    name = layer.name if len(layer.name) < 26 else "..." + layer.name[-22:]
    return f"{name:<26}" + "".join(numbers) + ("" if layer.verdict == "healthy" else f"  {layer.verdict}")


def _number(x: float) -> str:
    return f"{'-':>11}" if math.isnan(x) else f"{x:>11.2e}"


def _share(x: float) -> str:
    return f"{'-':>11}" if math.isnan(x) else f"{x:>11.0%}"


def _ends(what: str, flow: GradientFlow) -> str:
    ends = ((dtype, flow.underflow_depth(dtype)) for dtype in ("float16", "bfloat16", "float32"))
    said = [f"{dtype} {math.ceil(n)}" for dtype, n in ends if math.isfinite(n)]
    return f"going on like this, it underflows after so many {what}: {', '.join(said)}" if said else "it does not fall"
