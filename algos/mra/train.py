"""MRA: meta representations for agents in games of varying population (arXiv 2108.12988).

Networks are shared by all games. What a game needs lies in relation graphs: who looks at whom, chosen by a skill whose
distribution depends on the game. One training iteration plays a few episodes of each game in turn; every hundred
environment steps come several updates of critic and policy, and one of what makes the graphs (`learn.meta_step`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from algos.core import Algorithm, Env, Key, Metrics, Source, Spec
from algos.mra import play, replay
from algos.mra.learn import Learner, draw_meta, draw_update, init_learner, meta_step, update
from algos.mra.objectives import Batch
from algos.mra.observe import Observation, observe
from algos.mra.replay import Replay, Rows, World
from algos.mra.settings import Hyper, Static

__all__ = ["ANY_POPULATION", "Hyper", "State", "Static", "check_other", "make"]

ANY_POPULATION = True  # it acts in populations that it did not learn in
check_other = play.check_other


# (key, learner, obs, skills) -> actions (..., N), graphs (..., N, N)
Choose = Callable[[Key, Any, Observation, jax.Array], tuple[jax.Array, jax.Array]]


class State(NamedTuple):
    """Everything that training changes. Episodes begin and end within an iteration."""

    learner: Any  # a `Learner`, or what else a `Method` trains
    replay: Replay


def labelled(key: Key, rings: Replay, world: World, static: Static, hyper: Hyper) -> Batch | None:
    """Equal parts of every game for the task step, leading axis T; None where it takes the present game's batch."""
    if static.task_labels == "one":
        return None

    def of(key: Key, index: jax.Array) -> Batch:
        statistics = replay.statistics(rings, index, world, static, hyper)
        part = max(static.batch_size // world.games, 1)
        return replay.sample(key, rings, index, part, statistics, world, static)

    return jax.vmap(of)(jax.random.split(key, world.games), jnp.arange(world.games))


def repeat(
    key: Key, learner: Any, rings: Replay, index: jax.Array, world: World, static: Static, hyper: Hyper,
    one: Callable[[Key, Any, Batch], tuple[Any, Metrics]],
) -> tuple[Any, Metrics, Batch]:  # fmt: skip
    """The updates `one` of a cycle, each on a batch of a game: what is learnt, mean metrics, and the last batch."""
    statistics = replay.statistics(rings, index, world, static, hyper)

    def batch_of(key: Key) -> Batch:
        return replay.sample(key, rings, index, static.batch_size, statistics, world, static)

    def advance(learner: Any, key: Key) -> tuple[Any, Metrics]:
        batch_key, draw_key = jax.random.split(key)
        return one(draw_key, learner, batch_of(batch_key))

    keys = jax.random.split(key, static.cycle_updates)
    learner, metrics = jax.lax.scan(advance, learner, keys)
    # The last batch is drawn again: cheaper than to carry it.
    return learner, jax.tree.map(lambda x: x.mean(0), metrics), batch_of(jax.random.split(keys[-1])[0])


def cycle(
    key: Key, learner: Learner, rings: Replay, index: jax.Array, world: World, static: Static, hyper: Hyper
) -> tuple[Learner, Metrics]:
    """The updates of critic and policy on a game, then the meta step on the last of their batches."""
    update_key, meta_key, label_key = jax.random.split(key, 3)

    def one(key: Key, learner: Learner, batch: Batch) -> tuple[Learner, Metrics]:
        return update(learner, batch, draw_update(key, batch), static, hyper)

    learner, metrics, batch = repeat(update_key, learner, rings, index, world, static, hyper, one)
    every = labelled(label_key, rings, world, static, hyper)
    draws = draw_meta(meta_key, batch, static, 1 if every is None else world.games)
    learner, of_meta = meta_step(learner, batch, draws, static, hyper, every)
    return learner, metrics | of_meta


class Way(NamedTuple):
    """How episodes are played and learnt from; what learns, an `Actor`, may be more than a `Learner`."""

    skills: Callable[[Key, Any, Observation], jax.Array]  # (key, learner, first obs) -> (..., N, Z)
    improve: Callable[[Key, Any, Replay], tuple[Any, Metrics]]  # a cycle
    choose: Choose = play.choose


def episodes(
    key: Key, learner: Any, rings: Replay, index: jax.Array, params: Source, env: Env, static: Static, way: Way
) -> tuple[Any, Replay, jax.Array, Metrics]:
    """`envs` episodes of one game side by side, with the cycles that fall due; transitions go to the ring `index`.

    Returns what was learnt, the rings, the mean reward per agent and step, and means over cycles.
    """
    world = play.world_of("mra", env)
    reset_key, skill_key, key = jax.random.split(key, 3)
    env_states, obs = jax.vmap(env.reset, (0, None))(jax.random.split(reset_key, static.envs), params)
    first = observe(world.view(obs), world.kinds)
    seen = jax.tree.map(lambda x: x[0], first) if static.acting_skills == "shared" else first
    skill = jnp.broadcast_to(way.skills(skill_key, learner, seen), (*first.mask.shape, static.skills))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(way.improve, key, learner, rings)[1])

    def advance(carry: tuple, key: Key) -> tuple[tuple, jax.Array]:
        learner, rings, env_states, obs, sums, cycles = carry
        act_key, env_key, learn_key = jax.random.split(key, 3)
        action, graph = way.choose(act_key, learner, observe(world.view(obs), world.kinds), skill)
        env_states, step = jax.vmap(env.step, (0, 0, 0, None))(
            jax.random.split(env_key, static.envs), env_states, play.to_env(action), params
        )
        assert step.rewards is not None  # particle games give them
        kept = graph if static.graphs == "stored" else None
        rings = replay.add(rings, index, Rows(obs, action, step.rewards, step.obs, kept, skill.argmax(-1)))
        due = (rings.size(index) >= static.batch_size) & (rings.added[index] % static.cycle_steps < static.envs)

        def once(_: jax.Array, carry: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
            learner, metrics = way.improve(learn_key, carry[0], rings)
            return learner, jax.tree.map(jnp.add, carry[1], metrics)

        # A loop, as `vmap` would make both sides of a branch be computed at every step.
        learner, sums = jax.lax.fori_loop(0, due.astype(jnp.int32), once, (learner, sums))
        return (learner, rings, env_states, step.obs, sums, cycles + due), step.measures["agent_reward"].mean()

    start = (learner, rings, env_states, obs, zeros, jnp.zeros(()))
    (learner, rings, _, _, sums, cycles), rewards = jax.lax.scan(advance, start, jax.random.split(key, env.horizon))
    means = jax.tree.map(lambda x: x / jnp.maximum(cycles, 1.0), sums)
    return learner, rings, rewards.mean(), means | {"cycles": cycles}


class Method(NamedTuple):
    """What sets a method apart from others that learn in particle games."""

    fresh: Callable[[Key], Any]  # what learns, before its first cycle
    skills: Callable[[Key, Any, Observation, Any], jax.Array]  # (key, learner, first obs, hyper) -> (..., N, Z)
    cycle: Callable[[Key, Any, Replay, jax.Array, Any], tuple[Any, Metrics]]  # (key, learner, rings, game, hyper)
    choose: Choose = play.choose


def assemble(method: Method, static: Static, spec: Spec, env: Env, world: World) -> Algorithm:
    """An algorithm that plays episodes of each game in turn; of `static`, what shapes the episodes and the rings."""
    view = world.view

    def init(key: Key, hyper: Any) -> State:
        return State(method.fresh(key), replay.empty(static, world, spec.obs_dim))

    def play_game(
        key: Key, state: State, source: Source, index: jax.Array, hyper: Any
    ) -> tuple[State, jax.Array, Metrics]:
        way = Way(
            lambda key, learner, seen: method.skills(key, learner, seen, hyper),
            lambda key, learner, rings: method.cycle(key, learner, rings, index, hyper),
            method.choose,
        )
        params = play.game(source, index)
        learner, rings, reward, metrics = episodes(key, *state, index, params, env, static, way)
        return State(learner, rings), reward, metrics

    def step(key: Key, state: State, source: Source, hyper: Any) -> tuple[State, Metrics]:
        def one(state: State, inputs: tuple[Key, jax.Array]) -> tuple[State, tuple[jax.Array, Metrics]]:
            state, reward, metrics = play_game(inputs[0], state, source, inputs[1], hyper)
            return state, (reward, metrics)

        keys = jax.random.split(key, world.games)
        state, (rewards, metrics) = jax.lax.scan(one, state, (keys, jnp.arange(world.games)))
        of_games = {f"agent_reward_{name}": rewards[i] for i, name in enumerate(populations)}
        return state, jax.tree.map(lambda x: x.mean(0), metrics) | of_games

    def begin(key: Key, state: State, obs: jax.Array, hyper: Any) -> jax.Array:
        return method.skills(key, state.learner, observe(view(obs), world.kinds), hyper)

    def act(key: Key, state: State, obs: jax.Array, hyper: Any, skill: jax.Array) -> jax.Array:
        return play.to_env(method.choose(key, state.learner, observe(view(obs), world.kinds), skill)[0])

    populations = ["x".join(map(str, row)) for row in env.params.counts.tolist()]
    return Algorithm(init, step, act, updates_per_step=static.envs, begin=begin, replay=("replay",))


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build MRA for the populations of a particle game; the `source` of `step` is `env.params`.

    `updates_per_step` counts episodes of each game. Raises UsageError for an environment that is no particle game.
    """
    world = play.world_of("mra", env)
    method = Method(
        lambda key: init_learner(key, static, world.width, world.kinds, world.games),
        lambda key, learner, seen, hyper: play.prior(key, learner.task_encoder, seen, hyper),
        lambda key, learner, rings, index, hyper: cycle(key, learner, rings, index, world, static, hyper),
    )
    return assemble(method, static, spec, env, world)
