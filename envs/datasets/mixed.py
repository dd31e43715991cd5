"""Suboptimal mixtures `<robot>-random-{medium,expert}-<ratio>-v2`: mostly random data, a share of good
episodes.

The recipe is that of Hong et al. (ICLR 2023): episodes are drawn uniformly with replacement, good ones
until their rows exceed int(ratio * N), then bad ones until theirs exceed the rest of N, where N is the size
of the good data.
"""

import numpy as np

from envs.datasets.episodes import Episodes, bounds
from envs.datasets.hdf5 import Raw


def mix_indices(good: Episodes, bad: Episodes, rows: int, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the good and of the bad data: whole episodes in the order drawn, a function of the seed."""
    rng = np.random.default_rng(seed)
    from_good = _draw(good, int(ratio * rows), rng)
    return from_good, _draw(bad, rows - len(from_good), rng)


def mix(good: Raw, bad: Raw, ratio: float, seed: int, max_episode_steps: int | None = None) -> Raw:
    """The mixture as a flat file: good episodes first. Its size is N plus at most an episode of each kind.

    Drawn episodes lie side by side, so the end of a data set's last, unfinished one is marked as a timeout:
    its last row has no successor, here as in the data set that it comes from.
    """
    good_episodes, bad_episodes = bounds(good, max_episode_steps), bounds(bad, max_episode_steps)
    index = mix_indices(good_episodes, bad_episodes, len(good.rewards), ratio, seed)
    good, bad = _closed(good, good_episodes), _closed(bad, bad_episodes)
    columns = {
        key: np.concatenate([getattr(good, key)[index[0]], getattr(bad, key)[index[1]]])
        for key in Raw._fields
        if getattr(good, key) is not None and getattr(bad, key) is not None
    }
    return Raw(**columns)


def _draw(episodes: Episodes, more_than: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of episodes drawn until there are more than `more_than` of them."""
    if more_than < 0:
        return np.zeros(0, np.int64)
    enough = more_than // int(episodes.length.min()) + 1
    drawn = rng.integers(len(episodes.start), size=enough)
    drawn = drawn[: np.searchsorted(np.cumsum(episodes.length[drawn]), more_than, side="right") + 1]
    start, length = episodes.start[drawn], episodes.length[drawn]
    first = np.cumsum(length) - length  # where each drawn episode begins in the output
    return np.arange(length.sum()) + np.repeat(start - first, length)


def _closed(raw: Raw, episodes: Episodes) -> Raw:
    """`raw` with a timeout at the end of each episode that does not end with a terminal row."""
    timeouts = np.zeros(len(raw.rewards), bool) if raw.timeouts is None else raw.timeouts.copy()
    last = episodes.start + episodes.length - 1
    timeouts[last] |= ~raw.terminals[last]
    return raw._replace(timeouts=timeouts)
