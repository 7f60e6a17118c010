"""Eight CPU devices, before anything initialises a backend; float64 only inside `jax.enable_x64(True)`."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", False)
