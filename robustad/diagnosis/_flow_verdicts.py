"""Which layers the gradient does not reach as it should, why, and what helps."""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp

from robustad.diagnosis._flow_report import LayerFlow

FAR = 1e4
"""How many times smaller or larger than at the last layer is too much."""

_UNDERFLOW = "scale the loss (dynamic loss scaling) or train in bfloat16 or float32"
_DEPTH = "scale the initial weights to keep the variance (He, Glorot), add residual connections or normalization"
_TIME = "use a gated cell (a forget gate that starts open), orthogonal recurrent weights, or truncate"


def judged(layers: Sequence[LayerFlow]) -> tuple[LayerFlow, ...]:
    """The layers with verdict and reason, each judged by itself and by those behind it."""
    out: list[LayerFlow] = []
    last: LayerFlow | None = None  # the one nearest the loss that has a gradient
    after: LayerFlow | None = None  # the next one towards the loss
    for layer in reversed(layers):
        verdict, reason = _judge(layer, after, last)
        layer = dataclasses.replace(layer, verdict=verdict, reason=reason)
        if last is None and 0 < layer.cotangent_norm < math.inf:
            last = layer
        if layer.cotangents:
            after = layer
        out.append(layer)
    return tuple(reversed(out))


def _judge(layer: LayerFlow, after: LayerFlow | None, last: LayerFlow | None) -> tuple[str, str]:
    if layer.nonfinite:
        return "non-finite", _nonfinite(layer, after)
    if not layer.cotangents:  # of a layer without an output the gradient alone tells
        known = math.isnan(layer.cotangent_norm) and layer.gradient_norm > 0
        return "healthy" if known else "no gradient", ""
    if layer.dead >= 0.9:
        return "dead", (
            f"{layer.dead:.0%} of the units behind it are 0 for every example; lower the learning rate, check the bias and "
            "the scale of the initial weights, or use a leaky nonlinearity."
        )
    if layer.saturated >= 0.9:
        return "saturated", _saturated(layer)
    if layer.cotangent_norm == 0:
        return _zero(layer, after)
    if layer.subnormal_fraction > 0.5 or _fading(layer):
        return "vanishing", (
            f"{layer.subnormal_fraction:.0%} of the cotangent's entries are below the smallest normal {layer.dtype}, "
            f"{layer.zero_fraction:.0%} are 0: {_UNDERFLOW}."
        )
    return _far(layer, last)


def _zero(layer: LayerFlow, after: LayerFlow | None) -> tuple[str, str]:
    if after is None:
        return "no gradient", ""
    if after.verdict == "dead":
        return "dead", f"nothing comes back through `{after.name}`, which is dead."
    if after.verdict == "saturated" or layer.saturated >= 0.5:
        where = layer if layer.saturated >= 0.5 else after
        return "saturated", f"nothing comes back through `{where.name}`. {_saturated(where)}"
    if after.cotangent_norm == 0 and after.verdict != "no gradient":
        return after.verdict, f"nothing comes back through `{after.name}`."
    if after.verdict == "vanishing" or _near_zero(after.cotangent_largest, layer.dtype):
        return "vanishing", (
            f"the cotangent has underflowed to 0 in {layer.dtype} behind it: at `{after.name}` its largest entry was "
            f"{after.cotangent_largest:.2g}; {_UNDERFLOW}."
        )
    return "no gradient", ""


def _far(layer: LayerFlow, last: LayerFlow | None) -> tuple[str, str]:
    known = [s for s in layer.steps if s > 0]
    if len(known) > 1:
        change = known[0] / known[-1]
        over = f"through its {len(layer.steps)} steps the cotangent's norm becomes {change:.2g} times what it was"
        if change < 1 / FAR:
            return "vanishing", f"{over}; {_TIME}."
        if change > FAR:
            return "exploding", f"{over}; clip by the global norm, use orthogonal recurrent weights or a gated cell."
    if last is None or not layer.cotangent_norm:
        return "healthy", ""
    change = layer.cotangent_norm / last.cotangent_norm
    over = f"the cotangent's norm is {change:.2g} times that at `{last.name}`"
    if change < 1 / FAR:
        if layer.saturated >= 0.5:
            return "saturated", f"{over}. {_saturated(layer)}"
        return "vanishing", f"{over}; {_DEPTH}."
    if change > FAR:
        return "exploding", f"{over}; scale the initial weights down, add normalization, or clip by the global norm."
    return "healthy", ""


def _nonfinite(layer: LayerFlow, after: LayerFlow | None) -> str:
    said = f"{layer.nonfinite} entries are inf or nan"
    norms = [s for s in layer.steps if 0 < s < math.inf] or [1.0]
    if (after is not None and after.verdict == "exploding") or max(norms) > FAR * min(norms):
        return (
            f"{said}: the gradient explodes before it gets there; scale the initial weights down, or add normalization."
        )
    return f"{said}; robustad.audit names the statement that made them."


def _saturated(layer: LayerFlow) -> str:
    return (
        f"{layer.saturated:.0%} of the entries of its nonlinearity are where the derivative is below 1 % of its largest; "
        "scale the initial weights down, normalize what it gets, or use a nonlinearity that does not saturate."
    )


def _fading(layer: LayerFlow) -> bool:
    """Whether most entries are 0 and the others are near the end of the dtype's range."""
    return layer.zero_fraction > 0.5 and _near_zero(layer.cotangent_largest, layer.dtype)


def _near_zero(largest: float, dtype: str) -> bool:
    """Within 2^12 of the smallest number other than 0."""
    return 0 < largest < 2.0**12 * float(jnp.finfo(dtype).smallest_subnormal)
