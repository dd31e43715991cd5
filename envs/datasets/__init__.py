"""Offline data: D4RL's layout and DSRL's, Minari, mixtures, the embedded data set, all as `envs.core.Dataset`."""

from envs.datasets.dsrl import normalized_return
from envs.datasets.loader import DataInfo, LoadedData, check_spec, load
from envs.datasets.scores import normalized_cost, normalized_score, reference

__all__ = [
    "DataInfo",
    "LoadedData",
    "check_spec",
    "load",
    "normalized_cost",
    "normalized_return",
    "normalized_score",
    "reference",
]
