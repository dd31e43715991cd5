"""A2PR: adaptive advantage-guided policy regularisation (Liu et al., ICML 2024, arXiv 2405.19909).

TD3 on a fixed data set. A conditional VAE learns to reconstruct the data's actions of positive advantage; the
actor is pulled towards the better of the data's action and the VAE's, and only where that action is no worse
than the state's value. The default settings follow the authors' code where it says more than the paper.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.tree_util import register_dataclass

from algos.buffers import sample_dataset, shape_reward
from algos.core import Algorithm, Dataset, Key, Loss, Metrics, Params, Spec, Transition, UsageError
from algos.losses import adam, descend, ensemble_mse, min_td_target, polyak, smooth_action
from algos.nets import MLP, Critic, Dense, DeterministicActor, Value, apply_ensemble, apply_first, init_ensemble


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members. The defaults are the single setting for all data sets."""

    alpha: float = 2.5  # α: weight of Q against the regulariser
    mask: float = 1.0  # m: weight of the regulariser
    vae_weight: float = 1.0  # w: weight of the reconstruction of advantageous actions
    discount: float = 0.99  # γ
    tau: float = 0.005  # τ: Polyak step of both targets
    policy_noise: float = 0.2  # p: std of the target policy's noise, in units of max_action
    noise_clip: float = 0.5  # q: where that noise is clipped, in units of max_action
    adv_threshold: float = 0.0  # advantage above which the VAE imitates and the gate opens
    lambda_eps: float = 0.0  # added to the mean |Q| that normalises the actor's Q term
    kl_weight: float = 0.5  # weight of the VAE's KL term
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    value_lr: float = 3e-4
    vae_lr: float = 1e-3
    reward_scale: float = 1.0  # r <- reward_scale r + reward_shift, when sampled
    reward_shift: float = 0.0


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    actor_hidden: tuple[int, ...] = (256, 256, 256)
    critic_hidden: tuple[int, ...] = (256, 256, 256, 256)
    vae_hidden: int = 750
    batch_size: int = 256
    policy_delay: int = 2  # critic updates for each actor update
    candidate: str = "recon_policy"  # recon_policy: VAE applied to the policy's action; prior_sample: decoded prior
    detach_guide: bool = False  # stop the actor's gradient at the VAE's action
    use_candidate: bool = True  # ablation: regularise towards the data's action only
    use_gate: bool = True  # ablation: regularise everywhere
    pessimistic_value: bool = True  # ablation: fit V to the online target alone when false

    def __post_init__(self) -> None:
        """Hydra hands over lists; tuples are hashable."""
        self.actor_hidden = tuple(self.actor_hidden)
        self.critic_hidden = tuple(self.critic_hidden)
        if self.candidate not in ("recon_policy", "prior_sample"):
            raise UsageError(f"algo.static.candidate is recon_policy or prior_sample, not {self.candidate!r}")


