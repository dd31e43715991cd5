"""The noise network, what adapts it, and the small networks beside it, as functions of plain dictionaries.

They are no flax modules because the same layers are evaluated with zero, one or many increments of their weights.
Matrices are (in, out): `y = x @ w + b`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from algos.checks import check_choice
from algos.core import Key, Params, UsageError

EPSILON = 1e-6  # of every LayerNorm

xavier = jax.nn.initializers.glorot_uniform()
lecun = jax.nn.initializers.lecun_normal()  # a truncated normal of variance 1 / fan_in


def mish(x: jax.Array) -> jax.Array:
    """x tanh(softplus(x)), with one exponential instead of three transcendental functions: (1 + e^x)^2 = n + 1."""
    exp = jnp.exp(jnp.minimum(x, 20.0))  # from there on it is x to the last bit
    n = exp * (exp + 2.0)
    return x * (n / (n + 2.0))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"mish": mish, "swish": jax.nn.swish, "relu": jax.nn.relu}
ADAPTERS: dict[str, Callable[[jax.Array], jax.Array]] = {"lora": lambda x: x, "mlp": jax.nn.relu}


@dataclass(unsafe_hash=True)
class Net:
    """Shape of the noise network; the same in all phases. The defaults are the paper's code's."""

    hidden: int = 256
    blocks: int = 3
    time_features: int = 32  # Fourier frequencies; each gives a cosine and a sine
    time_hidden: tuple[int, int] = (128, 128)
    activation: str = "mish"
    dropout: float = 0.1  # in front of each block, while base and skills train
    diffusion_steps: int = 5  # T
    schedule: str = "vp"  # vp | linear | cosine

    def __post_init__(self) -> None:
        """Hydra hands over lists; tuples are hashable."""
        self.time_hidden = (self.time_hidden[0], self.time_hidden[1])
        check_choice("activation", self.activation, ACTIVATIONS)
        if not 0.0 <= self.dropout < 1.0:
            raise UsageError(f"dropout={self.dropout} must be at least 0 and less than 1")


def dense(key: Key, inputs: int, outputs: int, init: Callable = xavier) -> Params:
    """Parameters of an affine layer with zero bias."""
    return {"w": init(key, (inputs, outputs)), "b": jnp.zeros(outputs)}


def init_noise_net(key: Key, net: Net, obs_dim: int, action_dim: int) -> Params:
    """Fresh parameters, as in the authors' code: Xavier-uniform weights, in the blocks LeCun-normal ones."""
    keys = iter(jax.random.split(key, 5 + 2 * net.blocks))
    features, (first, second), hidden = 2 * net.time_features, net.time_hidden, net.hidden
    fourier = {"w": 0.2 * jax.random.normal(next(keys), (net.time_features, 1))}
    time_mlp = {"layer0": dense(next(keys), features, first), "layer1": dense(next(keys), first, second)}
    trunk = {
        "in": dense(next(keys), action_dim + obs_dim + second, hidden),
        "out": dense(next(keys), hidden, action_dim),
    }
    for i in range(net.blocks):
        trunk[f"block{i}"] = {
            "ln": {"scale": jnp.ones(hidden), "b": jnp.zeros(hidden)},
            "up": dense(next(keys), hidden, 4 * hidden, lecun),
            "down": dense(next(keys), 4 * hidden, hidden, lecun),
        }
    return {"time_fourier": fourier, "time_mlp": time_mlp, "trunk": trunk}


def linear_layers(tree: Params) -> Params:
    """Only the affine layers of a noise network: what is adapted."""
    trunk = {name: {k: v for k, v in part.items() if k != "ln"} for name, part in tree["trunk"].items()}
    return {"time_mlp": tree["time_mlp"], "trunk": trunk}


def _is_layer(node: Any) -> bool:
    return isinstance(node, dict) and ("w" in node or "A" in node)


def init_skill(key: Key, base: Params, max_rank: int, rank: ArrayLike) -> Params:
    """A skill that changes nothing yet: A (in, max_rank) LeCun-normal, B (max_rank, out) zero, for each affine layer.

    Columns of A from `rank` on are zero, and so remain these and the rows of B that belong to them: their gradients
    are zero. So skills of several ranks fit into one program.
    """
    layers, structure = jax.tree.flatten(linear_layers(base), is_leaf=_is_layer)
    used = jnp.arange(max_rank) < rank
    adapted = [
        {
            "A": jnp.where(used, lecun(k, (layer["w"].shape[0], max_rank)), 0.0),
            "B": jnp.zeros((max_rank, layer["w"].shape[1])),
        }
        for k, layer in zip(jax.random.split(key, len(layers)), layers)
    ]
    return jax.tree.unflatten(structure, adapted)


