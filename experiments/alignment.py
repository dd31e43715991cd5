"""What a BARFI run has learnt, as pictures: `python -m experiments.alignment RUN_DIR [out=FOLDER]`.

Heat maps over the states of GridWorld or MountainCar, of the newest checkpoint, in RUN_DIR/alignment or FOLDER:
    phi1.png    what is added to the reward
    phi2.png    what the true reward is multiplied by, where that is learnt
    phi3.png    what the auxiliary reward is multiplied by
The learnt discount is printed; its course, and that of everything else that is measured, is in RUN_DIR/metrics.csv.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algos.barfi.rewards import discount_of, multipliers
from envs.core import Env, UsageError
from envs.shaped import gridworld, mountaincar
from experiments import evaluate
from experiments.cli import guarded
from experiments.heatmap import Box, cells, heatmap

SIDE = 60  # cells of a heat map in each direction
TITLES = {
    "phi1": "Learnt: added to the reward",
    "phi2": "Learnt: multiplies the true reward",
    "phi3": "Learnt: multiplies the auxiliary reward",
}


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
    """Write the heat maps; where they are, and the learnt discount.

    Raises:
        UsageError: no such run, one of another algorithm, one in an environment that is not a plane.
    """
    policy = evaluate.load(evaluate.Options(run_dir))
    config = policy.note["config"]["algo"]
    if config["name"] != "barfi":
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
    omega = jax.tree.map(lambda x: x[0], policy.population.state).learner.omega
    features = jax.vmap(jax.vmap(policy.env.view))(jnp.asarray(cells(box, SIDE)))
    learnt = np.asarray(multipliers(omega.phi, features, config["static"]["phi2_mode"]))
    written = []
    for index, (name, title) in enumerate(TITLES.items()):
        if name == "phi2" and config["static"]["phi2_mode"] == "one":
            continue
        out.mkdir(parents=True, exist_ok=True)
        written.append(out / f"{name}.png")
        heatmap(written[-1], learnt[..., index], box, title, marks, labels)
    return written, float(discount_of(omega))


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
