"""Particle games for populations of any size, by name: GAME-POPULATION, several joined by +, padding behind -in-.

resource-3, treasure-3              always 3 agents
resource-3+6+12+24                  each episode one of these populations, padded to 24 agents
resource-9-in-24                    9 agents, padded to 24
pacmen-2x4                          2 ghosts, 4 Pac-Men
pacmen-2x4+4x2+4x4-in-6x6           one of three populations, padded to 6 + 6 agents
"""

import difflib
import re

from envs.core import Env, UsageError
from envs.particles import pacmen, resource, treasure
from envs.particles.game import Game, make_env

GAMES: dict[str, Game] = {module.GAME.name: module.GAME for module in (resource, treasure, pacmen)}
NAMES = (
    "resource-3", "resource-3+6", "resource-3+6+12+24",
    "treasure-3", "treasure-3+6+12+24",
    "pacmen-2x4", "pacmen-2x4+4x2+4x4",
)  # fmt: skip
POPULATION = r"\d+(?:x\d+)*"
NAME = re.compile(rf"([a-z]+)-({POPULATION}(?:\+{POPULATION})*)(?:-in-({POPULATION}))?")


def is_name(name: str) -> bool:
    """Whether the name begins like one of a particle game; what is wrong with the rest of it is for `make` to say."""
    return name.split("-")[0] in GAMES


def game_of(name: str) -> Game:
    """The game of an environment's name. Raises UsageError for a name that is none."""
    if not is_name(name):
        raise _unknown(name)
    return GAMES[name.split("-")[0]]


def make(name: str) -> Env:
    """An environment by its name, see above; `Env.view` gives a Scene, `Env.params` are Games.

    Raises UsageError for a name that is not known, for several games, and for populations that cannot be played: of one
    agent, above the padded maximum, without agents of a kind, or with another number of kinds.
    """
    if (found := NAME.fullmatch(name)) is None:
        if any(map(is_name, name.split("+")[1:])):
            raise UsageError(f"{name} mixes games; join populations of one game by +, such as {name.split('+')[0]}+9")
        raise _unknown(name)
    game, (populations, room) = game_of(name), found.groups()[1:]
    counts = [_counts(name, game, population) for population in populations.split("+")]
    if room is None:
        return make_env(game, counts, name=name)
    most = _counts(name, game, room)
    for row in counts:
        if any(count > limit for count, limit in zip(row, most)):
            told = "x".join(map(str, row))
            raise UsageError(f"{name}: population {told} is above the padded maximum {room}; raise what follows -in-")
    return make_env(game, counts, sum(most), name)


def _unknown(name: str) -> UsageError:
    near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.0)[0]
    return UsageError(f"particle game {name!r} is not known; did you mean {near!r}? (also: resource-9-in-24)")


def _counts(name: str, game: Game, population: str) -> tuple[int, ...]:
    """The agents of each kind."""
    counts = tuple(map(int, population.split("x")))
    if len(counts) != len(game.kinds):
        raise UsageError(f"{name}: {population!r} is no population of {game.name}, which is {' x '.join(game.kinds)}")
    return counts
