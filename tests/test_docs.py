"""Every command on the documentation's pages and in the README is run, shortened to seconds, or listed with a reason.

A command is run as it stands there, with overrides added behind it that make it small (`SMALL`), in a folder of its own
that holds what the pages speak of: data files, a run, a server with D4RL's names. A command that is followed by a block
`error: ...` must end with that line. Pages that add files to the code are followed in a copy of it.
"""

import ast
import functools
import http.server
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import submitit  # noqa: F401 (it sets up logging when imported: not while a test's output is captured)
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins

from envs.core import UsageError
from envs.datasets import registry
from envs.datasets.hdf5 import write_d4rl
from envs.datasets.minari_write import write_minari
from envs.mujoco.render import render
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
WORDS = ("python", "make", "pip", "git", "source")  # first words of commands
BLOCKS = ("sh", "python", "yaml", "text")
SAFE = "OfflineHalfCheetahVelocityGymnasium-v1"

# Commands that are not run, and why. `make` targets are looked up by `make -n`.
NOT_RUN = {
    "git clone REPOSITORY adaptax && cd adaptax": "needs the network; continuous integration works in a clone",
    "source .venv/bin/activate": "changes the reader's shell only",
    "pip install -c requirements.lock -e '.[cuda]'": "needs the network; `make setup` installs the same way",
    "python -m experiments.reproduce paper=a2pr preset=cpu": "takes half an hour; the plan of it is run",
    "python -m experiments.reproduce paper=a2pr preset=full submit=slurm slurm.partition=gpu": "needs SLURM",
    "python -m experiments.train -m hydra/launcher=slurm hydra.launcher.partition=gpu algo=a2pr "
    "data=hopper-medium-v2,walker2d-medium-v2 'seed=range(0,10)' algo.hyper.alpha=2.5,40": "tests/slurm runs one",
    "python -m experiments.train -m hydra/launcher=slurm hydra.launcher.partition=low hydra.launcher.gpus_per_node=0 "
    "hydra.launcher.cpus_per_task=1 algo=bc seed=0,1": "tests/slurm runs such a sweep",
    "python -m slurm.status runs/sweeps/NAME --watch": "needs a sweep; tests/slurm makes some",
    "python -m slurm.status SWEEP_DIR": "needs a sweep; tests/slurm makes some",
    "sbatch --partition=gpu slurm/job.sbatch algo=a2pr data=hopper-medium-v2 seed=[0,1,2]": "tests/slurm submits it",
    "slurm/lab.sh up": "tests/slurm runs it",
    'eval "$(slurm/lab.sh env)"': "tests/slurm runs it",
    "slurm/lab.sh down": "tests/slurm runs it",
    "python -m tests.parity a2pr tests/golden/a2pr": "tests/test_parity.py runs it",
    "python -m tests.parity psec tests/golden/psec": "tests/test_parity.py runs it",
    "make setup": "continuous integration runs it, as part of make test",
    "make setup EXTRAS=dev,cuda": "needs the network and a GPU",
    "make setup EXTRAS=dev,tpu": "needs the network and a TPU",
    "make lint": "continuous integration runs it, as part of make test",
    "make test": "continuous integration runs it",
    "make test PYTEST_ARGS='-m slow'": "takes many minutes",
    "make demo": "takes minutes",
    "make docs": "needs the packages of the extra `docs`",
}

# Commands that cannot be made short: marked slow.
SLOW = {
    "python -m experiments.bench algo=a2pr population=1,4,8 env=halfcheetah out=bench.csv": "always compiles A2PR anew",
    "python -m experiments.reproduce paper=a2pr preset=full dry_run=true": "composes the paper's whole matrix",
}

# What a command builds on besides the reader's folder.
BEFORE = {"python -m experiments.report report out=again": "python -m experiments.report runs out=report"}

