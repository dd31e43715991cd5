"""A small document (headings, paragraphs, tables, figures) and how it becomes Markdown and one HTML page.

Paragraphs and cells may hold `code` and **bold**; everything else is taken literally.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_BRACKETS = re.compile(r"(\[[^\]]*\])")  # intervals
STYLE = Path(__file__).with_name("page.css")


@dataclass(frozen=True)
class Cell:
    """Text of a table cell; `tone` colours it: good, high, low, bad or none."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading of level 2 or 3; those of level 2 make the contents."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """One paragraph; `tone` lead is set larger, note smaller."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Items:
    """A list."""

    items: list[str]


@dataclass(frozen=True)
class Grid:
    """A table. `align` has one letter a column: l text, r numbers, w numbers that may wrap, c centred, v verdicts."""

    columns: list[str]
    align: str
    rows: list[list[Cell]]
    grouped: int = 0  # leading columns that name groups of rows: headings between the rows on the page


@dataclass(frozen=True)
class Picture:
    """A figure: SVG text in light colours, and the same for both themes of the page."""

    name: str
    light: str
    themed: str
    caption: str


Block = Heading | Paragraph | Items | Grid | Picture


@dataclass
class Document:
    """A title and what follows."""

    title: str
    blocks: list[Block] = field(default_factory=list)


def markdown(document: Document) -> str:
    """The document as Markdown; figures are links to figures/NAME.svg."""
    parts = [f"# {_plain(document.title)}"]
    for block in document.blocks:
        match block:
            case Heading():
                parts.append(f"{'#' * block.level} {_plain(block.text)}")
            case Paragraph():
                parts.append(_plain(block.text))
            case Items():
                parts.append("\n".join(f"- {_plain(item)}" for item in block.items))
            case Grid():
                parts.append(_markdown_grid(block))
            case Picture():
                parts.append(f"![{_plain(block.name)}](figures/{block.name}.svg)\n\n*{_plain(block.caption)}*")
    return "\n\n".join(parts) + "\n"


def _markdown_grid(grid: Grid) -> str:
    rules = {"l": "---", "r": "---:", "w": "---:", "c": ":---:", "v": "---"}
    lines = [_markdown_row(grid.columns), "|" + "|".join(rules[letter] for letter in grid.align) + "|"]
    return "\n".join(lines + [_markdown_row([_emphasised(cell) for cell in row]) for row in grid.rows])


def _emphasised(cell: Cell) -> str:
    """The verdict's word in bold, as colour is not to be had."""
    word, colon, why = cell.text.partition(":")
    return f"**{word}**{colon}{why}" if cell.tone and word else cell.text


def _markdown_row(texts: list[str]) -> str:
    return "| " + " | ".join(_plain(text).replace("|", "\\|") for text in texts) + " |"


def _plain(text: str) -> str:
    """One line, so that no text of a file can end a paragraph or row; no HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def page(document: Document) -> str:
    """The document as one HTML page that needs nothing else: no scripts, styles and figures inside."""
    contents = [
        f'<li><a href="#{_slug(block.text)}">{_inline(block.text)}</a></li>'
        for block in document.blocks
        if isinstance(block, Heading) and block.level == 2
    ]
    title = html.escape(document.title)
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{STYLE.read_text()}</style>\n</head>\n<body>\n<main>\n"
    )
    body = [f"<h1>{title}</h1>", '<nav aria-label="Contents"><ul>', *contents, "</ul></nav>"]
    for number, block in enumerate(document.blocks):
        body.extend(_html(block, number))
    return head + "\n".join(body) + "\n</main>\n</body>\n</html>\n"


def _html(block: Block, number: int) -> Iterator[str]:
    match block:
        case Heading():
            anchor = f' id="{_slug(block.text)}"' if block.level == 2 else ""
            yield f"<h{block.level}{anchor}>{_inline(block.text)}</h{block.level}>"
        case Paragraph():
            yield (
                f'<p class="{block.tone}">{_inline(block.text)}</p>' if block.tone else f"<p>{_inline(block.text)}</p>"
            )
        case Items():
            yield "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in block.items) + "</ul>"
        case Grid():
            yield from _html_grid(block)
        case Picture():
            yield f'<figure><div class="scroll" tabindex="0">{_unique(block.themed, f"f{number}-")}</div>'
            yield f"<figcaption>{_inline(block.caption)}</figcaption></figure>"


def _html_grid(grid: Grid) -> Iterator[str]:
    wide = ' class="wide"' if len(grid.columns) > 9 else ""
    yield f'<div class="scroll" tabindex="0"><table{wide}>'
    names = [_BRACKETS.sub(r'<span class="ci">\1</span>', _inline(name)) for name in grid.columns]
    heads = [f'<th scope="col" class="{a}">{name}</th>' for name, a in zip(names, grid.align)]
    yield f"<thead><tr>{''.join(heads[grid.grouped :])}</tr></thead>\n<tbody>"
    group: list[str] = []
    for row in grid.rows:
        own = [cell.text for cell in row[: grid.grouped]]
        if own != group:
            width = len(heads) - grid.grouped
            yield f'<tr class="group"><th scope="rowgroup" colspan="{width}">{_inline(" · ".join(own))}</th></tr>'
        cells = (_html_cell(cell, a) for cell, a in list(zip(row, grid.align))[grid.grouped :])
        yield f"<tr>{''.join(cells)}</tr>"
        group = own
    yield "</tbody></table></div>"


def _html_cell(cell: Cell, align: str) -> str:
    text = _inline(cell.text)
    if align not in "lv":
        text = re.sub(r"(?<![\w)])-(?=[\d.])", "\u2212", text)  # a minus as wide as a plus
        text = _BRACKETS.sub(r'<span class="ci">\1</span>', text)
    if cell.tone:
        word, colon, why = text.partition(":")
        text = f'<span class="tag {cell.tone}">{word}</span>{f" {why.strip()}" if colon else ""}'
    return f'<td class="{align}">{text}</td>'


def _inline(text: str) -> str:
    escaped = html.escape(" ".join(text.split()))
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", escaped)


def _unique(svg: str, prefix: str) -> str:
    """The figure with its ids told apart from those of the page's other figures."""
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")
