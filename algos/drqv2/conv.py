"""Convolution without padding that is quick on CPUs, too, also inside of loops.

Other devices get `jax.lax.conv_general_dilated` and its derivatives. CPUs (XLA of jaxlib 0.10; layers of DrQ-v2, one
core that multiplies matrices at 105 GFLOP/s) are slow with these for four reasons:

- Without padding a convolution has 20 GFLOP/s, with any padding 95. So we pad by a row of output and leave it out.
- The derivative with respect to the kernel is a convolution whose window is as large as an image. It has the axes
  in an order that XLA brings into that of its quick routines only outside of loops; inside it has 1 GFLOP/s. So we
  transpose ourselves, and pad, too.
- Many images at once do not fit a core's cache: 24 GFLOP/s for the derivative of 256 images, 70 in parts of 8. So
  each part goes through all layers, forwards and backwards, before the next one. An update is quickest in parts of 4.
- The first layer, of few channels and stride 2, has 36 GFLOP/s. With two columns of pixels seen as one, and its kernel
  a column of zeros more, it takes half as long.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from algos.core import Params
from algos.drqv2.fau import active_counts
from algos.drqv2.parts import in_parts

AXES = ("NHWC", "HWIO", "NHWC")
PART = 4  # images
WIDE = 64  # columns of images from which on several are seen as one: sums of small ones stay in `jax.lax`'s order
Layers = tuple[Params, ...]
Outputs = tuple[list[jax.Array], jax.Array]  # of layers, and their active counts


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Images (B, H, W, in) under a kernel (h, w, in, out): (B, (H - h) // stride + 1, (W - w) // stride + 1, out).

    Has no forward-mode derivative.
    """
    return jax.lax.platform_dependent(
        x, kernel, cpu=partial(_cpu, stride=stride), default=partial(_plain, stride=stride)
    )


def _plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", dimension_numbers=AXES)


def _plain_input_gradient(stride: int, x: jax.Array, kernel: jax.Array, grad: jax.Array) -> jax.Array:
    return jax.vjp(lambda x: _plain(x, kernel, stride), x)[1](grad)[0]


def _plain_kernel_gradient(stride: int, x: jax.Array, kernel: jax.Array, grad: jax.Array) -> jax.Array:
    return jax.vjp(lambda kernel: _plain(x, kernel, stride), kernel)[1](grad)[0]


