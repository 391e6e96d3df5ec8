# SPDX-License-Identifier: LGPL-2.1-or-later
"""A self-contained page: any report as tables, ``kvintro report`` with the drawing and a search.

Strings of a dump are never trusted. They arrive without control characters (:mod:`kvintro.render.inert`),
Jinja2 escapes all of them, and the page's policy forbids all requests and all scripts except its own, which
is identified by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Sequence, Tuple, TypedDict, cast

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from kvintro.model import Address, Column, Displacement, Report, Row, Section, Size, Table, own_memory
from kvintro.render.drawing import placed_rows
from kvintro.render.svg import color_of, layout_svg
from kvintro.render.values import field_of, value_text
from kvintro.text import size_text
from kvintro.version import __version__

if TYPE_CHECKING:
    from kvintro.reports.check import CheckReport
    from kvintro.reports.explain import ExplainReport, ExplainRow
    from kvintro.reports.kaslr import KaslrReport
    from kvintro.reports.layout import LayoutReport
    from kvintro.reports.pages import CellRow, PagesReport, TypeRow
    from kvintro.reports.report import FullReport
    from kvintro.reports.show import ShowReport

_MOST_ROWS = 1000  # rows per table: more would be too slow to sort and filter in a browser
_MOST_PARTS = 20000  # parts of regions that the search box can find
_TYPE_COLORS = (
    "#9fb3c4",
    "#4d79a8",
    "#e0a13a",
    "#5aa873",
    "#c0604f",
    "#8a68b8",
    "#3f9d9d",
    "#d07fae",
    "#7f8f3a",
    "#b58563",
    "#6670c8",
    "#a8a8a8",
)


@dataclass(frozen=True)
class _Cell:
    text: str
    value: Optional[str] = None
    style: str = ""
    link: str = ""
    share: str = ""


@dataclass(frozen=True)
class _Row:
    cells: Sequence[_Cell]
    style: str = ""
    state: str = ""


@dataclass(frozen=True)
class _Column:
    title: str
    kind: str
    right: bool


@dataclass(frozen=True)
class _Table:
    """A table of the page.

    :ivar end: number, from 1, of the column of last addresses, if first addresses and sizes say the same and
        a narrow screen can do without it; 0 for none.
    """

    id: str
    title: str
    columns: Sequence[_Column]
    rows: Sequence[_Row]
    more: int = 0
    command: str = ""
    folded: str = ""
    end: int = 0


@dataclass(frozen=True)
class _Link:
    id: str
    title: str


@dataclass(frozen=True)
class _Region:
    id: str
    name: str
    color: str
    place: str = ""
    also: str = ""
    absent: bool = False
    purpose: Sequence[str] = ()
    here: Sequence[str] = ()
    texts: Sequence[Tuple[str, Sequence[str]]] = ()
    definitions: Optional[_Table] = None
    contents: Sequence[_Table] = ()
    notes: Sequence[str] = ()
    problem: str = ""
    rights: Optional[_Table] = None
    links: Sequence[_Link] = ()
    command: str = ""


@dataclass(frozen=True)
class _Share:
    name: str
    text: str
    color: str
    share: int


@dataclass(frozen=True)
class _Square:
    color: str
    text: str


@dataclass(frozen=True)
class _Missing:
    name: str
    reason: str
    link: str


@dataclass
class _Section:
    id: str
    title: str
    short: str
    text: Sequence[str] = ()
    problem: str = ""
    drawing: Optional[Markup] = None
    regions: Sequence[_Region] = ()
    tables: Sequence[_Table] = ()
    notes: Sequence[str] = ()
    stack: Sequence[_Share] = ()
    stack_label: str = ""
    cells: Sequence[_Square] = ()
    cell_size: str = ""
    absent: Sequence[_Missing] = ()
    absent_title: str = ""
    command: str = ""


@dataclass(frozen=True)
class _Fact:
    name: str
    value: str
    style: str = ""


@dataclass(frozen=True)
class _Page:
    title: str
    subtitle: str = ""
    command_line: str = ""
    facts: Sequence[_Fact] = ()
    notes: Sequence[str] = ()
    sections: Sequence[_Section] = field(default_factory=list)


def render_html(report: Report) -> str:
    """Render a report as a page."""
    full = cast("FullReport", report) if report.command == "report" else None
    single = Section(report.command, report.command.capitalize(), report=report)
    sections = (single,) if full is None else full.extra["sections"]
    by_key = {section.key: section for section in sections}
    page = _Page(
        title=_title(report),
        subtitle=_subtitle(report),
        command_line=(full.extra["command_line"] or "") if full is not None else "",
        facts=_facts(report, by_key),
        notes=report.notes if full is not None else (),
        sections=_sections(sections),
    )
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    text: str = _template().render(
        page=page,
        css=Markup(_file("page.css")),
        script=Markup(script),
        policy=policy,
        version=__version__,
        addresses=_addresses(by_key, None if full is None else full.extra["linear_offset"]),
    )
    return text + "\n"


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=False, keep_trailing_newline=False
    )
    return environment.from_string(_file("page.html.j2"))


@cache
def _file(name: str) -> str:
    return (resources.files("kvintro.render") / "web" / name).read_text(encoding="utf-8")


#: Commands that show what a section shows, if it has another name than the command.
_COMMANDS = {
    "rights": "ptdump",
    "vmalloc": "show vmalloc",
    "modules": "show modules",
    "explain": "explain --all",
}


def _command(report: Report, words: str) -> str:
    """A command line for the shell that asks the same source."""
    who = report.kernel
    if who is None:
        return f"kvintro {words}"
    option = "-c" if not who.live else "" if who.source == _RUNNING else "--qemu"
    source = f"{option} {shlex.quote(who.source)}" if option else "--sudo"
    return f"kvintro {source} {words}"


#: Name of the running kernel as a source.
_RUNNING = "/proc/kcore"


def _title(report: Report) -> str:
    release = report.kernel.release if report.kernel else None
    what = "the address space" if report.command == "report" else report.command
    return f"Linux {release}: {what}" if release else f"kvintro: {what}"


def _subtitle(report: Report) -> str:
    # With a kernel the first line repeats the title. Without one (diff) each line describes a kernel.
    lines = report.head[1:2] if report.kernel is not None else report.head
    parts = [part.strip() for line in lines for part in line.split("   ") if part.strip()]
    if report.kernel is not None and report.kernel.build_id:
        parts.append(f"build id {report.kernel.build_id}")
    return " \u00b7 ".join(parts)


def _facts(report: Report, sections: Mapping[str, Section]) -> List[_Fact]:
    who = report.kernel
    if who is None:
        return []

    def switch(name: str, value: Optional[bool]) -> _Fact:
        if value is None:
            return _Fact(name, "unknown", "warn")
        return _Fact(name, "on" if value else "off", "good" if value else "bad")

    kaslr = switch("KASLR", who.kaslr)
    drawn = cast("Optional[KaslrReport]", sections["kaslr"].report) if "kaslr" in sections else None
    if who.kaslr and drawn is not None and drawn.extra.get("image_only"):
        kaslr = _Fact("KASLR", "image only", "warn")
    facts = [
        _Fact("architecture", f"{who.arch}, {who.paging_levels} levels"),
        kaslr,
        switch("page-table isolation", who.isolation),
    ]
    check = cast("Optional[CheckReport]", sections["check"].report) if "check" in sections else None
    if check is not None:
        counts = {name: count for name, count in check.extra["counts"].items() if count}
        texts = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items()]
        # A notice is neither good nor bad.
        style = "bad" if "defect" in counts else "warn" if "warning" in counts else "" if counts else "good"
        if check.partial:
            texts.append("not all known")
            style = style if style == "bad" else "warn"
        facts.append(_Fact("findings", ", ".join(texts) or "none", style))
    elif "check" in sections:
        facts.append(_Fact("findings", "unknown", "warn"))
    pages = cast("Optional[PagesReport]", sections["pages"].report) if "pages" in sections else None
    if pages is not None:
        facts.append(_Fact("page frames", size_text(pages.extra["total"] * who.page_size)))
    facts.append(_Fact("types and symbols", f"{who.types}, {who.symbols}"))
    return facts


_SHORT = {
    "layout": "Map",
    "explain": "Regions",
    "check": "Findings",
    "kaslr": "KASLR",
    "rights": "Rights",
    "vmalloc": "vmalloc",
    "pages": "Memory",
    "modules": "Modules",
    "info": "Dump",
}


def _sections(sections: Sequence[Section]) -> List[_Section]:
    by_key = {section.key: section for section in sections}
    out: List[_Section] = []
    for section in sections:
        # The contents of a region are shown with its explanation, if there is one.
        if section.key.startswith("show_") and "explain" in by_key:
            continue
        made = _Section(
            section.key,
            section.title,
            _SHORT.get(section.key, section.title),
            section.text,
            section.problem,
        )
        out.append(made)
        report = section.report
        if report is None:
            continue
        if len(sections) > 1:
            made.command = _command(report, _COMMANDS.get(section.key, section.key))
        # Notes about the whole source are shown once, at the top.
        made.notes = report.notes if len(sections) == 1 else _own_notes(report, by_key)
        if report.command == "layout":
            _layout(made, cast("LayoutReport", report), linked="explain" in by_key)
        elif report.command == "explain":
            explained = cast("ExplainReport", report)
            made.text = explained.extra["introduction"]
            made.regions = [_region(row, by_key) for row in explained.tables[0].rows]
        else:
            made.tables = _tables(section, report, by_key)
        if report.command == "check" and not report.tables[0].rows:
            result = "Nothing was found in what could be checked" if report.partial else "Nothing was found"
            made.text = [*made.text, f"{result}. These rules were checked:"]
        if section.key == "rights":
            made.text = [*made.text, *_shared(by_key)]
        if report.command == "pages":
            _memory(made, cast("PagesReport", report))
    return out


def _shared(sections: Mapping[str, Section]) -> List[str]:
    """A sentence about each region that maps mostly shared pages: their sizes say nothing about memory."""
    layout = sections["layout"].report if "layout" in sections else None
    out: List[str] = []
    for row in placed_rows(cast("LayoutReport", layout)) if layout is not None else ():
        own = own_memory(row.mapped, row.shared)
        if own is not None:
            shared = f"{size_text(row.shared or 0)} is shared pages, each mapped many times"
            out.append(f"{row.name}: only {size_text(own)} is memory of its own, and {shared}.")
    return out


def _own_notes(report: Report, sections: Mapping[str, Section]) -> List[str]:
    layout = sections["layout"].report if "layout" in sections else None
    if layout is None or report is layout:
        return list(report.notes)
    return [note for note in report.notes if note not in layout.notes]


def _layout(made: _Section, report: LayoutReport, *, linked: bool) -> None:
    made.drawing = Markup(layout_svg(report, links="#region-" if linked else ""))
    table = report.tables[0]
    present = [row for row in table.rows if row.state == "present"]
    links = {id(row): f"region-{row.key}" for row in present} if linked else {}
    # The name is first, so that a narrow screen shows it beside the address.
    order = sorted(table.columns, key=lambda column: _FIRST.get(column.key, column.spare or 0))
    found = _table("layout-regions", "", order, present, links=links, linked_column="name")
    made.tables = [found]
    made.absent_title = "Not on this kernel"
    made.absent = [
        _Missing(row.name, row.reason or "", f"region-{row.key}" if linked else "")
        for row in table.rows
        if row.state != "present"
    ]


#: Order of the map's columns before the ones that a terminal may hide.
_FIRST = {"name": -2, "start": -1, "end": -1, "size": -1, "mapped": -1, "key": 1}


#: Regions with a section of their own: its table that is shown with the region, and the text of the link.
_APART = {"vmalloc": ("by_caller", "all of vmalloc"), "modules": ("modules", "all about the modules")}
_SOME_ROWS = 20


def _some(section: Section, key: str) -> List[_Table]:
    """The first rows of one table of a section."""
    if section.report is None:
        return []
    tables = [table for table in section.report.tables if table.key == key and table.rows]
    command = _command(section.report, f"show {section.key}")
    return [
        _table(f"some-{key}", table.title, table.columns, table.rows, command=command, most=_SOME_ROWS)
        for table in tables
    ]


def _region(row: ExplainRow, sections: Mapping[str, Section]) -> _Region:
    contents: List[_Table] = []
    notes: Sequence[str] = ()
    problem = ""
    inside = sections.get(f"show_{row.key}")
    if inside is not None:
        problem = inside.problem
        if inside.report is not None:
            shown = cast("ShowReport", inside.report)
            contents = _tables(inside, shown, sections)
            notes = _own_notes(shown, sections)
            problem = problem or shown.extra["region"].reason or ""
    place = ""
    if row.start is not None and row.size is not None:
        place = f"{row.start:016x}\u2013{row.end:016x}  {size_text(row.size)}"
    columns = (
        Column("kind", "kind"),
        Column("name", "name"),
        Column("what", "what it does"),
        Column("here", "on this kernel"),
    )
    definitions = None
    if row.definitions:
        definitions = _table(f"defs-{row.key}", "", columns, row.definitions)
    rights = sections["rights"].report if "rights" in sections else None
    mapped: Optional[_Table] = None
    if rights is not None:
        (table,) = rights.tables
        rows = [one for one in table.rows if field_of(one, "region") == row.key]
        mapped = (
            _table(f"rights-{row.key}", f"Rights in {row.name}", table.columns[1:], rows) if rows else None
        )
    links: List[_Link] = []
    if row.key in _APART and row.key in sections:
        # A section of its own has the same rows and more.
        key, title = _APART[row.key]
        links.append(_Link(row.key, title))
        contents += _some(sections[row.key], key)
    command = ""
    if rights is not None and row.key != "hole":
        command = _command(rights, f"{'show' if contents else 'explain'} {row.key}")
    return _Region(
        id=f"region-{row.key}",
        name=row.name,
        color=color_of(row.key),
        place=place,
        also=", ".join(row.also),
        absent=row.state == "absent",
        purpose=row.purpose,
        here=row.here,
        texts=[(title, texts) for title, texts in _headed(row) if texts],
        definitions=definitions,
        contents=contents,
        notes=notes,
        problem=problem,
        rights=mapped,
        links=links,
        command=command,
    )


def _headed(row: ExplainRow) -> Sequence[Tuple[str, Sequence[str]]]:
    return (
        ("Who uses it", row.users),
        ("How its addresses translate", row.translation),
        ("What an attacker looks for", row.attacker),
        ("What a debugger looks for", row.debugger),
        ("Where kernels differ", row.changed),
    )


def _tables(section: Section, report: Report, sections: Mapping[str, Section]) -> List[_Table]:
    wanted = section.tables
    found = [table for table in report.tables if table.rows and (wanted is None or table.key in wanted)]
    if wanted is not None:
        found.sort(key=lambda table: list(wanted).index(table.key))
    regions = "explain" in sections
    command = report.command
    if report.command == "show":
        command += f" {cast('ShowReport', report).extra['region'].key}"
    command = _command(report, command)
    out: List[_Table] = []
    for table in found:
        title = table.title or (table.key.replace("_", " ") if len(found) > 1 else "")
        links = (
            {id(row): f"region-{field_of(row, 'region')}" for row in table.rows}
            if regions and _names_region(table)
            else {}
        )
        name = f"{section.key}-{table.key}"
        folded = [row for row in table.rows if field_of(row, "state") in _FOLDED]
        told = [row for row in table.rows if field_of(row, "state") not in _FOLDED] if folded else table.rows
        if told:
            out.append(_table(name, title, table.columns, told, links=links, command=command))
        if folded:
            what = _FOLDED[str(field_of(folded[0], "state"))]
            more = _table(f"{name}-folded", "", table.columns, folded, command=command)
            out.append(replace(more, folded=f"{len(folded)} {what}"))
    return out


#: States of rows that are folded into one line, with its text.
_FOLDED = {"ok": "rules found nothing", "works": "commands work without limits"}


def _names_region(table: Table) -> bool:
    return any(column.key == "region" for column in table.columns)


def _table(
    name: str,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    links: Optional[Mapping[int, str]] = None,
    linked_column: str = "region",
    command: str = "",
    most: int = _MOST_ROWS,
) -> _Table:
    shown = rows[:most]
    # Empty columns are hidden.
    columns = [c for c in columns if any(field_of(r, c.key) not in (None, "", (), {}) for r in shown)]
    kinds = {column.key: _kind(column.key, shown) for column in columns}
    sums = _shares(columns, shown)
    made: List[_Row] = []
    for row in shown:
        cells = []
        for column in columns:
            value = field_of(row, column.key)
            link = (links or {}).get(id(row), "") if column.key == linked_column else ""
            share = ""
            if column.key in sums and isinstance(value, int):
                share = f"{100 * value / sums[column.key]:.1f}" if value else ""
            right = kinds[column.key] == "number"
            own = own_memory(value, field_of(row, "shared")) if column.key == "mapped" else None
            cell = _cell(value if own is None else own, key=column.key, link=link, share=share, right=right)
            cells.append(replace(cell, text=_as_in_text(row, column.key, cell.text)))
        style = "hole" if field_of(row, "kind") == "hole" else ""
        state = field_of(row, "state") or field_of(row, "severity") or ""
        made.append(_Row(cells, style, "" if state == "present" else str(state)))
    heads = [
        _Column(c.title or c.key.replace("_", " "), kinds[c.key], kinds[c.key] == "number") for c in columns
    ]
    keys = [column.key for column in columns]
    end = keys.index("end") + 1 if {"start", "end", "size"} <= set(keys) else 0
    return _Table(name, title, heads, made, len(rows) - len(shown), command, end=end)


def _as_in_text(row: Row, key: str, text: str) -> str:
    """Text of a cell, with the additions of the terminal's table: bounds, states, and that there is none."""
    if key == "slots" and text:
        return {"at least": "\u2265 ", "at most": "\u2264 "}.get(str(field_of(row, "bound")), "") + text
    if key == "bits" and not text:
        return {"off": "off", "unknown": "?"}.get(str(field_of(row, "state")), "")
    if key == "mapped" and text:
        bound = "\u2265 " if field_of(row, "at_least") else ""
        shared = field_of(row, "shared")
        apart = own_memory(field_of(row, "mapped"), shared) is not None
        return f"{bound}{text}" + (f" + {value_text(shared)} shared" if apart else "")
    if key == "value" and field_of(row, "key") == "panic" and field_of(row, "value") == "":
        return "none"
    return text


