"""One game in which agents follow different networks: those that were trained apart, or one that answers the others."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from algos.core import Algorithm, Env, Key
from algos.mra import maddpg, play
from algos.mra.nets import policy_logits, relation_graph
from algos.mra.objectives import draw_action
from algos.mra.observe import Observation, observe


class Form(NamedTuple):
    """How networks of one form act."""

    skills: Callable[[Key, Any, Observation], jax.Array]  # (key, networks, first obs) -> (..., N, Z)
    logits: Callable[[Any, Observation, jax.Array], jax.Array]  # (networks, obs, skills) -> (..., N, 5)


class Seats(NamedTuple):
    """Who follows what: the state of the algorithm below."""

    networks: tuple[Any, ...]  # of each side
    who: jax.Array  # (sides, N), 1 where an agent is of that side


def relational_logits(networks: Any, obs: Observation, skill: jax.Array) -> jax.Array:
    """Logits (..., N, 5) of networks with fields `policy` and `relation_net`."""
    return policy_logits(networks.policy, obs, relation_graph(networks.relation_net, obs, skill))


# MRA and what else has its networks, with fields `policy`, `relation_net` and `log_probs` (Z,), which skills follow
RELATIONAL = Form(lambda key, networks, obs: play.skills(key, networks.log_probs, obs), relational_logits)
# MADDPG, and MAAC as one owner of all agents: the networks are all owners' actors; agents have no skills
OWN_ACTORS = Form(
    lambda key, actors, obs: jnp.ones((*obs.mask.shape, 1)),
    lambda actors, obs, skill: maddpg.all_logits(actors, obs, maddpg.served(actors, obs.mask.shape[-1])),
)


def begin(key: Key, forms: tuple[Form, ...], seats: Seats, obs: Observation) -> tuple[jax.Array, ...]:
    """Skills of an episode that begins with obs, (..., N, Z) of each side.

    All sides draw by the same numbers: where their networks are the same, so are the skills.
    """
    return tuple(form.skills(key, networks, obs) for form, networks in zip(forms, seats.networks))


def logits(forms: tuple[Form, ...], seats: Seats, obs: Observation, skills: tuple[jax.Array, ...]) -> jax.Array:
    """Logits (..., N, 5) of every agent by the networks of its side."""
    each = [form.logits(*given) for form, *given in zip(forms, seats.networks, [obs] * len(forms), skills)]
    return jnp.einsum("sn,s...na->...na", seats.who, jnp.stack(each))


def algorithm(env: Env, forms: tuple[Form, ...]) -> Algorithm:
    """Sides of these forms as an algorithm that only acts; its state is `Seats`.

    What actions are drawn by does not depend on who sits where: seats of the same networks play the same game.
    """
    world = play.world_of("mra", env)

    def begin_episode(key: Key, seats: Seats, obs: jax.Array, hyper: Any) -> tuple[jax.Array, ...]:
        return begin(key, forms, seats, observe(world.view(obs), world.kinds))

    def act(key: Key, seats: Seats, obs: jax.Array, hyper: Any, skills: tuple[jax.Array, ...]) -> jax.Array:
        found = logits(forms, seats, observe(world.view(obs), world.kinds), skills)
        return play.to_env(draw_action(found, jax.random.gumbel(key, found.shape)))

    return Algorithm(lambda *_: None, lambda *_: (None, {}), act, begin=begin_episode)
