"""One agent's best response to the others, whose networks stay as they are: PPO (arXiv 1707.06347) on whole episodes.

What the agent then earns more than before bounds from below how much it could gain: a better learner may find more.
NashConv is the sum of such gains over agents, zero in a Nash equilibrium alone (arXiv 1711.00832).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from algos.core import Env, Key, Loss, Metrics, Params
from algos.losses import adam, descend
from algos.mra import initial, joint, play
from algos.mra.joint import Form, Seats
from algos.mra.nets import critic_embedding, mlp, pick
from algos.mra.objectives import draw_action
from algos.mra.observe import Observation, observe
from algos.mra.replay import World
from algos.mra.settings import Static

LEARNING_RATE = 1e-3  # of all networks; `step` is told how much of it is left
EPOCHS = 4  # over the episodes of a step
MINIBATCHES = 4  # of each epoch
CLIP = 0.2  # of probability ratios
ENTROPY = 0.01  # weight; advantages have unit variance
DECAY = 0.95  # λ of generalised advantages; nothing is discounted, as returns are sums
LARGEST = 0.5  # norm of gradients


class Response(NamedTuple):
    """Everything that learning changes."""

    networks: Any  # what acts, of the form that the response has
    value: Params  # what the agent expects to earn
    optim: tuple[optax.OptState, optax.OptState]  # of the two


class Rows(NamedTuple):
    """What the agent went through: leading axes (T, E) of steps and games, (B,) in a minibatch."""

    obs: jax.Array  # (..., D), a flat scene
    skill: jax.Array  # (..., N, Z)
    left: jax.Array  # (...), steps to the end, this one included
    action: jax.Array  # (...) int32
    log_prob: jax.Array  # (...), of the action as it was drawn
    advantage: jax.Array  # (...)
    target: jax.Array  # (...), return to go


def init(key: Key, networks: Any, world: World) -> Response:
    """Before the first step; the networks are those to begin from."""
    wanted = initial.critic(Static(), world.width, 1)
    seen = {name: wanted[name] for name in ("self_proj", "other_proj", "value_net")}
    head = initial.mlp((64 + world.width, 32, 1), initial.xavier, initial.zeros)
    value = initial.draw(key, seen | {"head": head})
    start = rule(0.0).init
    return Response(networks, value, (start(networks), start(value)))


def rule(rate: ArrayLike) -> optax.GradientTransformation:
    """Adam on clipped gradients."""
    return optax.chain(optax.clip_by_global_norm(LARGEST), adam(rate))


def values(value: Params, obs: Observation, left: jax.Array) -> jax.Array:
    """What agents expect to earn in the steps left (...), (..., N): so many times an output of the network."""
    x = jnp.concatenate([critic_embedding(value, obs), obs.own], -1)
    return left[..., None] * mlp(value["head"], x)[..., 0]


def advantages(reward: jax.Array, value: jax.Array) -> jax.Array:
    """Generalised advantages (T, ...) of whole undiscounted episodes, after whose end there is nothing."""
    errors = reward + jnp.concatenate([value[1:], jnp.zeros_like(value[:1])]) - value

    def back(after: jax.Array, error: jax.Array) -> tuple[jax.Array, jax.Array]:
        advantage = error + DECAY * after
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(errors[0]), errors, reverse=True)[1]


def policy_loss(networks: Any, form: Form, rows: Rows, obs: Observation, slot: ArrayLike) -> Loss:
    """-mean_b min(ρ A, clip(ρ, 1 ± CLIP) A) - ENTROPY · entropy, of the agent in this slot; A (B,) as it is."""
    log_probs = jax.nn.log_softmax(form.logits(networks, obs, rows.skill)[:, slot])
    ratio = jnp.exp(pick(log_probs, rows.action) - rows.log_prob)
    gain = jnp.minimum(ratio * rows.advantage, jnp.clip(ratio, 1.0 - CLIP, 1.0 + CLIP) * rows.advantage)
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    return -gain.mean() - ENTROPY * entropy, {"entropy": entropy}


def value_loss(value: Params, rows: Rows, obs: Observation, slot: ArrayLike) -> jax.Array:
    """Mean squared error of the agent's value."""
    return jnp.square(values(value, obs, rows.left)[:, slot] - rows.target).mean()


