"""From a data set's name or file to transitions on the host with their episodes, whatever the format."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from envs.core import Transition, UsageError
from envs.datasets import dsrl, generated, minari, scores
from envs.datasets.d4rl import qlearning
from envs.datasets.download import fetch
from envs.datasets.episodes import bounds, numbers, sums
from envs.datasets.hdf5 import Raw, read_hdf5
from envs.datasets.metadata import read_metadata
from envs.datasets.mixed import mix
from envs.datasets.registry import EMBEDDED, DatasetInfo, lookup, registry
from envs.datasets.select import EpisodeTable, Selection, select


class Source(NamedTuple):
    """Transitions as numpy arrays, before shaping and normalisation."""

    entry: DatasetInfo
    transitions: Transition
    episodes: EpisodeTable
    paths: tuple[Path, ...]
    metadata: dict[str, Any]
    sha256: tuple[str, ...] = ()  # of data that are in no file


def read(name: str | None, path: str | Path | None, seed: int, cache_dir: str | Path | None) -> Source:
    """A data set by its name, its path or both, as `loader.load` takes them; the same errors."""
    given = None if path is None else Path(path).expanduser()
    if name is not None and name.startswith("minari:"):
        dataset_id = name.removeprefix("minari:")
        return _from_minari(name, minari.locate(dataset_id) if given is None else given)
    if given is not None and given.name == minari.DATA_FILE:
        given = given.parent
    if given is not None and minari.find_data(given) is not None:
        return _from_minari(name or "custom", given)
    if name in (None, "custom"):
        if given is None:
            raise UsageError("a data set of one's own needs its file: data.path=FILE")
        return _from_file(DatasetInfo("custom"), given)
    entry = lookup(str(name))
    if entry.generated is not None and given is None:
        return _from_generated(entry, entry.generated, seed)
    if entry.parts is not None and (given is None or given.is_dir()):
        return _from_mixture(entry, entry.parts, given, seed, cache_dir)
    return _from_file(entry, _file_of(entry, given, cache_dir))


def read_more(item: str, first: Source, seed: int, cache_dir: str | Path | None) -> Source:
    """A data set to append to `first`, by its name or by the path of its file.

    Raises UsageError as `read` does, and for other dimensions or costs in one of the two only.
    """
    named = item in registry() or item.startswith("minari:") or not Path(item).expanduser().exists()
    more = read(item, None, seed, cache_dir) if named else read("custom", item, seed, cache_dir)
    widths, others = (
        (source.transitions.obs.shape[-1], source.transitions.action.shape[-1]) for source in (first, more)
    )
    if widths != others:
        differ = f"(observation, action) dimensions {others}, {first.entry.name} has {widths}"
        raise UsageError(f"data.also: {item} has {differ}; append data of the same shapes")
    if (first.transitions.cost is None) != (more.transitions.cost is None):
        have, lack = (first.entry.name, item) if more.transitions.cost is None else (item, first.entry.name)
        raise UsageError(f"data.also: {have} has costs and {lack} has none; append data of one kind")
    return more


def split(source: Source, wanted: Selection) -> tuple[Source, Transition | None]:
    """The part to train on and the transitions held out, if any were asked for."""
    keep, held = select(source.entry.name, source.episodes, wanted)
    if keep.all():
        return source, None
    of = source.episodes.of[keep]
    left = np.bincount(of, minlength=len(source.episodes.whole)) > 0
    episodes = source.episodes._replace(of=of, whole=source.episodes.whole & left)
    held_out = _rows(source.transitions, held) if wanted.holdout else None
    return source._replace(transitions=_rows(source.transitions, keep), episodes=episodes), held_out


def _rows(transitions: Transition, keep: np.ndarray) -> Transition:
    return jax.tree.map(lambda column: column[keep], transitions)


def _file_of(entry: DatasetInfo, given: Path | None, cache_dir: str | Path | None) -> Path:
    """The file of a named data set: the given one, the one in the given folder, or the one in the cache."""
    if given is not None and not given.is_dir():
        return given
    if entry.name == "embedded":
        return EMBEDDED if given is None else given / EMBEDDED.name
    if entry.file is None:
        raise UsageError(f"data set {entry.name} has no file to look for in {given}: leave data.path out")
    return given / entry.file if given is not None else fetch(entry.file, entry.urls, cache_dir)


def _from_file(entry: DatasetInfo, path: Path) -> Source:
    raw, metadata = read_hdf5(path), read_metadata(path)
    if entry.costs and raw.costs is None:
        mend = "give the file that DSRL publishes, or data.name=custom for data without costs"
        raise UsageError(f"{path} has no `costs`: {entry.name} is a data set of DSRL's; {mend}")
    return _converted(_completed(entry, metadata), raw, (path,), metadata)


def _from_mixture(
    entry: DatasetInfo, parts: tuple[str, str], given: Path | None, seed: int, cache_dir: str | Path | None
) -> Source:
    paths = tuple(_file_of(lookup(part), given, cache_dir) for part in parts)
    good, bad = (read_hdf5(path) for path in paths)
    widths = [(raw.observations.shape[1], raw.actions.shape[1]) for raw in (good, bad)]
    if widths[0] != widths[1]:
        raise UsageError(f"{paths[0]} and {paths[1]} differ in (observation, action) dimensions: {widths}")
    raw = mix(good, bad, entry.ratio, seed, entry.max_episode_steps)
    return _converted(entry, raw, paths, {"ratio": entry.ratio, "seed": seed})


def _from_generated(entry: DatasetInfo, recipe: generated.Generated, seed: int) -> Source:
    transitions, digest = generated.make(recipe, seed)
    count = len(transitions.reward) // recipe.steps
    returns, costs = (
        None if column is None else np.asarray(column, np.float64).reshape(count, recipe.steps).sum(-1)
        for column in (transitions.reward, transitions.cost)
    )
    assert returns is not None
    episodes = EpisodeTable(np.repeat(np.arange(count), recipe.steps), returns, costs, np.ones(count, bool))
    return Source(entry, transitions, episodes, (), {**recipe.settings, "seed": seed}, (digest,))


def _converted(entry: DatasetInfo, raw: Raw, paths: tuple[Path, ...], metadata: dict[str, Any]) -> Source:
    """A flat file by DSRL's conversion where it has costs, else by D4RL's."""
    try:
        if raw.costs is None:
            transitions, index = qlearning(raw, entry.max_episode_steps)
        else:
            transitions, index = dsrl.transitions(raw), np.arange(len(raw.rewards))
    except UsageError as error:
        raise UsageError(f"{paths[0]}: {error}") from error
    found = bounds(raw, entry.max_episode_steps, split_at_terminals=not entry.goal)
    returns = sums(raw.rewards, found)
    episodes = EpisodeTable(
        numbers(found)[index],
        np.minimum(returns, 1.0) if entry.goal else returns,
        None if raw.costs is None else sums(raw.costs, found),
        found.complete,
    )
    return Source(entry, transitions, episodes, paths, metadata)


def _from_minari(name: str, folder: Path) -> Source:
    data = minari.read_minari(folder)
    low, high = data.metadata.get("ref_min_score"), data.metadata.get("ref_max_score")
    reference = None if low is None or high is None else (float(low), float(high))
    entry = DatasetInfo(name, env=minari.env_of(data.metadata), reference=reference)
    entry = _completed(entry, data.metadata.get("provenance", {}))
    returns = sums(np.asarray(data.transitions.reward), data.episodes)
    episodes = EpisodeTable(numbers(data.episodes), returns, None, data.episodes.complete)
    return Source(entry, data.transitions, episodes, (data.file,), data.metadata)


def _completed(entry: DatasetInfo, metadata: dict[str, Any]) -> DatasetInfo:
    """Fill what the name leaves open from the file's attributes env, dataset and max_episode_steps."""
    dataset, steps = str(metadata.get("dataset")), metadata.get("max_episode_steps")
    if entry.reference is None and dataset in dsrl.tasks():
        entry = replace(entry, reference=dsrl.tasks()[dataset].reference, top_score=dsrl.TOP_SCORE)
    return replace(
        entry,
        env=entry.env or (str(metadata["env"]) if metadata.get("env") else None),
        reference=entry.reference or scores.table().get(dataset),
        max_episode_steps=entry.max_episode_steps or (None if steps is None else int(steps)),
    )
