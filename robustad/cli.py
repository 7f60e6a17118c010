"""The command line: `robustad demo`, `audit FILE.py:function`, `memory FILE.py:function` and `doctor`.

Exit codes: 0 all is good, 1 it is not, 2 the command could not run. The report alone goes to standard output;
progress, errors and whatever the user's file prints go to standard error.
"""

import contextlib
import functools
import logging
import os
import sys
import traceback as tracebacks
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import robustad
from robustad import _target
from robustad._target import CommandError
from robustad.diagnosis import AuditError, Report
from robustad.diagnosis._user_errors import place

log = logging.getLogger("robustad")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, by default the process's, and returns its exit code."""
    try:
        import rich  # noqa: F401
        from tyro import conf, extras
    except ImportError as error:
        print(f"robustad: the command line needs {error.name}: pip install 'robustad[cli]'", file=sys.stderr)
        return 2
    app = extras.SubcommandApp()
    app.command(demo)
    app.command(audit)
    app.command(memory)
    app.command(doctor)
    purpose = "Finds where and why a JAX gradient is numerically wrong."
    markers = (conf.FlagCreatePairsOff, conf.DisallowNone, conf.PositionalMetavarFromFieldName)
    try:
        return app.cli(prog="robustad", description=purpose, args=argv, config=markers)
    except SystemExit as stop:  # --help, or a command line that tyro refuses
        return stop.code if isinstance(stop.code, int) else 2


# ---------------------------------------------------------------------------------------------------- commands


def _command(run: Callable[..., int]) -> Callable[..., int]:
    """A command whose errors are told on standard error, with exit code 2."""

    @functools.wraps(run)
    def guarded(*args: Any, traceback: bool = False, **options: Any) -> int:
        try:
            return run(*args, **options)
        except KeyboardInterrupt:
            print("robustad: interrupted", file=sys.stderr)
            return 130
        except Exception as error:  # the user's file may raise anything; --traceback shows where
            if traceback:
                tracebacks.print_exc()
            print(f"robustad: {_told(error)}", file=sys.stderr)
            return 2

    return guarded


@_command
def demo(*, all: bool = False, verbose: bool = False, traceback: bool = False) -> int:
    """Audit a shipped model on real data, faulty and mended.

    Args:
        all: show the notes too.
        verbose: say what is being done, a line a step.
        traceback: show the whole traceback of an error.
    """
    from robustad.demo import digits_vae as model

    try:
        with _progress(verbose):
            log.info("training a variational autoencoder up to a gradient that is not finite")
            moment = model.train(model.loss)
    except ImportError as error:
        raise CommandError(str(error)) from error
    if moment is None:
        raise CommandError(
            "the training went well on this machine: every gradient was finite, so there is no fault to show."
        )
    where = os.path.relpath(model.__file__)
    arguments = (moment.params, moment.batch, moment.key)
    _print(
        f"A variational autoencoder of handwritten digits was trained, and at step {moment.step} its gradient was not"
    )
    _print(f"finite. The model is in {where}. Its `loss`, audited at that step:\n")
    with _progress(verbose):
        faulty = robustad.audit(model.loss)(*arguments)
    _show(faulty, all)
    _print("\nThe same model at the same step with that statement put right, `mended`:\n")
    with _progress(verbose):
        mended = robustad.audit(model.mended)(*arguments)
    _show(mended, all)
    return 0 if mended.ok and not faulty.ok else 1


@_command
def audit(
    target: str,
    /,
    *,
    args: str = "example_args",
    npz: Path | None = None,
    argnums: tuple[int, ...] = (0,),
    has_aux: bool = False,
    threshold: float = 0.5,
    all: bool = False,
    json: bool = False,
    html: Path | None = None,
    save: Path | None = None,
    verbose: bool = False,
    traceback: bool = False,
) -> int:
    """Find where and why the gradient of a loss is wrong.

    The loss is audited at the arguments that a function of its file returns: a tuple of them, or the only one.

    Args:
        target: the loss, as FILE.py:function.
        args: the function of the file that returns the arguments, or a tuple there.
        npz: take the arguments from an .npz file instead, by the names of the loss's parameters; params/enc/W is an
            array within nested dicts.
        argnums: the positions of the arguments to differentiate.
        has_aux: the loss returns (value, aux).
        threshold: the share of its bits that a leaf may lose.
        all: show the notes too.
        json: print JSON.
        html: write the report to this file too, as a page for a browser.
        save: write the arguments to this .npz file, from which --npz takes them again.
        verbose: say what is being done, a line a step.
        traceback: show the whole traceback of an error.
    """
    if npz and args != "example_args":
        raise CommandError(
            f"got --args {args} and --npz {npz}: the arguments come from one of them. Leave the other out."
        )
    for output in (html, save):
        _target.refuse_unwritable(output)
    path, name = _target.split(target)
    with _progress(verbose), contextlib.redirect_stdout(sys.stderr), _target.imported(path) as module:
        f = _target.function(module, path, name)
        given, named = _target.from_npz(npz, f) if npz else (_target.from_file(module, path, f, args), {})
        if save:
            _target.save(save, f, given, named)
        which = argnums[0] if len(argnums) == 1 else argnums
        report = robustad.audit(f, argnums=which, has_aux=has_aux, threshold=threshold, stabilized=True)(
            *given, **named
        )
    if html:
        html.write_text(report.to_html(), encoding="utf-8")
        print(f"robustad: wrote {html}", file=sys.stderr)
    if json:
        print(report.to_json(indent=2))
    else:
        _show(report, all)
    return 0 if report.ok else 1


