"""Products of wide matrices with thin ones, as a trunk makes them, that are quick on CPUs, too.

XLA (jaxlib 0.10; one core that multiplies matrices at 108 GFLOP/s, 256 rows, 39,200 by 50) does the product with 63
GFLOP/s, with columns of zeros up to 64 in 75 counting only those there are; and the kernel's derivative, the transpose
of a wide matrix times a thin one, with 48, the other way round and transposed afterwards with 80.
"""

import jax
import jax.numpy as jnp

COLUMNS = 64  # a multiple of them is quick


@jax.custom_vjp
def thin_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`, (..., R) and (R, F), for an F that is much smaller than R. Has no forward-mode derivative."""
    return jax.lax.platform_dependent(x, kernel, cpu=_cpu, default=jnp.matmul)


def _cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    columns = kernel.shape[1]
    return (x @ jnp.pad(kernel, ((0, 0), (0, -columns % COLUMNS))))[..., :columns]


def _plain_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
    return jnp.einsum("br,bf->rf", x, grad)


def _cpu_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier(jnp.einsum("br,bf->fr", x, grad)).T  # which XLA would undo without the barrier


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return thin_product(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return grad @ kernel.T, jax.lax.platform_dependent(*rows, cpu=_cpu_gradient, default=_plain_gradient)


thin_product.defvjp(_forward, _backward)
