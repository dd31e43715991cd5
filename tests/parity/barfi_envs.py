"""Environments and features of BARFI: recorded episodes, replayed with recorded draws, against ours in float64."""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import TimeStep
from envs.shaped import cartpole, features, gridworld, mountaincar
from tests.parity.core import EXACT, Arrays, Case, Comparison, Kinds, Rule

CLOSE = Rule(1e-9)
LONG = Rule(1e-6)  # of an unstable system
ALONE = 200  # steps of CartPole that are not put right
GRID_VARIANTS = {"aux_bad": "bad", "aux_good_official": "good", "aux_good_corrected": "good-fixed"}
CAR_VARIANTS = {"aux_bang_scale1": "bang", "aux_velocity_scale10": "velocity"}
POLE_VARIANTS = {
    "aux_bad_m5_p1": "bad", "aux_bad_m1_0": "bad-small", "aux_best2_p5_m1": "good", "aux_best_p1_0": "good-small",
}  # fmt: skip


def _episodes(arrays: Arrays) -> list[str]:
    """Prefixes of the arrays of each episode, in order."""
    numbers = {int(name.split("_")[0].removeprefix("episode")) for name in arrays.children()}
    return [f"episode{number}_" for number in sorted(numbers)]


def _columns(arrays: Arrays, prefix: str, names: tuple[str, ...]) -> np.ndarray:
    """Arrays (T,) side by side: (T, number of names)."""
    return np.stack([arrays[prefix + name] for name in names], axis=-1)


class Replayed(NamedTuple):
    """Every step of an episode; leading axis T."""

    before: Any  # states
    after: Any
    outcome: TimeStep


def _replay(advance: Callable[[Any, Any], tuple[Any, TimeStep]], start: Any, inputs: Any) -> Replayed:
    """The steps that `inputs` lead to from a state."""

    def step(state: Any, x: Any) -> tuple[Any, Replayed]:
        after, outcome = advance(state, x)
        return after, Replayed(state, after, outcome)

    return jax.lax.scan(step, start, inputs)[1]


def _compare_end(comparison: Comparison, arrays: Arrays, prefix: str, outcome: TimeStep) -> None:
    """Reward and end of every step."""
    comparison.add("reward_primary", outcome.reward, arrays[prefix + "reward_primary"], CLOSE)
    comparison.add("done", outcome.terminated | outcome.truncated, arrays[prefix + "done"], EXACT)


def compare_gridworld(case: Case, comparison: Comparison) -> None:
    """Episodes with recorded slips. Inputs are recorded for the whole horizon, outcomes until the episode ends."""
    arrays = case.arrays
    prefixes = _episodes(arrays)
    with jax.enable_x64(True):
        names = ("input_actions", "input_slip", "input_random_action")
        action, *draws = (jnp.stack([arrays[prefix + name] for prefix in prefixes]) for name in names)
        executed = gridworld.execute(action, *draws)
        start = gridworld.State(jnp.asarray(gridworld.START, jnp.float64), jnp.int32(0))
        for name, variant in GRID_VARIANTS.items():
            advance = partial(gridworld.advance, variant=variant)
            every = jax.vmap(partial(_replay, advance, start))(executed)
            for i, prefix in enumerate(prefixes):
                auxiliary = arrays[prefix + name]
                ours = every.outcome.measures["auxiliary"][i, : len(auxiliary)]
                comparison.add(name, ours, auxiliary, CLOSE)
        for i, prefix in enumerate(prefixes):
            obs = _columns(arrays, prefix, ("obs_x", "obs_y"))
            true_next = _columns(arrays, prefix, ("true_next_x", "true_next_y"))
            returned = _columns(arrays, prefix, ("returned_obs_x", "returned_obs_y"))
            steps = jax.tree.map(itemgetter((i, slice(len(obs)))), every)
            comparison.add("action", action[i, : len(obs)], arrays[prefix + "action"], EXACT)
            comparison.add("executed_action", executed[i, : len(obs)], arrays[prefix + "executed_action"], EXACT)
            comparison.add("obs", steps.before.position, obs, CLOSE)
            comparison.add("true_next", steps.after.position, true_next, CLOSE)
            comparison.add("returned_obs", steps.outcome.obs, returned, CLOSE)
            _compare_end(comparison, arrays, prefix, steps.outcome)


