"""Which members of a sweep train together, decided by the text of their overrides.

Members whose overrides differ only in `seed` and `algo.hyper.*` share one compiled program. Nothing is composed
here and neither Hydra nor JAX is imported, so that a sweep of 100,000 members is planned in a second.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Overrides = tuple[str, ...]  # of one member, as on the command line

_POPULATION = re.compile(r"seed=\[(.*)\]")


@dataclass(frozen=True)
class Program:
    """Members that one compiled program can train side by side."""

    shared: Overrides
    members: list[Overrides]


def key_of(override: str) -> str:
    """`algo.hyper.alpha` of `++algo.hyper.alpha=2.5`."""
    return override.lstrip("+~").split("=", 1)[0]


def is_packed(override: str) -> bool:
    """Whether members of one program may differ in this override."""
    return _own(key_of(override))


def expand(lists: Iterable[Sequence[str]]) -> Iterator[Overrides]:
    """The members that override lists stand for: a population `seed=[0,1]` is two, `seed=0` and `seed=1`."""
    for overrides in lists:
        populations = [i for i, text in enumerate(overrides) if _POPULATION.fullmatch(text)]
        if not populations:
            yield tuple(overrides)
            continue
        at = populations[0]
        for seed in overrides[at].removeprefix("seed=[").removesuffix("]").split(","):
            yield (*overrides[:at], f"seed={seed.strip()}", *overrides[at + 1 :])


def programs(lists: Iterable[Sequence[str]]) -> list[Program]:
    """The programs of a sweep, in the order of their first members.

    Raises:
        UsageError: two members have the same overrides.
    """
    found: dict[Overrides, list[Overrides]] = {}
    seen: set[Overrides] = set()
    packed: dict[str, bool] = {}  # a sweep has few distinct texts, so each is looked at once
    for member in expand(lists):
        if member in seen:
            _refuse(f"the sweep names a member twice: {' '.join(member)}; leave one of them out")
        seen.add(member)
        for text in member:
            if text not in packed:
                packed[text] = is_packed(text)
        found.setdefault(tuple(text for text in member if not packed[text]), []).append(member)
    return [Program(shared, members) for shared, members in found.items()]


def split(members: list[Overrides], at_most: int) -> list[list[Overrides]]:
    """As few groups as the limit allows, in order, whose sizes differ by one at most."""
    count = -(-len(members) // max(at_most, 1))
    bounds = [len(members) * i // count for i in range(count + 1)]
    return [members[begin:end] for begin, end in zip(bounds, bounds[1:])]


def labels(found: list[Program]) -> list[str]:
    """For each program the overrides that tell it from the others."""
    return apart([program.shared for program in found])


def apart(lists: Sequence[Overrides]) -> list[str]:
    """Each override list without what all of them have, as one text."""
    common = set(lists[0]).intersection(*lists[1:])
    return [" ".join(text for text in overrides if text not in common) for overrides in lists]


def packed_texts(program: Program) -> dict[str, list[str]]:
    """The values of each packed key, as distinct override texts in order: {"seed": ["seed=0", "seed=1"]}."""
    found: dict[str, dict[str, None]] = {}
    shared = set(program.shared)
    for member in program.members:
        for text in member:
            if text not in shared:
                found.setdefault(key_of(text), {})[text] = None
    return {key: list(texts) for key, texts in found.items()}


def fingerprint(members: Iterable[Overrides]) -> str:
    """Eight hexadecimal digits of a set of members, whatever their order."""
    digest = hashlib.sha256()
    for text in sorted("\t".join(member) for member in members):
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()[:8]


def check_same(configs: list[dict[str, Any]]) -> None:
    """Refuse to train together what differs in more than seed, algo.hyper.* and the run directory.

    `configs` are resolved configurations of one group: nested dictionaries.

    Raises:
        UsageError: naming the leaf that differs.
    """
    first = dict(_leaves(configs[0]))
    for config in configs[1:]:
        other = dict(_leaves(config))
        for leaf in [*first, *(leaf for leaf in other if leaf not in first)]:
            if first.get(leaf) != other.get(leaf) and not _own(leaf) and leaf != "run.dir":
                values = f"{first.get(leaf)!r} and {other.get(leaf)!r}"
                _refuse(
                    f"{leaf} differs inside a group ({values}), where only seed and algo.hyper.* may: "
                    f"sweep over {leaf} itself, or set run.pack=off"
                )


def check_unique(folders: Sequence[Path]) -> None:
    """Refuse members that would share a run directory.

    Raises:
        UsageError: naming the directory.
    """
    seen: set[Path] = set()
    for folder in folders:
        if folder in seen:
            _refuse(f"two members have the run directory {folder}: drop one, or set run.root instead of run.dir")
        seen.add(folder)


def _own(key: str) -> bool:
    return key == "seed" or key == "algo.hyper" or key.startswith("algo.hyper.")


def _leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _refuse(message: str) -> None:
    from envs.core import UsageError  # here, as it brings JAX along

    raise UsageError(message)
