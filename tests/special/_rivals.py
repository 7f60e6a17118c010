"""What a user would write without robustad: JAX's function of the name where there is one, else the textbook formula."""

import jax
import jax.numpy as jnp
from jax.scipy import special
from jax.scipy.stats import norm

JAX = {
    "sqrt": jnp.sqrt,
    "rsqrt": jax.lax.rsqrt,
    "cbrt": jnp.cbrt,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "expm1": jnp.expm1,
    "exp2": jnp.exp2,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "asin": jnp.arcsin,
    "acos": jnp.arccos,
    "asinh": jnp.arcsinh,
    "acosh": jnp.arccosh,
    "atanh": jnp.arctanh,
    "sqrt1pm1": lambda x: jnp.sqrt(1 + x) - 1,
    "one_minus_cos": lambda x: 1 - jnp.cos(x),
    "expm1_over_x": lambda x: jnp.expm1(x) / x,
    "log1pmx": lambda x: jnp.log1p(x) - x,
    "logmxp1": lambda x: jnp.log(x) - x + 1,
    "log1psq": lambda x: jnp.log1p(x * x),
    "log1pexp": jax.nn.softplus,
    "log_sigmoid": jax.nn.log_sigmoid,
    "log1mexp": lambda x: jax.nn.log1mexp(jnp.abs(x)),
    "log2mexp": lambda x: jnp.log(2 - jnp.exp(x)),
    "logexpm1": lambda x: jnp.log(jnp.expm1(x)),
    "logit1mexp": lambda x: jax.scipy.special.logit(-jnp.expm1(x)),
    "logit": special.logit,
    "cloglog": lambda x: jnp.log(-jnp.log1p(-x)),
    "cexpexp": lambda x: -jnp.expm1(-jnp.exp(x)),
    "log_cosh": lambda x: jnp.log(jnp.cosh(x)),
    "logabssinh": lambda x: jnp.log(jnp.abs(jnp.sinh(x))),
    "logabstanh": lambda x: jnp.log(jnp.abs(jnp.tanh(x))),
    "xlogx": lambda x: special.xlogy(x, x),
    "entr": special.entr,
    "xexpx": lambda x: x * jnp.exp(x),
    "erf": special.erf,
    "erfc": special.erfc,
    "log_ndtr": norm.logcdf,
    "logaddexp": jnp.logaddexp,
    "logsubexp": lambda x, y: x + jnp.log1p(-jnp.exp(y - x)),
    "xlogy": special.xlogy,
    "xlog1py": special.xlog1py,
}


def tfp() -> dict:
    """The same names in TensorFlow Probability's JAX substrate, where it imports."""
    try:
        from tensorflow_probability.substrates import jax as substrate
    except Exception:  # not installed, or too old for this JAX
        return {}
    m = substrate.math
    return {
        "log1mexp": m.log1mexp,
        "logexpm1": m.softplus_inverse,
        "log_cosh": m.log_cosh,
        "sqrt1pm1": m.sqrt1pm1,
        "log1psq": m.log1psquare,
        "logsubexp": m.log_sub_exp,
        "logaddexp": m.log_add_exp,
        "log_ndtr": lambda x: substrate.distributions.Normal(0 * x, 1 + 0 * x).log_cdf(x),
    }
