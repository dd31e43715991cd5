"""A2PR: every quantity of one update that the reference recorded, from our functions and under its names."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from algos import a2pr
from algos.a2pr import Draws, Hyper, Nets, State, Static
from algos.core import Params, Spec, Transition
from algos.losses import ensemble_mse, min_td_target, smooth_action
from algos.nets import apply_ensemble

Quantities = dict[str, Any]


class Trace(NamedTuple):
    """One update in its two parts: critics, value and VAE; then the actor and the targets."""

    critics: Quantities
    actor: Quantities
    grads: dict[str, Params]  # of the trained networks, and of the actor with the guide detached
    after_critics: State
    after_actor: State


@partial(jax.jit, static_argnums=(0, 1))
def trace(static: Static, spec: Spec, state: State, batch: Transition, draws: Draws, hyper: Hyper) -> Trace:
    """An update from `state` with the recorded batch and noise."""
    nets = a2pr.make_nets(static, spec)
    after, _, q_data, v = a2pr.learn_critics(nets, static, state, batch, draws, hyper)
    after_actor, _ = a2pr.learn_actor(nets, static, after, batch, q_data, v, draws, hyper)
    critic, y = critic_quantities(nets, state, batch, draws, hyper)
    value, y_v = value_quantities(nets, static, state, after, batch, critic["critic/next_action"], y, hyper)
    advantage = q_data - v
    vae = vae_quantities(nets, state.vae, batch, advantage, draws.vae, hyper)
    rest = (batch, q_data, v, draws.guide, hyper)
    actor_grad = jax.grad(a2pr.actor_loss, has_aux=True)
    detached = replace(static, detach_guide=True)
    grads = {
        "grads/critic": jax.grad(a2pr.critic_loss, has_aux=True)(state.critic, nets, batch, y)[0],
        "grads/value": jax.grad(a2pr.value_loss, has_aux=True)(state.value, nets, batch, y_v)[0],
        "grads/vae": jax.grad(a2pr.vae_loss, has_aux=True)(state.vae, nets, batch, advantage, draws.vae, hyper)[0],
        "grads/actor": actor_grad(state.actor, nets, static, after, *rest)[0],
        "grads_detached_guide/actor": actor_grad(state.actor, nets, detached, after, *rest)[0],
    }
    critics = critic | value | vae | {"vae/q1_data": q_data, "vae/advantage": advantage}
    return Trace(critics, actor_quantities(nets, static, after, *rest), grads, after, after_actor)


def critic_quantities(
    nets: Nets, state: State, batch: Transition, draws: Draws, hyper: Hyper
) -> tuple[Quantities, jax.Array]:
    """Step (1); also y."""
    next_action = a2pr.target_action(nets, state.target_actor, batch.next_obs, draws.target, hyper)
    next_q = apply_ensemble(nets.critic, state.target_critic, batch.next_obs, next_action)
    smoothing = (hyper.policy_noise, hyper.noise_clip, nets.actor.max_action)
    y = min_td_target(batch.reward, batch.terminated, next_q, hyper.discount)
    q = apply_ensemble(nets.critic, state.critic, batch.obs, batch.action)
    found = {
        "clipped_noise": smooth_action(jnp.zeros_like(next_action), draws.target, *smoothing),
        "target_actor_next": nets.actor.apply(state.target_actor, batch.next_obs),
        "next_action": next_action,
        "target_q1": next_q[0],
        "target_q2": next_q[1],
        "target_q": y,
        "q1_pred": q[0],
        "q2_pred": q[1],
        "loss_q1": ensemble_mse(q[:1], y),
        "loss_q2": ensemble_mse(q[1:], y),
        "loss": a2pr.critic_loss(state.critic, nets, batch, y)[0],
    }
    return prefixed("critic", found), y


def value_quantities(
    nets: Nets, static: Static, state: State, after: State, batch: Transition, next_action: jax.Array,
    y: jax.Array, hyper: Hyper,
) -> tuple[Quantities, jax.Array]:  # fmt: skip
    """Step (2); also y_V."""
    online_q = apply_ensemble(nets.critic, after.critic, batch.next_obs, next_action)
    optimistic = replace(static, pessimistic_value=False)
    y_v = a2pr.value_target(nets, static, after.critic, batch, next_action, y, hyper)
    loss, v = a2pr.value_loss(state.value, nets, batch, y_v)
    found = {
        "online_next_q1": online_q[0],
        "online_next_q2": online_q[1],
        "online_target": a2pr.value_target(nets, optimistic, after.critic, batch, next_action, y, hyper),
        "target": y_v,
        "pred": v,
        "loss": loss,
    }
    return prefixed("value", found), y_v


def vae_quantities(
    nets: Nets, vae: Params, batch: Transition, advantage: jax.Array, noise: jax.Array, hyper: Hyper
) -> Quantities:
    """Step (3), apart from what it takes from the others."""
    (recon, mean, log_std), captured = nets.vae.apply(
        vae, batch.obs, batch.action, noise, capture_intermediates=True, mutable=["intermediates"]
    )

    def alone(row: Transition, advantage: jax.Array, noise: jax.Array) -> jax.Array:
        """The share of advantageous actions in a batch of one row."""
        one = jax.tree.map(lambda x: x[None], row)
        return a2pr.vae_loss(vae, nets, one, advantage[None], noise[None], hyper)[1]["advantageous"]

    loss, metrics = a2pr.vae_loss(vae, nets, batch, advantage, noise, hyper)
    found = {
        "mean": mean,
        "std": jnp.exp(log_std),
        "log_std_raw": captured["intermediates"]["log_std"]["__call__"][0],
        "z": mean + jnp.exp(log_std) * noise,
        "recon": recon,
        "indicator": jax.vmap(alone)(batch, advantage, noise),
        "recon_loss": metrics["vae_recon_loss"],
        "kl_loss": metrics["vae_kl"],
        "loss": loss,
    }
    return prefixed("vae", found)


def actor_quantities(
    nets: Nets, static: Static, after: State, batch: Transition, q_data: jax.Array, v: jax.Array,
    noise: jax.Array, hyper: Hyper,
) -> Quantities:  # fmt: skip
    """Step (4), from the state that the first three leave."""
    q1 = a2pr.first_critic(nets, after.critic)
    pi = nets.actor.apply(after.actor, batch.obs)
    q_pi = q1(batch.obs, pi)
    mean, log_std = nets.vae.apply(after.vae, batch.obs, pi, method="encode")
    guide = a2pr.guide_action(nets, static, after.vae, batch.obs, pi, noise)
    q_guide = q1(batch.obs, guide)
    bc_loss, choose, gate = a2pr.regulariser(pi, guide, batch.action, q_guide - v, q_data - v, static, hyper)
    loss, metrics = a2pr.actor_loss(after.actor, nets, static, after, batch, q_data, v, noise, hyper)
    rest = (nets, static, after, batch, q_data, v, noise, hyper)
    found = {
        "pi": pi,
        "vae_mean": mean,
        "vae_std": jnp.exp(log_std),
        "z": mean + jnp.exp(log_std) * noise,
        "vae_action": guide,
        "guide_action": jnp.where(choose[:, None], guide, batch.action),
        "q1_pi": q_pi,
        "q1_data": q_data,
        "q1_vae_action": q_guide,
        "adv_data": q_data - v,
        "adv_vae": q_guide - v,
        "choose_vae": choose,
        "gate": gate,
        "bc_weight": hyper.mask * gate,
        "lambda": metrics["lambda"],
        "q_loss": -metrics["lambda"] * q_pi.mean(),
        "bc_loss": bc_loss,
        "loss": loss,
        "grad_loss_wrt_pi": jax.grad(a2pr.policy_loss, has_aux=True)(pi, *rest)[0],
    }
    return prefixed("actor", found)


def prefixed(section: str, found: Quantities) -> Quantities:
    """The recorded names."""
    return {f"{section}/{name}": x for name, x in found.items()}
