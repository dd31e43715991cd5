"""The networks of DrQ-v2 as pure functions of nested dictionaries of arrays.

Images are (..., H, W, C) and kernels (3, 3, in, out) or (in, out). Every network returns what its ReLU layers put out,
too, so that a loss can measure its active units without another forward pass. The two critics' heads are stacked on a
leading axis; they share one trunk.

Options are parameters that are there or not. A layer with a `norm` normalises what enters its ReLU. One that takes
twice what the layer before puts out has ReLU of both signs between them (CReLU). And what a network has under `fixed`
is never trained: the `direction` of its spectral norm, or the two heads of plasticity injection.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from algos.core import Key, Params
from algos.drqv2.conv import apply_layers, convolve, relu_layers
from algos.drqv2.thin import thin_product
from algos.lapack import unbatched_on_cpus
from algos.nets import affine

CHANNELS, LAYERS, STRIDES = 32, 4, (2, 1, 1, 1)  # of the encoder
EPSILON = 1e-5  # of the layer norm, PyTorch's; flax has 1e-6
SMALLEST = 1e-12  # square of a spectral norm, so that a kernel of zeros can be divided by it
FIXED = "fixed"  # the entry of a network's parameters that is not trained
HEADS = {"actor": "policy", "critic": "heads"}  # the entry that follows the trunk
Hidden = list[jax.Array]  # activations after each ReLU


class Options(NamedTuple):
    """What the networks have besides (Adaptive Replay Ratio, section 3)."""

    layer_norm: bool = False  # after each convolution and affine layer, before ReLU; the trunks have it in any case
    crelu: bool = False  # in the critics' heads; their layers keep their width
    spectral_norm: bool = False  # of the first affine layer of actor and critic, the trunk's


PLAIN = Options()


def encoder(params: Params, pixels: jax.Array) -> tuple[jax.Array, Hidden, jax.Array]:
    """Features (B, R), flattened in the order (h, w, c), of pixels (B, H, W, C) from 0 to 255, whole or not.

    With the layers' activations, and how many of each layer's are above zero, (layers,) int32.
    Without parameters, what is seen are features. The gradient is that of the features with respect to the parameters;
    what layers put out is there to be looked at.
    """
    if not params:
        return pixels.reshape(pixels.shape[0], -1), [], jnp.zeros(0, jnp.int32)
    layers = tuple(params[f"conv{i}"] for i in range(1, LAYERS + 1))
    if any("norm" in layer for layer in layers):
        hidden, active = apply_layers(convolve, STRIDES, layers, pixels, normalised)
    else:
        hidden, active = relu_layers(STRIDES, layers, pixels)
    return hidden[-1].reshape(len(pixels), -1), hidden, active


def layer_norm(params: Params, x: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 over the last axis, for images each position's channels; then scale and bias."""
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON)
    return x * params["scale"] + params["bias"]


def normalised(layer: Params, x: jax.Array) -> jax.Array:
    """What a layer put out, through its layer norm if it has one."""
    return layer_norm(layer["norm"], x) if "norm" in layer else x


def spectral_scale(kernel: jax.Array, direction: jax.Array) -> jax.Array:
    """1 / |W u| (), W (in, out): u (out,) is near the first singular vector, so that |W u| is the spectral norm."""
    return jax.lax.rsqrt(jnp.square(kernel @ direction).sum() + SMALLEST)


def iterate_power(params: Params) -> Params:
    """A network after one power iteration of its spectral norm's direction, u <- W'W u / |W'W u|, if it has one."""
    if "direction" not in params.get(FIXED, {}):
        return params
    kernel = params["trunk"]["dense"]["kernel"]
    along = (kernel @ params[FIXED]["direction"]) @ kernel
    along = along * jax.lax.rsqrt(jnp.square(along).sum() + SMALLEST)
    return params | {FIXED: params[FIXED] | {"direction": along}}


