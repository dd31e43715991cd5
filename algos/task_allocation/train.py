"""The two-stage method as an online algorithm: decide, hand the teams to the environment, and again.

One training iteration is one decision with all that is learnt from it (Gong et al., arXiv 2407.00496), and one step of
the environment; the manager may have made dozens of gradient updates in it.
"""

from typing import Any, NamedTuple

import jax

from algos.core import Algorithm, Env, Key, Metrics, Source, Spec
from algos.task_allocation import decide, play
from algos.task_allocation.nets import Hyper, Static

__all__ = ["Hyper", "State", "Static", "make"]


class State(NamedTuple):
    """Everything that training changes."""

    agent: decide.State
    episode: play.Episode


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build the method for an allocation environment; the `source` of `step` is `env.params`.

    Raises UsageError for other environments.
    """
    play.check_env("task_allocation", env)

    def init(key: Key, hyper: Hyper) -> State:
        agent_key, env_key = jax.random.split(key)
        episode = play.begin(env_key, env, env.params)
        return State(decide.init(agent_key, static, play.problem_of(env, episode.obs), hyper), episode)

    return Algorithm(init, *step_and_act(static, env))


def step_and_act(static: Static, env: Env) -> tuple[Any, Any]:
    """`step` and `act` of `Algorithm` on `State`."""

    def step(key: Key, state: State, source: Source, hyper: Hyper) -> tuple[State, Metrics]:
        draw_key, env_key = jax.random.split(key)
        problem = play.problem_of(env, state.episode.obs)
        draws = decide.draw(draw_key, static, state.agent, problem, learning=static.learning)
        agent, result = decide.decide(static, state.agent, problem, draws, hyper, static.learning)
        episode, over = play.advance(env_key, env, source, state.episode, result.allocation)
        agent = agent._replace(episode=agent.episode + over)
        picks = result.picks.sum().astype(float)
        metrics = result.metrics | play.returns(episode) | {"picks": picks}
        if static.learning:
            at_once = static.decision_updates * (picks > 0).astype(float)
            metrics |= {"manager_updates": picks if static.manager_update == "per_step" else at_once}
        return State(agent, episode), metrics

    def act(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        def teams_for(key: Key, problem: Any) -> jax.Array:
            sampled = static.acting == "sampled"
            draws = decide.draw(key, static, state.agent, problem, sampled=sampled, learning=False)
            return decide.decide(static, state.agent, problem, draws, hyper, learning=False)[1].allocation

        return play.for_each(key, env, obs, teams_for)

    return step, act
