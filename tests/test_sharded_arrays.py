"""Arrays that are sharded over a mesh, outside of `shard_map`: the results and gradients of whole ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from robustad import stability as st
from tests._subset import thinned

X = np.random.default_rng(0).uniform(0.1, 2, (16, 8)).astype(np.float32)
ON_EXPLICIT_AXES = {
    "tanh": st.tanh,
    "norm": lambda x: st.norm(x, axis=0),
    "mean": lambda x: st.mean(x, 0),
    "logsumexp": lambda x: st.logsumexp(x, 0),
    "softmax": lambda x: st.softmax(x, 0),
    "compensated_sum": lambda x: st.compensated_sum(x, 0),
}
ON_AUTOMATIC_AXES = ON_EXPLICIT_AXES | {
    "std": lambda x: st.std(x, 0),
    "logcumsumexp": lambda x: st.logcumsumexp(x, 0),
    "log_matmul": lambda x: st.log_matmul(x, x.T),
    "compensated_dot": lambda x: st.compensated_dot(x[:, 0], x[:, 1]),
    "prod": lambda x: st.prod(x, 0),
    "gamma_logpdf": lambda x: st.gamma_logpdf(x, x[:, :1]),
}
CASES = [(name, AxisType.Auto) for name in ON_AUTOMATIC_AXES] + [(n, AxisType.Explicit) for n in ON_EXPLICIT_AXES]


@pytest.mark.parametrize("name, kind", thinned(CASES, 2), ids=lambda x: getattr(x, "name", x))
def test_value_and_gradient_are_those_of_the_whole_array(name, kind):
    f = ON_AUTOMATIC_AXES[name]
    both = jax.jit(lambda x: (f(x), jax.grad(lambda x: (f(x) ** 2).sum())(x)))
    want = both(X)
    with jax.set_mesh(jax.make_mesh((8,), ("d",), axis_types=(kind,))):
        got = both(jax.device_put(X, PartitionSpec("d")))
    for ours, whole in zip(got, want):
        bound = 16 * np.finfo(np.float32).eps * np.abs(whole).max()
        np.testing.assert_allclose(np.asarray(ours), np.asarray(whole), rtol=0, atol=bound)


def test_plain_jax_refuses_what_these_refuse_on_explicit_axes():
    with jax.set_mesh(jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))):
        x = jax.device_put(X[:, 0], PartitionSpec("d"))
        for dot in (jnp.dot, st.compensated_dot):
            with pytest.raises(Exception, match="Contracting dimensions are sharded"):
                dot(x, x)
