# SPDX-License-Identifier: LGPL-2.1-or-later
"""Converts reports to lines with links. Here a kernel's strings become harmless, before they become lines."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.browse.lines import Line, Link, Part, Sheet, plain
from kvintro.model import ALL, Address, Column, Report, Row, Size, Stream, Table
from kvintro.render import render
from kvintro.render.colors import region_style
from kvintro.render.inert import InertStream, inert
from kvintro.render.text import BOLD, CYAN, DIM, GREEN, RED, YELLOW, columns_of, wrapped
from kvintro.render.values import field_of, value_text
from kvintro.reports.show import row_text

#: Maximum number of lines in a sheet.
MOST_LINES = 20_000
_GAP = "  "
_WIDEST = 60  # maximum width of a cell, unless it is the last of its line

# These reports have text that is not in their tables.
PROSE = ("explain", "page", "identify", "translate", "pte", "info", "kaslr", "diff", "read")
_STATES = {"ok": GREEN, "broken": RED, "defect": RED, "warning": YELLOW, "notice": CYAN, "unknown": YELLOW}


@dataclass(frozen=True)
class Context:
    """Context of the links in a sheet.

    :ivar pid: process whose page tables translate user addresses.
    :ivar region: key of the region whose contents are listed.
    :ivar keys: keys of all regions.
    :ivar words: whether numbers are words of memory: then small ones are not addresses.
    """

    pid: Optional[int] = None
    region: str = ""
    keys: Tuple[str, ...] = ()
    words: bool = False


@dataclass(frozen=True)
class RangeRow:
    """A range of a page-table tree, as ``kvintro ptdump`` writes it."""

    start: Address
    end: Address
    size: Size
    level: str
    state: str
    flags: Tuple[str, ...]
    effective: Tuple[str, ...]
    marker: str


_RANGE_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("level", "level"),
    Column("state", "state"),
    Column("flags", "flags"),
)


def table_of(stream: Stream) -> Tuple[Table, Sequence[str], bool]:
    """The first rows of ``ptdump``, its notes, and whether anything could not be read."""
    rows: List[RangeRow] = []
    partial, more = False, False
    names = [f.name for f in dataclasses.fields(RangeRow)]
    for batch in InertStream(stream):
        partial |= batch.partial
        values = zip(*(batch.values[name] for name in names))
        rows += (RangeRow(*row) for row in islice(values, MOST_LINES - len(rows)))
        if len(rows) >= MOST_LINES:
            more = True
            break
    notes = [*stream.notes, *([f"the first {MOST_LINES} ranges are shown"] if more else [])]
    return Table("ranges", _RANGE_COLUMNS, rows), notes, partial


def sheet(
    command: Tuple[str, ...], report: Report, context: Context, width: int, match: Optional[str] = None
) -> Sheet:
    """Convert a report to lines.

    :param width: width in columns for wrapping prose.
    :param match: text that lines of prose must contain; tables are already filtered.
    """
    if report.command in PROSE:
        prose, tables = _apart(report)
        if report.command == "read" and report.extra["space"] == "kernel":
            context = replace(context, words=True)
        lines = prose_lines(render(prose, "text", color=True, width=width), context)
        if report.command == "read":
            lines = [replace(line, link=_pointer(line)) for line in lines]
            lines = [*_as_type(report), *lines, *_more(report)]
        for table in tables:
            lines += [plain("", head=True), plain(table.title, BOLD, head=True)]
            lines += table_lines(inert(table), context)
        if match is not None:
            lines = [line for line in lines if match.lower() in line.text.lower()]
        return Sheet(command, tuple(lines[:MOST_LINES]))
    safe = inert(report)
    out = _intro(safe, width)
    columns: List[str] = []
    for table in _shown(safe):
        if out:
            out.append(plain("", head=True))
        if table.title:
            out.append(plain(table.title, BOLD, head=True))
        out += table_lines(table, context)
        columns += [column.key for column in table.columns if column.key not in columns]
    for note in safe.notes:
        out += [Line(_linked(text, YELLOW, context)) for text in wrapped(f"note: {note}", width, "", "  ")]
    if len(out) > MOST_LINES:
        out = [*out[:MOST_LINES], plain(f"the first {MOST_LINES} lines are shown", YELLOW)]
    return Sheet(command, tuple(out), tuple(columns))


def _pointer(line: Line) -> Optional[Link]:
    """Target of a word or a member: the last address in its line, except the line's own."""
    found = [link for link in line.links if link.kind in ("virtual", "command")]
    return found[-1] if found else None


