"""JSON of results: strict, which knows no numbers that are not finite."""

import json
import math
from typing import Any


def strict_json(x: Any, **options: Any) -> str:
    """Dicts, sequences and numbers as JSON; non-finite numbers are the strings "inf", "-inf" and "nan"."""
    return json.dumps(_plain(x), allow_nan=False, **options)


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x
