"""`load`: from a data set's name or file to arrays on the device, with what is known of their origin."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs import pointmix
from envs.core import Dataset, Spec, Transition, UsageError
from envs.datasets import minari, scores
from envs.datasets.d4rl import qlearning
from envs.datasets.download import fetch
from envs.datasets.episodes import episode_returns
from envs.datasets.files import sha256_of
from envs.datasets.hdf5 import Raw, read_hdf5
from envs.datasets.metadata import read_metadata
from envs.datasets.mixed import mix
from envs.datasets.registry import EMBEDDED, DatasetInfo, lookup

STD_OFFSET = 1e-3  # added to the standard deviation, as in TD3+BC and its descendants


@dataclass(frozen=True)
class DataInfo:
    """Where loaded data come from and what they are."""

    name: str
    env: str | None  # our environment to evaluate on, if the data set or its file names one
    max_episode_steps: int | None
    paths: tuple[str, ...]
    sha256: tuple[str, ...]  # one for each path, or that of generated arrays
    reference: scores.Reference | None  # returns of score 0 and 100
    behaviour_returns: np.ndarray  # (E,) of the complete episodes, unshaped rewards; AntMaze: 1 for a success
    transitions: int
    obs_dim: int
    action_dim: int
    normalize: bool
    reward_scale: float
    reward_shift: float
    metadata: dict[str, Any]  # provenance found in the files

    def behaviour_score(self) -> float | None:
        """Mean normalised score of the behaviour policy; None where references or whole episodes lack."""
        if self.reference is None or len(self.behaviour_returns) == 0:
            return None
        return float(scores.score(self.behaviour_returns, self.reference).mean())


class LoadedData(NamedTuple):
    """What `load` returns."""

    dataset: Dataset
    info: DataInfo


class _Source(NamedTuple):
    """Transitions as numpy arrays, before shaping and normalisation."""

    entry: DatasetInfo
    transitions: Transition
    returns: np.ndarray
    paths: tuple[Path, ...]
    metadata: dict[str, Any]
    sha256: tuple[str, ...] = ()  # of data that are in no file


def load(
    name: str | None,
    *,
    path: str | Path | None = None,
    normalize: bool | None = None,
    reward_scale: float | None = None,
    reward_shift: float | None = None,
    obs_dim: int | None = None,
    action_dim: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> LoadedData:
    """Load a data set onto the device.

    name: one of D4RL's data sets, a mixture such as `hopper-random-expert-0.1-v2`, `embedded`, a PointMix
        recording such as `pointmix-random-expert-0.1`, `minari:ID`, or None or `custom` for a file of one's own.
    path: a file in D4RL's layout (any name then only gives time limit and reference scores), a folder that
        holds the named file, or the folder of a Minari data set. Without it the data set is fetched into the cache.
    normalize, reward_scale, reward_shift: None takes the data set's default: normalised and scale 1, shift 0;
        PointMix is not normalised, AntMaze not normalised and scale 1, shift -1. Rewards become scale * r + shift.
    obs_dim, action_dim: refuse data of other dimensions.
    seed: of the draw of a mixture or of PointMix; nothing else is random.

    Observations are normalised by mean and population standard deviation + 1e-3 of the `obs` column (not
    `next_obs`), in float32. Actions are left as recorded, also those outside [-1, 1].
    Raises UsageError for every mistake that the user can mend.
    """
    source = _read(name, path, seed, cache_dir)
    entry = source.entry
    normalize = entry.normalize if normalize is None else normalize
    scale = entry.reward_scale if reward_scale is None else float(reward_scale)
    shift = entry.reward_shift if reward_shift is None else float(reward_shift)
    info = DataInfo(
        name=entry.name,
        env=entry.env,
        max_episode_steps=entry.max_episode_steps,
        paths=tuple(str(file) for file in source.paths),
        sha256=source.sha256 + tuple(sha256_of(file) for file in source.paths),
        reference=entry.reference,
        behaviour_returns=source.returns,
        transitions=len(source.transitions.reward),
        obs_dim=source.transitions.obs.shape[-1],
        action_dim=source.transitions.action.shape[-1],
        normalize=normalize,
        reward_scale=scale,
        reward_shift=shift,
        metadata=source.metadata,
    )
    _check_dimensions(info, obs_dim, action_dim)
    return LoadedData(to_device(source.transitions, normalize, scale, shift), info)


def to_device(transitions: Transition, normalize: bool, scale: float, shift: float) -> Dataset:
    """Shape rewards, normalise observations and move everything to the default device."""
    obs, next_obs = np.asarray(transitions.obs), np.asarray(transitions.next_obs)
    mean, std = np.zeros(obs.shape[-1], np.float32), np.ones(obs.shape[-1], np.float32)
    if normalize:
        # Summed in float32, as the field's reference implementations do: at a million rows the statistics
        # differ from float64 sums by about 2e-4, and results stay comparable to the last bit.
        mean, std = obs.mean(axis=0), obs.std(axis=0) + np.float32(STD_OFFSET)
        obs, next_obs = (obs - mean) / std, (next_obs - mean) / std
    reward = np.float32(scale) * np.asarray(transitions.reward) + np.float32(shift)
    fields = transitions._replace(obs=obs, next_obs=next_obs, reward=reward)  # type: ignore[arg-type]
    return jax.tree.map(jnp.asarray, Dataset(fields, mean, std))  # type: ignore[arg-type]


def check_spec(loaded: LoadedData, spec: Spec) -> None:
    """Raise UsageError where the data do not fit an environment or algorithm of these dimensions."""
    _check_dimensions(loaded.info, spec.obs_dim, spec.action_dim)


def _check_dimensions(info: DataInfo, obs_dim: int | None, action_dim: int | None) -> None:
    for what, found, wanted in [
        ("observations", info.obs_dim, obs_dim),
        ("actions", info.action_dim, action_dim),
    ]:
        if wanted not in (None, found):
            mend = "choose the environment that the data were recorded in"
            raise UsageError(f"data set {info.name}: {what} have {found} dimensions, {wanted} are needed; {mend}")


def _read(name: str | None, path: str | Path | None, seed: int, cache_dir: str | Path | None) -> _Source:
    """Choose the reader for a name and a path."""
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
        return _from_d4rl(DatasetInfo("custom"), given)
    entry = lookup(str(name))
    if entry.generated and given is None:
        return _from_pointmix(entry, seed)
    if entry.parts is not None and (given is None or given.is_dir()):
        return _from_mixture(entry, entry.parts, given, seed, cache_dir)
    return _from_d4rl(entry, _file_of(entry, given, cache_dir))


def _file_of(entry: DatasetInfo, given: Path | None, cache_dir: str | Path | None) -> Path:
    """The file of a named data set: the given one, the one in the given folder, or the one in the cache."""
    if given is not None and not given.is_dir():
        return given
    if entry.name == "embedded":
        return EMBEDDED if given is None else given / EMBEDDED.name
    if entry.file is None:
        raise UsageError(f"data set {entry.name} has no file to look for in {given}: leave data.path out")
    return given / entry.file if given is not None else fetch(entry.file, entry.urls, cache_dir)


def _from_d4rl(entry: DatasetInfo, path: Path) -> _Source:
    raw, metadata = read_hdf5(path), read_metadata(path)
    entry = _completed(entry, metadata)
    return _converted(entry, raw, (path,), metadata)


def _from_mixture(
    entry: DatasetInfo, parts: tuple[str, str], given: Path | None, seed: int, cache_dir: str | Path | None
) -> _Source:
    paths = tuple(_file_of(lookup(part), given, cache_dir) for part in parts)
    good, bad = (read_hdf5(path) for path in paths)
    widths = [(raw.observations.shape[1], raw.actions.shape[1]) for raw in (good, bad)]
    if widths[0] != widths[1]:
        raise UsageError(f"{paths[0]} and {paths[1]} differ in (observation, action) dimensions: {widths}")
    raw = mix(good, bad, entry.ratio, seed, entry.max_episode_steps)
    return _converted(entry, raw, paths, {"ratio": entry.ratio, "seed": seed})


def _from_pointmix(entry: DatasetInfo, seed: int) -> _Source:
    transitions = jax.tree.map(np.asarray, pointmix.make_dataset(seed, entry.ratio))
    returns = transitions.reward.astype(np.float64).reshape(-1, pointmix.HORIZON).sum(-1)
    digest = hashlib.sha256(b"".join(field.tobytes() for field in transitions)).hexdigest()
    return _Source(entry, transitions, returns, (), {"ratio": entry.ratio, "seed": seed}, (digest,))


def _converted(entry: DatasetInfo, raw: Raw, paths: tuple[Path, ...], metadata: dict[str, Any]) -> _Source:
    try:
        transitions, _ = qlearning(raw, entry.max_episode_steps)
    except UsageError as error:
        raise UsageError(f"{paths[0]}: {error}") from error
    returns = episode_returns(raw, entry.max_episode_steps, split_at_terminals=not entry.goal)
    return _Source(entry, transitions, np.minimum(returns, 1.0) if entry.goal else returns, paths, metadata)


def _from_minari(name: str, folder: Path) -> _Source:
    data = minari.read_minari(folder)
    low, high = data.metadata.get("ref_min_score"), data.metadata.get("ref_max_score")
    reference = None if low is None or high is None else (float(low), float(high))
    entry = DatasetInfo(name, env=minari.env_of(data.metadata), reference=reference)
    entry = _completed(entry, data.metadata.get("provenance", {}))
    return _Source(entry, data.transitions, data.returns, (data.file,), data.metadata)


def _completed(entry: DatasetInfo, metadata: dict[str, Any]) -> DatasetInfo:
    """Fill what the name leaves open from the file's attributes env, dataset and max_episode_steps."""
    ref = scores.table().get(str(metadata.get("dataset")))
    steps = metadata.get("max_episode_steps")
    return replace(
        entry,
        env=entry.env or (str(metadata["env"]) if metadata.get("env") else None),
        reference=entry.reference or ref,
        max_episode_steps=entry.max_episode_steps or (None if steps is None else int(steps)),
    )
