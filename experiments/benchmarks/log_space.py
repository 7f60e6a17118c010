"""What logsumexp, softmax and the cross-entropy cost beside JAX's and optax's, as ratios.

`confident` logits have one entry 25 above the others in each row (for the cross-entropy: the label), so that every row
needs its careful sum.

    python experiments/benchmarks/log_space.py --json log_space.json
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array
from ratios import Case, main

from robustad import stability as st

SHAPES = ((1024, 1024), (128, 32000), (1, 10**7))
BAR = 1.1


def logits(shape: tuple[int, int], confident: bool) -> tuple[Array, Array]:
    keys = jax.random.split(jax.random.key(0))
    a = jax.random.normal(keys[0], shape, jnp.float32)
    labels = jax.random.randint(keys[1], shape[:1], 0, shape[1], jnp.int32)
    return (a.at[jnp.arange(shape[0]), labels].add(25.0) if confident else a), labels


def last(function: Callable) -> Callable[[Array], Array]:
    return lambda a: function(a, axis=-1)


def mean_loss(function: Callable) -> Callable[[Array, Array], Array]:
    return lambda a, labels: function(a, labels).mean()


def cases():
    cross_entropies = st.softmax_cross_entropy, optax.losses.softmax_cross_entropy_with_integer_labels
    for shape in SHAPES:
        for confident in (False, True):

            def both(shape=shape, confident=confident):
                return logits(shape, confident)

            def alone(shape=shape, confident=confident):
                return logits(shape, confident)[:1]

            text = f"{shape[0]}x{shape[1]}{' confident' if confident else ''}"
            for ours, plain in (
                (st.logsumexp, jax.scipy.special.logsumexp),
                (st.softmax, jax.nn.softmax),
                (st.log_softmax, jax.nn.log_softmax),
            ):
                yield Case(f"{ours.__name__} {text}", last(ours), last(plain), alone, BAR)
            ours, plain = map(mean_loss, cross_entropies)
            yield Case(f"cross_entropy {text}", ours, plain, both, BAR)


if __name__ == "__main__":
    main(__doc__, cases(), repeats=21)
