"""What `experiments.populations` measures: a trained learner of `algos.mra` in populations that it did not learn in."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algos.mra import adapt, reptile
from algos.mra.learn import Learner
from algos.mra.settings import Hyper, Static, adopt
from envs import particles
from envs.core import UsageError
from envs.particles.scripted import CONTROLLERS
from experiments import evaluate
from experiments.population_programs import CHOOSING, Player, Programs, per_step, played, programs, scripted
from experiments.rollout import RETURN, episode_seeds, make_evaluator

SKILLS = ("prior", "best_of_Z")
NEVER = -1e9  # logit of the other skills where all agents have one


@dataclass(frozen=True)
class Request:
    """What is to be measured."""

    places: tuple[str, ...]  # environments of one population each
    episodes: int = 512
    adapt: tuple[int, ...] = (0,)  # episodes of adaptation, ascending
    skills: tuple[str, ...] = SKILLS
    seed: int = 0  # of the initial states


class Run(NamedTuple):
    """A trained learner."""

    folder: Path
    seed: int
    trained_in: str
    learner: Learner
    static: Static
    hyper: Hyper


class Case(NamedTuple):
    """Who played, how prepared."""

    place: str
    learner: str  # trained, untrained, or a controller's name
    adapted: str = "none"  # or one of adapt.VARIANTS
    adapt_episodes: int = 0
    skills: str = ""  # one of SKILLS


class Result(NamedTuple):
    """Over (episodes,): the team's return, and means per step of the environment's measures; and single numbers."""

    case: Case
    values: dict[str, np.ndarray]
    numbers: dict[str, float]


def load(run_dir: Path) -> Run:
    """The newest checkpoint of a run.

    Raises:
        UsageError: no such run or one of another algorithm.
    """
    run = run_of(evaluate.load(evaluate.Options(run_dir)), run_dir)
    if not isinstance(run, Run):
        raise UsageError(f"{run_dir} is a run of algo={run}: choose one of algo=mra or mra_reptile")
    return run


def run_of(policy: evaluate.Policy, run_dir: Path) -> Run | str:
    """A checkpoint as a learner; the algorithm's name where it has none of MRA's."""
    config = policy.note["config"]
    learner, name = getattr(policy.population.state, "learner", None), config["algo"]["name"]
    if not isinstance(learner, Learner):
        return name
    learner, hyper = jax.tree.map(lambda x: x[0], (learner, policy.population.hyper))
    sizes = config["algo"]["static"]
    static = reptile.unimodal(reptile.Static(**sizes)) if name == "mra_reptile" else Static(**sizes)
    return Run(run_dir, config["seed"], config["env"]["name"], learner, static, adopt(Hyper, hyper))


def check(runs: list[Run], request: Request) -> None:
    """Refuse what the runs cannot play.

    Raises:
        UsageError: an environment that is no particle game, of several populations or of another game; a number of
            episodes of adaptation that is no multiple of those played side by side.
    """
    check_places([(run.folder, run.trained_in) for run in runs], request.places)
    for run in runs:
        if odd := [count for count in request.adapt if count % run.static.envs]:
            raise UsageError(
                f"adapt={odd[0]} must be a multiple of the {run.static.envs} episodes that {run.folder} plays side by "
                "side"
            )


def check_places(runs: list[tuple[Path, str]], places: tuple[str, ...]) -> None:
    """Refuse environments that runs, with the environments they learnt in, cannot play.

    Raises:
        UsageError: an environment that is no particle game, of several populations or of another game.
    """
    for place in places:
        env = particles.make(place)
        for folder, trained_in in runs:
            family = particles.game_of(trained_in).name
            if particles.game_of(place).name != family:
                raise UsageError(f"in={place}: {folder} learnt {family} in other populations: choose {family}-...")
        if len(env.params.counts) > 1:
            raise UsageError(f"in={place} has several populations: name environments of one each")


def best_skill(program: Programs, player: Player, seed: int) -> tuple[Player, int]:
    """The player with the one skill of all agents that is best in CHOOSING episodes, and which skill that is."""
    skills = len(player.log_probs)
    logits = jnp.where(jnp.eye(skills) > 0.0, 0.0, NEVER)
    players = jax.tree.map(lambda x: jnp.broadcast_to(x, (skills, *x.shape)), player)._replace(log_probs=logits)
    seeds = np.tile(episode_seeds([seed + 1], CHOOSING, 0, "fixed"), (skills, 1))
    best = int(played(program.compare, players, seeds)[RETURN].mean(1).argmax())
    return player._replace(log_probs=logits[best]), best


class Study:
    """All that is measured of one run in one population."""

    def __init__(self, run: Run, place: str, request: Request):
        """Nothing is measured yet."""
        chunk = math.gcd(*request.adapt) or run.static.envs
        longest = max(max(request.adapt) * particles.make(place).horizon, run.static.batch_size)
        static = replace(run.static, buffer_size=min(run.static.buffer_size, longest))  # the rest would stay empty
        games = run.learner.task_predictor["head"]["fc2"]["bias"].shape[-1]
        self.run, self.place, self.request, self.chunk, self.static = run, place, request, chunk, static
        self.program = programs(place, static, games, request.episodes, chunk)
        self.key = jax.random.fold_in(jax.random.key(run.seed), request.seed)

    def results(self) -> list[Result]:
        """The trained learner and an untrained one; both after adaptation."""
        fresh = self.program.fresh(jax.random.fold_in(self.key, 0))
        found = []
        for name, learner, variants in (
            ("trained", self.run.learner, adapt.VARIANTS), ("untrained", fresh, ("all",)),
        ):  # fmt: skip
            state = self.program.begin(learner, self.run.hyper)
            case = Case(self.place, name)
            if 0 in self.request.adapt:
                found += self.measure(case, state.adapted)
            for variant in variants:
                found += self.adapted(case._replace(adapted=variant), learner)
        return found

    def adapted(self, case: Case, learner: Learner) -> list[Result]:
        """One adaptation, measured whenever it has come to one of the numbers of episodes asked for."""
        state, found, before = self.program.begin(learner, self.run.hyper), [], 0
        for count in (count for count in self.request.adapt if count):
            for done in range(before, count, self.chunk):
                state = self.program.adapt[case.adapted](self.key, state, self.run.hyper, jnp.int32(done))
            found += self.measure(case._replace(adapt_episodes=count), state.adapted)
            before = count
        return found

    def measure(self, case: Case, adapted: adapt.Adapted) -> list[Result]:
        """By each way to choose skills; a table of logits that was learnt is always drawn from."""
        player = Player(adapted.policy, adapted.relation_net, adapted.log_probs)
        found = []
        only_prior = case.adapted == "latent_only" or case.learner == "untrained"
        for skills in ("prior",) if only_prior else self.request.skills:
            chosen, numbers = player, {}
            if skills == "best_of_Z":
                chosen, best = best_skill(self.program, player, self.request.seed)
                numbers["best_skill"] = float(best)
            else:
                differences = self.program.differ(jax.random.fold_in(self.key, 1), adapted.learner, player.log_probs)
                numbers |= {name: float(value) for name, value in differences.items()}
            seeds = episode_seeds([self.request.seed], self.request.episodes, 0, "fixed")
            sums = played(self.program.evaluate, jax.tree.map(lambda x: x[None], chosen), seeds)
            values = per_step(sums, self.program.env.horizon)
            found.append(Result(case._replace(skills=skills), values, numbers))
        return found


def controllers(place: str, request: Request) -> list[Result]:
    """The random player, and in games of one kind of agents the one that goes to the nearest landmark."""
    env = particles.make(place)
    names = ("random", "nearest") if env.params.counts.shape[1] == 1 else ("random",)
    seeds = episode_seeds([request.seed], request.episodes, 0, "fixed")
    found = []
    for name in names:
        evaluator = make_evaluator(scripted(env, CONTROLLERS[name]), env, request.episodes, "map")
        found.append(Result(Case(place, name), per_step(played(evaluator, jnp.zeros(1), seeds), env.horizon), {}))
    return found
