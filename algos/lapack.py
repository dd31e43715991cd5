"""Factorisations of the matrices of many members that cannot lock up on CPUs.

LAPACK's routines of jaxlib (0.10) share a batch of matrices among threads and wait for them, in a thread of the same
pool. Where as many of them run at once as the pool has threads, which on two cores is two, all wait for ever. With a
single matrix they wait for nobody.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


def unbatched_on_cpus(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays, the same values; under `vmap` CPUs take a batch one by one, other devices at once.

    For functions that factorise one matrix. The result cannot be differentiated.
    """

    @custom_vmap
    def call(*args: jax.Array) -> Any:
        return function(*args)

    @call.def_vmap
    def _(size: int, batched: list[bool], *args: jax.Array) -> tuple[Any, Any]:
        rows = [x if own else jnp.broadcast_to(x, (size, *x.shape)) for x, own in zip(args, batched, strict=True)]
        one_by_one = lambda *rows: jax.lax.map(lambda row: call(*row), rows)  # noqa: E731
        out = jax.lax.platform_dependent(*rows, cpu=one_by_one, default=jax.vmap(function))
        return out, jax.tree.map(lambda _: True, out)

    return call
