"""States of a loop on disk, between the forward pass and the backward pass."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import threading
from collections.abc import Sequence
from typing import IO, Any

import jax
import numpy as np
from jax import Array


class DiskTier:
    """Temporary files for the states of loops: `checkpointed_scan(..., tier=DiskTier())`.

    Every run of a loop that is differentiated has one file, which is removed once its gradient is there. A file has no name
    while it is open, so that nothing is left behind in any case. As a context manager, or with `close()`, it also lets go
    of runs whose backward pass has never come.

    Args:
        directory: where; None: the system's directory of temporary files (which may lie in memory).

    Raises:
        TypeError, ValueError: `directory` is no path, or there is none of that name.

    >>> from robustad.memory import DiskTier
    >>> with DiskTier() as tier:
    ...     tier.runs, tier.bytes
    (0, 0)
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None):
        if directory is not None and not isinstance(directory, str | os.PathLike):
            raise TypeError(
                f"`directory` must be a path or None; got {directory!r} of type {type(directory).__name__}."
            )
        if directory is not None and not os.path.isdir(directory):
            raise ValueError(f"`directory` is {directory!r}, which is no directory. Make it first: `os.makedirs`.")
        self._directory = directory
        self._files: dict[int, IO[bytes]] = {}
        self._sizes: dict[int, int] = {}
        self._lock = threading.Lock()  # callbacks run in a thread of the program
        self._numbers = itertools.count()
        self._closed = False

    @property
    def runs(self) -> int:
        """How many runs wait for their backward pass."""
        return len(self._files)

    @property
    def bytes(self) -> int:
        """What they take on disk."""
        with self._lock:
            return sum(self._sizes.values())

    def close(self) -> None:
        """Removes every file; no loop can use this tier any more."""
        with self._lock:
            self._closed = True
            for file in self._files.values():
                file.close()
            self._files.clear()
            self._sizes.clear()

    def __enter__(self) -> DiskTier:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # What the compiled program calls, in the order of the program.

    def open_run(self, *_: Any) -> np.ndarray:
        with self._lock:
            if self._closed:
                raise RuntimeError(
                    "The DiskTier of a loop is closed. Call the compiled function inside its `with` block."
                )
            number = next(self._numbers)
            self._files[number] = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 (the backward pass closes it)
            self._sizes[number] = 0
            return np.int32(number)  # pyright: ignore[reportReturnType]

    def write(self, run: Any, place: Any, *state: Any) -> np.ndarray:
        arrays = [np.asarray(x) for x in state]
        size = sum(x.nbytes for x in arrays)
        with self._lock:
            file = self._file(run)
            file.seek(int(place) * size)
            for x in arrays:
                file.write(np.ascontiguousarray(x).tobytes())
            self._sizes[int(run)] = max(self._sizes[int(run)], (int(place) + 1) * size)
        return np.int32(run)  # pyright: ignore[reportReturnType]

    def read(self, run: Any, place: Any, like: Sequence[Any]) -> list[np.ndarray]:
        sizes = [math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in like]
        with self._lock:
            file = self._file(run)
            file.seek(int(place) * sum(sizes))
            data = [file.read(n) for n in sizes]
        return [np.frombuffer(d, x.dtype).reshape(x.shape) for x, d in zip(like, data)]

    def close_run(self, run: Any) -> None:
        with self._lock:
            self._file(run).close()
            del self._files[int(run)], self._sizes[int(run)]

    def _file(self, run: Any) -> IO[bytes]:
        if int(run) not in self._files:
            raise RuntimeError(
                "The states of this run are no longer on disk: each backward pass reads them once. Call the forward pass "
                "again for a second one, or keep the DiskTier open for as long as gradients are to come. (In a loop around "
                "this one JAX runs it once for all iterations if it is the same in all of them: take it out of that loop.)"
            )
        return self._files[int(run)]


def as_data(x: Array) -> Array:
    """Of a random key its numbers, anything else as it is."""
    return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # pyright: ignore


def as_before(data: Array, like: Any) -> Array:
    """The inverse of `as_data`."""
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):  # pyright: ignore
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
    return data
