"""Report on runs: `python -m experiments.report DIR [out=FOLDER]`.

DIR holds runs, with or without a plan.json that says which table of which paper each belongs to, or is an earlier
report, whose plan.json, runs.csv and curves.csv are enough to write it again. Written to FOLDER (DIR if not given):
report.md, report.html (one page that needs nothing else), figures/*.svg, numbers.csv (every number shown), and the
three files above. The same runs give the same bytes.
"""

import difflib
import sys
from pathlib import Path

from envs.core import UsageError
from experiments.cli import guarded
from experiments.log import write_atomically
from experiments.reporting import analysis, claims, document, found, numbers, pages, plan, records
from experiments.reporting.plan import Plan
from experiments.reporting.records import Curves, Member


def gather(root: Path) -> tuple[Plan, list[Member], Curves]:
    """Plan, members and curves of a folder of runs or of an earlier report.

    Raises:
        UsageError: there is no such folder, or neither plan nor runs in it, or a file of a report is damaged.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; give the folder that holds the runs, e.g. runs")
    given = plan.load(root)
    if given is None or given.found:
        if found.folders(root):
            given = found.plan(root)
        elif given is None:
            raise UsageError(f"{root}: no run below it; train first, e.g. python -m experiments.train")
    here = any((root / run.dir).is_dir() for _, _, run in records.planned(given))
    if here or not (root / records.RUNS).exists():
        return given, *records.collect(given, root)
    members, curves = records.read(root)
    return given, records.complete(given, members), curves


def report(root: Path, out: Path) -> str:
    """Write the report of `root` to `out`; its Markdown text.

    Raises:
        UsageError: as `gather`; or the plan names a paper whose published numbers are not there.
    """
    given, members, curves = gather(root)
    tables = analysis.analyse(given, members)
    judged = claims.judge(given.claims, tables)
    pages_ = pages.build(given, members, curves, tables, judged)
    text = document.markdown(pages_)
    pictures = [block for block in pages_.blocks if isinstance(block, document.Picture)]
    files = {plan.PLAN: plan.dump(given), **records.write(members, curves)}
    files |= {numbers.NUMBERS: numbers.to_csv(tables, judged)}
    files |= {f"figures/{picture.name}.svg": picture.light.encode() for picture in pictures}
    files |= {"report.html": document.page(pages_).encode(), "report.md": text.encode()}
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(out / name, content)
    return text


def main() -> None:
    """Read the command line."""
    places = [arg for arg in sys.argv[1:] if "=" not in arg]
    options = dict(arg.split("=", 1) for arg in sys.argv[1:] if "=" in arg)
    if {"--help", "-h"} & set(places):
        print(__doc__)
        return
    if len(places) != 1:
        raise UsageError("usage: python -m experiments.report DIR [out=FOLDER]")
    if unknown := sorted(set(options) - {"out"}):
        nearest = difflib.get_close_matches(unknown[0], ["out"], 1, 0.0)
        raise UsageError(f"unknown key {unknown[0]}; did you mean {nearest[0]}?")
    root = Path(places[0])
    out = Path(options.get("out", root))
    print(report(root, out).partition("![")[0])  # up to the first figure
    print(f"written: {out / 'report.md'}, {out / 'report.html'}, {out / numbers.NUMBERS}")


if __name__ == "__main__":
    sys.exit(guarded(main))