def trunk(params: Params, features: jax.Array, direction: jax.Array | None = None) -> jax.Array:
    """Affine, layer norm, tanh: (..., R) -> (..., F). With a direction the kernel is divided by its spectral norm."""
    dense = params["dense"]
    if direction is not None:
        dense = dense | {"kernel": dense["kernel"] * spectral_scale(dense["kernel"], direction)}
    return jnp.tanh(layer_norm(params["layernorm"], thin_product(features, dense["kernel"]) + dense["bias"]))


def mlp(params: Params, x: jax.Array) -> tuple[jax.Array, Hidden]:
    """Affine layers `dense0`, `dense1`, ... with ReLU or CReLU between: (..., in) -> (..., out)."""
    last, hidden = len(params) - 1, []
    for i in range(last):
        layer, inputs = params[f"dense{i}"], params[f"dense{i + 1}"]["kernel"].shape[0]
        x = normalised(layer, affine(layer, x))
        x = jax.nn.relu(jnp.concatenate([x, -x], -1) if inputs == 2 * x.shape[-1] else x)
        hidden.append(x)
    return affine(params[f"dense{last}"], x), hidden


def twin_mlp(params: Params, x: jax.Array) -> tuple[jax.Array, Hidden]:
    """`mlp` of both critics' heads on the same inputs; all outputs are (2, ...)."""
    return jax.vmap(mlp, (0, None))(params, x)


def head(net: Callable, params: Params, fixed: Params, x: jax.Array) -> tuple[jax.Array, Hidden]:
    """`net` of the head that learns; where there are two of plasticity injection, plus `base` minus `minus`.

    Those pass gradients on to their inputs. Equal ones cancel exactly.
    """
    out, hidden = net(params, x)
    if "base" in fixed:
        out = out + (net(fixed["base"], x)[0] - net(fixed["minus"], x)[0])
    return out, hidden


def actor(params: Params, features: jax.Array) -> tuple[jax.Array, Hidden]:
    """The policy's mean (..., A) in [-1, 1]; its standard deviation is not learnt."""
    fixed = jax.lax.stop_gradient(params.get(FIXED, {}))
    x = trunk(params["trunk"], features, fixed.get("direction"))
    out, hidden = head(mlp, params["policy"], fixed, x)
    return jnp.tanh(out), hidden


def critic(params: Params, features: jax.Array, action: jax.Array) -> tuple[jax.Array, Hidden]:
    """Q of both heads, (2, B), of features (B, R) and actions (B, A); hidden layers are (2, B, K or with CReLU 2K)."""
    fixed = jax.lax.stop_gradient(params.get(FIXED, {}))
    x = jnp.concatenate([trunk(params["trunk"], features, fixed.get("direction")), action], -1)
    out, hidden = head(twin_mlp, params["heads"], fixed, x)
    return out.squeeze(-1), hidden


