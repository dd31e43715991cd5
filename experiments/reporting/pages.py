"""The report as a document: what is said, in which order."""

from collections.abc import Iterator
from itertools import groupby

from experiments.reporting import figures
from experiments.reporting.analysis import REPLICATES, SEED, CellResult, TableResult, Verdict
from experiments.reporting.claims import ClaimResult
from experiments.reporting.document import Block, Cell, Document, Grid, Heading, Items, Paragraph
from experiments.reporting.numbers import digits_for, interval, number
from experiments.reporting.plan import BEHAVIOUR, SCORES, Plan
from experiments.reporting.records import Curves, Member
from experiments.stats import Interval

_TONES = {
    "agrees": "good", "above": "high", "below": "low", "not comparable": "none",
    "holds": "good", "does not hold": "bad", "not tested": "none",
}  # fmt: skip


def build(
    plan: Plan, members: list[Member], curves: Curves, tables: list[TableResult], claims: list[ClaimResult]
) -> Document:
    """The whole report."""
    document = Document(plan.title or "Report")
    document.blocks += _headline(plan, members, tables, claims)
    look = figures.Look(list(dict.fromkeys(method for table in plan.tables for method in table.methods)))
    for result in tables:
        document.blocks += _table(result, curves, look)
    document.blocks += _missing(tables, curves)
    document.blocks += _provenance(plan, members)
    return document


def _headline(
    plan: Plan, members: list[Member], tables: list[TableResult], claims: list[ClaimResult]
) -> Iterator[Block]:
    finished, planned = len({member.dir for member in members if member.counts}), len({m.dir for m in members})
    yield Paragraph(f"**{finished:,} of {planned:,}** planned runs are finished and enter the numbers.", "lead")
    for result in tables:
        if verdicts := [cell.verdict for cell in result.cells if cell.verdict is not None]:
            title = result.table.title or result.table.name
            yield Paragraph(f"{title}, against the {_against(result)}: {_count(verdicts)}.", "lead")
    if claims:
        yield Paragraph(f"Claims: {_count([claim.verdict for claim in claims])}.", "lead")
        yield Heading("Claims")
        yield _claims(claims, {result.table.name: _digits(result) for result in tables})
        yield Paragraph(_how_claims_are_judged(claims, tables), "note")


def _how_claims_are_judged(claims: list[ClaimResult], tables: list[TableResult]) -> str:
    text = (
        "Measured is the mean difference between runs of the same seed, in the table's score, with Student's 95 % "
        "interval. A claim holds if that mean exceeds what is required and enough seeds have its sign."
    )
    claimed = {result.claim.table for result in claims}
    if any(result.table.lower_is_better and result.table.name in claimed for result in tables):
        text += " Where lower is better, differences are the other way round: positive is as claimed."
    if any(result.claim.relation == "equal" for result in claims):
        text += " A claim of = 0 holds if no seed has any difference, in any digit."
    return text


def _count(verdicts: list[Verdict]) -> str:
    """How many of each, in the order of _TONES."""
    words = [verdict.word for verdict in verdicts]
    return ", ".join(f"{word} **{words.count(word)}**" for word in _TONES if word in words)


def _claims(claims: list[ClaimResult], digits: dict[str, int]) -> Grid:
    rows = []
    for result in claims:
        claim, paired = result.claim, result.paired
        measured = interval(paired.difference, digits.get(claim.table, 1)) if paired else "–"
        texts = [claim.task, claim.text or claim.name, measured, result.sign, result.required]
        rows.append([*map(Cell, texts), _verdict(result.verdict), Cell(claim.source)])
    columns = ["task", "claim", "measured difference [95 % CI]", "seeds with the sign", "required", "verdict", "source"]
    return Grid(columns, "llrccvl", rows, grouped=1)


def _verdict(verdict: Verdict) -> Cell:
    return Cell(str(verdict), _TONES[verdict.word])