@_command
def memory(
    target: str,
    /,
    *,
    args: str = "example_args",
    npz: Path | None = None,
    argnums: tuple[int, ...] = (0,),
    has_aux: bool = False,
    donate: tuple[int, ...] = (),
    fits: str | None = None,
    compile: bool = True,
    json: bool = False,
    html: Path | None = None,
    verbose: bool = False,
    traceback: bool = False,
) -> int:
    """Tell what the gradient of a loss needs in memory, and which lines hold it.

    Exit code 0: told, and it fits; 1: it needs more than --fits; 2: it could not run. Nothing is computed: the gradient is
    compiled for the shapes of the arguments that a function of the file returns.

    Args:
        target: the loss, as FILE.py:function.
        args: the function of the file that returns the arguments, or a tuple there; jax.ShapeDtypeStruct will do.
        npz: take the arguments from an .npz file instead, by the names of the loss's parameters.
        argnums: the positions of the arguments to differentiate.
        has_aux: the loss returns (value, aux).
        donate: the positions of the arguments that the caller donates.
        fits: a size as 2GiB that arguments, results and temporaries together must not exceed.
        compile: compile, and measure; without, predict only.
        json: print JSON.
        html: write the report to this file too, as a page for a browser.
        verbose: say what is being done, a line a step.
        traceback: show the whole traceback of an error.
    """
    from robustad.memory import report
    from robustad.memory._bytes import in_bytes, readable

    if npz and args != "example_args":
        raise CommandError(
            f"got --args {args} and --npz {npz}: the arguments come from one of them. Leave the other out."
        )
    _target.refuse_unwritable(html)
    try:
        most = None if fits is None else in_bytes(fits, "--fits")
    except ValueError as error:
        raise CommandError(str(error)) from error
    path, name = _target.split(target)
    with _progress(verbose), contextlib.redirect_stdout(sys.stderr), _target.imported(path) as module:
        f = _target.function(module, path, name)
        given, named = _target.from_npz(npz, f) if npz else (_target.from_file(module, path, f, args), {})
        which = argnums[0] if len(argnums) == 1 else argnums
        with _target.users_errors(f"the memory of `{name}` cannot be told"):
            needs = report(f, argnums=which, has_aux=has_aux, donate_argnums=donate, compile=compile)(*given, **named)
    if html:
        html.write_text(needs.to_html(), encoding="utf-8")
        print(f"robustad: wrote {html}", file=sys.stderr)
    if json:
        print(needs.to_json(indent=2))
    else:
        _print(str(needs))
    if most is None:
        return 0
    if not json:
        _print(f"{readable(needs.total)} {'fits in' if needs.fits(most) else 'does not fit in'} {readable(most)}")
    return 0 if needs.fits(most) else 1


@_command
def doctor(
    *,
    device: str | None = None,
    against: Path | None = None,
    json: bool = False,
    verbose: bool = False,
    traceback: bool = False,
) -> int:
    """Measure what this machine's arithmetic does to gradients, and say what to do about it.

    Exit code 0: nothing dangerous; 1: results are wrong here, as with fast-math flags; 2: it could not run.

    Args:
        device: the platform to examine: cpu, gpu or tpu; by default the one on which JAX computes.
        against: JSON that this command wrote before, perhaps on another machine: tell what is different.
        json: print JSON: every measured number, and the verdicts.
        verbose: say what is being done, a line a step.
        traceback: show the whole traceback of an error.
    """
    from robustad.diagnosis import _examination

    with _progress(verbose), contextlib.redirect_stdout(sys.stderr):
        try:
            examined = _examination.examine(device, against)
        except (ValueError, OSError, RuntimeError) as error:
            raise CommandError(str(error)) from error
    if json:
        print(examined.to_json(indent=2))
    else:
        for line in _examination.screen(examined):
            _print(line.text, line.style)
    return 0 if examined.ok else 1


# --------------------------------------------------------------------------------------- what the user sees


def _print(text: str, style: str = "") -> None:
    """Text as it is, without markup or wrapping, in colours where the terminal has them."""
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(text, style=style), soft_wrap=True)


def _show(report: Report, notes: bool) -> None:
    from robustad.diagnosis._screen import screen

    for line in screen(report, notes):
        _print(line.text, line.style)


class _Steps(logging.Handler):
    """The steps that the library logs, each told in its turn."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self.tell(record.getMessage())


@contextlib.contextmanager
def _progress(verbose: bool) -> Iterator[None]:
    """What is being done, on standard error: a spinner on a terminal, or lines with `verbose`."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        if verbose:
            steps = _Steps(lambda text: print(text, file=sys.stderr))
        elif console.is_terminal:
            status = stack.enter_context(console.status("starting"))
            steps = _Steps(lambda text: status.update(Text(text)))
        else:
            yield
            return
        stack.callback(log.setLevel, log.level)
        stack.callback(log.removeHandler, steps)
        log.addHandler(steps)
        log.setLevel(logging.INFO)
        yield


def _told(error: Exception) -> str:
    """An error in words; what the user's code raised within an audit, with its place."""
    if isinstance(error, CommandError):
        return str(error)
    if isinstance(error, AuditError):
        where = place(error.__cause__) if error.__cause__ else ""
        return f"{error}{where if where not in str(error) else ''}"
    return (
        f"unexpected {type(error).__name__}: {error}\n  --traceback shows where; if the fault is robustad's, report it."
    )


if __name__ == "__main__":
    sys.exit(main())
