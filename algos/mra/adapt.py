"""Fast adaptation: a few episodes in one new game, by first-order gradients, from what was learnt in others.

It begins with fresh optimisers and an empty replay, and goes on like training without a task step, as the new game is
none of those that the predictor knows. The paper (arXiv 2108.12988) names the idea only; what follows is ours:

    all          critic, policy and relation network learn
    latent_only  a table of logits of skills learns, in place of the task encoder's; of the networks, the critic alone,
                 which judges the actions
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from algos.core import Env, Key, Loss, Metrics, Params
from algos.losses import descend
from algos.mra import learn, play, replay
from algos.mra.initial import ACTIONS
from algos.mra.learn import Learner
from algos.mra.nets import critic_outputs, pick, policy_logits, relation_graph, task_log_probs
from algos.mra.objectives import Batch, draw_action, draw_skill, over_agents
from algos.mra.observe import Observation
from algos.mra.replay import Replay, World
from algos.mra.settings import Hyper, Static
from algos.mra.train import Way, episodes, repeat

VARIANTS = ("all", "latent_only")
LATENT_LR = 1e-2  # of the table of logits


class Adapted(NamedTuple):
    """What an adaptation changes; it acts, too."""

    learner: Learner
    log_probs: jax.Array  # (Z,), logits of skills in the new game
    optim: optax.OptState  # of these

    @property
    def policy(self) -> Params:
        """The networks' policy."""
        return self.learner.policy

    @property
    def relation_net(self) -> Params:
        """The networks' relation network."""
        return self.learner.relation_net


class State(NamedTuple):
    """All that an adaptation carries from episode to episode."""

    adapted: Adapted
    replay: Replay


class LatentDraws(NamedTuple):
    """Random numbers of one step of the table."""

    skill: jax.Array  # (B, N, Z), uniform
    action: jax.Array  # (B, N, 5), standard Gumbel


def counts_of(env: Env) -> jax.Array:
    """Agents of each kind (H,) in the environment's only population."""
    return env.params.counts[0]


def init(learner: Learner, env: Env, static: Static, hyper: Hyper) -> State:
    """Before the first episode in the only population of `env`: the skills are those that the task encoder expects."""
    log_probs = task_log_probs(learner.task_encoder, counts_of(env), hyper.skill_divisor)
    networks = ("policy", "critic", "relation_net", "task_encoder", "task_predictor")
    fresh = learn.begin({name: getattr(learner, name) for name in networks})
    adapted = Adapted(fresh, log_probs, learn.rule(0.0, 0.0).init(log_probs))
    return State(adapted, replay.empty(static, play.world_of("mra", env), env.spec.obs_dim))


def latent_loss(log_probs: jax.Array, learner: Learner, obs: Observation, draws: LatentDraws, hyper: Hyper) -> Loss:
    """-mean_b Σ_i log π(a_i|o_i,G_i(z)) · stop(A_i - mean_b A_i), A_i = Q_i(o,a,G) - log π(a_i)/α'.

    Skills z are drawn anew for every row and agent by straight-through Gumbel, actions a by the policy. Attention
    logits are quadratic in z: where skills are far apart, the gradient is biased and may favour a worse skill.
    """
    graph = relation_graph(learner.relation_net, obs, draw_skill(log_probs, draws.skill))
    of_actions = jax.nn.log_softmax(policy_logits(learner.policy, obs, graph))
    action = draw_action(of_actions, draws.action)
    log_prob = pick(of_actions, action)
    value = pick(critic_outputs(learner.critic, obs, action, graph), action) - log_prob / hyper.reward_scale
    advantage = jax.lax.stop_gradient(value - value.mean(0))
    loss = -over_agents(log_prob * advantage, obs).mean()
    return loss, {"latent_loss": loss}


def draw_latent(key: Key, batch: Batch, static: Static) -> LatentDraws:
    """Random numbers of one step of the table on a batch."""
    skill_key, action_key = jax.random.split(key)
    shape = batch.action.shape
    skill = jax.random.uniform(skill_key, (*shape, static.skills))
    return LatentDraws(skill, jax.random.gumbel(action_key, (*shape, ACTIONS)))


def latent_step(adapted: Adapted, batch: Batch, draws: LatentDraws, hyper: Hyper) -> tuple[Adapted, Metrics]:
    """One step of the table of logits against the critic as it is."""
    of_table = jax.grad(latent_loss, has_aux=True)
    grads, metrics = of_table(adapted.log_probs, adapted.learner, batch.obs, draws, hyper)
    log_probs, optim = descend(learn.rule(LATENT_LR, 0.0), grads, adapted.optim, adapted.log_probs)
    return adapted._replace(log_probs=log_probs, optim=optim), metrics


Cycle = Callable[[Key, Adapted, Replay], tuple[Adapted, Metrics]]


def cycle_of_all(world: World, static: Static, hyper: Hyper) -> Cycle:
    """The cycle of training but for its task step."""

    def one(key: Key, learner: Learner, batch: Batch) -> tuple[Learner, Metrics]:
        return learn.update(learner, batch, learn.draw_update(key, batch), static, hyper)

    def cycle(key: Key, adapted: Adapted, rings: Replay) -> tuple[Adapted, Metrics]:
        update_key, meta_key = jax.random.split(key)
        game = jnp.int32(0)
        learner, metrics, batch = repeat(update_key, adapted.learner, rings, game, world, static, hyper, one)
        if static.relation == "diversity":
            draws = learn.draw_meta(meta_key, batch, static).relation
            learner, of_relation = learn.relation_step(learner, batch, draws, static, hyper)
            metrics |= of_relation
        return adapted._replace(learner=learn.copy_targets(learner)), metrics

    return cycle


def cycle_of_latent(world: World, static: Static, hyper: Hyper) -> Cycle:
    """Steps of the critic and of the table of logits in turn, then the critic's hard copy."""

    def one(key: Key, adapted: Adapted, batch: Batch) -> tuple[Adapted, Metrics]:
        critic_key, latent_key = jax.random.split(key)
        noise = jax.random.gumbel(critic_key, (*batch.action.shape, ACTIONS))
        learner, of_critic = learn.critic_step(adapted.learner, batch, noise, static, hyper)
        draws = draw_latent(latent_key, batch, static)
        adapted, of_latent = latent_step(adapted._replace(learner=learner), batch, draws, hyper)
        return adapted, of_critic | of_latent

    def cycle(key: Key, adapted: Adapted, rings: Replay) -> tuple[Adapted, Metrics]:
        adapted, metrics, _ = repeat(key, adapted, rings, jnp.int32(0), world, static, hyper, one)
        return adapted._replace(learner=learn.copy_targets(adapted.learner)), metrics

    return cycle


def make(variant: str, env: Env, static: Static) -> Callable[[Key, State, Hyper], tuple[State, Metrics]]:
    """A step of adaptation to the only population of `env`: `static.envs` episodes, with the cycles that fall due.

    Raises KeyError for a variant that is none of VARIANTS.
    """
    world = play.world_of("mra", env)
    cycle = {"all": cycle_of_all, "latent_only": cycle_of_latent}[variant]

    def skills(key: Key, adapted: Adapted, seen: Observation) -> jax.Array:
        return play.skills(key, adapted.log_probs, seen)

    def step(key: Key, state: State, hyper: Hyper) -> tuple[State, Metrics]:
        way = Way(skills, cycle(world, static, hyper))
        adapted, rings, reward, metrics = episodes(key, *state, jnp.int32(0), env.params, env, static, way)
        return State(adapted, rings), metrics | {"agent_reward": reward}

    return step