def _table(result: TableResult, curves: Curves, look: figures.Look) -> Iterator[Block]:
    table = result.table
    yield Heading(table.title or table.name)
    if table.protocol:
        yield Paragraph(table.protocol)
    why = f" Not comparable with the paper: {table.not_comparable}." if table.not_comparable else ""
    metric = f"{table.metric} (lower is better)" if table.lower_is_better else table.metric
    yield Paragraph(f"Score: {metric}, {SCORES[table.score]}; by the other two at the end.{why}", "note")
    yield _scores(result)
    pictures = [figures.curves(result, curves, look), figures.strips(result, look), figures.profiles(result, look)]
    yield from (picture for picture in pictures if picture is not None)
    if result.improvements:
        yield Heading("Probability of improvement", 3)
        yield _improvements(result)
        better = "lower" if table.lower_is_better else "higher"
        yield Paragraph(
            f"Probability that a run of the row's method scores {better} than one of the column's on the same task, "
            "averaged over the tasks that both have; bootstrap interval. Coloured where it excludes one half.", "note"
        )  # fmt: skip
    yield Heading("By last, mean of last ten and best evaluation [95 % CI]", 3)
    yield _kinds(result)


def _digits(result: TableResult) -> int:
    return digits_for([score.mean.value for cell in result.cells for score in cell.scores.values()])


def _scores(result: TableResult) -> Grid:
    """The main table: paper, ours, verdict."""
    table, digits = result.table, _digits(result)
    held = table.published is not None  # against published numbers
    against = _against(result)
    columns = [
        "task",
        "method",
        against,
        "our IQM [95 % CI]",
        "our mean [95 % CI]",
        f"mean − {against} [95 % CI]",
        "n",
        "verdict",
    ]
    shown = [True, True, held, True, True, held, True, held]
    rows = []
    for task in table.tasks:
        cells = [cell for cell in result.cells if cell.cell.task == task]
        rows += [_score_row(cell, table.score, digits) for cell in cells]
        behaviour = next((cell.behaviour for cell in cells if cell.behaviour is not None), None)
        if behaviour is not None:
            texts = [task, BEHAVIOUR, "–", "–", number(behaviour, digits), "–", "data", ""]
            rows.append([Cell(text) for text in texts])
    for average in result.averages:
        score = average.scores[table.score]
        paper = "–" if average.published is None else f"{number(average.published, digits)} (mean of the above)"
        ours = [interval(score.iqm, digits), interval(score.mean, digits), "–", average.n, ""]
        rows.append([Cell(text) for text in (f"average over {average.tasks} tasks", average.method, paper, *ours)])
    keep = [i for i, show in enumerate(shown) if show]
    align = "".join("llwrrrcv"[i] for i in keep)
    return Grid([columns[i] for i in keep], align, [[row[i] for i in keep] for row in rows], grouped=1)


def _against(result: TableResult) -> str:
    """What our numbers are held against."""
    return "reference" if any(cell.published and cell.published.reference for cell in result.cells) else "paper"


def _score_row(cell: CellResult, kind: str, digits: int) -> list[Cell]:
    score = cell.scores.get(kind)
    texts = [cell.cell.task, cell.cell.method, str(cell.published) if cell.published else "–"]
    texts += [interval(score.iqm, digits), interval(score.mean, digits)] if score else ["–", "–"]
    texts += [interval(cell.difference, digits) if cell.difference else "–", cell.n]
    return [*map(Cell, texts), _verdict(cell.verdict) if cell.verdict else Cell("")]


def _kinds(result: TableResult) -> Grid:
    """The same cells by last, best and mean of the last ten evaluations, the protocol's choice first."""
    digits = _digits(result)
    kinds = sorted(SCORES, key=lambda kind: kind != result.table.score)
    columns = ["task", "method", *(f"{SCORES[kind]}: {what}" for kind in kinds for what in ("IQM", "mean"))]
    named = [(cell.cell.task, cell.cell.method, cell.scores) for cell in result.cells]
    named += [(f"average over {a.tasks} tasks", a.method, a.scores) for a in result.averages]
    rows = []
    for task, method, scores in named:
        texts = [interval(of, digits) for kind in kinds if scores for of in scores[kind]]
        rows.append([Cell(task), Cell(method), *map(Cell, texts or ["–"] * (2 * len(kinds)))])
    return Grid(columns, "llrrrrrr", rows, grouped=1)


def _improvements(result: TableResult) -> Grid:
    pairs = {(pair.better, pair.worse): pair.probability for pair in result.improvements}
    methods = [m for m in result.table.methods if any(m in pair for pair in pairs)]
    rows = []
    for better in methods:
        cells = [_probability(pairs.get((better, worse))) for worse in methods]
        rows.append([Cell(better), *cells])
    side = "below" if result.table.lower_is_better else "above"
    return Grid([f"row {side} column", *methods], "l" + "c" * len(methods), rows)