class CVAE(nn.Module):
    """Conditional VAE of actions given observations, with a latent of twice the action's size."""

    hidden: int
    action_dim: int
    max_action: float

    def setup(self) -> None:  # noqa: D102
        latent = 2 * self.action_dim
        self.trunk = MLP((self.hidden,), self.hidden)
        self.mean, self.log_std = Dense(latent), Dense(latent)
        self.decoder = MLP((self.hidden, self.hidden), self.action_dim)

    def encode(self, obs: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log standard deviation of the latent, each (batch, latent)."""
        x = nn.relu(self.trunk(jnp.concatenate([obs, action], -1)))
        return self.mean(x), jnp.clip(self.log_std(x), -4.0, 15.0)

    def decode(self, obs: jax.Array, latent: jax.Array) -> jax.Array:
        """Action in [-max_action, max_action]."""
        return self.max_action * jnp.tanh(self.decoder(jnp.concatenate([obs, latent], -1)))

    def __call__(self, obs: jax.Array, action: jax.Array, noise: jax.Array) -> tuple[jax.Array, ...]:
        """Reconstructed action, latent mean and log standard deviation."""
        mean, log_std = self.encode(obs, action)
        return self.decode(obs, mean + jnp.exp(log_std) * noise), mean, log_std


class Nets(NamedTuple):
    """Network definitions (no parameters). Not typed closer, as flax has `apply` return one of two types."""

    actor: Any  # DeterministicActor
    critic: Any  # Critic
    value: Any  # Value
    vae: Any  # CVAE


class Optim(NamedTuple):
    """One Adam state per trained network."""

    actor: optax.OptState
    critic: optax.OptState
    value: optax.OptState
    vae: optax.OptState


class State(NamedTuple):
    """Everything that training changes."""

    actor: Params
    critic: Params  # leading axis 2: twin critics
    value: Params
    vae: Params
    target_actor: Params
    target_critic: Params
    optim: Optim


class Draws(NamedTuple):
    """Every random number of one update: standard normal."""

    target: jax.Array  # ε (batch, action)
    vae: jax.Array  # η (batch, latent)
    guide: jax.Array  # ξ (batch, latent)


def make_nets(static: Static, spec: Spec) -> Nets:
    """Networks of the paper's shapes for the given task."""
    return Nets(
        DeterministicActor(static.actor_hidden, spec.action_dim, spec.max_action),
        Critic(static.critic_hidden),
        Value(static.critic_hidden),
        CVAE(static.vae_hidden, spec.action_dim, spec.max_action),
    )


def draw(key: Key, static: Static, spec: Spec) -> Draws:
    """All noise of one update."""
    target, vae, guide = jax.random.split(key, 3)
    latent = (static.batch_size, 2 * spec.action_dim)
    return Draws(
        jax.random.normal(target, (static.batch_size, spec.action_dim)),
        jax.random.normal(vae, latent),
        jax.random.normal(guide, latent),
    )


def target_action(nets: Nets, actor: Params, next_obs: jax.Array, noise: jax.Array, hyper: Hyper) -> jax.Array:
    """a' = clip(π̄(s') + clip(p M ε, ±q M), ±M)."""
    action = nets.actor.apply(actor, next_obs)
    return smooth_action(action, noise, hyper.policy_noise, hyper.noise_clip, nets.actor.max_action)


def critic_loss(critic: Params, nets: Nets, batch: Transition, target: jax.Array) -> Loss:
    """L_Q: both critics regress on the same target y."""
    q = apply_ensemble(nets.critic, critic, batch.obs, batch.action)  # (2, batch)
    loss = ensemble_mse(q, target)
    return loss, {"critic_loss": loss, "q": q.mean()}


def value_target(
    nets: Nets, static: Static, critic: Params, batch: Transition, next_action: jax.Array, target: jax.Array,
    hyper: Hyper,
) -> jax.Array:  # fmt: skip
    """y_V: the smaller of the online (updated) critics' estimate at a' and of their own target y."""
    online_q = apply_ensemble(nets.critic, critic, batch.next_obs, next_action)
    online = min_td_target(batch.reward, batch.terminated, online_q, hyper.discount)
    return jnp.minimum(online, target) if static.pessimistic_value else online


def value_loss(value: Params, nets: Nets, batch: Transition, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L_V, a plain regression; also returns V(s) before the step, which the advantages use."""
    v = nets.value.apply(value, batch.obs)
    return jnp.square(v - target).mean(), v


def vae_loss(vae: Params, nets: Nets, batch: Transition, advantage: jax.Array, noise: jax.Array, hyper: Hyper) -> Loss:
    """L_VAE: reconstruct the data's actions of positive advantage; the KL term is not gated."""
    recon, mean, log_std = nets.vae.apply(vae, batch.obs, batch.action, noise)
    indicator = (advantage > hyper.adv_threshold)[:, None]
    recon_loss = (hyper.vae_weight * indicator * jnp.square(recon - batch.action)).mean()
    kl = -0.5 * (1.0 + 2.0 * log_std - jnp.square(mean) - jnp.exp(2.0 * log_std)).mean()
    loss = recon_loss + hyper.kl_weight * kl
    return loss, {"vae_recon_loss": recon_loss, "vae_kl": kl, "advantageous": indicator.mean()}


def guide_action(
    nets: Nets, static: Static, vae: Params, obs: jax.Array, action: jax.Array, noise: jax.Array
) -> jax.Array:
    """The VAE's candidate ã: the policy's own action reconstructed, or a decoded clipped prior draw."""
    if static.candidate == "prior_sample":
        guide = nets.vae.apply(vae, obs, jnp.clip(noise, -0.5, 0.5), method="decode")
    else:
        guide = nets.vae.apply(vae, obs, action, noise)[0]
    return jax.lax.stop_gradient(guide) if static.detach_guide else guide


def regulariser(
    pi: jax.Array, guide: jax.Array, action: jax.Array, adv_guide: jax.Array, adv_data: jax.Array,
    static: Static, hyper: Hyper,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """L_reg: distance to the better of the two actions where one is advantageous; also choice and gate."""
    threshold = hyper.adv_threshold
    if static.use_candidate:
        choose = adv_guide >= adv_data  # a tie goes to the VAE
        gate = (adv_guide >= threshold) | (adv_data > threshold)
    else:
        choose = jnp.zeros_like(adv_data, bool)
        gate = adv_data > threshold
    gate = gate if static.use_gate else jnp.ones_like(gate)
    target = jnp.where(choose[:, None], guide, action)
    return (hyper.mask * gate[:, None] * jnp.square(pi - target)).mean(), choose, gate


def policy_loss(
    pi: jax.Array, nets: Nets, static: Static, state: State, batch: Transition, q_data: jax.Array,
    v: jax.Array, noise: jax.Array, hyper: Hyper,
) -> Loss:  # fmt: skip
    """L_π = -λ mean Q1(s, u) + L_reg of the actions u; the gradient also flows through the candidate."""
    q1 = first_critic(nets, state.critic)
    q_pi = q1(batch.obs, pi)
    scale = hyper.alpha / jax.lax.stop_gradient(jnp.abs(q_pi).mean() + hyper.lambda_eps)
    guide = guide_action(nets, static, state.vae, batch.obs, pi, noise)
    q_guide = q1(batch.obs, jax.lax.stop_gradient(guide))
    bc_loss, choose, gate = regulariser(pi, guide, batch.action, q_guide - v, q_data - v, static, hyper)
    loss = -scale * q_pi.mean() + bc_loss
    metrics = {
        "actor_loss": loss,
        "bc_loss": bc_loss,
        "lambda": scale,
        "choose_vae": choose.mean(),
        "gate": gate.mean(),
    }
    return loss, metrics


def actor_loss(
    actor: Params, nets: Nets, static: Static, state: State, batch: Transition, q_data: jax.Array,
    v: jax.Array, noise: jax.Array, hyper: Hyper,
) -> Loss:  # fmt: skip
    """L_π at u = π(s), as a function of the actor's parameters."""
    pi = nets.actor.apply(actor, batch.obs)
    return policy_loss(pi, nets, static, state, batch, q_data, v, noise, hyper)


def first_critic(nets: Nets, critic: Params) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Q1 as a function of (obs, action)."""
    return lambda obs, action: apply_first(nets.critic, critic, obs, action)


def learn_critics(
    nets: Nets, static: Static, state: State, batch: Transition, draws: Draws, hyper: Hyper
) -> tuple[State, Metrics, jax.Array, jax.Array]:
    """Steps (1) to (3) of an update: critics, value, VAE. Also Q1(s, a) and V(s) for the actor's step."""
    # (1) critics, towards the target networks' pessimistic estimate
    next_action = target_action(nets, state.target_actor, batch.next_obs, draws.target, hyper)
    next_q = apply_ensemble(nets.critic, state.target_critic, batch.next_obs, next_action)
    target = min_td_target(batch.reward, batch.terminated, next_q, hyper.discount)
    grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critic, nets, batch, target)
    critic, critic_optim = descend(adam(hyper.critic_lr), grads, state.optim.critic, state.critic)

    # (2) value
    v_target = value_target(nets, static, critic, batch, next_action, target, hyper)
    (v_loss, v), grads = jax.value_and_grad(value_loss, has_aux=True)(state.value, nets, batch, v_target)
    value, value_optim = descend(adam(hyper.value_lr), grads, state.optim.value, state.value)

    # (3) VAE, on actions that the updated critic puts above V(s) as it was before its step
    q_data = first_critic(nets, critic)(batch.obs, batch.action)
    grads, vae_metrics = jax.grad(vae_loss, has_aux=True)(state.vae, nets, batch, q_data - v, draws.vae, hyper)
    vae, vae_optim = descend(adam(hyper.vae_lr), grads, state.optim.vae, state.vae)

    optim = state.optim._replace(critic=critic_optim, value=value_optim, vae=vae_optim)
    state = state._replace(critic=critic, value=value, vae=vae, optim=optim)
    return state, metrics | {"value_loss": v_loss, "v": v.mean()} | vae_metrics, q_data, v


def learn_actor(
    nets: Nets, static: Static, state: State, batch: Transition, q_data: jax.Array, v: jax.Array,
    draws: Draws, hyper: Hyper,
) -> tuple[State, Metrics]:  # fmt: skip
    """Steps (4) and (5) of an update: actor, then the targets of critics and actor."""
    grads, metrics = jax.grad(actor_loss, has_aux=True)(
        state.actor, nets, static, state, batch, q_data, v, draws.guide, hyper
    )
    actor, actor_optim = descend(adam(hyper.actor_lr), grads, state.optim.actor, state.actor)
    state = state._replace(
        actor=actor,
        target_actor=polyak(actor, state.target_actor, hyper.tau),
        target_critic=polyak(state.critic, state.target_critic, hyper.tau),
        optim=state.optim._replace(actor=actor_optim),
    )
    return state, metrics


def make(static: Static, spec: Spec) -> Algorithm:
    """Build A2PR for the observation and action shapes in `spec`."""
    nets = make_nets(static, spec)

    def init(key: Key, hyper: Hyper) -> State:
        actor_key, critic_key, value_key, vae_key = jax.random.split(key, 4)
        obs, action = jnp.zeros((1, spec.obs_dim)), jnp.zeros((1, spec.action_dim))
        actor = nets.actor.init(actor_key, obs)
        critic = init_ensemble(nets.critic, critic_key, 2, obs, action)
        value = nets.value.init(value_key, obs)
        vae = nets.vae.init(vae_key, obs, action, jnp.zeros((1, 2 * spec.action_dim)))
        optim = Optim(*(adam(0.0).init(params) for params in (actor, critic, value, vae)))
        return State(actor, critic, value, vae, actor, critic, optim)

    def step(key: Key, state: State, source: Dataset, hyper: Hyper) -> tuple[State, Metrics]:
        """`policy_delay` critic updates; the actor learns from the batch of the last."""
        for update_key in jax.random.split(key, static.policy_delay):
            batch_key, draw_key = jax.random.split(update_key)
            batch = sample_dataset(batch_key, source, static.batch_size)
            batch = shape_reward(batch, hyper.reward_scale, hyper.reward_shift)
            draws = draw(draw_key, static, spec)
            state, metrics, q_data, v = learn_critics(nets, static, state, batch, draws, hyper)
        state, actor_metrics = learn_actor(nets, static, state, batch, q_data, v, draws, hyper)
        return state, metrics | actor_metrics

    def act(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        return nets.actor.apply(state.actor, obs)

    return Algorithm(init, step, act, updates_per_step=static.policy_delay)