def _kind(key: str, rows: Sequence[Row]) -> str:
    values = [v for v in (field_of(row, key) for row in rows) if v is not None]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, (bool, Address))]
    return "number" if numbers and len(numbers) == len(values) else "text"


def _shares(columns: Sequence[Column], rows: Sequence[Row]) -> Dict[str, int]:
    """Columns of sizes that get bars, with their largest value; only in tables of sums."""
    if len(rows) < 2 or any(column.key in ("start", "end") for column in columns):
        return {}
    out: Dict[str, int] = {}
    for column in columns:
        sizes = [v for v in (field_of(row, column.key) for row in rows) if isinstance(v, Size)]
        if column.key == "size" and len(sizes) == len(rows):
            out[column.key] = max(map(int, sizes)) or 1
    return out


def _cell(value: object, *, key: str = "", link: str = "", share: str = "", right: bool = False) -> _Cell:
    if isinstance(value, Address):
        return _Cell(f"{value:016x}", style="mono", link=link)
    if isinstance(value, bool):
        return _Cell("yes" if value else "no")
    if isinstance(value, (int, float)):
        exact = str(int(value)) if isinstance(value, (Size, Displacement, int)) else repr(value)
        style = "right" if right else "tight"
        return _Cell(value_text(value), exact, f"{style} share" if share else style, link, share)
    if value is None:
        return _Cell("", "" if right else None)
    text = value_text(value)
    if isinstance(value, Mapping):
        text = ", ".join(f"{value_text(v)} \u00d7 {k}" for k, v in value.items())
    style = ""
    if key in ("rights", "expected"):
        style = "mono rights-wx" if text.startswith("rwx") else "mono"
    elif key in ("rule", "key"):
        style = "mono"
    return _Cell(text, style=style, link=link)


