"""One update of DrQ-v2: critics and encoder, then the actor, then the target critic.

The encoder learns from the critics' loss alone. The actor's loss sees features of the encoder before its step and
critics after theirs. There is neither a target encoder nor a target actor.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from algos.buffers import NStepBatch
from algos.core import Key, Metrics, Params, UsageError
from algos.distributions import gaussian_log_prob
from algos.drqv2 import nets
from algos.drqv2.fau import fraction_active
from algos.drqv2.settings import PAD, Hyper, Static
from algos.losses import adam, descend, ensemble_mse, polyak

LARGEST = 1.0 - 1e-6  # of an action sampled


class Optim(NamedTuple):
    """One Adam state per trained part."""

    encoder: optax.OptState
    actor: optax.OptState
    critic: optax.OptState


class Agent(NamedTuple):
    """What an update changes."""

    encoder: Params
    actor: Params
    critic: Params
    target_critic: Params
    optim: Optim
    initial: Params | None = None  # with L2 Init: parameters that the critic began from
    resets: jax.Array | None = None  # with resets: () int32, made so far
    injected: jax.Array | None = None  # with plasticity injection: () bool, made
    q_change: jax.Array | None = None  # with any intervention: () largest change of Q that the latest one made at once


class Draws(NamedTuple):
    """Every random number of one update."""

    shift: jax.Array  # (B, 2) int32: horizontal and vertical shift of the observations, 0 ... 2 PAD
    next_shift: jax.Array  # (B, 2) int32: of the next observations
    next_action: jax.Array  # (B, A) standard normal: a' ~ π(s')
    action: jax.Array  # (B, A) standard normal: a ~ π(s)


class Target(NamedTuple):
    """The critics' target and what it is made of."""

    value: jax.Array  # (B,): y
    q: jax.Array  # (2, B): of the target critics
    mean: jax.Array  # (B, A): the policy's mean at the next observation
    action: jax.Array  # (B, A): sampled there


class CriticOutputs(NamedTuple):
    """What the critics' forward pass gave besides the loss."""

    q: jax.Array  # (2, B)
    features: jax.Array  # (B, R), of the encoder before its step
    hidden: dict[str, nets.Hidden]  # activations of encoder and critic
    active: jax.Array  # (layers,): how many of the encoder's are above zero


class ActorOutputs(NamedTuple):
    """What the actor's forward pass gave besides the loss."""

    q: jax.Array  # (2, B), of the action sampled
    mean: jax.Array  # (B, A)
    action: jax.Array  # (B, A)
    hidden: nets.Hidden


def begin(encoder: Params, actor: Params, critic: Params) -> Agent:
    """An agent before its first update; the target critic is a copy."""
    optim = Optim(*(begin_adam(params) for params in (encoder, actor, critic)))
    return Agent(encoder, actor, critic, critic, optim)


def trained(params: Params) -> Params:
    """A network's parameters without those that are fixed."""
    return {name: part for name, part in params.items() if name != nets.FIXED}


def begin_adam(params: Params) -> optax.OptState:
    """Adam's state for a network. Where plasticity is to be injected, trunk and head have their own: counts differ."""
    parts, apart = trained(params), "base" in params.get(nets.FIXED, {})
    init = adam(0.0).init
    return {name: init(part) for name, part in parts.items()} if apart else init(parts)


def init_networks(key: Key, static: Static, image: tuple[int, int, int], action_dim: int) -> dict[str, Params]:
    """Fresh parameters of `encoder`, `actor` and `critic`. Raises UsageError where images are too small."""
    keys, pixels = jax.random.split(key, 3), static.encoder == "cnn"
    features = nets.feature_size(*image[:2]) if pixels else math.prod(image)
    if features == 0:
        raise UsageError(
            f"algo=drqv2: images of {image[0]}x{image[1]} are too small for the encoder: take 15x15 or more"
        )
    sizes = features, action_dim, static.feature_dim, static.hidden_dim
    options = nets.Options(static.layer_norm, static.crelu, static.spectral_norm)
    return {
        "encoder": nets.init_encoder(keys[0], image[2], options) if pixels else {},
        "actor": nets.init_actor(keys[1], *sizes, options),
        "critic": nets.init_critic(keys[2], *sizes, options),
    }


