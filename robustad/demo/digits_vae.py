"""A variational autoencoder of handwritten digits whose training ends in NaN.

    robustad audit robustad/demo/digits_vae.py:loss       # what broke, and where
    robustad audit robustad/demo/digits_vae.py:mended     # the same model, put right
    python -m robustad.demo.digits_vae                    # only train both

The decoder gives every pixel a distribution over the 17 grey levels of scikit-learn's digits. The learning
rate warms up to an optimistic peak, the decoder grows too sure of itself, and one day a batch holds a pixel that
it thinks impossible: its probability has underflowed to 0, and the gradient of its logarithm is NaN.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

Params = dict[str, dict[str, Array]]
Objective = Callable[[Params, Array, Array], Array]

PIXELS, LEVELS = 64, 17
HIDDEN, LATENT, BATCH = 128, 8, 64
LEARNING_RATE = optax.linear_schedule(0.0, 0.1, transition_steps=200)


class Moment(NamedTuple):
    """The arguments of the loss at one step of training, and how many steps came before."""

    params: Params
    batch: Array
    key: Array
    step: int


def digits() -> Array:
    """The 1797 digits, each 64 pixels with grey levels 0 to 16."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("this demo needs scikit-learn: pip install robustad[experiments]") from error
    return jnp.asarray(load_digits(return_X_y=True)[0], jnp.int32)


def init(key: Array) -> Params:
    def dense(key: Array, inputs: int, outputs: int) -> dict[str, Array]:
        weights = jax.random.normal(key, (inputs, outputs), jnp.float32) / inputs**0.5
        return {"W": weights, "b": jnp.zeros(outputs, jnp.float32)}

    keys = jax.random.split(key, 4)
    return {
        "enc": dense(keys[0], PIXELS, HIDDEN),
        "code": dense(keys[1], HIDDEN, 2 * LATENT),
        "dec": dense(keys[2], LATENT, HIDDEN),
        "grey": dense(keys[3], HIDDEN, PIXELS * LEVELS),
    }


def encode(params: Params, batch: Array) -> tuple[Array, Array]:
    """The mean and the log variance of each image's code."""
    x = batch.astype(jnp.float32) / (LEVELS - 1) - 0.5
    h = jnp.tanh(x @ params["enc"]["W"] + params["enc"]["b"])
    mean, logvar = jnp.split(h @ params["code"]["W"] + params["code"]["b"], 2, axis=-1)
    return mean, logvar


def sample(mean: Array, logvar: Array, key: Array) -> Array:
    noise = jax.random.normal(key, mean.shape, jnp.float32)  # the same draw in every precision
    return mean + jnp.exp(logvar / 2) * noise


def logits(params: Params, code: Array) -> Array:
    h = jax.nn.relu6(code @ params["dec"]["W"] + params["dec"]["b"])
    return (h @ params["grey"]["W"] + params["grey"]["b"]).reshape(-1, PIXELS, LEVELS)


def decode(params: Params, code: Array) -> Array:
    """The probability of each grey level at each pixel."""
    z = logits(params, code)
    p = jax.nn.softmax(z)
    return p


def at(table: Array, batch: Array) -> Array:
    """The entry of each pixel's own grey level."""
    return jnp.take_along_axis(table, batch[..., None], axis=-1)[..., 0]


def divergence(mean: Array, logvar: Array) -> Array:
    """From the standard normal prior to each image's code."""
    return 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1 - logvar, axis=-1)


def loss(params: Params, batch: Array, key: Array) -> Array:
    """The negative evidence lower bound by way of probabilities: the faulty one."""
    mean, logvar = encode(params, batch)
    p = decode(params, sample(mean, logvar, key))
    likelihood = jnp.log(at(p, batch))
    return jnp.mean(divergence(mean, logvar) - jnp.sum(likelihood, axis=-1))


def mended(params: Params, batch: Array, key: Array) -> Array:
    """The same bound with the logarithm taken inside the softmax."""
    mean, logvar = encode(params, batch)
    z = logits(params, sample(mean, logvar, key))
    likelihood = at(jax.nn.log_softmax(z), batch)
    return jnp.mean(divergence(mean, logvar) - jnp.sum(likelihood, axis=-1))


def train(objective: Objective = loss, seed: int = 0, steps: int = 400) -> Moment | None:
    """Train with Adam up to the first step whose gradient is not finite; None if every one was finite."""
    adam = optax.adam(LEARNING_RATE)
    images = digits()

    @jax.jit
    def draw(step: int) -> tuple[Array, Array]:
        pick, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
        return images[jax.random.choice(pick, len(images), (BATCH,), replace=False)], key

    @jax.jit
    def descend(params: Params, state: optax.OptState, batch: Array, key: Array):
        grads = jax.grad(objective)(params, batch, key)
        finite = jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)]))
        updates, state = adam.update(grads, state)
        return optax.apply_updates(params, updates), state, finite

    params = init(jax.random.key(seed))
    state = adam.init(params)
    for step in range(steps):
        batch, noise = draw(step)
        moment = Moment(params, batch, noise, step)
        params, state, finite = descend(params, state, moment.batch, moment.key)
        if not finite:
            return moment
    return None


def example_args() -> tuple[Params, Array, Array]:
    """The arguments of `loss` at the step at which training with it breaks."""
    moment = train(loss)
    if moment is None:
        raise RuntimeError("every gradient of the digits demo was finite: there is nothing to audit")
    return moment.params, moment.batch, moment.key


if __name__ == "__main__":
    for objective in (loss, mended):
        moment = train(objective)
        ending = f"NaN in the gradient at step {moment.step}" if moment else "every gradient finite"
        print(f"{objective.__name__:>6}: {ending}")
