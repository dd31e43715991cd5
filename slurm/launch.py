"""From the override lists of a sweep to its jobs: check, plan, print, submit."""

import copy
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from envs.core import UsageError
from experiments import config as schema
from experiments import provenance, rundir
from experiments.cli import one_line
from hydra_plugins.adaptax_launcher.config import LauncherConf
from slurm import memory, pack, submit, sweep
from slurm.pack import Overrides, Program

CHECKED = 1000  # distinct values of a key that are checked beforehand; the jobs check all
SHOWN = 20  # programs of a plan that are printed


@dataclass
class Planned:
    """One program: composed without what its members differ in."""

    program: Program
    composed: DictConfig
    config: schema.Config
    groups: list[list[Overrides]]
    member_bytes: int | None  # None: not known before the data are there
    shared_bytes: int

    def job_bytes(self) -> int | None:
        """Estimated memory of its largest job."""
        if self.member_bytes is None:
            return None
        return self.shared_bytes + self.member_bytes * max(len(group) for group in self.groups)

    def run_dir(self, member: Overrides) -> Path:
        """Where a member's files go."""
        config = copy.deepcopy(self.composed)
        for text in filter(pack.is_packed, member):
            _apply(config, text)
        return schema.run_dir(schema.to_config(config))


def launch(master: DictConfig, loader: ConfigLoader, options: LauncherConf, lists: Sequence[Sequence[str]]) -> int:
    """Launch a sweep, or what is left of it; the exit status.

    Raises:
        UsageError: see `plan_programs`; or the jobs cannot be submitted.
    """
    submit.check(options)
    jax.config.update("jax_platforms", "cpu")  # this process only plans: devices are for the jobs
    planned = plan_programs(lists, lambda overrides: composed(master, loader, overrides))
    folder, plan = make_plan(master, options, planned)
    show(folder, planned)
    left = unfinished(folder, plan, planned)
    running = submit.running(folder, plan, left)
    if len(left) < len(plan["groups"]) or running:
        print(f"{len(plan['groups']) - len(left)} groups have finished, {len(running)} are queued or running")
    plan["launcher"] = options.cluster
    plan.pop("refused", None)
    sweep.write(folder / sweep.PLAN, plan)
    typed = Path(master.hydra.sweep.dir) / "multirun.yaml"
    if typed.exists():
        typed.replace(folder / typed.name)
    return submit.submit(folder, plan, [index for index in left if index not in running], options)


def composed(master: DictConfig, loader: ConfigLoader, overrides: Sequence[str]) -> DictConfig:
    """A member's configuration as Hydra would hand it to its job."""
    config = loader.load_sweep_config(master, list(overrides))
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config


def plan_programs(lists: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], DictConfig]) -> list[Planned]:
    """The programs of a sweep, each composed once and divided into groups.

    Raises:
        UsageError: a member is named twice, a configuration is wrong, two members have one run directory.
    """
    planned = []
    estimates: dict[str, tuple[int | None, int]] = {}
    for program in pack.programs(lists):
        base = compose(program.shared)
        config = schema.to_config(base)
        check_values(program, base)
        subject = repr((config.algo, config.data, config.env))
        if subject not in estimates:
            estimates[subject] = memory.per_member(config), memory.shared(config)
        each, shared = estimates[subject]
        groups = pack.split(program.members, most_members(config, each, shared))
        planned.append(Planned(program, base, config, groups, each, shared))
    pack.check_unique([one.run_dir(member) for one in planned for member in one.program.members[:2]])
    return planned


