"""What `experiments.exploitability` measures: agents that learn, one at a time, how to answer all others."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algos.core import Env, Key
from algos.mra import best_response, initial, joint, play
from algos.mra.best_response import Response
from algos.mra.joint import Form, Seats
from algos.mra.settings import Static
from algos.runner import over_members
from envs import particles
from experiments.entrants import Entrant, alike, kinds_of, returns, slots_of, stacked
from experiments.population_programs import Player
from experiments.task import members_by

STARTS = ("run", "scratch")
SCRATCH = Static(skills=1, policy_self_features=True)  # of networks from scratch: they see more than MRA's policy
BEST = "best"


class Request(NamedTuple):
    """What is to be measured."""

    places: tuple[str, ...]  # environments of one population each
    start: tuple[str, ...] = STARTS
    updates: int = 100  # of each best response
    games: int = 256  # played for each update
    episodes: int = 512  # of each measurement
    seed: int = 0


class Agent(NamedTuple):
    """An agent that responds for all that are like it."""

    slot: int
    kind: int
    weight: int  # how many they are


class Result(NamedTuple):
    """Of one run in one population: what its agents and their responses earn, (episodes, agents that respond)."""

    place: str
    entrant: Entrant
    start: str  # one of STARTS, or BEST of them and of no response at all, as other games tell
    agents: list[Agent]
    joint: np.ndarray  # returns where all follow the run
    response: np.ndarray
    curve: np.ndarray | None  # (updates, agents that respond): mean returns while they learn

    @property
    def gap(self) -> np.ndarray:
        """(episodes, agents that respond)."""
        return self.response - self.joint

    @property
    def nashconv(self) -> np.ndarray:
        """Σ_i (best response's return - return), over all agents, (episodes,)."""
        return self.gap @ np.array([agent.weight for agent in self.agents], float)


def responding(entrant: Entrant, env: Env) -> list[Agent]:
    """The agents whose best responses are learnt.

    One of each kind, as agents of a kind follow the same networks and begin alike; all where each has its own actor.
    """
    kinds = kinds_of(env)
    if entrant.owners > 1:
        return [Agent(slot, int(kind), 1) for slot, kind in enumerate(kinds)]
    return [Agent(int(np.argmax(kinds == kind)), int(kind), int((kinds == kind).sum())) for kind in np.unique(kinds)]


@functools.cache
def _step(place: str, forms: tuple[Form, Form], games: int) -> Callable[..., tuple[Response, dict[str, jax.Array]]]:
    """A step of all members' best responses; the learning rate is for all of them."""
    step = best_response.make(particles.make(place), forms, games)

    def every(
        keys: Key, responses: Response, others: Any, slots: jax.Array, t: jax.Array, rate: jax.Array
    ) -> tuple[Response, dict[str, jax.Array]]:
        def one(key: Key, response: Response, others: Any, slot: jax.Array) -> tuple[Response, dict[str, jax.Array]]:
            return step(jax.random.fold_in(key, t), response, others, slot, rate)

        return over_members(members_by("auto"), one)(keys, responses, others, slots)

    return jax.jit(every)


def fresh(key: Key, env: Env) -> Player:
    """Networks from scratch."""
    world = play.world_of("mra", env)
    wanted = initial.policy(SCRATCH, world.width, world.kinds), initial.relation(SCRATCH, world.width)
    policy, relation_net = initial.draw(key, wanted)
    return Player(policy, relation_net, jnp.zeros(SCRATCH.skills))


def respond(
    place: str, form: Form, others: Any, slots: np.ndarray, start: str, request: Request
) -> tuple[Form, Any, np.ndarray]:
    """Learn best responses side by side: their form, their networks, and mean returns (updates, members).

    All agents but the one in the slot (members,) follow `others`, networks with a leading axis of members.
    """
    env = particles.make(place)
    own = joint.RELATIONAL if start == "scratch" else form
    keys = jax.random.split(jax.random.fold_in(jax.random.key(request.seed), STARTS.index(start)), len(slots))

    def begin(key: Key, networks: Any) -> Response:
        value_key, network_key = jax.random.split(key)
        begun = fresh(network_key, env) if start == "scratch" else networks
        return best_response.init(value_key, begun, play.world_of("mra", env))

    responses, step, earned = jax.jit(jax.vmap(begin))(keys, others), _step(place, (own, form), request.games), []
    for t in range(request.updates):
        rate = best_response.LEARNING_RATE * (1.0 - t / request.updates)
        responses, metrics = step(keys, responses, others, jnp.asarray(slots), jnp.int32(t), jnp.float32(rate))
        earned.append(np.asarray(metrics["return"], np.float64))
    return own, responses.networks, np.stack(earned)


def measure(entrants: list[Entrant], place: str, request: Request) -> list[Result]:
    """All runs in one population; those of the same shapes learn side by side."""
    env, found = particles.make(place), []
    for group in alike(entrants, env):
        found += _of_group([entrants[i] for i in group], place, env, request)
    return found


def _of_group(group: list[Entrant], place: str, env: Env, request: Request) -> list[Result]:
    agents, form = responding(group[0], env), group[0].form
    shape = (len(group), len(agents))
    others = stacked([entrant.networks(env) for entrant in group for _ in agents])
    slots = np.tile(np.array([agent.slot for agent in agents], np.int32), len(group))

    def earned(form_of_response: Form, networks: Any, seated: bool, seed: int) -> np.ndarray:
        """Returns (runs, agents, episodes) of the agents in the slots, who follow the response or like all the run."""
        mine = np.eye(slots_of(env))[slots] * seated
        seats = Seats((networks, others), jnp.asarray(np.stack([mine, 1.0 - mine], 1), jnp.float32))
        each = returns(place, (form_of_response, form), seats, request.episodes, seed)
        return each[np.arange(len(slots)), :, slots].reshape(*shape, -1)

    together, chosen_by = (earned(form, others, False, request.seed + i) for i in range(2))
    best, highest = together.copy(), chosen_by.mean(-1)
    tables: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for start in request.start:
        own, networks, curve = respond(place, form, others, slots, start, request)
        response, elsewhere = (earned(own, networks, True, request.seed + i) for i in range(2))
        better = elsewhere.mean(-1) > highest
        best, highest = np.where(better[..., None], response, best), np.where(better, elsewhere.mean(-1), highest)
        tables[start] = (response, curve.reshape(-1, *shape))
    tables[BEST] = (best, None)
    return [
        Result(
            place, entrant, start, agents, together[i].T, response[i].T, None if curve is None else curve[:, i]
        )
        for start, (response, curve) in tables.items()
        for i, entrant in enumerate(group)
    ]  # fmt: skip
