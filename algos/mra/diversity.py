"""How much the skills of a learner differ, on given scenes."""

import jax
import jax.numpy as jnp

from algos.core import Key, Metrics
from algos.mra.learn import Learner, draw_meta
from algos.mra.objectives import Batch, Networks, relation_loss
from algos.mra.observe import Observation
from algos.mra.settings import Static

DRAWS = 16  # of skills for all scenes at once


def skill_differences(key: Key, learner: Learner, obs: Observation, log_probs: jax.Array, static: Static) -> Metrics:
    """Measures () on observations with one leading axis B, all of one game, in which skills have log_probs (Z,).

    `action_distance` and `graph_distance` are total variation distances in [0, 1] between what an agent would do, or
    whom it would look at, under two different skills: means over scenes and agents. `relation_reward` is what relation
    steps maximise, a sum over agents: how much likelier actions are under the agents' own skills than under others.
    """
    zeros = jnp.zeros(obs.mask.shape)
    batch = Batch(obs, zeros.astype(jnp.int32), zeros, obs, zeros[:, 0], jnp.int32(0))
    networks = Networks(learner.policy, learner.policy)

    def measure(key: Key) -> Metrics:
        draws = draw_meta(key, batch, static).relation
        return relation_loss(learner.relation_net, networks, obs, log_probs, draws, static)[1]

    return jax.tree.map(lambda x: x.mean(0), jax.lax.map(measure, jax.random.split(key, DRAWS)))