def most_members(config: schema.Config, each: int | None, shared: int) -> int:
    """Members that one job may train.

    Raises:
        UsageError: not even one fits into run.memory_gb.
    """
    run = config.run
    if run.pack == "off":
        return 1
    if run.memory_gb is None or each is None:
        return run.max_members
    fitting = int((run.memory_gb * 1e9 - shared) // each)
    if fitting < 1:
        needed = (shared + each) / 1e9
        raise UsageError(f"run.memory_gb={run.memory_gb}: one member alone is estimated to need {needed:.2g} GB")
    return min(run.max_members, fitting)


def check_values(program: Program, base: DictConfig) -> None:
    """Refuse values of seed and algo.hyper.* that no member can have, without composing the members.

    Raises:
        UsageError: naming the override.
    """
    scratch = copy.deepcopy(base)
    for key, texts in pack.packed_texts(program).items():
        for text in texts if key == "seed" else texts[:CHECKED]:
            if key != "seed":
                _apply(scratch, text)
            elif not re.fullmatch(r"\+*seed=(-?\d+|\$\{.*\})", text):
                raise UsageError(f"{text}: a seed must be an integer")


def _apply(config: DictConfig, text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([text])
    key = override.key_or_group
    try:
        OmegaConf.update(config, key, override.value(), merge=True)
        OmegaConf.select(config, key)
    except OmegaConfBaseException as error:
        raise UsageError(f"{text}: {one_line(error)}") from None


def make_plan(master: DictConfig, options: LauncherConf, planned: list[Planned]) -> tuple[Path, dict[str, Any]]:
    """The sweep's directory and plan; a plan that is there already is kept, so that its groups stay what they are.

    Raises:
        UsageError: the directory holds another sweep.
    """
    members = [member for one in planned for member in one.program.members]
    mark = pack.fingerprint(members)
    algos = {one.config.algo.name for one in planned}
    name = options.name or f"{algos.pop() if len(algos) == 1 else 'sweep'}-{mark}"
    folder = (Path(master.hydra.sweep.dir) / name).absolute()
    if (folder / sweep.PLAN).exists():
        plan = sweep.read_plan(folder)
        if plan["members_hash"] != mark:
            raise UsageError(f"{folder} holds another sweep: choose another hydra.launcher.name")
        return folder, plan
    groups = [group for one in planned for group in one.groups]
    runtime = master.hydra.runtime
    compose = {
        "config_name": master.hydra.job.config_name,
        "job_name": master.hydra.job.name,
        "sources": OmegaConf.to_container(runtime.config_sources),
        "overrides": rundir.without_launching(list(master.hydra.overrides.hydra)),
    }
    command = shlex.join(["python", "-m", "experiments.train", *sys.argv[1:]])
    return folder, sweep.new_plan(command, options.cluster, compose, groups, provenance.versions())


def unfinished(folder: Path, plan: dict[str, Any], planned: list[Planned]) -> list[int]:
    """The groups that have a member without result, or whose members are to be trained afresh."""
    owner = {member: one for one in planned for member in one.program.members}
    left = []
    for index in range(len(plan["groups"])):
        members = sweep.members_of(plan, index)
        one = owner[members[0]]
        if one.config.run.fresh or not _all_finished(one, members, sweep.read_group(folder, index)):
            left.append(index)
    return left


def _all_finished(one: Planned, members: list[Overrides], told: dict[str, Any] | None) -> bool:
    first = one.run_dir(members[0]).absolute()
    if not (first / sweep.RESULT).exists():
        return False
    dirs = [Path(member["dir"]) for member in told["members"] if member["dir"]] if told else []
    if len(dirs) == len(members) and dirs[0] == first:  # the job worked them out already
        return all((path / sweep.RESULT).exists() for path in dirs)
    return all((one.run_dir(member) / sweep.RESULT).exists() for member in members[1:])


def show(folder: Path, planned: list[Planned]) -> None:
    """Print the plan."""
    members, jobs = sum(len(p.program.members) for p in planned), sum(len(p.groups) for p in planned)
    each = max((size for one in planned if (size := one.job_bytes()) is not None), default=None)
    counts = ", ".join(_count(n, what) for n, what in ((members, "member"), (len(planned), "program"), (jobs, "job")))
    print(f"sweep {sweep.short(folder)}: {counts}{_size(each, ' each at most' if jobs > 1 else '')}")
    for one, name in list(zip(planned, pack.labels([p.program for p in planned])))[:SHOWN]:
        keys = [key for key, texts in pack.packed_texts(one.program).items() if len(texts) > 1]
        differing = f", differing in {', '.join(keys)}" if keys else ""
        memory_told = _size(one.job_bytes(), " each" if len(one.groups) > 1 else "")
        held = f"{_count(len(one.program.members), 'member')} in {_count(len(one.groups), 'job')}"
        print(f"  {name or one.config.algo.name}: {held}{memory_told}{differing}")
    if len(planned) > SHOWN:
        print(f"  and {len(planned) - SHOWN:,} programs more")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _size(size: int | None, each: str) -> str:
    return "" if size is None else f", about {max(size / 1e9, 0.01):.2g} GB{each}"
