"""What the command line is pointed at: a function in a file of the user's, and the arguments to call it with."""

import contextlib
import difflib
import importlib.util
import inspect
import logging
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from robustad.diagnosis import _replay
from robustad.diagnosis._user_errors import place

log = logging.getLogger("robustad")


class CommandError(Exception):
    """What keeps a command from running: what was got, and what to do."""


# ------------------------------------------------------------------------------------------------- the file


def split(target: str) -> tuple[Path, str]:
    """The path and the function that FILE.py:function names."""
    file, _, name = target.rpartition(":")
    path = Path(file)
    if not file or not name:
        raise CommandError(f"`{target}` is not of the form FILE.py:function; write for example model.py:loss.")
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1, cutoff=0.7)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise CommandError(f"{path} does not exist (the working directory is {Path.cwd()}).{hint}")
    if path.is_dir() or path.suffix != ".py":
        raise CommandError(
            f"{path} is {'a directory' if path.is_dir() else 'not a .py file'}; expected FILE.py:function."
        )
    return path, name


@contextlib.contextmanager
def imported(path: Path) -> Iterator[ModuleType]:
    """The module of a file under its own name, with its directory first on `sys.path` while the context lasts."""
    file, name = path.absolute(), path.stem
    if name in sys.modules:
        other = getattr(sys.modules[name], "__file__", None) or "built in"
        raise CommandError(f"{path} has the name of a module in use, `{name}` ({other}): rename the file.")
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise CommandError(f"{path} cannot be imported as a module.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    sys.modules[name] = module
    try:
        log.info("importing %s", path)
        with users_errors(f"{path} cannot be imported"):
            spec.loader.exec_module(module)
        yield module
    finally:
        sys.modules.pop(name, None)
        with contextlib.suppress(ValueError):  # the file may have changed sys.path itself
            sys.path.remove(str(file.parent))


def function(module: ModuleType, path: Path, name: str) -> Callable[..., Any]:
    """The function of that name in the user's module."""
    if not hasattr(module, name):
        own = [k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__]
        public = sorted(k for k in own if not k.startswith("_"))
        near = difflib.get_close_matches(name, public, n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise CommandError(f"{path} has no `{name}`.{hint} It has {_listed(public)}.")
    f = getattr(module, name)
    if not callable(f):
        raise CommandError(
            f"`{name}` of {path} cannot be called: it is of type {type(f).__name__}. Name the loss function."
        )
    return f


# -------------------------------------------------------------------------------------------- the arguments


def from_file(module: ModuleType, path: Path, f: Callable[..., Any], source: str) -> tuple[Any, ...]:
    """The positional arguments of `f` that a function or a tuple of the user's module gives."""
    wanted = ", ".join(p.name for p in _parameters(f) if p.default is p.empty) or "params, batch"
    if not hasattr(module, source):
        raise CommandError(
            f"{path} has no `{source}`, which gives the arguments to audit at. Write one:\n\n"
            f"    def {source}():\n        return {wanted}\n\n"
            "or name another function or tuple of the file by --args NAME, or give arrays by --npz FILE."
        )
    given = getattr(module, source)
    if type(given) is not tuple and callable(given):  # a NamedTuple may be a loss's one argument
        log.info("calling %s()", source)
        with users_errors(f"`{source}()` of {path} fails"):
            given = given()
    if given is None:
        raise CommandError(
            f"`{source}` of {path} gives None; expected the arguments to audit at, as a tuple: {wanted}."
        )
    return given if type(given) is tuple else (given,)


def from_npz(file: Path, f: Callable[..., Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of `f` from the arrays of an .npz file, by the names of its parameters."""
    arrays = _arrays(file)
    saved = _replay.PLAN in arrays
    tree = _restored(file, arrays) if saved else _nested(file, arrays)
    parameters, name = _parameters(f, variadic=saved), getattr(f, "__name__", "the function")
    if unknown := sorted(set(tree) - {p.name for p in parameters}):
        takes = _listed([p.name for p in parameters])
        raise CommandError(f"{file} holds {_listed(unknown)}, which `{name}` does not take: it takes {takes}.")
    if missing := [
        p.name for p in parameters if p.default is p.empty and p.name not in tree and p.kind not in _VARIADIC
    ]:
        raise CommandError(f"{file} lacks {_listed(missing)}, which `{name}` takes: it holds {_listed(sorted(tree))}.")
    bound = inspect.signature(f).bind_partial()
    bound.arguments.update({p.name: tree[p.name] for p in parameters if p.name in tree})
    return bound.args, bound.kwargs


def refuse_unwritable(file: Path | None) -> None:
    """Before the work is done, not after it."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        why = "it is a directory" if file.is_dir() else f"there is no directory {file.parent}"
        raise CommandError(f"{file} cannot be written: {why}. Give the path of a file.")


def save(file: Path, f: Callable[..., Any], given: Sequence[Any], named: dict[str, Any]) -> None:
    """Writes the arguments of a call for `from_npz`."""
    try:
        _replay.save_arguments(file, f, *given, **named)
    except (ValueError, OSError) as error:
        raise CommandError(f"--save {file}: {error}") from error
    print(f"robustad: wrote {file}", file=sys.stderr)


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _parameters(f: Callable[..., Any], variadic: bool = False) -> list[inspect.Parameter]:
    """The parameters of a function: the named ones, and with `variadic` its *args and **kwargs."""
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):  # some callables have no signature
        return []
    return [p for p in parameters if variadic or p.kind not in _VARIADIC]


def _arrays(file: Path) -> dict[str, np.ndarray]:
    if not file.exists():
        raise CommandError(f"{file} does not exist (the working directory is {Path.cwd()}).")
    if not zipfile.is_zipfile(file):
        raise CommandError(f"{file} is not an .npz archive: write it by numpy.savez(FILE, name=array, ...).")
    try:
        with np.load(file) as held:
            arrays = dict(held)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CommandError(f"{file} cannot be read as plain arrays ({error}): write it by numpy.savez.") from error
    for key, x in arrays.items():
        if not isinstance(x, np.ndarray) or x.dtype.kind not in "biufc":
            got = getattr(x, "dtype", "no array")
            raise CommandError(
                f"`{key}` in {file} is {got}, not numbers. (Plain .npz has no bfloat16 and no typed keys: write it by "
                "robustad.diagnosis.save_arguments, or save float32.)"
            )
    return arrays


def _restored(file: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    try:
        return _replay.restored(arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise CommandError(
            f"{file} was written by save_arguments and changed since: {type(error).__name__}: {error}. Write it anew."
        ) from error


def _nested(file: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """{"params/W": x} as {"params": {"W": x}}."""
    tree: dict[str, Any] = {}
    for key, x in arrays.items():
        *above, last = key.split("/")
        inner: Any = tree
        for part in above:
            inner = inner.setdefault(part, {}) if isinstance(inner, dict) else inner
        if not isinstance(inner, dict) or last in inner:
            raise CommandError(f"`{key}` in {file} clashes with another key there: one is an array, the other a dict.")
        inner[last] = x
    return tree


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"


# --------------------------------------------------------------------------------------- the user's own errors


@contextlib.contextmanager
def users_errors(failing: str) -> Iterator[None]:
    """What the user's code raises, told with its place."""
    try:
        yield
    except (Exception, SystemExit) as error:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise CommandError(f"{failing}: {type(error).__name__}: {message}{place(error)}") from error
