"""Acting: skills for an episode, then graphs and actions at each step."""

from typing import Protocol

import jax
import jax.numpy as jnp

from algos.core import Env, Key, Params, Source, UsageError
from algos.mra.initial import ACTIONS
from algos.mra.nets import policy_logits, relation_graph, task_log_probs
from algos.mra.objectives import draw_action, draw_skill
from algos.mra.observe import Observation, Scene, observe
from algos.mra.replay import World
from algos.mra.settings import Hyper


class Actor(Protocol):
    """The networks that act."""

    @property
    def policy(self) -> Params:
        """Of every kind of agents."""

    @property
    def relation_net(self) -> Params:
        """Of all skills."""


def world_of(algo: str, env: Env) -> World:
    """What is fixed in an environment of `envs.particles`. Raises UsageError for another one."""
    counts = getattr(env.params, "counts", None)
    if counts is None or env.view is None:
        raise UsageError(f"algo={algo} learns in particle games, not env={env.name}: set env=resource-3+6 or another")
    scene = jax.eval_shape(env.view, jnp.zeros(env.spec.obs_dim))
    agents = scene.mask.shape[-1]
    if env.spec.action_dim != agents * ACTIONS:
        raise UsageError(
            f"env={env.name} has {env.spec.action_dim} numbers in an action of {agents} agents: algo={algo} needs "
            f"games where all agents have the same {ACTIONS} actions, such as resource-3+6"
        )
    games, kinds = counts.shape
    own = 4 + 3 * scene.size.shape[-1] + (kinds if kinds > 1 else 0)
    return World(env.view, agents, kinds, games, own)


def check_other(env: Env, other: Env) -> None:
    """Raise UsageError if what learns in `env` cannot act in `other`: agents of other kinds, other landmarks, no game.

    Numbers of agents may differ. Shapes do not tell: resource-6 and pacmen-2x4 have the same.
    """
    counts = getattr(other.params, "counts", None)
    kinds = 0 if counts is None or other.view is None else counts.shape[1]
    here = world_of("mra", env)
    if kinds != here.kinds or world_of("mra", other).width != here.width:
        family = env.name.split("-")[0]
        raise UsageError(
            f"env={other.name} has other kinds of agents, or other actions, than {env.name}: choose {family}-... "
            "in another population"
        )


def game(source: Source, index: jax.Array) -> Source:
    """The environment's parameters with one of its populations only."""
    return source._replace(counts=jax.lax.dynamic_slice_in_dim(source.counts, index, 1))


def skills(key: Key, log_probs: jax.Array, obs: Observation) -> jax.Array:
    """A skill for each agent of log-probabilities (..., Z) of its game, one-hot (..., N, Z)."""
    shape = (*obs.mask.shape, log_probs.shape[-1])
    return draw_skill(log_probs[..., None, :], jax.random.uniform(key, shape))


def prior(key: Key, encoder: Params, obs: Observation, hyper: Hyper) -> jax.Array:
    """A skill for each agent from p(z | m), one-hot (..., N, Z)."""
    return skills(key, task_log_probs(encoder, obs.counts, hyper.skill_divisor), obs)


def choose(key: Key, actor: Actor, obs: Observation, skill: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Actions (..., N) int32 by the policy, and the graph (..., N, N) that they are under."""
    graph = relation_graph(actor.relation_net, obs, skill)
    logits = policy_logits(actor.policy, obs, graph)
    return draw_action(logits, jax.random.gumbel(key, logits.shape)), graph


def to_env(action: jax.Array) -> jax.Array:
    """Actions (..., N) as `Env.step` takes them, (..., N * 5)."""
    return jax.nn.one_hot(action, ACTIONS).reshape(*action.shape[:-1], -1)


def act(key: Key, actor: Actor, scene: Scene, kinds: int, skill: jax.Array) -> jax.Array:
    """What an evaluation does in scenes (...) of any population."""
    return to_env(choose(key, actor, observe(scene, kinds), skill)[0])
