"""Convolution and thin products of DrQ-v2 against `jax.lax`, and the orthogonal matrices of its first layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.drqv2.conv import convolve, relu_layers
from algos.drqv2.nets import init_layer, thin_orthogonal
from algos.drqv2.thin import thin_product

pytestmark = pytest.mark.usefixtures("quick_compilation")
MEMBERS = 2


def plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


def assert_close(ours, theirs):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(16, 12, 11, 5), (3, 11, 12, 5), (2, 5, 64, 3)])
def test_values_and_gradients_are_those_of_the_plain_convolution(stride, shape):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (MEMBERS, *shape))
    kernel = jax.random.normal(keys[1], (MEMBERS, 3, 3, shape[-1], 7))

    def results(convolution):
        def member(x, kernel):
            out, pull = jax.vjp(lambda x, kernel: convolution(x, kernel, stride), x, kernel)
            return out, pull(jax.random.normal(keys[2], out.shape))

        alone = jax.tree.map(lambda *x: jnp.stack(x), *(member(x[i], kernel[i]) for i in range(MEMBERS)))
        return alone, jax.vmap(member)(x, kernel)

    (alone, together), (expected, _) = jax.jit(lambda: (results(convolve), results(plain)))()
    jax.tree.map(assert_close, alone, expected)
    jax.tree.map(assert_close, together, expected)


@pytest.mark.parametrize("side", [15, 16])
def test_layers_and_their_gradients_are_those_of_plain_convolutions(side):
    keys, strides = jax.random.split(jax.random.key(1), 6), (2, 1)
    pixels = jax.random.randint(keys[0], (MEMBERS, 16, side, side, 5), 0, 256).astype(jnp.uint8)
    layers = tuple(
        {
            "kernel": jax.random.normal(keys[i], (MEMBERS, 3, 3, inputs, 7)),
            "bias": jax.random.normal(keys[i + 1], (MEMBERS, 7)),
        }
        for i, inputs in ((1, 5), (3, 7))
    )

    def expected(strides, layers, pixels):
        x, hidden = pixels / 255.0 - 0.5, []
        for stride, layer in zip(strides, layers, strict=True):
            x = jax.nn.relu(plain(x, layer["kernel"], stride) + layer["bias"])
            hidden.append(x)
        return hidden, jnp.stack([(x > 0.0).sum() for x in hidden])

    def results(function):
        def member(layers, pixels):
            hidden, pull, active = jax.vjp(lambda layers: function(strides, layers, pixels), layers, has_aux=True)
            return (hidden, active), pull([jnp.zeros_like(hidden[0]), jax.random.normal(keys[5], hidden[1].shape)])

        first = jax.tree.map(lambda x: x[0], (layers, pixels))
        return member(*first), jax.vmap(member)(layers, pixels)

    ours, theirs = jax.jit(lambda: (results(relu_layers), results(expected)))()
    jax.tree.map(assert_close, ours, theirs)


@pytest.mark.parametrize("columns", [5, 64])
@pytest.mark.parametrize("leading", [(), (6,)])
def test_thin_products_and_their_gradients_are_those_of_plain_ones(columns, leading):
    keys = jax.random.split(jax.random.key(2), 3)
    x = jax.random.normal(keys[0], (MEMBERS, *leading, 200))
    kernel = jax.random.normal(keys[1], (MEMBERS, 200, columns))
    grad = jax.random.normal(keys[2], (MEMBERS, *leading, columns))

    def results(product):
        def member(x, kernel, grad):
            out, pull = jax.vjp(product, x, kernel)
            return out, pull(grad)

        return member(x[0], kernel[0], grad[0]), jax.vmap(member)(x, kernel, grad)

    plain_product = lambda x, kernel: jnp.matmul(x, kernel, precision="highest")  # noqa: E731
    ours, theirs = jax.jit(lambda: (results(thin_product), results(plain_product)))()
    jax.tree.map(assert_close, ours, theirs)


@pytest.mark.parametrize("shape", [(1000, 50), (50, 1000)])
def test_thin_kernels_are_those_of_a_qr_decomposition(shape):
    key = jax.random.key(3)
    kernel = init_layer(key, shape, 2.0)["kernel"]
    np.testing.assert_array_equal(kernel, 2.0 * thin_orthogonal(key, shape))
    np.testing.assert_allclose(kernel, jax.nn.initializers.orthogonal(2.0)(key, shape), atol=1e-6)
    tall = np.asarray(kernel if shape[0] > shape[1] else kernel.T)
    np.testing.assert_allclose(tall.T @ tall, 4.0 * np.eye(50), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (64, 64), (1024, 6)])
def test_other_kernels_are_those_of_the_initialiser(shape):
    key = jax.random.key(4)
    expected = jax.nn.initializers.orthogonal(2.0)(key, shape)
    np.testing.assert_allclose(init_layer(key, shape, 2.0)["kernel"], expected, rtol=1e-6)