def _as_type(report: Report) -> Sequence[Line]:
    """A link to the members of the type of the memory, if the type is known."""
    for note in report.notes:
        found = _HINT.search(note)
        if found is not None:
            return (
                plain(f"show the members of {inert(found['type'])}", CYAN, Link("command", found["line"])),
            )
    return ()


def _more(report: Report) -> Sequence[Line]:
    """A link to the memory that follows."""
    behind = int(report.extra["address"]) + int(report.extra["size"])
    space = report.extra["space"]
    words = {"kernel": "", "physical": "--phys "}.get(space, f"--pid {space.split()[-1]} ")
    if report.extra["type"] is not None or behind > ALL:
        return ()
    link = Link("command", f"read {words}{behind:x} --size 1024")
    return (plain(f"more: from {behind:016x}", CYAN, link),)


_MAPPING_COLUMNS = (
    Column("pid", "pid", "right"),
    Column("comm", "command"),
    Column("address", "address"),
    Column("rights", "rights"),
    Column("page_size", "page", "right"),
    Column("state", "state"),
)


def _apart(report: Report) -> Tuple[Report, Sequence[Table]]:
    """Separate a report from its head and from the processes that map a page; the latter become tables."""
    report = dataclasses.replace(report, head=())
    if report.command != "page":
        return report, ()
    (table,) = report.tables
    tables = [
        Table("mappings", _MAPPING_COLUMNS, row.mappings, "mapped by") for row in table.rows if row.mappings
    ]
    rows = [dataclasses.replace(row, mappings=None) for row in table.rows] if tables else table.rows
    return dataclasses.replace(report, tables=(dataclasses.replace(table, rows=rows),)), tables


def _unbroken(text: str) -> str:
    """Keep a text on one line by replacing its spaces."""
    return text.replace(" ", "\u00a0")


def _shown(report: Report) -> Sequence[Table]:
    """The tables of a report that are shown."""
    if report.command != "pages":
        return report.tables
    if report.extra["by"]:
        return report.tables[:1]
    return [t for t in report.tables if t.key in ("types", "zones") or (t.key == "free" and t.rows)]


def _intro(report: Report, width: int) -> List[Line]:
    """Lines before the tables of ``show`` and ``user``."""
    out: List[Line] = []
    head = report.extra.get("region")
    if head is not None:
        for text in filter(None, (head.note, head.reason)):
            out += [plain(line, YELLOW) for line in wrapped(text, width)]
    totals = report.extra.get("totals")
    if isinstance(totals, Mapping) and "table" not in report.extra:
        pairs = [f"{name.replace('_', ' ')} {value_text(value) or '-'}" for name, value in totals.items()]
        text = "\u00a0· ".join(_unbroken(pair) for pair in pairs)
        out += [plain(line.replace("\u00a0", " "), DIM, head=True) for line in wrapped(text, width)]
    return out


# Tables


