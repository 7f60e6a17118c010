"""What `gradient_flow` says: a row a layer, and what they say together."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustad.diagnosis import _flow_table
from robustad.diagnosis._strict_json import strict_json

FINE = ("healthy", "no gradient")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerFlow:
    """A layer (a slice of one, or one use of it) and the gradient that comes back to it.

    Attributes:
        name: its module path, with [i] for the i-th slice of stacked leaves and (use k) for a further use.
        parameters: the names of its leaves.
        dtype: of its output, and so of the cotangent.
        file, line: the statement that makes its output; "" and 0 where that is not known.
        gradient_norm, gradient_rms, gradient_largest: of the gradient of its parameters (of all their uses together).
        parameter_norm: of its parameters.
        cotangents: how many cotangents came back to its output; 0 where none did.
        cotangent_norm, cotangent_rms, cotangent_largest: of the cotangent of its output, over all steps; NaN where the
            program has none.
        zero_fraction: of its entries.
        subnormal_fraction: the share of its entries, zeros left out, below the smallest normal number of its dtype (0 for
            float64: not counted).
        below_float16, below_bfloat16: the same share, were one to train in these.
        nonfinite: how many entries of the cotangent and of the gradient are inf or NaN; the numbers above leave them out.
        saturated: the share of flat entries in the tanh, logistic and erf behind the layer; NaN where there are none.
        dead: the share of units (along the last axis) in the relu behind it that are 0 for every example; NaN likewise.
        inactive: the share of entries there that are 0; half of them is usual.
        steps: the norms of the cotangent, one a step in the order of the steps, where a loop uses the layer.
        verdict, reason: of `gradient_flow`, and a sentence where it is bad.
    """

    name: str = dataclasses.field(metadata={"static": True})
    parameters: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})
    file: str = dataclasses.field(metadata={"static": True})
    line: int = dataclasses.field(metadata={"static": True})
    gradient_norm: float
    gradient_rms: float
    gradient_largest: float
    parameter_norm: float
    cotangents: int
    cotangent_norm: float
    cotangent_rms: float
    cotangent_largest: float
    zero_fraction: float
    subnormal_fraction: float
    below_float16: float
    below_bfloat16: float
    nonfinite: int
    saturated: float
    dead: float
    inactive: float
    steps: tuple[float, ...]
    verdict: str = dataclasses.field(default="healthy", metadata={"static": True})
    reason: str = dataclasses.field(default="", metadata={"static": True})

    @property
    def ok(self) -> bool:
        """Whether the verdict is "healthy" or "no gradient"."""
        return self.verdict in FINE

    @property
    def ratio(self) -> float:
        """The gradient's norm over that of the parameters; inf where they are all 0."""
        return _over(self.gradient_norm, self.parameter_norm)

    @property
    def factor(self) -> float:
        """What the norm is multiplied by from a step to the one before, fitted like that of all layers."""
        return power(fitted(self.steps))

    def underflow_steps(self, dtype: Any) -> float:
        """After how many steps back the cotangent's rms falls below a dtype's smallest normal number, going on like this.

        It is inf where it does not fall, NaN where there are no steps.
        """
        last = next((s for s in reversed(self.steps) if s > 0), math.nan)
        entries = (self.cotangent_norm / self.cotangent_rms) ** 2 if self.cotangent_rms > 0 else math.nan
        return _depth(last / math.sqrt(entries / max(len(self.steps), 1)), fitted(self.steps), dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GradientFlow:
    """What `gradient_flow` says of a function at a point.

    Attributes:
        layers: a `LayerFlow` each, in the order of the program: the gradient comes from the last one.
        value: of the function.
        function: its name.
    """

    layers: tuple[LayerFlow, ...]
    value: float
    function: str = dataclasses.field(metadata={"static": True})

    @property
    def ok(self) -> bool:
        """Whether the verdict is "healthy": every layer's is that or "no gradient", and not all are the latter."""
        return self.verdict == "healthy"

    @property
    def worst(self) -> LayerFlow | None:
        """The layer where the trouble begins, seen from the loss: non-finite numbers first. None where all is well."""
        bad = [layer for layer in self.layers if not layer.ok]
        broken = [layer for layer in bad if layer.verdict == "non-finite"]
        return (broken or bad or [None])[-1]

    @property
    def verdict(self) -> str:
        """That of the worst layer; "non-finite" where the value is; "no gradient" where no layer has one; else "healthy"."""
        if worst := self.worst:
            return worst.verdict
        if not math.isfinite(self.value):
            return "non-finite"
        return "no gradient" if all(layer.verdict == "no gradient" for layer in self.layers) else "healthy"

    @property
    def slope(self) -> float:
        """log10 of `factor`."""
        return self._log_factor / math.log(10)

    @property
    def factor(self) -> float:
        """What the cotangent's norm is multiplied by from a layer to the one before it in the program.

        Fitted to all of them by least squares on logarithms; NaN where fewer than two have a norm.
        """
        return power(self._log_factor)

    @property
    def _log_factor(self) -> float:
        return fitted([layer.cotangent_norm for layer in self.layers])

    @property
    def ratio(self) -> float:
        """The cotangent's norm at the first layer over that at the last; NaN where no layer has one."""
        norms = [layer.cotangent_norm for layer in self.layers if layer.cotangents]
        return _over(norms[0], norms[-1]) if norms else math.nan

    def underflow_depth(self, dtype: Any) -> float:
        """How many layers before the last the cotangent's rms falls below the smallest normal number of a dtype, going on as
        `factor` says; inf where it does not fall."""
        last = next((x.cotangent_rms for x in reversed(self.layers) if x.cotangent_rms > 0), math.nan)
        return _depth(last, self._log_factor, dtype)

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger."""
        out = {"ok": float(self.ok), "value": self.value, "factor": self.factor, "ratio": self.ratio}
        for layer in self.layers:
            for name in ("cotangent_norm", "gradient_norm", "ratio", "zero_fraction", "saturated", "dead"):
                out[f"{layer.name}/{name}"] = getattr(layer, name)
        return out

    def to_json(self, **options: Any) -> str:
        """As strict JSON (non-finite numbers are the strings "inf" and "nan"); `options` are passed to `json.dumps`."""
        said = {"verdict": self.verdict, "ok": self.ok, "factor": self.factor, "ratio": self.ratio}
        return strict_json(said | dataclasses.asdict(self), **options)

    def __str__(self) -> str:
        return "\n".join(_flow_table.lines(self))


def fitted(norms: Sequence[float]) -> float:
    """The logarithm of the factor, from the last to the first, of the geometric series nearest to the norms other than 0."""
    known = [(k, math.log(x)) for k, x in enumerate(norms) if 0 < x < math.inf]
    if len(known) < 2:
        return math.nan
    at, logs = np.array(known).T
    at = at - at.mean()
    return -float(at @ (logs - logs.mean()) / (at @ at))


def power(exponent: float) -> float:
    """e to an exponent; inf where it overflows."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.exp(exponent))


def _over(a: float, b: float) -> float:
    return a / b if b else math.inf if a else math.nan


def _depth(last: float, log_factor: float, dtype: Any) -> float:
    tiny = float(jnp.finfo(dtype).tiny)
    if math.isnan(last) or math.isnan(log_factor):
        return math.nan
    return math.inf if log_factor >= 0 else max((math.log(last) - math.log(tiny)) / -log_factor, 0.0)
