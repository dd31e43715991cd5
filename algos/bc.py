"""BC: behaviour cloning, a deterministic policy fitted to the data's actions by least squares."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import register_dataclass

from algos.buffers import sample_dataset
from algos.core import Algorithm, Dataset, Key, Loss, Metrics, Params, Spec, Transition
from algos.losses import adam, descend
from algos.nets import DeterministicActor


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members."""

    actor_lr: float = 3e-4


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Hydra hands over lists; tuples are hashable."""
        self.hidden = tuple(self.hidden)


class State(NamedTuple):
    """Everything that training changes."""

    actor: Params
    optim: optax.OptState


def actor_loss(actor: Params, net: DeterministicActor, batch: Transition) -> Loss:
    """Mean over batch and action dimensions of (π(s) - a)²."""
    loss = jnp.square(net.apply(actor, batch.obs) - batch.action).mean()
    return loss, {"actor_loss": loss}


def learn(net: DeterministicActor, state: State, batch: Transition, hyper: Hyper) -> tuple[State, Metrics]:
    """One gradient update."""
    grads, metrics = jax.grad(actor_loss, has_aux=True)(state.actor, net, batch)
    return State(*descend(adam(hyper.actor_lr), grads, state.optim, state.actor)), metrics


def make(static: Static, spec: Spec) -> Algorithm:
    """Build BC for the observation and action shapes in `spec`."""
    net = DeterministicActor(static.hidden, spec.action_dim, spec.max_action)

    def init(key: Key, hyper: Hyper) -> State:
        actor = net.init(key, jnp.zeros((1, spec.obs_dim)))
        return State(actor, adam(0.0).init(actor))

    def step(key: Key, state: State, source: Dataset, hyper: Hyper) -> tuple[State, Metrics]:
        return learn(net, state, sample_dataset(key, source, static.batch_size), hyper)

    def act(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        return net.apply(state.actor, obs)

    return Algorithm(init, step, act)
