"""What a number needs beside it to be believed: versions, device, commit, checksums."""

import hashlib
import platform
import resource
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

_PACKAGES = ("adaptax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "mujoco", "mujoco-mjx", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_hash() -> str | None:
    """The commit of the source tree, with `+changes` if the tree differs from it; None outside git."""
    root = Path(__file__).parent.parent

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def device() -> str:
    """The accelerator or processor, and how many of them."""
    devices = jax.local_devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = next(
            (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
            kind,
        )
        kind = f"{kind}, {len(_affinity())} cores"
    return f"{len(devices)} x {kind}" if len(devices) > 1 else kind


def peak_memory() -> int:
    """Peak bytes: of the accelerator where it counts them, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def tree_sha256(tree: Any) -> str:
    """SHA-256 of the bytes of all leaves, in order."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def describe() -> dict[str, Any]:
    """Versions, device and commit."""
    return {"versions": versions(), "device": device(), "git": git_hash()}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _affinity() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
