"""Particle games in the interfaces of JaxMARL and PettingZoo: dictionaries of agents, a fixed population.

Each agent observes its row of `core.flatten`. Actions are numbers 0..4 (none, +x, -x, +y, -y) or vectors of 5 weights.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from envs import particles
from envs.core import Env, Key, TimeStep, UsageError, autoreset
from envs.particles.core import ACTIONS, flatten
from envs.particles.game import State
from envs.particles.render import draw

Named = dict[str, Any]  # by agent


class _Agents:
    """The agents of an environment: how their dictionaries and arrays turn into each other."""

    def __init__(self, env: Env | str):
        self.env = particles.make(env) if isinstance(env, str) else env
        games, total = self.env.params.counts, self.env.spec.action_dim // ACTIONS
        if len(games) != 1 or int(games.sum()) != total:
            raise UsageError(f"{self.env.name}: dictionaries of agents need one population without padding: resource-3")
        self.kinds = games.shape[1]
        self.names = [f"agent_{i}" for i in range(total)]
        state = jax.eval_shape(self.env.reset, jax.random.key(0), self.env.params)[0]
        self.width = jax.eval_shape(self.observations, state)[self.names[0]].shape[0]

    def observations(self, state: State) -> Named:
        """What every agent sees."""
        return self.named(flatten(state.scene, len(self.names), self.kinds))

    def named(self, values: Any) -> Named:
        """Rows of an array, by agent."""
        return {name: values[i] for i, name in enumerate(self.names)}

    def flat_action(self, actions: Mapping[str, Any]) -> jax.Array:
        """Numbers () or weights (5,) of every agent as one action (n * 5,)."""
        if odd := sorted(set(actions) ^ set(self.names)):
            raise UsageError(f"{self.env.name}: actions need {self.names[0]} to {self.names[-1]}, see {odd[0]!r}")
        return jnp.concatenate([_weights(jnp.asarray(actions[name])) for name in self.names])


def _weights(action: jax.Array) -> jax.Array:
    if action.shape not in ((), (ACTIONS,)):
        raise UsageError(f"an action has shape {action.shape}; give a number 0..{ACTIONS - 1} or {ACTIONS} weights")
    return action if action.shape else jax.nn.one_hot(action, ACTIONS)


class JaxMARLEnv:
    """A game in JaxMARL's interface: pure methods, dictionaries of arrays.

    Raises UsageError for a game of several populations or with padding.
    """

    def __init__(self, env: Env | str):
        self._agents = _Agents(env)
        self._env = self._agents.env
        self.name = self._env.name
        self.agents = list(self._agents.names)
        self.num_agents = len(self.agents)

    def reset(self, key: Key) -> tuple[Named, State]:
        """Observations by agent, state."""
        state, _ = self._env.reset(key, self._env.params)
        return self._agents.observations(state), state

    def step(self, key: Key, state: State, actions: Named) -> tuple[Named, State, Named, Named, Named]:
        """As `step_env`; where the episode is over, state and observations are those of the next one."""
        state, _, outcome = autoreset(self._env, key, state, self._agents.flat_action(actions), self._env.params)
        return self._answer(state, outcome)

    def step_env(self, key: Key, state: State, actions: Named) -> tuple[Named, State, Named, Named, Named]:
        """Observations, state, rewards, dones, infos. `dones` has `__all__`, too; infos are the measures, (n,) each."""
        return self._answer(*self._env.step(key, state, self._agents.flat_action(actions), self._env.params))

    def observation_space(self, agent: str) -> Any:
        """A space of gymnax, after which JaxMARL's are made."""
        from gymnax.environments import spaces  # only here: it takes seconds

        return spaces.Box(-np.inf, np.inf, (self._agents.width,), jnp.float32)

    def action_space(self, agent: str) -> Any:
        """A space of gymnax, after which JaxMARL's are made."""
        from gymnax.environments import spaces

        return spaces.Discrete(ACTIONS)

    def get_avail_actions(self, state: State) -> Named:
        """Every action of every agent, always."""
        return {name: jnp.ones(ACTIONS) for name in self.agents}

    def _answer(self, state: State, outcome: TimeStep) -> tuple[Named, State, Named, Named, Named]:
        done = outcome.terminated | outcome.truncated
        dones = dict.fromkeys((*self.agents, "__all__"), done)
        infos = {name: jnp.broadcast_to(value, self.num_agents) for name, value in outcome.measures.items()}
        return self._agents.observations(state), state, self._agents.named(outcome.rewards), dones, infos


