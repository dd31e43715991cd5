"""What a BARFI run has learnt, as pictures: `python -m experiments.alignment RUN_DIR [out=FOLDER]`.

Heat maps over the states of GridWorld or MountainCar, of the newest checkpoint, in RUN_DIR/alignment or FOLDER:
    phi1.png    what is added to the reward
    phi2.png    what the true reward is multiplied by, where that is learnt
    phi3.png    what the auxiliary reward is multiplied by
and over training, each point the mean since the evaluation before (RUN_DIR/metrics.csv):
    weights.png the learnt discount; the three above, averaged over the states of the episodes played, and so also
                moved by where the policy goes: until the first outer step by that alone
The learnt discount is printed.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from algos.barfi.rewards import discount_of, multipliers
from envs.core import Env, UsageError
from envs.shaped import gridworld, mountaincar
from experiments import evaluate
from experiments.cli import guarded
from experiments.heatmap import Box, cells, heatmap
from experiments.log import MetricsFile
from experiments.png import canvas, save
from experiments.reporting.figures import PALETTE, styled

LEARNERS = ("barfi", "barfi_ppo")
SIDE = 60  # cells of a heat map in each direction
TITLES = {
    "phi1": "Learnt: added to the reward",
    "phi2": "Learnt: multiplies the true reward",
    "phi3": "Learnt: multiplies the auxiliary reward",
}
LEGEND = {"phi1": "φ₁, added", "phi2": "φ₂, of the true reward", "phi3": "φ₃, of the auxiliary reward"}


def plane(env: str) -> tuple[Box, dict[str, Any], tuple[str, str]]:
    """Box, marks and axes of an environment of two dimensions.

    Raises:
        UsageError: for others.
    """
    kind = env.split("-")[0]
    if kind == "gridworld":
        marks: dict[str, Any] = {"start": gridworld.START, "goal": (gridworld.GOAL, gridworld.GOAL)}
        if env.endswith("-bad"):
            marks["decoy"] = (gridworld.DECOY, gridworld.DECOY)
        return list(zip(gridworld.LOW, gridworld.HIGH)), marks, ("x", "y")
    if kind == "mountaincar":
        return list(zip(mountaincar.LOW, mountaincar.HIGH)), {}, ("position", "velocity")
    raise UsageError(f"env={env} has states of other than two dimensions: choose a run in gridworld-* or mountaincar-*")


def draw(run_dir: Path, out: Path) -> tuple[list[Path], float]:
    """Write all pictures; where they are, and the learnt discount.

    Raises:
        UsageError: no such run, one of another algorithm, one in an environment that is not a plane.
    """
    policy = evaluate.load(evaluate.Options(run_dir))
    config = policy.note["config"]["algo"]
    if config["name"] not in LEARNERS or config["static"].get("reward", "learnt") != "learnt":
        raise UsageError(
            f"{run_dir} is a run of algo={config['name']}, which learns no reward: choose one of algo=barfi"
        )
    box, marks, labels = plane(policy.env_name)
    if not config["static"]["phi_state_dependent"]:
        raise UsageError(
            f"{run_dir} learnt a reward of three numbers (phi_state_dependent=false): there is no map of it"
        )
    assert isinstance(policy.env, Env)
    assert policy.env.view is not None
    omega = jax.tree.map(lambda x: x[0], policy.population.state).omega
    features = jax.vmap(jax.vmap(policy.env.view))(jnp.asarray(cells(box, SIDE)))
    learnt = np.asarray(multipliers(omega.phi, features, config["static"]["phi2_mode"]))
    names = [name for name in TITLES if name != "phi2" or config["static"]["phi2_mode"] != "one"]
    written = [out / f"{name}.png" for name in names]
    for name, path in zip(names, written):
        heatmap(path, learnt[..., list(TITLES).index(name)], box, TITLES[name], marks, labels)
    if rows := MetricsFile(run_dir).rows():
        written.append(out / "weights.png")
        draw_weights(rows, names, written[-1])
    return written, float(discount_of(omega))


@styled
def draw_weights(rows: list[dict[str, float]], names: list[str], path: Path) -> None:
    """The learnt discount, and beside it the means of those multipliers, over the rows of metrics.csv.

    Runs of versions that did not measure the multipliers have the discount alone.
    """
    measured = [name for name in names if f"{name}_mean" in rows[0]]
    figure = canvas(8.0 if measured else 4.2, 2.9)
    panels = figure.subplots(1, 1 + bool(measured), squeeze=False)[0]
    marker = "o" if len(rows) == 1 else None

    def line(axes: Axes, metric: str, **style: Any) -> None:
        axes.plot([row["update"] for row in rows], [row[metric] for row in rows], marker=marker, ms=3, lw=1.4, **style)

    line(panels[0], "gamma", color=PALETTE[0])
    panels[0].set_title("Learnt discount", loc="left")
    for name in measured:
        line(panels[1], f"{name}_mean", color=PALETTE[int(name[-1])], label=LEGEND[name])
    if measured:
        panels[1].set_title("Learnt multipliers, mean over visited states", loc="left")
        panels[1].legend()
    for axes in panels:
        axes.set_xlabel("episodes")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path)


def main(args: list[str]) -> None:
    """The command."""
    if {"-h", "--help"} & set(args):
        print(__doc__)
        return
    folders = [arg for arg in args if "=" not in arg]
    options = dict(arg.split("=", 1) for arg in args if "=" in arg)
    if len(folders) != 1 or set(options) - {"out"}:
        raise UsageError(f"not understood: {' '.join(args)}; use python -m experiments.alignment RUN_DIR [out=FOLDER]")
    run_dir = Path(folders[0])
    written, discount = draw(run_dir, Path(options.get("out", run_dir / "alignment")))
    print(f"learnt discount {discount:.4f}; written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
