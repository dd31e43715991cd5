"""Recorded outputs of D4RL's two conversions against ours."""

from envs.core import UsageError
from envs.datasets.d4rl import Raw, qlearning, sequence
from envs.datasets.hdf5 import NEEDED, check_arrays
from tests.parity.core import EXACT, Arrays, Case, Comparison

TERMINATE = "_terminate_on_end"
COLUMNS = {  # recorded name -> field of our Transition
    "observations": "obs",
    "actions": "action",
    "next_observations": "next_obs",
    "rewards": "reward",
    "terminals": "terminated",
}


def conversion(case: Case, comparison: Comparison) -> None:
    """Every recorded variant of both conversions, exactly."""
    arrays = case.arrays
    limit = int(arrays["raw/max_episode_steps"])
    for variant in variants(arrays, "qlearning"):
        raw = read_raw(arrays, variant.removesuffix(TERMINATE))
        ours, index = qlearning(raw, limit, terminate_on_end=variant.endswith(TERMINATE))
        recorded = f"qlearning/{variant}"
        for name, field in COLUMNS.items():
            comparison.add(f"{recorded}: {name}", getattr(ours, field), arrays[f"{recorded}/{name}"], EXACT)
        comparison.add(f"{recorded}: source_index", index, arrays[f"{recorded}/source_index"], EXACT)
    for variant in variants(arrays, "sequence"):
        recorded = f"sequence/{variant}"
        start, length = sequence(read_raw(arrays, variant), limit)
        comparison.add(f"{recorded}: episode_start", start, arrays[f"{recorded}/episode_start"], EXACT)
        comparison.add(f"{recorded}: episode_length", length, arrays[f"{recorded}/episode_length"], EXACT)


def variants(arrays: Arrays, group: str) -> list[str]:
    """The recorded variants of a conversion."""
    found = arrays.children(f"{group}/")
    if not found:
        raise UsageError(f"{arrays.name}: no array '{group}/...'")
    return found


def read_raw(arrays: Arrays, source: str) -> Raw:
    """The recorded file's columns, time-outs withheld where the variant says so."""
    if source not in ("with_timeouts", "no_timeouts"):
        raise UsageError(f"{arrays.name}: '{source}' is not a known variant of the conversion")
    columns = {name: arrays[f"raw/{name}"] for name in (*NEEDED, "timeouts")}
    raw = check_arrays(columns, arrays.name)
    return raw if source == "with_timeouts" else raw._replace(timeouts=None)
