"""TD3+BC: TD3 on a fixed data set, with behaviour cloning added (Fujimoto & Gu, NeurIPS 2021, arXiv 2106.06860).

The critics are TD3's (Fujimoto et al. 2018, arXiv 1802.09477, Algorithm 1). Observations are normalised by the
data set that the paper's setting asks for, not here.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import register_dataclass

from algos.buffers import sample_dataset, shape_reward
from algos.core import Algorithm, Dataset, Key, Loss, Metrics, Params, Spec, Transition
from algos.losses import adam, descend, ensemble_mse, min_td_target, polyak, smooth_action
from algos.nets import Critic, DeterministicActor, apply_ensemble, apply_first, init_ensemble


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members. The defaults are the paper's (table 3)."""

    alpha: float = 2.5  # α: weight of Q against cloning
    discount: float = 0.99  # γ
    tau: float = 0.005  # τ: Polyak step of both targets
    policy_noise: float = 0.2  # σ: std of the target policy's noise, in units of max_action
    noise_clip: float = 0.5  # c: where that noise is clipped, in units of max_action
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    reward_scale: float = 1.0  # r <- reward_scale r + reward_shift, when sampled
    reward_shift: float = 0.0


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 256
    policy_delay: int = 2  # d: critic updates for each actor update

    def __post_init__(self) -> None:
        """Hydra hands over lists; tuples are hashable."""
        self.hidden = tuple(self.hidden)


class Nets(NamedTuple):
    """Network definitions (no parameters)."""

    actor: DeterministicActor
    critic: Critic


class Optim(NamedTuple):
    """One Adam state per trained network."""

    actor: optax.OptState
    critic: optax.OptState


class State(NamedTuple):
    """Everything that training changes."""

    actor: Params
    critic: Params  # leading axis 2: twin critics
    target_actor: Params
    target_critic: Params
    optim: Optim


def make_nets(static: Static, spec: Spec) -> Nets:
    """Networks of the given widths for the given task."""
    return Nets(
        DeterministicActor(static.hidden, spec.action_dim, spec.max_action),
        Critic(static.hidden),
    )


def draw(key: Key, static: Static, spec: Spec) -> jax.Array:
    """The random numbers of one update: the target policy's noise ε (batch, action), standard normal."""
    return jax.random.normal(key, (static.batch_size, spec.action_dim))


def critic_loss(critic: Params, nets: Nets, batch: Transition, target: jax.Array) -> Loss:
    """Both critics regress on the same target y."""
    q = apply_ensemble(nets.critic, critic, batch.obs, batch.action)  # (2, batch)
    loss = ensemble_mse(q, target)
    return loss, {"critic_loss": loss, "q": q.mean()}


def actor_loss(actor: Params, nets: Nets, critic: Params, batch: Transition, hyper: Hyper) -> Loss:
    """Equations (4) and (5): -λ mean Q1(s, π(s)) + mean (π(s) - a)², λ = α / mean |Q1(s, π(s))|."""
    pi = nets.actor.apply(actor, batch.obs)
    q = apply_first(nets.critic, critic, batch.obs, pi)
    scale = hyper.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    bc_loss = jnp.square(pi - batch.action).mean()
    loss = -scale * q.mean() + bc_loss
    return loss, {"actor_loss": loss, "bc_loss": bc_loss, "lambda": scale}


def learn_critic(nets: Nets, state: State, batch: Transition, noise: jax.Array, hyper: Hyper) -> tuple[State, Metrics]:
    """Step of the critics, towards the target networks' pessimistic estimate at the smoothed action."""
    next_action = nets.actor.apply(state.target_actor, batch.next_obs)
    next_action = smooth_action(next_action, noise, hyper.policy_noise, hyper.noise_clip, nets.actor.max_action)
    next_q = apply_ensemble(nets.critic, state.target_critic, batch.next_obs, next_action)
    target = min_td_target(batch.reward, batch.terminated, next_q, hyper.discount)
    grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critic, nets, batch, target)
    critic, optim = descend(adam(hyper.critic_lr), grads, state.optim.critic, state.critic)
    return state._replace(critic=critic, optim=state.optim._replace(critic=optim)), metrics


def learn_actor(nets: Nets, state: State, batch: Transition, hyper: Hyper) -> tuple[State, Metrics]:
    """The delayed part: step of the actor, then the targets of critics and actor."""
    grads, metrics = jax.grad(actor_loss, has_aux=True)(state.actor, nets, state.critic, batch, hyper)
    actor, optim = descend(adam(hyper.actor_lr), grads, state.optim.actor, state.actor)
    state = state._replace(
        actor=actor,
        target_actor=polyak(actor, state.target_actor, hyper.tau),
        target_critic=polyak(state.critic, state.target_critic, hyper.tau),
        optim=state.optim._replace(actor=optim),
    )
    return state, metrics


def make(static: Static, spec: Spec) -> Algorithm:
    """Build TD3+BC for the observation and action shapes in `spec`."""
    nets = make_nets(static, spec)

    def init(key: Key, hyper: Hyper) -> State:
        actor_key, critic_key = jax.random.split(key)
        obs, action = jnp.zeros((1, spec.obs_dim)), jnp.zeros((1, spec.action_dim))
        actor = nets.actor.init(actor_key, obs)
        critic = init_ensemble(nets.critic, critic_key, 2, obs, action)
        optim = Optim(adam(0.0).init(actor), adam(0.0).init(critic))
        return State(actor, critic, actor, critic, optim)

    def step(key: Key, state: State, source: Dataset, hyper: Hyper) -> tuple[State, Metrics]:
        """`policy_delay` critic updates; the actor learns from the batch of the last."""
        for update_key in jax.random.split(key, static.policy_delay):
            batch_key, draw_key = jax.random.split(update_key)
            batch = sample_dataset(batch_key, source, static.batch_size)
            batch = shape_reward(batch, hyper.reward_scale, hyper.reward_shift)
            state, metrics = learn_critic(nets, state, batch, draw(draw_key, static, spec), hyper)
        state, actor_metrics = learn_actor(nets, state, batch, hyper)
        return state, metrics | actor_metrics

    def act(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        return nets.actor.apply(state.actor, obs)

    return Algorithm(init, step, act, updates_per_step=static.policy_delay)
