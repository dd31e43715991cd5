"""Problems of one allocation decision for tests. Shared by the tests of solvers on the device and on the host."""

import jax
import jax.numpy as jnp
import numpy as np

from envs.allocation import almighty
from envs.allocation.core import Problem
from envs.allocation.instances import almighty_instance, read_table


def problem(cost, capability, reward, demand, free=None, open_slots=None):
    """Costs (N,) or (N, T), capabilities (N, m), rewards (T,), demands (T, m); everybody free and everything open."""
    capability, reward, demand = (jnp.asarray(x, jnp.float32) for x in (capability, reward, demand))
    cost = jnp.asarray(cost, jnp.float32)
    entities, slots = len(capability), len(demand)
    pairs = cost if cost.ndim == 2 else jnp.repeat(cost[:, None], slots, axis=1)
    everybody, everything = np.ones(entities, bool), np.ones(slots, bool)
    return Problem(
        entities=jnp.concatenate([pairs[:, :1], capability], axis=1),
        slots=jnp.concatenate([reward[:, None], demand], axis=1),
        free=jnp.asarray(everybody if free is None else free, bool),
        open=jnp.asarray(everything if open_slots is None else open_slots, bool),
        cost=pairs,
        capability=capability,
        demand=demand,
        reward=reward,
        entity_mask=jnp.asarray(everybody),
        slot_mask=jnp.asarray(everything),
    )


def random_problem(rng, entities=6, slots=3, dims=2):
    """Some busy entities and closed slots; costs by pair in eighths, so that every sum is exact in float32."""
    return problem(
        cost=rng.integers(1, 17, (entities, slots)) / 8,
        capability=rng.integers(0, 6, (entities, dims)),
        reward=rng.integers(2, 9, slots),
        demand=np.maximum(rng.integers(0, 8, (slots, dims)), np.eye(slots, dims)),
        free=rng.random(entities) < 0.8,
        open_slots=rng.random(slots) < 0.8,
    )


def singles_problem(rng, entities=6, slots=3, dims=3):
    """One skill is asked for by each slot, so that larger teams than one never pay."""
    cost, reward = rng.integers(1, 17, (entities, slots)) / 8, rng.integers(1, 4, slots)
    demand = np.eye(dims)[rng.integers(0, dims, slots)]
    return problem(cost, rng.integers(0, 2, (entities, dims)), reward, demand, free=rng.random(entities) < 0.8)


def stack(problems):
    """Problems of one size as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)


def almighty_problem():
    """The published instance: 25 entities, 9 slots, optimum 35."""
    instance = almighty_instance(read_table("almighty_entities"), read_table("almighty_tasks"))
    return almighty.reset(jax.random.key(0), instance)[1]


def small_almighty():
    """Almighty with three skills, two specialists of each: 7 entities, 4 slots, optimum 3 (3 - 1) + (20 - 1) = 25."""
    skills = np.eye(3)
    capability = np.concatenate([skills, skills, np.ones((1, 3))])
    return problem(np.ones(7), capability, [3, 3, 3, 20], np.concatenate([skills, np.ones((1, 3))]))