def table_lines(table: Table, context: Context) -> List[Line]:
    """Header and rows of a table. Columns that are empty in all rows are omitted."""
    rows = table.rows[:MOST_LINES]
    if not rows:
        return [plain("none", DIM)]
    keys = {column.key for column in table.columns}
    # With the size, the end is redundant.
    columns = [c for c in table.columns if c.key != "end" or "size" not in keys]
    columns = [c for c in columns if any(_says(field_of(row, c.key)) for row in rows)]
    cells = [[_cell(field_of(row, c.key), c.key) for c in columns] for row in rows]
    widths = [
        min(max(columns_of(c.title), *(columns_of(row[at]) for row in cells)), _WIDEST)
        for at, c in enumerate(columns)
    ]
    header = "".join(_padded(c.title, wide, c.align) + _GAP for c, wide in zip(columns, widths))
    out = [plain(header.rstrip(), "4", head=True)]
    for row, texts in zip(rows, cells):
        parts: List[Part] = []
        for column, text, wide in zip(columns, texts, widths):
            link = link_of(row, column.key, context) if text else None
            padding = " " * max(wide - columns_of(text), 0)
            before, after = (padding, "") if column.align == "right" else ("", padding)
            if before:
                parts.append(Part(before))
            parts.append(Part(text, _style(column.key, text), link))
            parts.append(Part(after + _GAP))
        out.append(Line(tuple(parts), row_link(row, context)))
    return out


def _says(value: object) -> bool:
    return value != 0 if isinstance(value, Size) else bool(_cell(value))


def _cell(value: object, key: str = "") -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if key in _FRAMES and isinstance(value, int):
        return f"{value:x}"  # as it can be typed after g
    return value_text(value)


def _padded(text: str, wide: int, align: str) -> str:
    pad = " " * max(wide - columns_of(text), 0)
    return pad + text if align == "right" else text + pad


def _style(key: str, text: str) -> str:
    if key in ("state", "severity"):
        return _STATES.get(text, "")
    if key == "problem":
        return RED
    if key == "key":
        return region_style(text)
    if key in ("rights", "permissions") and "w" in text and "x" in text:
        return RED
    return ""


_FRAMES = ("pfn", "head_pfn")
_PHYSICAL = ("physical", "physical_end")
_NO_LINK = ("offset", "flags", "flags_value", "value", "covers_end")


def link_of(row: Row, key: str, context: Context) -> Optional[Link]:
    """Link of a cell; None if it has none."""
    value: Any = field_of(row, key)
    if isinstance(value, Address):
        if key in _NO_LINK:
            return None
        if key in _PHYSICAL:
            return Link("physical", int(value))
        pid = field_of(row, "pid")
        user = value >> 63 == 0
        owner = pid if isinstance(pid, int) else context.pid
        return Link("virtual", int(value), pid=owner if user else None)
    if isinstance(value, int) and not isinstance(value, bool):
        if key in _FRAMES:
            return Link("pfn", value)
        if key == "pid":
            comm = field_of(row, "comm")
            return Link("pid", value, name=comm if isinstance(comm, str) else "")
        return None
    if isinstance(value, str) and value:
        if key in ("key", "region") and value in context.keys:
            return Link("region", value)
        if key == "module" or (key == "name" and type(row).__name__ == "ModuleRow"):
            return Link("module", value)
        if key in ("symbol", "caller"):
            found = _SYMBOL.match(value)
            return Link("symbol", found[1]) if found else None
    return None


def row_link(row: Row, context: Context) -> Optional[Link]:
    """Link of a whole row: its range, or else the first link in it."""
    names = [f.name for f in dataclasses.fields(row)]
    start, end = field_of(row, "start"), field_of(row, "end")
    if isinstance(start, Address) and isinstance(end, Address):
        key = field_of(row, "key")
        if isinstance(key, str) and key in context.keys:
            return Link("region", key)
        user = start >> 63 == 0
        pid = context.pid if user else None
        return Link("range", int(start), int(end), pid, _name(row, int(start)), context.region)
    for name in names:
        link = link_of(row, name, context)
        if link is not None:
            return link
    return None


def _name(row: Row, start: int) -> str:
    """Name in the breadcrumb for the range of a row."""
    for key in ("caller", "module", "name", "comm"):
        value = field_of(row, key)
        if isinstance(value, str) and value:
            return f"{value.split('+')[0].split('/')[-1]} {start & 0xFFFFFFFFFFFF:x}"
    return ""


# Prose