def _memory(made: _Section, report: PagesReport) -> None:
    """Draw shares of page types as one bar, and physical memory as squares."""
    tables = {table.key: table for table in report.tables}
    types: Table[TypeRow] = tables["types"]
    if not types.rows:
        return
    colors = {row.type: _TYPE_COLORS[n % len(_TYPE_COLORS)] for n, row in enumerate(types.rows)}
    total = sum(row.pages for row in types.rows) or 1
    page = _page_size(report)
    made.stack = [
        _Share(
            row.type,
            f"{size_text(row.pages * page)}, {100 * row.pages / total:.1f} %",
            colors[row.type],
            row.pages,
        )
        for row in types.rows
    ]
    largest = ", ".join(f"{share.name} {share.text}" for share in made.stack[:4])
    made.stack_label = f"Shares of page types: {largest}"
    cells: Table[CellRow] = tables["map"]
    made.cell_size = size_text(report.extra["cell_size"])
    squares: List[_Square] = []
    for cell in cells.rows:
        if not cell.types:
            continue
        most = max(cell.types, key=lambda name: cell.types[name])
        held = ", ".join(f"{name} {count}" for name, count in cell.types.items())
        squares.append(_Square(colors.get(most, "#888888"), f"{cell.start:x}: {held}"))
    made.cells = squares


