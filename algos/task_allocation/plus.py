"""The strongest learnt variant of the two-stage method: a residual over the greedy rule, trained by evolution.

What a decision is worth shows only steps later, when the team has arrived and its members are free again, and picks
and orders are choices of a largest number, without a gradient. So the policy (`plus_policy.py`) is improved as a
whole: pairs of candidates, its parameters plus and minus noise, play the same episodes, and those that earned
more pull the parameters their way (evolution strategies with antithetic noise; Salimans et al. 2017, arXiv
1703.03864). Untrained it is the greedy rule. One training iteration is one update from whole episodes.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import register_dataclass

from algos.checks import check_least
from algos.core import Algorithm, Env, Key, Metrics, Params, Source, Spec
from algos.losses import adam, descend, polyak
from algos.task_allocation import myopic, play
from algos.task_allocation.plus_policy import decide
from algos.task_allocation.plus_policy import init as init_policy


@register_dataclass
@dataclass
class Hyper:
    """Scalars that may differ between members."""

    sigma: float = 0.1  # standard deviation of the candidates' noise
    lr: float = 0.03  # of Adam
    tau: float = 0.1  # Polyak step of the averaged parameters, which act


@dataclass(unsafe_hash=True)
class Static:
    """What shapes the compiled program."""

    hidden: int = 16
    pairs: int = 32  # of candidates, in each update
    episodes: int = 8  # that each candidate plays, the same for all

    def __post_init__(self) -> None:
        """Raises UsageError for sizes that leave nothing to compare."""
        check_least(self, hidden=1, pairs=2, episodes=1)


class State(NamedTuple):
    """Everything that training changes."""

    params: Params
    average: Params  # of the parameters of late: the evaluation policy's
    optim: optax.OptState


class Draws(NamedTuple):
    """Every random number of one update."""

    noise: Params  # standard normal, with a leading axis of pairs
    episodes: Key  # (episodes,)


def draw(key: Key, static: Static, params: Params) -> Draws:
    """All noise of one update, and the keys of its episodes."""
    noise_key, episode_key = jax.random.split(key)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(noise_key, len(leaves))
    noise = [jax.random.normal(k, (static.pairs, *x.shape)) for k, x in zip(keys, leaves)]
    return Draws(jax.tree.unflatten(treedef, noise), jax.random.split(episode_key, static.episodes))


def earnings(key: Key, env: Env, source: Source, params: Params) -> tuple[jax.Array, jax.Array]:
    """Profit and gross reward of one episode of the policy."""
    reset_key, step_key = jax.random.split(key)

    def advance(carry: tuple, key: Key) -> tuple[tuple, None]:
        env_state, obs, going, profit, gross = carry
        teams = teams_of(params, play.problem_of(env, obs))
        env_state, step = env.step(key, env_state, play.action_of(teams), source)
        profit = profit + going * step.reward
        gross = gross + going * step.measures["gross"]
        going = going & ~(step.terminated | step.truncated)
        return (env_state, step.obs, going, profit, gross), None

    start = (*env.reset(reset_key, source), jnp.asarray(True), jnp.zeros(()), jnp.zeros(()))
    (*_, profit, gross), _ = jax.lax.scan(advance, start, jax.random.split(step_key, env.horizon))
    return profit, gross


def teams_of(params: Params, problem: Any) -> jax.Array:
    """The policy's decision as teams (T, N) bool."""
    return myopic.teams_of(decide(params, problem), len(problem.open))


def ascent(noise: Params, profits: jax.Array) -> Params:
    """The direction in which profits grow, from those (2, pairs) of candidates plus and minus their noise.

    Differences are divided by their spread: the scale of rewards does not matter.
    """
    difference = profits[0] - profits[1]
    weight = difference / (jnp.std(difference) + 1e-6)
    return jax.tree.map(lambda n: jnp.tensordot(weight, n, 1) / len(weight), noise)


def learn(static: Static, env: Env, source: Source, state: State, draws: Draws, hyper: Hyper) -> tuple[State, Metrics]:
    """One update: every candidate plays the same episodes, and the parameters follow what earned more."""

    def rate(sign: jax.Array, noise: Params) -> tuple[jax.Array, jax.Array]:
        candidate = jax.tree.map(lambda x, n: x + sign * hyper.sigma * n, state.params, noise)
        profit, gross = jax.vmap(lambda key: earnings(key, env, source, candidate))(draws.episodes)
        return profit.mean(), gross.mean()

    each_pair = jax.vmap(rate, in_axes=(None, 0))
    profits, gross = jax.vmap(each_pair, in_axes=(0, None))(jnp.array([1.0, -1.0]), draws.noise)
    gradient = jax.tree.map(jnp.negative, ascent(draws.noise, profits))
    params, optim = descend(adam(hyper.lr), gradient, state.optim, state.params)
    average = polyak(params, state.average, hyper.tau)
    metrics = {"train_profit": profits.mean(), "train_gross": gross.mean(), "profit_spread": profits.std()}
    return State(params, average, optim), metrics


def make(static: Static, spec: Spec, env: Env) -> Algorithm:
    """Build the variant for an allocation environment; the `source` of `step` is `env.params`.

    Raises UsageError for other environments.
    """
    play.check_env("task_allocation_plus", env)

    def init(key: Key, hyper: Hyper) -> State:
        params = init_policy(key, static.hidden)
        return State(params, params, adam(0.0).init(params))

    def step(key: Key, state: State, source: Source, hyper: Hyper) -> tuple[State, Metrics]:
        return learn(static, env, source, state, draw(key, static, state.params), hyper)

    def act(key: Key, state: State, obs: jax.Array, hyper: Hyper) -> jax.Array:
        return play.for_each(key, env, obs, lambda key, problem: teams_of(state.average, problem))

    return Algorithm(init, step, act)
