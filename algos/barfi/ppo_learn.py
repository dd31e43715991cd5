"""The steps of BARFI over PPO: of the reward along the hypergradient, of the policy, of the critic."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algos import hypergrad
from algos.barfi.common import ascend, clip_each, optimiser, to_batch
from algos.barfi.objectives import Batch, Form, inner_objective, mean_entropy, naive_reward, outer_objective
from algos.barfi.policy import Actor
from algos.barfi.ppo_settings import Hyper, Static
from algos.barfi.replay import Rows
from algos.barfi.rewards import (
    Omega,
    discount_of,
    learned_reward,
    next_step,
    penalty,
    reward_to_go,
    shaped_reward,
)  # fmt: skip
from algos.barfi.rollout import Trajectory
from algos.core import Key, Metrics, Params
from algos.lapack import unbatched_on_cpus

RIDGE = 1e-3  # of the critic's regression, in mean squared features


class State(NamedTuple):
    """Everything that training changes."""

    policy: Params  # {"body", "head"}; the head is theta
    omega: Omega
    critic: jax.Array  # (F, 2): value of the trained reward, and of the true one
    optim: tuple[optax.OptState, optax.OptState, optax.OptState]  # of policy, phi, psi
    steps: jax.Array  # () float32: steps played in the environment


def block_batch(block: Trajectory, actor: Actor, body: Params) -> Batch:
    """What objectives take, of a whole block."""
    size = block.mask.shape[0]
    return to_batch(Rows(block, jnp.full(size, 1.0 / size)), actor, body)


def inner_reward(batch: Batch, omega: Omega, static: Static, hyper: Hyper) -> tuple[jax.Array, jax.Array]:
    """The reward (B, P) that the policy is trained on, and its discount ()."""
    if static.reward == "learnt":
        args = (batch.features, batch.primary, batch.auxiliary, static.phi2_mode, hyper.aux_weight)
        return jnp.where(batch.mask > 0.0, learned_reward(omega.phi, *args), 0.0), discount_of(omega)
    discount = jnp.asarray(hyper.discount)
    if static.reward == "potential":
        return shaped_reward(batch.primary, hyper.aux_weight * batch.auxiliary, batch.mask, discount), discount
    return naive_reward(batch, hyper.aux_weight if static.reward == "naive" else 0.0), discount


def values(critic: jax.Array, batch: Batch) -> jax.Array:
    """(B, P, 2), zero on padding."""
    return jnp.where(batch.mask[..., None] > 0.0, batch.features @ critic, 0.0)


def fit_critic(batch: Batch, returns: jax.Array) -> jax.Array:
    """Ridge regression of returns (B, P, 2) on the features of valid steps: (F, 2)."""
    valid = lambda z: jnp.where(batch.mask[..., None] > 0.0, z, 0.0).reshape(-1, z.shape[-1])  # noqa: E731
    x, y = valid(batch.features), valid(returns)
    gram = x.T @ x
    ridge = RIDGE * jnp.trace(gram) / gram.shape[0] + jnp.finfo(x.dtype).tiny
    solve = unbatched_on_cpus(partial(jax.scipy.linalg.solve, assume_a="pos"))
    return solve(gram + ridge * jnp.eye(gram.shape[0]), x.T @ y)


def advantages(reward: jax.Array, value: jax.Array, mask: jax.Array, discount: Any, decay: Any) -> jax.Array:
    """Generalised advantage estimates (B, P); an episode's end is worth 0, as running out of time is a real end."""
    errors = jnp.where(mask > 0.0, reward + discount * next_step(value, mask) - value, 0.0)
    return reward_to_go(errors, mask, discount * decay)


