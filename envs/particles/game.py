"""What the particle games have in common: reset, step, and the contract of `envs.core.Env`.

Observation: the flat Scene, 6 N + 3 L numbers, which `Env.view` gives back. Action: for each slot the weights of the
five actions none, +x, -x, +y, -y, (N * 5), usually one-hot. `TimeStep.reward` is the team's, `rewards` are the agents'.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Env, Key, Spec, TimeStep, UsageError
from envs.particles.core import ACTIONS, Dynamics, Scene, advance

HORIZON = 20
FEWEST = 2  # agents: alone, an agent has nobody to relate to

Settled = tuple[Scene, jax.Array, dict[str, jax.Array]]


@dataclass(frozen=True)
class Game:
    """A game for any population."""

    name: str
    kinds: tuple[str, ...]  # of agents, in order
    dynamics: Dynamics
    sizes: tuple[float, ...]  # radii of the landmarks
    spread: float  # landmarks appear in [-spread, spread]^2, agents in [-1, 1]^2
    # (key, scene after the motion, dynamics) -> scene, rewards (N,), measures. Rewards of padded slots are ignored.
    settle: Callable[[Key, Scene, Dynamics], Settled]


class Games(NamedTuple):
    """The populations that a reset draws from. One of them: `Games(counts[t : t + 1])`, t may be traced."""

    counts: jax.Array  # (T, H) int32, agents of each kind


class State(NamedTuple):
    """Where everything is, and when."""

    scene: Scene
    t: jax.Array  # () int32, steps taken


def uniform(key: Key, count: int, bound: float) -> jax.Array:
    """Points (count, 2) in [-bound, bound]^2."""
    return jax.random.uniform(key, (count, 2), jnp.float32, -bound, bound)


def mean_over(values: jax.Array, members: jax.Array) -> jax.Array:
    """Mean () of values (N,) over members (N,) bool."""
    return jnp.sum(jnp.where(members, values, 0.0)) / jnp.maximum(jnp.sum(members), 1)


def flat(scene: Scene) -> jax.Array:
    """A scene as an observation (6 N + 3 L,)."""
    return jnp.concatenate([x.ravel() for x in scene])


def unflat(obs: jax.Array, landmarks: int) -> Scene:
    """The scene of an observation (..., 6 N + 3 L) for any N, with the same leading axes."""
    agents, rest = divmod(obs.shape[-1] - 3 * landmarks, 6)
    if rest or agents < FEWEST:
        raise UsageError(f"no particle game with {landmarks} landmarks has observations of {obs.shape[-1]} numbers")
    widths = (2 * agents, 2 * agents, 2 * landmarks, landmarks, agents, agents)
    position, velocity, landmark, *others = jnp.split(obs, [sum(widths[: i + 1]) for i in range(5)], axis=-1)
    points = (x.reshape(*obs.shape[:-1], -1, 2) for x in (position, velocity, landmark))
    return Scene(*points, *others)


def reset(key: Key, games: Games, game: Game, agents: int) -> State:
    """A random start in one of the games' populations, within `agents` slots."""
    game_key, agent_key, landmark_key = jax.random.split(key, 3)
    counts = games.counts[jax.random.randint(game_key, (), 0, len(games.counts))]
    ends = jnp.cumsum(counts)
    slot = jnp.arange(agents)
    mask = (slot < ends[-1]).astype(jnp.float32)
    kind = mask * jnp.sum(slot[:, None] >= ends[:-1], axis=1)
    position = mask[:, None] * uniform(agent_key, agents, 1.0)
    landmark = uniform(landmark_key, len(game.sizes), game.spread)
    size = jnp.asarray(game.sizes, jnp.float32)
    return State(Scene(position, jnp.zeros_like(position), landmark, size, mask, kind), jnp.int32(0))


def step(key: Key, state: State, action: jax.Array, game: Game) -> tuple[State, TimeStep]:
    """Move by actions (N * 5,) or (N, 5), then reward. Truncated at the horizon, never terminated."""
    scene = advance(state.scene, action.reshape(-1, ACTIONS), game.dynamics)
    scene, rewards, measures = game.settle(key, scene, game.dynamics)
    real = scene.mask > 0
    rewards = jnp.where(real, rewards, 0.0)
    measures = {"agent_reward": mean_over(rewards, real)} | measures
    t = state.t + 1
    outcome = TimeStep(flat(scene), jnp.sum(rewards), jnp.asarray(False), t >= HORIZON, measures, rewards)
    return State(scene, t), outcome


def make_env(game: Game, counts: Sequence[Sequence[int]], agents: int | None = None, name: str | None = None) -> Env:
    """The environment of a game in one or several populations, padded to `agents` slots (default: the largest).

    counts: (T, H) agents of each kind in each population. `agent_reward` among the measures is the mean over agents.
    Raises UsageError for a population with nobody of some kind, of a single agent, of more than `agents`, or twice.
    """
    name = name or game.name
    kinds, most = len(game.kinds), max(sum(row) for row in counts) if agents is None else agents
    for row in counts:
        told = "x".join(map(str, row))
        if len(row) != kinds:
            raise UsageError(f"{name}: population {told} needs numbers of: {' x '.join(game.kinds)}")
        if min(row) < 1:
            raise UsageError(f"{name}: population {told} leaves out a kind of agents; have at least 1 of each")
        if sum(row) < FEWEST:
            raise UsageError(f"{name}: population {told} has nobody to relate to; have at least {FEWEST} agents")
        if sum(row) > most:
            raise UsageError(f"{name}: population {told} is above the padded maximum of {most} agents; raise that")
    if len({tuple(row) for row in counts}) < len(counts):
        raise UsageError(f"{name}: a population is there twice; name each of them once")

    def begin(key: Key, params: Games) -> tuple[State, jax.Array]:
        state = reset(key, params, game, most)
        return state, flat(state.scene)

    def go_on(key: Key, state: State, action: jax.Array, params: Games) -> tuple[State, TimeStep]:
        return step(key, state, action, game)

    landmarks = len(game.sizes)
    spec = Spec(6 * most + 3 * landmarks, ACTIONS * most)
    games = Games(jnp.asarray(counts, jnp.int32).reshape(-1, kinds))
    view = partial(unflat, landmarks=landmarks)
    return Env(name, spec, HORIZON, games, begin, go_on, view)
