"""numbers.csv: every number that the report shows, in long format; and how numbers are written for people."""

import csv
import io
import math
from collections.abc import Iterator
from typing import Any

from experiments.reporting.analysis import Average, CellResult, TableResult
from experiments.reporting.claims import ClaimResult
from experiments.stats import Interval

NUMBERS = "numbers.csv"
COLUMNS = ("section", "table", "task", "method", "score", "quantity", "value", "low", "high", "n", "note")


def digits_for(values: list[float]) -> int:
    """Decimals that suit scores of this size: one from 10 on, one more for each power of ten below."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 1 if largest == 0 else min(6, max(1, 2 - math.floor(math.log10(largest))))


def number(value: float, digits: int) -> str:
    """A number with thousands separated and no negative zero."""
    text = f"{value:,.{digits}f}"
    return text[1:] if text.startswith("-") and not text.strip("-0.,") else text


def interval(of: Interval, digits: int) -> str:
    """`value [low, high]`; the value alone where there is no interval."""
    if not math.isfinite(of.low):
        return number(of.value, digits)
    return f"{number(of.value, digits)} [{number(of.low, digits)}, {number(of.high, digits)}]"


def to_csv(tables: list[TableResult], claims: list[ClaimResult]) -> bytes:
    """Ten significant digits: more would differ between machines."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    lower = {result.table.name for result in tables if result.table.lower_is_better}
    rows = [row for claim in claims for row in _claim(claim, claim.claim.table in lower)]
    rows += [row for table in tables for row in _table(table)]
    writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)
    return buffer.getvalue().encode()


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.10g}" if math.isfinite(value) else ""
    return "" if value is None else str(value)


def _bounds(of: Interval) -> dict[str, float]:
    return {"value": of.value, "low": of.low, "high": of.high}


def _claim(result: ClaimResult, lower: bool) -> Iterator[dict[str, Any]]:
    claim, paired = result.claim, result.paired
    difference = f"{claim.worse} - {claim.better}" if lower else f"{claim.better} - {claim.worse}"
    of = {"section": "claims", "table": claim.table, "task": claim.task, "method": difference}
    note = {"note": f"{claim.name}: {result.verdict}"}
    if paired is None:
        yield of | {"quantity": "paired difference"} | note
        return
    yield of | {"quantity": "paired difference", "n": paired.n} | _bounds(paired.difference) | note
    if claim.relation == "equal":
        yield of | {"quantity": "seeds without a difference", "value": paired.wins, "n": paired.n} | note
        return
    yield of | {"quantity": "seeds with the sign", "value": paired.wins, "n": paired.n} | note
    yield of | {"quantity": "smallest difference required", "value": claim.min_gap} | note
    if claim.min_wins is not None:
        yield of | {"quantity": "seeds required", "value": claim.min_wins} | note


def _table(result: TableResult) -> Iterator[dict[str, Any]]:
    for cell in result.cells:
        of = {"section": "scores", "table": result.table.name, "task": cell.cell.task, "method": cell.cell.method}
        yield from ({**of, **row} for row in _cell(cell, result.table.score))
    for average in result.averages:
        of = {"section": "averages", "table": result.table.name, "method": average.method}
        yield from ({**of, **row} for row in _average(average))
    for pair in result.improvements:
        yield {
            "section": "probability of improvement", "table": result.table.name, "score": result.table.score,
            "method": f"{pair.better} {'<' if result.table.lower_is_better else '>'} {pair.worse}",
            "quantity": "probability", "n": pair.tasks,
        } | _bounds(pair.probability)  # fmt: skip
    side = "below" if result.table.lower_is_better else "above"
    for method, profile in result.profiles.items():
        of = {"section": "performance profile", "table": result.table.name, "score": result.table.score}
        for threshold, value, low, high in zip(result.thresholds, *profile):
            row = {"method": method, "quantity": f"share {side} {threshold:.10g}"}
            yield of | row | _bounds(Interval(float(value), float(low), float(high)))


def _cell(cell: CellResult, choice: str) -> Iterator[dict[str, Any]]:
    yield {"quantity": "seeds counted", "value": len(cell.counted), "n": len(cell.members), "note": cell.n}
    if cell.published is not None:
        note = f"{cell.published}; {cell.published.source}"
        yield {"score": choice, "quantity": "published mean", "value": cell.published.value, "note": note}
    if cell.verdict is not None:
        bounds = _bounds(cell.difference) if cell.difference else {}
        yield {"score": choice, "quantity": "ours - published", "note": str(cell.verdict)} | bounds
    if cell.behaviour is not None:
        yield {"quantity": "behaviour policy", "value": cell.behaviour}
    yield from _scores(cell, len(cell.counted))


def _average(average: Average) -> Iterator[dict[str, Any]]:
    note = {"task": f"average over {average.tasks} tasks"}
    if average.published is not None:
        yield note | {"quantity": "mean of the published means", "value": average.published}
    yield from (note | row for row in _scores(average, average.n))


def _scores(of: CellResult | Average, n: int | str) -> Iterator[dict[str, Any]]:
    for kind, score in of.scores.items():
        yield {"score": kind, "quantity": "IQM", "n": n} | _bounds(score.iqm)
        yield {"score": kind, "quantity": "mean", "n": n} | _bounds(score.mean)
