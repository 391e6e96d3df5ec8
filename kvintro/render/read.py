# SPDX-License-Identifier: LGPL-2.1-or-later
"""``read`` as text: one line per word or member."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Iterator, List, Sequence, cast

from kvintro.render.text import BOLD, DIM, RED, Line, prose, table_text
from kvintro.render.values import value_text

if TYPE_CHECKING:
    from kvintro.queries.members import Member
    from kvintro.queries.memory import MemoryWord
    from kvintro.reports.read import ReadReport

_LONGEST = 48  # characters of a value beside its member; longer values go below
_FEW = 2  # number of equal words that are shown individually


def read_lines(report: ReadReport, color: bool, width: int) -> List[str]:
    """The identity of the address, and the table."""
    (table,) = report.tables
    extra = report.extra
    what = "; ".join(thing.text for thing in extra["identities"])
    space = "" if extra["space"] == "kernel" else f"{extra['space']} "
    head = f"{space}{extra['address']:016x}" + (f": {what}" if what else "")
    out = prose(head, width, BOLD, color, "", "  ")
    if table.key == "words":
        lines = list(_words(cast("Sequence[MemoryWord]", table.rows)))
    else:
        lines = [_member(row) for row in cast("Sequence[Member]", table.rows)]
    return out + table_text(table.columns, lines, color=color, width=width)


def _words(rows: Sequence[MemoryWord]) -> Iterator[Line]:
    """Lines of words. For a sequence of equal words, the first and the number of the rest."""
    at = 0
    while at < len(rows):
        end = at + 1
        while end < len(rows) and _like(rows[at], rows[end]):
            end += 1
        if end - at <= _FEW + 1:
            yield from map(_word, rows[at:end])
        else:
            last = f"{rows[end - 1].address:016x}"
            yield replace(_word(rows[at]), notes=(f"* {end - at - 1} more words like this, up to {last}",))
        at = end


def _like(one: MemoryWord, other: MemoryWord) -> bool:
    return (one.value, one.size, one.note) == (other.value, other.size, other.note)


def _word(row: MemoryWord) -> Line:
    value = "?" * 16 if row.value is None else f"{row.value:0{2 * row.size}x}"
    cells = {
        "address": value_text(row.address),
        "value": value,
        "text": row.text or "",
        "identity": row.note or (row.identity.text if row.identity else ""),
    }
    if row.value is None:
        return Line(cells, styles={"value": RED, "identity": RED})
    return Line(cells, styles={} if row.value else {"value": DIM, "text": DIM})


def _member(row: Member) -> Line:
    name = row.label or ("(no name)" if row.depth else "")
    value = row.value or ""
    long = len(value) > _LONGEST
    kind = row.type if row.bit_size is None else f"{row.type} : {row.bit_size}"
    cells = {
        "offset": f"{row.offset:#x}",
        "name": "  " * row.depth + name,
        "type": kind,
        "value": "" if long else value,
        "identity": row.identity.text if row.identity else row.note or "",
    }
    styles = {"identity": RED} if row.state != "mapped" else {}
    return Line(cells, styles=styles, notes=(value,) if long else (), notes_at="name")
