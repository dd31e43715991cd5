"""Robots whose physics is changed: friction, gravity and the size of the thighs, as factors of what they usually are.

The changes that work on policies under a shift of the dynamics makes. Observation, reward and termination stay as
they are. `halfcheetah-friction0.25` names one; `envs.mujoco.dynamics_params` makes the parameters of many.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import jax.numpy as jnp

from envs.core import UsageError
from envs.mujoco.opengl import mujoco

# Shifts that papers train under before they adapt to the robot as it is; any other factor can be named, too.
NAMED = (
    "halfcheetah-friction0.25", "halfcheetah-gravity2", "halfcheetah-thigh2",
    "walker2d-friction0.5", "walker2d-gravity2", "walker2d-thigh2",
)  # fmt: skip
THIGH_SCALES = ("radius", "radius_and_length")
_VARIANT = re.compile(r"(?P<robot>[^:]+)-(?P<kind>friction|gravity|thigh|longthigh)(?P<factor>.*)")


class Dynamics(NamedTuple):
    """Factors, each a positive number or an array (...); all ones is the robot as it is."""

    friction: Any = 1.0  # of all three coefficients of every geom
    gravity: Any = 1.0
    thigh: Any = 1.0  # radius of both thighs; masses and inertias follow as the model's compiler has them
    thigh_length: Any = 1.0  # half-length of both thighs about their middles; the joints stay where they are


NOMINAL = Dynamics()


def split(name: str) -> tuple[str, Dynamics]:
    """The robot and the factors that an environment's name stands for; NOMINAL where it names no shift.

    ROBOT-frictionF, ROBOT-gravityF, ROBOT-thighF (radius) and ROBOT-longthighF (radius and length), for factors F.
    Raises UsageError for a factor that is no positive number; whether there is such a robot is not looked at.
    """
    if (found := _VARIANT.fullmatch(name)) is None:
        return name, NOMINAL
    try:
        factor = float(found["factor"])
    except ValueError:
        factor = -1.0
    if not 0.0 < factor < float("inf"):
        raise UsageError(
            f"environment {name!r}: the factor {found['factor']!r} must be a number more than 0, "
            f"e.g. {found['robot']}-{found['kind']}2"
        )
    if found["kind"] == "longthigh":
        return found["robot"], Dynamics(thigh=factor, thigh_length=factor)
    return found["robot"], NOMINAL._replace(**{found["kind"]: factor})


def factors(friction: Any, gravity: Any, thigh: Any, thigh_scale: str) -> Dynamics:
    """Float32 arrays of one shape: () of numbers, (n,) where some are sequences of n.

    Raises UsageError: a factor that is not positive and finite, sequences of several lengths, another `thigh_scale`.
    """
    if thigh_scale not in THIGH_SCALES:
        raise UsageError(f"thigh_scale={thigh_scale!r} is not known; choose one of {', '.join(THIGH_SCALES)}")
    length = thigh if thigh_scale == "radius_and_length" else 1.0
    arrays = as_arrays(Dynamics(friction, gravity, thigh, length))
    for name, array in zip(Dynamics._fields, arrays):
        if not bool(jnp.all((array > 0.0) & jnp.isfinite(array))):
            raise UsageError(f"{name}={array.tolist()} is a factor and must be more than 0")
    try:
        return Dynamics(*jnp.broadcast_arrays(*arrays))
    except ValueError as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(Dynamics._fields, arrays))
        raise UsageError(f"factors of several shapes do not make members: {shapes}; give as many of each") from error


def as_arrays(dynamics: Dynamics) -> Dynamics:
    """The factors as float32 arrays."""
    return Dynamics(*(jnp.asarray(x, jnp.float32) for x in dynamics))


def compile_model(path: Path, thighs: tuple[str, ...], dynamics: Dynamics) -> mujoco.MjModel:
    """The model of a file with its dynamics shifted; `thighs` names capsules, given by radius and half-length."""
    if dynamics.thigh == 1.0 and dynamics.thigh_length == 1.0:
        model = mujoco.MjModel.from_xml_path(str(path))
    else:
        root = ElementTree.parse(path).getroot()
        for geom in root.iter("geom"):
            if geom.get("name") in thighs:
                radius, half_length = map(float, geom.attrib["size"].split())
                geom.set("size", f"{radius * dynamics.thigh!r} {half_length * dynamics.thigh_length!r}")
        model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    model.geom_friction *= dynamics.friction
    model.opt.gravity *= dynamics.gravity
    return model
