"""Ghosts hunt Pac-Men, Pac-Men eat dots: two kinds of agents, mixed motives, not zero-sum.

arXiv 2108.12988 names this environment without its numbers. These are ours, after the grassland of EPC (arXiv
2003.10423): radii, forces, speeds, rewards.
"""

import jax
import jax.numpy as jnp

from envs.core import Key
from envs.particles.core import Dynamics, Scene, distance, inside, per_kind, split_equally
from envs.particles.game import Game, Settled, mean_over, uniform

CATCH = 5.0  # for the ghosts who touch a Pac-Man, split among them; the Pac-Man loses as much
DOT = 2.0  # for the Pac-Men who eat it, split among them
SHAPING = 0.1  # per unit of distance from the nearest prey
SPREAD = 0.9
# Only agents of a kind push each other: those who catch have to overlap with those they catch.
DYNAMICS = Dynamics((0.075, 0.05), (1.0, 1.0), (2.0, 4.0), (2.0, 3.0), bound=1.0, kinds_collide=False)


def settle(key: Key, scene: Scene, dynamics: Dynamics) -> Settled:
    """Catches, then food, then shaping, which goes by where everybody is after the first two.

    A Pac-Man who is caught begins anew elsewhere, at rest, and eats nothing in that step; so does a dot that is eaten.
    Measures: `ghost_reward` and `pacman_reward`, means over agents; `caught` Pac-Men and `eaten` dots, numbers.
    """
    agent_key, food_key = jax.random.split(key)
    pacman = (scene.mask > 0) & (scene.kind == 1)
    ghost = (scene.mask > 0) & (scene.kind == 0)
    radius = per_kind(dynamics.radius, scene.kind)
    close = distance(scene.position, scene.position) < radius[:, None] + radius
    touched = close & ghost[:, None] & pacman  # (N ghosts, N Pac-Men)
    caught = jnp.any(touched, axis=0)
    eating = inside(scene, dynamics) & (pacman & ~caught)[:, None]
    eaten = jnp.any(eating, axis=0)
    rewards = split_equally(touched, CATCH) - CATCH * caught + split_equally(eating, DOT)

    position = jnp.where(caught[:, None], uniform(agent_key, len(caught), 1.0), scene.position)
    velocity = jnp.where(caught[:, None], 0.0, scene.velocity)
    landmark = jnp.where(eaten[:, None], uniform(food_key, len(eaten), SPREAD), scene.landmark)
    to_pacman = jnp.min(jnp.where(pacman, distance(position, position), jnp.inf), axis=1)
    to_dot = jnp.min(distance(position, landmark), axis=1)
    rewards = rewards - SHAPING * jnp.where(ghost, to_pacman, to_dot)
    measures = {
        "ghost_reward": mean_over(rewards, ghost),
        "pacman_reward": mean_over(rewards, pacman),
        "caught": jnp.sum(caught, dtype=jnp.float32),
        "eaten": jnp.sum(eaten, dtype=jnp.float32),
    }
    return scene._replace(position=position, velocity=velocity, landmark=landmark), rewards, measures


GAME = Game("pacmen", ("ghosts", "pacmen"), DYNAMICS, 6 * (0.03,), SPREAD, settle)
