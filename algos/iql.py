"""IQL: implicit Q-learning (Kostrikov et al., ICLR 2022, arXiv 2110.06169), in the paper's locomotion setting.

No action outside the data is ever evaluated: V is an expectile of the target critics over the data's actions, the
critics regress on V, and the policy is extracted by advantage-weighted regression. The order of an update is the
authors' code's: V, policy, critics, targets. Deviation: the networks start in PyTorch's initialisation, theirs in
an orthogonal one. The paper divides locomotion rewards by the range of the data's returns and multiplies them by
1000 (`reward_scale`), and leaves observations as they are.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.tree_util import register_dataclass

from algos.buffers import sample_dataset, shape_reward
from algos.core import Algorithm, Dataset, Key, Loss, Metrics, Params, Spec, Transition
from algos.distributions import gaussian_log_prob
from algos.losses import adam, cosine, descend, ensemble_mse, expectile_loss, polyak, td_target
from algos.nets import Critic, DeterministicActor, Value, apply_ensemble, init_ensemble


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members. The defaults are the paper's for locomotion."""

    expectile: float = 0.7  # τ of the paper: 0.5 is the mean, 1 the maximum over the data's actions
    temperature: float = 3.0  # β: inverse temperature of the advantage weights
    max_weight: float = 100.0  # where those weights are clipped
    discount: float = 0.99  # γ
    tau: float = 0.005  # Polyak step of the target critics
    actor_lr: float = 3e-4  # at the start; it falls to zero along a cosine
    actor_lr_steps: float = 1e6  # updates after which it is zero; inf keeps it constant
    critic_lr: float = 3e-4
    value_lr: float = 3e-4
    reward_scale: float = 1.0  # r <- reward_scale r + reward_shift, when sampled
    reward_shift: float = 0.0


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Hydra hands over lists; tuples are hashable."""
        self.hidden = tuple(self.hidden)


class GaussianActor(nn.Module):
    """obs -> mean in [-max_action, max_action], and a log standard deviation that all states share."""

    hidden: tuple[int, ...]
    action_dim: int
    max_action: float

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean (..., action_dim) and log standard deviation (action_dim,); only the mean passes a tanh."""
        mean = DeterministicActor(self.hidden, self.action_dim, self.max_action)(obs)
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return mean, jnp.clip(log_std, -5.0, 2.0) + jnp.log(self.max_action)


class Nets(NamedTuple):
    """Network definitions (no parameters)."""

    actor: GaussianActor
    critic: Critic
    value: Value


class Optim(NamedTuple):
    """One Adam state per trained network."""

    actor: optax.OptState
    critic: optax.OptState
    value: optax.OptState


class State(NamedTuple):
    """Everything that training changes."""

    actor: Params
    critic: Params  # leading axis 2: twin critics
    value: Params
    target_critic: Params
    optim: Optim


def make_nets(static: Static, spec: Spec) -> Nets:
    """Networks of the given widths for the given task."""
    return Nets(
        GaussianActor(static.hidden, spec.action_dim, spec.max_action),
        Critic(static.hidden),
        Value(static.hidden),
    )


def actor_adam(hyper: Hyper) -> optax.GradientTransformation:
    """Adam whose rate falls along a cosine."""
    return adam(cosine(hyper.actor_lr, hyper.actor_lr_steps))


def value_loss(value: Params, nets: Nets, batch: Transition, q: jax.Array, hyper: Hyper) -> Loss:
    """L_V, equation (5), with q = min_i Q̂_i(s, a) of the target critics."""
    v = nets.value.apply(value, batch.obs)
    loss = expectile_loss(q - v, hyper.expectile).mean()
    return loss, {"value_loss": loss, "v": v.mean()}


def critic_loss(critic: Params, nets: Nets, batch: Transition, target: jax.Array) -> Loss:
    """L_Q, equation (6), summed over the twin critics."""
    q = apply_ensemble(nets.critic, critic, batch.obs, batch.action)  # (2, batch)
    loss = ensemble_mse(q, target)
    return loss, {"critic_loss": loss, "q": q.mean()}


def actor_loss(actor: Params, nets: Nets, batch: Transition, advantage: jax.Array, hyper: Hyper) -> Loss:
    """L_π, equation (7): -mean min(exp(β A), max_weight) log π(a|s)."""
    weight = jnp.minimum(jnp.exp(hyper.temperature * advantage), hyper.max_weight)
    mean, log_std = nets.actor.apply(actor, batch.obs)
    log_prob = gaussian_log_prob((batch.action - mean) * jnp.exp(-log_std), log_std)
    loss = -(weight * log_prob).mean()
    return loss, {"actor_loss": loss, "weight": weight.mean(), "log_std": log_std.mean()}


def learn(nets: Nets, state: State, batch: Transition, hyper: Hyper) -> tuple[State, Metrics]:
    """One update of value, policy, critics and target critics; it draws no random numbers."""
    q = apply_ensemble(nets.critic, state.target_critic, batch.obs, batch.action).min(0)
    grads, value_metrics = jax.grad(value_loss, has_aux=True)(state.value, nets, batch, q, hyper)
    value, value_optim = descend(adam(hyper.value_lr), grads, state.optim.value, state.value)

    advantage = q - nets.value.apply(value, batch.obs)
    grads, actor_metrics = jax.grad(actor_loss, has_aux=True)(state.actor, nets, batch, advantage, hyper)
    actor, actor_optim = descend(actor_adam(hyper), grads, state.optim.actor, state.actor)

    next_v = nets.value.apply(value, batch.next_obs)
    target = td_target(batch.reward, batch.terminated, next_v, hyper.discount)
    grads, critic_metrics = jax.grad(critic_loss, has_aux=True)(state.critic, nets, batch, target)
    critic, critic_optim = descend(adam(hyper.critic_lr), grads, state.optim.critic, state.critic)

    target_critic = polyak(critic, state.target_critic, hyper.tau)
    state = State(actor, critic, value, target_critic, Optim(actor_optim, critic_optim, value_optim))
    return state, value_metrics | actor_metrics | critic_metrics


def make(static: Static, spec: Spec) -> Algorithm:
    """Build IQL for the observation and action shapes in `spec`."""
    nets = make_nets(static, spec)

    def init(key: Key, hyper: Hyper) -> State:
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        obs, action = jnp.zeros((1, spec.obs_dim)), jnp.zeros((1, spec.action_dim))
        actor = nets.actor.init(actor_key, obs)
        critic = init_ensemble(nets.critic, critic_key, 2, obs, action)
        value = nets.value.init(value_key, obs)
        optim = Optim(
            actor_adam(hyper).init(actor),
            adam(0.0).init(critic),
            adam(0.0).init(value),
        )
        return State(actor, critic, value, critic, optim)

    def step(key: Key, state: State, source: Dataset, hyper: Hyper) -> tuple[State, Metrics]:
        batch = sample_dataset(key, source, static.batch_size)
        return learn(nets, state, shape_reward(batch, hyper.reward_scale, hyper.reward_shift), hyper)

    def act(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        return nets.actor.apply(state.actor, obs)[0]

    return Algorithm(init, step, act)
