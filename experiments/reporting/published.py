"""The numbers to hold ours against, from experiments/published/PAPER.csv and PAPER_reference.csv."""

import csv
import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path

from envs.core import UsageError
from experiments.reporting.plan import MEASURE

FOLDER = Path(__file__).parent.parent / "published"
REFERENCE = "_reference"  # PAPER_reference.csv: measured with an independent implementation, in no paper
MEASURED = "measured"  # a `source` that begins with it says the same of one row


@dataclass(frozen=True)
class Published:
    """One row: texts as they are in the file."""

    mean: str
    spread: str
    spread_kind: str
    n_seeds: str
    source: str
    reference: bool = False  # of an independent implementation, not printed in a paper

    @property
    def value(self) -> float | None:
        """The mean; None where it was not found."""
        return _number(self.mean)

    @property
    def slack(self) -> float:
        """Half a unit of the mean's last digit: what rounding may have hidden."""
        exponent = Decimal(self.mean).as_tuple().exponent
        return 0.5 * 10.0 ** int(exponent)

    @property
    def std(self) -> tuple[float | None, int | None]:
        """Sample standard deviation over seeds and their number; (None, None) unless the row says that it is one."""
        kind = self.spread_kind.lower().replace("_", " ")
        n = int(self.n_seeds) if self.n_seeds.isdigit() else 0
        spread = _number(self.spread)
        known = ("std" in kind.split() or "standard deviation" in kind) and "seed" in kind and "not " not in kind
        if not known or spread is None or n < 2:
            return None, None
        return (spread * math.sqrt(n / (n - 1)) if self._population else spread), n

    @property
    def _population(self) -> bool:
        return "population" in self.spread_kind or "ddof=0" in self.spread_kind

    def __str__(self) -> str:
        if self.value is None:
            return "not found"
        kind = self.spread_kind.replace("_", " ")
        if _number(self.spread) is None:
            spread, kind = "", "no spread given"
        elif self.std[0] is not None:
            spread, kind = f" ± {self.spread}", "population std" if self._population else "std"
        else:
            unknown = not kind or kind.startswith(("not ", "unknown"))
            spread, kind = f" ± {self.spread}", f"{'spread of unknown kind' if unknown else kind}, not used"
        seeds = f"n = {self.n_seeds}" if self.n_seeds.isdigit() else "n unknown"
        return f"{self.mean}{spread} ({kind}, {seeds})"


def lookup(
    paper: str | None, experiment: str | None, task: str | None, method: str | None, measure: str = MEASURE
) -> Published | None:
    """The published row; None if there is none.

    A measure other than the score is looked for by its name, as the row's `metric`; for the score the first row counts.

    Raises:
        UsageError: the paper has no file, or the file another layout.
    """
    if paper is None or experiment is None or task is None or method is None:
        return None
    key = experiment, task, method, None if measure == MEASURE else measure
    found = _rows(FOLDER / f"{paper}.csv").get(key)
    reference = FOLDER / f"{paper}{REFERENCE}.csv"
    return found or (_rows(reference).get(key) if reference.exists() else None)


@cache
def _rows(path: Path) -> dict[tuple[str, str, str, str | None], Published]:
    """Rows by (experiment, task, method, metric); with None for the metric, the first of those."""
    reference = path.stem.endswith(REFERENCE)
    columns = ("mean", "spread", "spread_kind", "n_seeds", "source")
    found: dict[tuple[str, str, str, str | None], Published] = {}
    try:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                key = row["experiment"], row["environment"], row["method"]
                texts = {column: row[column].strip() for column in columns}
                remeasured = reference or texts["source"].startswith(MEASURED)
                for metric in (row["metric"], None):
                    found.setdefault((*key, metric), Published(**texts, reference=remeasured))
    except FileNotFoundError:
        raise UsageError(f"no published numbers of paper={path.stem}: {path.name} is not in {path.parent}") from None
    except KeyError as error:
        raise UsageError(f"{path}: the column {error} is missing") from None
    return found


def _number(text: str) -> float | None:
    try:
        value = float(Decimal(text))
    except InvalidOperation:
        return None
    return value if math.isfinite(value) else None