_PAINT = re.compile(r"\x1b\[([0-9;]*)m")
_SYMBOL = re.compile(r"([A-Za-z_.$][\w.$]*\+0x[0-9a-f]+)(?:/0x[0-9a-f]+)?")
_TOKENS = re.compile(
    r"(?P<area>vmap: 0x(?P<start>[0-9a-f]{16})-0x(?P<end>[0-9a-f]{16}))"
    r"|(?P<number>(?<![\w])(?:0x)?[0-9a-f]{16}(?!\w))"
    r"|(?P<pfn>(?:pfn |page frame )(?:0x)?(?P<frame>[0-9a-f]+)(?!\w))"
    r"|(?P<process>(?:pid |task: |stack: |mapped by |canary of )(?P<pid>\d+)(?!\w))"
    r"|(?P<module>(?<!\w)module (?P<name>[\w-]+))"
    r"|(?P<symbol>(?<!\w)[A-Za-z_.$][\w.$]*\+0x[0-9a-f]+)"
    r"|(?P<word>(?<!\w)[a-z]+(?:_[a-z]+)*(?![\w(]))"
)
# Hint in the output of read for memory whose type is known.
_HINT = re.compile(r"kvintro (?P<line>read [0-9a-f]+ --type '(?P<type>[^']+)')")
#: Keys of regions that are also common words.
_COMMON = ("user", "modules", "efi")
_PHYSICAL_WORDS = re.compile(r"(physical|=>|page|entry|root) *$")


def prose_lines(text: str, context: Context) -> List[Line]:
    """Convert a renderer's text to lines, with its colours and with links."""
    return [Line(tuple(_painted(line, context))) for line in text.rstrip("\n").split("\n")]


def _painted(line: str, context: Context) -> Iterator[Part]:
    style, at = "", 0
    for code in _PAINT.finditer(line):
        yield from _linked(line[at : code.start()], style, context)
        style = "" if code[1] in ("", "0") else code[1]
        at = code.end()
    yield from _linked(line[at:], style, context)


def _linked(text: str, style: str, context: Context) -> Tuple[Part, ...]:
    """Split a text at its links."""
    parts: List[Part] = []
    at = 0
    for found in _TOKENS.finditer(text):
        link = _token(found, text, context)
        if link is None:
            continue
        if found.start() > at:
            parts.append(Part(text[at : found.start()], style))
        parts.append(Part(found[0], style, link))
        at = found.end()
    if at < len(text):
        parts.append(Part(text[at:], style))
    return tuple(parts)


def _token(found: "re.Match[str]", text: str, context: Context) -> Optional[Link]:
    if found["number"]:
        value = int(found["number"], 16)
        if value >> 63:
            # Page-table entries with NX look like addresses; non-canonical addresses are not links.
            return Link("virtual", value) if value >> 56 == 0xFF else None
        if context.words:
            return None
        if _PHYSICAL_WORDS.search(text[: found.start()]) or context.pid is None:
            return Link("physical", value) if value and value >> 52 == 0 else None
        return Link("virtual", value, pid=context.pid)
    if found["area"]:
        return Link("range", int(found["start"], 16), int(found["end"], 16) - 1)
    if found["module"]:
        return Link("module", found["name"])
    if found["pfn"]:
        return Link("pfn", int(found["frame"], 16))
    if found["process"]:
        # The idle tasks, which all have number 0, are not processes.
        return Link("pid", int(found["pid"])) if int(found["pid"]) else None
    if found["symbol"]:
        if text[: found.start()].endswith(("object: ", "variable: ")):
            return None  # a slab cache, or a per-CPU variable, whose symbol is elsewhere
        return Link("symbol", found["symbol"])
    word = found["word"]
    return Link("region", word) if word in context.keys and word not in _COMMON else None


def matching(table: Table, text: str) -> Table:
    """The rows that contain a text, ignoring case."""
    wanted = text.lower()
    rows = [row for row in table.rows if wanted in row_text(row).lower()]
    return dataclasses.replace(table, rows=rows)