def _probability(p: Interval | None) -> Cell:
    if p is None:
        return Cell("–")
    tone = "high" if p.low > 0.5 else "low" if p.high < 0.5 else ""
    return Cell(interval(p, 2), tone)


def _missing(tables: list[TableResult], curves: Curves) -> Iterator[Block]:
    """Every member that does not count, and what there is no curve of, each with its reason."""
    yield Heading("Missing, unfinished and diverged runs")
    found: list[tuple[str, str, str, str, str, int | None]] = []
    for result in tables:
        for cell in result.cells:
            name = result.table.title or result.table.name, cell.cell.task, cell.cell.method
            if not cell.members:
                found.append((*name, "missing", cell.cell.missing or "no runs are planned", None))
            found += [(*name, *state, member.seed) for member in cell.members if (state := _state(member, curves))]
    if not found:
        yield Paragraph("None: every planned run is finished, and none diverged.")
        return
    rows = []
    for key, group in groupby(found, lambda entry: entry[:5]):
        seeds = ", ".join(str(entry[5]) for entry in group if entry[5] is not None)
        rows.append([Cell(text) for text in (*key[:3], seeds or "all", *key[3:])])
    yield Grid(["table", "task", "method", "seeds", "state", "explanation"], "llllll", rows, grouped=2)


def _state(member: Member, curves: Curves) -> tuple[str, str] | None:
    if not member.counts:
        return member.status, member.why
    return None if member.key in curves else ("no curve", "finished, but metrics.csv holds no evaluation to draw")


def _provenance(plan: Plan, members: list[Member]) -> Iterator[Block]:
    yield Heading("Where the numbers come from")
    distinct = {member.dir: member for member in members}.values()
    states = [member.status for member in distinct]
    counts = ", ".join(f"{states.count(state):,} {state}" for state in dict.fromkeys(sorted(states)))
    earlier = dict.fromkeys(f"`{folder}`" for table in plan.tables for cell in table.cells for folder in cell.start)
    checksums = sorted({f"{m.data} {checksum}" for m in distinct for checksum in (m.data_sha256 or "").split()})
    items = [
        f"command: `{plan.command}`" if plan.command else "command: not recorded",
        f"paper: {plan.paper}; preset: {plan.preset}" if plan.paper else "",
        f"runs: {len(distinct):,} ({counts})",
        f"runs of earlier phases that they begin from: {', '.join(earlier)}" if earlier else "",
        f"commit: {_distinct(member.git for member in distinct)}",
        f"device: {_distinct(member.device for member in distinct)}",
        f"versions: {_distinct(member.versions for member in distinct)}",
        *(f"data sha256: {checksum}" for checksum in checksums),
        f"bootstrap: seed {SEED}, {REPLICATES:,} replicates, the same for every interval",
    ]
    yield Items([item for item in items if item])
    yield Heading("How each number is computed", 3)
    yield Items(list(_METHODS))


_METHODS = (
    "**mean**: over the seeds that count, with Student's 95 % t interval. One seed has no interval.",
    "**IQM**: interquartile mean (the 25 % trimmed mean; the mean below four seeds), with a 95 % percentile bootstrap "
    "interval, which is too narrow for few seeds.",
    "**average over tasks**: IQM over all runs together, mean of the tasks' means; bootstrap stratified by task. "
    "Only methods with a score on every task.",
    "**mean − paper**: Welch's 95 % interval from our scores and the paper's mean, standard deviation over seeds and "
    "number of seeds. Where the paper does not give these, or gives a spread of unknown kind, its mean is taken as "
    "exact, which makes the interval too narrow. Half a unit of the published last digit is added at either end.",
    "**reference** instead of paper: the number is in no paper, but was measured with an independent implementation.",
    "**verdict**: agrees if that interval holds 0, else above or below. Not comparable if any planned seed is missing, "
    "unfinished or diverged, if there is one seed only, or for the reason given.",
    "**diverged** runs (parameters or scores no longer finite) enter no statistic, which favours the method: they are "
    "counted in n and listed above.",
    "**probability of improvement** and **performance profile**: as in Agarwal et al. (NeurIPS 2021), bootstrap "
    "intervals stratified by task. Where every run of one side is ahead the interval has no width: the "
    "bootstrap cannot see beyond its samples.",
    "`numbers.csv` has every number shown; `runs.csv` and `curves.csv` the runs that they come from.",
)  # fmt: skip


def _distinct(values: Iterator[str | None]) -> str:
    return "; ".join(sorted({value for value in values if value})) or "not known"
