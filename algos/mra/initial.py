"""First parameters of MRA's networks, each block in its own initialisation.

What is to be drawn is written down first, and drawn in one go: an array of its own for each parameter would take
seconds to compile.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from algos.core import Key, Params
from algos.mra.settings import Static

ACTIONS = 5
KEY_WIDTH = 16  # of a head of the relation network


@dataclass(frozen=True)
class Entry:
    """A parameter: `scale` times standard normal numbers, or numbers uniform on [-1, 1]."""

    shape: tuple[int, ...]
    scale: float
    normal: bool = False


Init = Callable[[tuple[int, ...], int, int], Entry]  # (shape, fan_in, fan_out)


def uniform(shape: tuple[int, ...], fan_in: int, fan_out: int) -> Entry:
    """Uniform on ±1/√fan_in."""
    return Entry(shape, fan_in**-0.5)


def xavier(shape: tuple[int, ...], fan_in: int, fan_out: int) -> Entry:
    """Normal, variance 2 / (fan_in + fan_out)."""
    return Entry(shape, (2.0 / (fan_in + fan_out)) ** 0.5, normal=True)


def normal(shape: tuple[int, ...], fan_in: int, fan_out: int) -> Entry:
    """Normal, standard deviation 0.1."""
    return Entry(shape, 0.1, normal=True)


def zeros(shape: tuple[int, ...], fan_in: int, fan_out: int) -> Entry:
    """Nothing."""
    return Entry(shape, 0.0)


def affine(fan_in: int, fan_out: int, kernel: Init, bias: Init, lead: tuple[int, ...] = ()) -> Params:
    """One layer, drawn by the two initialisers; `lead` are axes in front, of layers alike."""
    return {
        "kernel": kernel((*lead, fan_in, fan_out), fan_in, fan_out),
        "bias": bias((*lead, fan_out), fan_in, fan_out),
    }


def mlp(widths: tuple[int, int, int], kernel: Init, bias: Init, lead: tuple[int, ...] = ()) -> Params:
    """Two layers, drawn by the two initialisers."""
    first, hidden, last = widths
    return {"fc1": affine(first, hidden, kernel, bias, lead), "fc2": affine(hidden, last, kernel, bias, lead)}


def keys_of(widths: tuple[int, int, int], static: Static) -> Params:
    """The layers that make attention keys: without the last bias, which has no effect, unless asked for."""
    params = mlp(widths, xavier, zeros)
    return params if static.key_bias else params | {"fc2": {"kernel": params["fc2"]["kernel"]}}


def relation(static: Static, width: int) -> Params:
    """Queries and keys of all skills, skill-major, from vectors of `width` entries."""
    widths = (width, 32, static.skills * KEY_WIDTH)
    return {"self_proj": mlp(widths, xavier, zeros), "other_proj": keys_of(widths, static)}


def policy(static: Static, width: int, kinds: int) -> Params:
    """A policy for each kind, on a leading axis."""
    seen = 64 + width * static.policy_self_features
    head = mlp((seen, 32, ACTIONS), xavier, uniform, (kinds,))
    return {"value_net": mlp((width, 32, 64), normal, normal, (kinds,)), "action_head": head}


def critic(static: Static, width: int, kinds: int) -> Params:
    """The critic of all agents; its last layer is one for each kind."""
    return {
        "self_proj": mlp((width, 16, 32), xavier, zeros),
        "other_proj": keys_of((width, 16, 32), static),
        "value_net": mlp((width, 32, 64), xavier, zeros),
        "mix_value": mlp((64 + ACTIONS, 32, 16), uniform, uniform),
        "self_value": mlp((64 + ACTIONS, 32, 16), uniform, uniform),
        "out": affine(32, ACTIONS, uniform, uniform, (kinds,)),
    }


def attentive_policy(static: Static, width: int, kinds: int) -> Params:
    """A policy for each kind, and one attention of their own in place of relation graphs."""
    judge = critic(static, width, kinds)
    return policy(static, width, kinds) | {name: judge[name] for name in ("self_proj", "other_proj")}


def task_predictor(static: Static, width: int, games: int) -> Params:
    """Graphs and skills to logits of the training games."""
    head = mlp((64 + static.skills, 35, games), uniform, uniform)
    return {"value_net": mlp((width, 32, 64), xavier, zeros), "head": head}


def entries(static: Static, width: int, kinds: int, games: int) -> Params:
    """What all networks are drawn from, in place of arrays."""
    return {
        "policy": policy(static, width, kinds),
        "critic": critic(static, width, kinds),
        "relation_net": relation(static, width),
        "task_encoder": mlp((kinds, 3, static.skills), uniform, uniform),  # numbers of agents to logits of skills
        "task_predictor": task_predictor(static, width, games),
    }


def draw(key: Key, wanted: Params) -> Params:
    """Arrays in place of entries."""
    leaves, structure = jax.tree.flatten(wanted)
    ends = np.cumsum([np.prod(entry.shape) for entry in leaves])
    keys = jax.random.split(key)
    of_normal = jax.random.normal(keys[0], (int(ends[-1]),))
    of_uniform = jax.random.uniform(keys[1], (int(ends[-1]),), minval=-1.0, maxval=1.0)
    parts = zip(leaves, jnp.split(of_normal, ends[:-1]), jnp.split(of_uniform, ends[:-1]))
    return jax.tree.unflatten(structure, [e.scale * (n if e.normal else u).reshape(e.shape) for e, n, u in parts])


def init_params(key: Key, static: Static, width: int, kinds: int, games: int) -> Params:
    """All networks, for vectors of `width` entries, H kinds of agents and so many training games."""
    return draw(key, entries(static, width, kinds, games))