def _joined_columns(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, jax.Array]:
    """Images and kernel with `stride` columns seen as one, which has their channels; those a kernel lacks are zeros."""
    height, width, channels, outputs = kernel.shape
    wide = -(-width // stride)
    kernel = jnp.pad(kernel, ((0, 0), (0, wide * stride - width), (0, 0), (0, 0)))
    return (
        x.reshape(*x.shape[:2], x.shape[2] // stride, stride * channels),
        kernel.reshape(height, wide, stride * channels, outputs),
    )


def _cpu(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    strides = stride, stride
    if stride > 1 and x.shape[2] % stride == 0 and x.shape[2] >= WIDE:
        (x, kernel), strides = _joined_columns(x, kernel, stride), (stride, 1)

    def convolve_part(x: jax.Array) -> jax.Array:
        padding = [(0, stride), (0, 0)]  # one row of output too many
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=AXES)[:, :-1]

    out = jax.lax.map(convolve_part, in_parts(x, PART))
    return out.reshape(len(x), *out.shape[2:])


def _cpu_input_gradient(stride: int, x: jax.Array, kernel: jax.Array, grad: jax.Array) -> jax.Array:
    """`grad`, spread by the stride, under the kernel turned by 180 degrees."""
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    padding = [(kernel.shape[i] - 1, x.shape[i + 1] - 1 - stride * (grad.shape[i + 1] - 1)) for i in range(2)]
    spread = (stride, stride)
    return jax.lax.conv_general_dilated(grad, turned, (1, 1), padding, lhs_dilation=spread, dimension_numbers=AXES)


def _cpu_kernel_gradient(stride: int, x: jax.Array, kernel: jax.Array, grad: jax.Array) -> jax.Array:
    """`x` (in, H, W, B) under `grad` (h, w, B, out), spread by the stride: channels are the batch."""
    height, width, channels, outputs = kernel.shape
    rows = height - x.shape[1] + stride * grad.shape[1]  # for one row of zeros that `grad` gets
    columns = width - x.shape[2] + stride * (grad.shape[2] - 1)

    def add_part(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        images, window = part[0].transpose(3, 1, 2, 0), part[1].transpose(1, 2, 0, 3)
        window = jnp.pad(window, ((0, 1), (0, 0), (0, 0), (0, 0)))
        spread, padding = (stride, stride), [(0, rows), (0, columns)]
        out = jax.lax.conv_general_dilated(images, window, (1, 1), padding, rhs_dilation=spread, dimension_numbers=AXES)
        return total + out, None

    start = jnp.zeros((channels, height, width, outputs), kernel.dtype)
    total, _ = jax.lax.scan(add_part, start, (in_parts(x, PART), in_parts(grad, PART)))
    return total.transpose(1, 2, 0, 3)


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    def gradient(cpu: Callable, default: Callable) -> jax.Array:
        return jax.lax.platform_dependent(*saved, grad, cpu=partial(cpu, stride), default=partial(default, stride))

    # Apart from one another, so that the first layer's inputs, which need no gradient, cost nothing.
    return gradient(_cpu_input_gradient, _plain_input_gradient), gradient(_cpu_kernel_gradient, _plain_kernel_gradient)


convolve.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def relu_layers(strides: tuple[int, ...], layers: Layers, pixels: jax.Array) -> Outputs:
    """What each convolution, with bias and ReLU, puts out, (B, h, w, out), for pixels (B, H, W, C) from 0 to 255.

    And how many of each layer's numbers are above zero, (layers,) int32, counted while they are at hand. Only the last
    layer's output has a gradient, and only with respect to `layers`, each with `kernel` and `bias`.
    """
    cpu, default = partial(_cpu_layers, strides), partial(apply_layers, _plain, strides)
    return jax.lax.platform_dependent(layers, pixels, cpu=cpu, default=default)


def centred(pixels: jax.Array) -> jax.Array:
    """Pixels from 0 to 255 as numbers from -0.5 to 0.5."""
    return pixels.astype(jnp.float32) / 255.0 - 0.5


def apply_layers(
    convolution: Callable,
    strides: tuple[int, ...],
    layers: Layers,
    pixels: jax.Array,
    normalise: Callable[[Params, jax.Array], jax.Array] = lambda layer, x: x,
) -> Outputs:
    """What `relu_layers` tells, by a convolution with the arguments of `convolve`; `normalise` comes before ReLU."""
    x, hidden = centred(pixels), []
    for stride, layer in zip(strides, layers, strict=True):
        x = convolution(x, layer["kernel"], stride) + layer["bias"]
        x = jax.nn.relu(normalise(layer, x))
        hidden.append(x)
    return hidden, active_counts(hidden)


def _cpu_layers(strides: tuple[int, ...], layers: Layers, pixels: jax.Array) -> Outputs:
    hidden, active = jax.lax.map(partial(apply_layers, _cpu, strides, layers), in_parts(pixels, PART))
    return [x.reshape(len(pixels), *x.shape[2:]) for x in hidden], active.sum(0)


def _gradients(
    input_gradient: Callable,
    kernel_gradient: Callable,
    strides: tuple[int, ...],
    layers: Layers,
    pixels: jax.Array,
    hidden: list[jax.Array],
    grad: jax.Array,
) -> Layers:
    inputs, gradients = [centred(pixels), *hidden[:-1]], []
    for stride, layer, x, out in reversed(list(zip(strides, layers, inputs, hidden, strict=True))):
        grad = jnp.where(out > 0.0, grad, 0.0)
        gradients.append({"kernel": kernel_gradient(stride, x, layer["kernel"], grad), "bias": grad.sum((0, 1, 2))})
        grad = input_gradient(stride, x, layer["kernel"], grad)  # not computed for the first layer: nothing needs it
    return tuple(reversed(gradients))


def _cpu_gradients(
    strides: tuple[int, ...], layers: Layers, pixels: jax.Array, hidden: list[jax.Array], grad: jax.Array
) -> Layers:
    def add_part(total: Layers, part: tuple[jax.Array, list[jax.Array], jax.Array]) -> tuple[Layers, None]:
        out = _gradients(_cpu_input_gradient, _cpu_kernel_gradient, strides, layers, *part)
        return jax.tree.map(jnp.add, total, out), None

    parts = jax.tree.map(partial(in_parts, size=PART), (pixels, hidden, grad))
    return jax.lax.scan(add_part, jax.tree.map(jnp.zeros_like, layers), parts)[0]


Saved = tuple[Layers, jax.Array, list[jax.Array]]  # by the forward pass of `relu_layers`


def _forward_layers(strides: tuple[int, ...], layers: Layers, pixels: jax.Array) -> tuple[Outputs, Saved]:
    hidden, active = relu_layers(strides, layers, pixels)
    return (hidden, active), (layers, pixels, hidden)


def _backward_layers(strides: tuple[int, ...], saved: Saved, out_grads: Outputs) -> tuple[Layers, None]:
    cpu = partial(_cpu_gradients, strides)
    default = partial(_gradients, _plain_input_gradient, _plain_kernel_gradient, strides)
    return jax.lax.platform_dependent(*saved, out_grads[0][-1], cpu=cpu, default=default), None


relu_layers.defvjp(_forward_layers, _backward_layers)