def improve(
    response: Response, rows: Rows, obs: Observation, form: Form, slot: ArrayLike, rate: ArrayLike
) -> tuple[Response, Metrics]:
    """A step of Adam on a minibatch, for what acts and for the value, gradients clipped."""
    of_networks, of_value = response.optim
    grads, metrics = jax.grad(policy_loss, has_aux=True)(response.networks, form, rows, obs, slot)
    networks, of_networks = descend(rule(rate), grads, of_networks, response.networks)
    value_grads = jax.grad(value_loss)(response.value, rows, obs, slot)
    value, of_value = descend(rule(rate), value_grads, of_value, response.value)
    return Response(networks, value, (of_networks, of_value)), metrics


def episodes(
    key: Key, response: Response, others: Any, slot: ArrayLike, env: Env, forms: tuple[Form, Form], games: int
) -> tuple[Rows, jax.Array]:
    """Whole episodes of `games` side by side, rows (T, E); and what the agent earned in each, (E,)."""
    world = play.world_of("mra", env)
    reset_key, skill_key, key = jax.random.split(key, 3)
    env_states, obs = jax.vmap(env.reset, (0, None))(jax.random.split(reset_key, games), env.params)
    mine = jax.nn.one_hot(slot, world.agents)
    seats = Seats((response.networks, others), jnp.stack([mine, 1.0 - mine]))
    skills = joint.begin(skill_key, forms, seats, observe(world.view(obs), world.kinds))

    def advance(carry: tuple, inputs: tuple[Key, jax.Array]) -> tuple[tuple, tuple]:
        env_states, obs = carry
        (act_key, env_key), left = jax.random.split(inputs[0]), jnp.full(games, inputs[1])
        seen = observe(world.view(obs), world.kinds)
        logits = joint.logits(forms, seats, seen, skills)
        action = draw_action(logits, jax.random.gumbel(act_key, logits.shape))
        env_states, step = jax.vmap(env.step, (0, 0, 0, None))(
            jax.random.split(env_key, games), env_states, play.to_env(action), env.params
        )
        assert step.rewards is not None  # particle games give them
        chosen = action[:, slot]
        log_prob = pick(jax.nn.log_softmax(logits[:, slot]), chosen)
        value = values(response.value, seen, left)[:, slot]
        return (env_states, step.obs), (obs, left, chosen, log_prob, step.rewards[:, slot], value)

    left = env.horizon - jnp.arange(env.horizon, dtype=jnp.float32)
    inputs = jax.random.split(key, env.horizon), left
    _, (obs, left, action, log_prob, reward, value) = jax.lax.scan(advance, (env_states, obs), inputs)
    advantage = advantages(reward, value)
    skill = jnp.broadcast_to(skills[0], (env.horizon, *skills[0].shape))
    return Rows(obs, skill, left, action, log_prob, advantage, advantage + value), reward.sum(0)


def make(env: Env, forms: tuple[Form, Form], games: int) -> Callable[..., tuple[Response, Metrics]]:
    """A step of learning in the only population of `env`: (key, response, others, slot, rate) -> response, metrics.

    `forms` are those of the response and of the networks that all other agents follow; the response sits in `slot`,
    () int32. `rate` is the learning rate. A step plays `games` episodes, which should be a multiple of MINIBATCHES.
    """
    world = play.world_of("mra", env)
    size = env.horizon * games // MINIBATCHES

    def step(key: Key, response: Response, others: Any, slot: jax.Array, rate: jax.Array) -> tuple[Response, Metrics]:
        play_key, order_key = jax.random.split(key)
        rows, earned = episodes(play_key, response, others, slot, env, forms, games)
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        centred = rows.advantage - rows.advantage.mean()
        rows = rows._replace(advantage=centred / (rows.advantage.std() + 1e-8))

        def one(response: Response, index: jax.Array) -> tuple[Response, Metrics]:
            part = jax.tree.map(lambda x: x[index], rows)
            return improve(response, part, observe(world.view(part.obs), world.kinds), forms[0], slot, rate)

        order = jnp.argsort(jax.random.uniform(order_key, (EPOCHS, env.horizon * games)))
        batches = order[:, : MINIBATCHES * size].reshape(-1, size)
        response, metrics = jax.lax.scan(one, response, batches)
        return response, jax.tree.map(lambda x: x.mean(0), metrics) | {"return": earned.mean()}

    return step
