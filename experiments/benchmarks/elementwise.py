"""What the special functions and the log-densities cost beside what they replace, as ratios.

python experiments/benchmarks/elementwise.py --json elementwise.json
"""

from __future__ import annotations

import pathlib
import sys

import jax.numpy as jnp
import jax.scipy.stats as stats
import numpy as np
from jax import Array
from ratios import Case, main

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from robustad import stability
from tests.special import _rivals
from tests.special._table import TABLE, Special

SIZE = 10**6


def arguments(entry: Special) -> tuple[Array, ...]:
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.uniform(max(low, -8), min(high, 8), SIZE), jnp.float32) for low, high in entry.domain]
    if entry.name == "logsubexp":
        args[1] = args[0] - jnp.abs(args[1])
    return tuple(args)


# name and shape parameters; the points are in the unit interval
DENSITIES = {"norm": 0, "cauchy": 0, "logistic": 0, "gamma": 1, "t": 1, "beta": 2}


def points(shapes: int) -> tuple[Array, ...]:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(x, jnp.float32) for x in (rng.uniform(0, 1, SIZE), *rng.uniform(1, 9, (shapes, SIZE))))


def cases():
    for name, shapes in DENSITIES.items():
        ours, plain = getattr(stability, f"{name}_logpdf"), getattr(stats, name).logpdf
        yield Case(f"{name}_logpdf", ours, plain, lambda shapes=shapes: points(shapes))
    for entry in TABLE:
        ours, plain = getattr(stability, entry.name), _rivals.JAX[entry.name]
        yield Case(entry.name, ours, plain, lambda entry=entry: arguments(entry))


if __name__ == "__main__":
    main(__doc__, cases(), repeats=9)