_SHORT = "run.updates=4 run.eval_every=4 run.save_every=4 run.chunk=2 run.eval_episodes=1"
_BLOCKS = "run.updates=6 run.eval_every=3 run.save_every=6 run.chunk=3 run.eval_episodes=1"
_SAC = (
    "run.updates=40 run.eval_every=20 run.save_every=20 run.chunk=20 run.eval_episodes=1 algo.static.num_envs=4 "
    "algo.static.warmup=40 algo.static.buffer_capacity=400 algo.static.hidden=[8] algo.static.batch_size=8"
)
_A2PR = "algo.static.actor_hidden=[8] algo.static.critic_hidden=[8] algo.static.vae_hidden=8 algo.static.batch_size=8"
_PSEC = (
    "algo.static.net.hidden=8 algo.static.net.blocks=1 algo.static.net.time_features=4 "
    "algo.static.net.time_hidden=[8,8] algo.static.batch_size=8"
)
_PLAIN = "algo.static.hidden=[8] algo.static.batch_size=8"

# What is added behind a command, by module and, where there is one, by algorithm.
SMALL = {
    "train a2pr": f"{_SHORT} {_A2PR}",
    "train bc": f"{_SHORT} {_PLAIN}",
    "train td3_bc": f"{_SHORT} {_PLAIN}",
    "train rwr": f"{_SHORT} {_PLAIN}",
    "train sac": _SAC,
    "train psec_base": f"{_SHORT} {_PSEC}",
    "train psec_skill": f"{_SHORT} {_PSEC} algo.static.critic_hidden=[8]",
    "train psec_compose": f"{_SHORT} {_PSEC} algo.static.hidden=[8]",
    "train task_allocation": f"{_SHORT} algo.static.hidden=8",
    "train task_allocation_official": f"{_SHORT} algo.static.hidden=8",
    "train task_allocation_transfer": f"{_SHORT} algo.static.hidden=8",
    "train task_allocation_plus": f"{_SHORT} algo.static.hidden=4 algo.static.pairs=2 algo.static.episodes=1",
    "train allocation_solver": f"{_SHORT} algo.static.evaluations=60",
    "train barfi": _BLOCKS,
    "train barfi_reinforce": _BLOCKS,
    "train mra": f"{_SHORT} algo.static.envs=2 algo.static.batch_size=8",
    "train adaptive_rr": f"{_SHORT} algo.static.hidden_dim=8 algo.static.batch_size=4 algo.static.buffer_capacity=2002",
    "make_dataset sac": f"{_SAC} transitions=200 medium_score=-1000 penalties=[1] stages=2 overwrite=true",
    "bench a2pr": f"{_A2PR} population=1 updates=2 chunks=1 transitions=100",
    "evaluate": "episodes=2",
    "populations": "in=[resource-3] episodes=2 adapt=0 skills=prior",
    "exploitability": "in=[resource-2] start=run updates=1 games=4 episodes=2",
    "crossplay": "in=[resource-2] episodes=2",
    "report": "",
    "plasticity": "",
    "reproduce": "",
    "skills": "",
}


class Command(NamedTuple):
    """A command and the pages that it stands on."""

    text: str  # one line, without the comment behind it
    error: str | None  # the line that it must end with


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    title: str | None
    body: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', page.read_text(), re.M | re.S)
    return [Block(language, title or None, body) for language, title, body in found]


