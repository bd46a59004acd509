"""How every command prints tables and what stands around them: the form is chosen here, by where it goes.

No cell is ever broken inside a word.

A pipe gets full lines, columns two spaces apart. A terminal gets the same where it is wide enough; else the last column
is wrapped; else what is spare is left out; else each row becomes a record, a line for each field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult  # noqa: TID251 - as types
from rich.text import Text

from moe_watch.cli.screen import Screen

Cell = str | Text
_GAP: Final = "  "
_EMPTY: Final = "-"  # in a pipe, so that columns can be counted
_NARROWEST: Final = 40  # what a wrapped column needs
_NUMBER: Final = re.compile(r"[-+\u2212]?\d[\d,.]*(\s?(%|m?s))?|[-\u2013]?")


@dataclass(frozen=True)
class Grid:
    """Rows under the names of their columns; columns named in ``spare`` are the first to go where room is scarce."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    spare: Sequence[str] = ()
    indent: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        return _shifted(self.lines(_room(console, options, self.indent)), self.indent)

    def lines(self, room: int | None) -> list[Text]:
        """Return the lines for a terminal with ``room`` for so many characters; None for a pipe."""
        rows = [[_text(cell) for cell in row] for row in self.rows]
        if room is None:
            return _aligned(self.columns, [[cell or Text(_EMPTY) for cell in row] for row in rows])
        for columns, kept in _ever_fewer(self.columns, rows, self.spare):
            before = sum(_widths(columns, kept)[:-1]) + len(_GAP) * (len(columns) - 1)
            last = [Text(columns[-1]), *(row[-1] for row in kept)]
            need = max(cell.cell_len for cell in last)
            wrapped = max([_NARROWEST, *(_longest_word(cell) for cell in last)])
            if before + min(need, wrapped) <= room:
                return _aligned(columns, kept, last=room - before, bold=True)
        return _records(self.columns, rows, room)


@dataclass(frozen=True)
class Fields:
    """One record: names and values, a line each."""

    fields: Sequence[tuple[Cell, Cell]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        return iter(self.lines(_room(console, options, 0)))

    def lines(self, room: int | None) -> list[Text]:
        """Return the lines for a terminal with ``room`` for so many characters; None for a pipe."""
        fields = [(_text(name), _text(value)) for name, value in self.fields]
        width = max((name.cell_len for name, _ in fields), default=0)
        return [line for name, value in fields for line in _field(name, value, width, room)]


@dataclass(frozen=True)
class Prose:
    """Text of one or more paragraphs, a line each."""

    text: Cell
    indent: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        room = _room(console, options, self.indent)
        paragraphs = _text(self.text).split("\n", allow_blank=True)
        lines = (line for text in paragraphs for line in ([text] if room is None else _wrapped(text, room)))
        return _shifted(map(_bare, lines), self.indent)


def show(*parts: Grid | Fields | Prose | str) -> None:
    """Print ``parts`` on the terminal or into the pipe."""
    console = Screen(highlight=False)
    for part in parts:
        console.print(Prose(part) if isinstance(part, str) else part, soft_wrap=True)


def _room(console: Console, options: ConsoleOptions, indent: int) -> int | None:
    return options.max_width - indent if console.is_terminal else None


def _shifted(lines: Iterable[Text], by: int) -> Iterator[Text]:
    return (Text(" " * by).append_text(line) if line else line for line in lines)


def _text(cell: Cell) -> Text:
    return cell.copy() if isinstance(cell, Text) else Text(cell)


def _longest_word(cell: Text) -> int:
    return max((len(word) for word in cell.plain.split()), default=0)


def _ever_fewer(
    columns: Sequence[str], rows: list[list[Text]], spare: Sequence[str]
) -> Iterable[tuple[list[str], list[list[Text]]]]:
    """Yield the table whole, and with one more of the ``spare`` columns left out each time."""
    for count in range(len(spare) + 1):
        places = [place for place, name in enumerate(columns) if name not in spare[:count]]
        yield [columns[place] for place in places], [[row[place] for place in places] for row in rows]


def _widths(columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> list[int]:
    return [max([len(name), *(row[place].cell_len for row in rows)]) for place, name in enumerate(columns)]


def _aligned(
    columns: Sequence[str], rows: Sequence[Sequence[Text]], *, last: int | None = None, bold: bool = False
) -> list[Text]:
    """Return a line for the names and one or more for each row; the last column is wrapped to ``last`` characters."""
    widths = _widths(columns, rows)
    right = [all(_NUMBER.fullmatch(row[place].plain) for row in rows) for place in range(len(columns))]
    names = [Text(name, "bold" if bold else "") for name in columns]
    return [line for row in (names, *rows) for line in _row(row, widths, right, last)]


def _row(cells: Sequence[Text], widths: Sequence[int], right: Sequence[bool], last: int | None) -> list[Text]:
    line = Text()
    for cell, width, numeric in zip(cells[:-1], widths, right, strict=False):
        padding = " " * (width - cell.cell_len)
        line.append_text(Text(padding) + cell if numeric else cell + Text(padding)).append(_GAP)
    if right[-1] and (last is None or widths[-1] <= last):
        line.append(" " * (widths[-1] - cells[-1].cell_len))
    return _hung(line, cells[-1], last)


def _records(columns: Sequence[str], rows: Sequence[Sequence[Text]], room: int) -> list[Text]:
    """Return a line for each field that is not empty, and an empty one between two rows."""
    width = max(len(name) for name in columns)
    lines: list[Text] = []
    for row in rows:
        lines += [Text()] if lines else []
        for name, value in zip(columns, row, strict=True):
            lines += _field(Text(name, "bold"), value, width, room) if value else []
    return lines


def _field(name: Text, value: Text, width: int, room: int | None) -> list[Text]:
    start = Text().append_text(name).append(" " * (width - name.cell_len) + _GAP)
    return _hung(start, value, None if room is None else max(1, room - start.cell_len))


def _hung(start: Text, text: Text, room: int | None) -> list[Text]:
    """Return ``start`` and behind it ``text``, wrapped between words to ``room`` characters under its first line."""
    first, *rest = [text] if room is None else _wrapped(text, room)
    margin = Text(" " * start.cell_len)
    return [_bare(line) for line in (start + first, *(margin + part for part in rest))]


def _wrapped(text: Text, room: int) -> list[Text]:
    """Return ``text`` in lines of whole words; a word that is longer than ``room`` has a line of its own."""
    lines: list[Text] = []
    start = end = 0
    for word in re.finditer(r"\S+", text.plain):
        if end > start and text[start : word.end()].cell_len > room:
            lines.append(text[start:end])
            start = word.start()
        end = word.end()
    return [*lines, text[start:]]


def _bare(line: Text) -> Text:
    line.rstrip()
    return line