def init_agent(key: Key, static: Static, image: tuple[int, int, int], action_dim: int) -> Agent:
    """A fresh agent for images (H, W, channels of all stacked frames). Raises UsageError where they are too small."""
    networks, name = init_networks(key, static, image, action_dim), static.inject
    if name != "none":
        # The head to be injected is there from the start, added and taken away, so that no shape changes later on.
        fresh = static.inject_from == "fresh"
        source = init_networks(jax.random.fold_in(key, 0), static, image, action_dim) if fresh else networks
        head = source[name][nets.HEADS[name]]
        fixed = networks[name].get(nets.FIXED, {}) | {"base": head, "minus": head}
        networks[name] = networks[name] | {nets.FIXED: fixed}
    return begin(**networks)._replace(
        initial=trained(networks["critic"]) if static.l2_init else None,
        resets=jnp.zeros((), jnp.int32) if static.reset else None,
        injected=jnp.zeros((), bool) if name != "none" else None,
        q_change=jnp.zeros(()) if static.intervenes else None,
    )


def draw(key: Key, batch_size: int, action_dim: int, augment: ArrayLike = 1.0) -> Draws:
    """The draws of one update; without augmentation every shift is the one that changes nothing."""
    keys = jax.random.split(key, 4)
    shifts = [jax.random.randint(k, (batch_size, 2), 0, 2 * PAD + 1) for k in keys[:2]]
    noise = [jax.random.normal(k, (batch_size, action_dim)) for k in keys[2:]]
    return Draws(*(jnp.where(jnp.asarray(augment) > 0.0, shift, PAD) for shift in shifts), *noise)


def augment_at(step: ArrayLike, hyper: Hyper) -> jax.Array:
    """Whether images are shifted at an agent step, () 0 or 1, for `draw`."""
    during = (jnp.asarray(step) >= hyper.augment_from) & (jnp.asarray(step) < hyper.augment_until)
    return jnp.where(during, hyper.augment, 0.0)


def random_shift(images: jax.Array, shift: jax.Array, pad: int = PAD) -> jax.Array:
    """Each image (B, H, W, C), its edges repeated `pad` times, seen through a window at (x, y) = `shift` (B, 2).

    The bilinear sampling of the original samples at pixels' centres, so that it is this crop but for rounding. A single
    pixel looks the same through all of them.
    """
    if images.shape[1:3] == (1, 1):
        return images
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")

    def crop(image: jax.Array, xy: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (xy[1], xy[0], 0), images.shape[1:])

    return jax.vmap(crop)(padded, shift)


def stddev_at(step: ArrayLike, hyper: Hyper) -> jax.Array:
    """σ at an agent step: linear from start to end, then constant."""
    mix = jnp.clip(jnp.asarray(step, jnp.float32) / hyper.stddev_steps, 0.0, 1.0)
    return (1.0 - mix) * hyper.stddev_start + mix * hyper.stddev_end


def sample_action(mean: jax.Array, noise: jax.Array, stddev: ArrayLike, clip: ArrayLike = math.inf) -> jax.Array:
    """mean + clip(stddev noise, +-clip), clamped into (-1, 1); the clamp does not touch the gradient, which is 1."""
    bound = jnp.asarray(clip)
    x = mean + jnp.clip(stddev * noise, -bound, bound)
    return jax.lax.stop_gradient(jnp.clip(x, -LARGEST, LARGEST)) + (x - jax.lax.stop_gradient(x))


def critic_target(agent: Agent, batch: NStepBatch, draws: Draws, stddev: ArrayLike, hyper: Hyper) -> Target:
    """y = R + D min_i Q̄_i(h', a'), without gradient; h' are features of the online encoder."""
    features, *_ = nets.encoder(agent.encoder, random_shift(batch.next_obs, draws.next_shift))
    mean, _ = nets.actor(agent.actor, features)
    action = sample_action(mean, draws.next_action, stddev, hyper.stddev_clip)
    q, _ = nets.critic(agent.target_critic, features, action)
    return jax.lax.stop_gradient(Target(batch.reward + batch.discount * q.min(0), q, mean, action))


def critic_loss(
    params: tuple[Params, Params], obs: jax.Array, action: jax.Array, target: jax.Array
) -> tuple[jax.Array, CriticOutputs]:
    """Mean squared error summed over both critics, of (encoder, critic) on shifted observations (B, H, W, C)."""
    encoder, critic = params
    features, encoder_hidden, active = nets.encoder(encoder, obs)
    q, critic_hidden = nets.critic(critic, features, action)
    hidden = {"encoder": encoder_hidden, "critic": critic_hidden}
    return ensemble_mse(q, target), CriticOutputs(q, features, hidden, active)