def split(body: str) -> list[str]:
    """The commands of a shell block: continued lines joined, comments left out."""
    lines = [line.strip() for line in body.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s{2,}#.*$", "", line) for line in lines if line and not line.startswith("#")]


def commands_of(page: Path) -> list[Command]:
    """All commands of a page: those of shell blocks, of indented blocks in the README, and between backticks."""
    text = page.read_text()
    found: list[Command] = []
    if page.name == "README.md":
        indented = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
        found += [Command(line, None) for line in split(indented) if line.split()[0] in WORDS]
    kept = blocks(page)
    for block, after in zip(kept, [*kept[1:], Block("", None, "")]):
        if block.language == "sh":
            lines = split(block.body)
            adjacent = f"{block.body}```\n\n```text\n{after.body}" in text
            error = after.body.strip() if adjacent and after.body.startswith("error: ") else None
            found += [Command(line, error if line == lines[-1] else None) for line in lines]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    inline = re.findall(r"`((?:python -m|python -c|make|pip install) [^`]+)`", prose)
    return found + [Command(line, None) for line in inline if "=NAME" not in line]


def extending(page: Path) -> bool:
    """Whether a page adds files to the code."""
    return any(block.title for block in blocks(page))


# pages whose commands build on one another
IN_ORDER = [DOCS / "skills.md", DOCS / "task-allocation.md", DOCS / "populations.md", DOCS / "replay-ratio.md"]
ALL = [command for page in PAGES for command in commands_of(page)]
FREE = [command for page in PAGES if not extending(page) and page not in IN_ORDER for command in commands_of(page)]
ORDERED = {command.text for page in IN_ORDER for command in commands_of(page)}  # also where other pages quote them
TO_RUN = sorted({command for command in FREE if command.text not in {*NOT_RUN, *ORDERED}}, key=str)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def record(obs_dim: int, action_dim: int, rows: int = 120, episode: int = 40) -> dict[str, np.ndarray]:
    """Arrays in D4RL's layout."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(rows + 1, obs_dim)).astype(np.float32)
    return {
        "observations": states[:-1],
        "next_observations": states[1:],
        "actions": rng.uniform(-1, 1, (rows, action_dim)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % episode == episode - 1,
    }


def safe_record() -> dict[str, np.ndarray]:
    """Arrays in DSRL's layout: 30 episodes, each a little more costly than the one before, most of them safe."""
    rows = record(17, 6, rows=1200)
    episode, step = np.divmod(np.arange(1200), 40)
    return rows | {"costs": (step < episode // 4).astype(np.float32)}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has small files under D4RL's names, and one under DSRL's."""
    folder = tmp_path_factory.mktemp("mirror")
    for name, shape in [
        ("hopper-medium-v2", (11, 3)),
        ("hopper-random-v2", (11, 3)),
        ("halfcheetah-medium-v2", (17, 6)),
    ]:
        write_d4rl(folder / str(registry.lookup(name).file), record(*shape), {})
    write_d4rl(folder / str(registry.lookup(SAFE).file), safe_record(), {})
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, mirror: str) -> Path:
    """A folder with what the pages speak of: own files, recorded data, a finished run."""
    folder = tmp_path_factory.mktemp("reader")
    hopper = record(11, 3)
    write_d4rl(folder / "downloads" / "hopper_medium-v2.hdf5", hopper, {})
    write_d4rl(folder / "own.hdf5", record(2, 2), {})
    write_d4rl(folder / "data" / "safe-halfcheetah-mixed.hdf5", safe_record(), {"env": "safe-halfcheetah"})
    write_d4rl(folder / "data" / "halfcheetah-friction0.25-random.hdf5", record(17, 6), {})
    origin = {"env": "hopper", "max_episode_steps": 1000}
    write_d4rl(folder / "data" / "hopper-medium.hdf5", hopper, origin)
    write_minari(folder / "data", "adaptax/hopper/medium-v0", hopper, origin)
    write_minari(folder / "minari", "mujoco/hopper/medium-v0", hopper, origin)
    with pytest.MonkeyPatch.context() as patch:
        environment(patch, folder, mirror)
        assert call(f"python -m experiments.train algo=bc data=hopper-medium-v2 {SMALL['train bc']}") == 0
    return folder


@pytest.fixture
def place(template: Path, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the current one."""
    folder = tmp_path / "reader"
    shutil.copytree(template, folder)
    environment(monkeypatch, folder, mirror)
    return folder


def environment(patch: pytest.MonkeyPatch, folder: Path, mirror: str) -> None:
    patch.chdir(folder)
    patch.setenv("ADAPTAX_DATA", str(folder / "cache"))
    patch.setenv("ADAPTAX_MIRRORS", mirror)
    patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setenv("no_proxy", "127.0.0.1")


def small(command: str) -> str:
    """The overrides that make a command small."""
    words = shlex.split(command)
    module = words[2].removeprefix("experiments.")
    if "--help" in words:
        return ""
    default = {"train": "a2pr", "bench": "a2pr", "make_dataset": "sac"}.get(module, "")
    algo = next((word.removeprefix("algo=") for word in words if word.startswith("algo=")), default)
    return SMALL[f"{module} {algo}".strip()]


def call(command: str) -> int:
    """Run `python -m MODULE ...` or `python -c PROGRAM` in this process; the exit status."""
    words = shlex.split(command)
    if words[1] == "-c":
        exec(compile(words[2], "<command>", "exec"), {})
        return 0
    GlobalHydra.instance().clear()
    Plugins.instance()  # fills the store when it is first asked for
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words[2:])
        # the module registers its schema a second time, as classes of `__main__`: not for the tests that follow
        patch.setattr(ConfigStore.instance(), "repo", branches(ConfigStore.instance().repo))
        try:
            runpy.run_module(words[2], run_name="__main__")
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def branches(repo: dict) -> dict:
    """A copy of Hydra's store whose groups can be changed apart; the nodes are shared."""
    return {name: branches(entry) if isinstance(entry, dict) else entry for name, entry in repo.items()}


def test_every_block_is_of_a_known_kind() -> None:
    for page in PAGES:
        assert page.read_text().count("```") == 2 * len(blocks(page)), page
        assert {block.language for block in blocks(page)} <= set(BLOCKS), page


def test_commands_that_are_not_run_are_on_the_pages() -> None:
    assert {*NOT_RUN, *SLOW, *BEFORE} - {command.text for command in ALL} == set()


@pytest.mark.parametrize("command", sorted(text for text in NOT_RUN if text.startswith("make")))
def test_make_target(command: str) -> None:
    target = shlex.split(command)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=[pytest.mark.slow] * (c.text in SLOW), id=c.text) for c in TO_RUN],
)
def test_command(command: Command, place: Path, capsys: pytest.CaptureFixture) -> None:
    if "video=" in command.text:
        try:
            render("hopper", np.array([[0.0, 1.25, 0, 0, 0, 0]]), width=16, height=16)
        except UsageError as error:
            pytest.skip(str(error))
    run_dir = str(next(place.glob("runs/*/*/*/seed0")).relative_to(place))
    text = command.text.replace("RUN_DIR", run_dir)
    if command.error is not None:  # their own keys come last, as the small ones could mend the mistake
        assert call(text) == 2
        assert capsys.readouterr().err.splitlines()[-1] == command.error.replace("RUN_DIR", run_dir)
        return
    assert text.startswith("python -"), f"{command.text}: neither run nor in NOT_RUN"
    for step in [BEFORE[text], text] if text in BEFORE else [text]:
        status = call(f"{step} {small(step)}" if step.startswith("python -m") else step)
        assert status == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", IN_ORDER, ids=lambda page: page.stem)