def feature_size(height: int, width: int) -> int:
    """R: entries of an image's features; 0 where the image is too small for the encoder, which needs 15 pixels."""
    sides = [(side - 1) // 2 - 2 * (LAYERS - 1) for side in (height, width)]
    return CHANNELS * math.prod(max(side, 0) for side in sides)


def init_layer(key: Key, shape: tuple[int, ...], gain: float = 1.0) -> Params:
    """Kernel orthogonal, seen as a matrix whose columns are the outputs, times `gain`; bias zero."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    thin = max(rows, columns) >= 8 * min(rows, columns) and rows * columns > 1 << 15
    draw = thin_orthogonal if thin else jax.nn.initializers.orthogonal()
    kernel = unbatched_on_cpus(lambda key: draw(key, shape))(key)
    return {"kernel": gain * kernel, "bias": jnp.zeros(columns)}


def thin_orthogonal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """The orthogonal matrix of `jax.nn.initializers.orthogonal` but for rounding, one side much longer than the other.

    Q = A R^-1, R'R = A'A the Cholesky decomposition, twice to make Q orthogonal to rounding (CholeskyQR2, Fukaya et
    al., 2014). Its work is products of matrices; threads of LAPACK's QR spend seconds on waiting for each other. It
    needs columns that are nearly orthogonal from the start, as those of a long normal matrix are.
    """
    rows, columns = math.prod(shape[:-1]), shape[-1]
    q = jax.random.normal(key, (max(rows, columns), min(rows, columns)))
    for _ in range(2):
        gram = jnp.matmul(q.T, q, precision="highest")
        lower = jnp.linalg.cholesky(gram)
        q = jax.scipy.linalg.solve_triangular(lower, q.T, lower=True).T
    return (q if rows >= columns else q.T).reshape(shape)


def init_norm(width: int) -> Params:
    """Parameters of `layer_norm`."""
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def with_norm(layer: Params) -> Params:
    """The layer with a layer norm of its outputs."""
    return layer | {"norm": init_norm(layer["bias"].shape[-1])}


def init_mlp(key: Key, sizes: tuple[int, ...], options: Options = PLAIN) -> Params:
    """Parameters of `mlp` between the given sizes, of whose options it knows CReLU and layer norm."""
    keys, last = jax.random.split(key, len(sizes) - 1), len(sizes) - 2
    layers = []
    for i, k in enumerate(keys):
        doubled = 2 if options.crelu and i > 0 else 1
        layer = init_layer(k, (doubled * sizes[i], sizes[i + 1]))
        layers.append(with_norm(layer) if options.layer_norm and i < last else layer)
    return {f"dense{i}": layer for i, layer in enumerate(layers)}


def init_trunk(key: Key, inputs: int, width: int) -> Params:
    """Parameters of `trunk`."""
    return {"dense": init_layer(key, (inputs, width)), "layernorm": init_norm(width)}


def init_direction(key: Key, width: int) -> Params:
    """What a network with spectral norm has besides: a random unit vector. Fresh kernels stretch all of them alike."""
    along = jax.random.normal(jax.random.fold_in(key, 0), (width,))
    return {FIXED: {"direction": along / jnp.linalg.norm(along)}}


def init_encoder(key: Key, channels: int, options: Options = PLAIN) -> Params:
    """Parameters of `encoder` for images of so many channels, those of all stacked frames."""
    inputs = (channels, *[CHANNELS] * (LAYERS - 1))
    keys = jax.random.split(key, LAYERS)
    gain = math.sqrt(2.0)
    layers = {
        f"conv{i}": init_layer(k, (3, 3, size, CHANNELS), gain)
        for i, (k, size) in enumerate(zip(keys, inputs, strict=True), 1)
    }
    return {name: with_norm(layer) for name, layer in layers.items()} if options.layer_norm else layers


def init_actor(
    key: Key, features: int, action_dim: int, feature_dim: int, hidden_dim: int, options: Options = PLAIN
) -> Params:
    """Parameters of `actor`; `feature_dim` is the trunk's width F, `hidden_dim` the policy's K."""
    trunk_key, policy_key = jax.random.split(key)
    sizes = (feature_dim, hidden_dim, hidden_dim, action_dim)
    policy = init_mlp(policy_key, sizes, options._replace(crelu=False))
    params = {"trunk": init_trunk(trunk_key, features, feature_dim), "policy": policy}
    return params | (init_direction(key, feature_dim) if options.spectral_norm else {})


def init_critic(
    key: Key, features: int, action_dim: int, feature_dim: int, hidden_dim: int, options: Options = PLAIN
) -> Params:
    """Parameters of `critic`."""
    trunk_key, heads_key = jax.random.split(key)
    sizes = (feature_dim + action_dim, hidden_dim, hidden_dim, 1)
    # In turn: decompositions of a batch, run side by side, can stall each other's threads on a CPU.
    heads = jax.lax.map(lambda k: init_mlp(k, sizes, options), jax.random.split(heads_key))
    params = {"trunk": init_trunk(trunk_key, features, feature_dim), "heads": heads}
    return params | (init_direction(key, feature_dim) if options.spectral_norm else {})
