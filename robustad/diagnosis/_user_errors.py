"""What the user's code raised while it was traced, in words: the message, and the user's own line."""

import linecache
import re
import traceback

from robustad import _jaxpr

_INTERNAL = re.compile(
    r"The error occurred while tracing the function \S+ at (?P<file>[^\n]*?):\d+ for \w+\.[^\n]*?"
    r"(?=The error occurred while tracing|\n|$)"
)
"""JAX names the function that was traced and its arguments: ours, around the user's, is no help."""


def told(error: BaseException, most: int = 1500) -> str:
    """An error of the user's code, or of JAX's on its way through it: its type, its message and where it was raised."""

    def kept(sentence: re.Match[str]) -> str:
        return sentence.group() if _jaxpr.is_users(sentence["file"]) else ""

    said = re.sub(r"\n\s*\n", "\n", _INTERNAL.sub(kept, str(error)).strip())[:most]
    return f"{type(error).__name__}: {said or '(no message)'}{place(error)}"


def place(error: BaseException) -> str:
    """The user's file and line where an error was raised, and what the line says, as a line more; "" if unknown."""
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno or 0
    else:
        frames = reversed(traceback.extract_tb(error.__traceback__))
        frame = next((f for f in frames if _jaxpr.is_users(f.filename)), None)
        if frame is None:
            return ""
        file, line = frame.filename, frame.lineno or 0
    text = linecache.getline(file, line).strip()
    return f"\n  at {file}:{line}" + (f": {text}" if text else "")