def test_commands_in_order(page: Path, place: Path, capsys: pytest.CaptureFixture) -> None:
    for command in commands_of(page):
        assert call(f"{command.text} {small(command.text)}") == 0, capsys.readouterr().err


def test_python_on_the_data_page(place: Path) -> None:
    programs = [block.body for block in blocks(DOCS / "data.md") if block.language == "python"]
    for program in programs:
        exec(compile(program, "data.md", "exec"), {})
    assert programs
    assert (place / "made.hdf5").is_file()
    made = f"python -m experiments.train algo=bc data=custom data.path=made.hdf5 {SMALL['train bc']}"
    assert call(made) == 0


def test_python_on_the_environments_page(place: Path) -> None:
    (program,) = [block.body for block in blocks(DOCS / "environments.md") if block.language == "python"]
    exec(compile(program, "environments.md", "exec"), {})
    assert (place / "rbf.gif").is_file()


def copy_of_the_code(folder: Path) -> Path:
    for name in ("algos", "envs", "experiments", "configs", "slurm", "hydra_plugins", "tests/algos"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


# Commands in one process: each would import for seconds.
IN_TURN = """
import runpy, shlex, sys
from hydra.core.global_hydra import GlobalHydra
for command in sys.argv[1:]:
    GlobalHydra.instance().clear()
    sys.argv = shlex.split(command)[2:]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__")
    except SystemExit as leaving:
        if leaving.code:
            sys.exit(f"{command}: status {leaving.code}")
"""


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name}: {old!r}"
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("page", [page for page in PAGES if extending(page)], ids=lambda page: page.stem)
def test_page_that_adds_files(page: Path, tmp_path: Path) -> None:
    """Write its files, make the edits that it describes in words, run its commands."""
    code, text = copy_of_the_code(tmp_path / "code"), page.read_text()
    for block in blocks(page):
        if block.title and not (code / block.title).exists():
            (code / block.title).write_text(block.body)
    if page.stem == "add-an-algorithm":
        assert 'Add `"rwr"` to `OFFLINE` in `algos/__init__.py`' in text
        edit(code / "algos" / "__init__.py", "OFFLINE = (", 'OFFLINE = ("rwr", ')
    else:
        assert 'add `"corridor"` to `NAMES`, import the module' in text
        case = next(block.body for block in blocks(page) if block.title == "envs/registry.py")
        registry_file = code / "envs" / "registry.py"
        edit(registry_file, "NAMES = (", 'NAMES = ("corridor", ')
        edit(registry_file, "from envs import ", "from envs import corridor, ")
        edit(registry_file, '    if name == "pointmix":\n', f'{case}    if name == "pointmix":\n')
    commands = [command.text for command in commands_of(page) if command.text not in NOT_RUN]
    assert commands
    steps = [command if "pytest" in command else f"{command} {small(command)}" for command in commands]
    quick = {"PYTHONPATH": str(code), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, *steps], cwd=code, env=os.environ | quick, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def messages() -> list[str]:
    """Each text of a UsageError in the code, and each string, as a pattern: what is filled in matches anything."""
    found = []
    for path in [file for name in ("algos", "envs", "experiments") for file in (ROOT / name).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UsageError" and node.args:
                found.append(pattern(node.args[0]))
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").isupper():
                found.append(pattern(node.value))  # constants such as NO_GRAPHICS
    return [text for text in found if len(text.replace(".+", "")) > 8]


def pattern(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return ".+".join(re.escape(part) for part in re.split(r"\{\w+\}", node.value))
    if isinstance(node, ast.JoinedStr):
        return "".join(pattern(value) if isinstance(value, ast.Constant) else ".+" for value in node.values)
    return ".+"


def test_errors_that_are_only_quoted_are_raised_somewhere() -> None:
    run = {command.error for command in ALL}
    quoted = [block.body.strip() for page in PAGES for block in blocks(page) if block.body.startswith("error: ")]
    known = messages()
    assert quoted
    for line in quoted:
        text = line.removeprefix("error: ")
        assert line in run or any(re.fullmatch(f"(FILE: )?{message}", text) for message in known), line


def test_pages_of_the_site_exist() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def leaves(node: Any) -> list[str]:
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [leaf for child in children for leaf in leaves(child)]

    pages = leaves(site["nav"])
    assert [page for page in pages + site["extra"]["polyfills"] if not (DOCS / page).is_file()] == []
    assert {str(page.relative_to(DOCS)) for page in DOCS.glob("*.md")} <= set(pages)
    for page in (DOCS / "api").glob("*.md"):
        for module in re.findall(r"^::: (\S+)$", page.read_text(), re.M):
            place = ROOT / module.replace(".", "/")
            assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file(), module