def actor_loss(
    actor: Params, critic: Params, features: jax.Array, noise: jax.Array, stddev: ArrayLike, clip: ArrayLike
) -> tuple[jax.Array, ActorOutputs]:
    """-mean min_i Q_i(h, a), a ~ π(h); features (B, R) are constants."""
    mean, hidden = nets.actor(actor, features)
    action = sample_action(mean, noise, stddev, clip)
    q, _ = nets.critic(critic, features, action)
    return -q.min(0).mean(), ActorOutputs(q, mean, action, hidden)


def policy_densities(outputs: ActorOutputs, stddev: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log density (B,) of the sampled actions under the unclipped Gaussian, and its entropy (); no loss has them."""
    log_stddev = jnp.log(stddev)
    log_prob = gaussian_log_prob((outputs.action - outputs.mean) / stddev, log_stddev)
    return log_prob, outputs.mean.shape[-1] * (0.5 * math.log(2.0 * math.pi * math.e) + log_stddev)


def l2_init_penalty(critic: Params, initial: Params) -> jax.Array:
    """Sum of squares () of what the critic's trained parameters are away from where they began."""
    squares = jax.tree.map(lambda x, y: jnp.square(x - y).sum(), trained(critic), initial)
    return jnp.stack(jax.tree.leaves(squares)).sum()


def improve(
    params: Params, grads: Params, optim: optax.OptState, hyper: Hyper, initial: Params | None = None
) -> tuple[Params, optax.OptState]:
    """One step of Adam on a network's trained parameters, with weight decay and, given `initial`, L2 Init.

    Both are added to the gradient, as if they were terms weight_decay / 2 |θ|² and l2_init_weight |θ - θ_0|² of a loss.
    """
    rule, theta = adam(hyper.lr), trained(params)
    grads = jax.tree.map(lambda g, x: g + hyper.weight_decay * x, trained(grads), theta)
    if initial is not None:
        grads = jax.tree.map(lambda g, x, y: g + 2.0 * hyper.l2_init_weight * (x - y), grads, theta, initial)
    if isinstance(optim, dict):
        steps = {name: descend(rule, grads[name], optim[name], theta[name]) for name in theta}
        theta, optim = ({name: step[i] for name, step in steps.items()} for i in range(2))
    else:
        theta, optim = descend(rule, grads, optim, theta)
    return nets.iterate_power(params | theta), optim


def learn(agent: Agent, batch: NStepBatch, draws: Draws, step: ArrayLike, hyper: Hyper) -> tuple[Agent, Metrics]:
    """One update at an agent step. Each network's `fau_*` is measured on the batch, with parameters before their step.

    `batch` has images (B, H, W, C) uint8, n-step rewards and n-step discounts.
    """
    stddev = stddev_at(step, hyper)
    target = critic_target(agent, batch, draws, stddev, hyper)
    (q_loss, outputs), (encoder_grad, critic_grad) = jax.value_and_grad(critic_loss, has_aux=True)(
        (agent.encoder, agent.critic), random_shift(batch.obs, draws.shift), batch.action, target.value
    )
    critic, critic_optim = improve(agent.critic, critic_grad, agent.optim.critic, hyper, agent.initial)
    encoder, encoder_optim = improve(agent.encoder, encoder_grad, agent.optim.encoder, hyper)

    (pi_loss, acted), grad = jax.value_and_grad(actor_loss, has_aux=True)(
        agent.actor, critic, outputs.features, draws.action, stddev, hyper.stddev_clip
    )
    actor, actor_optim = improve(agent.actor, grad, agent.optim.actor, hyper)
    target_critic = nets.iterate_power(polyak(critic, agent.target_critic, hyper.tau))

    layers = outputs.hidden | {"actor": acted.hidden}
    counted = {"encoder": outputs.active}
    fau = {name: fraction_active(hidden, counted.get(name)) for name, hidden in layers.items() if hidden}
    metrics = {"critic_loss": q_loss, "actor_loss": pi_loss, "q": outputs.q.mean(), "target_q": target.value.mean()}
    metrics |= {f"fau_{name}": value for name, value in fau.items()}
    log_prob, entropy = policy_densities(acted, stddev)
    metrics |= {"stddev": stddev, "log_prob": log_prob.mean(), "entropy": entropy}
    if agent.initial is not None:
        metrics["l2_init"] = hyper.l2_init_weight * l2_init_penalty(agent.critic, agent.initial)
    parts = {"encoder": encoder, "actor": actor, "critic": critic, "target_critic": target_critic}
    return agent._replace(**parts, optim=Optim(encoder_optim, actor_optim, critic_optim)), metrics
