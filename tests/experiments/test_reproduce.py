"""Paper configurations, the plan, and the command that trains it and ends with the report."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from envs.core import UsageError
from envs.datasets import download
from experiments import paper as papers
from experiments import reproduce as module
from experiments import results
from experiments import work as training
from experiments.interrupt import EX_TEMPFAIL
from experiments.paper import Entry, Paper, Table
from experiments.reporting.plan import Claim
from experiments.reproduce import ReproduceConfig, reproduce
from experiments.work import arrange
from hydra_plugins.adaptax_launcher.config import LauncherConf
from slurm.sweep import members_of
from slurm.worker import prepare

PAPERS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "paper").glob("*.yaml"))
QUICK = [
    "env=pointmix", "data=pointmix-random-expert-0.1", "run.updates=8", "run.eval_every=4", "run.save_every=4",
    "run.chunk=4", "run.eval_episodes=2",
]  # fmt: skip

module.register()


@pytest.fixture
def hydra():
    with initialize_config_module("configs", version_base="1.3"):
        yield


def loaded(name: str) -> Paper:
    found = OmegaConf.to_object(compose("reproduce", [f"paper={name}"]))
    assert isinstance(found, ReproduceConfig)
    return found.paper


def toy() -> Paper:
    """Two methods and two learning rates: two programs, of four members and of two."""
    tasks = [Entry(f"rate {rate}", [f"algo.hyper.actor_lr={rate}"]) for rate in (0.01, 0.1)]
    methods = [
        Entry("wide", ["algo=bc", "algo.static.hidden=[8]"]),
        Entry("narrow", ["algo=bc", "algo.static.hidden=[4]"], tasks=["rate 0.01"], ignore=["algo.hyper.actor_lr"]),
    ]
    table = Table("toy", "A toy", "Protocol.", tasks, methods, {"cpu": [], "gpu": []}, seeds=2, overrides=QUICK)
    claim = Claim("order", "Wide beats narrow", "toy", "rate 0.01", "wide", "narrow")
    return Paper("toy", "A toy paper", [table], [claim])


def configured(tmp_path: Path, **changes) -> ReproduceConfig:
    return dataclasses.replace(ReproduceConfig(toy(), root=str(tmp_path)), **changes)


def plan_of(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "toy-cpu" / "plan.json").read_text())


def folders(tmp_path: Path, plan: dict) -> list[Path]:
    runs = [run for table in plan["tables"] for cell in table["cells"] for run in cell["runs"]]
    return [tmp_path / "toy-cpu" / run["dir"] for run in runs]


@pytest.mark.parametrize("name", PAPERS)
def test_paper_configurations_are_complete(hydra, name: str) -> None:
    """Every cell of the cpu preset and one task of each other table composes; claims and published names exist."""
    paper = loaded(name)
    assert paper.name == name
    tables = {table.name: table for table in paper.tables}
    assert len(tables) == len(paper.tables)
    published = Path(__file__).parents[2] / "experiments" / "published"
    known = "".join(path.read_text() for path in published.glob(f"{name}*.csv"))
    for table in paper.tables:
        assert set(table.presets) <= set(papers.PRESETS)
        assert table.presets
        different = {tuple(table.presets[preset]): preset for preset in sorted(table.presets, reverse=True)}  # cpu wins
        for preset in different.values():
            short = table if preset == "cpu" else dataclasses.replace(table, tasks=table.tasks[:1], methods=[
                dataclasses.replace(method, tasks=None) for method in table.methods if method.tasks is None
            ])  # fmt: skip
            for cell in papers.cells(short, preset, Path("runs")):
                assert len(cell.members) == table.seeds
        names = (f"\n{table.published},", f'\n"{table.published}",')
        assert table.published is None or any(text in known for text in names)
    for claim in paper.claims:
        held = tables[claim.table]
        methods = [method.name for method in held.methods]
        assert claim.task in [task.name for task in held.tasks]
        assert {claim.better, claim.worse} & set(methods)
        assert claim.better in methods or float(claim.better) is not None
        assert claim.worse in [*methods, "behaviour policy"] or float(claim.worse) is not None
        assert claim.min_wins is None or claim.min_wins <= held.seeds


def test_members_that_differ_in_hyperparameters_share_a_program(hydra) -> None:
    cells = papers.cells(toy().tables[0], "cpu", Path("runs"))
    assert [(cell.task.name, cell.method.name) for cell in cells] == [
        ("rate 0.01", "wide"), ("rate 0.01", "narrow"), ("rate 0.1", "wide"),
    ]  # fmt: skip
    work = arrange(cells)
    assert [(one.cell.method.name, len(one.members)) for one in work] == [("wide", 4), ("narrow", 2)]
    assert {member.algo.hyper.actor_lr for member in work[0].members} == {0.01, 0.1}


def test_a_dry_run_prints_the_plan_and_writes_nothing(hydra, tmp_path: Path, capsys) -> None:
    assert reproduce(configured(tmp_path, dry_run=True), "command") == 0
    said = capsys.readouterr().out
    assert "2 programs" in said
    assert "toy" in said
    assert not list(tmp_path.iterdir())


def test_interrupted_continued_and_only_rendered(hydra, tmp_path: Path, capsys, monkeypatch) -> None:
    """Time runs out within the first program; the second call goes on; the third trains nothing."""
    real = training.train
    monkeypatch.setattr(training, "train", lambda members, **rest: real(members, deadline=time.monotonic()))
    assert reproduce(configured(tmp_path, minutes=1e-9), "command") == EX_TEMPFAIL
    assert not any(results.read(path) for path in folders(tmp_path, plan_of(tmp_path)))
    with pytest.raises(SystemExit) as leaving:  # as a signal would
        reproduce(configured(tmp_path), "command")
    assert leaving.value.code == EX_TEMPFAIL
    begun = [path for path in folders(tmp_path, plan_of(tmp_path)) if (path / "checkpoints" / "4").is_dir()]
    assert len(begun) == 4

    monkeypatch.setattr(training, "train", real)
    assert reproduce(configured(tmp_path), "command") == 0
    plan = plan_of(tmp_path)
    before = {path: results.read(path) for path in folders(tmp_path, plan)}
    assert len(before) == 6
    assert all(before.values())
    report = tmp_path / "toy-cpu" / "report"
    first = {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()}
    assert {"report.md", "report.html", "numbers.csv", "runs.csv", "curves.csv"} <= set(first)

    monkeypatch.setattr(training, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    assert reproduce(configured(tmp_path), "command") == 0
    assert {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()} == first

    changed = toy()
    changed.tables[0].methods[1].overrides.append("algo.hyper.actor_lr=0.5")
    monkeypatch.setattr(training, "train", real)
    assert reproduce(configured(tmp_path, paper=changed), "command") == 0
    said = capsys.readouterr().out
    assert "changed configuration: toy / rate 0.01 / narrow" in said
    assert "wide:" not in said.split("changed", 1)[1]
    assert all(path.is_dir() for path in before)


def test_data_that_cannot_be_had_are_reported_and_the_rest_is_trained(
    hydra, tmp_path: Path, monkeypatch, capsys
) -> None:
    paper = toy()
    lacking = dataclasses.replace(paper.tables[0], name="lacking", overrides=[*QUICK, "data=hopper-medium-v2"])
    paper.tables = [lacking, dataclasses.replace(paper.tables[0], methods=paper.tables[0].methods[1:])]
    paper.claims = []
    monkeypatch.setenv("ADAPTAX_DATA", str(tmp_path / "cache"))

    def refuse(name, *rest, **more):
        raise UsageError(f"{name} cannot be fetched")

    monkeypatch.setattr("envs.datasets.sources.fetch", refuse)
    assert reproduce(configured(tmp_path, paper=paper), "command") == 0
    said = capsys.readouterr()
    assert "missing data: hopper_medium-v2.hdf5" in said.out
    assert str(download.default_cache()) in said.out
    assert "not run: lacking: hopper_medium-v2.hdf5 cannot be fetched" in said.err
    lacking_cells, cells = (table["cells"] for table in plan_of(tmp_path)["tables"])
    assert all("hopper_medium-v2.hdf5 is missing" in cell["missing"] for cell in lacking_cells)
    assert [cell["missing"] for cell in cells] == [None]
    assert "hopper_medium-v2.hdf5 is missing" in (tmp_path / "toy-cpu" / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preset": "tpu"}, "preset=tpu: there are cpu, gpu, full"),
        ({"preset": "full"}, "preset=full has no table"),
        ({"only": "tabel"}, "only=tabel: paper=toy preset=cpu has the tables toy"),
        ({"submit": "cloud"}, "submit=cloud: there are none, slurm, slurm_local"),
        ({"minutes": 0.0}, "minutes=0.0 must be more than 0"),
    ],
)
def test_mistakes_are_named(hydra, tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        reproduce(configured(tmp_path, **changes), "command")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "plan.json"]


def test_slurm_is_asked_for_where_there_is_none(hydra, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no sbatch on this machine"):
        reproduce(configured(tmp_path, submit="slurm"), "command")
    assert not list(tmp_path.iterdir())


def test_the_command_line(command, tmp_path: Path) -> None:
    unknown = command("experiments.reproduce", "paper=a2rp")
    assert unknown.returncode == 2
    assert "did you mean a2pr" in unknown.stderr
    assert unknown.stderr.count("\n") == 1
    misspelt = command("experiments.reproduce", "+dryrun=true")
    assert misspelt.returncode == 2
    assert "did you mean dry_run" in misspelt.stderr


def test_populations_are_sent_as_jobs(hydra, tmp_path: Path, monkeypatch, capsys) -> None:
    """What a cluster is sent: each population as the overrides of its members, which the jobs compose to the same."""
    sent: dict = {}

    def submit(folder: Path, plan: dict, indices: list[int], options: LauncherConf) -> int:
        sent.update(folder=folder, plan=plan, indices=indices, options=options)
        return 0

    state = OmegaConf.create(
        {"runtime": {"config_sources": [{"provider": "main", "schema": "pkg", "path": "configs"}]}}
    )
    monkeypatch.setattr("slurm.submit.submit", submit)
    monkeypatch.setattr("experiments.submission.HydraConfig.get", lambda: state)
    slurm = LauncherConf(partition="gpu")
    assert reproduce(configured(tmp_path, submit="slurm_local", slurm=slurm), "command") == 0
    assert (sent["indices"], sent["options"].cluster, sent["options"].partition) == ([0, 1], "slurm_local", "gpu")
    GlobalHydra.instance().clear()
    members = [prepare(sent["plan"], members_of(sent["plan"], index)) for index in (0, 1)]
    assert [len(group) for group in members] == [4, 2]
    assert [member.error for group in members for member in group] == [None] * 6
    assert {member.dir for group in members for member in group} == set(folders(tmp_path, plan_of(tmp_path)))
