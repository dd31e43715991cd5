"""A plan made from the runs found below a folder, where nobody wrote one."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from experiments import config as configuration
from experiments.reporting.plan import Cell, Plan, Run, Table

_CONFIG = Path(".hydra") / "config.yaml"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there


@dataclass
class Found:
    """What one run directory says of itself."""

    folder: Path
    algo: str
    data: str
    config: str  # fingerprint
    seed: int
    updates: int | None
    score_is: str | None
    settings: dict[str, Any] = field(default_factory=dict)  # flat: "algo.hyper.lr" -> 3e-4


def folders(root: Path) -> list[Path]:
    """Run directories below `root`, those set aside (NAME.old1) left out."""
    found = (path.parent.parent for path in root.rglob(str(_CONFIG)))
    return sorted(f for f in found if not any(re.search(r"\.old\d+$", part) for part in f.relative_to(root).parts))


def plan(root: Path) -> Plan:
    """One table per kind of score: tasks are the data, methods the algorithms with what tells their settings apart."""
    runs = [_describe(folder) for folder in folders(root)]
    data_of = {run.config: run.data for run in runs if run.score_is}
    score_of = {run.config: run.score_is for run in runs if run.score_is}
    usual = Counter(run.score_is for run in runs if run.score_is).most_common(1)
    for run in runs:  # an unfinished run learns from its siblings how its data and score are called
        run.data = data_of.get(run.config, run.data)
        run.score_is = run.score_is or score_of.get(run.config) or (usual[0][0] if usual else "score")
    labels = _labels(runs)
    kinds = sorted({str(run.score_is) for run in runs})
    tables = [_table(kind, [run for run in runs if run.score_is == kind], labels, root) for kind in kinds]
    return Plan(tables, title="Runs found", command="python -m experiments.report", found=True)


def _table(kind: str, runs: list[Found], labels: dict[tuple[str, str, str], str], root: Path) -> Table:
    cells: dict[tuple[str, str], Cell] = {}
    repeated = 0
    for run in sorted(runs, key=lambda r: (r.data, labels[r.data, r.algo, r.config], r.seed)):
        label = labels[run.data, run.algo, run.config]
        cell = cells.setdefault((run.data, label), Cell(run.data, label, updates=run.updates, runs=[]))
        if any(other.seed == run.seed for other in cell.runs):
            repeated += 1
            continue
        cell.runs.append(Run(run.seed, run.folder.relative_to(root).as_posix()))
    note = f"{repeated} run directories repeat a seed of the same configuration and are left out." if repeated else ""
    return Table(re.sub(r"\W+", "-", kind).lower(), list(cells.values()), _capital(kind), note, metric=kind)


def _describe(folder: Path) -> Found:
    try:
        result = json.loads((folder / "result.json").read_text())
        digits = re.search(r"\d+$", folder.name)
        seed = int(result.get("seed", digits.group() if digits else 0))
        config = str(result["config"])
        return Found(folder, result["algo"], result["data"], config, seed, result["updates"], result["score_is"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return _describe_unfinished(folder)


def _describe_unfinished(folder: Path) -> Found:
    """From its configuration; where that is torn, from the directory's place: ALGO/DATA/CONFIG/seedN."""
    parts = ["?", *folder.parts][-4:]
    try:
        config = _load(folder)
        data = config["data"]["name"] if config["data"]["name"] != "none" else config["env"]["name"]
        fingerprint = configuration.fingerprint_of(config)
        updates = int(config["run"]["updates"])
        return Found(folder, config["algo"]["name"], data, fingerprint, int(config["seed"]), updates, None)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        digits = re.search(r"\d+$", folder.name)
        return Found(folder, parts[0], parts[1], parts[2], int(digits.group()) if digits else 0, None, None)


def _labels(runs: list[Found]) -> dict[tuple[str, str, str], str]:
    """A method's name for each (data, algorithm, configuration)."""
    labels = {}
    groups: dict[tuple[str, str], dict[str, Path]] = {}
    for run in runs:
        groups.setdefault((run.data, run.algo), {}).setdefault(run.config, run.folder)
    for (data, algo), configs in groups.items():
        settings = {config: _settings(folder) if len(configs) > 1 else {} for config, folder in configs.items()}
        every = sorted({key for flat in settings.values() for key in flat})
        differing = [key for key in every if len({str(flat.get(key)) for flat in settings.values()}) > 1]
        for config, flat in settings.items():
            words = [f"{key.removeprefix('algo.')}={flat.get(key)}" for key in differing]
            labels[data, algo, config] = f"{algo} ({', '.join(words) or config})" if len(configs) > 1 else algo
    if len(set(labels.items())) != len({(data, label) for (data, _, _), label in labels.items()}):
        return {key: f"{key[1]} ({key[2]})" for key in labels}
    return labels


def _settings(folder: Path) -> dict[str, Any]:
    """The recorded configuration, flat, without what does not change numbers."""
    try:
        config = _load(folder)
        run = {key: value for key, value in config.get("run", {}).items() if key not in configuration.UNHASHED}
    except (OSError, yaml.YAMLError, TypeError, AttributeError):
        return {}
    return _flat({key: value for key, value in config.items() if key != "seed"} | {"run": run}, "")


def _flat(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _load(folder: Path) -> dict[str, Any]:
    return yaml.load((folder / _CONFIG).read_text(), _LOADER)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
