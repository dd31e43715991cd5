"""Treasure collection: six treasures that appear elsewhere once they are taken.

arXiv 2108.12988 names this environment without its numbers. These are ours, after the cooperative treasure
collection of MAAC (arXiv 1810.02912): what a treasure is worth, the shaping, where treasures appear.
"""

import jax.numpy as jnp

from envs.core import Key
from envs.particles.core import Dynamics, Scene, distance, inside, split_equally
from envs.particles.game import Game, Settled, uniform

WORTH = 5.0  # of a treasure, split among those who touch it
SHAPING = 0.1  # per unit of distance from the nearest treasure
SPREAD = 0.95


def settle(key: Key, scene: Scene, dynamics: Dynamics) -> Settled:
    """Treasures that agents touch are paid for and replaced; shaping goes by where treasures were before.

    `taken` is the number of treasures.
    """
    touched = inside(scene, dynamics)
    taken = jnp.any(touched, axis=0)
    nearest = jnp.min(distance(scene.position, scene.landmark), axis=1)
    rewards = split_equally(touched, WORTH) - SHAPING * nearest
    landmark = jnp.where(taken[:, None], uniform(key, len(taken), SPREAD), scene.landmark)
    return scene._replace(landmark=landmark), rewards, {"taken": jnp.sum(taken, dtype=jnp.float32)}


GAME = Game("treasure", ("collectors",), Dynamics(), 6 * (0.05,), SPREAD, settle)
