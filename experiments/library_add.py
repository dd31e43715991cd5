"""Skills into a library: copied whole or not at all, and nothing that was there is touched."""

import contextlib
import datetime
import fcntl
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs.core import UsageError
from experiments import provenance, results
from experiments.checkpoint import Checkpoints
from experiments.library import BASE, FIELDS, check_arrays, check_library, is_skill, kept, place, read_base, short

CRITIC = ("q", "q_target", "v")  # what is kept of a critic: the optimisers' states are of no more use


def add(lib: Path, run_dir: Path, name: str, kind: str | None = None) -> list[Path]:
    """Copy what a run of algo=psec_skill learnt into the library, which is made if it is not there; the new folders.

    A run of several kinds gives a skill for each, NAME-KIND, or with `kind` that one alone, NAME. Folders appear whole
    or not at all, and nothing that was there is touched.

    Raises:
        UsageError: no such run, no skill, another base, a name that is taken or unusable, `lib` is no library.
    """
    part, note, update = _read_run(run_dir)
    chosen = _names(run_dir, note["config"]["algo"]["static"]["kinds"], name, kind)
    skills = {title: _skill(run_dir, part, note, update, index) for title, index in chosen.items()}
    digest, here = provenance.tree_sha256(part["base"]), provenance.describe()
    check_library(lib)
    with _alone(lib):
        if (taken := next((title for title in skills if (lib / "skills" / title).exists()), None)) is not None:
            raise UsageError(f"{lib} has a skill {taken} already, and skills are never replaced: choose another name=")
        if (lib / "base").exists():
            theirs = read_base(lib / "base")[1]["base"]["sha256"]
            if theirs != digest:
                raise UsageError(
                    f"{run_dir} is a skill of base {short(digest)}, the skills in {lib} are of base {short(theirs)}: "
                    "add it to another library"
                )
        else:
            place(lib / "base", 0, {"base": part["base"]}, _base_note(note, digest) | here)
        for title, (arrays, more) in skills.items():
            told = {"skill": {"name": title, **more}, "base": {"place": BASE, "sha256": digest}}
            place(lib / "skills" / title, update, arrays, told | kept(note) | here)
    return [lib / "skills" / title for title in skills]


def _read_run(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Arrays, note and number of updates of the newest undamaged checkpoint of a run of skills."""
    if not run_dir.is_dir():
        raise UsageError(f"{run_dir}: there is no such run directory")
    checkpoints = Checkpoints(run_dir)
    if not checkpoints.steps():
        seeds = sorted(run_dir.glob("seed*/checkpoints"))
        mend = f"did you mean {seeds[0].parent}?" if seeds else "train there until run.save_every"
        raise UsageError(f"{run_dir} holds no checkpoint; {mend}")
    found, update = checkpoints.parts(FIELDS), checkpoints.newest()
    if found is None or update is None:
        raise UsageError(f"every checkpoint in {checkpoints.folder} is damaged; train again with run.fresh=true")
    part, note = found
    if is_skill(note):
        raise UsageError(f"{run_dir} is a skill of a library: add the run that it was, {note['skill']['run']}")
    if (algo := note["config"]["algo"]["name"]) != "psec_skill":
        raise UsageError(f"{run_dir} is a run of algo={algo}: a skill is a run of algo=psec_skill")
    return part, note, update


def _names(run_dir: Path, kinds: list[str], name: str, kind: str | None) -> dict[str, int]:
    """Names of the skills to add, with their indices in the run."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"name={name} names a folder: use letters, digits, '_', '-' and '.'")
    if kind is not None and kind not in kinds:
        raise UsageError(f"kind={kind}: {run_dir} has {', '.join(kinds)}")
    if len(set(kinds)) < len(kinds):
        raise UsageError(f"{run_dir} has two skills of a kind ({', '.join(kinds)}): train each in a run of its own")
    if kind is not None:
        return {name: kinds.index(kind)}
    return {name if len(kinds) == 1 else f"{name}-{kind}": index for index, kind in enumerate(kinds)}


def _skill(run_dir: Path, part: dict, note: dict, update: int, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays of one of a run's skills, padding cut off, and what its note says beside the run's."""
    static, rank = note["config"]["algo"]["static"], int(note["config"]["algo"]["hyper"]["rank"])
    lora = jax.tree.map(lambda x: np.asarray(x)[index : index + 1], part["lora"])
    if any(np.any(leaf) for leaf in jax.tree.leaves(_ranks(lora, slice(rank, None)))):
        raise UsageError(f"{run_dir} is noted as of rank {rank}, but its factors have more")
    critics = {side: {k: critic[k] for k in CRITIC} for side, critic in part["critics"].items()}
    arrays = {"lora": _ranks(lora, slice(rank)), "scale": np.asarray(part["scale"])[index : index + 1]}
    check_arrays(run_dir, arrays, part["base"], rank)
    arrays["critics"] = jax.tree.map(np.asarray, critics)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays)):
        raise UsageError(f"{run_dir} has diverged, its skill is not finite: train it anew with another learning rate")
    result = results.read(run_dir) or {}
    finished = result.get("updates") == update
    acted = finished and index == static["acting"]  # evaluations were of one of the run's skills
    return arrays, {
        "kind": static["kinds"][index],
        "rank": rank,
        "scale": float(arrays["scale"][0]),
        "adapter": static["adapter"],
        "skill_activation": static["skill_activation"],
        "data": _data_name(note["config"]["data"]),
        "score": result["score"]["last"] if acted else None,
        "score_is": result["score_is"] if acted else None,
        "updates": update,
        "run": str(run_dir),
        "trained_with": {key: result[key] for key in ("versions", "device", "git")} if finished else None,
        "added": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    }


def _ranks(lora: Any, which: slice) -> Any:
    """Some of the factors' ranks: columns of A, rows of B."""
    if "A" in lora:
        return {"A": lora["A"][..., which], "B": lora["B"][..., which, :]}
    return {name: _ranks(child, which) for name, child in lora.items()}


def _base_note(note: dict[str, Any], digest: str) -> dict[str, Any]:
    """What is known of the base of a run of skills, from the run and, if it is still there, from the base's own."""
    run = note["start"][0]["place"]
    found = Checkpoints(Path(run)).parts(("base",))
    origin: dict[str, Any] = {"sha256": digest, "data": None, "data_sha256": None, "run": run}
    if found and provenance.tree_sha256(found[0]) == digest:
        theirs = found[1]
        if "base" in theirs:  # that of another library
            origin = theirs["base"]
        else:
            origin |= {"data": _data_name(theirs["config"]["data"]), "data_sha256": theirs["data_sha256"]}
    algo = {"name": "psec_base", "static": {"net": note["config"]["algo"]["static"]["net"]}}
    shapes = {name: note[name] for name in ("obs_dim", "action_dim", "max_action")}
    return {"base": origin, "config": {"algo": algo}} | shapes


def _data_name(data: dict[str, Any]) -> str:
    return Path(data["path"]).name if data["name"] == "custom" and data["path"] else data["name"]


@contextlib.contextmanager
def _alone(lib: Path) -> Iterator[None]:
    """Hold the library, once other processes are done with adding to it."""
    with contextlib.ExitStack() as held:
        try:
            lib.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(open(lib / ".lock", "w"))
        except OSError as error:
            raise UsageError(f"{lib} cannot be written: {error.strerror}") from None
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