class _Addresses(TypedDict):
    """The data of the search box. Addresses are hexadecimal; a link is the id of an element.

    :ivar regions: (first address, last, name, link), in order; together they are the whole address space.
    :ivar parts: the same of parts of regions, and of regions inside other regions.
    :ivar names: (name, what it is, address or nothing, link) of what has a name.
    :ivar linear: (first address, last, virtual minus physical address) of ranges with such a rule.
    :ivar cut: whether there are more parts than these.
    """

    regions: Sequence[Tuple[str, ...]]
    parts: Sequence[Tuple[str, ...]]
    names: Sequence[Tuple[str, ...]]
    linear: Sequence[Tuple[str, ...]]
    cut: bool


def _addresses(sections: Mapping[str, Section], linear_offset: Optional[Address]) -> _Addresses:
    layout = cast("Optional[LayoutReport]", sections["layout"].report) if "layout" in sections else None
    if layout is None:
        return {"regions": [], "parts": [], "names": [], "linear": [], "cut": False}
    linked = "explain" in sections
    rows = placed_rows(layout)
    placed = [
        (f"{row.start:x}", f"{row.end:x}", row.name, f"region-{row.key}" if linked else "") for row in rows
    ]
    parts = [*(place for place, row in zip(placed, rows) if row.parent and linked), *_parts(sections)]
    linear = [
        (row.start, row.end, linear_offset)
        for row in rows
        if row.key == "direct_map" and linear_offset is not None
    ]
    return {
        "regions": [place for place, row in zip(placed, rows) if not row.parent],
        "parts": parts[:_MOST_PARTS],
        "names": _names(sections) if linked else [],
        "linear": [
            (f"{start:x}", f"{end:x}", f"{offset:x}") for start, end, offset in (*linear, *_image(sections))
        ],
        "cut": len(parts) > _MOST_PARTS,
    }


