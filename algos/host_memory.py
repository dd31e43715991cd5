"""Arrays in the host's memory, used by programs of a device that has too little of its own.

Their types say where they lie, e.g. `uint8<host>[1000000,21168]`. What reads or writes them is computed on the host, so
that only its operands and its results cross the bus.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import compute_on

HOST, DEVICE = jax.memory.Space.Host, jax.memory.Space.Device
Space = Any  # one of the two
_compute_on: Any = getattr(compute_on, "compute_on2", compute_on.compute_on)  # jax 0.10 has the former, 0.11 the latter


def memory_space(x: Any) -> Space:
    """Where an array, traced or not, lies."""
    return jax.typeof(x).memory_space


def on_host(function: Callable[..., jax.Array], *args: jax.Array) -> jax.Array:
    """`function` of arrays, computed on the host; those on the device are brought over, the result stays there.

    `function` uses no arrays but these.
    """
    run = _compute_on(jax.jit(function), compute_type="device_host", out_memory_spaces=HOST)
    return run(*jax.device_put(args, HOST))


def to_device(x: jax.Array) -> jax.Array:
    """A copy on the device."""
    return jax.device_put(x, DEVICE)


def shapes_and_spaces(function: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """What `jax.eval_shape` says of `function`, and where each of its arrays would lie, which that does not say."""
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    return shapes, jax.tree.unflatten(jax.tree.structure(shapes), [aval.memory_space for aval in traced.out_avals])
