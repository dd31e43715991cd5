"""Whether a population fits into memory, said before any of it is taken."""

import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import algos
from algos.core import Algorithm, Env, Spec
from algos.host_memory import HOST, shapes_and_spaces
from envs.core import UsageError
from experiments.config import Config, algo_module
from experiments.task import Task

_CAPACITY = ("buffer_capacity", "buffer_size")  # what settings of an algorithm call the rows of its replay
_HOST = "this machine's memory"
_CGROUP = [  # versions 2 and 1: folder below sys/fs/cgroup, limit, usage, and what of it are files read, not needed
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
]


def tree_bytes(tree: Any) -> int:
    """Of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def member_bytes(config: Config, algo: Algorithm, spec: Spec, env: Env | None) -> tuple[int, int]:
    """What a member's replay takes, and the rest of its state; nothing is computed. `env`: that an online one has."""
    replay, rest, _ = member_parts(config, algo, spec, env)
    return replay, rest


def member_parts(config: Config, algo: Algorithm, spec: Spec, env: Env | None) -> tuple[int, int, int]:
    """The same, and how much of the replay is meant for the host's memory."""
    key, hyper = jax.random.key(0), jax.tree.map(jnp.float32, config.algo.hyper)
    module, begun = algo_module(config.algo.name), [env] if config.algo.name in algos.ONLINE else []
    example = lambda: module.example_start(key, config.algo.static, spec, *begun)  # noqa: E731
    start = jax.eval_shape(example) if config.start else ()
    state, spaces = shapes_and_spaces(algo.init, key, hyper, *start)
    replay = sum(tree_bytes(getattr(state, name)) for name in algo.replay)
    on_host = [x for x, space in zip(jax.tree.leaves(state), jax.tree.leaves(spaces), strict=True) if space == HOST]
    return replay, tree_bytes(state) - replay, tree_bytes(on_host)


def check(config: Config, task: Task, members: int) -> None:
    """Say what the replay of so many members trained together takes, if they have one.

    Counted are the states of a device's share of the members and, where these are trained in turn, a copy of the one
    whose turn it is. Gradients and activations come on top. What is meant for the host's memory is counted there.

    Raises:
        UsageError: the states alone do not fit into the memory that is left.
    """
    if not members:
        return
    devices = min(jax.local_device_count(), members)
    share = -(-members // devices)
    copies = int(task.how == "map" and share > 1)
    place, free = _left(jax.local_devices()[0])
    held = share + copies
    env = task.env if isinstance(task.env, Env) else None
    replay, rest, on_host = member_parts(config, task.algo, task.spec, env)
    count = f"{share} member{'s' * (share > 1)}" + " a device" * (devices > 1) + " and a copy of one" * copies
    offered = place != _HOST and getattr(config.algo.static, "frames_in", "host") == "device"
    if on_host and place != _HOST:
        _check_states(config, held * (replay - on_host + rest), count, place, free)
        (place, free), replay, rest = (_HOST, host_bytes()), on_host, 0
    held *= devices if place == _HOST else 1
    if not replay:
        _check_states(config, held * rest, count, place, free)
        return
    room, fits = _room(place, free), free is None or held * (replay + rest) <= free
    key, rows = next((name, rows) for name in _CAPACITY if (rows := getattr(config.algo.static, name, None)))
    told = f"{rows:,} rows x {_size(replay / rows)} x {count} = {_size(held * replay)} of {room}"
    if not fits:
        mend = "make it smaller" + ", set algo.static.frames_in=host" * offered
        mend += ", or train fewer seeds at a time" * (members > 1)
        raise UsageError(f"algo.static.{key}={rows} is too much, a replay of {told}: {mend}")
    print(f"replay: {told}", file=sys.stderr, flush=True)


def _check_states(config: Config, needed: int, count: str, place: str, free: int | None) -> None:
    if free is not None and needed > free:
        raise UsageError(
            f"algo={config.algo.name}: the states of {count} take {_size(needed)} of {_room(place, free)}: train fewer "
            "seeds at a time, or narrower networks"
        )


def _room(place: str, free: int | None) -> str:
    return place if free is None else f"{place}, which has {_size(free)} left"


def _left(device: jax.Device) -> tuple[str, int | None]:
    """Where a device's arrays lie, and the bytes left there."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return str(device), stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return _HOST, host_bytes()


def host_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still have: what the machine has available, within the limits of its cgroups.

    None where the machine does not say. `root`: where `proc` and `sys` are.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in os.sysconf_names else None
    return min([available, *_cgroup_bytes(root)])


def _cgroup_bytes(root: Path) -> list[int]:
    """What the cgroups of this process, and those around them, leave of their limits."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        folder, limit, usage, files = _CGROUP[controllers == "memory"]
        top = root / "sys/fs/cgroup" / folder
        inside = top / path.lstrip("/")
        for group in (inside, *inside.parents):  # in a container, the path may be that of the machine outside
            if group.is_relative_to(top):
                found += _left_of(group / limit, group / usage, group / "memory.stat", files)
    return found


def _left_of(limit: Path, usage: Path, stat: Path, files: str) -> list[int]:
    try:
        most, used = limit.read_text().strip(), int(usage.read_text())
        kept = dict(line.split() for line in stat.read_text().splitlines()) if stat.exists() else {}
    except (OSError, ValueError):
        return []
    return [] if most == "max" else [max(0, int(most) - used + int(kept.get(files, 0)))]


def _size(count: float) -> str:
    """Bytes for reading."""
    power = next((p for p in (4, 3, 2, 1) if count >= 1000**p), 0)
    return f"{count / 1000**power:,.{1 if power else 0}f} {['bytes', 'kB', 'MB', 'GB', 'TB'][power]}"
