"""Critics of PSEC's skills: IQL for the reward, a reversed expectile for the cost.

Both sides are the same program: the cost side learns Q and V of a cost with the pessimism turned round.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from algos.core import Key, Loss, Metrics, Params, Transition
from algos.losses import adam, descend, expectile_loss, polyak
from algos.psec.nets import init_mlp, mlp


class Critic(NamedTuple):
    """Twin Q networks, their targets and a value network, of the reward or of the cost."""

    q: Params  # leading axis 2
    q_target: Params
    v: Params
    q_optim: optax.OptState
    v_optim: optax.OptState


def init_critic(key: Key, obs_dim: int, action_dim: int, hidden: tuple[int, ...], value_norm: bool) -> Critic:
    """Fresh networks; the targets equal the online ones."""
    q_key, v_key = jax.random.split(key)
    q = jax.vmap(lambda k: init_mlp(k, obs_dim + action_dim, hidden, 1))(jax.random.split(q_key, 2))
    v = init_mlp(v_key, obs_dim, hidden, 1, input_norm=value_norm)
    return Critic(q, q, v, adam(0.0).init(q), adam(0.0).init(v))


def q_values(q: Params, obs: jax.Array, action: jax.Array) -> jax.Array:
    """Values of both heads, (2, ...)."""
    inputs = jnp.concatenate([obs, action], -1)
    return jax.vmap(lambda params: mlp(params, inputs)[..., 0])(q)


def value(v: Params, obs: jax.Array) -> jax.Array:
    """State values (...)."""
    return mlp(v, obs)[..., 0]


def value_loss(v: Params, obs: jax.Array, q: jax.Array, expectile: ArrayLike, side: str) -> Loss:
    """Expectile regression of V on q (batch,): the upper one for the reward, the lower one for the cost."""
    predicted = value(v, obs)
    sign = 1.0 if side == "reward" else -1.0
    loss = expectile_loss(sign * (q - predicted), expectile).mean()
    return loss, {f"{side}_v_loss": loss, f"{side}_v": predicted.mean()}


def q_loss(q: Params, batch: Transition, target: jax.Array, side: str) -> Loss:
    """Mean over heads and batch of the squared error."""
    predicted = q_values(q, batch.obs, batch.action)
    loss = jnp.square(predicted - target).mean()
    return loss, {f"{side}_q_loss": loss, f"{side}_q": predicted.mean()}


def reward_target(reward: jax.Array, mask: jax.Array, next_v: jax.Array, discount: ArrayLike) -> jax.Array:
    """y = r + γ m V(s'); all (batch,), m = 0 where the episode ends."""
    return reward + discount * mask * next_v


def cost_target(cost: jax.Array, mask: jax.Array, next_v: jax.Array, discount: ArrayLike, kind: str) -> jax.Array:
    """`hj` (Hamilton-Jacobi): the largest cost ahead, m [(1 - γ) h + γ max(h, V(s'))] + (1 - m) h; `qc`: its sum."""
    if kind == "qc":
        return reward_target(cost, mask, next_v, discount)
    ahead = (1.0 - discount) * cost + discount * jnp.maximum(cost, next_v)
    return mask * ahead + (1.0 - mask) * cost


def pessimistic(critic: Critic, batch: Transition, side: str) -> jax.Array:
    """The target networks' lower value of a reward, or higher value of a cost, (batch,)."""
    q = q_values(critic.q_target, batch.obs, batch.action)
    return q.min(0) if side == "reward" else q.max(0)


def learn_critic(critic: Critic, batch: Transition, mask: jax.Array, hyper: Any, side: str, kind: str = "") -> tuple:
    """V, then Q towards the new V, then Q's target: (critic, metrics, the target of Q).

    side: "reward" learns from batch.reward, "cost" from batch.cost with targets of that `kind`. hyper: the skill's.
    """
    expectile = hyper.expectile if side == "reward" else hyper.cost_expectile
    seen = pessimistic(critic, batch, side)
    grads, v_metrics = jax.grad(value_loss, has_aux=True)(critic.v, batch.obs, seen, expectile, side)
    v, v_optim = descend(adam(hyper.critic_lr), grads, critic.v_optim, critic.v)
    next_v = value(v, batch.next_obs)
    if side == "reward":
        target = reward_target(batch.reward, mask, next_v, hyper.discount)
    else:
        target = cost_target(jnp.asarray(batch.cost), mask, next_v, hyper.discount, kind)
    grads, q_metrics = jax.grad(q_loss, has_aux=True)(critic.q, batch, target, side)
    q, q_optim = descend(adam(hyper.critic_lr), grads, critic.q_optim, critic.q)
    metrics: Metrics = v_metrics | q_metrics
    return Critic(q, polyak(q, critic.q_target, hyper.tau), v, q_optim, v_optim), metrics, target
