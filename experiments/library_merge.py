"""Skills of a library mixed by constants, as the weights of one plain network."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from algos.psec import base
from algos.psec.nets import Net, merge, stack
from algos.psec.skill import adapted_net
from envs.core import UsageError
from experiments import library, provenance
from experiments.config import algo_schema


def write_merged(lib: Path, out: Path, alpha: dict[str, float]) -> None:
    """Write W + sum_i alpha_i A_i B_i as a run directory of algo=psec_base.

    A skill alone acts with alpha equal to its scale. The policy is evaluated where the first skill's was.

    Raises:
        UsageError: `out` exists, a skill is not there, is no LoRA skill, or sees other observations than the others.
    """
    if out.exists():
        raise UsageError(f"{out} exists: choose another folder to write to")
    found = {name: library.read(lib, name) for name in alpha}
    first = next(iter(alpha))
    told = {name: note for name, (_, note) in found.items()}
    if (mlp := next((name for name in alpha if told[name]["skill"]["adapter"] != "lora"), None)) is not None:
        raise UsageError(f"{mlp} has adapter=mlp, which no plain weights can express: use algo=psec_compose for it")
    for name, note in told.items():
        for what in ("skill_activation", "obs_mean", "obs_std"):
            ours, theirs = ({**one, **one["skill"]}[what] for one in (note, told[first]))
            if ours != theirs:
                raise UsageError(f"{name} and {first} differ in {what}: only skills that agree on it can be merged")
    skills = stack([jax.tree.map(lambda x: x[0], part["lora"]) for part, _ in found.values()])
    with jax.default_matmul_precision("highest"):  # once and for all: not in the short floats of an accelerator
        weights = merge(found[first][0]["base"], skills, jnp.array(list(alpha.values()), jnp.float32))
    algo = _base_algo(told[first]["config"]["algo"])
    state = base.State(weights, weights, base.optimiser(algo.hyper).init(weights))
    note = library.kept(told[first]) | {
        "config": told[first]["config"] | {"algo": _plain(algo), "start": []},
        "start": [],
        "sums": {},
        "chunks": 0,
        "merged": {"library": str(lib), "alpha": alpha, "base": told[first]["base"]["sha256"]},
    }
    library.place(out, 0, state, note | provenance.describe())


def _base_algo(skill: dict[str, Any]) -> Any:
    """The configuration of algo=psec_base that acts like skills of this one, once merged."""
    static = skill["static"]
    net = adapted_net(Net(**static["net"]), static["skill_activation"])
    hyper = base.Hyper(temperature=skill["hyper"]["temperature"])
    return algo_schema("psec_base")(hyper=hyper, static=base.Static(net, static["batch_size"]))


def _plain(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))
