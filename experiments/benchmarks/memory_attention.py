"""Temporaries of a gradient through attention, beside `jax.nn.dot_product_attention`, from 512 tokens on.

    python experiments/benchmarks/memory_attention.py --json attention.json

One example, 2 heads of 32, float32, causal; nothing is run, the bytes are those that XLA has laid out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ratios import machine

from robustad.memory import attention


def temporaries(function: Any, tokens: int) -> int:
    def loss(q: Any, k: Any, v: Any) -> Any:
        return jnp.sum(function(q, k, v, is_causal=True) ** 2)

    x = jax.ShapeDtypeStruct((1, tokens, 2, 32), jnp.float32)
    analysis = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="*", default=[512, 1024, 2048, 4096])
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    options = parser.parse_args()
    rows = {}
    for tokens in options.tokens:
        ours, dense = (temporaries(f, tokens) for f in (attention, jax.nn.dot_product_attention))
        rows[tokens] = {"bytes": ours, "dense": dense, "ratio": ours / dense}
        print(
            f"{tokens:6} tokens: {ours / 2**20:7.1f} MiB, dense {dense / 2**20:7.1f} MiB, ratio {ours / dense:.3f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps({**machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
