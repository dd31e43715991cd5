"""Resource occupation: six landmarks of different size, whose worth is split among the agents inside.

The environment of "Learning Meta Representations for Agents in Multi-Agent Reinforcement Learning" (arXiv 2108.12988).
"""

import jax
import jax.numpy as jnp

from envs.core import Key
from envs.particles.core import Dynamics, Scene, inside, split_equally
from envs.particles.game import Game, Settled

SIZES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
WORTH = 10.0  # per unit of size, each step


def rewards(scene: Scene, dynamics: Dynamics) -> jax.Array:
    """What each agent earns (N,): of every landmark it is inside, 10 size / number of agents inside.

    Their sum is 10 times the summed size of occupied landmarks, at most 10.5.
    """
    return split_equally(inside(scene, dynamics), WORTH * scene.size)


def settle(key: Key, scene: Scene, dynamics: Dynamics) -> Settled:
    """Rewards after the motion. `occupied` is the occupied share of all sizes, in [0, 1]."""
    taken = jnp.any(inside(scene, dynamics), axis=0)
    occupied = jnp.sum(jnp.where(taken, scene.size, 0.0)) / jnp.sum(scene.size)
    return scene, rewards(scene, dynamics), {"occupied": occupied}


GAME = Game("resource", ("agents",), Dynamics(), SIZES, 1.0, settle)