def compare_mountaincar(case: Case, comparison: Comparison) -> None:
    """Episodes from the first recorded state on, with recorded actions."""
    arrays = case.arrays
    with jax.enable_x64(True):
        for prefix in _episodes(arrays):
            obs = _columns(arrays, prefix, ("position", "velocity"))
            action = jnp.asarray(arrays[prefix + "action"]).astype(jnp.int32)
            start = mountaincar.State(jnp.asarray(obs[0]), jnp.int32(0))
            for name, variant in CAR_VARIANTS.items():
                params = mountaincar.Params(jnp.float64(mountaincar.default_scale(variant)))
                advance = partial(mountaincar.advance, params=params, variant=variant)
                steps = _replay(advance, start, action)
                comparison.add(name, steps.outcome.measures["auxiliary"], arrays[prefix + name], CLOSE)
            following = _columns(arrays, prefix, ("next_position", "next_velocity"))
            comparison.add("obs", steps.before.obs, obs, CLOSE)
            comparison.add("next_obs", steps.outcome.obs, following, CLOSE)
            _compare_end(comparison, arrays, prefix, steps.outcome)


def _move_pole(params: cartpole.Params, state: cartpole.State, action: jax.Array) -> tuple[cartpole.State, TimeStep]:
    """A step without noise in the auxiliary reward."""
    return cartpole.advance(state, action, jnp.float64(0.0), params)


def _replay_pole(params: cartpole.Params, start: cartpole.State, action: jax.Array) -> Replayed:
    return _replay(partial(_move_pole, params), start, action)


def compare_cartpole(case: Case, comparison: Comparison) -> None:
    """Every recorded step from its recorded state; and the first steps of an episode on their own, from its start.

    With its actions given, the pole is so unstable that a last digit becomes 1e-6 within about 300 steps.
    """
    arrays, names = case.arrays, ("x", "x_dot", "theta", "theta_dot")
    with jax.enable_x64(True):
        variants = [cartpole.VARIANTS[variant] for variant in POLE_VARIANTS.values()]
        every = jax.tree.map(lambda *x: jnp.asarray(x), *variants)
        for prefix in _episodes(arrays):
            obs = _columns(arrays, prefix, names)
            following = _columns(arrays, prefix, tuple(f"next_{name}" for name in names))
            action = jnp.asarray(arrays[prefix + "action"]).astype(jnp.int32)
            last_angle = jnp.concatenate([jnp.zeros(1), obs[:-1, 2]])
            states = cartpole.State(jnp.asarray(obs), last_angle, jnp.arange(len(obs), dtype=jnp.int32))
            start = jax.tree.map(itemgetter(0), states)
            outcome = jax.vmap(jax.vmap(_move_pole, (None, 0, 0)), (0, None, None))(every, states, action)[1]
            alone = jax.vmap(partial(_replay_pole, start=start, action=action[:ALONE]))(every)
            for i, name in enumerate(POLE_VARIANTS):
                auxiliary = arrays[prefix + name]
                comparison.add(name, outcome.measures["auxiliary"][i], auxiliary, CLOSE)
                comparison.add(f"{name}, alone", alone.outcome.measures["auxiliary"][i], auxiliary[:ALONE], CLOSE)
            outcome = jax.tree.map(itemgetter(0), outcome)
            signal, advised = jax.vmap(cartpole.control, (0, None))(states, cartpole.VARIANTS["good"])
            comparison.add("next_obs", outcome.obs, following, CLOSE)
            comparison.add("next_obs, alone", alone.outcome.obs[0], following[:ALONE], LONG)
            comparison.add("pd_signal", signal, arrays[prefix + "pd_signal"], CLOSE)
            comparison.add("pd_action", advised, arrays[prefix + "pd_action"], EXACT)
            _compare_end(comparison, arrays, prefix, outcome)


def compare_features(case: Case, comparison: Comparison) -> None:
    """Tile coding and Fourier features of recorded states."""
    arrays = case.arrays
    with jax.enable_x64(True):
        car = jnp.asarray(arrays["mc_states"])
        for name, scaling in (("mc_tile_indices_official_unscaled", "raw"), ("mc_tile_indices_scaled", "unit")):
            x = features.tiles(car, mountaincar.LOW, mountaincar.HIGH, scaling)
            recorded = np.zeros(x.shape)
            np.put_along_axis(recorded, arrays[name], 1 / features.TILINGS, axis=-1)
            comparison.add(name, x, recorded, EXACT)
        for task, module in (("grid", gridworld), ("cartpole", cartpole)):
            x = features.fourier(jnp.asarray(arrays[f"{task}_states"]), module.LOW, module.HIGH)
            comparison.add(f"{task}_fourier_order3", x, arrays[f"{task}_fourier_order3"], CLOSE)


KINDS: Kinds = {
    "env_gridworld": compare_gridworld,
    "env_mountaincar": compare_mountaincar,
    "env_cartpole": compare_cartpole,
    "features": compare_features,
}
