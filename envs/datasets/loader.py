"""`load`: from a data set's name or file to arrays on the device, with what is known of their origin."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import Dataset, Spec, Transition, UsageError
from envs.datasets import scores
from envs.datasets.files import sha256_of
from envs.datasets.select import Selection
from envs.datasets.sources import Source, read, read_more, split

STD_OFFSET = 1e-3  # added to the standard deviation, as in TD3+BC and its descendants


@dataclass(frozen=True)
class DataInfo:
    """Where loaded data come from and what they are."""

    name: str
    env: str | None  # our environment to evaluate on, if the data set or its file names one
    max_episode_steps: int | None
    paths: tuple[str, ...]
    sha256: tuple[str, ...]  # of generated arrays, then one for each path
    reference: scores.Reference | None  # returns of score 0 and of the top score
    top_score: float  # 100 as in D4RL, 1 as in DSRL
    behaviour_returns: np.ndarray  # (E,) of the whole episodes, unshaped rewards; AntMaze: 1 for a success
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
        return float(scores.score(self.behaviour_returns, self.reference, self.top_score).mean())


class LoadedData(NamedTuple):
    """What `load` returns."""

    dataset: Dataset
    info: DataInfo
    holdout: Dataset | None = None  # shaped and normalised as `dataset` is


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
    episodes: int | None = None,
    fraction: float | None = None,
    best_safe: int | None = None,
    holdout: int = 0,
    also: Sequence[str] = (),
    cost_limit: float = 10.0,
    reward_range: float | None = None,
    cache_dir: str | Path | None = None,
) -> LoadedData:
    """Load a data set onto the device.

    name: one of D4RL's or DSRL's data sets, a mixture such as `hopper-random-expert-0.1-v2`, `embedded`, a generated
        one such as `pointmix-random-expert-0.1`, `minari:ID`, or None or `custom` for a file of one's own.
    path: a file in D4RL's or DSRL's layout (any name then only gives time limit, references and defaults), a folder
        that holds the named file, or the folder of a Minari data set. Without it the file is fetched into the cache.
    normalize, reward_scale, reward_shift: None takes the data set's default: normalised and scale 1, shift 0;
        generated ones and AntMaze are not normalised, AntMaze has shift -1; DSRL's are not normalised and scaled by
        H / (R_max - R_min). Rewards become scale * r + shift; costs stay as recorded.
    reward_range: instead of a scale: rewards are scaled so that the returns of whole episodes, before anything is
        selected, lie so far apart (1000 is IQL's for locomotion).
    obs_dim, action_dim: refuse data of other dimensions.
    seed: of every random draw: a mixture, a generated data set, `holdout`, `episodes`, `fraction`.
    holdout, best_safe, episodes, fraction: cut in this order, see `select`: episodes kept apart from training; the
        best of those that cost at most half of `cost_limit`; random whole episodes; a random share of the transitions.
    also: data sets, by name or file, whose transitions are appended whole to what was selected: joint training.
        Their rewards are shaped, and their observations normalised, as those of the first; so are the held out ones.

    Observations are normalised by mean and population standard deviation + 1e-3 of the `obs` column (not
    `next_obs`), in float32. Actions are left as recorded, also those outside [-1, 1].
    Raises UsageError for every mistake that the user can mend.
    """
    wanted = Selection(holdout, best_safe, episodes, fraction, cost_limit, seed)
    found = read(name, path, seed, cache_dir)
    if reward_range is not None:
        reward_scale = _scale_of(found, reward_range, reward_scale)
    first, held_out = split(found, wanted)
    parts = [first, *(read_more(item, first, seed, cache_dir) for item in also)]
    transitions = _joined([part.transitions for part in parts])
    entry = first.entry
    normalize = entry.normalize if normalize is None else normalize
    scale = entry.reward_scale if reward_scale is None else float(reward_scale)
    shift = entry.reward_shift if reward_shift is None else float(reward_shift)
    info = DataInfo(
        name=entry.name,
        env=entry.env,
        max_episode_steps=entry.max_episode_steps,
        paths=tuple(str(file) for part in parts for file in part.paths),
        sha256=tuple(digest for part in parts for digest in _sha256(part)),
        reference=entry.reference,
        top_score=entry.top_score,
        behaviour_returns=np.concatenate([part.episodes.returns[part.episodes.whole] for part in parts]),
        transitions=len(transitions.reward),
        obs_dim=transitions.obs.shape[-1],
        action_dim=transitions.action.shape[-1],
        normalize=normalize,
        reward_scale=scale,
        reward_shift=shift,
        metadata=first.metadata,
    )
    _check_dimensions(info, obs_dim, action_dim)
    statistics = _statistics(transitions) if normalize else None
    dataset = _shaped(transitions, statistics, scale, shift)
    return LoadedData(dataset, info, None if held_out is None else _shaped(held_out, statistics, scale, shift))


def _scale_of(source: Source, reward_range: float, reward_scale: float | None) -> float:
    """The scale that makes the returns of whole episodes lie `reward_range` apart."""
    if reward_scale is not None:
        raise UsageError("data.reward_scale and data.reward_range exclude each other: set one of them")
    returns = source.episodes.returns[source.episodes.whole]
    span = float(np.ptp(returns)) if len(returns) else 0.0
    if not reward_range > 0 or not span > 0:
        raise UsageError(
            f"data.reward_range={reward_range} needs to be positive, and whole episodes of different returns"
        )
    return reward_range / span


def to_device(transitions: Transition, normalize: bool, scale: float, shift: float) -> Dataset:
    """Shape rewards, normalise observations and move everything to the default device."""
    return _shaped(transitions, _statistics(transitions) if normalize else None, scale, shift)


def _statistics(transitions: Transition) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each coordinate of `obs`."""
    # Summed in float32, as the field's reference implementations do: at a million rows the statistics
    # differ from float64 sums by about 2e-4, and results stay comparable to the last bit.
    obs = np.asarray(transitions.obs)
    return obs.mean(axis=0), obs.std(axis=0) + np.float32(STD_OFFSET)


def _shaped(
    transitions: Transition, statistics: tuple[np.ndarray, np.ndarray] | None, scale: float, shift: float
) -> Dataset:
    obs, next_obs = np.asarray(transitions.obs), np.asarray(transitions.next_obs)
    mean, std = np.zeros(obs.shape[-1], np.float32), np.ones(obs.shape[-1], np.float32)
    if statistics is not None:
        mean, std = statistics
        obs, next_obs = (obs - mean) / std, (next_obs - mean) / std
    reward = np.float32(scale) * np.asarray(transitions.reward) + np.float32(shift)
    fields = transitions._replace(obs=obs, next_obs=next_obs, reward=reward)  # type: ignore[arg-type]
    return jax.tree.map(jnp.asarray, Dataset(fields, mean, std))  # type: ignore[arg-type]


def _joined(parts: list[Transition]) -> Transition:
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *columns: np.concatenate(columns), *parts)


def _sha256(source: Source) -> tuple[str, ...]:
    return source.sha256 + tuple(sha256_of(file) for file in source.paths)


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
