"""The program of a user's function, or an error that says why there is none."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robustad import _jaxpr
from robustad._jaxpr import Body
from robustad.diagnosis._arguments import AuditError
from robustad.diagnosis._user_errors import told


def traced(f: Callable[..., Any], name: str, tool: str, *examples: Any) -> tuple[Body, Any]:
    """The program of `f(*examples)` and the shapes of its results, for the `tool` that was called on the function `name`.

    Raises:
        AuditError: it does not trace, or its program uses mutable arrays.
    """
    try:
        program, shapes = _jaxpr.trace(f, *examples)
    except AuditError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise AuditError(
            f"`{name}` cannot be traced: {told(error)}\n"
            f"`{tool}` traces it as `jax.jit(f)` would; make that call work first. Likely causes: (a) Python control flow "
            "on an array: use jnp.where or lax.cond; (b) an argument that must be static: bind it with functools.partial; "
            "(c) wrong arguments or shapes."
        ) from error
    for site in _jaxpr.sites(program):
        if any(_jaxpr.is_mutable(v) for v in (*site.equation.invars, *site.equation.outvars)):
            where = f" at {site.location.file}:{site.location.line}" if site.location else ""
            raise AuditError(
                f"the program of `{name}` uses a mutable array (`{site.primitive}`{where}), which `{tool}` cannot follow; "
                "write that part with values, for example jnp.ndarray.at or a scan's carry."
            )
    return program, shapes


def refuse_tracers(tool: str, arguments: Any) -> None:
    """Raises an AuditError where a tool is called on arrays that are being traced."""
    # Under `jit` a sum of Python numbers is traced too.
    if any(_jaxpr.is_traced(x) for x in (*jax.tree.leaves(arguments), jnp.add(0, 0))):
        raise AuditError(f"`{tool}` was called on traced arrays (under jit, grad or vmap). Call it outside, on arrays.")
