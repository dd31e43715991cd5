"""The library of skills: what is in it stays to the bit, what does not belong is refused, what it gives is usable."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos.psec import base, compose, nets, skill
from envs.core import Spec, UsageError
from experiments import evaluate, library, skills, start
from experiments.checkpoint import Checkpoints
from experiments.cli import guarded
from experiments.config import Config, DataConfig, RunConfig, algo_schema
from experiments.loop import train
from experiments.provenance import tree_sha256
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPEC = Spec(2, 2, 1.0)
NET = nets.Net(hidden=8, blocks=1, time_features=4, time_hidden=(8, 8), dropout=0.0)
OBS = jnp.linspace(-0.9, 0.9, 8).reshape(4, 2)
STATIC: dict[str, Any] = {
    "psec_base": base.Static(NET, batch_size=8),
    "psec_skill": skill.Static(NET, kinds=("reward", "feasible"), max_rank=4, critic_hidden=(8,), batch_size=8),
    "psec_compose": compose.Static(NET, hidden=(8,), batch_size=8),
}


def config(algo: str, folder: Path, began: list[Path], **hyper: Any) -> Config:
    """A run of four updates."""
    schema = algo_schema(algo)
    run = RunConfig(updates=4, eval_every=4, save_every=4, chunk=4, eval_episodes=2, dir=str(folder))
    static = STATIC[algo]
    filled = schema(static=static, hyper=type(schema().hyper)(**hyper))
    return Config(filled, DataConfig("eight-modes"), run=run, start=[str(path) for path in began])


@pytest.fixture(scope="module")
def base_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    train([config("psec_base", folder, [])])
    return folder


@pytest.fixture(scope="module")
def skill_run(base_run: Path) -> Path:
    """Two skills, reward and feasible, of rank 2 padded to 4."""
    folder = base_run.parent / "skill"
    train([config("psec_skill", folder, [base_run], rank=2.0, scale=3.0, lr=0.01, ema_rate=1.0)])
    return folder


Made = Callable[..., Path]


@pytest.fixture
def made(skill_run: Path, tmp_path: Path) -> Made:
    """Makes run directories of one imitation skill, untrained but for a B that is not zero."""
    trained, told = Checkpoints(skill_run).parts(("base",)) or ({}, {})

    def make(name: str, rank: int = 2, seed: int = 0, other_base: bool = False, note: dict | None = None) -> Path:
        static = skill.Static(NET, kinds=("imitation",), max_rank=rank)
        algo = algo_schema("psec_skill")(static=static, hyper=skill.Hyper(rank=rank))
        frozen = jax.tree.map(lambda x: x + other_base, trained["base"])
        state = jax.jit(skill.make(static, SPEC).init)(jax.random.key(seed), algo.hyper, {"base": frozen})
        lora = jax.tree.map(lambda x: x + 0.01 * np.random.default_rng(seed).normal(size=x.shape), state.lora)
        changed = json.loads(json.dumps(told))
        changed["config"]["algo"] = json.loads(json.dumps({"name": "psec_skill", **_plain(algo)}))
        for path, value in (note or {}).items():
            _set(changed, path.split("."), value)
        Checkpoints(tmp_path / name).save(7, state._replace(lora=lora), changed)
        return tmp_path / name

    return make


def _plain(algo: Any) -> dict[str, Any]:
    return {"hyper": vars(algo.hyper), "static": {**vars(algo.static), "net": vars(algo.static.net)}}


def _set(tree: Any, path: list[str], value: Any) -> None:
    for name in path[:-1]:
        tree = tree[name]
    tree[path[-1]] = value


@pytest.fixture(scope="module")
def two_skills(skill_run: Path) -> Path:
    folder = skill_run.parent / "lib"
    skills.main(["add", str(folder), str(skill_run), "name=both"])
    return folder


@pytest.fixture
def lib(two_skills: Path, tmp_path: Path) -> Path:
    """A library of two skills: both-reward and both-feasible."""
    return Path(shutil.copytree(two_skills, tmp_path / "lib"))


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def begun(*folders: Path) -> tuple[dict[str, Any], ...]:
    """What a composition of these begins from."""
    return start.load(config("psec_compose", Path("unused"), list(folders))).parts


def actions(*folders: Path) -> np.ndarray:
    """What an untrained mixture of these does."""
    return np.asarray(mixture(begun(*folders)))


@jax.jit
def mixture(parts: tuple[dict[str, Any], ...]) -> jax.Array:
    algo, hyper = compose.make(STATIC["psec_compose"], SPEC), compose.Hyper()
    return algo.act(jax.random.key(1), algo.init(jax.random.key(0), hyper, *parts), OBS, hyper)


def acting(policy: evaluate.Policy) -> np.ndarray:
    state, hyper = jax.tree.map(lambda x: x[0], (policy.population.state, policy.population.hyper))
    return np.asarray(jax.jit(policy.algo.act)(jax.random.key(0), state, OBS, hyper))


def fails(capsys: pytest.CaptureFixture, *args: Any) -> str:
    """The one line that a command ends with."""
    assert guarded(lambda: skills.main([str(arg) for arg in args])) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_run_becomes_a_skill_of_each_kind(lib: Path, skill_run: Path, base_run: Path) -> None:
    run, _ = Checkpoints(skill_run).parts(library.FIELDS) or ({}, {})
    result = json.loads((skill_run / "result.json").read_text())
    assert sorted(library.notes(lib)) == ["both-feasible", "both-reward"]
    for index, kind in enumerate(("reward", "feasible")):
        part, note = library.read(lib, f"both-{kind}")
        stored, _ = Checkpoints(lib / "skills" / f"both-{kind}").parts(library.FIELDS) or ({}, {})
        assert sorted(stored) == ["critics", "lora", "scale"]  # the base is not repeated
        whole = run["lora"]["trunk"]["block0"]["up"]
        np.testing.assert_array_equal(part["lora"]["trunk"]["block0"]["up"]["A"][0], whole["A"][index][:, :2])
        np.testing.assert_array_equal(part["lora"]["trunk"]["block0"]["up"]["B"][0], whole["B"][index][:2])
        assert np.any(part["lora"]["trunk"]["block0"]["up"]["B"])
        assert tree_sha256(part["base"]) == tree_sha256(run["base"]) == note["base"]["sha256"]
        assert sorted(part["critics"]) == ["cost", "reward"]
        assert sorted(part["critics"]["cost"]) == ["q", "q_target", "v"]
        told = note["skill"]
        assert (told["kind"], told["rank"], told["scale"], told["updates"]) == (kind, 2, 3.0, 4)
        assert (told["data"], note["data_sha256"]) == ("eight-modes", result["data_sha256"])
        assert told["score"] == (result["score"]["last"] if kind == "reward" else None)  # evaluated with the first
        assert told["run"] == str(skill_run)
    origin = library.read_base(lib / "base")[1]["base"]
    assert (origin["data"], origin["run"]) == ("eight-modes", str(base_run))
    assert origin["data_sha256"] == result["data_sha256"]


def test_skills_of_a_library_are_those_of_the_run(lib: Path, skill_run: Path) -> None:
    both = [lib / "skills" / f"both-{kind}" for kind in ("reward", "feasible")]
    np.testing.assert_allclose(actions(*both), actions(skill_run), rtol=0, atol=1e-6)
    assert not np.allclose(actions(*both), actions(*both[::-1]), atol=1e-6)


def test_adding_changes_nothing_that_was_there(lib: Path, made: Made) -> None:
    first = [lib / "skills" / f"both-{kind}" for kind in ("reward", "feasible")]
    files, before, alone = digests(lib), actions(*first), [actions(one) for one in first]
    for number in range(2):
        skills.main(["add", str(lib), str(made(f"run{number}", rank=8, seed=number)), f"name=more{number}"])
    after = digests(lib)
    assert {name: after[name] for name in files} == files
    assert len(after) > len(files)
    assert list(library.notes(lib))[-2:] == ["more0", "more1"]
    assert actions(*first).tobytes() == before.tobytes()
    assert [actions(one).tobytes() for one in first] == [one.tobytes() for one in alone]


def test_ranks_are_mixed(lib: Path, made: Made) -> None:
    for rank in (2, 8):
        skills.main(["add", str(lib), str(made(f"run{rank}", rank, seed=rank)), f"name=of{rank}"])
    parts = begun(lib / "skills" / "of2", lib / "skills" / "of8")
    assert [part["lora"]["trunk"]["out"]["A"].shape[-1] for part in parts] == [2, 8]
    lora, scale, _ = compose.all_skills(parts)
    assert scale.shape == (2,)
    alpha = (1.5, -0.5)

    def by_hand(layer: Any, *factors: Any) -> Any:
        products = [np.asarray(f["A"][0], float) @ np.asarray(f["B"][0], float) for f in factors]
        added = sum(a * product for a, product in zip(alpha, products))
        return {"w": jnp.asarray(layer["w"] + added, jnp.float32), "b": layer["b"]}

    frozen = parts[0]["base"]
    linear = nets.linear_layers(frozen)
    plain = jax.tree.map(by_hand, linear, *[p["lora"] for p in parts], is_leaf=lambda node: "w" in node or "A" in node)
    plain["trunk"] = {name: frozen["trunk"][name] | part for name, part in plain["trunk"].items()}
    noise_net, time = jax.jit(nets.noise_net, static_argnums=0), jnp.arange(4)
    expected = noise_net(NET, frozen | plain, -OBS, OBS, time)
    mixed = noise_net(NET, frozen, -OBS, OBS, time, lora, jnp.tile(jnp.array(alpha), (4, 1)))
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    assert not np.allclose(noise_net(NET, frozen, -OBS, OBS, time), expected, atol=1e-3)


KILLED = """
import os, signal, sys
from pathlib import Path
from experiments.library_add import add
rename, done = os.rename, []
def once(old, new):
    if Path(old).parent.name == "skills":  # all is written: only its name is missing
        os.kill(os.getpid(), signal.SIGKILL)
    rename(old, new)
