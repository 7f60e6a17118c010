"""A device by its name, and a room without the caller's contexts in which small programs are measured on it."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import jax

Result = TypeVar("Result")
Device: TypeAlias = Any  # a jax.Device, which type checkers do not know as a type


def find(device: Any) -> Device:
    """A device from itself, the name of a platform, or None for the one on which computations run by default.

    Raises:
        ValueError: no such device.
        TypeError: neither a device, nor a name, nor None.
    """
    if device is None:
        device = setting("jax_default_device") or jax.devices()[0]
    if isinstance(device, str):
        try:
            return jax.devices(device)[0]
        except RuntimeError as error:
            have = ", ".join(sorted({f"`{d.platform}`" for d in jax.devices()}))
            raise ValueError(
                f"`device`: there is no `{device}` here; JAX has {have}. Install the JAX of that platform, or leave it out."
            ) from error
    if not isinstance(device, jax.Device):
        raise TypeError(
            f"`device` must be a device of jax.devices(), a platform such as 'cpu', or None; got {device!r}."
        )
    if device not in jax.local_devices(backend=device.platform):
        raise ValueError(f"`device`={device} belongs to another process; pass one of jax.local_devices().")
    return device


def setting(name: str) -> Any:
    """A setting of `jax.config` as it holds where this is called, within a context manager too."""
    return getattr(jax.config, name)


def apart(device: Device, work: Callable[[], Result]) -> Result:
    """`work()` on a device with float64 on, in a thread of its own, which has none of the caller's traces and settings."""

    def alone() -> Result:
        with contextlib.ExitStack() as stack:
            for context in (jax.debug_nans, jax.debug_infs, jax.disable_jit):
                stack.enter_context(context(False))
            stack.enter_context(jax.default_device(device))
            stack.enter_context(jax.enable_x64(True))
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            return work()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(alone).result()
