"""Methods of several phases: what begins from what, trained once and in order, and what becomes of the rest."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_module
from omegaconf import OmegaConf

from envs.core import UsageError
from experiments import paper as papers
from experiments import results
from experiments import work as training
from experiments.config import Config, run_dir
from experiments.paper import Entry, Paper, Stage, Table
from experiments.report import report
from experiments.reporting.plan import Claim
from experiments.reproduce import ReproduceConfig, register, reproduce
from experiments.work import arrange, begins_from
from hydra_plugins.adaptax_launcher.config import LauncherConf
from tests.experiments.test_report import write_run

NET = "{hidden: 8, blocks: 1, time_features: 2, time_hidden: [4, 4], dropout: 0.0}"
QUICK = [
    "env=pointmix", "data=pointmix-random-expert-0.1", "run.updates=8", "run.eval_every=4", "run.save_every=4",
    "run.chunk=4", "run.eval_episodes=2",
]  # fmt: skip
PSEC = [f"algo.static.net={NET}".replace(" ", ""), "algo.static.batch_size=16"]
SKILL = ["algo=psec_skill", "algo.static.kinds=[imitation]", *PSEC]

register()


@pytest.fixture
def hydra():
    with initialize_config_module("configs", version_base="1.3"):
        yield


def staged() -> Paper:
    """A base, a skill on it for each task, a composition of both; what else begins from the base, and from nothing."""
    stages = [Stage("base", ["algo=psec_base", *PSEC]), Stage("skill", [*SKILL], ["base"])]
    tasks = [Entry("slow"), Entry("fast", ["run.eval_episodes=3"], stages={"skill": ["algo.hyper.lr=0.1"]})]
    methods = [
        Entry("composed", ["algo=psec_compose", *PSEC], start=["skill", "skill"]),
        Entry("larger", [*SKILL, "algo.hyper.scale=32"], start=["base"], tasks=["slow"]),
        Entry("cloning", ["algo=bc", "algo.static.hidden=[4]"], tasks=["slow"]),
    ]
    table = Table("toy", "A toy", "Protocol.", tasks, methods, {"cpu": []}, seeds=2, overrides=QUICK, stages=stages)
    return Paper("toy", "A toy paper", [table])


def slow_alone() -> Paper:
    """The same with its first task alone."""
    paper = staged()
    paper.tables[0].tasks = paper.tables[0].tasks[:1]
    return paper


def fake_train(costs: Callable[[Config], list[float]] | None = None) -> Callable[..., None]:
    """Leaves behind what training would, with the costs of each evaluation."""

    def train(members: list[Config], deadline: float | None = None, refused: dict | None = None) -> None:
        for member in members:
            assert all(results.read(place) is not None for place in begins_from(member))
            folder = run_dir(member)
            write_run(folder, [1.0, 2.0], member.seed, updates=member.run.updates)
            rows = [f"{4 * i + 4},{i + 1},{cost}" for i, cost in enumerate(costs(member) if costs else [0.0, 0.0])]
            (folder / "metrics.csv").write_text("\n".join(["update,score,cost_mean", *rows]) + "\n")

    return train


def configured(tmp_path: Path, paper: Paper, **changes: Any) -> ReproduceConfig:
    return dataclasses.replace(ReproduceConfig(paper, root=str(tmp_path)), **changes)


def plan_of(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "toy-cpu" / "plan.json").read_text())


def test_stages_are_shared_and_come_before_what_begins_from_them(hydra) -> None:
    cells = papers.cells(staged().tables[0], "cpu", Path("runs"))
    work = arrange(cells)
    # The two learning rates share a program where nothing but hyperparameters differs: the skills, not compositions.
    assert [(one.cell.method.name, len(one.members)) for one in work] == [
        ("base", 2), ("skill", 6), ("composed", 2), ("cloning", 2), ("composed", 2),
    ]  # fmt: skip
    finished: set[Path] = set()
    for one in work:
        assert {place for member in one.members for place in begins_from(member)} <= finished
        finished |= {run_dir(member) for member in one.members}
    slow, larger, cloning, fast = cells
    base, skill = slow.stages
    assert skill.members[1].start == [str(base.folder)]
    assert slow.members[1].start == [str(skill.folder), str(skill.folder)]
    assert slow.members[1].start != fast.members[1].start
    assert larger.stages[0].folder == fast.stages[0].folder == base.folder
    assert fast.stages[1].members[0].algo.hyper.lr == 0.1
    assert (fast.stages[1].members[0].run.eval_episodes, fast.members[0].run.eval_episodes) == (2, 3)
    assert cloning.stages == []


def test_the_report_has_the_methods_and_names_the_stages(hydra, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(training, "train", fake_train())
    assert reproduce(configured(tmp_path, staged()), "command") == 0
    assert "5 programs" in capsys.readouterr().out
    (table,) = plan_of(tmp_path)["tables"]
    assert [cell["method"] for cell in table["cells"]] == ["composed", "larger", "cloning", "composed"]
    assert [len(cell["start"]) for cell in table["cells"]] == [2, 1, 0, 2]
    places = {folder for cell in table["cells"] for folder in cell["start"]}
    assert all((tmp_path / "toy-cpu" / folder / "seed1" / "result.json").exists() for folder in places)
    text = (tmp_path / "toy-cpu" / "report" / "report.md").read_text()
    assert "**8 of 8** planned runs are finished" in text
    assert all(f"`{folder}`" in text for folder in places)
    assert "| slow | base |" not in text


def test_what_begins_from_a_diverged_run_counts_as_diverged(hydra, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(training, "train", fake_train())
    reproduce(configured(tmp_path, staged()), "command")
    base = tmp_path / "toy-cpu" / plan_of(tmp_path)["tables"][0]["cells"][0]["start"][0] / "seed1" / "result.json"
    base.write_text(json.dumps(json.loads(base.read_text()) | {"diverged_at": 4}))
    text = report(tmp_path / "toy-cpu", tmp_path / "out")
    assert "**5 of 8** planned runs are finished" in text
    assert "| A toy | slow | composed | 1 | diverged | it begins from psec_base/" in text
    assert report(tmp_path / "out", tmp_path / "again") == text


@pytest.mark.parametrize("phase", ["psec_base", "psec_skill"])
def test_a_stage_that_cannot_be_trained_is_told_and_the_rest_goes_on(
    hydra, tmp_path: Path, monkeypatch, capsys, phase: str
) -> None:
    def train(members: list[Config], **rest: Any) -> None:
        if members[0].algo.name == phase:
            raise UsageError("the world has\nended")
        fake_train()(members)

    monkeypatch.setattr(training, "train", train)
    assert reproduce(configured(tmp_path, slow_alone()), "command") == 0
    name = phase.removeprefix("psec_")
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "not run: toy: the world has ended"
    assert "not run: toy: composed, for the same reason" in others
    assert ("not run: toy: skill, for the same reason" in others) == (name == "base")
    composed, larger, cloning = plan_of(tmp_path)["tables"][0]["cells"]
    assert composed["failed"] == f"stage {name}: the world has ended"
    assert larger["failed"] == ("the world has ended" if name == "skill" else composed["failed"])
    assert (cloning["failed"], cloning["missing"]) == (None, None)
    text = (tmp_path / "toy-cpu" / "report" / "report.md").read_text()
    assert f"| A toy | slow | composed | 0, 1 | failed | stage {name}: the world has ended |" in text
    assert "| slow | cloning | 2.00 [2.00, 2.00] |" in text
    assert "0 of 2 (2 failed)" in text

    monkeypatch.setattr(training, "train", fake_train())  # mended
    assert reproduce(configured(tmp_path, slow_alone()), "command") == 0
    assert [cell["failed"] for cell in plan_of(tmp_path)["tables"][0]["cells"]] == [None] * 3


def test_missing_data_of_a_stage_are_told(hydra, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("ADAPTAX_DATA", str(tmp_path / "cache"))

    def train(members: list[Config], **rest: Any) -> None:
        if members[0].data.name == "hopper-medium-v2":
            raise UsageError("hopper_medium-v2.hdf5 cannot be fetched")
        fake_train()(members)

    monkeypatch.setattr(training, "train", train)
    paper = slow_alone()
    paper.tables[0].stages[1].overrides.append("data=hopper-medium-v2")
    assert reproduce(configured(tmp_path, paper), "command") == 0
    assert "missing data: hopper_medium-v2.hdf5" in capsys.readouterr().out
    composed, larger, _ = plan_of(tmp_path)["tables"][0]["cells"]
    assert composed["missing"].startswith("stage skill: the data file hopper_medium-v2.hdf5 is missing")
    assert (composed["failed"], larger["missing"]) == (None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": [Entry("a", start=["bas"])]}, "method a names the unknown stage bas; there are base, skill"),
        ({"stages": [], "methods": []}, "task fast names the unknown stage skill; there are none"),
        ({"stages": [Stage("skill", [], ["base"]), Stage("base")]}, "stage skill begins from base, which must come"),
        ({"stages": [Stage("base", [], ["base"]), Stage("skill")]}, "stage base begins from base, which must come"),
        ({"stages": [Stage("base"), Stage("skill"), Stage("base")]}, "there are two stages base"),
    ],
)
def test_wrong_stages_are_named(tmp_path: Path, changes: dict, said: str) -> None:
    table = dataclasses.replace(staged().tables[0], **changes)
    with pytest.raises(UsageError, match=f"paper table toy: {said}"):
        papers.cells(table, "cpu", tmp_path)


def test_tables_of_other_measures_share_the_runs(hydra, tmp_path: Path, monkeypatch, capsys) -> None:
    """The second table holds the same runs by their cost, of which less is better; it alone is asked for first."""
    paper = staged()
    entries = [Entry("cheap", ["algo=bc", "algo.static.hidden=[4]"]), Entry("dear", ["algo=bc"])]
    first = dataclasses.replace(paper.tables[0], tasks=paper.tables[0].tasks[:1], methods=entries, stages=[])
    lower: dict[str, Any] = {"measure": "cost_mean", "metric": "cost", "lower_is_better": True, "score": "best"}
    paper.tables = [first, dataclasses.replace(first, name="costs", title="Costs", **lower)]
    claim = Claim("c", "Cheap is cheaper", "costs", "slow", "cheap", "dear", min_gap=2.0, min_wins=2)
    same = Claim("s", "Rewards are equal", "toy", "slow", "cheap", "dear", relation="equal")
    paper.claims = [claim, same]
    trained = []

    def costs(member: Config) -> list[float]:
        trained.append(run_dir(member))
        return [7.0, 9.0 + member.seed] if member.algo.static.hidden == (4,) else [10.0, 11.0]

    monkeypatch.setattr(training, "train", fake_train(costs))
    assert reproduce(configured(tmp_path, paper, only="costs"), "command") == 0
    assert reproduce(configured(tmp_path, paper), "command") == 0
    assert len(trained) == len(set(trained)) == 4
    said = capsys.readouterr().out
    assert "2 programs" in said
    assert "0 + 4" in said
    text = (tmp_path / "toy-cpu" / "report" / "report.md").read_text()
    assert "**4 of 4** planned runs are finished" in text
    assert "Score: cost (lower is better), best" in text
    assert "| slow | Cheap is cheaper | 3.0 [3.0, 3.0] | 2 of 2 | > 2, ≥ 2 seeds | **holds** |" in text
    assert "| Rewards are equal | 0.00 [0.00, 0.00] | = 0 for 2 of 2 seeds | = 0, every seed | **holds** |" in text
    costs_of = text.split("## Costs")[1]
    assert "| row below column | cheap | dear |" in costs_of
    assert "| cheap | – | **1.00 [1.00, 1.00]** |" in costs_of
    assert "| slow | cheap | 7.0 [7.0, 7.0] | 7.0 [7.0, 7.0] | 9.5 [9.0, 10.0] |" in costs_of  # best, last
    assert "behaviour policy" not in costs_of.split("## Missing")[0]
    assert "behaviour policy" in text.split("## Costs")[0]
    assert report(tmp_path / "toy-cpu" / "report", tmp_path / "again") == text


def test_a_measure_that_was_not_taken_is_named(hydra, tmp_path: Path, monkeypatch) -> None:
    paper = slow_alone()
    paper.tables[0].measure = "right_mode_mean"
    monkeypatch.setattr(training, "train", fake_train())
    reproduce(configured(tmp_path, paper), "command")
    text = (tmp_path / "toy-cpu" / "report" / "report.md").read_text()
    assert "metrics.csv has no column right_mode_mean; there are update, score, cost_mean" in text
    assert "**0 of 6** planned runs" in text


def test_a_cluster_is_sent_what_can_begin(hydra, tmp_path: Path, monkeypatch, capsys) -> None:
    sent: list[list[int]] = []
    state = OmegaConf.create({"runtime": {"config_sources": []}})

    def submit(folder: Path, plan: dict, indices: list[int], options: LauncherConf) -> int:
        sent.append(indices)
        return 0

    monkeypatch.setattr("slurm.submit.submit", submit)
    monkeypatch.setattr("experiments.submission.HydraConfig.get", lambda: state)
    config = configured(tmp_path, slow_alone(), submit="slurm_local", slurm=LauncherConf())
    work = arrange(papers.cells(config.paper.tables[0], "cpu", tmp_path / "toy-cpu"))
    assert [one.cell.method.name for one in work] == ["base", "skill", "composed", "cloning"]
    for finished, left, waiting in (([], [0, 3], 2), ([0, 3], [1], 1), ([1], [2], 0)):
        for index in finished:
            fake_train()(work[index].members)
        assert reproduce(config, "command") == 0
        assert sent.pop() == left
        again = f"{waiting} populations begin from runs that had not finished: give the same command again once they"
        assert (again in capsys.readouterr().out) == (waiting > 0)


def test_a_phase_is_trained_on_the_one_before(hydra, tmp_path: Path) -> None:
    paper = slow_alone()
    paper.tables[0].methods, paper.tables[0].seeds = paper.tables[0].methods[1:2], 1
    assert reproduce(configured(tmp_path, paper), "command") == 0
    (cell,) = plan_of(tmp_path)["tables"][0]["cells"]
    noted = json.loads((tmp_path / "toy-cpu" / cell["runs"][0]["dir"] / "result.json").read_text())
    assert (noted["algo"], noted["updates"]) == ("psec_skill", 8)
    assert "**1 of 1** planned runs" in (tmp_path / "toy-cpu" / "report" / "report.md").read_text()
