"""Task allocation environments by name: RBF, Material, Electric, Almighty; published and generated instances.

    rbf-a, rbf-b, material, electric-a, electric-b, almighty    published instances under published rules
    rbf-a-newtasks, rbf-b-newtasks                              the same entities, the published other queue
    rbf-train-12x3, rbf-heldout-20x5, ...                       a new instance each episode, 12 entities, 3 slots
    rbf-heldout-8x3-in-20x5, ...                                the same, padded to 20 entities, 5 slots

`-recommended` behind a name takes `core.RECOMMENDED` in place of the published rules; generated instances are ours
and always have it.
"""

import difflib
import re
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import jax

from envs.allocation import almighty, electric, generate, instances, material, rbf
from envs.allocation.core import OFFICIAL, RECOMMENDED, AllocationEnv, Outcome, Problem, Rules
from envs.allocation.generate import Episode, Sizes
from envs.allocation.instances import read_table
from envs.core import EnvParams, Key, UsageError

PROBLEMS: dict[str, ModuleType] = {"rbf": rbf, "material": material, "electric": electric, "almighty": almighty}
PUBLISHED: dict[str, Callable[[], Any]] = {
    "rbf-a": lambda: _rbf("rbf_entities_100", "rbf_queue"),
    "rbf-b": lambda: _rbf("rbf_entities_60", "rbf_queue"),
    "rbf-a-newtasks": lambda: _rbf("rbf_entities_100", "rbf_queue_alternative"),
    "rbf-b-newtasks": lambda: _rbf("rbf_entities_60", "rbf_queue_alternative"),
    "material": lambda: instances.material_instance(read_table("material_entities"), read_table("material_queue")),
    "electric-a": lambda: _electric("electric_nodes_a"),
    "electric-b": lambda: _electric("electric_nodes_b"),
    "almighty": lambda: instances.almighty_instance(read_table("almighty_entities"), read_table("almighty_tasks")),
}
SUFFIX = "-recommended"
NAMES = (*PUBLISHED, *(name + SUFFIX for name in PUBLISHED))
GENERATED = re.compile(r"(rbf|material|electric|almighty)-(train|heldout)-(\d+)x(\d+)(?:-in-(\d+)x(\d+))?")


def is_name(name: str) -> bool:
    """Whether `make` knows the name."""
    return name in NAMES or GENERATED.fullmatch(name) is not None


def make(name: str) -> AllocationEnv:
    """An environment by its name, see above.

    Raises UsageError for a name that is not known and for sizes that no instance can be generated of.
    """
    if (found := GENERATED.fullmatch(name)) is not None:
        kind, split, entities, slots, most_entities, most_slots = found.groups()
        sizes = generate.sizes_for(kind, int(entities), int(slots))
        padded = generate.sizes_for(kind, int(most_entities or entities), int(most_slots or slots))
        return make_generated(kind, padded, generate.RANGES[kind, split](sizes), name)
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
        raise UsageError(f"allocation environment {name!r} is not known; did you mean {near!r}? (also: rbf-train-12x3)")
    plain = name.removesuffix(SUFFIX)
    rules = OFFICIAL if name == plain else RECOMMENDED
    return make_fixed(plain.split("-")[0], PUBLISHED[plain](), rules, name)


def make_fixed(kind: str, params: EnvParams, rules: Rules = OFFICIAL, name: str | None = None) -> AllocationEnv:
    """The environment `kind` (rbf, material, electric, almighty) on one instance; see `instances`."""
    reset, step, problem = _functions(kind, rules)
    return AllocationEnv(name or kind, int(params.tables.horizon), params, reset, step, problem, kind, rules)


def make_generated(
    kind: str, sizes: Sizes, ranges: Any, name: str | None = None, rules: Rules = RECOMMENDED
) -> AllocationEnv:
    """The environment `kind` on a new instance each episode, drawn within `ranges`, which are its parameters.

    Raises UsageError where `ranges` do not fit into `sizes` or allow negative numbers.
    """
    generate.check(kind, ranges, sizes)
    begin, advance, pose = _functions(kind, rules)

    def reset(key: Key, params: EnvParams) -> tuple[Episode, Problem]:
        instance = generate.DRAW[kind](key, params, sizes)
        state, problem = begin(key, instance)
        return Episode(state, instance), problem

    def step(key: Key, state: Episode, allocation: jax.Array, params: EnvParams) -> tuple[Episode, Outcome]:
        after, outcome = advance(key, state.state, allocation, state.instance)
        return Episode(after, state.instance), outcome

    def problem(state: Episode, params: EnvParams) -> Problem:
        return pose(state.state, state.instance)

    horizon = PROBLEMS[kind].HORIZON
    return AllocationEnv(name or f"{kind}-generated", horizon, ranges, reset, step, problem, kind, rules)


def _functions(kind: str, rules: Rules) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """`reset`, `step` and `problem` by these rules."""
    module = PROBLEMS[kind]
    reset, problem = module.reset, module.problem
    if module is electric:  # the only one whose tasks look different by other rules
        reset, problem = partial(reset, rules=rules), partial(problem, rules=rules)
    return reset, partial(module.step, rules=rules), problem


def _rbf(entities: str, queue: str) -> rbf.Instance:
    return instances.rbf_instance(read_table(entities), read_table(queue))


def _electric(nodes: str) -> electric.Instance:
    queue = read_table("electric_queue")[:, 0].astype(int)
    return instances.electric_instance(read_table(nodes), queue)
