"""What to tell the user of an event: a cause and a remedy in a sentence each."""

import linecache
import re

import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr
from robustad._jaxpr import Location, Site
from robustad.arithmetic._edges import LARGEST, TINIEST
from robustad.arithmetic._origin import Event, Invalid
from robustad.diagnosis._blame import Blamed

INVALID = {
    Invalid.ZERO_TIMES_INF: "0*inf",
    Invalid.INF_MINUS_INF: "inf-inf",
    Invalid.ZERO_BY_ZERO: "0/0",
    Invalid.INF_BY_INF: "inf/inf",
    Invalid.LOG_ZERO: "log 0",
    Invalid.NEGATIVE: "sqrt of negative",
}
SOLVING = frozenset("cholesky triangular_solve lu eigh svd qr geqrf householder_product tridiagonal_solve".split())


def sentences(
    b: Blamed,
    kind: str,
    primitive: str,
    forward: bool,
    where: Location | None,
    gate: Site | None,
    right: bool,
    softmax: bool,
) -> tuple[str, str]:
    """(cause, remedy) of a finding.

    `gate`: the select whose untaken branch is to blame. `right`: whether the value is. `softmax`: whether exponentials are
    divided by their sum.
    """
    got, true = (float(x) for x in b.sample["out"])
    name = b.site.primitive
    info = jnp.finfo(next(_jaxpr.aval(v).dtype for v in b.site.equation.outvars if _jaxpr.is_inexact(v)))
    dtype = str(info.dtype)
    inputs = [tuple(float(x) for x in pair) for pair in b.sample["operands"] if np.isfinite(pair[0])]
    shown = f"{_number(got)}, truly {_truly(true)}"
    step = f" at step {int(b.sample['iteration'])} of the loop" if int(b.sample["iteration"]) >= 0 else ""
    text = linecache.getline(where.file, where.line) if where else ""
    match kind:
        case "overflow":
            cause = f"`{name}` gives {shown}{step}: above the largest {dtype} ({_number(float(info.max))})."
            return cause, _overflow_remedy(text, name, dtype)
        case "underflow":
            cause = f"`{name}` gives {shown}{step}: below the smallest normal {dtype} ({_number(float(info.tiny))})."
            return cause, _underflow_remedy(text, name, dtype, forward, softmax)
        case "cancellation":
            pair = f" ({_number(inputs[0][0])} and {_number(inputs[1][0])})" if len(inputs) == 2 else ""
            cause = f"`{name}` cancels nearly equal terms{pair}{step}: what is left, {shown}, is their rounding."
            return cause, _cancellation_remedy(text)
        case "absorption":
            cause = f"terms too small beside the sum are rounded away{step}: `{name}` gives {shown}."
            return cause, (
                "accumulate in float32 or wider (dtype=, preferred_element_type=), or use the form that keeps the small "
                "term, such as jnp.log1p or jnp.expm1."
            )
        case "unstable-derivative":
            cause = f"the derivative rule of `{primitive}` computes {shown} by `{name}`{step}"
            cause += "; the value is right." if right else "."
            return cause, (
                f"give `{primitive}` here a derivative that does not cancel or leave the range (jax.custom_jvp), or "
                "rewrite the statement in log-space or in terms of what does not saturate."
            )
        case "zero-times-inf":
            if gate is not None:
                line = f" at line {gate.location.line}" if gate.location else ""
                return (
                    f"the untaken branch of the `where`{line} sends a zero cotangent into `{primitive}`, whose "
                    "derivative there is infinite: 0 * inf is NaN.",
                    "make the argument safe before the function too (double where): "
                    "y = f(jnp.where(ok, x, 1.)); jnp.where(ok, y, other).",
                )
            at = " at 0" if not forward and any(x == 0 for x, _ in inputs) else ""
            return (
                f"`{primitive}` has an infinite {'value' if forward else 'derivative'}{at}, which meets a zero: "
                "0 * inf is NaN.",
                "keep the argument away from the singular point (a double where, or an eps inside the sqrt or log), "
                "or use a function that knows the limit (jax.scipy.special.xlogy, entr).",
            )
        case "vanishing" | "exploding":
            grows = kind == "exploding"
            return (
                f"the cotangent {'grows' if grows else 'shrinks'} from step to step through `{name}` until it leaves "
                f"the range of {dtype}{step} ({shown}).",
                "clip the cotangent inside the loop or rescale the recurrence (orthogonal initialisation, gating, "
                "normalisation), or truncate the backward pass."
                if grows
                else "scale the loss (dynamic loss scaling), use residual connections, gating or normalisation, or a "
                "wider dtype for the cotangent.",
            )
        case "nan" if b.event == Event.OUT_OF_BOUNDS:
            return (
                "an index is out of bounds, and the gather fills with NaN there.",
                "keep the indices inside the axis, or choose another mode (jnp.take(..., mode='clip')).",
            )
        case "nan":
            outside = b.invalid in (None, Invalid.LOG_ZERO, Invalid.NEGATIVE)
            klass = "outside its domain" if outside or b.invalid is None else f"undefined ({INVALID[b.invalid]})"
            values = f" of {', '.join(_number(x) for x, _ in inputs)}" if inputs else ""
            return (
                f"`{name}`{values} is {klass}{step}: it gives {_number(got)}, truly {_truly(true)}.",
                "add jitter to the diagonal, or factor in float64."
                if name in SOLVING
                else "keep the argument inside the domain before the function, or mask the row out (double where).",
            )
        case _:
            cause = f"`{name}` amplifies the rounding of its operands{step}: it gives {shown}."
            return cause, "reformulate the statement, regularise the problem, or compute this part in float64."