def _rows(sections: Mapping[str, Section], key: str, *tables: str) -> List[Row]:
    """Rows of a section's tables; of all tables if none is named."""
    report = sections[key].report if key in sections else None
    found = () if report is None else report.tables
    return [row for table in found if not tables or table.key in tables for row in table.rows]


def _image(sections: Mapping[str, Section]) -> List[Tuple[int, int, int]]:
    """(first address, last, virtual minus physical address modulo 2^64) of the kernel image's parts."""
    out: List[Tuple[int, int, int]] = []
    for row in _rows(sections, "show_kernel_image", "sections"):
        start, end, physical = (field_of(row, key) for key in ("start", "end", "physical"))
        if isinstance(start, Address) and isinstance(end, Address) and isinstance(physical, Address):
            offset = (start - physical) % (1 << 64)
            joins = out and out[-1][1] + 1 == start and out[-1][2] == offset
            out.append((out.pop()[0] if joins else start, end, offset))
    return out


def _names(sections: Mapping[str, Section]) -> List[Tuple[str, ...]]:
    """What defines and moves regions, the symbols around the parts of the image, and the modules."""
    out: Dict[Tuple[str, ...], None] = {}
    variables = set()
    for explained in cast("List[ExplainRow]", _rows(sections, "explain")):
        for defined in explained.definitions:
            # Of a variable, its value may be an address.
            value = defined.here or ""
            at = value if defined.kind == "variable" and re.fullmatch("[89a-f][0-9a-f]{15}", value) else ""
            what = f"{defined.kind} of {explained.name}"
            out[(defined.name, what, at, f"region-{explained.key}")] = None
            if defined.kind == "variable":
                variables.add(defined.name)
    for row in _rows(sections, "show_kernel_image"):
        # Bounds of a part that is freed are rounded to pages.
        start, end = field_of(row, "start"), field_of(row, "end")
        exact = not field_of(row, "freed") and field_of(row, "expected") != "?"
        first, to, last = str(field_of(row, "symbols")).partition(" to ")
        if to and exact and isinstance(start, Address) and isinstance(end, Address):
            for symbol, place in ((first, int(start)), (last, end + 1)):
                # The end of brk is the value of a variable.
                if symbol not in variables:
                    what = "symbol of the kernel image"
                    out[(symbol, what, f"{place:x}", "region-kernel_image")] = None
    for row in _rows(sections, "modules", "modules"):
        address = field_of(row, "address")
        at = f"{address:x}" if isinstance(address, Address) else ""
        out[(str(field_of(row, "name")), "module", at, "modules")] = None
    return list(out)