class PettingZooEnv:
    """A game in PettingZoo's parallel interface: NumPy arrays, the state inside, no automatic reset.

    Raises UsageError for a game of several populations or with padding.
    """

    def __init__(self, env: Env | str):
        self._agents = agents = _Agents(env)
        self._env = agents.env
        self.metadata = {"name": self._env.name, "render_modes": ["rgb_array"], "is_parallelizable": True}
        self.render_mode = "rgb_array"
        self.possible_agents = list(agents.names)
        self.agents: list[str] = []
        box: gymnasium.spaces.Space = gymnasium.spaces.Box(-np.inf, np.inf, (agents.width,), np.float32)
        self.observation_spaces = dict.fromkeys(agents.names, box)
        numbers: list[gymnasium.spaces.Space] = [gymnasium.spaces.Discrete(ACTIONS) for _ in agents.names]
        self.action_spaces = agents.named(numbers)
        self._key: Any = None
        self._state: State | None = None

        @jax.jit
        def start(key: Key) -> tuple[State, Named]:
            state, _ = self._env.reset(key, self._env.params)
            return state, agents.observations(state)

        @jax.jit
        def advance(key: Key, state: State, actions: Named) -> tuple[State, Named, TimeStep]:
            state, outcome = self._env.step(key, state, agents.flat_action(actions), self._env.params)
            return state, agents.observations(state), outcome

        self._start, self._advance = start, advance

    @property
    def num_agents(self) -> int:
        """Agents of the running episode; 0 when it is over."""
        return len(self.agents)

    @property
    def max_num_agents(self) -> int:
        """Agents of every episode."""
        return len(self.possible_agents)

    @property
    def unwrapped(self) -> "PettingZooEnv":
        """Itself."""
        return self

    def observation_space(self, agent: str) -> gymnasium.spaces.Space:
        """The same object for an agent each time."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.spaces.Space:
        """The same object for an agent each time."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Named, Named]:
        """Observations, infos. Without a seed the stream of the last one goes on, or a random one starts."""
        if seed is None and self._key is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        if seed is not None:
            self._key = jax.random.key(seed)
        self.agents = list(self.possible_agents)
        self._state, observations = self._start(self._next_key())
        return jax.device_get(observations), {name: {} for name in self.agents}

    def step(self, actions: Mapping[str, Any]) -> tuple[Named, Named, Named, Named, Named]:
        """Observations, rewards, terminations, truncations, infos (the measures).

        Raises UsageError before `reset`, after the end, and for actions that are missing or none.
        """
        if not self.agents:
            raise UsageError(f"{self._env.name}: no episode is running; call reset")
        for name, action in actions.items():
            if np.ndim(action) == 0 and not 0 <= action < ACTIONS:
                raise UsageError(f"{name}: {action} is no action; give a number 0..{ACTIONS - 1}")
        answer = self._advance(self._next_key(), self._state, dict(actions))
        self._state, (observations, outcome) = answer[0], jax.device_get(answer[1:])
        measures = {name: float(value) for name, value in outcome.measures.items()}
        rewards = {name: float(reward) for name, reward in zip(self.agents, outcome.rewards)}
        terminations = {name: bool(outcome.terminated) for name in self.agents}
        truncations = {name: bool(outcome.truncated) for name in self.agents}
        infos = {name: dict(measures) for name in self.agents}
        if outcome.terminated or outcome.truncated:
            self.agents = []
        return observations, rewards, terminations, truncations, infos

    def render(self) -> np.ndarray:
        """A picture (height, width, 3) uint8. Raises UsageError before `reset`."""
        if self._state is None:
            raise UsageError(f"{self._env.name}: there is nothing to draw yet; call reset")
        return draw(particles.game_of(self._env.name), self._state.scene)

    def close(self) -> None:
        """Nothing is held open."""

    def _next_key(self) -> Key:
        self._key, key = jax.random.split(self._key)
        return key