def normalised(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean 0 and standard deviation 1 over valid steps, 0 on padding."""
    count = jnp.maximum(mask.sum(), 1.0)
    centred = jnp.where(mask > 0.0, x - (x * mask).sum() / count, 0.0)
    return centred / (jnp.sqrt(jnp.square(centred).sum() / count) + 1e-8)


def halves(batch: Batch, value: jax.Array) -> tuple[tuple[Batch, jax.Array], tuple[Batch, jax.Array]]:
    """The block's first and second half, with their values."""
    half = batch.mask.shape[0] // 2
    batch = batch._replace(share=jnp.full(batch.mask.shape[0], 1.0 / half))
    cut = lambda rows: jax.tree.map(lambda x: x[rows], (batch, value))  # noqa: E731
    return cut(slice(half)), cut(slice(half, 2 * half))


def outer_direction(state: State, batch: Batch, actor: Actor, static: Static, hyper: Hyper) -> tuple[Omega, Metrics]:
    """The hypergradient at the current policy, and its diagnostics (`algos.hypergrad.implicit`).

    The true return's gradient is of one half of the block and all else of the other: from the same episodes, noise
    that both share would look like alignment.
    """
    form, theta, policy = Form(actor.policy, static.phi2_mode), state.policy["head"], actor.policy
    (on, on_value), (off, off_value) = halves(batch, values(state.critic, batch))
    g = jax.grad(outer_objective)(theta, on, form, discount=hyper.discount, baseline=on_value[..., 1])
    before = policy.log_prob(theta, off.features, off.action)

    def inner(theta: Params, omega: Omega) -> jax.Array:
        return inner_objective(theta, omega, off, form, aux_weight=hyper.aux_weight, baseline=off_value[..., 0])

    def closeness(moved: Params) -> jax.Array:  # the KL divergence to second order: minus Fisher's matrix
        squares = jnp.square(policy.log_prob(moved, off.features, off.action) - before)
        return -0.5 * jnp.where(off.mask > 0.0, squares, 0.0).sum() / jnp.maximum(off.mask.sum(), 1.0)

    settings = hypergrad.Settings(
        static.hypergrad, static.loops, damping=hyper.damping, lanczos=static.lanczos, margin=hyper.margin
    )  # fmt: skip
    curvature = closeness if static.curvature == "fisher" else None
    direction, metrics = hypergrad.implicit(inner, theta, state.omega, g, settings, curvature)
    metrics["diverging"] = metrics.pop("diverges", jnp.zeros(()))
    return direction, metrics | {"hypergradient": optax.tree.norm(direction)}


def improve_reward(state: State, batch: Batch, actor: Actor, static: Static, hyper: Hyper) -> tuple[State, Metrics]:
    """One step of reward and discount along the hypergradient less the penalties' gradient."""
    direction, metrics = outer_direction(state, batch, actor, static, hyper)
    uphill = jax.tree.map(jnp.subtract, direction, jax.grad(penalty)(state.omega, hyper.reward_l2, hyper.gamma_l2))
    policy, phi, psi = state.optim
    new_phi, phi = ascend(optimiser("adam", hyper.reward_lr), uphill.phi, phi, state.omega.phi)
    new_psi, psi = ascend(optimiser("adam", hyper.gamma_lr), uphill.psi, psi, state.omega.psi)
    return state._replace(omega=Omega(new_phi, new_psi), optim=(policy, phi, psi)), metrics


def improve_policy(key: Key, state: State, block: Trajectory, actor: Actor, static: Static, hyper: Hyper) -> State:
    """Epochs of clipped steps on the block, then the critic's fit to it."""
    batch = block_batch(block, actor, state.policy["body"])
    reward, discount = inner_reward(batch, state.omega, static, hyper)
    value = values(state.critic, batch)
    advantage = normalised(advantages(reward, value[..., 0], batch.mask, discount, hyper.gae_lambda), batch.mask)
    before = actor.policy.log_prob(state.policy["head"], batch.features, batch.action)

    def objective(policy: Params, rows: jax.Array) -> jax.Array:
        part = block_batch(jax.tree.map(lambda x: x[rows], block), actor, policy["body"])
        ratio = jnp.exp(actor.policy.log_prob(policy["head"], part.features, part.action) - before[rows])
        bounded = jnp.clip(ratio, 1.0 - hyper.clip, 1.0 + hyper.clip)
        gain = jnp.minimum(ratio * advantage[rows], bounded * advantage[rows])
        mean = jnp.where(part.mask > 0.0, gain, 0.0).sum() / jnp.maximum(part.mask.sum(), 1.0)
        return mean + hyper.entropy_weight * mean_entropy(policy["head"], part, actor.policy)

    def climb(carry: tuple[Params, Any], rows: jax.Array) -> tuple[tuple[Params, Any], None]:
        policy, optim = carry
        uphill = clip_each(jax.grad(objective)(policy, rows), static.clip_norm)
        return ascend(optimiser("adam", hyper.actor_lr), uphill, optim, policy), None

    keys = jax.random.split(key, static.epochs)
    order = jax.vmap(lambda k: jax.random.permutation(k, static.episodes))(keys)
    rows = order.reshape(static.epochs * static.minibatches, -1)
    (policy, optim), _ = jax.lax.scan(climb, (state.policy, state.optim[0]), rows)
    targets = [reward_to_go(reward, batch.mask, discount), reward_to_go(batch.primary, batch.mask, hyper.discount)]
    critic = fit_critic(batch, jnp.stack(targets, -1))
    return state._replace(policy=policy, critic=critic, optim=(optim, *state.optim[1:]))