def _parts(sections: Mapping[str, Section]) -> List[Tuple[str, ...]]:
    """(first address, last, name, link) of the parts of regions, at most one more than the page carries."""
    parts: List[Tuple[str, ...]] = []
    for section in sections.values():
        if section.report is None or section.report.command != "show":
            continue
        where = section.key if section.key in ("vmalloc", "modules") else f"region-{section.key[5:]}"
        for table in section.report.tables:
            if len(parts) > _MOST_PARTS:
                break
            if table.key in ("gaps", "slots", "holes", "ranges", "splits"):
                continue
            for row in table.rows[: _MOST_PARTS + 1 - len(parts)]:
                start = field_of(row, "start")
                if isinstance(start, Address) and start >> 63:
                    parts.append(
                        (
                            f"{start:x}",
                            f"{_end(row, start, _page_size(section.report)):x}",
                            _name(row, table),
                            where,
                        )
                    )
    return parts


def _page_size(report: Report) -> int:
    """Page size in bytes; 0 for a report without a kernel."""
    return 0 if report.kernel is None else report.kernel.page_size


def _end(row: Row, start: Address, page: int) -> int:
    end = field_of(row, "end")
    if isinstance(end, Address) and end >= start:
        return end
    # A slot of the fixmap is a page. Of everything else only the start is known.
    return start + (page - 1 if hasattr(row, "slot") else 0)


def _name(row: Row, table: Table) -> str:
    words: List[str] = []
    for key in ("module", "cpu", "member", "name", "section", "kind", "caller", "comm", "pid"):
        value = field_of(row, key)
        if value is not None and value != "" and not isinstance(value, (tuple, list, dict)):
            words.append({"cpu": f"CPU {value}", "pid": f"pid {value}"}.get(key, str(value)))
    return " ".join(words[:3]) or table.title or table.key
