"""Task allocation: what a decision looks like, what a step answers, what instances have in common.

N entities and T task slots are padded maxima; masks tell the real ones. A row of an entity is (cost, capabilities,
...), that of a slot (reward, demands, ...); an empty slot is a row of zeros. A task pays its reward once the summed
capabilities of its team reach every demand. The environments are those of Gong et al., "A Two-stage Reinforcement
Learning-based Approach for Multi-entity Task Allocation" (arXiv 2407.00496).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.core import EnvParams, EnvState, Key

REFILL_PERIOD = 5  # steps between two refills of empty slots from the queue


@dataclass(frozen=True)
class Rules:
    """Which surprises of the published environments are kept. The defaults keep all, for comparisons.

    (A third one, decay in Material, is a number of its instances: `decay`, 1 in the published environment.)
    """

    reopen_on_decay: bool = True  # a task that loses value counts as new: its travelling team is dropped
    # Electric: tasks lie at doubled coordinates, which decay, too, and release whichever node shares most
    # coordinates with them; a slot's number decides about its coefficient; slot 2 is never filled again.
    electric_quirks: bool = True
    # Teams are taken as they are, though an entity be busy or in two of them. (Checked by `adapter.contract_env`.)
    any_teams: bool = True


OFFICIAL = Rules()
RECOMMENDED = Rules(reopen_on_decay=False, electric_quirks=False, any_teams=False)


class Problem(NamedTuple):
    """The myopic problem of one decision: which free entities are to serve which open slots."""

    entities: jax.Array  # (N, d) rows as they are now
    slots: jax.Array  # (T, d)
    free: jax.Array  # (N,) bool; neither padding nor busy
    open: jax.Array  # (T,) bool; holds a task for which no team is under way
    cost: jax.Array  # (N, T) what entity i costs in slot j
    capability: jax.Array  # (N, m)
    demand: jax.Array  # (T, m)
    reward: jax.Array  # (T,)
    entity_mask: jax.Array  # (N,) bool; False for padding
    slot_mask: jax.Array  # (T,) bool


class Outcome(NamedTuple):
    """What a step answers besides the new state."""

    problem: Problem  # of the next decision
    reward: jax.Array  # () profit: rewards of completed tasks minus the costs of those who worked
    gross: jax.Array  # () rewards of completed tasks
    terminated: jax.Array  # () bool; no task is left
    truncated: jax.Array  # () bool; the time limit was reached


class Tables(NamedTuple):
    """What instances of all four environments consist of; a pytree, so that many of a size can be vmapped."""

    entities: jax.Array  # (N, d)
    entity_mask: jax.Array  # (N,) bool
    slot_mask: jax.Array  # (T,) bool
    queue: jax.Array  # (Q, d) tasks in order of arrival; the first ones fill the slots at the start
    queue_length: jax.Array  # () int32; rows of `queue` behind it are padding
    decay: jax.Array  # () factor on tasks that wait too long, each step
    horizon: jax.Array  # () int32, steps


@dataclass(frozen=True)
class AllocationEnv:
    """An environment whose observation is a Problem and whose action is a set of teams.

        reset: (key, params) -> (state, Problem)
        step:  (key, state, allocation (T, N), params) -> (state, Outcome)

    `allocation` is nonzero where the entity joins the slot's team. Slots with a team under way keep it whatever the
    allocation says. Nothing else is checked, as in the published environments: see `legal`.
    """

    name: str
    horizon: int
    params: EnvParams
    reset: Callable[[Key, EnvParams], tuple[EnvState, Problem]]
    step: Callable[[Key, EnvState, jax.Array, EnvParams], tuple[EnvState, Outcome]]
    problem: Callable[[EnvState, EnvParams], Problem]  # what `reset` and `step` answer, for any state
    kind: str  # rbf, material, electric, almighty
    rules: Rules

    @property
    def pair_costs(self) -> bool:
        """Whether what an entity costs depends on the slot."""
        return self.kind == "electric"


def to_allocation(assignment: jax.Array, slots: int) -> jax.Array:
    """Each entity's slot, -1 for none, (..., N) int -> teams (..., slots, N) bool."""
    return assignment[..., None, :] == jnp.arange(slots)[:, None]


def to_assignment(allocation: jax.Array) -> jax.Array:
    """Teams (..., T, N) -> each entity's slot (..., N) int32, -1 for none; the last slot of several."""
    slot = jnp.arange(allocation.shape[-2], dtype=jnp.int32)[:, None]
    return jnp.max(jnp.where(allocation != 0, slot, -1), axis=-2)


def legal(problem: Problem, allocation: jax.Array) -> jax.Array:
    """Teams (T, N) without busy entities, closed slots and second jobs: of several slots the last one stays."""
    allowed = (allocation != 0) & problem.open[:, None] & problem.free
    return to_allocation(to_assignment(allowed), problem.open.shape[0])