def stack(skills: list[Params]) -> Params:
    """Skills side by side: A (k, in, rank), B (k, rank, out). Lower ranks are filled up with zeros."""
    rank = max(skill["trunk"]["out"]["A"].shape[-1] for skill in skills)

    def fill(x: jax.Array, axis: int) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, rank - x.shape[axis])
        return jnp.pad(x, widths)

    def filled(layer: Params) -> Params:
        return {"A": fill(layer["A"], -1), "B": fill(layer["B"], -2)}

    even = [jax.tree.map(filled, skill, is_leaf=_is_layer) for skill in skills]
    return jax.tree.map(lambda *x: jnp.stack(x), *even)


def merge(base: Params, skills: Params, alpha: jax.Array) -> Params:
    """Plain weights W + sum_i alpha_i A_i B_i of LoRA skills mixed with the same alpha (k,) everywhere."""

    def merged(layer: Params, skill: Params) -> Params:
        return {"w": layer["w"] + jnp.einsum("k,kdr,kro->do", alpha, skill["A"], skill["B"]), "b": layer["b"]}

    new = jax.tree.map(merged, linear_layers(base), skills, is_leaf=_is_layer)
    trunk = {name: base["trunk"][name] | part for name, part in new["trunk"].items()}
    return {**base, "time_mlp": new["time_mlp"], "trunk": trunk}


def normalise(params: Params, x: jax.Array) -> jax.Array:
    """LayerNorm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)
    return scaled * params["scale"] + params["b"]


def noise_net(
    net: Net,
    base: Params,
    x: jax.Array,
    obs: jax.Array,
    time: jax.Array,
    skills: Params | None = None,
    alpha: jax.Array | None = None,
    adapter: str = "lora",
    keep: jax.Array | None = None,
) -> jax.Array:
    """Predicted noise (..., action_dim) in x (..., action_dim), given obs (..., obs_dim) and times (...).

    With `skills` (see `stack`) every affine layer is y = x W + b + sum_i alpha_i ((x A_i) B_i); alpha (..., k) is the
    same in all layers. W is never formed per sample. keep (blocks, ..., hidden) is dropout's mask, none without it.
    """
    activate, inner = ACTIVATIONS[net.activation], ADAPTERS[adapter]

    def affine(h: jax.Array, *path: str) -> jax.Array:
        layer = _at(base, path)
        y = h @ layer["w"] + layer["b"]
        if skills is None or alpha is None:
            return y
        skill = _at(skills, path)
        low = inner(jnp.einsum("...d,kdr->...kr", h, skill["A"])) * alpha[..., None]
        return y + jnp.einsum("...kr,kro->...o", low, skill["B"])

    angle = 2.0 * jnp.pi * time[..., None].astype(jnp.float32) * base["time_fourier"]["w"][:, 0]
    features = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)
    features = affine(activate(affine(features, "time_mlp", "layer0")), "time_mlp", "layer1")
    h = affine(jnp.concatenate([x, obs, features], -1), "trunk", "in")
    for i in range(net.blocks):
        block = f"block{i}"
        u = h if keep is None else jnp.where(keep[i], h / (1.0 - net.dropout), 0.0)
        u = normalise(base["trunk"][block]["ln"], u)
        h = h + affine(activate(affine(u, "trunk", block, "up")), "trunk", block, "down")
    return affine(activate(h), "trunk", "out")


def _at(tree: Params, path: tuple[str, ...]) -> Params:
    for name in path:
        tree = tree[name]
    return tree


def init_mlp(key: Key, inputs: int, hidden: tuple[int, ...], outputs: int, input_norm: bool = False) -> Params:
    """A ReLU network with Xavier-uniform weights; `input_norm` puts a LayerNorm on the raw input."""
    keys = jax.random.split(key, len(hidden) + 1)
    widths = (inputs, *hidden)
    params = {f"layer{i}": dense(k, widths[i], widths[i + 1]) for i, k in enumerate(keys[:-1])}
    params["head"] = dense(keys[-1], widths[-1], outputs)
    if input_norm:
        params["input_ln"] = {"scale": jnp.ones(inputs), "b": jnp.zeros(inputs)}
    return params


def mlp(params: Params, x: jax.Array) -> jax.Array:
    """Outputs (..., outputs) of a network made by `init_mlp`."""
    if "input_ln" in params:
        x = normalise(params["input_ln"], x)
    for i in range(sum(name.startswith("layer") for name in params)):
        layer = params[f"layer{i}"]
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params["head"]["w"] + params["head"]["b"]
