"""The arguments of a call on disk, so that `robustad audit FILE.py:loss --npz FILE` can replay it elsewhere.

Plain .npz holds arrays of NumPy's own dtypes under names. Beside them the file holds a plan, JSON under the name `PLAN`: the
nesting of each argument, and of each leaf what .npz cannot say (bfloat16 and its like, typed keys, Python numbers).
"""

import inspect
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustad import _jaxpr

PLAN = "__robustad__"


def save_arguments(path: str | os.PathLike[str], f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """Writes the arguments of `f(*args, **kwargs)` to an .npz file that `robustad audit --npz` reads.

    Arrays are stored bit for bit under the names of the parameters of `f`, `params/enc/W` within nested dicts and sequences.
    Dicts, lists, tuples, arrays of all JAX dtypes, typed PRNG keys, Python numbers, strings and None come back as they were;
    other mappings come back as dicts, and where an array was committed to a device is not kept. Nothing is pickled.

    Args:
        path: the file, written over where it exists; no suffix is added.
        f: the function, for the names of its parameters; it is not called.

    Raises:
        ValueError: the arguments do not fit `f`; an argument holds what cannot be stored (a module, a function, a tracer;
            the message names it); or two leaves have one name.

    Example:
        >>> import pathlib, tempfile, jax.numpy as jnp, numpy as np
        >>> from robustad.diagnosis import save_arguments
        >>> def loss(params, x):
        ...     return jnp.sum(params["w"] * x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "step.npz"
        ...     save_arguments(file, loss, {"w": jnp.ones(2)}, jnp.arange(2.0))
        ...     np.load(file)["params/w"]
        array([1., 1.], dtype=float32)
    """
    try:
        bound = inspect.signature(f).bind(*args, **kwargs).arguments
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the arguments do not fit `{getattr(f, '__name__', f)}`: {error}; pass them after `f` as in the call to it."
        ) from error
    arrays: dict[str, np.ndarray] = {}
    plan = {name: _plan(name, x, arrays) for name, x in bound.items()}
    arrays[PLAN] = np.frombuffer(json.dumps(plan).encode(), np.uint8)
    with zipfile.ZipFile(path, "w") as archive:  # numpy.savez would refuse an argument named `file`
        for name, x in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, x, allow_pickle=False)


def restored(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The arguments by the names of their parameters, from the arrays of a file that `save_arguments` wrote.

    Raises:
        KeyError, TypeError, ValueError: the file was changed.
    """
    plan = json.loads(arrays[PLAN].tobytes())
    return {name: _tree(part, arrays) for name, part in plan.items()}


# -------------------------------------------------------------------------------------------------- writing


def _plan(name: str, x: Any, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The plan of one part of an argument; its arrays are put beside."""
    if isinstance(x, Mapping):
        if wrong := [k for k in x if type(k) not in (str, int)]:
            raise ValueError(
                f"`{name}` has the key {wrong[0]!r} of type {type(wrong[0]).__name__}; expected str or int."
            )
        return {"dict": [[k, _plan(f"{name}/{k}", v, arrays)] for k, v in x.items()]}
    if type(x) in (list, tuple):
        return {type(x).__name__: [_plan(f"{name}/{k}", v, arrays) for k, v in enumerate(x)]}
    if x is None or type(x) in (bool, int, float, str):
        return {"python": x}
    if type(x) is complex:
        return {"complex": [x.real, x.imag]}
    if isinstance(x, jax.Array | np.ndarray | np.generic):
        return _array(name, x, arrays)
    raise ValueError(
        f"`{name}` is of type {type(x).__name__}, which an .npz cannot hold; expected arrays, numbers, and dicts, lists and "
        "tuples of them. Pass a dict of its arrays, and build it from them within the function."
    )


def _array(name: str, x: Any, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    if _jaxpr.is_traced(x):
        raise ValueError(
            f"`{name}` is a tracer ({x.aval}), without values to save; call save_arguments outside of jax.jit."
        )
    if name in arrays or name == PLAN:
        raise ValueError(
            f"two leaves have the name `{name}`: a key holds a '/' that stands for nesting. Rename the key."
        )
    plan: dict[str, Any] = {"array": name, "jax": isinstance(x, jax.Array)}
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        plan["key"] = str(jax.random.key_impl(x))
        x = jax.random.key_data(x)
    elif isinstance(x, jax.Array) and x.weak_type and x.shape == ():
        plan["weak"] = True
    held = np.asarray(x)
    if held.dtype.kind not in "biufc":
        if not jnp.issubdtype(held.dtype, jnp.number):
            raise ValueError(f"`{name}` is an array of {held.dtype}, not of numbers.")
        plan["dtype"] = held.dtype.name
        held = held.view(np.dtype(f"u{held.dtype.itemsize}"))
    arrays[name] = held
    return plan


# -------------------------------------------------------------------------------------------------- reading


def _tree(plan: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    match plan:
        case {"dict": items}:
            return {k: _tree(part, arrays) for k, part in items}
        case {"list": parts}:
            return [_tree(part, arrays) for part in parts]
        case {"tuple": parts}:
            return tuple(_tree(part, arrays) for part in parts)
        case {"python": x}:
            return x
        case {"complex": [real, imaginary]}:
            return complex(real, imaginary)
        case {"array": name, **about}:
            return _read(arrays[name], about)
    raise ValueError(f"the plan holds {plan!r}")


def _read(held: np.ndarray, about: dict[str, Any]) -> Any:
    if "key" in about:
        return jax.random.wrap_key_data(jnp.asarray(held), impl=about["key"])
    if "dtype" in about:
        held = held.view(jnp.dtype(about["dtype"]))
    if about.get("weak") and held.dtype == jnp.asarray(held.item()).dtype:
        return jnp.asarray(held.item())
    return jnp.asarray(held) if about["jax"] else held
