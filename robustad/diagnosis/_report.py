"""The audit's result: data, its JSON and its scalars. How it looks on a terminal is `_screen`'s."""

import dataclasses
from typing import Any

import jax
import numpy as np

from robustad.diagnosis._accuracy import Accuracy, norm, wide
from robustad.diagnosis._contribution import Contribution
from robustad.diagnosis._finding import Finding
from robustad.diagnosis._mending import Stabilized
from robustad.diagnosis._ranking import Ranked
from robustad.diagnosis._strict_json import strict_json


@dataclasses.dataclass(frozen=True)
class LeafSummary:
    """One gradient leaf in numbers; `bits_lost` has one entry, or one a slice where `sliced`.

    conditioning: how many of the lost bits are the problem's own, not the program's: what rounding the inputs once would
    lose, in any program. None where it was not looked into (see `Report.ranking`).
    """

    name: str
    bits_lost: tuple[float, ...] | None
    sliced: bool
    precision: int | None
    nonfinite: int
    norm: float
    shape: tuple[int, ...]
    dtype: str
    conditioning: float | None = None

    @property
    def worst(self) -> float | None:
        return None if self.bits_lost is None else max(self.bits_lost)


def summary(name: str, leaf: Accuracy, ranked: Ranked | None) -> LeafSummary:
    bits = None if leaf.bits_lost is None else tuple(float(b) for b in np.atleast_1d(leaf.bits_lost))
    shape, dtype = tuple(np.shape(leaf.gradient)), str(leaf.gradient.dtype)
    own = None
    if ranked is not None and bits is not None and leaf.precision is not None:
        own = float(np.clip(max(bits) + np.log2(max(ranked.condition, 1e-300)), 0.0, max(bits)))
    return LeafSummary(
        name, bits, leaf.slices is not None, leaf.precision, leaf.nonfinite, leaf.norm, shape, dtype, own
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What `rad.audit` says of a gradient.

    Attributes:
        ok: value and gradient are finite, and no leaf, nor slice of a leaf that a scan runs over, loses more than
            threshold * p bits, p being the precision of the narrowest float dtype that its computation passes through.
        value: the working value, a scalar array (in mode "jvp" the outputs, in one array where they are several).
        gradient: the working gradient, a pytree as `jax.grad` gives it.
        reference: the same in float64 (NumPy arrays); None where no reference is defined: the float64 run is not finite
            there, or the leaf is wholly in float64 already.
        bits_lost: the same pytree with a float a leaf, or an array of one entry a slice where a scan runs over the leaf's
            first axis; None where there is no reference.
        findings: one a cause, those behind ok = False.
        notes: the rest: places where the shadow was lost, leaves without a reference, causes that do not decide.
        value_bits_lost, value_reference: the same for the value.
        function, threshold, dtype, equations: what was audited, the narrowest float type in it, and how large it is.
        ranking: for the leaves that have lost most (not those that are not finite), the statements whose own errors make
            up the leaf's, largest first: `Contribution`s. Empty where the gradient is good, unless asked for.
        seconds: how long the audit took.
        leaves: a `LeafSummary` of each gradient leaf, in order.
        stabilized: what `robustad.stabilize` makes of it, if asked for (`audit(f, stabilized=True)`) and not ok.
    """

    value: Any
    gradient: Any
    reference: Any
    bits_lost: Any
    seconds: float
    ok: bool = dataclasses.field(metadata={"static": True})
    findings: tuple[Finding, ...] = dataclasses.field(metadata={"static": True})
    notes: tuple[Finding, ...] = dataclasses.field(metadata={"static": True})
    value_bits_lost: float | None = dataclasses.field(metadata={"static": True})
    value_reference: Any
    function: str = dataclasses.field(metadata={"static": True})
    threshold: float = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})
    equations: int = dataclasses.field(metadata={"static": True})
    leaves: tuple[LeafSummary, ...] = dataclasses.field(metadata={"static": True})
    ranking: tuple[Contribution, ...] = dataclasses.field(default=(), metadata={"static": True})
    stabilized: Stabilized | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def _size(self) -> float:
        return _size(self.value)

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger: ok (0 or 1), findings, the value's and every leaf's bits lost and norm.

        A leaf that a scan runs over counts with its worst slice; leaves without a reference have no bits.
        """
        out = {"ok": float(self.ok), "findings": float(len(self.findings)), "value": self._size}
        if self.value_bits_lost is not None:
            out["bits_lost/value"] = self.value_bits_lost
        for leaf in self.leaves:
            if leaf.worst is not None:
                out[f"bits_lost/{leaf.name}"] = leaf.worst
            out[f"norm/{leaf.name}"] = leaf.norm
            out[f"nonfinite/{leaf.name}"] = float(leaf.nonfinite)
        return out

    def to_json(self, **options: Any) -> str:
        """The report without its arrays, as strict JSON (non-finite numbers are the strings "nan", "inf", "-inf").

        `options` are passed to `json.dumps`.
        """
        held = {
            "function": self.function,
            "ok": self.ok,
            "threshold": self.threshold,
            "dtype": self.dtype,
            "value": self._size,
            "value_reference": None if self.value_reference is None else _size(self.value_reference),
            "value_bits_lost": self.value_bits_lost,
            "equations": self.equations,
            "seconds": self.seconds,
            "leaves": {leaf.name: dataclasses.asdict(leaf) for leaf in self.leaves},
            "findings": [dataclasses.asdict(f) | {"source": f.source} for f in self.findings],
            "notes": [dataclasses.asdict(f) | {"source": f.source} for f in self.notes],
            "stabilized": None if self.stabilized is None else dataclasses.asdict(self.stabilized),
            "ranking": [dataclasses.asdict(c) | {"source": c.source} for c in self.ranking],
        }
        return strict_json(held, **options)

    def to_html(self) -> str:
        """The report as one self-contained page: no script, nothing to fetch, in light and dark.

        It holds the text of the user's lines as they are now.
        """
        from robustad.diagnosis._html import page

        return page(self)

    def _repr_html_(self) -> str:
        from robustad.diagnosis._html import fragment

        return fragment(self)

    def __str__(self) -> str:
        from robustad.diagnosis._screen import screen  # data apart from presentation

        return "\n".join(line.text for line in screen(self))

    __repr__ = __str__


def _size(x: Any) -> float:
    """A scalar itself, the 2-norm of an array."""
    x = np.asarray(x).astype(wide(np.asarray(x)))
    return float(x) if x.shape == () and not np.iscomplexobj(x) else norm(x)