def _number(x: float) -> str:
    return f"{x:.6g}"


def _truly(x: float) -> str:
    """A twin, which stays at the edges of its range."""
    edge = {TINIEST: "less than ", LARGEST: "more than "}.get(abs(x), "")
    return f"{edge if x > 0 or not edge else 'in magnitude ' + edge}{_number(abs(x) if edge else x)}"


def _overflow_remedy(text: str, name: str, dtype: str) -> str:
    if dtype == "float16":
        return "compute this statement in float32 (bfloat16 has the range), or scale its operands down first."
    if name in ("exp", "exp2", "expm1", "cosh", "sinh"):
        return (
            "stay in log-space: jax.nn.logsumexp, jax.nn.log_softmax, jax.nn.softplus, jnp.logaddexp, or subtract the "
            "maximum before the exp."
        )
    return "rescale the operands before this statement, or carry it in log-space."


def _underflow_remedy(text: str, name: str, dtype: str, forward: bool, softmax: bool) -> str:
    if not forward:
        return "scale the loss (dynamic loss scaling, optax.contrib or jmp), or keep this cotangent in float32."
    for pattern, remedy in (
        (r"\bsoftmax", "jax.nn.log_softmax in place of softmax and log"),
        (r"\bsigmoid|\blogistic", "jax.nn.log_sigmoid in place of sigmoid and log"),
        (r"\bprod\b|\bcumprod\b", "sum logarithms in place of the product"),
        (r"norm\(|\*\*\s*2|square", "divide by the largest magnitude before squaring"),
    ):
        if re.search(pattern, text):
            return f"{remedy}."
    if softmax:
        return (
            "jax.nn.log_softmax(z), which is z - jax.nn.logsumexp(z), in place of the quotient of exponentials and log "
            "(of one z and a constant: jax.nn.log_sigmoid)."
        )
    if name == "exp":
        return "stay in log-space: jax.nn.logsumexp, jax.nn.log_softmax or jax.scipy.stats' logpdf in place of exp and log."
    if name == "div":
        return "carry the quotient in log-space: log(a / b) is log(a) - log(b)."
    return "carry the product in log-space, or rescale it at every step."


def _cancellation_remedy(text: str) -> str:
    for pattern, remedy in (
        (r"cos\(", "1 - cos(x) is 2 * sin(x / 2)**2"),
        (r"exp\(", "use jnp.expm1"),
        (r"erf\(", "use the complement: jax.scipy.special.erfc, or log_ndtr for its logarithm"),
        (r"sqrt\(.*-.*sqrt\(", "multiply by the conjugate: sqrt(a) - sqrt(b) is (a - b) / (sqrt(a) + sqrt(b))"),
        (
            r"sqrt\(.*\)\s*-|-.*sqrt\(",
            "multiply by the conjugate: sqrt(a) - b is (a - b**2) / (sqrt(a) + b), with a - b**2 by its own formula",
        ),
        (
            r"(\*\*\s*2|square\(|\*).*\)\s*-\s.*(\*\*\s*2|square\(|\*)",
            "subtract the mean before squaring (jnp.var), or use a difference of factors",
        ),
        (r"sigmoid|tanh|softmax", "use the complement by its own formula: 1 - sigmoid(x) is sigmoid(-x)"),
    ):
        if re.search(pattern, text):
            return f"{remedy}."
    return (
        "use a form without the subtraction (jnp.expm1, jnp.log1p, a difference of factors), or centre the data first."
    )
