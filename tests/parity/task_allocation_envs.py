"""Task allocation environments: recorded episodes, one-step cases and decoded moves against ours, in float64."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.allocation import almighty, electric, instances, material, rbf
from envs.allocation.core import OFFICIAL
from envs.allocation.grid import approach, encode, from_codes, move
from tests.parity.core import EXACT, Arrays, Case, Comparison, Kinds, Rule

CLOSE = Rule(1e-14)  # sums of costs in another order


def compare_rbf(case: Case, comparison: Comparison) -> None:
    """An episode of RBF, played with recorded teams or, where there are none, with recorded move codes."""
    arrays = case.arrays
    queue = np.hstack([arrays["tables.task_queue"], arrays["tables.task_pos_queue"]])
    with jax.enable_x64(True):
        instance = instances.rbf_instance(
            arrays["tables.entity_table"], queue, arrays["task"].shape[1], side=int(arrays["tables.map_size"])
        )
        states, outcome = _play(rbf, instance, arrays, diagonal=False)
        comparison.add("task_pos", np.swapaxes(states.cells, 1, 2), arrays["task_pos"], EXACT)
        _compare_grid(rbf, instance, states, outcome, arrays, comparison)


def compare_material(case: Case, comparison: Comparison) -> None:
    """The same of Material."""
    arrays = case.arrays
    with jax.enable_x64(True):
        instance = instances.material_instance(
            arrays["tables.entity_table"], arrays["tables.task_queue"], arrays["task"].shape[1],
            side=int(arrays["tables.map_size"]),
        )  # fmt: skip
        states, outcome = _play(material, instance, arrays, diagonal=True)
        comparison.add("task_pos", states.board.slots[..., 4:], arrays["task_pos"], EXACT)
        _compare_grid(material, instance, states, outcome, arrays, comparison)


def compare_electric(case: Case, comparison: Comparison) -> None:
    """An episode of Electric."""
    arrays = case.arrays
    kappa = arrays["tables.convey_cost"]
    nodes = np.hstack([arrays["tables.node_table"], kappa[:, None]])
    with jax.enable_x64(True):
        instance = instances.electric_instance(nodes, arrays["tables.node_queue"], arrays["task"].shape[1])
        states, outcome = _play(electric, instance, arrays, diagonal=False)
        tail = np.broadcast_to(kappa, (len(arrays["state"]), len(kappa)))
        _compare_episode(electric, instance, states, outcome, arrays, comparison, tail)


def compare_almighty(case: Case, comparison: Comparison) -> None:
    """Independent decisions on the published instance, which is that of our tables."""
    arrays = case.arrays
    read = instances.read_table
    with jax.enable_x64(True):
        instance = instances.almighty_instance(read("almighty_entities"), read("almighty_tasks"))
        state, problem = almighty.reset(jax.random.key(0), instance)
        start = [x.ravel() for x in (problem.slots, problem.entities, problem.free)]
        comparison.add("state0", np.concatenate(start), arrays["state0"], EXACT)
        decide = jax.vmap(partial(almighty.step, jax.random.key(0), state), in_axes=(0, None))
        after, outcome = decide(jnp.asarray(arrays["allocation"]), instance)
        comparison.add("return", outcome.reward, arrays["return"], EXACT)
        comparison.add("task_after", after.board.slots, arrays["task_after"], EXACT)
        comparison.add("entity_available_after", after.board.free, arrays["entity_available_after"], EXACT)


def compare_moves(case: Case, comparison: Comparison) -> None:
    """Teams as move codes."""
    arrays = case.arrays
    for name, diagonal in (("rbf", False), ("material", True)):
        teams, position, cells = (arrays[f"{name}.{part}"] for part in ("allocation", "entity_pos", "task_pos"))
        motion = jax.vmap(partial(approach, diagonal=diagonal))(
            jnp.asarray(teams != 0), jnp.asarray(np.swapaxes(position, 1, 2)), jnp.asarray(np.swapaxes(cells, 1, 2))
        )
        codes = jax.vmap(partial(encode, diagonal=diagonal))(motion)
        comparison.add(f"{name}.action", codes, arrays[f"{name}.action"], EXACT)


def _play(module: Any, instance: Any, arrays: Arrays, diagonal: bool) -> tuple[Any, Any]:
    """States (S + 1, ...) and outcomes (S, ...) of the recorded actions, all NumPy."""
    key = jax.random.key(0)
    teams = arrays["allocation"] != 0
    coded = "action" in arrays and not teams.any()
    codes = jnp.asarray(arrays["action"] if "action" in arrays else np.zeros(len(teams)), jnp.int32)

    def advance(state: Any, action: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        team, code = action
        if coded:
            after, outcome = module.advance(state, team, from_codes(code, diagonal), instance, OFFICIAL)
        else:
            after, outcome = module.step(key, state, team, instance, OFFICIAL)
        return after, (after, outcome)

    begin = module.reset(key, instance)[0]
    _, (states, outcome) = jax.jit(partial(jax.lax.scan, advance))(begin, (jnp.asarray(teams), codes))
    states = jax.tree.map(lambda first, rest: np.concatenate([first[None], rest]), begin, states)
    return states, jax.device_get(outcome)


def _compare_grid(
    module: Any, instance: Any, states: Any, outcome: Any, arrays: Arrays, comparison: Comparison
) -> None:
    comparison.add("agent_pos", np.swapaxes(states.position, 1, 2), arrays["agent_pos"], EXACT)
    diagonal, codes = module is material, jnp.asarray(arrays["action"], jnp.int32)
    motion = jax.vmap(partial(from_codes, diagonal=diagonal))(codes)
    moved = jax.vmap(partial(move, side=instance.side))(jnp.asarray(states.position[:-1]), motion)
    comparison.add("agent_pos by action", np.swapaxes(moved, 1, 2), arrays["agent_pos"][1:], EXACT)
    _compare_episode(module, instance, states, outcome, arrays, comparison, np.zeros((len(states.board.t), 0)))


def _compare_episode(
    module: Any, instance: Any, states: Any, outcome: Any, arrays: Arrays, comparison: Comparison, tail: np.ndarray
) -> None:
    """What all three record. `tail` is what the flat state holds behind availability."""
    problems = jax.vmap(module.problem, in_axes=(0, None))(states, instance)
    parts = (problems.slots, problems.entities, states.board.free)
    flat = [np.asarray(x, np.float64).reshape(len(tail), -1) for x in parts]
    comparison.add("state", np.hstack([*flat, tail]), arrays["state"], CLOSE)
    for name, ours in zip(("task", "entity", "entity_available"), parts):
        comparison.add(name, ours, arrays[name], CLOSE)
    comparison.add("fresh", states.board.age, arrays["fresh"], EXACT)
    left = instance.tables.queue_length - states.board.head
    comparison.add("queue_len", left, arrays["queue_len"], EXACT)
    comparison.add("done", outcome.terminated | outcome.truncated, arrays["done"], EXACT)
    for quantity, total, ours in (
        ("reward", "return", outcome.reward),
        ("total_reward", "total_return", outcome.gross),
    ):
        comparison.add(quantity, ours, arrays[quantity], CLOSE)
        comparison.add(total, ours.sum(), arrays[total], CLOSE)
    comparison.add("avail_task", states.board.open[:-1], arrays["avail_task"], EXACT)


KINDS: Kinds = {
    "env_rbf": compare_rbf,
    "env_material": compare_material,
    "env_electric": compare_electric,
    "env_almighty": compare_almighty,
    "move_decoding": compare_moves,
}
