"""One case of the golden records, copied with changes: what the parity tool must notice."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


def copy_case(algorithm: str, name: str, folder: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    """Write the one case of that kind, or in that file, to `folder`: each array as `change(key, array)` makes it."""
    cases = json.loads((GOLDEN / algorithm / "settings.json").read_text())["cases"]
    (case,) = [case for case in cases if name in (case["kind"], case["files"]["all"])]
    file = case["files"]["all"]
    with np.load(GOLDEN / algorithm / file) as arrays:
        changed = {key: change(key, x) for key, x in arrays.items()}
    folder.mkdir(exist_ok=True)
    np.savez(folder / file, **changed)  # type: ignore[arg-type]
    (folder / "settings.json").write_text(json.dumps({"cases": [case]}))
    return folder
