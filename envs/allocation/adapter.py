"""Allocation environments behind the contract of `envs.core.Env`: a flat observation, a flat action in [-1, 1].

Observation: slots (T * d), entities (N * d), pair costs (T * N, Electric only), free (N), open (T), and the masks of
real entities (N) and slots (T). Action: a score for each slot and entity (T * N). A free entity joins the open slot of
its highest score if that is above 0; by the published rules any entity joins every slot of a score above 0.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from envs.allocation.core import AllocationEnv, Problem, legal, to_allocation
from envs.core import Env, EnvParams, EnvState, Key, Spec, TimeStep


@dataclass(frozen=True)
class Layout:
    """How a Problem lies in a flat observation."""

    entities: int  # N
    slots: int  # T
    entity_width: int
    slot_width: int
    demands: int  # m; columns 1..m of both rows
    pair_costs: bool  # whether costs differ between slots; else they are column 0 of the entities

    @property
    def obs_dim(self) -> int:
        """Length of the observation."""
        rows = self.slots * self.slot_width + self.entities * self.entity_width
        return rows + self.pair_costs * self.slots * self.entities + 2 * (self.entities + self.slots)

    @property
    def action_dim(self) -> int:
        """Length of the action."""
        return self.slots * self.entities


def layout_of(problem: Problem, pair_costs: bool) -> Layout:
    """The layout of a problem by its shapes."""
    (entities, entity_width), (slots, slot_width) = problem.entities.shape[-2:], problem.slots.shape[-2:]
    return Layout(entities, slots, entity_width, slot_width, problem.demand.shape[-1], pair_costs)


def flatten(problem: Problem, layout: Layout) -> jax.Array:
    """One problem as an observation (obs_dim,)."""
    costs = [problem.cost.T] if layout.pair_costs else []
    flags = [problem.free, problem.open, problem.entity_mask, problem.slot_mask]
    dtype = problem.slots.dtype
    return jnp.concatenate([x.ravel().astype(dtype) for x in (problem.slots, problem.entities, *costs, *flags)])


def unflatten(obs: jax.Array, layout: Layout) -> Problem:
    """The problem of an observation (..., obs_dim), with the same leading axes."""
    lead, (n, t) = obs.shape[:-1], (layout.entities, layout.slots)
    rows = [t * layout.slot_width, n * layout.entity_width, t * n if layout.pair_costs else 0, n, t, n]
    slots, entities, cost, *flags = jnp.split(obs, [sum(rows[: i + 1]) for i in range(len(rows))], axis=-1)
    slots = slots.reshape(*lead, t, layout.slot_width)
    entities = entities.reshape(*lead, n, layout.entity_width)
    if layout.pair_costs:
        cost = jnp.swapaxes(cost.reshape(*lead, t, n), -1, -2)
    else:
        cost = jnp.broadcast_to(entities[..., :1], (*lead, n, t))
    wanted = slice(1, 1 + layout.demands)
    free, is_open, entity_mask, slot_mask = (flag > 0 for flag in flags)
    return Problem(
        entities, slots, free, is_open, cost, entities[..., wanted], slots[..., wanted], slots[..., 0],
        entity_mask, slot_mask,
    )  # fmt: skip


def teams_of(scores: jax.Array, problem: Problem) -> jax.Array:
    """Scores (T, N) as legal teams (T, N) bool."""
    scores = jnp.where(problem.open[:, None], scores, -jnp.inf)
    best = jnp.where(jnp.max(scores, axis=0) > 0, jnp.argmax(scores, axis=0), -1)
    return legal(problem, to_allocation(best, len(scores)))


def contract_env(env: AllocationEnv) -> Env:
    """The environment for the runner and the evaluator; `measures` holds the gross reward."""
    example = jax.eval_shape(env.reset, jax.random.key(0), env.params)[1]
    layout = layout_of(example, env.pair_costs)

    def reset(key: Key, params: EnvParams) -> tuple[EnvState, jax.Array]:
        state, problem = env.reset(key, params)
        return state, flatten(problem, layout)

    def step(key: Key, state: EnvState, action: jax.Array, params: EnvParams) -> tuple[EnvState, TimeStep]:
        scores = action.reshape(layout.slots, layout.entities)
        teams = scores > 0 if env.rules.any_teams else teams_of(scores, env.problem(state, params))
        state, outcome = env.step(key, state, teams, params)
        obs = flatten(outcome.problem, layout)
        measures = {"gross": outcome.gross}
        return state, TimeStep(obs, outcome.reward, outcome.terminated, outcome.truncated, measures)

    spec, view = Spec(layout.obs_dim, layout.action_dim), partial(unflatten, layout=layout)
    return Env(env.name, spec, env.horizon, env.params, reset, step, view)
