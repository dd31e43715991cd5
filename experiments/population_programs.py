"""What `experiments.populations` compiles for a population: how learners and scripted players act there, and adapt."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algos.core import Algorithm, Env, Key, Params
from algos.mra import adapt, play
from algos.mra.diversity import skill_differences
from algos.mra.learn import Learner, init_learner
from algos.mra.observe import observe
from algos.mra.settings import Hyper, Static
from algos.runner import Population
from envs import particles
from envs.particles.scripted import Controller
from experiments.rollout import RETURN, Evaluator, Sums, make_evaluator

CHOOSING = 64  # episodes of each skill, by which the best one is chosen
SCENES = 32  # episodes whose scenes skills are compared on
UNCHANGED = (jnp.zeros(()), jnp.ones(()))  # normaliser of observations


class Player(NamedTuple):
    """What acts: networks, and logits (Z,) that agents' skills are drawn by."""

    policy: Params
    relation_net: Params
    log_probs: jax.Array


class Programs(NamedTuple):
    """What is compiled for a population and a form of learner."""

    env: Env
    evaluate: Evaluator  # of one player
    compare: Evaluator  # of Z players, in fewer episodes
    differ: Callable[[Key, Learner, jax.Array], dict[str, jax.Array]]
    fresh: Callable[[Key], Learner]
    begin: Callable[[Learner, Hyper], adapt.State]  # of an adaptation
    adapt: dict[str, Callable]  # variant -> (key, state, hyper, episodes before) -> state


def algorithm(env: Env, kinds: int) -> Algorithm:
    """Players as an algorithm that only acts."""
    view = env.view
    assert view is not None

    def act(key: Key, player: Player, obs: jax.Array, hyper: Any, skill: jax.Array) -> jax.Array:
        return play.act(key, player, view(obs), kinds, skill)

    def begin(key: Key, player: Player, obs: jax.Array, hyper: Any) -> jax.Array:
        return play.skills(key, player.log_probs, observe(view(obs), kinds))

    return Algorithm(lambda *_: None, lambda *_: (None, {}), act, begin=begin)


def scripted(env: Env, controller: Controller) -> Algorithm:
    """A controller as an algorithm that only acts."""
    view = env.view
    assert view is not None

    def act(key: Key, state: Any, obs: jax.Array, hyper: Any) -> jax.Array:
        return jax.vmap(controller)(jax.random.split(key, len(obs)), view(obs)).reshape(len(obs), -1)

    return Algorithm(lambda *_: None, lambda *_: (None, {}), act)


def scenes(key: Key, player: Player, env: Env, algo: Algorithm) -> jax.Array:
    """Observations (horizon * SCENES, D) of episodes that are played."""
    assert algo.begin is not None
    reset_key, skill_key, key = jax.random.split(key, 3)
    states, obs = jax.vmap(env.reset, (0, None))(jax.random.split(reset_key, SCENES), env.params)
    skill = algo.begin(skill_key, player, obs, None)

    def advance(carry: tuple, key: Key) -> tuple[tuple, jax.Array]:
        states, obs = carry
        act_key, env_key = jax.random.split(key)
        action = algo.act(act_key, player, obs, None, skill)
        states, step = jax.vmap(env.step, (0, 0, 0, None))(
            jax.random.split(env_key, SCENES), states, action, env.params
        )
        return (states, step.obs), obs

    _, seen = jax.lax.scan(advance, (states, obs), jax.random.split(key, env.horizon))
    return seen.reshape(-1, seen.shape[-1])


@functools.cache
def programs(place: str, static: Static, games: int, episodes: int, chunk: int) -> Programs:
    """For learners of `games` training games; adaptations go `chunk` episodes at a time."""
    env = particles.make(place)
    world = play.world_of("mra", env)
    algo = algorithm(env, world.kinds)

    def differ(key: Key, learner: Learner, log_probs: jax.Array) -> dict[str, jax.Array]:
        play_key, measure_key = jax.random.split(key)
        seen = scenes(play_key, Player(learner.policy, learner.relation_net, log_probs), env, algo)
        return skill_differences(measure_key, learner, observe(world.view(seen), world.kinds), log_probs, static)

    def adaptation(variant: str) -> Callable:
        step = adapt.make(variant, env, static)

        def go_on(key: Key, state: adapt.State, hyper: Any, before: jax.Array) -> adapt.State:
            def one(state: adapt.State, i: jax.Array) -> tuple[adapt.State, None]:
                return step(jax.random.fold_in(key, i), state, hyper)[0], None

            return jax.lax.scan(one, state, before // static.envs + jnp.arange(chunk // static.envs))[0]

        return jax.jit(go_on)

    return Programs(
        env,
        make_evaluator(algo, env, episodes, "map"),
        make_evaluator(algo, env, CHOOSING, "map"),
        jax.jit(differ),
        jax.jit(lambda key: init_learner(key, static, world.width, world.kinds, games)),
        jax.jit(lambda learner, hyper: adapt.init(learner, env, static, hyper)),
        {variant: adaptation(variant) for variant in adapt.VARIANTS},
    )


def played(evaluate: Evaluator, players: Any, seeds: np.ndarray) -> Sums:
    """What an evaluator finds of players, leaves with a leading axis of them."""
    count = len(seeds)
    keys = jax.random.split(jax.random.key(0), count)  # of training, which there is none of
    return evaluate(Population(keys, players, jnp.zeros(count), jnp.ones(count, bool)), UNCHANGED, seeds)


def per_step(sums: Sums, horizon: int) -> dict[str, np.ndarray]:
    """The return of the only player as it is, measures as means per step, (episodes,) each."""
    return {name: x[0].astype(np.float64) / (1 if name == RETURN else horizon) for name, x in sums.items()}