os.rename = once
add(Path(sys.argv[1]), Path(sys.argv[2]), "walk")
"""


def test_an_addition_that_is_killed_leaves_no_skill(made: Made, tmp_path: Path) -> None:
    lib, run = tmp_path / "lib", made("run")
    done = subprocess.run([sys.executable, "-c", KILLED, lib, run], cwd=ROOT, env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in (lib / "skills").iterdir()] == [".walk.tmp"]
    assert library.notes(lib) == {}
    with pytest.raises(UsageError, match="has no skill walk; there are none"):
        library.read(lib, "walk")
    skills.main(["add", str(lib), str(run), "name=walk"])
    assert [path.name for path in (lib / "skills").iterdir()] == ["walk"]
    assert library.read(lib, "walk")[1]["skill"]["updates"] == 7


def test_a_library_killed_at_its_beginning_is_begun_again(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lib, run = tmp_path / "lib", made("run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            skills.main(["add", str(lib), str(run), "name=walk"])
    with pytest.raises(UsageError, match="there is no library"):
        library.notes(lib)
    skills.main(["add", str(lib), str(run), "name=walk"])
    assert list(library.notes(lib)) == ["walk"]


def test_a_run_that_is_not_finished_has_no_score(made: Made, tmp_path: Path) -> None:
    skills.main(["add", str(tmp_path / "lib"), str(made("run")), "name=walk"])
    told = library.read(tmp_path / "lib", "walk")[1]["skill"]
    assert (told["score"], told["trained_with"], told["updates"]) == (None, None, 7)


def test_one_kind_of_several(skill_run: Path, tmp_path: Path) -> None:
    skills.main(["add", str(tmp_path / "lib"), str(skill_run), "name=safe", "kind=feasible"])
    found = library.notes(tmp_path / "lib")
    assert [note["skill"]["kind"] for note in found.values() if note] == ["feasible"]
    assert list(found) == ["safe"]


def test_list_and_show(lib: Path, made: Made, capsys: pytest.CaptureFixture) -> None:
    skills.main(["add", str(lib), str(made("run", rank=8)), "name=walk"])
    capsys.readouterr()
    skills.main(["list", str(lib)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == list(skills.HEADER)
    digest = library.read_base(lib / "base")[1]["base"]["sha256"][:12]
    assert lines[3].split() == ["walk", "imitation", "8", "16", "eight-modes", "7", digest]
    assert lines[1].split()[0] == "both-reward"
    assert float(lines[1].split()[5]) >= 0  # its score
    skills.main(["show", str(lib), "walk"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["skill"]["name"] == "walk"
    assert {"versions", "git", "config", "data_sha256", "base"} <= set(shown)


def test_merged_weights_act_like_the_skill(lib: Path, skill_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    skills.main(["merge", str(lib), str(out), "both-reward=3"])  # its scale
    ours, theirs = (evaluate.load(evaluate.Options(folder)) for folder in (out, skill_run))
    assert ours.algo.init.__module__ == "algos.psec.base"
    got, wanted = acting(ours), acting(theirs)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    result = evaluate.evaluate(evaluate.Options(out, episodes=2))
    assert (result["algo"], result["env"], len(result["returns"])) == ("psec_base", "eight-modes", 2)


def test_merged_weights_are_scored_like_the_skill(made: Made, tmp_path: Path) -> None:
    lib, told = tmp_path / "lib", {"reference": [0.0, 5.0], "top_score": 1.0}
    skills.main(["add", str(lib), str(made("run", note=told)), "name=walk"])
    skills.main(["merge", str(lib), str(tmp_path / "out"), "walk=1"])
    policy = evaluate.load(evaluate.Options(tmp_path / "out"))
    assert (policy.reference, policy.top_score) == ([0.0, 5.0], 1.0)


def test_a_skill_of_a_version_without_top_scores_is_merged(lib: Path, tmp_path: Path) -> None:
    folder = lib / "skills" / "both-reward"
    part, note = Checkpoints(folder).parts(library.FIELDS) or ({}, {})
    del note["top_score"]
    Checkpoints(folder).save(8, part, note)
    skills.main(["merge", str(lib), str(tmp_path / "out"), "both-reward=1"])
    assert evaluate.load(evaluate.Options(tmp_path / "out")).top_score == 100.0


def test_merged_weights_are_a_base(lib: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    skills.main(["merge", str(lib), str(out), "both-reward=2", "both-feasible=-0.5"])
    parts = [library.read(lib, f"both-{kind}")[0] for kind in ("reward", "feasible")]
    expected = np.asarray(parts[0]["base"]["trunk"]["in"]["w"], float)
    for alpha, part in zip((2.0, -0.5), parts):
        layer = part["lora"]["trunk"]["in"]
        expected += alpha * np.asarray(layer["A"][0], float) @ np.asarray(layer["B"][0], float)
    begins = start.load(config("psec_skill", tmp_path / "next", [out], rank=2.0)).parts[0]
    np.testing.assert_allclose(begins["base"]["trunk"]["in"]["w"], expected, atol=1e-6)
    note = Checkpoints(out).note() or {}
    assert note["merged"]["alpha"] == {"both-reward": 2.0, "both-feasible": -0.5}


def test_a_composition_is_trained_and_evaluated(lib: Path, tmp_path: Path) -> None:
    began = [lib / "skills" / "both-reward", lib / "skills" / "both-feasible"]
    before = digests(lib)
    train([config("psec_compose", tmp_path / "composed", began)])
    result = evaluate.evaluate(evaluate.Options(tmp_path / "composed", episodes=2))
    assert (result["algo"], result["update"]) == ("psec_compose", 4)
    assert digests(lib) == before


def test_the_base_and_skills_are_where_skills_begin(lib: Path, base_run: Path, tmp_path: Path) -> None:
    folders = (base_run, lib / "base", lib / "skills" / "both-feasible")
    bases = [start.load(config("psec_skill", tmp_path / "next", [folder], rank=2.0)).parts for folder in folders]
    assert [sorted(part[0]) for part in bases] == [["base"]] * 3
    assert len({tree_sha256(part) for part in bases}) == 1


def damage(folder: Path) -> None:
    file = max((path for path in folder.rglob("*/state/**/*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def test_damage_is_noticed(lib: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = lib / "skills" / "both-feasible"
    damage(folder)
    skills.main(["list", str(lib)])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["both-feasible", "damaged"]
    assert "both-feasible is damaged: restore it" in fails(capsys, "show", lib, "both-feasible")
    with pytest.raises(UsageError, match="start=.*both-feasible: every checkpoint there is damaged"):
        begun(folder)
    begun(lib / "skills" / "both-reward")
    damage(lib / "base")
    with pytest.raises(UsageError, match="base is damaged: restore it"):
        begun(lib / "skills" / "both-reward")
    assert "base is damaged" in fails(capsys, "add", lib, made("run"), "name=walk")


def test_a_skill_is_bound_to_its_base(lib: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other, run = tmp_path / "other", made("run", other_base=True)
    error = fails(capsys, "add", lib, run, "name=walk")
    skills.main(["add", str(other), str(run), "name=walk"])
    hashes = [library.short(library.read_base(one / "base")[1]["base"]["sha256"]) for one in (lib, other)]
    assert f"{run} is a skill of base {hashes[1]}, the skills in {lib} are of base {hashes[0]}" in error
    moved = shutil.copytree(other / "skills" / "walk", lib / "skills" / "walk")
    with pytest.raises(UsageError, match=f"is a skill of base {hashes[1]}, but beside it is base {hashes[0]}"):
        begun(moved)
    alone = shutil.copytree(moved, tmp_path / "alone" / "skills" / "walk")
    with pytest.raises(UsageError, match="there is no base; a skill works only inside of its library"):
        begun(alone)
    with pytest.raises(UsageError, match="are skills of different bases"):
        begun(lib / "skills" / "both-feasible", other / "skills" / "walk")


def test_arrays_must_be_those_of_the_note(lib: Path, made: Made, capsys: pytest.CaptureFixture) -> None:
    for rank, message in [(3, "rank 4"), (5, "rank 4")]:
        run = made(f"noted{rank}", rank=4, note={"config.algo.hyper.rank": rank})
        told = fails(capsys, "add", lib, run, "name=walk")
        assert f"noted{rank} is noted as of rank 3" in told or f"of rank {rank} of its base, but" in told
        assert message in told or rank == 3
    skills.main(["add", str(lib), str(made("run", rank=4)), "name=walk"])
    folder = lib / "skills" / "walk"
    part, note = Checkpoints(folder).parts(("lora", "scale", "critics")) or ({}, {})
    note["skill"]["rank"] = 5
    Checkpoints(folder).save(8, part, note)
    with pytest.raises(UsageError, match="noted as one skill of rank 5 of its base, but its factors have rank 4"):
        begun(folder)


def test_a_diverged_run_is_refused(lib: Path, made: Made, capsys: pytest.CaptureFixture) -> None:
    run = made("run")
    part, note = Checkpoints(run).parts((*library.FIELDS, "factors")) or ({}, {})
    part["lora"]["trunk"]["out"]["B"] = part["lora"]["trunk"]["out"]["B"] * jnp.nan
    Checkpoints(run).save(8, part, note)
    assert "run has diverged" in fails(capsys, "add", lib, run, "name=walk")


MERGED_OF = {
    "config.algo.static.adapter": ("mlp", "bad has adapter=mlp, which no plain weights can express"),
    "config.algo.static.skill_activation": ("swish", "bad and both-reward differ in skill_activation"),
    "obs_mean": ([1.0, 0.0], "bad and both-reward differ in obs_mean"),
}


@pytest.mark.parametrize("key", MERGED_OF)
def test_what_cannot_be_merged(key: str, lib: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    value, message = MERGED_OF[key]
    skills.main(["add", str(lib), str(made("run", note={key: value})), "name=bad"])
    assert message in fails(capsys, "merge", lib, tmp_path / "out", "both-reward=1", "bad=1")
    assert not (tmp_path / "out").exists()


BAD = {
    "": "a command is needed; there are add, list, show, merge",
    "lst {lib}": "unknown command lst; did you mean list?",
    "list": "list takes 1 arguments besides keys, not 0: python -m experiments.skills list LIB",
    "list {lib} all=true": "unknown key all: python -m experiments.skills list LIB",
    "list {tmp}": "is no library of skills (it has no base/)",
    "list {tmp}/nowhere": "nowhere: there is no library; python -m experiments.skills add",
    "list {run}/result.json": "result.json is a file",
    "show {lib} both-rewrad": "has no skill both-rewrad; did you mean both-reward?",
    "show {lib} zzz": "has no skill zzz; there are both-feasible, both-reward",
    "add {lib} {run}": "a skill needs a name: name=NAME",
    "add {lib} {run} name=both": "has a skill both-reward already, and skills are never replaced",
    "add {lib} {run} name=both-feasible kind=feasible": "has a skill both-feasible already",
    "add {lib} {run} name=a/b": "name=a/b names a folder",
    "add {lib} {run} name=.b": "name=.b names a folder",
    "add {lib} {run} name=a name=b": "name is given twice: name=a and name=b",
    "add {lib} {run} name=new kind=imitation": "kind=imitation: {run} has reward, feasible",
    "add {lib} {base} name=new": "{base} is a run of algo=psec_base: a skill is a run of algo=psec_skill",
    "add {lib} {lib}/skills/both-feasible name=new": "is a skill of a library: add the run that it was, {run}",
    "add {lib} {tmp}/nowhere name=new": "nowhere: there is no such run directory",
    "add {lib} {tmp} name=new": "holds no checkpoint; train there until run.save_every",
    "add {tmp} {run} name=new": "is no library of skills (it has no base/)",
    "merge {lib} {tmp}/out": "merge needs skills and their weights: NAME=ALPHA",
    "merge {lib} {tmp}/out both-reward=much": "both-reward=much must be a number",
    "merge {lib} {tmp}/out both-reward=inf": "both-reward=inf must be a number",
    "merge {lib} {tmp}/out both-rewrad=1": "has no skill both-rewrad; did you mean both-reward?",
    "merge {lib} {run} both-reward=1": "{run} exists: choose another folder to write to",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_commands(
    line: str, lib: Path, skill_run: Path, base_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    places = {"lib": lib, "run": skill_run, "base": base_run, "tmp": tmp_path}
    before = digests(tmp_path)
    error = fails(capsys, *[word.format(**places) for word in line.split()])
    assert BAD[line].format(**places) in error
    assert digests(tmp_path) == before
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("part", ["base", "skills/both-feasible"])
def test_parts_of_a_library_are_no_runs(part: str, lib: Path) -> None:
    before = digests(lib)
    with pytest.raises(UsageError, match="belongs to a library of skills and is no run"):
        evaluate.load(evaluate.Options(lib / part))
    taken = config("psec_base", lib / part, [])
    for taken.run.fresh in (False, True):
        with pytest.raises(UsageError, match="belongs to a library of skills and is no run"):
            train([taken])
    assert {name: digest for name, digest in digests(lib).items() if not name.endswith(".lock")} == before
