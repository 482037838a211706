"""One result, three faces: terminal, JSON, HTML.

A command fills a `Report` with data (for `--json`) and blocks (for people); the faces only lay out. Plain text is laid
out here without a library, so that a pipe costs no import; on a terminal the same text gets colors through rich's
console, which calls `__rich_console__`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_BAR = 24  # characters of a full bar
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A cell that is a share: 0 to 1."""

    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Title:
    """What the report is about, and a line below it."""

    text: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A sentence of its own."""

    text: str
    faint: bool = False


Cell = str | Bar


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under named columns. A column whose name starts with ">" is aligned right; all names empty, no heading.

    On a narrow terminal rows are cut, since folded ones cannot be read; not so where every character counts (`whole`).
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    title: str = ""
    whole: bool = False


Block = Title | Line | Table


class Report:
    """The result of a command. `data` is what `--json` prints; `blocks` are what people see; `summary` is one line of
    it.
    """

    def __init__(
        self,
        *,
        verb: str,
        data: Mapping[str, object],
        blocks: Sequence[Block],
        summary: str = "",
        passed: bool = True,
        version: int = 1,
    ) -> None:
        self.schema = f"weighbridge/{verb}/{version}"
        self.data = data
        self.blocks = tuple(blocks)
        self.summary = summary
        self.passed = passed

    def to_dict(self) -> dict[str, object]:
        """The machine's face: `schema` first, integers as integers."""
        return {"schema": self.schema, **self.data}

    def __repr__(self) -> str:
        return f"<{self.schema}: {self.summary}>" if self.summary else f"<{self.schema}>"

    def __str__(self) -> str:
        return "\n".join(line for line, _ in _text(self.blocks, styled=False))

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        # The console itself turns markup into styled text: rich need not be imported here.
        for line, wraps in _text(self.blocks, styled=True):
            text = console.render_str(line, markup=True, emoji=False, highlight=False, overflow="ellipsis")
            text.no_wrap = not wraps
            yield text

    def _repr_html_(self) -> str:
        return "".join(_html(self.blocks))


def printable(text: str) -> str:
    """Text from a file, safe for a terminal: control codes are shown, not obeyed."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _text(blocks: Sequence[Block], *, styled: bool) -> Iterator[tuple[str, bool]]:
    """(line, whether it may be wrapped). Styled lines are in rich's markup."""

    def style(name: str, text: str) -> str:
        if not styled:
            return text
        text = text.replace("[", "\\[")
        return f"[{name}]{text}[/]" if name and text.strip() else text

    for at, block in enumerate(blocks):
        if isinstance(block, Title):
            if at:
                yield "", True
            yield style("bold", printable(block.text)), True
            if block.detail:
                yield style("bright_black", printable(block.detail)), True
        elif isinstance(block, Line):
            yield style("bright_black" if block.faint else "", printable(block.text)), True
        else:
            yield "", True
            if block.title:
                yield style("bold", block.title), True
            for row in _table(block, style):
                yield row, block.whole


def _table(table: Table, style: Callable[[str, str], str]) -> Iterator[str]:
    names = [name.lstrip(">") for name in table.columns]
    right = [name.startswith(">") for name in table.columns]
    cells = [[_bar(c) if isinstance(c, Bar) else printable(c) for c in row] for row in table.rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(names)]

    def aligned(row: Sequence[str]) -> list[str]:
        return [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]

    if any(names):
        yield "  " + style("bright_black", "  ".join(aligned(names)).rstrip())
    for row, raw in zip(cells, table.rows, strict=True):
        parts = [
            style("cyan" if isinstance(cell, Bar) else "", text) for text, cell in zip(aligned(row), raw, strict=True)
        ]
        yield "  " + "  ".join(parts).rstrip()


def _bar(bar: Bar) -> str:
    eighths = round(max(0.0, min(1.0, bar.share)) * _BAR * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def _html(blocks: Sequence[Block]) -> Iterator[str]:
    import html  # a notebook's alone: a terminal need not wait for it

    yield '<div style="font-family: ui-monospace, monospace; font-size: 13px; line-height: 1.5">'
    for block in blocks:
        if isinstance(block, Title):
            yield f"<div><b>{html.escape(printable(block.text))}</b></div>"
            if block.detail:
                yield f'<div style="opacity: .65">{html.escape(printable(block.detail))}</div>'
        elif isinstance(block, Line):
            yield f'<div style="opacity: {".65" if block.faint else "1"}">{html.escape(printable(block.text))}</div>'
        else:
            yield from _html_table(block)
    yield "</div>"


def _html_table(table: Table) -> Iterator[str]:
    import html

    aligns = ["right" if name.startswith(">") else "left" for name in table.columns]
    names = [name.lstrip(">") for name in table.columns]
    yield '<table style="border-collapse: collapse; margin: 6px 0">'
    if table.title:
        yield f'<caption style="text-align: left; font-weight: bold">{html.escape(table.title)}</caption>'
    if any(names):
        heads = zip(names, aligns, strict=True)
        yield "<tr>" + "".join(f'<th style="text-align: {a}">{html.escape(n)}</th>' for n, a in heads) + "</tr>"
    for row in table.rows:
        yield "<tr>"
        for cell, align in zip(row, aligns, strict=True):
            if isinstance(cell, Bar):
                width = round(max(0.0, min(1.0, cell.share)) * 160)
                inner = f'<div style="background: #2a9fb5; height: 10px; width: {width}px"></div>'
            else:
                inner = html.escape(printable(cell))
            yield f'<td style="text-align: {align}; padding: 1px 10px 1px 0">{inner}</td>'
        yield "</tr>"
    yield "</table>"
