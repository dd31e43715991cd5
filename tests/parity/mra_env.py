"""Resource occupation: every recorded step from the recorded state before it, in float64 and in float32."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import TimeStep
from envs.particles import resource
from envs.particles.core import ACTIONS, Scene, contact_force, control_force, flatten, inside
from envs.particles.game import State, step
from tests.parity.core import EXACT, Arrays, Case, Comparison, Rule

CLOSE = Rule(1e-9)
SINGLE, SINGLE_CONTACT = Rule(1e-5), Rule(1e-3)  # float32 without and with contact, whose force is steep
TOUCH = 0.12  # distance of two agents from which on they push each other by less than 1e-6


class Replayed(NamedTuple):
    """What our functions give for each recorded step; leading axis T."""

    control: jax.Array  # (T, n, 2) at the state before the step
    contact: jax.Array  # (T, n, 2)
    scene: Scene  # after the step
    outcome: TimeStep
    on_landmark: jax.Array  # (T, n, L)
    observations: jax.Array  # (T, n, 22 n)


@jax.jit
def _replay(before: Scene, actions: jax.Array) -> Replayed:
    """Each step on its own, from scenes with a leading axis T."""

    def one(scene: Scene, action: jax.Array) -> Replayed:
        dynamics = resource.GAME.dynamics
        forces = control_force(scene, action, dynamics), contact_force(scene, dynamics)
        state, outcome = step(jax.random.key(0), State(scene, jnp.int32(0)), action.ravel(), resource.GAME)
        seen = flatten(state.scene, len(action))
        return Replayed(*forces, state.scene, outcome, inside(state.scene, dynamics), seen)

    return jax.vmap(one)(before, actions)


def _before(arrays: Arrays, prefix: str) -> Scene:
    """The recorded states before each step, in float64."""
    position, velocity = (
        np.concatenate([arrays[f"{prefix}initial_{name}"][None], arrays[prefix + name][:-1]])
        for name in ("positions", "velocities")
    )
    steps, agents = position.shape[:2]
    fixed = arrays[prefix + "landmark_positions"], arrays[prefix + "landmark_sizes"]
    landmark, size = (np.broadcast_to(x, (steps, *x.shape)) for x in fixed)
    mask = np.ones((steps, agents))
    return Scene(*map(jnp.asarray, (position, velocity, landmark, size, mask, 0 * mask)))


def _touching(position: np.ndarray) -> np.ndarray:
    """Which steps (T,) begin with two agents close to each other, positions (T, n, 2)."""
    gap = np.linalg.norm(position[:, :, None] - position[:, None], axis=-1)
    return (gap + 9.0 * np.eye(position.shape[1]) < TOUCH).any(axis=(1, 2))


def _moved(ours: Replayed, arrays: Arrays, prefix: str) -> Iterator[tuple[str, Any, np.ndarray]]:
    """What follows from the forces: name, ours, recorded."""
    yield "positions", ours.scene.position, arrays[prefix + "positions"]
    yield "velocities", ours.scene.velocity, arrays[prefix + "velocities"]
    yield "observations", ours.observations, arrays[prefix + "observations"]


def _compare_episode(arrays: Arrays, prefix: str, comparison: Comparison) -> None:
    before, actions = _before(arrays, prefix), arrays[prefix + "actions"]
    ours = _replay(before, jnp.asarray(actions))
    start = jax.tree.map(lambda x: x[0], before)
    first = flatten(start, actions.shape[1])
    comparison.add("initial_observations", first, arrays[prefix + "initial_observations"], CLOSE)
    comparison.add("control_force", ours.control, arrays[prefix + "control_force"], CLOSE)
    comparison.add("contact_force", ours.contact, arrays[prefix + "contact_force"], CLOSE)
    for name, x, recorded in _moved(ours, arrays, prefix):
        comparison.add(name, x, recorded, CLOSE)
    comparison.add("on_landmark", ours.on_landmark, arrays[prefix + "on_landmark"], EXACT)
    comparison.add("rewards", ours.outcome.rewards, arrays[prefix + "rewards"], CLOSE)
    dones = np.broadcast_to(np.asarray(ours.outcome.terminated)[:, None], actions.shape[:2])
    comparison.add("dones", dones, arrays[prefix + "dones"], EXACT)
    if prefix + "action_indices" in arrays:
        one_hot = np.eye(ACTIONS)[arrays[prefix + "action_indices"]]
        comparison.add("actions", one_hot, actions, EXACT)

    single = jax.tree.map(lambda x: x.astype(jnp.float32), (before, jnp.asarray(actions)))
    touching = _touching(np.asarray(before.position))
    for name, x, recorded in _moved(_replay(*single), arrays, prefix):
        for told, chosen, rule in (("float32", ~touching, SINGLE), ("float32, contact", touching, SINGLE_CONTACT)):
            if chosen.any():
                comparison.add(f"{name}, {told}", np.asarray(x)[chosen], recorded[chosen], rule)


def check(case: Case, comparison: Comparison) -> None:
    """Every episode of a file."""
    with jax.enable_x64(True):
        for name in case.arrays.children():
            _compare_episode(case.arrays, f"{name}/", comparison)
