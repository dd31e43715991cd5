"""Run every recorded case of a folder: `python -m tests.parity ALGO DIR`.

Exit status: 0 all within tolerance, 1 a tolerance exceeded, 2 something missing, not understood or not used.
"""

import importlib
import sys
from pathlib import Path

import jax

from envs.core import UsageError
from tests.parity.core import Row, check_all_used, print_table, read_settings, run_case

# Each a module of this package with `KINDS`: a comparison for each kind of case.
ALGORITHMS = ("a2pr", "psec", "task_allocation", "barfi", "mra", "adaptive_rr")


def compare(algorithm: str, folder: Path) -> list[Row]:
    """Print the table of every case of the folder; all rows."""
    if algorithm not in ALGORITHMS:
        raise UsageError(f"no comparison for algorithm '{algorithm}'; known: {', '.join(ALGORITHMS)}")
    cases = read_settings(folder)
    check_all_used(folder, cases)
    kinds = importlib.import_module(f"tests.parity.{algorithm}").KINDS
    rows: list[Row] = []
    for case in cases:
        # Accelerators round the inputs of float32 matrix products unless told otherwise.
        with jax.default_matmul_precision("highest"):
            title, case_rows = run_case(folder, case, kinds)
        print_table(title, case_rows)
        rows += case_rows
    return rows


def main(arguments: list[str]) -> int:
    """The exit status. A mistake is told in one line."""
    if len(arguments) != 2:
        print("usage: python -m tests.parity ALGO DIR", file=sys.stderr)
        return 2
    try:
        rows = compare(arguments[0], Path(arguments[1]))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    exceeded = sum(not row.ok for row in rows)
    print(f"\n{len(rows)} quantities compared, {exceeded} beyond tolerance")
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
