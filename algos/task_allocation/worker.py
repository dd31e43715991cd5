"""The ablation of selfish entities: each entity learns the price it asks of a slot.

A price replaces the entity's cost in what the manager sees, not what the environment charges. Every entity has its
own networks and optimisers, on a leading axis N; only those that were asked change.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from algos.core import Key, Metrics, Params
from algos.losses import adam, descend
from algos.task_allocation.nets import Hyper, Sizes, Static, init_mlp, mlp


class State(NamedTuple):
    """Everything that the workers learn; all leaves have a leading axis N."""

    actor: Params
    critic: Params
    actor_optim: optax.OptState
    critic_optim: optax.OptState
    sigma: jax.Array  # (N,): of the price noise


def init(key: Key, static: Static, sizes: Sizes, hyper: Hyper) -> State:
    """Fresh networks: actor d -> hidden -> 1, critic (d + 1) -> hidden -> 1."""

    def networks(key: Key) -> tuple[Params, Params]:
        actor_key, critic_key = jax.random.split(key)
        return (
            init_mlp(actor_key, sizes.slot_dim, static.hidden, 1),
            init_mlp(critic_key, sizes.slot_dim + 1, static.hidden, 1),
        )

    return begin(*jax.vmap(networks)(jax.random.split(key, sizes.entities)), hyper)


def begin(actor: Params, critic: Params, hyper: Hyper) -> State:
    """The state before any request of networks that exist already, leading axis N."""
    begin_adam = jax.vmap(adam(0.0).init)
    bias = actor["dense1"]["bias"]
    sigma = jnp.full(bias.shape[0], hyper.sigma, bias.dtype)
    return State(actor, critic, begin_adam(actor), begin_adam(critic), sigma)


def price(actor: Params, row: jax.Array, hyper: Hyper) -> jax.Array:
    """The price () in (0, 1) of serving a slot row (d,), before noise; a sigmoid after both layers."""
    return jax.nn.sigmoid(mlp(actor, row * hyper.feature_scale, jax.nn.sigmoid))[0]


def value(critic: Params, row: jax.Array, asked: jax.Array, hyper: Hyper) -> jax.Array:
    """The reward () expected for asking a price (); ReLU after both layers, so that it can die."""
    return jax.nn.relu(mlp(critic, jnp.append(row * hyper.feature_scale, asked)))[0]


def request(state: State, row: jax.Array, pool: jax.Array, noise: jax.Array, hyper: Hyper) -> tuple[State, jax.Array]:
    """Every member of the pool (N,) names a price for the slot row (d,): (state, prices (N,), zero for others).

    noise: (N,), standard normal. A worker's sigma decays at each of its requests, and is used after that.
    """
    smaller = jnp.where(state.sigma > hyper.sigma_floor, state.sigma * hyper.sigma_decay, hyper.sigma_floor)
    prices = jax.vmap(lambda actor: price(actor, row, hyper))(state.actor)
    prices = jnp.where(pool, jnp.maximum(smaller * noise + prices, 0.0), 0.0)
    return state._replace(sigma=jnp.where(pool, smaller, state.sigma)), prices


def critic_loss(critic: Params, row: jax.Array, asked: jax.Array, reward: jax.Array, hyper: Hyper) -> jax.Array:
    """(r - Q(g, b))² of one request, nothing bootstrapped."""
    return jnp.square(hyper.reward_scale * reward - value(critic, row, asked, hyper))


def actor_loss(actor: Params, critic: Params, row: jax.Array, hyper: Hyper) -> jax.Array:
    """-Q(g, the price without noise) of one request."""
    return -value(critic, row, price(actor, row, hyper), hyper)


def learn(
    state: State, row: jax.Array, pool: jax.Array, prices: jax.Array, team: jax.Array, hyper: Hyper
) -> tuple[State, Metrics]:
    """One update of each worker in the pool (N,) on its price for the slot row (d,), critic first.

    team: (N,), who was selected in an accepted allocation; they earned their price, the others nothing.
    """

    def one(state: State, asked: jax.Array, reward: jax.Array) -> tuple[State, jax.Array, jax.Array]:
        error, grads = jax.value_and_grad(critic_loss)(state.critic, row, asked, reward, hyper)
        critic, critic_optim = descend(adam(hyper.critic_lr), grads, state.critic_optim, state.critic)
        loss, grads = jax.value_and_grad(actor_loss)(state.actor, critic, row, hyper)
        actor, actor_optim = descend(adam(hyper.actor_lr), grads, state.actor_optim, state.actor)
        return State(actor, critic, actor_optim, critic_optim, state.sigma), error, loss

    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(pool.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    new, errors, losses = jax.vmap(one)(state, prices, jnp.where(team, prices, 0.0))
    asked = jnp.maximum(pool.sum(), 1)
    metrics = {
        "worker_critic_loss": jnp.where(pool, errors, 0.0).sum() / asked,
        "worker_actor_loss": jnp.where(pool, losses, 0.0).sum() / asked,
    }
    return jax.tree.map(keep, new, state), metrics
