"""Offline data: D4RL's layout, Minari, mixtures, the embedded data set, all as `envs.core.Dataset`."""

from envs.datasets.loader import DataInfo, LoadedData, check_spec, load
from envs.datasets.scores import normalized_score, reference

__all__ = ["DataInfo", "LoadedData", "check_spec", "load", "normalized_score", "reference"]
