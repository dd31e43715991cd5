"""MinAtar (Young and Tian, arXiv 1903.03176) through gymnax: games on 10x10 boards, with a channel per kind of thing.

Actions are vectors of which the largest entry is executed.
"""

import difflib

import jax
import jax.numpy as jnp

from envs.core import Env, EnvParams, EnvState, Key, Spec, TimeStep, UsageError

GAMES = {
    "minatar-asterix": "Asterix-MinAtar",
    "minatar-breakout": "Breakout-MinAtar",
    "minatar-freeway": "Freeway-MinAtar",
    "minatar-seaquest": "Seaquest-MinAtar",
    "minatar-spaceinvaders": "SpaceInvaders-MinAtar",
}
NAMES = tuple(GAMES)


def is_name(name: str) -> bool:
    """Whether the name is meant for a game here; whether there is such a game is for `make` to say."""
    return name.startswith("minatar-")


def make(name: str) -> Env:
    """The game `name`, one of NAMES, with gymnax's parameters and time limit.

    Observation (100 * channels,): the board, flattened, 1 where a thing is and else 0, float32; `Env.view` gives
    (..., 10, 10, channels). Action (actions,): the largest entry is executed.
    Raises UsageError for a name that is not known.
    """
    if name not in GAMES:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.0)[0]
        raise UsageError(f"MinAtar game {name!r} is not known; did you mean {near!r}?")
    import gymnax  # only here: it takes seconds

    game, params = gymnax.make(GAMES[name])
    board = game.observation_space(params).shape
    actions = game.action_space(params).n

    def view(obs: jax.Array) -> jax.Array:
        return obs.reshape(*obs.shape[:-1], *board)

    def reset(key: Key, params: EnvParams) -> tuple[EnvState, jax.Array]:
        obs, state = game.reset_env(key, params)
        return jax.tree.map(jnp.asarray, state), _flat(obs)

    def step(key: Key, state: EnvState, action: jax.Array, params: EnvParams) -> tuple[EnvState, TimeStep]:
        # `step_env`, unlike `step`, does not reset at the end and knows nothing of the time limit.
        obs, state, reward, terminated, _ = game.step_env(key, state, jnp.argmax(action), params)
        reward = jnp.asarray(reward, jnp.float32).reshape(())
        return state, TimeStep(_flat(obs), reward, jnp.asarray(terminated), game.is_truncated(state, params))

    spec = Spec(board[0] * board[1] * board[2], actions)
    return Env(name, spec, int(params.max_steps_in_episode), jax.tree.map(jnp.asarray, params), reset, step, view)


def _flat(obs: jax.Array) -> jax.Array:
    return obs.astype(jnp.float32).reshape(-1)
