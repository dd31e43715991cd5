"""Settings of the two-stage method, and its networks as functions of plain dictionaries.

Networks have PyTorch's default initialisation (uniform on +-1/sqrt(fan_in)) and kernels (in, out). Layers that the
original code creates but never applies are left out. N entities and T task slots are padded: `entity_mask` and
`slot_mask` tell which exist, and nothing that belongs to padding reaches a probability, a loss or a gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from algos.checks import check_choices, check_least
from algos.core import Key, Params, UsageError
from algos.nets import affine, init_affine

MASKED = -999999.0  # the logit of what must not be chosen
EPSILON = 1e-8  # inside every logarithm of a probability
CHOICES = {
    "variant": ("two_stage", "selfish", "fixed_order", "random_order"),
    "acting": ("most_probable", "sampled"),
    "critic": ("amix", "mlp", "no_tam"),
    "mixer": ("vector", "scalar"),
    "mixer_activation": ("relu", "leaky_relu"),
    "entropy": ("official", "shannon", "none"),
    "td_target": ("target_stopgrad", "online_stopgrad", "online_residual"),
    "manager_update": ("per_step", "per_decision"),
    "empty_pool": ("skip", "official"),
}


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members. The defaults are the original code's for RBF."""

    actor_lr: float = 1e-5  # of both stages and the workers; Electric 1e-4, Almighty 3e-5
    critic_lr: float = 1e-5  # of all critics and the mixer; Electric and Almighty 1e-4
    discount: float = 0.98  # γ of the manager, and of stage 1 if it bootstraps
    tau: float = 0.005  # Polyak step of the target critics
    entropy_weight: float = 0.01  # of both stages' actors and the manager's target
    feature_scale: float = 1.0  # multiplies the rows that networks see
    reward_scale: float = 1.0  # multiplies the rewards that critics learn; not those that decide on refusal
    sigma: float = 0.5  # of the workers' price noise at first
    sigma_decay: float = 0.9999  # at each request, while above the floor
    sigma_floor: float = 0.05


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program.

    The defaults are what we recommend; `OFFICIAL` has the original code's choices, which its records need.
    """

    # two_stage | selfish: entities set their prices, too | without stage 1 all slots draw from one pool, slots in
    # fixed_order | random_order
    variant: str = "two_stage"
    learning: bool = True  # false: what there is plays on, e.g. untrained networks, or trained ones elsewhere
    acting: str = "most_probable"  # in evaluations: most_probable choices | sampled, as in training
    hidden: int = 64
    critic: str = "amix"  # of stage 1: amix | mlp (w/o AMIX) | no_tam (w/o TAM)
    mixer: str = "vector"  # weights generated for each entity: vector (the code) | scalar (the paper's figure)
    mixer_activation: str = "relu"  # leaky_relu: slope 0.1, in the version behind the published learning curves
    entropy: str = "shannon"  # of stage 1: shannon | none | official: rewards peaked policies
    stage1_bootstrap: bool = False  # the paper's figure: add the value of the episode's next decision to the target
    broadcast_bug: bool = False  # critic=mlp: official true, all values are pulled to the batch's mean reward
    buffer_size: int = 1000  # decisions kept for stage 1
    start_size: int = 100  # stage 1 learns once the buffer holds more
    batch_size: int = 32
    td_target: str = "target_stopgrad"  # of the manager; official: online_residual, gradient through the target
    manager_update: str = "per_step"  # per_step (official): after each pick | per_decision: on all its picks at once
    decision_updates: int = 1  # updates on a decision's picks, with per_decision
    empty_pool: str = "skip"  # official: a slot that nobody chose draws an arbitrary entity
    cover_coords: bool = False  # official true: teams have to cover a task's coordinates, too
    stale_entities: bool = False  # official true (RBF, Material): picks see the entities of the last update
    return_refused: bool = True  # without stage 1: refused teams go back to the pool; official false
    serve_empty: bool = False  # without stage 1: official true (RBF, Electric), empty slots draw an entity, too

    def __post_init__(self) -> None:
        """Raises UsageError for choices that do not exist or do not go together."""
        check_choices(self, CHOICES)
        check_least(self, hidden=1, buffer_size=1, batch_size=1, decision_updates=1)
        if not self.batch_size - (not self.stage1_bootstrap) <= self.start_size < self.buffer_size:
            raise UsageError(
                f"algo.static.start_size={self.start_size} must leave a batch of {self.batch_size} different decisions "
                f"and lie below buffer_size={self.buffer_size}"
            )
        if self.stage1_bootstrap and self.critic == "mlp":
            raise UsageError("algo.static.stage1_bootstrap=true needs values of entities: set critic=amix or no_tam")

    @property
    def preassigns(self) -> bool:
        """Whether there is a stage 1."""
        return self.variant in ("two_stage", "selfish")


OFFICIAL: dict[str, Any] = {  # switches of `Static` at the original code's settings
    "entropy": "official",
    "broadcast_bug": True,
    "td_target": "online_residual",
    "empty_pool": "official",
    "cover_coords": True,
    "stale_entities": True,
    "return_refused": False,
    "serve_empty": True,
}


class Sizes(NamedTuple):
    """Padded numbers and row widths that networks are built for."""

    entities: int  # N
    slots: int  # T
    entity_dim: int
    slot_dim: int


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.1),
}


def init_mlp(key: Key, *widths: int) -> Params:
    """Affine layers dense0, dense1, ... between the widths, kernel and bias uniform on +-1/sqrt(fan_in)."""
    keys = jax.random.split(key, len(widths) - 1)
    return {f"dense{i}": init_affine(*layer) for i, layer in enumerate(zip(keys, widths, widths[1:]))}


def mlp(params: Params, x: jax.Array, activation: Callable[[jax.Array], jax.Array] = jax.nn.relu) -> jax.Array:
    """Map (..., in) to (..., out): the activation between the layers, none after the last."""
    for i in range(len(params)):
        x = affine(params[f"dense{i}"], x if i == 0 else activation(x))
    return x


def init_encoders(key: Key, sizes: Sizes, hidden: int) -> Params:
    """An encoder of entities and one of slots, d -> hidden -> hidden."""
    entity_key, slot_key = jax.random.split(key)
    return {
        "entity": init_mlp(entity_key, sizes.entity_dim, hidden, hidden),
        "slot": init_mlp(slot_key, sizes.slot_dim, hidden, hidden),
    }


def inner_products(params: Params, entities: jax.Array, slots: jax.Array) -> jax.Array:
    """<f_e(E_i), f_t(G_j)> of embedded entities (N, d) and slots (T, d'), (N, T)."""
    return mlp(params["entity"], entities) @ mlp(params["slot"], slots).T


def logits(params: Params, entities: jax.Array, slots: jax.Array) -> jax.Array:
    """Inner products divided by the hidden width (not by its square root), (N, T)."""
    return inner_products(params, entities, slots) / params["entity"]["dense1"]["bias"].shape[-1]


def masked_softmax(scores: jax.Array, allowed: jax.Array, exists: jax.Array) -> jax.Array:
    """Probabilities over the last axis: uniform over what exists if nothing is allowed, zero for padding."""
    return jax.nn.softmax(jnp.where(exists, jnp.where(allowed, scores, MASKED), -jnp.inf))


def entropy(probs: jax.Array) -> jax.Array:
    """-Σ p log(p + 1e-8) over the last axis."""
    return -(probs * jnp.log(probs + EPSILON)).sum(-1)


def inverse_cdf(probs: jax.Array, uniform: jax.Array) -> jax.Array:
    """How many cumulative probabilities are <= u, int32: a sample of the last axis for each u (...).

    Where rounding leaves the sum below u, it is the last index that has any probability.
    """
    below = (jnp.cumsum(probs, -1) <= uniform[..., None]).sum(-1)
    last = probs.shape[-1] - 1 - jnp.argmax((probs > 0)[..., ::-1], -1)
    return jnp.minimum(below, last).astype(jnp.int32)


def features(rows: jax.Array, mask: jax.Array, hyper: Hyper) -> jax.Array:
    """What networks see of rows (..., n, d): scaled, and zero where the mask (..., n) is false."""
    return jnp.where(mask[..., None], rows * hyper.feature_scale, 0.0)


def init_mixer(key: Key, static: Static, sizes: Sizes) -> Params:
    """Networks that generate weights for the values of entities; none where the critic is one network."""
    if static.critic == "mlp":
        return {}
    keys, hidden = jax.random.split(key, 4), static.hidden
    outputs = {"key": hidden, "query": hidden, "value": 2 if static.mixer == "scalar" else hidden}
    params = {name: init_mlp(k, sizes.entity_dim, hidden, width) for k, (name, width) in zip(keys, outputs.items())}
    return params if static.mixer == "scalar" else params | {"out": init_mlp(keys[3], hidden, hidden, 1)}


def mix(static: Static, mixer: Params, entities: jax.Array, entity_mask: jax.Array, values: jax.Array) -> jax.Array:
    """Qtot () of the values (N,) of entities, which are zero where unassigned (AMIX).

    entities: features (N, d), zero rows where unavailable. Those still receive attention; padding does not.
    """
    activation = ACTIVATIONS[static.mixer_activation]
    keys, queries, generated = (mlp(mixer[name], entities, activation) for name in ("key", "query", "value"))
    scores = jnp.where(entity_mask, keys @ queries.T / keys.shape[-1] ** 0.5, -jnp.inf)
    weights = jax.nn.softmax(scores) @ generated
    if static.mixer == "scalar":
        return jnp.where(entity_mask, weights[:, 0] * values + weights[:, 1], 0.0).sum()
    return mlp(mixer["out"], activation(values @ weights), activation)[0]
