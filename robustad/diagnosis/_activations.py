"""The elementwise nonlinearities of a program that can saturate or die, and how much of them has."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad import _jaxpr
from robustad._jaxpr import Call, Equation

FIELDS = ("count", "flat", "units", "dead")


def kind(eqn: Equation) -> str:
    """ "relu", "tanh", "logistic" or "erf" where an equation is one, by itself or as a function with a rule of its own."""
    name = eqn.primitive.name
    if name in ("tanh", "logistic", "erf"):
        return name
    if name == "max" and any((lit := _jaxpr.literal(v)) is not None and not np.any(lit) for v in eqn.invars):
        return "relu"
    inner = _jaxpr.control(eqn)
    if name in ("custom_jvp_call", "jit", "pjit") and isinstance(inner, Call) and len(inner.body.equations) == 1:
        (inside,) = inner.body.equations
        return kind(inside) if list(inside.outvars) == list(inner.body.outputs) else ""
    return ""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def watched(y: Array, sums: Array, kind: str) -> Array:
    """y, the output of a nonlinearity; the gradient with respect to `sums` (4 numbers) is what `_record` says of it."""
    return y


def _forward(y: Array, sums: Array, kind: str) -> tuple[Array, Array]:
    return y, _record(y, kind).astype(sums.dtype)


def _backward(kind: str, found: Array, cotangent: Array) -> tuple[Array, Array]:
    return cotangent, found


watched.defvjp(_forward, _backward)


def _record(y: Array, kind: str) -> Array:
    """Entries; those whose derivative is 0 (relu) or below 1 % of its largest; units (along the last axis); those of them of
    which all entries are 0 (relu)."""
    flat = _flat(y, kind)
    units = flat.reshape(-1, flat.shape[-1] if flat.ndim else 1)
    dead = jnp.sum(jnp.all(units, 0)) if kind == "relu" else 0
    return jnp.stack([jnp.asarray(n, jnp.float32) for n in (flat.size, jnp.sum(flat), units.shape[1], dead)])


def _flat(y: Any, kind: str) -> Array:
    match kind:
        case "relu":
            return y <= 0
        case "tanh":
            return jnp.abs(y) > np.sqrt(0.99)
        case "logistic":  # y (1 - y) < 0.01 / 4
            return jnp.abs(y - 0.5) > np.sqrt(0.99) / 2
        case _:  # exp(-x^2) < 0.01
            return jnp.abs(y) > 0.9976
